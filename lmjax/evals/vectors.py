"""Word vectors: nearest neighbours and analogies by cosine, of any model that has a table of token vectors.

An analogy "a is to b as c is to ?" is answered by the word of the largest cosine with b - a + c, all vectors of unit
length, other than a, b and c: 3CosAdd (Mikolov et al. 2013, ACL N13-1090).

V words, D width, Q questions.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lmjax.errors import InputError

CHUNK = 1024  # questions that are answered at a time


@dataclasses.dataclass(frozen=True)
class Vectors:
    """The vectors of text tokens. A word is one token; " word", as it is inside a text, is preferred to "word".

    Example:
        vectors = lmjax.load("runs/word2vec-...").vectors()
        vectors.nearest("king", 3)              # [(" queen", 0.81), (" prince", 0.74), (" throne", 0.69)]
        vectors.analogy("man", "king", "woman")
    """

    tokenizer: Any
    unit_VD: np.ndarray  # float32, of length 1, or 0 where the vector is 0

    def id(self, word: str) -> int:
        """Returns the id of a word; InputError if it is not one token."""
        for text in (f" {word}", word):
            ids = self.tokenizer.encode(text).tolist() if word else []
            if len(ids) == 1 and (self.tokenizer.lossless or self.tokenizer.decode(ids) == word):  # not <unk>
                return ids[0]
        pieces = [self.tokenizer.decode([i]) for i in ids]
        raise InputError(f"word {word!r}: expected one token, got {pieces}; give a word of the vocabulary")

    def nearest(self, word: str, count: int = 10) -> list[tuple[str, float]]:
        """Returns the tokens of the largest cosine with a word's vector, and the cosines; not the word itself."""
        at = self.id(word)
        return self._best(self.unit_VD[at], [at], count)

    def analogy(self, a: str, b: str, c: str, count: int = 1) -> list[tuple[str, float]]:
        """Returns the best answers to "a is to b as c is to ?", and their cosines."""
        a_, b_, c_ = (self.id(word) for word in (a, b, c))
        return self._best(self.unit_VD[b_] - self.unit_VD[a_] + self.unit_VD[c_], [a_, b_, c_], count)

    def _best(self, query_D, left_out: Sequence[int], count: int) -> list[tuple[str, float]]:
        cosine_V = self.unit_VD @ query_D / max(float(np.linalg.norm(query_D)), 1e-30)
        cosine_V[list(left_out)] = -np.inf
        best = np.argsort(-cosine_V, kind="stable")[: min(count, len(cosine_V) - len({*left_out}))]
        return [(self.tokenizer.decode([i]), float(cosine_V[i])) for i in best]

    def accuracy(self, lines: Iterable[str]) -> list[dict]:
        """Returns the share of right answers to analogy questions.

        Args:
            lines: of a file such as word2vec's questions-words.txt: ": section" begins a section, other lines are four
                words, a b c and the answer. Blank lines are skipped.

        Returns:
            a row for each section and one for all, "total": section, questions, left_out (a word is not one token),
            right, accuracy (None without questions).

        Raises:
            InputError: a line of other than four words; no question.
        """
        sections: dict[str, list] = {}
        section, known = "questions", functools.cache(self._known)
        for number, line in enumerate(lines, start=1):
            words = line.split()
            if line.startswith(":"):
                section = line[1:].strip()
            elif words:
                if len(words) != 4:
                    raise InputError(f"questions, line {number}: expected four words, got {line.strip()!r}")
                sections.setdefault(section, []).append([known(word) for word in words])
        if not sections:
            raise InputError("questions: expected lines of four words, got none")
        rows = []
        for name, asked in sections.items():
            ids_Q4 = np.asarray([ids for ids in asked if None not in ids], int).reshape(-1, 4)
            row = {"section": name, "questions": len(asked), "left_out": len(asked) - len(ids_Q4)}
            rows.append({**row, "right": int(np.sum(self._answers(ids_Q4[:, :3]) == ids_Q4[:, 3]))})
        total = {name: sum(row[name] for row in rows) for name in ("questions", "left_out", "right")}
        rows.append({"section": "total", **total})
        for row in rows:
            answered = row["questions"] - row["left_out"]
            row["accuracy"] = row["right"] / answered if answered else None
        return rows

    def _known(self, word):
        try:
            return self.id(word)
        except InputError:
            return None

    def _answers(self, ids_Q3):
        """The ids [Q] that 3CosAdd answers; a, b and c given."""
        found = np.zeros(len(ids_Q3), int)
        for at in range(0, len(ids_Q3), CHUNK):
            part = ids_Q3[at : at + CHUNK]
            a_QD, b_QD, c_QD = self.unit_VD[part].swapaxes(0, 1)
            product_QV = (b_QD - a_QD + c_QD) @ self.unit_VD.T
            np.put_along_axis(product_QV, part, -np.inf, axis=1)
            found[at : at + CHUNK] = product_QV.argmax(axis=1)
        return found


def of(trained) -> Vectors:
    """Returns the vectors of a loaded model: the rows of its token table.

    Args:
        trained: a loaded model, of lmjax.trained.

    Raises:
        InputError: a model without a token table, or without a tokenizer.
    """
    tables = trained.params.get("embedding", {})
    if "embedding" not in tables or trained.tokenizer is None:
        what = "tokenizer" if "embedding" in tables else "table of token vectors"
        raise InputError(f"model.family {trained.config.model.family!r}: expected a model with a {what}, got none")
    table_VD = np.asarray(tables["embedding"], np.float32)[: trained.tokenizer.text_vocab_size]
    length_V1 = np.linalg.norm(table_VD, axis=1, keepdims=True)
    return Vectors(trained.tokenizer, table_VD / np.where(length_V1 > 0, length_V1, 1.0))
