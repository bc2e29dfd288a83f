"""Emergence: planted truths are recovered; the verdict, the null and the break test are compared with oracles."""

import numpy as np
import pandas
import pytest
from scipy.optimize import least_squares

from lmjax.cli import main
from lmjax.errors import InputError
from lmjax.scaling import resample
from lmjax.scaling.emergence import breaks, curves, design, null, sharpness
from lmjax.scaling.emergence.classify import LOSS_TOO, METRIC_ONLY, SMOOTH, UNDECIDED, analyse, classify
from tests import parity
from tests.emergence_ladders import gentle, ladder, line, power, step

# -- Curves: what is selected, and what is said about it


def test_curves_hold_every_cell_by_point():
    table, items = ladder(power, 0, sizes=3, seeds=2, items=50)
    chosen = curves.select(table, "sum", items=items.sample(frac=1, random_state=0))
    assert chosen.hard == "exact_match" and chosen.smooth[0] == "log_likelihood_per_token"
    assert chosen.seeds.tolist() == [2, 2, 2] and np.ptp(chosen.progress) == pytest.approx(4)
    for g in range(3):
        of_it = table[(table.metric == "exact_match") & table.run_id.str.startswith(f"g{g}")]
        assert chosen.points["exact_match"][g] == pytest.approx(of_it["value"].mean(), abs=1e-12)
    numerator, denominator = chosen.items["token_accuracy"]
    np.testing.assert_allclose(numerator.sum(1) / denominator.sum(1), chosen.cells["token_accuracy"])
    assert chosen.lengths.tolist() == [4.0] * 50 and not chosen.warnings and not len(chosen.excluded)


def test_against_the_loss_scale_grows_as_the_loss_falls():
    table, _ = ladder(power, 0, items_too=False)
    chosen = curves.select(table.sample(frac=1, random_state=1), "sum", x="loss")
    assert (np.diff(chosen.points["loss"]) < 0).all() and (np.diff(chosen.progress) > 0).all()
    np.testing.assert_allclose(chosen.progress, -np.log10(chosen.points["x"]))
    assert (np.diff(chosen.points["N"]) > 0).all()


def broken_tables():
    table, _ = ladder(power, 0, sizes=3, items_too=False)
    hard = table.index[table.metric == "exact_match"]
    one = table.loc[[hard[0]]]
    yield "missing", table.drop(columns="value"), "no column value; it has"
    yield (
        "range",
        table.assign(value=table["value"].where(table.index != hard[1], 1.2)),
        r"exact_match in \[0, 1\], got",
    )
    yield "nan", table.assign(value=table["value"].where(table.index != hard[1])), "exact_match in .* got nan of g0-s1"
    yield "family", table.assign(family=np.where(table.seed == 0, "encoder", "decoder")), "one family, got decoder, enc"
    yield "semantics", table.assign(semantics=np.where(table.seed == 0, "a", "b")), "expected one semantics, got a, b"
    yield "duplicate", pandas.concat([table, one]), "duplicated cells"
    yield "same seed", table.assign(seed=0), "one run per N, D, step and seed, got g0-s0, g0-s1"
    yield "early", table.assign(schedule_complete=False), "set incomplete=True"
    yield "no hard", table[table.metric != "exact_match"], "expected a hard metric"
    yield "no smooth", table[table.metric == "exact_match"], "expected a smooth metric"
    yield "no n", table.assign(n=np.nan), "1/n is the resolution"
    yield "no x", table.drop(columns=["n_total", "tokens", "flops_exact"]), "x = C: the table has no numbers"
    yield "words", table.assign(held_out="perhaps"), "held_out: expected true or false, got 'perhaps'"
    yield "words", table.assign(schedule_complete="maybe"), "schedule_complete: expected true or false, got 'maybe'"
    yield "text", table.assign(value=table["value"].astype(object).where(table.index != hard[1], "n/a")), "got 'n/a'"
    yield "chance", table.assign(chance=np.where(table.seed == 0, 0.0, 0.5)), "one chance level, got 0 to 0.5"


