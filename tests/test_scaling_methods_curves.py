"""Curves and metrics: annealing, collapse, two-step prediction, quantization exponents, figures; planted truth."""

import io
import json

import numpy as np
import pandas
import pytest

from lmjax.errors import InputError
from lmjax.scaling.figures import methods as figures
from lmjax.scaling.laws import CHINCHILLA, predict_loss
from lmjax.scaling.methods.annealing import Curve, areas, fit_annealing
from lmjax.scaling.methods.collapse import collapse
from lmjax.scaling.methods.critical_batch import critical_batch
from lmjax.scaling.methods.isoflop import isoflop
from lmjax.scaling.methods.leastsq import fit_additive, fit_sigmoid, level_of
from lmjax.scaling.methods.outcome import Outcome
from lmjax.scaling.methods.quantization import consistency, exponents
from lmjax.scaling.methods.tuning import tuning_law
from lmjax.scaling.methods.two_step import two_step
from tests.test_scaling_methods import HOFFMANN, curve_rows, isoflop_rows, refused, tuning_rows

STEPS = 3000


def test_a_result_is_refused_exactly_when_it_has_reasons():
    with pytest.raises(ValueError, match="converged"):
        Outcome(status="converged", reasons=("no",))
    with pytest.raises(ValueError, match="at_bound"):
        Outcome(status="at_bound")
    result = isoflop(isoflop_rows(noise=0.002), noise=0.002, resamples=40)
    record = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (
        record["a"] == result.a and record["optima"][0]["N"] == result.optima[0].N and record["status"] == "converged"
    )


def test_additive_refits_are_least_squares():
    from scipy.optimize import least_squares

    rng = np.random.default_rng(0)
    x = np.log(np.geomspace(1e17, 1e21, 12))
    y = np.log(1.5 + 300 * np.exp(-0.15 * x)) + 0.005 * rng.standard_normal(12)
    found = fit_additive({"C": np.exp(x)}, np.exp(y))

    def rest(p):
        return np.log(np.exp(p[0]) + np.exp(p[1] - p[2] * x)) - y

    best = least_squares(rest, (np.log(1.5), np.log(300), 0.15), x_scale="jac", xtol=1e-15, ftol=1e-15, gtol=1e-15)
    ours = found.params
    assert ours["alpha"] == pytest.approx(best.x[2], rel=1e-4)
    assert found.sd**2 * found.df == pytest.approx(2 * best.cost, rel=1e-9)
    again = found.refit(np.stack([y, y + 0.1]))
    assert {name: v[0] for name, v in again.items()} == pytest.approx(ours, rel=1e-6)
    assert again["E"][1] == pytest.approx(ours["E"] * np.exp(0.1), rel=1e-5)


# ---- annealing -----------------------------------------------------------------------------------------------------


def schedules():
    warm = np.minimum(np.arange(1, STEPS + 1) / 100, 1)
    cosine = 0.55 + 0.45 * np.cos(np.pi * np.arange(STEPS) / STEPS)
    cooldown = 1 - np.sqrt(np.clip((np.arange(STEPS) - 0.8 * STEPS) / (0.2 * STEPS), 0, 1))
    return {"cosine": 1e-3 * warm * cosine, "wsd": 1e-3 * warm * cooldown, "constant": 1e-3 * warm}


def planted(lr):
    s1, s2 = areas(lr, 0.999, 100)
    return 2.5 + 0.6 * s1**-0.4 - 0.5 * s2


def curve(name, noise=0.0, seed=0):
    lr, at = schedules()[name], np.arange(150, STEPS + 1, 25)
    rng = np.random.default_rng(seed)
    return Curve(name, lr, at, planted(lr)[at - 1] * np.exp(noise * rng.standard_normal(len(at))))


def test_areas_are_the_double_sum_of_the_paper():
    lr, decay = np.random.default_rng(0).uniform(0, 1, 40), 0.9
    s1, s2 = areas(lr, decay)
    falls = np.concatenate([[0.0], lr[:-1] - lr[1:]])
    momentum = [sum(falls[k] * decay ** (i - k) for k in range(i + 1)) for i in range(40)]
    assert s1 == pytest.approx(np.cumsum(lr)) and s2 == pytest.approx(np.cumsum(momentum))
    warm = areas(schedules()["constant"], 0.999, 100)[1]
    assert np.all(warm == 0) and areas(schedules()["constant"], 0.999, 0)[1][-1] < 0


