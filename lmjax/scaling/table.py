"""The table a law is fitted to: rows read from run records or files, checked, and compared before they are pooled.

Every row ends in one of three frames: `points` (fitted), `held_out` (only predicted), `excluded` (with a reason).
Runs whose settings differ in anything but size, tokens, seed and the learning rate of each size are not pooled: fit
one group (`where`), or one law per group (scaling.fit_groups).
"""

import hashlib
import inspect
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN, Law, get_law

if TYPE_CHECKING:
    import pandas  # at run time it is imported where it is used, because the import is slow

SAME = 0.02  # N (or D) within 2 % of each other count as one value
FINISHED = ("done", "finished", "completed", "complete", "success", "succeeded", "ok")
UNFINISHED = (
    *("failed", "crashed", "diverged", "error", "killed", "pending", "running", "preempted", "stopped", "nan"),
    "unreadable",  # run_record.read_runs: the run's files are damaged
)
YES, NO = ("true", "yes", "1", "1.0", "t", "y"), ("false", "no", "0", "0.0", "f", "n")
SMALLEST_COUNT = 1e4  # if every N or D is below this, the column probably counts millions or billions
FAR_FROM_6ND = 1.2  # ratio of exact FLOP to 6 N D, or its inverse, above which there is a note

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
ALIASES = {  # variable -> its possible columns; the first one present is used
    "D": ("tokens", "D"),
    "S": ("steps", "S"),
    "U": ("unique_tokens", "U"),
    "M": ("tokens_per_param", "M"),
    "B": ("tokens_per_step", "B"),
    "N_e": ("n_encoder", "N_e"),
    "N_d": ("n_decoder", "N_d"),
}

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
NOTED = ("code", "objective_version", "data_digest", "device", "config.model.dtype")  # `commit` if there is no `code`


@dataclass(frozen=True)
class FitTable:
    """What `read_table` returns.

    points, held_out: pandas frames with run (label), N, D, C, loss, weight and all other columns of the source.
    excluded: the same with `reason`.
    conventions: what N, D, C and loss are, to be printed with every result.
    notes: what a reader should know about the rows (repeats, epochs, code versions).
    """

    points: "pandas.DataFrame"
    held_out: "pandas.DataFrame"
    excluded: "pandas.DataFrame"
    conventions: dict[str, str]
    notes: tuple[str, ...]
    source: str

    def select(self, **where) -> "FitTable":
        """Returns the table with the rows where column = value (N and D within 2 %); the others become excluded."""
        import pandas

        words = _condition(where)
        keep, keep_held = _matches(self.points, where), _matches(self.held_out, where)
        if not keep.any():
            raise InputError(f"expected rows with {words}, got none among {len(self.points)}")
        others = [
            self.excluded,
            self.points[~keep].assign(reason=f"not at {words}"),
            self.held_out[~keep_held].assign(reason=f"held out, and not at {words}"),
        ]
        excluded = pandas.concat([frame for frame in others if len(frame)] or [self.excluded], ignore_index=True)
        return replace(self, points=self.points[keep], held_out=self.held_out[keep_held], excluded=excluded)

    def for_law(self, law: Law, needed: int) -> "FitTable":
        """Returns the rows for a law of N alone at one D, and vice versa; the table itself for any other law.

        The value is the largest with `needed` rows, or that with most rows if none has as many.
        """
        name = {("N",): "D", ("D",): "N"}.get(law.variables)
        if name is None or self.points[name].isna().all():
            return self
        values = np.sort(self.points[name].to_numpy())
        parts = np.split(values, 1 + np.flatnonzero(np.diff(np.log(values)) > SAME))
        if len(parts) == 1:
            return self
        chosen = max(parts, key=lambda part: (min(len(part), needed), part[0]))
        value = float(np.exp(np.log(chosen).mean()))
        note = f"the law holds at one {name}: fitted at {name} = {value:.4g}, the largest with {len(chosen)} rows"
        return replace(self.select(**{name: value}), notes=(*self.notes, note))


