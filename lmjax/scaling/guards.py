"""Checks of the rows of a table that was read: each yields a sentence where a wrong law may follow without an error.

`warnings` runs all of GUARDS; `notes` tells what a reader should know about sound rows.
"""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from lmjax.format import count, flop, number
from lmjax.scaling import repeats
from lmjax.scaling.columns import NAMES, plain_name
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN, Law
from lmjax.scaling.settings import ONE_KIND, SAME, column_of, floats, is_number, listed, setting_text, values_of

USUAL = (1.0, 1e4)  # D / N of training runs: 20 is compute-optimal (arXiv:2203.15556), 1e4 is far over-trained
SMALLEST_COUNT = 1e4  # if every N or D is below this, the column probably counts millions or billions
LARGEST = {"N": 1e14, "D": 1e17}  # 100 times beyond any model or data set
LARGEST_LOSS = 12.0  # nats: ln of 160 thousand tokens, which a uniform guess has
FAR_FROM_6ND = 1.2  # ratio of exact FLOP to 6 N D, or its inverse, above which there is a note
APART = 5.0  # ratio of two counts of one thing above which a unit is wrong
MOST_EPOCHS = 4  # up to here repeated tokens are nearly as good as new ones (arXiv:2305.16264)
UNEQUAL, UNEQUAL_RATIO = 0.01, 3.0  # p-value and ratio of the scatter of repeats from which there is a warning
MOST_D = 20  # distinct D of one N: more are checkpoints
EVEN = 6  # distinct D of one N that make an even spacing no accident
MOST_COLUMNS = 5  # that differ and are described one by one
NOTED = (
    "code",
    "objective_version",
    "data_digest",
    "device",
    "attention",
    "config.model.dtype",
)  # `commit` if there is no `code`

# Words in names of columns, by what they say of the rows. The first two kinds never change the law.
MEASURED = set(
    "loss ppl perplexity nll bpb bits acc accuracy error err stderr score second seconds sec time runtime hours "
    "minutes duration memory mem mib gb bytes throughput speed mfu hfu utilization flops flop tflops energy cost auc "
    "f1 em match brier entropy residual predicted".split()
)
IDENTITY = set(
    "id name run index row unnamed num n job task_id user host node rank gpu gpus device devices type world port date "
    "created updated started finished start end at notes note comment description tags tag message attempts status "
    "state sweep experiment exp file folder dir output version host project entity".split()
)
ALWAYS_IDENTITY = set(
    "seed rng replicate replica rep trial timestamp hostname commit hash sha uuid digest path url".split()
)
SETTING = set(
    "lr learning rate decay wd batch beta beta1 beta2 dropout warmup momentum eps epsilon clip epoch epochs unique u "
    "seq length context ratio fraction temperature".split()
)


class Reading(NamedTuple):
    """What the checks look at: the rows with N, D, C and loss, and how they were read (see table.read_table).

    used: {variable: column of the source}. given: the columns C and M of the source, before they were computed.
    weighted: whether the source has a column weight that differs between rows.
    """

    rows: Any
    law: Law
    used: Mapping[str, str]
    units: Mapping[str, float]
    loss: str
    allow: tuple[str, ...]
    given: Any
    weighted: bool
    early: int
    incomplete: bool


def warnings(reading: Reading) -> Iterator[str]:
    """Yields what may be wrong with the rows."""
    for guard in GUARDS if len(reading.rows) else ():
        yield from guard(reading)


def columns_used(reading: Reading, conventions: Mapping[str, str]) -> str:
    """Which column is which variable, in a line, such as "columns: N = params x 1e6, D = tokens, loss = val/loss"."""
    computed = conventions["C"].startswith("C = 6") or "C" not in reading.used
    shown = [v for v in dict.fromkeys(["N", "D", "C", *reading.law.variables, "loss", "weight"]) if v in reading.used]
    shown = [v for v in shown if not (v == "C" and computed) and not (v == "M" and {"N", "D"} <= {*reading.used})]
    parts = [f"{v} = {reading.used[v]}{f' x {reading.units[v]:g}' if v in reading.units else ''}" for v in shown]
    return "; ".join([f"columns: {', '.join(parts)}", *[conventions["C"]] * ("C = 6" in conventions["C"])])


