"""Settings of runs: which may differ between the rows of one fit (size, tokens, seed), and which must not."""

from collections.abc import Mapping, Sequence

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.scaling.laws import Law, get_law

ONE_KIND = ("family", "objective", "tokenizer", "vocab_size", "token_unit", "parametrization")
TOKENS = ("tokenizer", "vocab_size", "token_unit", "config.data.tokenizer", "config.data.vocab_size")
TOKENS += ("config.data.num_sentinels", "config.model.vocab_size")  # bits per byte are comparable across these
SHAPE = ("d_model", "num_layers", "encoder_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "embedding_dim")
FREE_SECTIONS = ("run", "mesh", "checkpoint", "metrics", "duration")
FREE = {
    *(f"config.model.{name}" for name in SHAPE),
    *("config.model.remat", "config.model.scan_layers", "config.model.dtype", "config.train.accumulation_steps"),
    *("config.train.seed", "config.data.seed", "config.data.max_epochs", "config.objective.file"),
    *("config.evaluation.every_steps", "config.evaluation.batch_size", "config.optimizer.learning_rate"),
}
WITH_WIDTH = ("config.model.logit_scale", "config.model.embedding_scale", "config.model.attention_scale")


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
    rest = f" ({more} more setting{'s' * (more > 1)} differ{'s' * (more == 1)})" * (more > 0)
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
        frame: rows of a table.
        loss: the fitted column; bits_per_byte are comparable across tokenizers.
        law: the law, whose variables may vary.
        allow: other settings that may vary.

    Returns:
        {column: its values as text}, empty where the rows can be pooled.
    """
    skipped = {column_of(frame, key) for key in allow} | (set(TOKENS) if loss == "bits_per_byte" else set())
    if "B" in get_law(law).variables:
        skipped.add("config.data.global_batch_size")
    found = {}
    for name in frame.columns:
        config = str(name).startswith("config.") and name not in FREE and name.split(".")[1] not in FREE_SECTIONS
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
    for name in (key, f"config.{key}"):
        if name in frame:
            return name
    known = [str(name).removeprefix("config.") for name in frame.columns]
    raise InputError(f"expected a column {key!r}{nearest(key, known)}")


def setting_text(value) -> str:
    """Returns a setting as text that is equal for 1, 1.0 and "1", and "not set" for None and NaN."""
    if value is None or value != value or value == "":
        return "not set"
    try:
        return f"{float(value):.12g}" if not isinstance(value, (bool, np.bool_)) else str(bool(value))
    except (TypeError, ValueError):
        return str(value)


def values_of(column) -> list[str]:
    """Returns the distinct values of a column as text, numbers first and by size."""
    texts = {setting_text(value) for value in column.tolist()}

    def place(text):
        try:
            return 0, float(text), text
        except ValueError:
            return 1, 0.0, text

    return sorted(texts, key=place)


def _one_to_one(frame, first, second):
    """Whether the values of two columns map one to one."""
    if first not in frame:
        return False
    pairs = {(setting_text(a), setting_text(b)) for a, b in zip(frame[first], frame[second], strict=True)}
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def listed(values: Sequence[str]) -> str:
    """Returns the first values, separated by commas."""
    return ", ".join(str(v)[:40] for v in values[:6]) + ", ..." * (len(values) > 6)