def read_table(
    source,
    n: str = "total",
    c: str = "auto",
    held_out: Sequence[str] | float | None = None,
    loss: str = "loss",
    units: Mapping[str, float] | None = None,
    allow_incomplete: bool = False,
    law: str | Law = "chinchilla",
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, object] | None = None,
    allow: Sequence[str] = (),
) -> FitTable:
    """Reads a table to fit.

    Args:
        source: a path (.csv, .parquet, .jsonl, .json) or a pandas frame, such as run_record.read_runs returns.
            Columns: N (or n_total, n_non_embedding, n_matmul_head), D (or tokens; else C / 6 N), loss; optional C
            (or flops_exact), S (or steps), U (or unique_tokens) and the other variables of laws, status,
            schedule_complete, held_out, weight, seed, and a label in run_id, run or name.
        n: which count is N: total | non_embedding | matmul_head. A plain column N is taken as total.
        c: which count is C: 6nd (of the chosen N) | 6nd_attention (needs flops_attention) | exact (flops_exact or C) |
            auto: 6nd, but exact for encoder-decoders and shared layers, for which 6 N D is wrong.
        held_out: rows kept out of the fit: their labels, or the compute in FLOP at or above which rows are held
            out; None takes the column held_out, if there is one.
        loss: the column to fit, such as bits_per_byte.
        units: size of one unit of a column, such as {"N": 1e6, "D": 1e9} for millions and billions; default 1.
        allow_incomplete: also take rows whose schedule did not complete, with a note.
        law: the law to fit. Its variables must be present; N and D that it does not use may be missing and become
            NaN. A law of a share takes values in [0, 1] instead of losses.
        columns: column names in this table, such as {"N": "params", "D": "tokens_seen", "loss": "val_loss"}.
        where: only rows with these values, such as {"optimizer.name": "adamw"}; a note counts the others.
        allow: settings that may differ between the rows of one fit, such as "data.global_batch_size".

    Returns:
        FitTable, rows in the order of the source.

    Raises:
        InputError: file or column missing; a loss that is NaN in a row whose status does not explain it;
            values that are not positive numbers; rows that differ in a setting other than size, tokens, seed and the
            learning rate of each size.

    Example:
        >>> import pandas
        >>> table = read_table(pandas.DataFrame({"N": [1e6, 2e6], "D": [4e7, 4e7], "loss": [3.1, 2.9]}))
        >>> float(table.points.C[0]), table.conventions["C"]
        (240000000000000.0, 'C = 6 N D FLOP')
    """
    law = get_law(law)
    frame, name = load(source)
    if not len(frame):
        raise InputError(f"{name} has no rows; expected columns {', '.join(law.variables)}, {loss}")
    frame, notes = renamed(frame, columns or {}, name), []
    if where:
        count = len(frame)
        frame = select_rows(frame, where, name)
        if len(frame) < count:
            notes.append(f"{count - len(frame)} other rows are left out: not at {_condition(where)}")
    c = choose_c(frame, c)
    chosen, conventions = choose(frame, n, c, loss, name, law)
    work = frame.drop(columns=[short for short in chosen if short in frame and chosen[short] != short])
    for short, column in chosen.items():
        work[short] = frame[column]
    work["run"] = _labels(frame)
    early = ~truth(frame, "schedule_complete", name, missing=True)
    reason_R = np.array(_reasons(work, name, early & (not allow_incomplete)), object)
    good = work[reason_R == ""].copy()
    _convert(good, chosen, c, units or {}, law, name)
    given = good.get("C")
    _fill(good, c)
    if law.target == "loss":  # equal shares are common
        reason_R[reason_R == ""] = _copies(good, chosen)
    fitted_R = reason_R == ""
    good = good[fitted_R[good.index]]
    out = _held_out(good, held_out, name)
    check(good, name, loss, law, allow)
    twice = work["run"][work["run"].duplicated()]
    if len(twice):
        raise InputError(f"{name}: expected one row per run, got {twice.iloc[0]!r} more than once")
    return FitTable(
        good[~out].reset_index(drop=True),
        good[out].reset_index(drop=True),
        work[~fitted_R].assign(reason=reason_R[~fitted_R]).reset_index(drop=True),
        conventions,
        (*notes, *_notes(good, given, units or {}, int(early[good.index].sum()), allow)),
        name,
    )