def test_a_cosine_curve_predicts_that_of_wsd():
    law = fit_annealing([curve("cosine")], warmup_steps=100, resamples=0)
    for name, value in dict(L0=2.5, A=0.6, alpha=0.4, C=0.5).items():
        assert law.params[name] == pytest.approx(value, rel=1e-6)
    wsd = schedules()["wsd"]
    at = np.arange(200, STEPS + 1, 100)
    assert law.predict(wsd, at).value == pytest.approx(planted(wsd)[at - 1], rel=1e-8)
    noisy = [fit_annealing([curve("cosine", 0.002, s)], warmup_steps=100, resamples=60, seed=s) for s in range(20)]
    ends = [law.predict(wsd, [STEPS]) for law in noisy]
    truth = planted(wsd)[-1]
    assert max(abs(loss[0] / truth - 1) for loss, _, _ in ends) < 0.003
    # 20 curves: 0.95 - 3 standard errors
    assert np.mean([low[0] <= truth <= high[0] for _, low, high in ends]) >= 0.8


def test_schedules_that_say_nothing_are_refused():
    assert refused(fit_annealing([curve("constant")], warmup_steps=100), "not_identified", "no learning rate falls")
    lr = schedules()["cosine"]
    assert refused(fit_annealing([Curve("few", lr, [500, 900], [3.0, 2.9])]), "too_few_points", "2 points")
    rising = Curve("rising", lr, np.arange(200, 3000, 50), 3 + 1e-3 * areas(lr, 0.999, 100)[1][199:2999:50])
    assert fit_annealing([rising], warmup_steps=100).refused
    for bad in ([3000, 3001], [0, 1]):
        with pytest.raises(InputError, match="from 1 to 3000"):
            fit_annealing([Curve("off", lr, bad, [3.0, 2.9])])
    with pytest.raises(InputError, match="decay"):
        areas(lr, 1.0)


# ---- collapse ------------------------------------------------------------------------------------------------------


def collapse_rows(uneven=0.0, noise=0.003, seeds=3, ends=(1e15, 1e16, 1e17, 1e18), seed=0, L0=2.0):
    """Curves L0 + 90 C_end^-0.1 x^-(0.3 + uneven i), each times its own luck above L0."""
    rng, rows, x = np.random.default_rng(seed), [], np.linspace(0.01, 1, 100)
    for i, end in enumerate(ends):
        for s in range(seeds):
            loss = L0 + 90 * end**-0.1 * x ** -(0.3 + uneven * i) * np.exp(noise * rng.standard_normal())
            rows.append(pandas.DataFrame({"run": f"{end:g}-{s}", "size": end, "C": x * end, "loss": loss}))
    return pandas.concat(rows, ignore_index=True)


def test_luck_of_a_seed_cancels_in_a_collapse():
    result = collapse(collapse_rows(), L0=2.0)
    assert result.score < 1e-12 and result.supercollapse and result.super_share == 1
    assert result.noise_score == pytest.approx(0.003, rel=0.5)  # 12 runs
    assert all(c == pytest.approx(np.array(result.x) ** -0.3, rel=2e-3) for c in result.curves.values())
    estimated = collapse(collapse_rows(noise=0.0))
    assert estimated.L0 == pytest.approx(2.0, rel=1e-4) and "4 sizes" in estimated.L0_source


def test_deviation_is_that_of_the_planted_shapes():
    result = collapse(collapse_rows(uneven=0.02, seeds=1, noise=0.0), L0=2.0)
    shapes = np.array([np.array(result.x) ** -(0.3 + 0.02 * i) for i in range(4)])
    # 5e-3: interpolation between the points of the curves
    assert result.deviation == pytest.approx(shapes.std(0, ddof=1) / shapes.mean(0), rel=5e-3, abs=1e-5)
    assert result.supercollapse is None and any("one seed" in w for w in result.warnings)
    seeded = collapse(collapse_rows(uneven=0.02), L0=2.0)
    assert seeded.supercollapse is False
    assert seeded.score_interval[0] - 1e-12 <= seeded.score <= seeded.score_interval[1] + 1e-12