def notes(t: Reading) -> Iterator[str]:
    """Yields what a reader should know about rows that may all be sound."""
    good = t.rows
    for column in (*NOTED, *(["commit"] if "code" not in good else [])):
        values = values_of(good[column].dropna()) if column in good else []
        if len(values) > 1:
            what = {"code": "code versions of lmjax (losses, models, training or data changed between them)"}
            yield (
                f"rows differ in {what.get(column, column.removeprefix('config.'))}: "
                f"{', '.join(v[:16] for v in values[:4])}{', ...' * (len(values) > 4)}"
            )
    for key in t.allow:
        values = values_of(good[column_of(good, key)])
        if len(values) > 1:
            yield f"rows differ in {key}, as allowed: {listed(values)}"
    repeats = len(good) - len(good[["N", "D"]].drop_duplicates())
    if repeats:
        equal = int(good.duplicated(["N", "D", "C", "loss"]).sum()) if "seed" not in good else 0
        also = f", {equal} of them with the same loss to the last digit: copies, or seeds with rounded losses?"
        taken = " (seeds)" if "seed" in good else ": their scatter is taken as the noise of a run"
        yield f"{repeats} rows repeat an (N, D) of another{also if equal else taken}"
    elif "seed" in good and len(good) > 1 and good["seed"].nunique() == 1:
        yield "one seed: the noise between seeds can only be estimated from the scatter around the law"
    if "flops_exact" in good:
        ratio = good["flops_exact"].astype(float) / (FLOPS_PER_PARAM_TOKEN * good["N"] * good["D"])
        low, high = float(ratio.min()), float(ratio.max())
        if high > FAR_FROM_6ND or low < 1 / FAR_FROM_6ND:
            yield f"exact training FLOP are {low:.2g} to {high:.2g} times 6 N D; budgets and splits count 6 N D"
    elif "C" in t.given and "C" in good:
        ratio = floats(t.given["C"]) / floats(good["C"])
        low, high = (float(x) for x in np.quantile(ratio[ratio > 0], (0, 1))) if (ratio > 0).any() else (1.0, 1.0)
        if (high > FAR_FROM_6ND or low < 1 / FAR_FROM_6ND) and np.isfinite(high):
            yield (
                f"column {t.used.get('C', 'C')} is not used: it is {low:.2g} to {high:.2g} times 6 N D; --c exact "
                "(c='exact' in Python) takes it as C"
            )


# ---- N, D, C and the loss: the right columns in the right units -----------------------------------------------------


def _tokens_per_param(t):
    ratio = float((t.rows["D"] / t.rows["N"]).median())
    if not np.isfinite(ratio) or USUAL[0] <= ratio <= USUAL[1]:
        return
    low, high = USUAL
    name, factor = ("D", 1 / ratio) if ratio < low else ("N", ratio)
    size = next((flop(s) for s in (1e3, 1e6, 1e9) if factor / s <= (1 if name == "D" else high)), "")
    causes = []
    if low <= 1 / ratio <= high and {"N", "D"} <= {*t.used}:
        causes.append(f"N and D may be exchanged (--columns N={t.used['D']},D={t.used['N']})")
    if ratio < low:
        causes.append("D may count optimizer steps or sequences instead of tokens")
    if size and name not in t.units:
        causes.append(f"{name} may be in units of {size} (--units {name}={size})")
    if t.units:
        causes.append("a unit in --units may be wrong")
    yield (
        f"the median D / N is {number(ratio, 2)} tokens per parameter, and runs have {low:g} to {count(high)}: "
        f"{', or '.join(causes)}"
    )


def _weight(t):
    if t.weighted and "weight" not in t.used:
        yield "the column weight is not used as weights of the fit; if that is what it holds, give --weights weight"


def _scatter(t):
    found = repeats.of_rows(t.rows, t.law) if t.rows["weight"].nunique() == 1 else None
    if found and found.p < UNEQUAL and abs(found.slope) * (found.high - found.low) > 2 * np.log(UNEQUAL_RATIO):
        yield (
            f"runs of equal {listed(t.law.variables)} do not scatter equally: {found.words()}; with equal weights the "
            "noisiest of them set the width of all intervals; give --weights repeats"
        )


def _sizes(t):
    for name, largest in LARGEST.items():
        top = t.rows[name].max()
        if top < SMALLEST_COUNT and name not in t.units:
            yield (
                f"{name} is at most {top:.3g}: taken as it is; if these are millions or billions, set --units "
                f"{name}=1e6 or {name}=1e9 (units={{{name!r}: 1e6}} in Python), so that C = 6 N D and predictions are "
                "right"
            )
        elif top > largest:
            yield f"{name} is up to {flop(top)}, more than any model or data set: check --units {name}=..."
    column = str(t.used.get("D", ""))
    if {"step", "steps", "iter", "iters", "iterations"} & set(plain_name(column).split("_")) and "tokens" not in column:
        yield f"D is read from the column {column}: D must count tokens, which are steps times tokens per step"