def groups(source, by: str | Sequence[str], where: Mapping[str, object] | None = None) -> dict[str, dict[str, str]]:
    """Returns {label: where} of the groups of rows that agree in the settings `by`, in order of appearance.

    Example:
        >>> import pandas
        >>> groups(pandas.DataFrame({"family": ["encoder", "decoder", "encoder"]}), "family")
        {'encoder': {'family': 'encoder'}, 'decoder': {'family': 'decoder'}}
    """
    if isinstance(source, FitTable):
        raise InputError("by: expected a file or frame to split into groups, got a table that has been read already")
    by = by.split(",") if isinstance(by, str) else list(by)
    if not all(by):
        raise InputError(f"by: expected the names of settings, got {by}")
    frame, name = load(source)
    frame = select_rows(frame, where or {}, name)
    texts = [frame[column_of(frame, key)].map(setting_text) for key in by]
    rows = dict.fromkeys(zip(*texts, strict=True))
    return {", ".join(values): dict(zip(by, values, strict=True)) for values in rows}


def _matches(frame, where) -> np.ndarray:
    """The rows with these values, bool [rows]; N and D within 2 %."""
    keep = np.ones(len(frame), bool)
    for key, value in where.items():
        column = frame[column_of(frame, key)]
        if key in ("N", "D"):
            keep &= np.isclose(column.to_numpy().astype(float), float(value), rtol=SAME)
        else:
            keep &= (column.map(setting_text) == setting_text(value)).to_numpy()
    return keep


def select_rows(frame, where: Mapping[str, object], name: str = "the table"):
    """Returns the rows of a frame with these values of settings.

    Raises:
        InputError: no such column, or no such row.
    """
    keep = _matches(frame, where)
    if not keep.any():
        raise InputError(f"{name}: expected rows with {_condition(where)}, got none among {len(frame)}")
    return frame[keep].reset_index(drop=True)


def _condition(where):
    return " and ".join(f"{k} = {v:.4g}" if k in ("N", "D") else f"{k} = {v}" for k, v in (where or {}).items())


def as_table(source, law: str | Law, **reading) -> FitTable:
    """Returns the table itself, or what `read_table` makes of the source; a table takes no reading options."""
    if not isinstance(source, FitTable):
        return read_table(source, law=law, **reading)
    signature = inspect.signature(read_table)
    asked = signature.bind(source, law=law, **reading).arguments  # a TypeError names an unknown argument
    given = [name for name in reading if asked[name] not in (signature.parameters[name].default, None, [])]
    if given:
        raise InputError(f"{', '.join(given)}: the table has already been read; pass these to read_table")
    return source


def data_hash(points, variables: Sequence[str] = ()) -> str:
    """Returns the first 16 digits of the sha256 of the rows' N, D, variables, loss and weight, in any order of rows."""
    columns = dict.fromkeys(["N", "D", *variables, "loss", "weight"])
    array = np.ascontiguousarray(points[list(columns)].to_numpy(np.float64))
    return hashlib.sha256(array[np.lexsort(array.T)].tobytes()).hexdigest()[:16]


def load(source):
    """Returns (frame, name) of a pandas frame or of a .csv, .parquet, .jsonl or .json file.

    Raises:
        InputError: no such file, another ending, or content that cannot be read.
    """
    import pandas

    if isinstance(source, pandas.DataFrame):
        return source.reset_index(drop=True).copy(), "the table"
    path = pathlib.Path(source)
    readers = {
        ".csv": pandas.read_csv,
        ".parquet": pandas.read_parquet,
        ".jsonl": lambda p: pandas.read_json(p, lines=True),
        ".json": pandas.read_json,
    }
    if not path.is_file():
        raise InputError(f"no file {path}; expected a table ({', '.join(readers)})")
    if path.suffix not in readers:
        raise InputError(f"{path}: expected a table ending in {', '.join(readers)}, got {path.suffix or 'no ending'!r}")
    try:
        # the copy puts columns of one type into one block: inserting into a wide csv would warn of fragmentation
        return readers[path.suffix](path).reset_index(drop=True).copy(), path.name
    except (ValueError, OSError) as error:  # pandas and pyarrow raise subclasses of ValueError on bad content
        raise InputError(f"{path} cannot be read as {path.suffix}: {error}") from error


# ---- columns: which one is N, D, C, loss or another variable, and by which convention ------------------------------