def test_a_wrong_irreducible_loss_undoes_the_collapse():
    rows = collapse_rows(noise=0.0)
    assert collapse(rows, L0=1.5).score > 100 * collapse(rows, L0=2.0).score
    with pytest.raises(InputError, match="below every loss"):
        collapse(rows, L0=4.5)


def test_curves_that_cannot_be_compared():
    rows = collapse_rows()
    assert refused(collapse(collapse_rows(ends=(1e15, 1e16)), L0=2.0), "too_few_points", "2 sizes")
    assert refused(collapse(collapse_rows(ends=(1e15, 1e16, 1e17))), "too_few_points", "pass L0")
    for change, words in (
        (rows.assign(schedule_complete=rows["run"] != "1e+15-0"), "1e\\+15-0 did not complete"),
        (rows[rows["C"] > 0.5 * rows["size"]], "starts at C / C_end"),
        (rows[(rows["run"] != "1e+16-1") | (rows["C"] < 0.8e16)], "end at the same C"),
        (rows.drop(columns="size"), "column 'N'"),
    ):
        with pytest.raises(InputError, match=words):
            collapse(change, L0=2.0)


# ---- two steps -----------------------------------------------------------------------------------------------------


def task_rows(seed=0, count=16, loss_noise=0.01, metric_noise=0.008):
    rng, C = np.random.default_rng(seed), np.geomspace(1e17, 1e21, count)
    loss = task_loss(C) * np.exp(loss_noise * rng.standard_normal(count))
    metric = task_metric(loss) + metric_noise * rng.standard_normal(count)
    return pandas.DataFrame({"C": C, "loss": loss, "metric": np.clip(metric, 0, 1)})


def task_loss(C):
    return 0.6 + 900 * C**-0.16


def task_metric(loss):
    return 0.25 + 0.7 / (1 + np.exp(5 * (loss - 1.4)))


@pytest.mark.parametrize("ceiling", [None, 0.95])
def test_two_steps_come_back(ceiling):
    chain = two_step(task_rows(loss_noise=0, metric_noise=0), floor=0.25, ceiling=ceiling, held_out=1e20, resamples=0)
    assert chain.loss_params["E"] == pytest.approx(0.6, rel=1e-5)
    for name, value in dict(ceiling=0.95, k=5, L_mid=1.4).items():
        assert chain.metric_params[name] == pytest.approx(value, rel=1e-5)
    assert len(chain.held_out) == 4 and chain.mean_held_out_error < 1e-6
    assert chain.predict(C=1e23).value == pytest.approx(task_metric(task_loss(1e23)), abs=1e-5)


def test_two_steps_in_params_and_tokens():
    N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e6, 1e9, 5), np.geomspace(1e8, 1e11, 5)))
    loss = predict_loss(CHINCHILLA, HOFFMANN, N, D)
    rows = dict(N=N, D=D, loss=loss, metric=0.25 + 0.7 / (1 + np.exp(3 * (loss - 3.5))))
    chain = two_step(rows, floor=0.25, held_out=1e20, resamples=0)
    assert chain.variables == ("N", "D") and chain.mean_held_out_error < 1e-5
    with pytest.raises(InputError, match="expected N and D"):
        chain.predict(C=1e20)


def test_intervals_through_both_steps_cover():
    curve_inside, run_inside = [], []
    for seed in range(80):
        chain = two_step(task_rows(seed), floor=0.25, ceiling=0.95, resamples=80, seed=seed)
        _, low, high = chain.predict(C=1e22)
        curve_inside.append(low <= task_metric(task_loss(1e22)) <= high)
        rng = np.random.default_rng(seed + 10**6)
        loss = task_loss(1e22) * np.exp(0.01 * rng.standard_normal())
        _, low, high = chain.predict(C=1e22, new_run=True)
        run_inside.append(low <= task_metric(loss) + 0.008 * rng.standard_normal() <= high)
    # ten times the largest fitted compute; 80 tables: 0.95 - 3 standard errors
    assert np.mean(curve_inside) >= 0.88 and np.mean(run_inside) >= 0.88


