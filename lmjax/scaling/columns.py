"""Columns of a table: which one is N, D, C or the loss, by which convention; and columns as checked arrays."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.scaling.settings import check

N_COUNTS = {  # n -> (column of run records, what it counts)
    "total": ("n_total", "N = all parameters, embeddings included"),
    "non_embedding": ("n_non_embedding", "N = parameters without embeddings"),
    "matmul_head": ("n_matmul_head", "N = parameters of matrix products, output projection included, tables not"),
}
C_COUNTS = {  # c -> what it counts
    "6nd": "C = 6 N D FLOP",
    "6nd_attention": "C = 6 N D + training FLOP of the attention scores",
    "exact": "C = exact training FLOP",
}
# What other programs call the columns of each variable, as `plain_name` writes it, from the first to the last choice:
# lmjax's run records, Weights & Biases, Hugging Face's Trainer, lm-evaluation-harness, published tables. Where the
# first choice has several columns of different values, the user must choose.
NAMES = {
    "N": (
        "n n_total n_params num_params params parameters n_parameters num_parameters total_params total_parameters "
        "param_count parameter_count params_total model_params nparams num_model_params n_model_params",
    ),
    "n_non_embedding": (
        "n_non_embedding non_embedding_params params_non_embedding n_params_non_embedding non_embedding_parameters "
        "num_params_non_embedding num_non_embedding_params n_params_no_embedding",
    ),
    "D": (
        "d tokens tokens_seen train_tokens training_tokens n_tokens num_tokens total_tokens tokens_trained "
        "num_train_tokens num_training_tokens train_tokens_seen num_input_tokens_seen consumed_tokens n_tokens_seen "
        "num_tokens_seen tokens_total tokens_processed",
    ),
    "C": (
        "c flops_exact flops flop compute train_flops training_flops total_flops total_flos compute_flops "
        "training_compute train_compute total_compute flops_total",
    ),
    "S": ("s steps train_steps training_steps num_steps n_steps optimizer_steps num_iterations", "step global_step"),
    "U": ("u unique_tokens num_unique_tokens n_unique_tokens unique_train_tokens dataset_tokens",),
    "M": ("m tokens_per_param tokens_per_parameter",),
    "B": ("b tokens_per_step batch_tokens batch_size_tokens tokens_per_batch batch_size_in_tokens",),
    "N_e": ("n_encoder n_e",),
    "N_d": ("n_decoder n_d",),
    "loss": (
        "loss",
        "val_loss validation_loss eval_loss valid_loss dev_loss test_loss heldout_loss held_out_loss final_val_loss "
        "final_validation_loss final_eval_loss eval_val_loss loss_val loss_eval val_ce eval_ce val_nll eval_nll "
        "val_ce_loss val_cross_entropy eval_cross_entropy validation_cross_entropy val_loss_final",
        "final_loss loss_final lm_loss ce_loss cross_entropy cross_entropy_loss nll",
        "train_loss training_loss final_train_loss loss_train train_ce train_nll train_loss_final train_cross_entropy "
        "smoothed_train_loss train_loss_smoothed train_crossentropyloss",
    ),
    "status": ("status state",),
    "learning_rate": ("learning_rate lr peak_lr max_lr peak_learning_rate max_learning_rate base_lr",),
    "batch": ("batch tokens_per_step batch_tokens batch_size_tokens tokens_per_batch",),
    "steps": ("steps num_steps n_steps train_steps optimizer_steps",),
    "run": ("run_id", "run", "run_name name id"),
}
VALIDATION, TRAINING = (set(NAMES["loss"][i].split()) for i in (1, 3))


# ---- names: which column is N, D, C, loss or another variable, and by which convention -----------------------------


def plain_name(column) -> str:
    """A column's name in lower case with single underscores, without W&B's section and the harness's filter.

    Example:
        >>> plain_name("summary/Val Loss"), plain_name("config.n_params"), plain_name("bits_per_byte,none")
        ('val_loss', 'n_params', 'bits_per_byte')
    """
    name = re.sub(r"^(summary|config|metrics)[./]", "", str(column).lower().split(",")[0])
    return re.sub(r"[^a-z0-9]+", "_", name).strip("_")


def renamed(frame, columns: Mapping[str, str], name: str):
    """Returns the frame with the user's columns also under our names."""
    for ours, theirs in columns.items():
        if theirs not in frame:
            known = nearest(theirs, map(str, frame.columns))
            raise InputError(f"{name}: expected a column {theirs!r} for {ours}{known}")
    return frame.assign(**{ours: frame[theirs] for ours, theirs in columns.items()})