@pytest.mark.parametrize(("table", "words"), [pytest.param(t, w, id=name) for name, t, w in broken_tables()])
def test_bad_tables_are_refused(table, words):
    with pytest.raises(InputError, match=words):
        curves.select(table, "sum")


def test_unknown_names_are_refused():
    table, items = ladder(power, 0, sizes=3, items=20)
    for words, which in (
        ("did you mean 'sum'", {"task": "sume"}),
        ("expected a variable of scale", {"x": "flops"}),
        ("another exact_match than the table", {"items": items.assign(numerator=0.0)}),
    ):
        with pytest.raises(InputError, match=words):
            curves.select(table, **({"task": "sum"} | which))
    with pytest.raises(InputError, match="no file nowhere.csv; expected a table"):
        curves.select("nowhere.csv", "sum")


def test_items_are_those_of_the_semantics_of_the_table():
    """Evaluations of one task under two semantics lie in one folder."""
    table, items = ladder(power, 0, sizes=3, items=20)
    both = pandas.concat([items.assign(semantics="pseudo", numerator=0.0), items.assign(semantics="masked")])
    chosen = curves.select(table.assign(semantics="masked"), "sum", items=both)
    alone = curves.select(table, "sum", items=items)
    np.testing.assert_array_equal(chosen.items["exact_match"], alone.items["exact_match"])
    with pytest.raises(InputError, match="another exact_match than the table"):
        curves.select(table.assign(semantics="pseudo"), "sum", items=both)


def test_doubts_are_visible():
    table, _ = ladder(power, 0, sizes=4, items_too=False)
    said = curves.select(table.assign(chance=np.nan), "sum").warnings
    assert any("chance level of exact_match is unknown" in w for w in said)
    one = curves.select(table[table.seed == 0], "sum")
    assert any("4 of 4 points have one seed" in w for w in one.warnings)
    early = table.assign(schedule_complete=table.seed != 1)
    dropped = curves.select(early, "sum")
    assert any("4 cells before the end of their schedule are left out" in w for w in dropped.warnings)
    assert len(dropped.excluded) == 4 and dropped.seeds.tolist() == [2] * 4
    assert any("4 cells are before the end" in w for w in curves.select(early, "sum", incomplete=True).warnings)
    holes = table.assign(loss=table["loss"].where(table.seed != 2))
    assert any("4 cells have no loss" in w for w in curves.select(holes, "sum").warnings)
    against = curves.select(holes, "sum", x="loss")
    assert against.excluded["reason"].tolist() == ["no loss"] * 4 and against.seeds.tolist() == [2] * 4
    failed = pandas.DataFrame([{"run_id": "f", "task": "", "status": "not_evaluated", "flops_exact": 1e18}])
    assert curves.select(pandas.concat([table, failed]), "sum").excluded["reason"].tolist() == ["not evaluated"]


# -- Bootstrap


def test_bootstrap_has_the_spread_of_seeds_and_items():
    """Against a simulation of new ladders: the standard deviation of a level's mean, within 15 %."""
    rng = np.random.default_rng(0)
    truth, seeds, items, spread = 0.6, 4, 100, 0.1
    means, drawn = [], []
    for k in range(150):
        p = np.clip(truth + spread * rng.standard_normal(seeds), 0, 1)
        hits = (rng.random((seeds, items)) < p[:, None]).astype(float)
        means.append(hits.mean())
        if k < 60:
            point = np.zeros(seeds, int)
            weights = rng.multinomial(items, np.full(items, 1 / items), size=300)
            values = weights @ hits.T / items
            drawn.append(null.over_seeds(values, point, resample.within(rng, point, 300)).std())
    # items are drawn once more on top of the seeds' own sampling: a little wide is right, narrow is wrong
    assert 0.95 < np.mean(drawn) / np.std(means) < 1.3