def checkpoint_rows(seed=0, luck=0.02, noise=0.004, runs=8):
    """Runs of growing C with 12 checkpoints each; the metric of a run is off the curve by its own luck."""
    rng, tables = np.random.default_rng(seed), []
    for i, end in enumerate(np.geomspace(1e17, 1e21, runs)):
        C = end * np.linspace(0.02, 1, 12)
        loss = task_loss(end) * (C / end) ** -0.1 * np.exp(0.002 * rng.standard_normal(12))  # higher inside a schedule
        metric = task_metric(loss) + luck * rng.standard_normal() + noise * rng.standard_normal(12)
        tables.append(pandas.DataFrame({"run": f"r{i}", "C": C, "loss": loss, "metric": np.clip(metric, 0, 1)}))
    return pandas.concat(tables, ignore_index=True)


def test_checkpoints_count_in_step_2_alone():
    """Without noise the sigmoid comes back from all checkpoints and the law of C from the ends of the runs."""
    rows = checkpoint_rows(luck=0, noise=0).sample(frac=1, random_state=0)  # in any order
    chain = two_step(rows, floor=0.25, held_out=5e20, resamples=0, smoothing=1)
    ends = rows[rows["C"] == rows.groupby("run")["C"].transform("max")]
    alone = two_step(ends.sort_values("C"), floor=0.25, held_out=5e20, resamples=0)
    assert chain.loss_params == alone.loss_params and len(chain.points) == 7 and len(chain.held_out) == 1
    assert chain.metric_params["k"] == pytest.approx(5, rel=1e-5) and chain.metric_params["L_mid"] == pytest.approx(1.4)
    assert len(chain.checkpoints) == 7 * 11  # the first lies before 10 % of each run
    one = rows[rows["run"] == "r3"].sort_values("C")[["loss", "metric"]].iloc[1:].rolling(5, min_periods=1).mean()
    smooth = [c for c in two_step(rows, floor=0.25, resamples=0).checkpoints if c["run"] == "r3"]
    np.testing.assert_allclose([(c["loss"], c["metric"]) for c in smooth], one)
    twice = pandas.concat([rows, rows[rows["run"] == "r3"].assign(metric=0.5)])
    with pytest.raises(InputError, match="growing compute in run r3"):
        two_step(twice, floor=0.25)


def test_interval_of_step_2_covers_where_the_checkpoints_of_a_run_err_together():
    """Independent errors of the 88 checkpoints would cover far less; 25 tables: 0.95 - 3 standard errors."""
    inside = []
    for seed in range(25):
        chain = two_step(checkpoint_rows(seed), floor=0.25, ceiling=0.95, resamples=40, seed=seed)
        _, low, high = chain.predict(loss=1.3)
        inside.append(low <= task_metric(1.3) <= high)
    assert np.mean(inside) >= 0.84


def test_sigmoid_refits_are_least_squares():
    from scipy.optimize import least_squares

    rng = np.random.default_rng(0)
    loss = np.linspace(0.9, 2.2, 14)
    metric = task_metric(loss) + 0.01 * rng.standard_normal((5, 14))
    fitted = fit_sigmoid(loss, metric[0], 0.25, None)
    ours = fitted.refit(metric)
    for i in range(5):

        def rest(p, i=i):
            return level_of(dict(floor=0.25, ceiling=p[0], k=p[1], L_mid=p[2]), loss) - metric[i]

        best = least_squares(rest, (0.95, 5.0, 1.4), xtol=1e-14, ftol=1e-14, gtol=1e-14)
        got = [ours[name][i] for name in ("ceiling", "k", "L_mid")]
        assert (rest(got) ** 2).sum() <= 2 * best.cost * (1 + 1e-8) and got == pytest.approx(best.x, rel=1e-4)


def test_metrics_that_say_nothing_are_refused():
    rows, rng = task_rows(), np.random.default_rng(0)
    guess = rows.assign(metric=0.25 + 0.01 * rng.standard_normal(16))
    assert refused(two_step(guess, floor=0.25), "not_identified", "above the floor")
    jump = rows.assign(metric=np.where(rows["loss"] < 1.5, 0.9, 0.25))
    assert refused(two_step(jump, floor=0.25), "not_identified", "jumps between two losses")
    few = two_step(rows.iloc[:4], floor=0.25)
    assert refused(few, "too_few_points", "4 rows") and few.resamples == 0
    assert refused(two_step(rows.assign(loss=2.0 + 0.0 * rows["C"]), floor=0.25), "not_identified", "step 1")
    for change, words in (
        (dict(source=rows.assign(metric=rows["metric"] * 100)), "share in \\[0, 1\\]"),
        (dict(source=rows, floor=0.999), "below the floor"),
        (dict(source=rows.rename(columns={"metric": "acc"})), "column 'metric'"),
    ):
        with pytest.raises(InputError, match=words):
            two_step(**change)