def understood(frame, columns: Mapping[str, str], variables: Mapping[str, bool], name: str):
    """Finds the columns of variables by the names that other programs give them.

    Args:
        frame: a pandas frame.
        columns: {variable: column} that the user named.
        variables: {variable: whether it is needed}; if so, several columns that could be it are an error. A variable
            that is not in NAMES, such as bits_per_byte, is found in any case and with any filter.
        name: the table in error messages.

    Returns:
        (frame in which each found variable also has its own name, {variable: column}, warnings, notes).

    Raises:
        InputError: a column is missing, or several could be a needed variable.

    Example:
        >>> import pandas
        >>> frame = pandas.DataFrame({"Params": [1e6], "train/loss": [3.0], "val/loss": [3.1]})
        >>> understood(frame, {}, {"N": True, "loss": True}, "the table")[1]
        {'N': 'Params', 'loss': 'val/loss'}
    """
    frame, found, warnings, notes = renamed(frame, columns, name), dict(columns), [], []
    plain = {column: plain_name(column) for column in frame.columns if frame[column].notna().any()}
    for ours, needed in variables.items():
        if ours in columns:
            continue
        tiers = [tier.split() for tier in NAMES.get(ours, (plain_name(ours),))]
        if len(ours) == 1 and not needed:  # n may count items, c or d anything
            tiers = [[word for word in tier if len(word) > 1] for tier in tiers]
        tiers = [[column for column, word in plain.items() if word in tier and column != ours] for tier in tiers]
        others = next((_distinct(frame, tier) for tier in tiers if tier), [])
        if ours in frame:
            rivals = [x for x in others if needed and ours not in ("loss", "C") and not _same(frame, ours, x)]
            if rivals:
                warnings.append(
                    f"column {ours} is used as {ours}, and {', '.join(rivals)} differs from it: if that is the right "
                    f"one, give --columns {ours}={rivals[0]}"
                )
            validation = [x for x in plain if plain[x] in VALIDATION] if ours == "loss" else []
            if validation and "objective_version" not in frame:
                warnings.append(
                    f"column loss is fitted, and the table also has the validation loss {validation[0]}: fit that with "
                    f"--loss {validation[0]} if loss is the training loss"
                )
            continue
        if len(others) > 1 and needed:
            raise InputError(
                f"{name}: expected one column for {ours}, got {', '.join(others)} with different values; choose one "
                f"with --columns {ours}={others[0]} (columns={{...}} in Python)"
            )
        if len(others) != 1:
            continue
        found[ours] = others[0]
        if ours == "loss" and plain[others[0]] in (VALIDATION | TRAINING):
            training = [x for x in plain if plain[x] in TRAINING]
            if plain[others[0]] in TRAINING:
                notes.append(f"no validation loss was found: the training loss {others[0]} is fitted")
            elif training:
                notes.append(f"the validation loss {others[0]} is fitted, not the training loss {training[0]}")
    return frame.assign(**{ours: frame[theirs] for ours, theirs in found.items()}), found, warnings, notes


def _same(frame, first, second):
    """Whether two columns hold the same numbers, or the same values."""
    import pandas

    pair = [pandas.to_numeric(frame[column], errors="coerce") for column in (first, second)]
    if all(column.isna().all() for column in pair):
        return frame[first].astype(str).equals(frame[second].astype(str))
    return bool(np.allclose(*pair, rtol=0.001, equal_nan=True))


def _distinct(frame, columns):
    """The columns without those that repeat an earlier one."""
    kept = []
    for column in columns:
        if not any(_same(frame, column, other) for other in kept):
            kept.append(column)
    return kept