# -- The null p^L


def test_power_of_lengths_is_the_mean_over_items():
    lengths, p = np.array([1.0, 3.0, 3.0, 5.0]), np.array([0.3, 0.9])
    np.testing.assert_allclose(null.power(p, lengths), [np.mean(v**lengths) for v in p], rtol=1e-14)
    assert null.power(np.array(0.5), np.array([2.5])) == pytest.approx(0.5 * 0.25 + 0.5 * 0.125)


def null_of(table, items, resamples=200):
    chosen = curves.select(table, "sum", items=items)
    return null.test(chosen, null.draw(chosen, resamples, 0), resamples, 0.95, 0)


def test_independent_tokens_are_not_rejected_more_often_than_stated():
    p = [
        null_of(*ladder(power, seed, sizes=5, items=120, length=4, items_too=False), resamples=99).p_value
        for seed in range(60)
    ]
    assert np.mean(np.array(p) <= 0.05) <= 0.13  # 5 % expected; more than 13 % has a chance below 1 %
    assert 0.35 < np.mean(p) < 0.65


def test_tokens_that_fail_together_are_found():
    for seed in range(3):
        made = null_of(*ladder(power, seed, length=6, together=0.5))
        assert made.p_value < 0.01 and made.deviation[made.worst] > 0.02 and made.low[made.worst] > 0


def test_points_below_one_in_n_are_censored():
    table, items = ladder(lambda t: 4 - 3.9 * t, 1, length=4, items=200)
    made = null_of(table, items)
    hard = table[table.metric == "exact_match"].groupby("flops_exact")["value"].mean().to_numpy()
    np.testing.assert_array_equal(made.censored, (hard < 1 / 200) & (made.predicted < 1 / 200))
    assert made.censored[0] and not made.censored[-1]


def test_a_sampled_answer_is_right_with_the_mean_of_exp_of_its_log_likelihood():
    table, items = ladder(power, 0, sizes=5, items=60)
    made = null_of(table, items)
    of_it = items[items.metric == "log_likelihood"]
    expected = np.exp(of_it["numerator"]).groupby(of_it["run_id"].str[:2]).mean()
    np.testing.assert_allclose(made.sampled, expected.to_numpy(), rtol=1e-12)


# -- Sharpness and breaks


@pytest.mark.parametrize("length", [1, 4, 16])
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_width_of_p_to_the_length_depends_on_the_exponent_only(length, alpha):
    """p^L = exp(-L x^-alpha): 10-90 % of the way from 0 to 1 takes ln(ln 10 / ln(10/9)) / alpha e-folds, for any L."""
    progress = np.linspace(-8, 12, 4001)
    values = np.exp(-length * 10 ** (-alpha * progress))
    start, end = sharpness.crossings(progress, values)
    assert end - start == pytest.approx(np.log10(np.log(10) / np.log(10 / 9)) / alpha, abs=2e-3)


def test_width_of_lines_and_steps():
    x = np.linspace(15, 18, 7)
    line = sharpness.measure(x, 0.2 * x, (0.2 * x)[None])
    assert line.share == pytest.approx(0.8) and line.verdict == "smooth" and line.width == pytest.approx(2.4)
    jump = sharpness.measure(x, (x > 16.2) * 0.3, ((x > 16.2) * 0.3)[None])
    assert jump.share == pytest.approx(0.8 / 6) and jump.verdict == "sharp" and jump.steps == pytest.approx(0.8)
    flat = sharpness.measure(x, np.zeros(7), np.zeros((3, 7)))
    assert np.isnan(flat.width) and flat.sharp == 0