def renamed(frame, columns, name):
    """Returns the frame with the user's column names replaced by ours."""
    for ours, theirs in columns.items():
        if theirs not in frame:
            known = nearest(theirs, map(str, frame.columns))
            raise InputError(f"{name}: expected a column {theirs!r} for {ours}{known}")
    frame = frame.drop(columns=[ours for ours, theirs in columns.items() if ours in frame and ours != theirs])
    return frame.rename(columns={theirs: ours for ours, theirs in columns.items()})


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
    unusual = families == {"encoder_decoder"} or (shared is not None and bool((shared.astype(str) == "True").any()))
    return "exact" if unusual and "flops_exact" in frame and frame["flops_exact"].notna().any() else "6nd"


def choose(frame, n, c, loss, name, law):
    """Returns {variable: its column} and the description of every convention."""
    for value, known, what in ((n, N_COUNTS, "n"), (c, C_COUNTS, "c")):
        if value not in known:
            raise InputError(f"{what}: expected {' | '.join(known)}, got {value!r}{nearest(value, known)}")
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
    needed = [*columns.values(), *(["flops_attention"] if c == "6nd_attention" else [])]
    missing = [column for column in needed if column not in frame]
    if missing:
        close = nearest(missing[0], map(str, frame.columns))
        raise InputError(
            f"{name}: expected columns {', '.join(map(repr, missing))}{close * ('did you mean' in close)}; the table "
            f"has {', '.join(map(str, frame.columns[:20]))}; name the columns with --columns "
            f"{','.join(f'{column}=...' for column in missing)} (columns={{...}} in Python)"
        )
    no_n = "N = N_e + N_d" if {"N_e", "N_d"} <= set(columns) else "no N in the table"
    no_d = "D = C / 6 N" if exact and "N" in columns else "no D in the table"
    counted = columns.get("C") == "flops_exact" if c == "exact" else "N" in columns and ("D" in columns or exact)
    no_c = "C as given in the table" if exact else "no C in the table"
    conventions = {
        "N": {n_column: n_words, "N": "N as given in the table", None: no_n}[columns.get("N")],
        "D": {"tokens": "D = training tokens seen", "D": "D as given in the table", None: no_d}[columns.get("D")],
        "C": C_COUNTS[c] if counted else no_c,
        "loss": _loss_unit(frame, loss),
    }
    return columns, conventions


def _loss_unit(frame, loss):
    """Describes the loss; only in run records is it known to be a validation loss."""
    record = "objective_version" in frame
    if loss == "bits_per_byte":
        return "loss = validation bits per byte" if record else "loss = bits per byte"
    if loss != "loss":
        return f"loss = column {loss} of the table"
    if not record:
        return "loss in the unit of the table"
    return f"loss = validation nats per predicted token of the objective {frame['objective'].dropna().iloc[0]}"


# ---- rows: which are fitted, and the numbers in them ----------------------------------------------------------------


def truth(frame, column: str, name: str, missing: bool = False) -> np.ndarray:
    """Returns a yes/no column as bool [rows]; `missing` for empty cells, and for all rows if there is no column.

    Raises:
        InputError: names a value that is neither.
    """
    if column not in frame:
        return np.full(len(frame), missing)
    words = frame[column].map(lambda value: "" if value is None or value != value else str(value).strip().lower())
    unknown = sorted(set(words) - set(YES) - set(NO) - {""})
    if unknown:
        raise InputError(f"{name}: column {column}: expected true or false, got {unknown[0]!r}")
    return np.array([missing if word == "" else word in YES for word in words], bool)


def _convert(good, columns, c, units, law, name):
    """Makes the columns of the fit floats in the unit of the fit, in place.

    The columns read here need a positive number in every row; other variables are checked by the laws that use them.
    """
    for column, size in units.items():
        if column not in columns:
            raise InputError(f"units: expected a column of the fit, got {column!r}{nearest(column, columns)}")
        if not (_is_number(size) and float(size) > 0):
            raise InputError(f"units: expected a number above 0 for {column}, got {size!r}")
    needed = [v for v in ("N", "D", "loss") if v in columns] + ["weight"] * ("weight" in good)
    needed += ["flops_attention"] * (c == "6nd_attention")
    needed += ["C"] * ("C" in columns and (c == "exact" or not {"N", "D"} <= set(columns)))
    for column in needed:
        good[column] = _numbers(good, column, name, share=column == "loss" and law.target == "share")
    for column, size in units.items():
        good[column] *= float(size)