def choose_c(frame, c: str) -> str:
    """Returns the convention of C that "auto" stands for.

    6 N D counts every parameter once for every token. That is the training compute of a decoder or an encoder, but not
    of an encoder-decoder, where a token passes through one of two stacks, nor of layers that share their parameters.
    For these, "auto" is the exact count if the table has it.
    """
    if c != "auto":
        return c
    families = set(frame["family"].dropna()) if "family" in frame else set()
    shared = frame.get("config.model.share_layers")
    both = bool(families) and families <= {"encoder_decoder", "seq2seq"}
    unusual = both or (shared is not None and bool((shared.astype(str) == "True").any()))
    return "exact" if unusual and "flops_exact" in frame and frame["flops_exact"].notna().any() else "6nd"


def choose(frame, found: Mapping[str, str], n: str, c: str, loss: str, name: str, law):
    """Returns {variable: its column in the source}, and the convention of each of N, D, C and the loss.

    frame, found: of `understood`. n, c, loss, name, law: as in read_table, c chosen.

    Raises:
        InputError: names the missing columns, and the nearest that the table has.
    """
    for value, known, what in ((n, N_COUNTS, "n"), (c, C_COUNTS, "c")):
        if value not in known:
            raise InputError(f"{what}: expected {' | '.join(known)}, got {value!r}{nearest(value, known)}")
    has = {*frame} - ({"N"} if n != "total" and "N" not in found else set())
    needs, stacks = set(law.variables), {"N_e", "N_d"} <= has
    if ("M" in needs and "M" not in has) or ("C" in needs and "C" not in has):
        needs |= {"N", "D"}
    needs -= {"C", "M"} | ({"D"} if "C" in has else set()) | ({"N"} if stacks else set())
    needs |= {loss} | ({"flops_attention"} if c == "6nd_attention" else set()) | ({"C"} if c == "exact" else set())
    first = ["N", loss, "C", "D"]  # the order in which a message names them
    missing = [v for v in dict.fromkeys([*first, *law.variables, *sorted(needs)]) if v in needs and v not in has]
    if missing:
        called = {"N": N_COUNTS[n][0] if n != "total" else "N", "C": "flops_exact"}
        missing = [called.get(v, v) for v in missing]
        close = nearest(missing[0], map(str, frame.columns)).partition(" known:")[0].rstrip(";")
        raise InputError(
            f"{name}: expected columns {', '.join(map(repr, missing))}{close}; the table "
            f"has {', '.join(map(str, frame.columns[:20]))}; name the columns with --columns "
            f"{','.join(f'{column}=...' for column in missing)} (columns={{...}} in Python)"
        )
    variables = dict.fromkeys([*(v for v in NAMES if len(v) == 1 or v in ("N_e", "N_d")), *law.variables])
    variables |= {"weight": None} if "weight" in found else {}
    used = {v: found.get(v, v) for v in variables if v in has} | {"loss": found.get(loss, loss)}
    no_n = "N = N_e + N_d" if stacks else "no N in the table"
    no_d = "D = C / 6 N" if {"N", "C"} <= {*used} else "no D in the table"
    counted = used.get("C") == "flops_exact" if c == "exact" else "N" in used and bool({"C", "D"} & {*used})
    n_column, n_words = N_COUNTS[n]
    return used, {
        "N": {n_column: n_words, None: no_n}.get(used.get("N"), "N as given in the table"),
        "D": {"tokens": "D = training tokens seen", None: no_d}.get(used.get("D"), "D as given in the table"),
        "C": C_COUNTS[c] if counted else "C as given in the table" if "C" in used else "no C in the table",
        "loss": _loss_unit(frame, loss),
    }


def _loss_unit(frame, loss):
    """Describes the loss; only in run records is it known to be a validation loss."""
    record = "objective_version" in frame
    if loss == "bits_per_byte":
        return "loss = validation bits per byte" if record else "loss = bits per byte"
    if loss != "loss":
        return f"loss = column {loss} of the table"
    if not record:
        return "loss in the unit of the table"
    objective = frame["objective"].dropna().iloc[0]
    if "lm_loss" in frame and frame["lm_loss"].notna().any():  # recorded where there are several terms
        return f"loss = validation loss of the objective {objective}: coefficient x loss, summed over its heads"
    return f"loss = validation nats per predicted token of the objective {objective}"


