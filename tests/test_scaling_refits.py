"""Other laws, fit criteria and resampling methods: planted tables, SciPy oracles, profiles, cost of a wrong split."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas
import pytest
from scipy.special import ndtri
from test_scaling_fit import PLANTED, fit_of, grid, noisy  # noqa: F401 - noisy is a fixture

from lmjax.errors import InputError
from lmjax.scaling import engine, fitting, identify, resample, result
from lmjax.scaling.fitting import fit as fit_law
from lmjax.scaling.laws import CHINCHILLA, get_law, predict_loss
from lmjax.scaling.prediction import Prediction, agreed
from lmjax.scaling.table import read_table
from lmjax.scaling.text import headline, render_fit


@pytest.mark.parametrize(
    ("law", "columns"),
    [("kaplan_nd", "N D"), ("quantization", "N D"), ("overtrained", "C M"), ("data_constrained", "N D U")],
)
def test_other_laws_fit_tables_and_predict(law, columns):
    """A planted table of each; the prediction at twice the largest cell is within three times the noise."""
    params = {
        "kaplan_nd": dict(A=11.4, alpha=0.076, B=20.2, beta=0.095),
        "quantization": dict(E=1.2, A=60.0, B=60.0, alpha=0.4),
        "overtrained": dict(E=1.2, a=30.0, b=60.0, eta=0.12),
        "data_constrained": dict(E=1.3, A=90.0, alpha=0.33, B=400.0, beta=0.41, R_D=10.0, R_N=6.0),
    }[law]
    frame = grid(sizes=np.geomspace(1e5, 1e8, 6), tokens=np.geomspace(1e7, 1e9, 6))
    frame = frame.assign(C=6 * frame.N * frame.D, M=frame.D / frame.N, U=frame.D / np.tile([1.0, 4.0, 20.0], 12))
    x = {name: frame[name] for name in columns.split()}
    frame["loss"] = predict_loss(law, params, **x) * np.exp(0.002 * np.random.default_rng(0).standard_normal(36))
    fit = fit_law(frame, law, resamples=60)
    assert not fit.refused and fit.variables == tuple(columns.split()) and set(columns.split()) <= set(fit.points[0])
    beyond = {name: 2 * float(frame[name].max()) for name in columns.split()}
    loss, low, high = fit.predict(**beyond)
    assert low < loss < high and float(loss) == pytest.approx(float(predict_loss(law, params, **beyond)), rel=0.03)
    assert result.from_dict(json.loads(json.dumps(fit.to_dict()))) == fit
    assert set(fit.profiles) == set(fit.params) and all(row["influence"] >= 0 for row in fit.points)


def test_share_is_fitted_by_plain_residuals():
    frame = grid(sizes=np.geomspace(1e5, 1e8, 5))
    C = 6 * frame.N * frame.D
    share = predict_loss("sigmoid_c", dict(floor=0.1, ceiling=0.95, k=0.9, middle=math.log(3e15)), C=C)
    fit = fit_law(frame.assign(C=C, loss=share + 0.005 * np.cos(7 * np.arange(20))), "sigmoid_c", resamples=50)
    assert fit.criterion == "squared" and fit.target == "share"
    assert fit.params["k"] == pytest.approx(0.9, rel=0.1)
    _, low, high = fit.predict(C=np.array([1e11, 1e20]))
    assert (high - low < 0.2).all()


def test_three_objectives_agree_without_noise_and_differ_with_it():
    clean = [fit_of(grid(), criterion=name).params for name in ("huber_log", "squared_log", "squared")]
    for params in clean:
        assert params == pytest.approx(PLANTED, rel=1e-5)
    found = [fit_of(grid(noise=0.01), criterion=name) for name in ("huber_log", "squared_log", "squared")]
    assert len({round(fit.params["alpha"], 6) for fit in found}) == 3 and len({fit.hash for fit in found}) == 3
    with pytest.raises(InputError, match="did you mean 'squared'"):
        fit_of(grid(), criterion="square")


def test_squares_equal_scipy_curve_fit():
    from scipy.optimize import curve_fit

    frame = grid(noise=0.01)
    fit = fit_of(frame, criterion="squared")

    def curve(x, e, a, alpha, b, beta):
        return e + np.exp(a - alpha * np.log(x[0])) + np.exp(b - beta * np.log(x[1]))

    x, start = frame[["N", "D"]].to_numpy().T, (1.3, math.log(90), 0.33, math.log(400), 0.41)
    theirs, _ = curve_fit(curve, x, frame.loss, p0=start, xtol=1e-15, ftol=1e-15, gtol=1e-15)
    assert fit.criterion_value <= 0.5 * ((curve(x, *theirs) - frame.loss) ** 2).sum() * (1 + 1e-10)
    assert fit.params["alpha"] == pytest.approx(theirs[2], rel=1e-5)


def test_clusters_of_seeds_widen_the_intervals_of_cluster_methods_only():
    """Four seeds a cell that share their cell's fault: as if there were one, which resampled rows do not know."""
    cells = grid(sizes=np.geomspace(1e5, 1e7, 6), noise=0.004)
    frame = pandas.concat([cells] * 4, ignore_index=True)
    frame["loss"] *= np.exp(2e-4 * np.random.default_rng(2).standard_normal(len(frame)))
    width = {}
    for method in ("rows", "configurations", "wild_cluster"):
        low, high = fit_of(frame, resamples=200, bootstrap=method, profiles=False).intervals["alpha"]
        width[method] = high - low
    assert min(width["configurations"], width["wild_cluster"]) > 1.4 * width["rows"], width


