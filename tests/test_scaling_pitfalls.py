"""The audit of a fit: every planted fault is found, a good table has none, numbers equal refits by hand."""

import dataclasses
import math
import re

import numpy as np
import pandas
import pytest

from lmjax.scaling import fitting
from lmjax.scaling.audit import CHECKS, SEVERITIES, Finding, audit
from lmjax.scaling.laws import CHINCHILLA, predict_loss
from lmjax.scaling.planning import design
from lmjax.scaling.table import read_table

TRUTH = dict(E=1.7, A=400.0, alpha=0.34, B=1500.0, beta=0.37)


def surface(noise=0.003, seed=0, seeds=1, **columns):
    cells = design([3e18, 1e19, 3e19, 1e20, 3e20], per_budget=6).cells
    N, D = (np.repeat([row[name] for row in cells], seeds) for name in ("N", "D"))
    rng = np.random.default_rng(seed)
    loss = predict_loss(CHINCHILLA, TRUTH, N, D) * np.exp(noise * rng.standard_normal(len(N)))
    return pandas.DataFrame({"N": N, "D": D, "loss": loss}).assign(**columns)


def judged(fit, table=None):
    """The findings of every check, in their order, without warnings of the fit and notes."""
    frame = None if table is None else table.points
    return [
        Finding(name, "warning" if bad else "ok", text)
        for name, check in CHECKS.items()
        for bad, text in check(fit, frame)
    ]


def marks(frame, topic, resamples=40, table=True, **options):
    """The (severity, sentence) pairs of one topic."""
    read = read_table(frame, weights="weight" if "weight" in frame else None)
    fit = fitting.fit(read, resamples=resamples, **options)
    assert not fit.refused
    return [("warning" if bad else "ok", text) for bad, text in CHECKS[topic](fit, read.points if table else None)]


@pytest.fixture(scope="module")
def good():
    """Two seeds a cell, every column that says a thing, rates that follow N: nothing to complain of in the table."""
    frame = surface(seeds=2, seed=4)
    frame = frame.assign(
        n_total=frame.N,
        n_non_embedding=frame.N / 1.001,
        flops_exact=6 * frame.N * frame.D,
        objective="causal",
        objective_version="causal-1",
        schedule_complete=True,
        warmup_steps=100,
        steps=10_000,
        learning_rate=frame.N**-0.2,
    )
    table = read_table(frame.drop(columns="N"))
    return fitting.fit(table, resamples=100), table


def test_every_check_has_a_finding_and_a_good_table_has_no_doubt(good):
    found = judged(*good)
    assert {finding.topic for finding in found} == set(CHECKS) - {"Metric"}  # a loss has no threshold
    assert [finding.topic for finding in found if finding.severity != "ok"] == ["Held-out runs"]  # there are none


def test_the_audit_puts_the_worst_first(good):
    found = audit(*good)
    order = [SEVERITIES.index(finding.severity) for finding in found]
    assert order == sorted(order, reverse=True)
    start = "without the 5 rows of least compute"
    assert sum(f.topic == "Outliers and influence" and f.text.startswith(start) for f in found) == 1
    assert good[0].audit(good[1]) == found


def test_what_a_fit_does_not_keep_is_said_once_and_not_denied(good):
    fit, table = good
    alone, together = (audit(fit, *more) for more in ((), (table,)))
    skipped = "Skipped checks (other counts of N and C, warm-up and tuning, schedules): pass table= to run them"
    assert sum(f.text == skipped for f in alone) == 1 and not any("Skipped" in f.text for f in together)
    assert not any("the table does not say" in f.text or "no other count" in f.text for f in alone)
    assert not any(f.topic == "Warm-up and tuning" for f in alone)
    assert any(f.topic == "Warm-up and tuning" and "warm-up takes" in f.text for f in together)


def test_a_count_of_no_parameters_is_not_compared():
    """n-gram models have no matrices: the fit took the logarithm of 0."""
    with np.errstate(divide="raise"):
        ((_, words),) = marks(surface(n_matmul_head=0), "Count of N", resamples=0)
    assert "no other count" in words


def test_low_compute_rows_off_the_law_are_seen():
    frame = surface()
    low = (6 * frame.N * frame.D).nsmallest(5).index
    frame.loc[low, "loss"] *= np.exp(0.05 * (frame.N[low] / frame.N[low].min()) ** 0.5)
    mark, words = marks(frame, "Outliers and influence")[0]
    rest = frame.drop(index=low)
    without = fitting.fit(rest, resamples=0)
    name = words.split(": ")[1].split(" ")[0]
    shown = {**without.params, **without.derived}[name]
    assert mark == "warning" and f"-> {shown:.3g} " in words