# ---- columns as checked arrays --------------------------------------------------------------------------------------


def cluster(values, together: float = 0.05) -> np.ndarray:
    """Returns for each value the geometric mean of its cluster; values within 5 % of a neighbour are one cluster.

    Example:
        >>> cluster([100.0, 102.0, 200.0]).round(1).tolist()
        [101.0, 101.0, 200.0]
    """
    values = np.asarray(values, float)
    out = np.empty(len(values))
    for rows in neighbours(values, together):
        out[rows] = np.exp(np.log(values[np.sort(rows)]).mean())
    return out


def neighbours(values, together: float) -> list[np.ndarray]:
    """Row numbers of the clusters of positive values, ascending; values within a share of a neighbour are one cluster.

    Example:
        >>> [rows.tolist() for rows in neighbours(np.array([200.0, 100.0, 102.0]), 0.05)]
        [[1, 2], [0]]
    """
    order = np.argsort(values, kind="stable")
    return [] if not len(order) else np.split(order, 1 + np.flatnonzero(np.diff(np.log(values[order])) > together))


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


def frame_of(source, what: str, pooled: bool = False):
    """Returns a pandas frame from a frame, a FitTable (its points) or a dict of columns; `what` names it in errors.

    pooled: whether one law is fitted to all rows, so that their settings must not differ.

    Raises:
        InputError: another type of source, no rows, or settings that differ.
    """
    import pandas

    is_read = hasattr(source, "points") and hasattr(source, "conventions")
    frame = source.points if is_read else source
    if isinstance(frame, dict):
        lengths = {name: np.size(column) for name, column in frame.items()}
        if len(set(lengths.values()) - {1}) > 1:
            raise InputError(f"{what}: expected columns of one length, got {lengths}")
        frame = pandas.DataFrame(frame)
    if not isinstance(frame, pandas.DataFrame):
        raise InputError(f"{what}: expected a pandas frame or a dict of columns, got {type(source).__name__}")
    if not len(frame):
        raise InputError(f"{what}: expected rows, got an empty table")
    if pooled and not is_read:
        check(frame, what)
    return frame.reset_index(drop=True)


def need(frame, names: Sequence[str], what: str) -> None:
    """Raises InputError unless a frame has these columns."""
    for name in names:
        if name not in frame:
            raise InputError(f"{what}: expected a column {name!r}{nearest(name, map(str, frame))}")


def positive(frame, name: str, what: str) -> np.ndarray:
    """Returns the column as float64.

    Raises:
        InputError: no such column, or a value is not a finite number above 0; names the first such rows.

    Example:
        >>> positive({"N": np.array([1, 2])}, "N", "the table").tolist()
        [1.0, 2.0]
    """
    values = numbers(frame, name, what)
    if not (values > 0).all():
        raise InputError(f"{what}: expected numbers above 0 in {name}, got {_first(values, values > 0)}")
    return values


def numbers(frame, name: str, what: str) -> np.ndarray:
    """Returns the column as float64, all finite.

    Raises:
        InputError: no such column, NaN, infinity or text.
    """
    need(frame, [name], what)
    try:
        values = np.asarray(frame[name], np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: expected numbers in {name}: {error}") from error
    if not np.isfinite(values).all():
        raise InputError(
            f"{what}: expected finite numbers in {name}, got {_first(values, np.isfinite(values))}; "
            "leave failed runs out"
        )
    return values


def shares(confidence: float, resamples: int) -> None:
    """Checks a confidence level in (0, 1) and a number of resamples: 0 (no intervals) or at least 20."""
    if not 0 < confidence < 1 or not (resamples == 0 or resamples >= 20):
        raise InputError(f"expected 0 < confidence < 1 and resamples = 0 or >= 20, got {confidence}, {resamples}")


def _first(values, good):
    rows = np.flatnonzero(~good)
    shown = ", ".join(f"{values[i]:g} in row {i + 1}" for i in rows[:5])
    return shown + " ..." * (len(rows) > 5)