def test_profile_interval_of_least_squares_equals_the_likelihood_ratio():
    """At its ends the profile lies t^2 s^2 / 2 above the minimum, up to interpolation (5 % of the rise)."""
    from scipy.special import stdtrit

    fit = fit_of(grid(noise=0.004), resamples=20, criterion="squared_log")
    rise = stdtrit(11, 0.975) ** 2 * 2 * fit.criterion_value / 11 / 2
    for name in ("E", "alpha", "beta"):
        low, high = fit.profiles[name]
        assert low < fit.params[name] < high
        for at in (low, high):
            ratio = replace(fit, delta=1e3).profile(name, [at])[0]
            assert (ratio - 1) * fit.criterion_value == pytest.approx(rise, rel=0.1)


def test_influence_of_rows_is_the_shift_over_half_widths(noisy):  # noqa: F811
    top = noisy.influence()
    influence = {row["run"]: row["influence"] for row in noisy.points}
    for row in top[:5]:
        assert influence[row["run"]] == pytest.approx(row["largest"], rel=1e-3)


def test_excess_is_zero_at_the_optimum_and_as_brute_force_beside_it(noisy):  # noqa: F811
    C = 1e18
    best = noisy.allocate(C)
    cost, low, high = noisy.excess(C, np.array([best["N"], 3 * best["N"]]))
    assert cost[0] == pytest.approx(0, abs=1e-12) and 0 < low[1] < cost[1] < high[1]
    beside = predict_loss(CHINCHILLA, noisy.params, 3 * best["N"], C / 18 / best["N"])
    assert cost[1] == pytest.approx(beside - best["loss"]) and best["a_exponent"] == noisy.derived["a"]


def test_two_equally_deep_minima_are_refused():
    """A planted rival: the same objective, three standard errors away and behind a barrier."""
    table = read_table(grid(noise=0.004))
    task = engine.problem_of_table(table.points, CHINCHILLA)
    best = task.optimum()
    apart = replace(best, rivals=((best.phi + [0.3, 0, 0, 0, 0], best.objective),))
    ((phi, far),) = fitting._rivals(task, apart, 0.95)
    assert "two minima fit equally well" in fitting._rival_words(task, apart, phi, far)
    assert fitting._rivals(task, replace(best, rivals=((best.phi + 1e-9, best.objective),)), 0.95) == []