def test_one_outlier_is_named():
    frame = surface()
    frame.loc[7, "loss"] *= 1.1
    found = marks(frame, "Outliers and influence", table=False)
    assert any(mark == "warning" and "row 8, +" in words for mark, words in found)


@pytest.mark.parametrize("objective", ["huber_log", "squared_log", "squared"])
def test_an_outlier_does_not_hide_behind_itself(objective):
    """15 rows, one 15 % off, which pulls least squares: it is under 4 standard deviations of all residuals."""
    frame = surface(0.003, seed=5).iloc[::2].reset_index(drop=True).iloc[:15]
    shown = marks(frame, "Outliers and influence", resamples=0, criterion=objective)[-1]
    assert shown[0] == "ok" and shown[1].startswith("largest residual")
    frame.loc[7, "loss"] *= 1.15
    mark, words = marks(frame, "Outliers and influence", resamples=0, criterion=objective)[-1]
    assert mark == "warning" and "row 8, +" in words
    assert ("in the unit of the loss" in words) == (objective == "squared")
    residual = np.array([row["residual"] for row in fitting.fit(frame, resamples=0, criterion=objective).points])
    assert np.abs(residual).max() < 4 * np.sqrt((residual**2).sum() / 10)


def test_an_outlier_of_a_table_without_noise_is_named():
    frame = surface(0.0)
    assert marks(frame, "Outliers and influence", resamples=0)[-1][0] == "ok"
    frame.loc[7, "loss"] *= 1.001
    assert marks(frame, "Outliers and influence", resamples=0)[-1][0] == "warning"


def test_weights_of_a_wrong_scale_are_seen():
    assert marks(surface(weight=np.geomspace(1, 1e4, 30)), "Weights")[0][0] == "warning"


def test_count_of_n_moves_a():
    """Small models: non-embedding N = N - k N^(1/3) at 1e6 to 1e8; a is refitted with that count."""
    cells = design([1e15, 4e15, 16e15, 64e15], per_budget=6).cells
    N, D = (np.array([row[name] for row in cells]) for name in ("N", "D"))
    loss = predict_loss(CHINCHILLA, TRUTH, N, D) * np.exp(0.002 * np.random.default_rng(0).standard_normal(len(N)))
    other = N - 8000 * N ** (1 / 3)
    frame = pandas.DataFrame({"n_total": N, "n_non_embedding": other, "D": D, "loss": loss})
    ((mark, words),) = marks(frame, "Count of N", resamples=0)
    hand = fitting.fit(frame, n="non_embedding", resamples=0)
    assert mark == "warning" and f"{hand.derived['a']:.3f} counting non-embedding parameters" in words


def test_columns_of_training_are_judged():
    assert marks(surface(warmup_steps=3000, steps=10_000), "Warm-up and tuning")[0] == (
        "warning",
        "warm-up takes up to 30.0 % of a run",
    )
    assert "one learning_rate (0.001) at every N" in marks(surface(learning_rate=1e-3), "Warm-up and tuning")[0][1]
    assert marks(surface(), "Warm-up and tuning")[0][0] == "warning"
    assert [mark for mark, _ in marks(surface(), "Kind of loss")] == ["warning", "warning"]


def test_exact_flops_are_compared():
    frame = surface()
    frame["flops_exact"] = 6 * frame.N * frame.D * (1 + 0.5 * (frame.N.min() / frame.N) ** 0.5)
    ((mark, words),) = marks(frame, "Count of C", resamples=0)
    at_largest = 1 + 0.5 * math.sqrt(frame.N.min() / frame.N.max())
    assert mark == "warning" and "1.50 at the smallest N" in words and f"{at_largest:.2f} at the largest" in words


def test_repeats_treated_as_independent_are_seen():
    frame = surface(seeds=2, seed=4)
    assert marks(frame, "Repeats", bootstrap="residual")[0][0] == "warning"
    assert marks(frame, "Repeats", bootstrap="configurations")[0][0] == "ok"
    assert "seed noise and misfit are not separable" in marks(surface(), "Repeats")[0][1]


def test_bend_at_small_n_is_seen():
    """The planted term is A (N + s)^-alpha with s eight times the smallest N."""
    frame = surface(0.0005)
    shift = 8 * frame.N.min()
    frame["loss"] += TRUTH["A"] * ((frame.N + shift) ** -TRUTH["alpha"] - frame.N ** -TRUTH["alpha"])
    ((mark, words),) = marks(frame, "Lack of fit")
    assert mark == "warning" and "lack of fit p" in words