# ---- quantization --------------------------------------------------------------------------------------------------


def test_exponents_of_one_alpha_agree_and_others_do_not():
    truth = exponents(0.4)
    found = consistency({name: (value, 0.01) for name, value in truth.items()})
    assert found.alpha == pytest.approx(0.4, abs=1e-6) and found.chi2 < 1e-9 and found.consistent
    other = consistency({"N": (0.4, 0.01), "D": (0.4, 0.01), "S": (0.286, 0.01)})
    assert other.consistent is False and other.p < 1e-6 and other.pulls["D"] > 3
    inside = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        result = consistency({n: (v + 0.02 * rng.standard_normal(), 0.02) for n, v in truth.items()})
        inside.append((result.interval[0] <= 0.4 <= result.interval[1], result.consistent))
    assert np.all(np.abs(np.mean(inside, 0) - 0.95) < 0.033)  # 3 standard errors of 400
    assert refused(consistency({"N": (0.4, 0.01)}), "too_few_points", "one exponent")
    assert refused(consistency({"N": (-0.4, 0.01), "D": (-0.3, 0.01)}), "at_bound")
    with pytest.raises(InputError, match="expected N, S or D"):
        consistency({"C": (0.1, 0.01)})


# ---- figures -------------------------------------------------------------------------------------------------------


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=60)
    return buffer.getvalue()


def words(figure):
    return " ".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


def test_isoflop_figure_marks_every_optimum_and_prints_its_conventions():
    pytest.importorskip("matplotlib")
    for method in ("akima", "parabola", "surface"):
        result = isoflop(isoflop_rows(noise=0.002, sizes=9), method, noise=0.002, resamples=40)
        figure = figures.isoflop_figure(result)
        stars = [line for line in figure.axes[0].lines if line.get_marker() == "*" and len(line.get_xdata())]
        assert [line.get_xdata()[0] for line in stars] == [o.N for o in result.optima]
        assert "C = 6 N D FLOP" in words(figure) and f"Method {method}" in words(figure)
        assert png(figure)[:4] == b"\x89PNG"
    lost = isoflop(isoflop_rows(budgets=(1e17, 1e18), sizes=3), noise=0.01)
    assert "not fitted" in words(figures.isoflop_figure(lost))
    rows = isoflop_rows(sizes=9)
    part = rows[~((6 * rows["N"] * rows["D"] < 2e17) & (rows["N"] > rows["N"].iloc[5]))]
    result = isoflop(part, resamples=0)
    figure = figures.isoflop_figure(result)
    left_out = [o for o in result.optima if o.reason]
    named = [t.get_text() for t in figure.axes[0].texts]
    assert len(left_out) == 1 and len(named) == 4 and not any("17}" in name for name in named)
    assert all(len(axes.get_yticks()) >= 3 for axes in figure.axes)


def test_other_figures_say_what_they_show():
    from lmjax.scaling.methods.frontier import frontier

    pytest.importorskip("matplotlib")
    result = frontier(curve_rows(points=60), resamples=40)
    figure = figures.frontier_figure(result)
    assert any(np.array_equal(line.get_ydata(), result.loss) for line in figure.axes[0].lines)
    assert f"{result.a:.3f}" in words(figure) and png(figure)
    folded = collapse(collapse_rows(uneven=0.01))
    figure = figures.collapse_figure(folded)
    assert "no supercollapse" in words(figure) and png(figure)
    chain = two_step(task_rows(), floor=0.25, held_out=1e20, resamples=40)
    figure = figures.two_step_figure(chain)
    held = [line for line in figure.axes[2].lines if line.get_marker() == "D"]
    assert held[0].get_ydata().tolist() == [row["metric"] for row in chain.held_out]
    assert "held-out" in words(figure) and png(figure)
    tuned = tuning_law(tuning_rows(noise=0.001))
    figure = figures.tuning_figure(tuned)
    for ax, knob in zip(figure.axes, ("learning_rate", "batch"), strict=True):
        drawn = [line.get_ydata()[0] for line in ax.lines if line.get_marker() == "o"]
        assert drawn == [best.values[knob] for best in tuned.optima]
    assert "batch = 0.5" in words(figure) and png(figure)
    one_d = tuning_law(tuning_rows(batches=False).query("D == 1e9"))
    assert figures.tuning_figure(one_d).axes[0].get_xlabel() == "N, parameters"
    several = two_step(checkpoint_rows(), floor=0.25, resamples=0)
    drawn = [line for line in figures.two_step_figure(several).axes[1].lines if line.get_label() == "checkpoints"]
    assert drawn[0].get_ydata().tolist() == [row["metric"] for row in several.checkpoints]
    with pytest.raises(InputError, match="has no result"):
        figures.collapse_figure(collapse(collapse_rows(ends=(1e15, 1e16)), L0=2.0))