def test_minima_that_disagree_on_parameters_predict_where_they_agree(monkeypatch, tmp_path):
    monkeypatch.setattr(identify, "_crossed", lambda law: [])
    rows = steps_table(0.01, 0)
    fit = fit_of(rows, "kaplan_ns", resamples=100, profiles=False)
    assert fit.status == "disagreeing_starts" and fit.refused and not fit.params and len(fit.minima) == 2
    for N in (1e8, 3e9):  # the powers can be swapped along S = N / 1000, inside and beyond the fitted runs
        found, each = fit.predict(N=N, S=N / 1e3), [one.predict(N=N, S=N / 1e3) for one in fit.minima]
        truth = float(predict_loss("kaplan_ns", dict(A=1e13**0.07, alpha=0.07, K=2e3**0.6, kappa=0.6), N=N, S=N / 1e3))
        assert found.low == min(p.low for p in each) < truth < found.high == max(p.high for p in each)
        assert found.value == pytest.approx(np.mean([p.value for p in each]))
    with pytest.raises(InputError, match="minima that predict the same"):
        fit.predict(N=1e9, S=1e8)
    for use in (lambda: fit.allocate(1e18), fit.influence, fit.resampled):
        with pytest.raises(InputError, match="refused"):
            use()
    again = result.load(fit.save(tmp_path / "fit.json"))
    assert again.rivals == fit.rivals and again.predict(N=1e8, S=1e5) == fit.predict(N=1e8, S=1e5)
    old = {**fit.to_dict(), "rivals": [], "resamples": 0}  # as written before fits kept their minima
    assert result.from_dict(old).refused and not result.from_dict(old).minima
    shares = [Prediction(0.10, 0.08, 0.12), Prediction(0.115, 0.1, 0.13)]  # points of a share, not percent of it
    assert tuple(agreed(shares, share=True)) == (pytest.approx(0.1075), 0.08, 0.13)
    with pytest.raises(InputError, match="0.1 and 0.13"):
        agreed([shares[0], Prediction(0.13)], share=True)
    bound = result.from_dict({**old, "status": "at_bound"})  # such fits were refused once
    assert bound.refused and bound.status == "at_bound"


def steps_table(scatter, seed):
    """14 sizes, steps that scatter around N / 1000, 0.5 % noise: the two powers of kaplan_ns can be swapped."""
    rng = np.random.default_rng(seed)
    N = np.geomspace(1e6, 1e9, 14)
    S = N / 1e3 * np.exp(scatter * rng.standard_normal(14))
    loss = predict_loss("kaplan_ns", dict(A=1e13**0.07, alpha=0.07, K=2e3**0.6, kappa=0.6), N=N, S=S)
    return pandas.DataFrame({"N": N, "S": S, "loss": loss * np.exp(0.005 * rng.standard_normal(14))})


@pytest.mark.parametrize("seed", range(4))
def test_swapped_powers_are_never_reported_with_narrow_intervals(seed, monkeypatch):
    """On a line the table is refused at sight; if it were not, by the rival, or the interval holds the truth."""
    fit = fit_of(steps_table(0.01, seed), "kaplan_ns")
    assert fit.status == "not_identified" and "S = 0.00" in fit.reasons[0] and "vary S at one N" in fit.reasons[0]
    monkeypatch.setattr(identify, "_crossed", lambda law: [])
    fit = fit_of(steps_table(0.01, seed), "kaplan_ns", resamples=100, profiles=False)
    assert (fit.status == "disagreeing_starts" and "equally well" in fit.reasons[0]) or (
        fit.intervals["alpha"][0] < 0.07 < fit.intervals["alpha"][1]
    )


def test_refits_start_from_the_other_minima_too():
    """A table whose rival lies above the threshold, but not far: some resampled tables prefer it (2 to 30 %)."""
    fit = fit_of(steps_table(0.2, 1), "kaplan_ns", resamples=200, profiles=False)
    assert fit.status == "converged" and fit.params["alpha"] == pytest.approx(0.07, abs=0.01)
    assert 0.02 < np.mean(fit.resampled().params["alpha"] > 0.2) < 0.3


def test_a_floor_that_may_be_zero_is_one_valley_and_no_rival():
    """3 % noise on 16 rows: E = 1.4 and E = 0 are both minima, with no barrier between; intervals say so."""
    fit = fit_of(grid(noise=0.03, seed=21), resamples=200)
    assert not fit.refused and fit.intervals["E"][0] <= 0.01 and any("do not show a floor" in w for w in fit.warnings)


