"""Sources made by a rule from embedded text, lists or numbers, so that what can be learned from them is known.

parallel  clauses of an embedded corpus and their translation into a constructed language. The translation is a
          function of the clause and can be inverted: nothing but the other side is needed to predict a side.
orders    rows of a table of orders: country, capital, item, price, quantity, total. Each column is a function of the
          others.
modular   the addition table of the numbers modulo P: each sum a + b is a document of three letters, a, b and the
          answer, as in experiments on grokking (arXiv 2201.02177).
"""

import itertools
import re
from collections.abc import Iterable, Iterator

VERSION = 1  # increase it when a rule or a list changes
COUNTRIES = {
    **{
        "Argentina": "Buenos Aires",
        "Austria": "Vienna",
        "Chile": "Santiago",
        "Cuba": "Havana",
        "Denmark": "Copenhagen",
    },
    **{"Egypt": "Cairo", "Finland": "Helsinki", "France": "Paris", "Ghana": "Accra", "Greece": "Athens"},
    **{"Iceland": "Reykjavik", "Japan": "Tokyo", "Kenya": "Nairobi", "Nepal": "Kathmandu", "Norway": "Oslo"},
    **{"Peru": "Lima", "Poland": "Warsaw", "Portugal": "Lisbon", "Senegal": "Dakar", "Spain": "Madrid"},
}
PRICES = {"pencil": 2, "candle": 3, "cup": 5, "lamp": 17, "chair": 29, "carpet": 43, "table": 61, "piano": 97}
QUANTITIES = range(1, 21)
ZERO, MOST = "!", 94  # the letter of 0, followed by those of 1, 2, ... as in ASCII; the largest modulus, up to "~"

_CLAUSE_END = re.compile(r"(?<=[.:;?!])\s+")
_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*")
_VOWELS, _CONSONANTS = "aeiou", "bcdfghjklmnpqrstvwxyz"
_FROM, _TO = _VOWELS + _CONSONANTS, _VOWELS[2:] + _VOWELS[:2] + _CONSONANTS[7:] + _CONSONANTS[:7]
_CIPHER = str.maketrans(_FROM + _FROM.upper(), _TO + _TO.upper())


def translate(clause: str) -> str:
    """Returns the clause in the constructed language; punctuation and white space stay in their places.

    Words 1 and 2, 3 and 4, ... change places. Then each vowel is replaced by the second after it in aeiou, and each
    consonant by the seventh after it in bcdfghjklmnpqrstvwxyz, both cyclically.

    Example: translate("God is light.") = "ub Pam tupqc."
    """
    words = _WORD.findall(clause)
    last = len(words) // 2 * 2
    words[:last:2], words[1:last:2] = words[1:last:2], words[:last:2]
    moved = iter(words)
    return _WORD.sub(lambda _: next(moved), clause).translate(_CIPHER)


def pairs(documents: Iterable[tuple[str, str]]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yields (key, (clause, translation)) of the clauses of documents, which end after one of . : ; ? !"""
    for key, text in documents:
        clauses = (" ".join(clause.split()) for clause in _CLAUSE_END.split(text))
        for number, clause in enumerate(filter(_WORD.search, clauses), start=1):
            yield f"parallel/{key}/{number}", (clause, translate(clause))


def orders() -> Iterator[tuple[str, dict[str, str]]]:
    """Yields (key, {column: value}) of all combinations of a country, an item and a quantity.

    Example: the first is {"country": "Argentina", "capital": "Buenos Aires", "item": "pencil", "price": "2",
    "quantity": "1", "total": "2"}.
    """
    for number, (country, item, quantity) in enumerate(itertools.product(COUNTRIES, PRICES, QUANTITIES)):
        price = PRICES[item]
        amounts = {"price": str(price), "quantity": str(quantity), "total": str(price * quantity)}
        yield f"orders/{number}", {"country": country, "capital": COUNTRIES[country], "item": item, **amounts}


def sums(modulus: int) -> Iterator[tuple[str, str]]:
    """Yields (key, text) of all sums modulo a number, in the order of their operands.

    Example: of modulus 3 the fourth is ("modular/3/3", '"!"'), 1 + 0 = 1.
    """
    for number, (a, b) in enumerate(itertools.product(range(modulus), repeat=2)):
        yield f"modular/{modulus}/{number}", "".join(chr(ord(ZERO) + x) for x in (a, b, (a + b) % modulus))