def _fill(good, c):
    """Fills in N, D, C, M and weight from the other columns, in place; NaN if they do not follow from them."""
    if "N" not in good:
        good["N"] = good["N_e"] + good["N_d"] if {"N_e", "N_d"} <= set(good) else np.nan
    if "D" not in good:
        good["D"] = good["C"] / (FLOPS_PER_PARAM_TOKEN * good["N"]) if "C" in good else np.nan
    product = FLOPS_PER_PARAM_TOKEN * good["N"] * good["D"]
    if c != "exact" and ("C" not in good or product.notna().all()):
        good["C"] = product + (good["flops_attention"] if c == "6nd_attention" else 0.0)
    if "M" not in good or product.notna().all():
        good["M"] = good["D"] / good["N"]
    if "weight" not in good:
        good["weight"] = 1.0


def _copies(good, columns):
    """For each row "", or a text that names the earlier row it repeats in every variable, seed and loss.

    Without a column seed, equal rows may be copies or seeds with rounded losses, so they are kept.
    """
    if "seed" not in good:
        return ""
    names = list(dict.fromkeys(["N", "D", "C", *columns, "seed"]))
    first = good.groupby(names, dropna=False)["run"].transform("first")
    return np.where(good.duplicated(names), "copy of " + first + ": equal N, D, seed and loss", "")


def _labels(frame):
    for column in ("run_id", "run", "name"):
        if column in frame:
            return frame[column].astype(str)
    return [f"row {i + 1}" for i in range(len(frame))]


def _reasons(work, name, early):
    """For each row the reason that keeps it out of the fit, or ""."""
    reasons, unexplained = [], []
    for row, is_early in zip(work.to_dict("records"), early, strict=True):
        status = row.get("status")
        status = "" if status is None or status != status else str(status).strip().lower()
        if status not in (*FINISHED, *UNFINISHED, ""):
            raise InputError(
                f"{name}: unknown status {row['status']!r} of {row['run']}; expected one of {', '.join(FINISHED)} "
                f"(enters the fit) or {', '.join(UNFINISHED)} (left out)"
            )
        if status in UNFINISHED:
            message = row.get("message")
            detail = f": {message}" if isinstance(message, str) and message else ""
            reasons.append(f"status {row['status']}{detail}")
        elif is_early:
            reasons.append("learning-rate schedule not finished")
        elif not _is_number(row["loss"]):
            unexplained.append(f"{row['run']} ({row['loss']})")
            reasons.append("loss is NaN")
        else:
            reasons.append("")
    if unexplained:
        raise InputError(
            f"{name}: the loss is not a number in {', '.join(unexplained[:8])}{' ...' * (len(unexplained) > 8)}; "
            "expected a number, or a column status that says diverged or failed for these rows"
        )
    return reasons


def _is_number(value):
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError):
        return False


def _numbers(frame, column, name, share=False):
    """The column as floats: above 0, or a share within [0, 1]; InputError names the rows that are not."""
    values = np.array([float(x) if _is_number(x) else np.nan for x in frame[column]])
    bad = ~((values >= 0) & (values <= 1)) if share else ~(values > 0)
    if bad.any():
        expected = "shares of 0 to 1" if share else "positive numbers"
        shown = zip(frame["run"][bad][:8], frame[column][bad][:8], strict=True)
        rows = ", ".join(f"{label} ({value})" for label, value in shown)
        raise InputError(f"{name}: expected {expected} in column {column}, got {rows}")
    return values


def _held_out(good, held_out, name):
    if held_out is None:
        return truth(good, "held_out", name)
    if isinstance(held_out, (int, float)):
        if good["C"].isna().any():
            raise InputError(
                f"held_out: expected C in every row to hold out from {held_out:.3g} FLOP, got rows without C; "
                "name the held-out runs instead"
            )
        return good["C"].to_numpy() >= float(held_out)
    missing = sorted(set(held_out) - set(good["run"]))
    if missing:
        raise InputError(f"no row {missing[0]!r} to hold out{nearest(missing[0], good['run'])}")
    return good["run"].isin(list(held_out)).to_numpy()