def test_a_constant_factor_of_the_weights_changes_nothing():
    frame = grid(noise=0.004).assign(weight=np.linspace(0.5, 2, 16))
    fits = [fit_of(frame.assign(weight=frame.weight * by), resamples=40) for by in (1.0, 1 / 0.003**2)]
    one, other = fits
    for name in one.params:
        assert other.params[name] == pytest.approx(one.params[name], rel=1e-6)
        assert other.intervals[name] == pytest.approx(one.intervals[name], rel=1e-4)
    for name in one.profiles:
        assert other.profiles[name] == pytest.approx(one.profiles[name], rel=1e-4)
    assert other.noise_sd == pytest.approx(one.noise_sd, rel=1e-6)
    assert list(other.predict(1e8, 1e10)) == pytest.approx(list(one.predict(1e8, 1e10)), rel=1e-5)


@pytest.mark.parametrize(
    ("law", "objective", "noise"),
    [("chinchilla", "huber_log", 0.004), ("chinchilla", "squared_log", 0.02), ("quantization", "huber_log", 0.02)],
)
def test_profile_intervals_end_where_the_profile_crosses_the_threshold(law, objective, noise):
    """Within 5 % of the rise, by minimisations from many starts at each end; or the end is the bound."""
    frame = grid(noise=noise).assign(weight=np.linspace(0.5, 2, 16))
    task = engine.problem_of_table(read_table(frame).points, get_law(law), objective)
    best = task.optimum()
    errors = resample.estimate_noise(task, best.phi)
    rise = resample.threshold(errors, task.delta, 0.95, task.w_I)
    logs = task.logs(best.phi[None])
    for name, ends in resample.profiles(task, best, errors, 0.95).items():
        k = [key.removeprefix("ln ") for key in logs].index(name)
        for end in ends:
            held = task.phi({**best.params, name: end})[k]
            start = np.concatenate([best.phi[None], task.starts(task.delta)])
            start[:, k] = held
            found = task.minimise(start, task.y_I, task.w_I, held=(k,)).objective.min()
            at_bound = held in (task.low[k], task.high[k])
            assert at_bound or (found - best.objective) / rise == pytest.approx(1, abs=0.05), name


def test_threshold_with_weights_equals_its_expectation():
    """Normal errors of sd 0.01 / sqrt(w): the sums of the docstring by a million draws (2 %: their scatter)."""
    rng, delta, w = np.random.default_rng(0), 0.004, np.array([0.25, 1.0, 1.75])
    pool = 0.01 * ndtri((np.arange(4000) + 0.5) / 4000)
    rise = resample.threshold(resample.Noise(pool, 0.01, 0.0, 10**6), delta, 0.95, w)
    e = 0.01 * rng.standard_normal((10**6, 3)) / np.sqrt(w)
    score = (w**2 * np.minimum(np.abs(e), delta) ** 2).mean(0).sum()
    assert rise == pytest.approx(1.96**2 * score / (2 * (w * (np.abs(e) < delta)).mean(0).sum()), rel=0.02)


def test_statuses_and_their_reasons():
    assert fit_of(grid().head(4)).status == "too_few_points"
    N = np.geomspace(1e5, 1e8, 12)
    line = pandas.DataFrame({"N": N, "D": 20 * N, "loss": predict_loss(CHINCHILLA, PLANTED, N, 20 * N)})
    for law in ("chinchilla", "kaplan_nd", "joint_power"):
        fit = fit_of(line, law)
        assert fit.status == "not_identified" and "D = 20 N" in fit.reasons[0]
    with pytest.raises(InputError, match="expected columns 'U'"):
        fit_of(grid(), "data_constrained")
    assert "1 distinct value M" in fit_of(line, "overtrained").reasons[0]
    bent = line.assign(D=20 * N * (N / 1e6) ** 0.1)
    assert "M ~ C^0.05" in fit_of(bent, "overtrained").reasons[0]
    stacks = line.drop(columns="D").assign(N_e=N / 3, N_d=2 * N / 3)
    assert "N_d = 2 N_e" in fit_of(stacks, "encoder_decoder").reasons[0]