def optimum(t, y, w, law):
    """The weighted squared error of a law, by SciPy from many starts."""
    best = np.inf
    starts = (
        [(k,) for k in (0.3, 1, 3, 9)] if law == 1 else [(d, s) for d in (-1, 0, 0.3, 0.6, 0.9) for s in (-3, -2, -1)]
    )
    for start in starts:

        def residual(v):
            theta = np.asarray(v[2:])[None]
            return (v[0] + v[1] * breaks.shape(theta, t)[0] - y) * np.sqrt(w)

        low, high = [0, 0] + [-20] * law, [np.inf, np.inf] + [20] * law
        begin = (0.01, 1.0, *(np.log(start) if law == 1 else start))
        best = min(best, 2 * least_squares(residual, begin, bounds=(low, high), xtol=1e-14, ftol=1e-14).cost)
    return best


def test_profiles_reach_the_optimum_of_an_independent_solver():
    rng = np.random.default_rng(0)
    t = np.linspace(0, 1, 8)
    curve = np.stack([0.1 + np.exp(-2 * t), 0.05 + 1 / (1 + np.exp((t - 0.6) / 0.06)), 1 - 0.8 * t])
    y, w = curve + 0.02 * rng.standard_normal(curve.shape), np.full(8, 2500.0)
    power_curve, break_curve = breaks.fit_both(t, y, w, t)
    for row in range(3):
        for fitted, law in ((power_curve, 1), (break_curve, 2)):
            misfit = (w * (fitted[row] - y[row]) ** 2).sum()
            # SciPy may stop in a worse minimum, never in a better one by more than the last halving of the grid
            assert misfit <= optimum(t, y[row], w, law) * 1.01 + 1e-6


def test_profiles_agree_with_the_general_engine():
    """lmjax.scaling.engine fits one table at a time; the profiles fit thousands and must reach the same misfit."""
    rng = np.random.default_rng(1)
    progress, t = np.linspace(14, 18, 8), np.linspace(0, 1, 8)
    for truth in (0.1 + power(t), 0.02 + 1.5 / (1 + np.exp((t - 0.48) / 0.06))):
        y = truth * np.exp(0.02 * rng.standard_normal(8))
        noise = 0.02 * y
        found = breaks.parameters(progress, y, noise)
        plain, broken = (((law[0] - y) ** 2 / noise**2).sum() for law in breaks.fit_both(t, y[None], noise**-2.0, t))
        assert plain == pytest.approx(found["power"]["misfit"], rel=2e-3)
        if truth[3] > 0.5:  # where there is a break, the engine's bounds let it find it
            assert broken == pytest.approx(found["break"]["misfit"], rel=2e-3)
            assert found["break"]["middle"] == pytest.approx(14 + 0.48 * 4, abs=0.05)
        else:
            assert broken <= plain and found["power"]["alpha"] == pytest.approx(1.0, abs=0.05)


def test_leave_one_out_errors_do_not_see_the_point_left_out():
    t, y = np.linspace(0, 1, 7), np.exp(-2 * np.linspace(0, 1, 7))[None]
    for size in range(7):
        moved = y.copy()
        moved[0, size] += 5.0
        for a, b in zip(breaks.left_out(t, y, np.ones(7)), breaks.left_out(t, moved, np.ones(7)), strict=True):
            assert a[0, size] - b[0, size] == pytest.approx(5.0, abs=1e-9)
    plain, _ = breaks.left_out(t, y, np.ones(7))
    assert np.abs(plain).max() < 5e-3  # a power law predicts a power law


def test_errors_of_points_follow_the_spread_over_seeds():
    chosen = curves.select(ladder(power, 0, spread=0.2, seeds=6, items_too=False)[0], "sum")
    drawn = null.draw(chosen, 100, 0)
    noise = null.point_errors(chosen, drawn, "log_likelihood_per_token")
    relative = noise / -chosen.points["log_likelihood_per_token"].to_numpy()
    assert 0.5 < np.median(relative) / (0.2 / np.sqrt(6)) < 1.6  # 6 seeds estimate a spread within 50 %


