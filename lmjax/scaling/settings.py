"""Settings of runs: which rows a condition selects, and which settings may differ between the rows of one fit.

A condition is {column: value}, the text "column=value", an expression such as "dataset == 'c4' and epoch <= 1", or a
list of these. Expressions are parsed by `ast` and evaluated here, node by node; nothing in them is executed.
"""

import ast
import re
from collections.abc import Mapping, Sequence

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.format import parse_count, plural
from lmjax.scaling.laws import Law, get_law

SAME = 0.02  # N (or D) within 2 % of each other count as one value
YES, NO = ("true", "yes", "1", "1.0", "t", "y"), ("false", "no", "0", "0.0", "f", "n")
OWN = {"N": "n_total", "D": "tokens"}  # columns of run records that a condition may call by their symbol
ONE_KIND = ("family", "objective", "tokenizer", "vocab_size", "token_unit", "parametrization")
TOKENS = ("tokenizer", "vocab_size", "token_unit", "config.data.tokenizer", "config.data.vocab_size")
TOKENS += ("config.data.num_sentinels", "config.model.vocab_size")  # bits per byte are comparable across these
SHAPE = ("d_model", "num_layers", "encoder_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "embedding_dim")
SHAPE += ("ngram_order", "ngram_min_count")
FREE_SECTIONS = ("run", "mesh", "checkpoint", "metrics", "launch", "duration")
FREE = {
    *(f"config.model.{name}" for name in SHAPE),
    # set by config.parametrization; lmjax.optim.parametrization.MULTIPLIERS, which would import JAX
    *(f"config.model.{name}_multiplier" for name in ("logit", "heads", "attention", "branch", "router")),
    *("config.model.remat", "config.model.scan_layers", "config.model.dtype", "config.train.accumulation_steps"),
    *("config.train.seed", "config.data.seed", "config.data.max_epochs", "config.objective.file", "config.plugins"),
    "config.data.unique_tokens",  # the column U
    *("config.evaluation.every_steps", "config.evaluation.batch_size", "config.optimizer.learning_rate"),
    *("config.init.from", "config.init.parent"),  # runs that differ in init.what are not pooled
}
WITH_WIDTH = ("config.model.logit_scale", "config.model.embedding_scale", "config.model.attention_scale")

PAIR = re.compile(r"\s*([^=<>!'\"`\[(]+?)\s*=(?!=)\s*(.*?)\s*", re.DOTALL)  # column=value, but not column == value
ORDER = {ast.Lt: np.less, ast.LtE: np.less_equal, ast.Gt: np.greater, ast.GtE: np.greater_equal}
ARITHMETIC = {ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide}


# ---- conditions: the rows that they select --------------------------------------------------------------------------


def select_rows(frame, where, name: str = "the table"):
    """Returns the rows of a frame that meet a condition.

    Args:
        frame: a pandas frame.
        where: {column: value}, "column=value", an expression, or a list of these, all of which must hold. N and D
            need only agree within 2 %. Expressions have comparisons (<, <=, >, >=, ==, !=, in, not in), and, or, not,
            + - * /, numbers, text in quotes, and columns; names that are no Python names go in backticks.
        name: the table in error messages.

    Raises:
        InputError: no such column, no such row, or text that is no condition.

    Example:
        >>> import pandas
        >>> frame = pandas.DataFrame({"dataset": ["c4", "c4", "pile"], "eval/epoch": [1, 4, 1]})
        >>> select_rows(frame, "dataset in ['c4', 'web'] and not `eval/epoch` > 1")
          dataset  eval/epoch
        0      c4           1
    """
    keep = matches(frame, where)
    if not keep.any():
        raise InputError(
            f"{name}: expected rows with {words(where)}, got none among {len(frame)}{_values(frame, where)}"
        )
    return frame[keep].reset_index(drop=True)


def matches(frame, where) -> np.ndarray:
    """The rows that meet a condition (see `select_rows`), bool [rows]."""
    if isinstance(where, str):
        pair = _pair(frame, where)
        return _equals(frame, *pair) if pair else _Expression(frame, where).rows()
    parts = [_equals(frame, *pair) for pair in where.items()] if isinstance(where, Mapping) else []
    parts = parts or [matches(frame, part) for part in where or ()]
    return np.logical_and.reduce([np.ones(len(frame), bool), *parts])


def _pair(frame, where):
    """Column and value of column=value, the column of any name that the frame has; None of an expression."""
    column, equals, value = where.partition("=")
    found = PAIR.fullmatch(where)
    if equals and not value.startswith("=") and column.strip() in frame:
        return column.strip(), _unquoted(value.strip())
    return (found[1], _unquoted(found[2])) if found else None


def words(where) -> str:
    """A condition as text for messages."""
    if isinstance(where, str):
        pair = PAIR.fullmatch(where)
        return f"{pair[1]} = {pair[2]}" if pair else where.strip()
    if not isinstance(where, Mapping):
        return " and ".join(filter(None, map(words, where or ())))
    numbers = {key: f"{value:.4g}" for key, value in where.items() if key in OWN and not isinstance(value, str)}
    return " and ".join(f"{key} = {numbers.get(key, value)}" for key, value in where.items())


def _values(frame, where):
    """The values of a column of which a condition wants another, as the end of a message."""
    pair = PAIR.fullmatch(where).groups() if isinstance(where, str) and PAIR.fullmatch(where) else None
    pair = next(iter(where.items())) if isinstance(where, Mapping) and len(where) == 1 else pair
    return f"; {pair[0]} is {listed(values_of(frame[column_of(frame, pair[0])]))}" if pair else ""


def _unquoted(text):
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _equals(frame, key, value):
    """The rows where a column has a value, bool [rows]; N and D within 2 %."""
    column = frame[column_of(frame, key)]
    if key in OWN:
        return np.isclose(floats(column), parse_count(str(value)), rtol=SAME)
    return (column.map(setting_text) == setting_text(value)).to_numpy()


class _Expression:
    """A condition in Python's notation on the columns of a frame."""

    def __init__(self, frame, text):
        self.frame, self.text, self.quoted = frame, text, re.findall(r"`([^`]+)`", text)
        marks = iter(f"_quoted_{i}" for i in range(len(self.quoted)))
        try:
            self.tree = ast.parse(re.sub(r"`[^`]+`", lambda _: next(marks), text).strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self.error(str(getattr(error, "msg", error))) from error

    def error(self, why):
        return InputError(
            f"where: expected KEY=VALUE or an expression such as \"dataset == 'c4' and epoch <= 1\", got "
            f"{self.text!r}: {why}"
        )

    def rows(self, node=None) -> np.ndarray:
        """The rows where a node holds, bool [rows]."""
        node = self.tree if node is None else node
        if isinstance(node, ast.BoolOp):
            reduce = np.logical_and.reduce if isinstance(node.op, ast.And) else np.logical_or.reduce
            return reduce([self.rows(part) for part in node.values])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.rows(node.operand)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            pairs = zip(sides, node.ops, sides[1:], strict=False)
            return np.logical_and.reduce([self.compared(*pair) for pair in pairs])
        if isinstance(node, (ast.Name, ast.Attribute)):
            return truth(self.frame, self.column(node), "where")
        raise self.error(f"{ast.unparse(node)!r} is neither a comparison nor and, or, not")

    def compared(self, left, op, right) -> np.ndarray:
        """The rows where one comparison holds, bool [rows]; a missing number is in no order."""
        if isinstance(op, (ast.In, ast.NotIn)):
            if not isinstance(right, (ast.List, ast.Tuple, ast.Set)):
                raise self.error(f"expected a list such as ['c4', 'pile'] after in, got {ast.unparse(right)!r}")
            found = [self.compared(left, ast.Eq(), one) for one in right.elts]
            found = np.logical_or.reduce([np.zeros(len(self.frame), bool), *found])
            return found if isinstance(op, ast.In) else ~found
        if isinstance(op, (ast.Eq, ast.NotEq)):
            if isinstance(left, ast.Name) and left.id in OWN and isinstance(right, ast.Constant):
                same = _equals(self.frame, left.id, right.value)
            else:
                texts = [np.array([setting_text(x) for x in self.value(side)], object) for side in (left, right)]
                same = texts[0] == texts[1]
            same = np.broadcast_to(same, len(self.frame))
            return same if isinstance(op, ast.Eq) else ~same
        if type(op) not in ORDER:
            raise self.error("expected <, <=, >, >=, ==, !=, in or not in")
        return np.broadcast_to(ORDER[type(op)](self.number(left), self.number(right)), len(self.frame))

    def value(self, node) -> list:
        """The values of a column, an arithmetic expression or a constant, one or one per row."""
        if isinstance(node, ast.Constant):
            return [node.value]
        if isinstance(node, (ast.Name, ast.Attribute)):
            return self.frame[self.column(node)].tolist()
        return self.number(node).tolist()

    def number(self, node) -> np.ndarray:
        """The same as floats."""
        if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            with np.errstate(divide="ignore", invalid="ignore"):
                return ARITHMETIC[type(node.op)](self.number(node.left), self.number(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self.number(node.operand)
        if not isinstance(node, (ast.Constant, ast.Name, ast.Attribute)):
            raise self.error(f"expected a column, a number or text, got {ast.unparse(node)!r}")
        found = floats(self.value(node))
        if np.isnan(found).all():
            raise self.error(f"expected numbers to compare, got {ast.unparse(node)!r}, which has none")
        return found

    def column(self, node) -> str:
        """The column that a name such as optimizer.name, or a name in backticks, stands for."""
        name = ast.unparse(node)
        if name.startswith("_quoted_"):
            name = self.quoted[int(name.removeprefix("_quoted_"))]
        return column_of(self.frame, name)


def truth(frame, column: str, name: str, missing: bool = False) -> np.ndarray:
    """Returns a yes/no column as bool [rows]; `missing` for empty cells, and for all rows if there is no column.

    Raises:
        InputError: names a value that is neither.
    """
    if column not in frame:
        return np.full(len(frame), missing)
    texts = frame[column].map(lambda value: "" if value is None or value != value else str(value).strip().lower())
    unknown = sorted(set(texts) - set(YES) - set(NO) - {""})
    if unknown:
        raise InputError(f"{name}: column {column}: expected true or false, got {unknown[0]!r}")
    return np.array([missing if word == "" else word in YES for word in texts], bool)


# ---- settings: which may differ between the rows of one fit ---------------------------------------------------------


def check(frame, name: str, loss: str = "loss", law: str | Law = "chinchilla", allow: Sequence[str] = ()) -> None:
    """Refuses rows that differ in a setting that `varying` finds.

    Raises:
        InputError: names the settings, their values and the ways to fit such rows.
    """
    differing = varying(frame, loss, law, allow)
    if not differing:
        return
    keys = group_keys(frame, differing)
    shown = "; ".join(f"{key.removeprefix('config.')} in a fit, got {listed(differing[key])}" for key in keys[:3])
    more = len(differing) - len(keys[:3])
    rest = f" ({plural(more, 'more setting')} differ{'s' * (more == 1)})" * (more > 0)
    plain = [key.removeprefix("config.") for key in keys]
    raise InputError(
        f"{name}: expected one {shown}{rest}: such losses do not follow one law. Fit one group with "
        f"--where {plain[0]}={differing[keys[0]][0]} (where={{...}} in Python), or one law per group with "
        f"--by {','.join(plain)} (fit_groups in Python)"
    )


def varying(
    frame, loss: str = "loss", law: str | Law = "chinchilla", allow: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Returns the settings in which rows differ and whose losses therefore do not follow one law.

    Compares family, objective, tokenizer and every config.* column, except size, tokens, seeds and settings without
    effect on the loss. The learning rate may follow the size (one value per N) or a declared rule
    (run.learning_rate_rule); factors on embeddings, logits and attention may follow the width.

    Args:
        loss: the fitted column; bits_per_byte are comparable across tokenizers.
        law: the law, whose variables may vary. allow: other settings that may vary.

    Returns:
        {column: its values as text}, empty where the rows can be pooled.
    """
    skipped = {column_of(frame, key) for key in allow} | (set(TOKENS) if loss == "bits_per_byte" else set())
    if "B" in get_law(law).variables:
        skipped.add("config.data.global_batch_size")
    found = {}
    for name in frame.columns:
        # lmjax's keys have a section; config.lr of another program is judged by guards.py
        config = re.match(r"config\.\w+\.", str(name)) and name not in FREE and name.split(".")[1] not in FREE_SECTIONS
        if not (config or name in ONE_KIND) or name in skipped:
            continue
        values = values_of(frame[name] if config else frame[name].dropna())
        if len(values) > 1 and not (name in WITH_WIDTH and _one_to_one(frame, "config.model.d_model", name)):
            found[name] = values
    rate, rule = "config.optimizer.learning_rate", "config.run.learning_rate_rule"
    if rate in frame and rate not in skipped and len(values_of(frame[rate])) > 1:
        rules = values_of(frame[rule]) if rule in frame else []
        if len(rules) > 1:
            found[rule] = rules
        size = next((name for name in ("N", "n_total") if name in frame), None)
        per_size = frame.groupby(size)[rate].nunique().max() if size else 2
        if (not rules or rules == ["not set"]) and per_size > 1:
            found[rate] = values_of(frame[rate])
    return found


def group_keys(frame, differing: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns a few of the differing settings, such that rows that agree in them agree in all the others.

    Example:
        >>> import pandas
        >>> frame = pandas.DataFrame({"objective": ["a", "b", "b"], "config.objective.name": ["a", "b", "b"]})
        >>> group_keys(frame, varying(frame))
        ['objective']
    """
    texts = {name: frame[name].map(setting_text) for name in differing}

    def open_with(keys):
        """The settings that still differ between rows that agree in all keys."""
        parts = [texts[key].to_numpy() for key in keys]
        return [name for name, column in texts.items() if (column.groupby(parts).nunique() > 1).any()]

    keys, left = [], list(texts)
    while left:
        keys.append(min(left, key=lambda name: len(open_with([*keys, name]))))
        left = open_with(keys)
    return keys


def column_of(frame, key: str) -> str:
    """Returns the column of a setting, given its name or the key of the config."""
    for name in (key, f"config.{key}", OWN.get(key, key)):
        if name in frame:
            return name
    known = [str(name).removeprefix("config.") for name in frame.columns]
    raise InputError(f"expected a column {key!r}{nearest(key, known)}")


def setting_text(value) -> str:
    """Returns a setting as text that is equal for 1, 1.0 and "1", and "not set" for None and NaN.

    Example: "1" of 1.0, and "927871e366" of itself, which is a hash and not infinity.
    """
    if value is None or value != value or value == "":
        return "not set"
    return f"{float(value):.12g}" if not isinstance(value, (bool, np.bool_)) and is_number(value) else str(value)


def values_of(column) -> list[str]:
    """Returns the distinct values of a column as text, numbers first and by size."""
    texts = {setting_text(value) for value in column.tolist()}
    return sorted(texts, key=lambda text: (0, float(text), text) if is_number(text) else (1, 0.0, text))


def _one_to_one(frame, first, second):
    """Whether the values of two columns map one to one."""
    if first not in frame:
        return False
    pairs = frame[[first, second]].apply(lambda column: column.map(setting_text)).drop_duplicates()
    return not (pairs[first].duplicated().any() or pairs[second].duplicated().any())


def listed(values: Sequence[str]) -> str:
    """Returns the first few values as text, separated by commas."""
    return ", ".join(str(v)[:40] for v in values[:6]) + ", ..." * (len(values) > 6)


def floats(values) -> np.ndarray:
    """Returns values as floats; NaN where there is no finite number."""
    return np.array([float(x) if is_number(x) else np.nan for x in values])


def is_number(value) -> bool:
    """Whether a value of a table is a finite number, or text that is one."""
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError):
        return False