def test_noise_of_plain_residuals_is_in_the_unit_of_the_loss():
    """The same wobble of 0.005 in losses of 3 to 5: 0.005 where squares of the loss are summed, less in ln loss."""
    frame = grid()
    frame["loss"] += 0.005 * np.random.default_rng(3).standard_normal(16)
    plain, logs = (fit_of(frame, criterion=name, resamples=200) for name in ("squared", "squared_log"))
    assert plain.plain and plain.noise_unit == "loss" and not logs.plain and logs.noise_unit == "ln loss"
    assert logs.noise_sd * frame.loss.mean() == pytest.approx(plain.noise_sd, rel=0.3)
    for fit in (plain, logs):  # t of 11 rows: a new run's half width is 2.2 to 3 sd near the centre of the table
        loss, low, high = fit.predict(8e5, 8e7)
        sd = fit.noise_sd * (1 if fit.plain else loss)
        assert 2.0 < (high - low) / 2 / sd < 3.2
        assert fit.points[0]["residual"] == pytest.approx(
            frame.loss[0] - fit.points[0]["predicted"]
            if fit.plain
            else math.log(frame.loss[0] / fit.points[0]["predicted"])
        )
    assert "in the unit of the loss" in render_text(plain) and "in the unit of the loss" not in render_text(logs)


def render_text(fit):
    from rich.console import Console

    console = Console(width=160)
    with console.capture() as capture:
        console.print(render_fit(fit))
    return capture.get()


def test_a_law_of_compute_knows_its_count_of_compute():
    """Exact FLOP are not 6 N D: N and D stand for C only where the fit counts so."""
    frame = grid(noise=0.004).assign(C=lambda t: 9 * t.N * t.D)
    exact, six = (fit_of(frame, "power_c", c=c, resamples=30, profiles=False) for c in ("exact", "6nd"))
    assert six.predict(1e6, 1e8).value == six.predict(C=6e14).value
    with pytest.raises(InputError, match="give C = FLOP"):
        exact.predict(1e6, 1e8)
    assert exact.predict(C=6e14).value > 0


def test_a_law_of_compute_on_a_grid_of_cells_is_warned_of():
    words = "along one path"
    assert any(words in w for law in ("power_c", "kaplan_c") for w in fit_of(grid(noise=0.004), law).warnings)
    N = np.geomspace(1e5, 1e8, 12)
    path = pandas.DataFrame({"N": N, "D": 20 * N**1.1})
    path["loss"] = predict_loss(CHINCHILLA, PLANTED, path.N, path.D) * np.exp(0.004 * np.cos(9 * np.arange(12)))
    assert not any(words in w for w in fit_of(path, "power_c").warnings)


def test_a_diverged_row_is_named_and_sound_rows_are_not():
    frame = grid(sizes=np.geomspace(1e5, 1e8, 6), noise=0.003).assign(run=lambda t: [f"r{i}" for i in range(len(t))])
    assert not any("robust" in w for w in fit_of(frame).warnings)
    frame.loc[11, "loss"] *= 2.11
    for objective in ("huber_log", "squared_log"):
        found = [w for w in fit_of(frame, criterion=objective).warnings if "robust" in w]
        assert len(found) >= 1 and found[0].startswith("r11 lies ") and "diverge" in found[0]


def test_widths_that_differ_are_warned_of():
    from lmjax.scaling.fitting import widths_differ

    (words,) = widths_differ({"E": (1.0, 4.0), "alpha": (0.1, 0.2)}, {"E": (1.5, 2.5), "alpha": (0.12, 0.2)})
    assert words.startswith("E: the bootstrap interval is 3.0x as wide as the profile one")


def test_a_split_that_nothing_determines_says_so():
    """A narrow grid with 3 % noise: N* at the largest budget spans decades."""
    frame = grid(sizes=np.geomspace(1e5, 3e5, 4), tokens=np.geomspace(1e7, 3e7, 4), noise=0.03, seed=1)
    fit = fit_of(frame, resamples=200, profiles=False)
    assert not fit.refused and not fit.allocate(1e20)["determined"]
    sound = fit_of(grid(noise=0.004), resamples=100, profiles=False)
    assert sound.allocate(1e16)["determined"] and not any("determined" in w for w in sound.warnings)