# -- Verdicts on planted truths


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("truth", "length", "word"),
    [(power, 4, METRIC_ONLY), (power, 9, METRIC_ONLY), (step, 4, LOSS_TOO), (gentle, 1, SMOOTH)],
)
def test_planted_truths_come_out(truth, length, word, seed):
    table, items = ladder(truth, seed, length=length)
    made = classify(table, "sum", items=items, resamples=150, seed=seed)
    assert made.verdict == word, made.sentence
    assert not made.reasons and word in made.sentence
    assert made.null.r_squared > 0.97  # tokens are independent in all of them
    assert not made.warnings


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("items_too", [True, False])
def test_a_skill_beside_the_loss_is_not_an_effect_of_the_metric(seed, items_too):
    """A format learned at the sixth of eight sizes: exact match jumps by 0.6, p^4 rises by 0.1 there."""
    table, items = ladder(line, seed, sizes=8, locked=5, items_too=items_too)
    made = classify(table, "sum", items=items, resamples=100, seed=seed)
    assert made.verdict == UNDECIDED and "do not explain the jump" in made.reasons[0]
    assert made.rise.verdict == "sharp" and made.null.p_value < 0.02
    # without noise, read off a dense grid: p^4 between the places where exact match has done 10 % and 90 % of its rise
    t, dense = np.arange(8) / 7, np.linspace(0, 1, 100001)
    p4 = (0.75 + 0.2 * t) ** 4
    risen = np.interp(dense, t, p4 * (t > 0.6)) / p4[-1]
    start, end = (np.interp(dense[np.argmax(risen >= part)], t, p4) for part in (0.1, 0.9))
    assert made.explained.share == pytest.approx((end - start) / (0.8 * p4[-1]), abs=0.08)


@pytest.mark.parametrize(("truth", "word"), [(step, UNDECIDED), (power, METRIC_ONLY)])
def test_a_format_decides_only_where_it_makes_the_jump(truth, word):
    """Locked below the loss' own step, or where p^L is zero anyway; a step of the loss elsewhere is not what jumps."""
    made = classify(
        ladder(truth, 0, sizes=8, locked=6 if truth is step else 1, items_too=False)[0], "sum", resamples=100
    )
    assert made.verdict == word, made.sentence
    assert ("but at a different place" in made.sentence) == (truth is step)


@pytest.mark.parametrize("weights", [(4.0, 0.1, 0.1, 0.1), (1.0, 0.3, 0.1), (3.0, 1.0, 0.2, 0.1, 0.1, 0.1, 0.1)])
def test_tokens_of_unequal_difficulty_do_not_forbid_the_verdict(weights):
    """p^L is rejected, since tokens are not equally hard, and yet makes the jump: the metric's alone."""
    table, items = ladder(power, 0, length=len(weights), weights=weights, items=1000)
    made = classify(table, "sum", items=items, resamples=100)
    assert made.null.p_value < 0.02 and made.verdict == METRIC_ONLY, made.sentence
    alone = table[table.metric != "log_likelihood"].assign(answer_tokens=len(weights))
    without = classify(alone, "sum", resamples=100)
    assert without.explained.source == "p^L" and without.verdict == METRIC_ONLY, without.sentence


def test_a_line_in_log_scale_is_no_power_law_and_no_jump():
    """The textbook case (2304.15004): token accuracy is a line, its 16th power jumps."""
    made = classify(ladder(gentle, 0, length=16, items=1000, items_too=False)[0], "sum", resamples=100)
    assert made.smooth_rise.verdict == "smooth" and made.rise.verdict == "sharp"
    assert made.verdict == METRIC_ONLY and made.explained.share == pytest.approx(1, abs=0.1), made.sentence