def test_rounding_is_priced_as_a_fit_with_rounded_exponents():
    ((_, words),) = marks(surface(), "Rounding", resamples=0)
    fit = fitting.fit(surface(), resamples=0)
    p = {**fit.params, "alpha": round(fit.params["alpha"], 2), "beta": round(fit.params["beta"], 2)}
    budget = 10 * max(row["C"] for row in fit.points)
    n = np.geomspace(1e8, 1e12, 400_001)  # brute force: the best N at this budget
    best = n[np.argmin(predict_loss(CHINCHILLA, p, n, budget / 6 / n))]
    assert f"and {budget / 6 / best**2:.3g} with exponents" in words


def test_narrow_intervals_are_counted_in_runs(good):
    fit, table = good
    alpha = fit.params["alpha"]
    narrow = dataclasses.replace(fit, intervals={**fit.intervals, "alpha": (alpha - 1e-4, alpha + 1e-4)})
    words = [(bad, words) for bad, words in CHECKS["Width of intervals"](narrow, table.points) if "alpha" in words]
    assert words[0][0] and "alpha +-0.0001 from 60 runs" in words[0][1]


@pytest.mark.parametrize(
    "topic, kept",
    [("Outliers and influence", "largest residual"), ("Width of intervals", "this width would need about")],
)
def test_plain_residuals_are_judged_in_the_unit_of_the_loss(topic, kept):
    """Losses in other units (1000 times): the same judgement, word by word, but for the numbers in that unit."""
    frame = surface()
    here, there = (
        [words for _, words in marks(frame.assign(loss=size * frame.loss), topic, criterion="squared")]
        for size in (1.0, 1000.0)
    )
    here, there = ([words for words in found if kept in words] for found in (here, there))
    assert here and all("in the unit of the loss" in words for words in here)
    for one, other in zip(here, there, strict=True):
        last = [re.findall(r"[\d.]+ times|about \d+ runs", words) for words in (one, other)]
        assert last[0] == last[1] and last[0]
    if kept != "largest residual":  # the refits of 30 runs know what 30 runs can tell, within a factor 3
        assert all(10 < int(re.search(r"about (\d+) runs", words)[1]) < 90 for words in here)


def test_the_condition_is_compared_with_a_line_only_for_laws_of_n_and_d():
    frame = surface()
    one_variable = fitting.fit(frame, "power_c", resamples=0)
    words = {law: [f.text for f in judged(found) if f.topic == "Collinearity"] for law, found in
             (("c", one_variable), ("nd", fitting.fit(frame, resamples=0)))}  # fmt: skip
    assert "parameters are not identifiable separately over 1e+04" in words["c"][-1] and "D = k N" not in words["c"][-1]
    assert "a line D = k N gives over 1e+04" in words["nd"][-1]


def test_shares_with_zeros_are_audited_in_points():
    C = np.geomspace(1e15, 1e21, 20)
    share = np.random.default_rng(0).binomial(50, 0.9 / (1 + (C / 3e18) ** -0.9)) / 50
    table = read_table(pandas.DataFrame({"C": C, "loss": share}), law="sigmoid_c", held_out=1e20)
    assert (share == 0).any()
    sentences = [finding.text for finding in audit(fitting.fit(table, "sigmoid_c", resamples=60), table)]
    assert any("largest residual" in words and "share points" in words for words in sentences)
    assert any("held-out" in words and "share points" in words for words in sentences)
    assert not any("% of the loss" in words for words in sentences)


@pytest.mark.parametrize("law", ["power_c", "kaplan_nd", "joint_power", "overtrained"])
def test_other_laws_are_audited_too(law):
    table = read_table(surface())
    fit = fitting.fit(table, law, resamples=40)
    found = audit(fit, table)
    assert found
    if not fit.refused:
        assert {finding.topic for finding in found} >= set(CHECKS) - {"Metric", "Floor"}


def test_profile_of_any_law_has_its_minimum_at_the_fit():
    fit = fitting.fit(surface(), "kaplan_nd", resamples=0)
    alpha = fit.params["alpha"]
    ratio = fit.profile("alpha", [0.9 * alpha, alpha, 1.1 * alpha])
    assert ratio[1] == pytest.approx(1.0, abs=1e-9) and min(ratio[0], ratio[2]) > 1.0


def test_runs_above_the_bigram_loss_and_encoder_decoders_that_ignore_their_source_are_counted():
    """Runs before the transition to context, or without use of the source, make a law of another regime."""
    frame = surface()
    frame["passed_reference"], frame["source_gain"] = "bigram", 0.4
    assert all(
        severity == "ok" for severity, text in marks(frame, "Kind of loss") if "runs are" in text or "gain" in text
    )
    frame.loc[:2, "passed_reference"], frame.loc[:1, "source_gain"] = "unigram", 0.003
    found = [text for severity, text in marks(frame, "Kind of loss") if severity == "warning"]
    assert f"3 of {len(frame)} runs do not beat a bigram model: they have learned little from context" in found
    assert any(text.startswith("2 of") and "from their source" in text for text in found)