def _consistent(t):
    """Counts of one thing in two ways."""
    rows, given = t.rows, t.given
    product = FLOPS_PER_PARAM_TOKEN * rows["N"] * rows["D"]
    pairs = [("C", "C is", "6 N D", "N, D and C", given.get("C"), product)]
    pairs += [("M", "D / N is", "the quotient of D and N", "N and D", given.get("M"), rows["D"] / rows["N"])]
    if {"S", "B"} <= {*t.used}:
        tokens = floats(rows["S"]) * floats(rows["B"])
        pairs += [("D", "steps times tokens per step are", "D", "D", tokens, rows["D"])]
    for name, what, of, units, own, other in pairs:
        if own is None:
            continue
        own = floats(own)
        wrong = own <= 0
        if wrong.any():
            runs = listed([f"{run} ({value:.3g})" for run, value in zip(rows["run"][wrong], own[wrong], strict=True)])
            yield (
                f"{name} is not positive in {int(wrong.sum())} rows, which an integer overflow does: {runs}; "
                f"{'C = 6 N D is used instead' if name == 'C' else 'check these rows'}"
            )
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = own / np.asarray(other, float)
        if not np.isfinite(ratio).any():
            continue
        middle = float(np.nanmedian(ratio))
        if not 1 / APART < middle < APART:
            yield f"the table's {what} {middle:.2g} times {of} (median): check the units of {units}"
        off = np.abs(np.log(ratio / middle)) > np.log(APART)
        if off.any() and off.mean() < 0.5:
            each = zip(rows["run"][off], ratio[off] / middle, strict=True)
            runs = listed([f"{run} ({times:.2g} times)" for run, times in each])
            yield f"the table's {what} far from that of the other rows, relative to {of}, in {runs}: check these rows"


def _loss(t):
    if t.law.target != "loss":
        return
    column, words = str(t.used["loss"]), set(plain_name(t.used["loss"]).split("_"))
    if words & {"ppl", "perplexity"}:
        yield f"the column {column} holds a perplexity: laws describe the loss, its logarithm"
        return
    vocabulary = t.rows["vocab_size"].max() if "vocab_size" in t.rows and t.loss == "loss" else np.nan
    limit = float(np.nanmin([LARGEST_LOSS, np.log(vocabulary) if is_number(vocabulary) and vocabulary > 1 else np.nan]))
    top = t.rows["loss"].max()
    if top > 1.01 * limit:
        runs = int((t.rows["loss"] > 1.01 * limit).sum())
        yield (
            f"the loss is up to {number(top, 3)} and above {limit:.3g} nats, that of a uniform guess, in {runs} of "
            f"{len(t.rows)} rows: is {column} a perplexity, a sum over tokens, or are these runs diverged?"
        )


# ---- rows: one kind of run each ------------------------------------------------------------------------------------


def _epochs(t):
    own = "U" in t.used and "U" not in t.law.variables
    epoch = next((c for c in t.rows if plain_name(c) in ("epochs", "epoch", "num_epochs", "n_epochs")), None)
    if "U" in t.law.variables or not (own or epoch):
        return
    values = t.rows["U"] if own else t.rows[epoch]
    values = floats(values)
    values = t.rows["D"].to_numpy() / values if own else values
    many = np.nan_to_num(values) > MOST_EPOCHS
    if many.any():
        where, law = f"{'D' if own else epoch} <= {MOST_EPOCHS}{' * U' * own}", "--law data_constrained, or " * own
        yield (
            f"{int(many.sum())} runs saw their data more than {MOST_EPOCHS} times (up to {np.nanmax(values):.1f}): "
            f"repeated tokens are worth less than new ones (arXiv:2305.16264), so D overstates them; fit {law}only "
            f"--where {shlex.quote(where)}"
        )


def _schedules(t):
    if t.early:
        yield f"{t.early} rows end before their schedule does: their losses are higher than after the decay"
    if t.incomplete:
        return
    ending = (
        "a loss before the end of a decaying learning rate is too high (arXiv:2203.15556), so keep the last row of "
        "each run, unless every row is a run of its own (--allow-incomplete)"
    )
    names = [c for c in t.rows if plain_name(c) in " ".join(NAMES["run"]).split() and c != "run"]
    for column in [] if any(t.rows[c].is_unique for c in names) else names:
        D = t.rows.groupby([column, "N"])["D"].agg(["nunique", "min", "max"])
        many = D[D["nunique"] > 2]
        if len(many):
            (label, _), worst = many.index[0], many.iloc[0]
            ends = f"{count(worst['min'])} to {count(worst['max'])}"
            yield f"rows of one {column} look like checkpoints of one run ({label}: D = {ends}): {ending}"
            return
    for N, D in t.rows.groupby("N")["D"]:
        D = np.unique(D)
        if len(D) > MOST_D or (len(D) >= EVEN and np.ptp(np.diff(D)) <= SAME * np.diff(D).max()):
            what = "evenly spaced values" if len(D) <= MOST_D else "values"
            yield f"N = {count(N)} has {len(D)} {what} of D, which look like checkpoints of one run: {ending}"
            return