def test_without_a_predicted_curve_a_smooth_loss_decides_nothing():
    table, _ = ladder(power, 0, items_too=False)
    made = classify(table[table.metric != "token_accuracy"], "sum", resamples=100)
    assert made.verdict == UNDECIDED and made.explained is None
    assert "no prediction of exact_match from it (no token_accuracy" in made.reasons[0]
    with_items = ladder(power, 0)
    table, items = (part[part.metric != "token_accuracy"] for part in with_items)
    made = classify(table, "sum", items=items, resamples=100)  # a sampled answer still predicts
    assert made.verdict == METRIC_ONLY and made.explained.source == "the probability of sampling the correct answer"


def choices(seed, tasks, spread=0.02):
    return parity.evaluations(
        np.geomspace(4, 400, 8), 0.6, 3, 3000, tasks, items=400, spread=spread, residual=0.02, seed=seed
    )


@pytest.mark.parametrize("seed", range(2))
def test_each_parity_is_sharp_in_the_loss_and_their_mean_is_not(seed):
    """The quantization model (2303.13506): a step in every task, a power law in the mean."""
    results = analyse(choices(seed, [20, 50]), resamples=150)
    words = {made.task: made.verdict for made in results}
    assert words["parity_20"] == words["parity_50"] == LOSS_TOO
    assert words["parity_mean"] in (SMOOTH, UNDECIDED), results[0].sentence
    assert all(made.null is None and "chooses between given answers" in made.no_null for made in results)
    assert all(made.chance == 0.5 for made in results)


def false_alarms(count):
    found = []
    for seed in range(count):
        table, _ = ladder(power, 1000 + seed, sizes=6, items=200, spread=0.05, items_too=False)
        table = table[table.metric.isin(["exact_match", "log_likelihood_per_token"])]
        found.append(classify(table, "sum", resamples=60, seed=seed))
    return found


def test_power_laws_are_seldom_called_sharp_in_the_loss():
    found = false_alarms(16)
    assert sum(made.verdict == LOSS_TOO for made in found) <= 2
    assert np.mean([made.broken.p_value <= 0.05 for made in found]) <= 0.2


@pytest.mark.slow
def test_power_laws_are_seldom_called_sharp_in_the_loss_many():
    found = false_alarms(400)
    assert np.mean([made.verdict == LOSS_TOO for made in found]) <= 0.02
    assert np.mean([made.broken.p_value <= 0.05 for made in found]) <= 0.1


def test_what_cannot_be_decided_says_why():
    def judged(truth=power, keep=lambda table: table, **settings):
        table, _ = ladder(truth, 0, items_too=False, **settings)
        made = classify(keep(table), "sum", resamples=60)
        assert made.verdict == UNDECIDED and made.verdict in made.sentence
        (reason,) = made.reasons
        assert reason in made.sentence
        return reason

    few = classify(ladder(power, 0, sizes=1, seeds=1, items_too=False)[0], "sum")
    assert few.resamples == 0 and not few.sentence.count("p^L") and few.sentence.endswith(".")
    assert few.rows()[0]["note"] == "exact_match; C = 1e14 to 1e14, 1 point, 1 run"
    assert judged(sizes=4) == "4 points; at least 5 are needed"
    assert judged(sizes=1) == "1 point; at least 5 are needed"
    assert judged(seeds=1).startswith("one seed per point: the spread over seeds is unknown; add a run")
    assert "at its floor everywhere: at most 0" in judged(lambda t: 5 - t, length=8)
    assert "at its ceiling everywhere" in judged(lambda t: 1e-7 * (2 - t))
    assert "does not rise by more" in judged(lambda t: 0.3 + 0 * t)
    # two seeds of 60 items: noise hides a break
    reason = judged(lambda t: power(t), sizes=5, items=12, spread=0.8, seeds=2)
    assert "not clearly below or above" in reason or "power is only" in reason or "more than its uncertainty" in reason