def _notes(good, given, units, early, allow):
    """What a reader should know about the rows."""
    for column in (*NOTED, *(["commit"] if "code" not in good else [])):
        values = values_of(good[column].dropna()) if column in good else []
        if len(values) > 1:
            what = {"code": "code versions of lmjax (losses, models, training or data changed between them)"}
            yield (
                f"rows differ in {what.get(column, column.removeprefix('config.'))}: "
                f"{', '.join(v[:16] for v in values[:4])}{', ...' * (len(values) > 4)}"
            )
    for key in allow:
        values = values_of(good[column_of(good, key)])
        if len(values) > 1:
            yield f"rows differ in {key}, as allowed: {listed(values)}"
    if "epochs" in good:
        many = good[good["epochs"] > 4]
        if len(many):
            yield (
                f"{len(many)} runs saw their data more than 4 times (up to {many['epochs'].max():.1f}): "
                "repeated tokens are worth less than new ones (arXiv:2305.16264), so D overstates them"
            )
    repeats = len(good) - len(good[["N", "D"]].drop_duplicates())
    if repeats:
        equal = int(good.duplicated(["N", "D", "C", "loss"]).sum()) if "seed" not in good else 0
        also = f", {equal} of them with the same loss to the last digit: copies, or seeds with rounded losses?"
        yield f"{repeats} rows repeat an (N, D) of another{also if equal else ' (seeds)'}"
    elif "seed" in good and len(good) > 1 and good["seed"].nunique() == 1:
        yield "one seed: the noise between seeds can only be estimated from the scatter around the law"
    if early:
        yield f"{early} rows end before their schedule does: their losses are higher than after the decay"
    yield from _unit_notes(good, given, units)


def _unit_notes(good, given, units):
    """Columns that look as if they counted something else."""
    for column in ("N", "D"):
        if len(good) and good[column].max() < SMALLEST_COUNT and column not in units:
            yield (
                f"{column} is at most {good[column].max():.3g}: taken as it is; if these are millions or billions, "
                f"set units={{{column!r}: 1e6}} or 1e9, so that C = 6 N D and predictions are right"
            )
    if given is not None:
        product = FLOPS_PER_PARAM_TOKEN * good["N"] * good["D"]
        ratios = [float(C) / own for C, own in zip(given[good.index], product, strict=True) if _is_number(C)]
        ratio = float(np.median(ratios)) if ratios else 1.0
        if not 0.2 < ratio < 5:
            yield f"the table's C is {ratio:.2g} times 6 N D (median): check the units of N, D and C"
    if "flops_exact" in good:
        ratio = good["flops_exact"].astype(float) / (FLOPS_PER_PARAM_TOKEN * good["N"] * good["D"])
        low, high = float(ratio.min()), float(ratio.max())
        if high > FAR_FROM_6ND or low < 1 / FAR_FROM_6ND:
            yield f"exact training FLOP are {low:.2g} to {high:.2g} times 6 N D; budgets and splits count 6 N D"


# ---- settings: which may differ between the rows of one fit --------------------------------------------------------


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
    """Returns a setting as text that is equal for 1, 1.0 and "1", and "not set" for None and NaN.

    Example: "1" of 1.0, and "927871e366" of itself, which is a hash and not infinity.
    """
    if value is None or value != value or value == "":
        return "not set"
    return f"{float(value):.12g}" if not isinstance(value, (bool, np.bool_)) and _is_number(value) else str(value)


def values_of(column) -> list[str]:
    """Returns the distinct values of a column as text, numbers first and by size."""
    texts = {setting_text(value) for value in column.tolist()}
    return sorted(texts, key=lambda text: (0, float(text), text) if _is_number(text) else (1, 0.0, text))


def _one_to_one(frame, first, second):
    """Whether the values of two columns map one to one."""
    if first not in frame:
        return False
    pairs = frame[[first, second]].apply(lambda column: column.map(setting_text)).drop_duplicates()
    return not (pairs[first].duplicated().any() or pairs[second].duplicated().any())


def listed(values: Sequence[str]) -> str:
    """Returns the first few values as text, separated by commas."""
    return ", ".join(str(v)[:40] for v in values[:6]) + ", ..." * (len(values) > 6)