def test_shares_stay_within_zero_and_one_and_errors_are_in_points():
    C = np.geomspace(1e14, 1e19, 14)
    share = predict_loss("sigmoid_c", dict(floor=0.0, ceiling=1.0, k=1.2, middle=math.log(1e17)), C=C)
    share = np.clip(share + 0.02 * np.cos(7 * np.arange(14)), 0, 1)
    frame = pandas.DataFrame({"C": C, "loss": share, "run": [f"r{i}" for i in range(14)]})
    frame.loc[0, "loss"] = 0.0
    fit = fit_of(frame, "sigmoid_c", resamples=100, profiles=False, held_out=["r0", "r13"])
    assert fit.held_out[0]["loss"] == 0.0 and "share points" in headline(fit) and "nan" not in headline(fit)
    _, low, high = fit.predict(C=np.geomspace(1e10, 1e24, 20))
    assert low.min() >= 0 and high.max() <= 1
    falling = fit_of(frame.assign(loss=1 - share), "sigmoid_c")
    assert falling.refused and falling.status == "not_identified" and "falls with C" in falling.reasons[0]


def test_annealing_takes_rows_from_before_the_decay():
    s1 = np.geomspace(10, 1000, 20)
    s2 = np.maximum(0.0, np.linspace(-5, 5, 20))
    loss = predict_loss("annealing", dict(L0=2.0, A=3.0, alpha=0.4, C=0.02), S1=s1, S2=s2)
    fit = fit_of(pandas.DataFrame({"S1": s1, "S2": s2, "loss": loss}), "annealing", resamples=20, profiles=False)
    assert fit.params == pytest.approx(dict(L0=2.0, A=3.0, alpha=0.4, C=0.02), rel=1e-5)
    assert fit.predict(S1=100.0, S2=0.0).value == pytest.approx(2 + 3 * 100**-0.4)
    with pytest.raises(InputError, match="positive numbers in S1"):
        fit.predict(S1=0.0, S2=0.0)


def test_laws_are_found_again_by_name():
    from lmjax.scaling.laws import LAWS, broken

    mine = replace(CHINCHILLA, name="mine", formula="mine")
    with pytest.raises(InputError, match=r"LAWS\['mine'\] = law"):
        fit_of(grid(), mine)
    LAWS["mine"] = mine
    try:
        assert fit_of(grid(), mine, resamples=10, profiles=False).predict(1e6, 1e8).value > 0
    finally:
        del LAWS["mine"]
    for variable in ("N_e", "S1", "N", "tokens"):
        assert get_law(broken(1, variable).name).variables == (variable,)


def test_predictions_refuse_what_the_law_has_not(noisy):  # noqa: F811
    for cell in (dict(N=0.0, D=1e8), dict(N=-1e6, D=1e8), dict(N=math.nan, D=1e8)):
        with pytest.raises(InputError, match="positive numbers in N"):
            noisy.predict(**cell)
    with pytest.raises(InputError, match="has no U"):
        noisy.predict(1e6, 1e8, U=1e8)


def test_infinities_survive_the_file(noisy, tmp_path):  # noqa: F811
    fit = replace(noisy, condition=math.inf, profiles={"A": (-math.inf, math.inf)})
    text = json.dumps(fit.to_dict(), allow_nan=False)
    assert result.from_dict(json.loads(text)) == fit and result.load(fit.save(tmp_path / "fit.json")) == fit


def test_losses_in_tiny_units_are_fitted_by_squares():
    one, tiny = (
        fit_of(grid(noise=0.003).assign(loss=lambda t, u=u: t.loss * u), criterion="squared") for u in (1, 1e-9)
    )
    assert not tiny.refused and tiny.params["alpha"] == pytest.approx(one.params["alpha"], rel=1e-4)
    assert tiny.params["E"] == pytest.approx(1e-9 * one.params["E"], rel=1e-4)


def test_hashes_tell_rows_apart():
    frame = steps_table(0.5, 0)
    swapped = frame.assign(S=frame.S.to_numpy()[[1, 0, *range(2, 14)]])
    one, other = (fit_of(t, "kaplan_ns") for t in (frame, swapped))
    assert one.data_hash != other.data_hash and one.hash != other.hash
    assert fit_of(frame.iloc[::-1], "kaplan_ns").data_hash == one.data_hash