def test_without_a_table_of_items_the_verdicts_are_the_same():
    for truth, word in ((power, METRIC_ONLY), (step, LOSS_TOO)):
        made = classify(ladder(truth, 0, items_too=False)[0], "sum", resamples=100)
        assert made.verdict == word and made.null.length == pytest.approx(4)
        assert any("no table of items" in warning for warning in made.warnings)


def test_order_of_rows_changes_nothing():
    table, items = ladder(power, 0, items=100)
    one = classify(table, "sum", items=items, resamples=50)
    other = classify(
        table.sample(frac=1, random_state=0), "sum", items=items.sample(frac=1, random_state=0), resamples=50
    )
    assert one.data_hash == other.data_hash and one.sentence == other.sentence


def test_units_of_scale_change_nothing():
    table, _ = ladder(power, 0, items_too=False)
    one, other = (classify(table.assign(flops_exact=table.flops_exact * k), "sum", resamples=50) for k in (1.0, 1e-15))
    assert other.rise.share == pytest.approx(one.rise.share, rel=1e-9) and one.verdict == other.verdict
    assert other.broken.p_value == one.broken.p_value


def test_seeds_that_jump_at_their_own_scale_raise_a_warning():
    """Each seed steps at a scale of its own: the mean is smooth, no run is, and the result says so."""
    rows = []
    for s, place in enumerate((12.2, 13.1, 14.2)):
        for c in np.arange(11.5, 15.1, 0.5):
            p = 0.99 if c > place else 0.3
            facts = dict(run_id=f"{c}-{s}", task="sum", n=500, chance=0.0, seed=s, C=10**c, answer_tokens=4)
            for metric, value in (("exact_match", p**4), ("token_accuracy", p)):
                rows.append({**facts, "metric": metric, "value": value, "standard_error": 0.01})
    told = "single runs may jump where the mean does not"
    assert told in " ".join(classify(pandas.DataFrame(rows), "sum", resamples=50).warnings)
    assert told not in " ".join(classify(ladder(power, 0, items_too=False)[0], "sum", resamples=50).warnings)


# -- Ladders


def two_ladders(by_size=6, by_tokens=6):
    """Six sizes at 1e7 tokens, and six token counts of one size, as a sweep of both leaves them."""
    table, _ = ladder(power, 0, sizes=by_size, items_too=False)
    sizes = table.assign(tokens=1e7, flops_exact=6e7 * table["n_total"])
    largest = float(table["n_total"].max())
    table, _ = ladder(power, 1, sizes=by_tokens, items_too=False)
    tokens = table.assign(n_total=largest, tokens=1e3 * table["n_total"] / table["n_total"].min())
    tokens = tokens.assign(flops_exact=6 * tokens["n_total"] * tokens["tokens"], run_id="t" + tokens["run_id"])
    return pandas.concat([sizes, tokens], ignore_index=True)


def test_ladders_over_sizes_and_over_tokens_are_not_pooled():
    """Sizes and token counts interleaved on one axis of C made one curve that no model follows."""
    table = two_ladders()
    with pytest.raises(
        InputError, match=r"expected one ladder .*, got runs at 6 values of N and 7 of D; .* --where D="
    ):
        classify(table, "sum", resamples=20)
    results = analyse(table, resamples=20)
    assert [made.ladder[:6] for made in results] == ["over D", "over N"]
    assert [len({row["N"] for row in made.points}) for made in results] == [1, 6]
    assert [len({row["D"] for row in made.points}) for made in results] == [7, 1]
    assert all(made.ladder in made.sentence for made in results)


def test_ladders_can_be_selected_and_split():
    table = two_ladders()
    (made,) = analyse(table, resamples=20, where={"D": "10M"})
    assert made.ladder == "" and {row["D"] for row in made.points} == {1e7} and len(made.points) == 6
    assert len(analyse(table, resamples=20, by="D")) == 7
    (one,) = analyse(table, resamples=20, x="loss")  # against the loss all runs are one curve (2403.15796)
    assert len(one.points) == 12
    with pytest.raises(InputError, match="by: expected a column of the table, got 'size'"):
        analyse(table, by="size")
    with pytest.raises(InputError, match="where: expected rows with N = 7, got none"):
        analyse(table, where={"N": "7"})