def _mixed(t):
    """Columns that differ between rows that one law cannot tell apart."""
    rows = t.rows
    if "objective_version" in rows:  # run records: settings.check compares every setting
        return
    # rows of one cell agree in every variable of the law, and in N and D where the table has them
    variables = {v: floats(rows[v]) for v in dict.fromkeys(["N", "D", *t.law.variables]) if v in rows}
    variables = {v: values for v, values in variables.items() if (values > 0).all()} or {"C": floats(rows["C"])}
    found: dict[str, list[str]] = {}
    sames = {}
    for column in _settings(t):
        values = rows[column].map(setting_text)
        pattern = tuple(values.factorize()[0])
        if pattern in sames:
            found[sames[pattern]].append(column)
        elif _differs(rows, column, variables):
            sames[pattern], found[column] = column, []
    for column, others in list(found.items())[:MOST_COLUMNS]:
        values = values_of(rows[column].dropna())
        example = f"{column}={setting_text(rows[column].dropna().iloc[0])}"
        if all(map(is_number, values)):
            middle = number(float(np.median(np.array(values, float))), 3)
            example = f"`{column}` <= {middle}" if len(values) > MOST_COLUMNS else example
            values = [number(float(value), 3) for value in values]
        also = f", and with it {listed(others)}" if others else ""
        same = rows[column].map(setting_text).groupby([rows["N"], rows["D"]]).nunique().max() > 1
        where = f"rows of {'the same' if same or all(map(is_number, values)) else 'overlapping'} N and D"
        yield (
            f"{where} differ in {column} ({listed(values)}){also}, so one law may not hold for all: "
            f"fit some with --where {shlex.quote(example)}, each with --by {shlex.quote(column)}, or all with --allow "
            f"{shlex.quote(column)} if it does not matter"
        )
    if len(found) > MOST_COLUMNS:
        yield f"rows of the same N and D also differ in {listed(list(found)[MOST_COLUMNS:])}"


def _settings(t):
    """The columns that may hold a setting: no variable of the fit, measurement, seed or name of a run."""
    rows, used = t.rows, t.used
    variables = {*t.law.variables, "N", "D", "C", "M", "loss", "weight", "run", "held_out", "schedule_complete"}
    skipped = {*variables, *(used[v] for v in variables if v in used), *(v for v in used if used[v] != v)}
    skipped |= {*NOTED, *ONE_KIND, t.loss, *(column_of(rows, key) for key in t.allow)}
    for column in rows.columns:
        words = set(plain_name(column).split("_"))
        numeric = rows[column].dropna().map(is_number).all() and rows[column].dtype != bool
        distinct = rows[column].map(setting_text).nunique()
        if column in skipped or distinct < 2 or words <= IDENTITY or words & ALWAYS_IDENTITY:
            continue
        if numeric and words & MEASURED or distinct > len(rows) / 2 and not (numeric and words & SETTING):
            continue  # a value of its own in most rows: a measurement or a name
        yield column


def _differs(rows, column, variables) -> bool:
    """Whether a column differs between rows of one cell; as text, between rows whose variables overlap."""
    rows = rows.assign(**variables)
    part = rows[rows[column].notna()]
    if part[column].map(is_number).all() and part[column].dtype != bool:
        logs = np.log(part[[*variables]])
        cell = [np.round(logs[name] / SAME) for name in variables]
        # the variables of a cell differ by up to 2 %, and columns that follow them by a few times that
        spread = logs.groupby(cell).agg(np.ptp).sum(axis=1)
        values = part[column].astype(float).groupby(cell).agg(["min", "max"])
        return bool(((values["max"] - values["min"]) > (1e-9 + 5 * spread) * values.abs().max(axis=1)).any())
    texts = part[column].map(setting_text)
    for name in dict.fromkeys([*variables, "C"]):
        ends = part[name].groupby(texts).agg(["min", "max"]).sort_values("min")
        if (ends["min"].to_numpy()[1:] > ends["max"].to_numpy()[:-1]).all():
            return False  # a label of the size, the tokens or the budget
    return len(texts.unique()) > 1


GUARDS = (_tokens_per_param, _weight, _scatter, _sizes, _consistent, _loss, _epochs, _schedules, _mixed)
