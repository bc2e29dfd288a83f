"""Names of columns: which is N, D, C, loss or another variable, by which convention; which values count as one."""

from collections.abc import Sequence

import numpy as np

from lmjax.errors import InputError, nearest

N_COUNTS = {  # n -> (column of run records, words)
    "total": ("n_total", "N = all parameters, embeddings included"),
    "non_embedding": ("n_non_embedding", "N = parameters without embeddings"),
    "matmul_head": ("n_matmul_head", "N = parameters of matrix products, output projection included, tables not"),
}
C_COUNTS = {  # c -> words
    "6nd": "C = 6 N D FLOP",
    "6nd_attention": "C = 6 N D + training FLOP of the attention scores",
    "exact": "C = exact training FLOP",
}
ALIASES = {  # variable -> its columns, first come first taken
    "D": ("tokens", "D"),
    "S": ("steps", "S"),
    "U": ("unique_tokens", "U"),
    "M": ("tokens_per_param", "M"),
    "B": ("tokens_per_step", "B"),
    "N_e": ("n_encoder", "N_e"),
    "N_d": ("n_decoder", "N_d"),
    "S1": ("S1",),
    "S2": ("S2",),
}


def renamed(frame, columns, name):
    """The frame with the user's names of columns replaced by ours."""
    for ours, theirs in columns.items():
        if theirs not in frame:
            raise InputError(f"{name}: wanted a column {theirs!r} for {ours}{nearest(theirs, map(str, frame.columns))}")
    frame = frame.drop(columns=[ours for ours, theirs in columns.items() if ours in frame and ours != theirs])
    return frame.rename(columns={theirs: ours for ours, theirs in columns.items()})


def choose(frame, n, c, loss, name, law):
    """{variable: its column} and the words of every convention."""
    for value, known, what in ((n, N_COUNTS, "n"), (c, C_COUNTS, "c")):
        if value not in known:
            raise InputError(f"{what}: wanted {' | '.join(known)}, got {value!r}{nearest(value, known)}")
    n_column, n_words = N_COUNTS[n]
    columns = {short: next(x for x in names if x in frame) for short, names in ALIASES.items() if {*names} & {*frame}}
    exact = next((x for x in ("flops_exact", "C") if x in frame), None)
    needs = set(law.variables)
    if ("M" in needs and "M" not in columns) or ("C" in needs and not exact):
        needs |= {"N", "D"}
    if n_column in frame or n != "total":
        columns["N"] = n_column
    elif "N" in frame or ("N" in needs and not {"N_e", "N_d"} <= set(columns)):
        columns["N"] = "N"
    columns["loss"] = loss
    if exact or c == "exact":
        columns["C"] = exact or "flops_exact"
    if "D" in needs and not exact:
        columns.setdefault("D", "D")
    columns |= {name: name for name in needs - {"N", "D", "C", "M"} if name not in columns}
    wanted = [*columns.values(), *(["flops_attention"] if c == "6nd_attention" else [])]
    missing = [column for column in wanted if column not in frame]
    if missing:
        raise InputError(
            f"{name}: wanted columns {', '.join(map(repr, missing))}{_hint(missing[0], frame)}; the table has "
            f"{', '.join(map(str, frame.columns[:20]))}; say which is which: --columns "
            f"{','.join(f'{column}=...' for column in missing)} (columns={{...}} in Python)"
        )
    n_words = {n_column: n_words, "N": "N as given in the table", None: "no N in the table"}[columns.get("N")]
    if "N" not in columns and {"N_e", "N_d"} <= set(columns):
        n_words = "N = N_e + N_d"
    d_words = {"tokens": "D = training tokens seen", "D": "D as given in the table"}.get(columns.get("D"))
    derived = "D = C / 6 N" if exact and "N" in columns else "no D in the table"
    known = "N" in columns and ("D" in columns or exact)
    c_words = C_COUNTS[c] if known and c != "exact" else "C as given in the table" if exact else "no C in the table"
    conventions = {
        "N": n_words,
        "D": d_words or derived,
        "C": C_COUNTS[c] if columns.get("C") == "flops_exact" and c == "exact" else c_words,
        "loss": _loss_unit(frame, loss),
    }
    return columns, conventions


def _loss_unit(frame, loss):
    """What the loss is; only of records of our own is it known to be measured on held-out documents."""
    record = "objective_version" in frame
    if loss == "bits_per_byte":
        return "loss = held-out bits per byte" if record else "loss = bits per byte"
    if loss != "loss":
        return f"loss = column {loss} of the table"
    if not record:
        return "loss in the unit of the table"
    return f"loss = held-out nats per predicted token of the objective {frame['objective'].dropna().iloc[0]}"


def _hint(name, frame):
    words = nearest(name, map(str, frame.columns))
    return words if "did you mean" in words else ""


def cluster(values, together: float = 0.05) -> np.ndarray:
    """Returns for each value the geometric mean of its cluster; values within 5 % of a neighbour are one cluster.

    Example:
        >>> cluster([100.0, 102.0, 200.0]).round(1).tolist()
        [101.0, 101.0, 200.0]
    """
    values = np.asarray(values, float)
    order = np.argsort(values)
    group = np.zeros(len(values), int)
    group[order[1:]] = np.cumsum(np.diff(np.log(values[order])) > together)
    return np.array([np.exp(np.log(values[group == g]).mean()) for g in group])


def curve_keys(rows: Sequence[dict], names: Sequence[str]) -> list[tuple[float, ...]]:
    """Returns for each row the clustered values of the named variables: equal keys are one curve of a figure.

    Example:
        >>> rows = [{"N": 1.0, "D": 8.0}, {"N": 2.0, "D": 8.0}, {"N": 1.0, "D": 16.0}]
        >>> [round(D, 6) for (D,) in curve_keys(rows, ["D"])]
        [8.0, 8.0, 16.0]
    """
    if not names:
        return [()] * len(rows)
    return list(zip(*(cluster([row[name] for row in rows]).tolist() for name in names), strict=True))