def test_a_grid_too_small_for_any_ladder_is_refused():
    with pytest.raises(InputError, match="got runs at 3 values of N and 4 of D"):
        analyse(two_ladders(3, 3), resamples=20)


def test_families_of_models_are_ladders_of_their_own():
    """Models of several families with sizes and tokens of their own are no single ladder."""
    parts = [ladder(power, k, sizes=5, items_too=False)[0] for k in range(2)]
    table = pandas.concat([p.assign(family=f, run_id=f + p["run_id"]) for f, p in zip("ab", parts, strict=True)])
    assert [made.family for made in analyse(table, resamples=20)] == ["a", "b"]
    renamed = table.rename(columns={"family": "model_family"})
    assert [made.family for made in analyse(renamed, resamples=20)] == ["a", "b"]


def test_the_chance_level_is_that_of_the_table():
    """The floor test uses the chance of the record, such as the accuracy of the best constant answer."""
    table, _ = ladder(lambda t: 0.6 - 0.01 * t, 0, length=4, spread=0.0, items_too=False)
    made = classify(table.assign(chance=np.where(table["metric"] == "exact_match", 0.2, np.nan)), "sum", resamples=50)
    assert made.chance == 0.2 and "at its floor everywhere" in made.reasons[0] and "chance 0.2" in made.reasons[0]


def test_a_verdict_is_a_table_and_one_sentence():
    made = classify(ladder(power, 0, items_too=False)[0], "sum", resamples=50)
    rows = {row["quantity"]: row for row in made.rows()}
    assert rows["rise explained"]["value"] == f"{made.explained.share:.0%}"
    assert rows["leave-one-out ratio"]["value"] == f"{made.broken.ratio:.2f}"
    assert rows["power of the test"]["value"] == f"{made.broken.power:.0%}"
    assert rows["rise, hard metric"]["low"] == f"{made.rise.share_low:.2f}"
    assert rows["spread over seeds"]["value"] == f"{made.seed_spread:.2f}"
    assert made.sentence.count(". ") == 0 and len(made.sentence) < 250


# -- Planned ladders


def test_a_ladder_without_power_is_refused_with_the_seeds_it_takes(tmp_path, capsys):
    """Ladders were trained first, and their verdicts were not decidable: 5 of 8 on experiments/addition."""
    pilot, items = ladder(power, 1, sizes=6, seeds=2, spread=0.8)
    asked = design.Design(points=8, seeds=2, items=300)
    (planned,) = found = design.plan(pilot, items, asked, simulations=50)
    assert planned.reason and planned.seeds > 2 and planned.items is None, "more items do not help against seeds"
    with pytest.raises(InputError, match=f"decide 1 of 1 tasks, got 0 .* plan {planned.seeds} seeds"):
        design.check(found, asked)
    design.check(found, asked, least=0)
    truth = [ladder(power, 7, sizes=8, seeds=seeds, spread=0.8) for seeds in (asked.seeds, 2 * planned.seeds)]
    few, many = (classify(table, "sum", items=items, resamples=50).verdict for table, items in truth)
    assert (few, many) == (UNDECIDED, METRIC_ONLY)
    path = tmp_path / "pilot.csv"
    pilot.to_csv(path)
    assert main(["emergence", str(path), "--plan", f"points=8,seeds={2 * planned.seeds},items=300"]) == 0
    assert "decidable" in capsys.readouterr().out
    assert main(["emergence", str(path), "--plan", "points=8,seeds=2"]) == 64
    with pytest.raises(InputError, match="noise over seeds is known, got one seed"):
        design.plan(pilot[pilot.seed == 0], None, asked)