# ---- tables however bad --------------------------------------------------------------------------------------------


def spoiled(rows, rng):
    """One to three accidents: a constant column, another unit, an outlier, lost or doubled rows, noise, a mix-up."""
    rows = rows.reset_index(drop=True).copy()
    columns = [c for c in rows if rows[c].dtype.kind == "f"]
    for accident in rng.integers(0, 8, rng.integers(1, 4)):
        name, count = columns[rng.integers(len(columns))], len(rows)
        if accident == 0:
            rows[name] = rows[name].iloc[0]
        elif accident == 1:
            rows[name] = rows[name] * 10.0 ** rng.uniform(-12, 12)
        elif accident == 2:
            rows.loc[rng.integers(count), name] *= 10.0 ** rng.uniform(-5, 5)
        elif accident == 3:
            rows = rows.iloc[np.sort(rng.choice(count, rng.integers(1, count + 1), replace=False))]
            rows = rows.reset_index(drop=True)
        elif accident == 4:
            rows[name] = rows[name] * np.exp(rng.uniform(0, 1) * rng.standard_normal(count))
        elif accident == 5:
            rows = pandas.concat([rows, rows.iloc[: rng.integers(1, count + 1)]], ignore_index=True)
        elif accident == 6:
            rows[name] = rows[columns[rng.integers(len(columns))]].to_numpy()
        elif rng.random() < 0.3:
            rows.loc[rng.integers(count), name] = rng.choice([np.nan, -1, 0, np.inf])
    return rows


@pytest.mark.parametrize("what", ["akima", "surface", "frontier", "tuning", "batch", "collapse", "two_step"])
def test_no_table_gives_a_crash_or_a_number_without_a_status(what):
    from lmjax.scaling.methods.frontier import frontier

    B = np.geomspace(1e4, 1e7, 6)
    batches = dict(loss=np.repeat([3.0, 3.5, 4.0], 6), batch=np.tile(B, 3), steps=np.tile(1000 * (1 + 3e5 / B), 3))
    rows, method = {
        "akima": (isoflop_rows(noise=0.003, sizes=7), lambda t: isoflop(t, resamples=20)),
        "surface": (isoflop_rows(noise=0.003, sizes=7), lambda t: isoflop(t, "surface", resamples=20)),
        "frontier": (curve_rows(8, 20, 0.01), lambda t: frontier(t, resamples=0, budgets=50)),
        "tuning": (tuning_rows(noise=0.002), tuning_law),
        "batch": (pandas.DataFrame(batches), critical_batch),
        "collapse": (collapse_rows(seeds=2).iloc[::4], lambda t: collapse(t, resamples=20)),
        "two_step": (task_rows(), lambda t: two_step(t, floor=0.25, resamples=20)),
    }[what]
    rng, seen = np.random.default_rng(0), set()
    for _ in range(20 if what in ("akima", "surface", "two_step") else 40):  # each of these refits its tables
        try:
            result = method(spoiled(rows, rng))
        except InputError:
            seen.add("InputError")
            continue
        seen.add(result.status)
        json.dumps(result.to_dict(), allow_nan=False)
        numbers = [getattr(result, name, 0.0) for name in ("a", "k", "b", "m", "L0", "score")]
        assert result.refused or np.isfinite(numbers).all()
    assert len(seen) > 1  # some tables are beyond use, and none raised anything else
