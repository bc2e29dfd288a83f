"""Fits: planted surfaces are recovered, unidentifiable designs are refused, results round-trip."""

import doctest
import importlib
import json
import math
import pkgutil
import subprocess
import sys

import numpy as np
import pandas
import pytest

import lmjax.scaling
from lmjax import cli
from lmjax.errors import InputError
from lmjax.scaling import result
from lmjax.scaling.fitting import fit as fit_law
from lmjax.scaling.fitting import fit_groups
from lmjax.scaling.identify import identifiable
from lmjax.scaling.laws import CHINCHILLA, POWER_D, POWER_N, get_law, optimal_allocation, predict_loss
from lmjax.scaling.text import headline, render_fit

PLANTED = dict(E=1.3, A=90.0, alpha=0.33, B=400.0, beta=0.41)


def grid(sizes=(1e5, 4e5, 1.6e6, 6.4e6), tokens=(1e7, 4e7, 1.6e8, 6.4e8), noise=0.0, seed=0, params=PLANTED):
    """A frame N, D, loss of a Chinchilla surface with log-normal noise."""
    N, D = (x.ravel() for x in np.meshgrid(sizes, tokens, indexing="ij"))
    loss = predict_loss(CHINCHILLA, params, N, D)
    return pandas.DataFrame(
        {"N": N, "D": D, "loss": loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(N)))}
    )


def fit_of(frame, law="chinchilla", **options):
    return fit_law(frame, law, **{"resamples": 0, **options})


@pytest.fixture(scope="module")
def noisy():
    return fit_law(grid(noise=0.004), resamples=300)


def refused(fit, *words):
    assert fit.refused and fit.status in result.STATUSES[1:] and fit.params == {} and not fit.intervals
    assert all(word in "; ".join(fit.reasons) for word in words), fit.reasons
    return True


MODULES = sorted({m.name for m in pkgutil.walk_packages(lmjax.scaling.__path__, "lmjax.scaling.")})


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_scaling_imports_no_jax():
    code = f"import sys, {', '.join(MODULES)}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- recovery ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        PLANTED,
        dict(E=0.2, A=3e4, alpha=0.8, B=50.0, beta=0.2),
        dict(E=1.8172, A=482.01, alpha=0.3478, B=2085.43, beta=0.3658),
    ],
)
def test_planted_surface_comes_back(params):
    fit = fit_of(grid(params=params))
    for name, value in params.items():
        assert fit.params[name] == pytest.approx(value, rel=1e-6)
    assert fit.converged and fit.status == "converged"
    assert max(abs(row["residual"]) for row in fit.points) < 1e-9


@pytest.mark.parametrize(
    ("law", "params"), [(POWER_N, dict(E=1.1, A=120.0, alpha=0.35)), (POWER_D, dict(E=1.1, B=300.0, beta=0.4))]
)
def test_planted_power_law_comes_back(law, params):
    x = np.geomspace(1e5, 1e8, 6)
    other = np.full(6, 1e9)
    N, D = (x, other) if law is POWER_N else (other, x)
    fit = fit_of(pandas.DataFrame({"N": N, "D": D, "loss": predict_loss(law, params, N=N, D=D)}), law.name)
    assert fit.params == pytest.approx(params, rel=1e-6)


def test_power_law_takes_the_largest_level_and_lists_the_rest():
    frame = grid().assign(held_out=False)
    frame.loc[len(frame)] = [2.56e7, 2.56e9, 1.4, True]
    fit = fit_law(frame, "power_n", resamples=0)
    assert {row["D"] for row in fit.points} == {6.4e8}
    assert len(fit.excluded) == 13 and "held out" in fit.excluded[-1]["reason"]
    assert "fitted at D = 6.4e+08" in fit.notes[-1]
    floor = PLANTED["E"] + PLANTED["B"] * 6.4e8 ** -PLANTED["beta"]  # what D cannot buy is part of E at one D
    assert fit.params["E"] == pytest.approx(floor, rel=1e-6)
    assert fit.params["alpha"] == pytest.approx(PLANTED["alpha"], rel=1e-6)


def test_units_of_n_d_and_loss_only_rescale_the_coefficients():
    here = fit_of(grid(noise=0.005))
    frame = grid(noise=0.005)
    there = fit_of(pandas.DataFrame({"N": frame.N * 1e6, "D": frame.D / 1e3, "loss": frame.loss * 1.4427}))
    assert there.criterion_value == pytest.approx(here.criterion_value, rel=1e-9)
    p, q = here.params, there.params
    expected = dict(
        E=p["E"] * 1.4427,
        alpha=p["alpha"],
        beta=p["beta"],
        A=p["A"] * 1.4427 * 1e6 ** p["alpha"],
        B=p["B"] * 1.4427 * 1e-3 ** p["beta"],
    )
    assert q == pytest.approx(expected, rel=1e-6)


def test_order_of_rows_changes_nothing():
    frame = grid(noise=0.005)
    here, there = fit_of(frame), fit_of(frame.sample(frac=1, random_state=1))
    assert here.data_hash == there.data_hash
    assert there.params == pytest.approx(here.params, rel=1e-8)


def test_outlier_moves_the_fit_less_than_least_squares():
    frame = grid(noise=0.002)
    frame.loc[5, "loss"] *= 1.2
    robust, squares = fit_of(frame), fit_of(frame, delta=1e3)
    error = [abs(f.params["alpha"] - PLANTED["alpha"]) for f in (robust, squares)]
    assert error[0] < 0.02 < error[1]


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_too_few_points_are_refused():
    assert refused(fit_of(grid().sample(5, random_state=3)), "5 points for 5 parameters; expected at least 6")


def test_collinear_design_is_refused():
    N = np.geomspace(1e5, 1e8, 12)
    jitter = np.exp(0.05 * np.random.default_rng(0).standard_normal(12))
    for D, words in ((20 * N, "D = 20 N"), (20 * N * jitter, "one line"), (1e17 / 6 / N, "D ~ N^-1.00")):
        frame = pandas.DataFrame({"N": N, "D": D, "loss": predict_loss(CHINCHILLA, PLANTED, N, D)})
        assert refused(fit_of(frame), words)
        assert identifiable(N, D)[0].startswith("cannot be fitted")


def test_single_size_and_single_token_count_are_refused():
    assert refused(fit_of(grid(sizes=(1e6,), tokens=np.geomspace(1e7, 1e9, 8))), "1 distinct size N")
    assert refused(fit_of(grid(tokens=(1e8,), sizes=np.geomspace(1e5, 1e7, 8))), "1 distinct token count D")
    assert refused(fit_of(grid(sizes=(1e6, 1.001e6, 4e6), tokens=(1e7, 1e8, 1e9))), "2 distinct sizes N")


def test_exponent_at_its_bound_is_refused():
    frame = grid()
    frame["loss"] = 2.0 + 0.0 * frame.N + 1e3 * (frame.N / 1e5) ** -6.0 + 400 * frame.D**-0.4  # steeper than allowed
    assert refused(fit_of(frame), "alpha is at its bound 3")


def test_loss_that_does_not_fall_with_n_is_refused():
    frame = grid()
    frame["loss"] = 1.3 + 400 * frame.D**-0.41 + 0.02 * np.log(frame.N)
    assert fit_of(frame).refused


def test_nan_loss_is_an_error_or_an_excluded_row():
    frame = grid()
    frame.loc[3, "loss"] = np.nan
    with pytest.raises(InputError, match="row 4"):
        fit_law(frame)
    frame["status"] = "done"
    frame.loc[3, "status"] = "diverged"
    fit = fit_law(frame, resamples=0)
    assert [row["run"] for row in fit.excluded] == ["row 4"] and fit.excluded[0]["reason"] == "status diverged"
    assert fit.params == pytest.approx(PLANTED, rel=1e-6)


def test_refused_fit_is_not_used():
    fit = fit_of(grid().head(4))
    for use in (lambda: fit.predict(1e6, 1e8), lambda: fit.allocate(1e18), lambda: fit.influence()):
        with pytest.raises(InputError, match="refused: 4 points"):
            use()
    assert fit.audit()[0].severity == "refused"


def test_no_floor_is_a_warning():
    frame = grid()
    frame["loss"] = 30 * frame.N**-0.2 + 60 * frame.D**-0.25 - 0.3
    fit = fit_of(frame)
    assert fit.status == "at_bound" and not fit.refused and fit.params["E"] == 0 and "no floor" in fit.warnings[0]


@pytest.mark.parametrize("options", [{"delta": 0}, {"confidence": 1.0}, {"resamples": -1}])
def test_options_out_of_range(options):
    with pytest.raises(InputError, match="expected delta > 0"):
        fit_of(grid(), **options)


def test_unknown_names():
    with pytest.raises(InputError, match="did you mean 'chinchilla'"):
        fit_law(grid(), "chinchila")
    with pytest.raises(InputError, match="did you mean 'configurations'"):
        fit_of(grid(), bootstrap="configuration")


# ---- intervals, predictions ----------------------------------------------------------------------------------------


def test_intervals_contain_the_estimate_and_depend_on_the_seed_only(noisy):
    for name, (low, high) in noisy.intervals.items():
        assert low < {**noisy.params, **noisy.derived}[name] < high
    again = fit_law(grid(noise=0.004), resamples=300)
    assert again.to_dict() == noisy.to_dict()
    assert fit_law(grid(noise=0.004), resamples=300, seed=1).intervals != noisy.intervals


def test_intervals_of_both_methods_widen_with_the_noise():
    sizes, tokens = np.geomspace(1e5, 1e7, 5), np.geomspace(1e7, 1e9, 5)
    for method in ("residual", "configurations"):
        width = []
        for noise in (0.002, 0.008):
            fit = fit_of(grid(sizes, tokens, noise=noise), resamples=200, bootstrap=method)
            assert fit.bootstrap == method
            low, high = fit.intervals["alpha"]
            width.append(high - low)
        assert 2 < width[1] / width[0] < 8


def test_auto_takes_cells_from_20_configurations():
    few, many = grid(), grid(sizes=np.geomspace(1e5, 1e7, 5))
    assert fit_of(few).bootstrap == "residual" and fit_of(many).bootstrap == "configurations"
    assert (
        fit_of(pandas.concat([few, few], ignore_index=True)).bootstrap == "residual"
    )  # repeats are not configurations


def test_prediction_interval_holds_parameters_and_noise(noisy):
    N, D = np.array([3e5, 2.56e7]), np.array([3e7, 2.56e9])
    loss, low, high = noisy.predict(N, D, one_law=True)
    curve, curve_low, curve_high = noisy.predict(N, D, new_run=False)
    np.testing.assert_array_equal(loss, curve)
    assert (
        (low < curve_low).all() and (curve_low < loss).all() and (loss < curve_high).all() and (curve_high < high).all()
    )
    half = np.log(high / low) / 2
    assert half[1] > half[0] > 1.5 * noisy.noise_sd  # at least the noise of a run, more outside the grid
    one = noisy.predict(3e5, 3e7, one_law=True)
    assert [float(x) for x in one] == pytest.approx([loss[0], low[0], high[0]], rel=2e-2)
    assert isinstance(one.value, float)


def test_allocation_equals_brute_force(noisy):
    C = 1e18
    best = noisy.allocate(C)
    N = np.geomspace(1e4, 1e10, 2_000_001)
    loss = predict_loss(CHINCHILLA, noisy.params, N, C / 6 / N)
    assert best["N"] == pytest.approx(N[loss.argmin()], rel=1e-4)
    assert best["loss"] == pytest.approx(loss.min(), rel=1e-9)
    assert best["N"] * best["D"] * 6 == pytest.approx(C, rel=1e-12)
    for name in ("N", "D", "tokens_per_param", "loss"):
        assert best[f"{name}_low"] < best[name] < best[f"{name}_high"]
    assert best["extrapolation"] == pytest.approx(C / (6 * 6.4e6 * 6.4e8))
    many = noisy.allocate(np.array([1e17, C]))
    assert many["N_low"].shape == (2,) and many["N_low"][1] == pytest.approx(best["N_low"])
    assert np.log(many["N"][1] / many["N"][0]) / np.log(10) == pytest.approx(noisy.derived["a"], rel=1e-9)


def test_rounding_exponents_moves_the_allocation():
    """Pitfall: Hoffmann's printed values give D/N = 92 where the unrounded ones give 59."""
    exact = dict(E=1.69, A=406.4, alpha=0.3392, B=410.7, beta=0.2849)
    rounded = {**exact, "alpha": 0.34, "beta": 0.28}
    ratio = [float(optimal_allocation(p, 5.76e23)["tokens_per_param"]) for p in (exact, rounded)]
    assert ratio[1] > 1.3 * ratio[0]


def test_held_out_rows_are_compared_not_fitted():
    frame = grid(noise=0.003).assign(held_out=False)
    N, D = 2.56e7, 2.56e9
    frame.loc[len(frame)] = [N, D, float(predict_loss(CHINCHILLA, PLANTED, N, D)), True]
    frame.loc[len(frame)] = [N, D, 0.8 * float(predict_loss(CHINCHILLA, PLANTED, N, D)), True]
    fit = fit_law(frame, resamples=300)
    assert len(fit.points) == 16 and len(fit.held_out) == 2
    good, bad = fit.held_out
    loss, low, high = (float(x) for x in fit.predict(N, D))
    assert good["predicted"] == pytest.approx(loss) and good["low"] == pytest.approx(low, rel=2e-2)
    assert good["inside"] and not bad["inside"]
    assert bad["relative_error"] == pytest.approx(loss / bad["loss"] - 1) and bad["relative_error"] > 0.2
    assert good["extrapolation"] == pytest.approx(16.0)
    without = fit_law(frame[~frame.held_out.astype(bool)], resamples=300)
    assert without.params == fit.params and without.intervals == fit.intervals
    by_compute = fit_law(frame.drop(columns="held_out"), held_out=6 * 2e7 * 2e9, resamples=300)
    assert [row["run"] for row in by_compute.held_out] == ["row 17", "row 18"]
    by_label = fit_law(frame.drop(columns="held_out"), held_out=["row 17", "row 18"], resamples=300)
    assert by_label.held_out == by_compute.held_out == fit.held_out
    with pytest.raises(InputError, match="no row 'row 99'"):
        fit_law(frame, held_out=["row 99"])


def test_held_out_at_another_d_is_no_test_of_a_law_in_n():
    frame = grid(tokens=(1e8,))
    fit = fit_of(frame, "power_n", resamples=50)
    with pytest.raises(InputError, match="holds at D = 1e"):
        fit.check_held_out(pandas.DataFrame([{"run": "x", "N": 1e7, "D": 4e8, "C": 1e16, "loss": 2.0}]))


# ---- the record ----------------------------------------------------------------------------------------------------


def test_fit_survives_json(noisy, tmp_path):
    path = noisy.save(tmp_path / "fit.json")
    again = result.load(path)
    assert again == noisy
    assert result.from_dict(json.loads(json.dumps(noisy.to_dict()))) == noisy
    assert again.predict(1e7, 1e9) == noisy.predict(1e7, 1e9)  # recomputed from the seed
    refusal = fit_of(grid().head(3)).save(tmp_path / "refused.json")
    assert result.load(refusal).refused and math.isnan(result.load(refusal).criterion_value)


def test_a_saved_fit_holds_no_resamples_and_gives_the_same_intervals(noisy, tmp_path):
    """The file stores intervals and seed; predictions and splits of a loaded fit recompute the resamples."""
    path = noisy.save(tmp_path / "fit.json")
    assert path.stat().st_size < 20_000
    again = result.load(path)
    assert again._resampled is None and again.intervals == noisy.intervals
    for fresh, loaded in zip(noisy.predict([1e7, 2e7], 1e9), again.predict([1e7, 2e7], 1e9), strict=True):
        np.testing.assert_array_equal(fresh, loaded)
    here, there = noisy.allocate(1e19), again.allocate(1e19)
    assert all(here[name] == there[name] for name in here)


FORMER_NAMES = {
    3: {"level": "confidence"},
    2: {
        **{"level": "confidence", "method": "bootstrap", "refits": "resamples", "refits_failed": "resamples_failed"},
        **{"objective_name": "criterion", "objective": "criterion_value"},
    },
}


@pytest.mark.parametrize("version", FORMER_NAMES)
def test_fits_of_former_formats_are_read(noisy, version):
    record = json.loads(json.dumps(noisy.to_dict())) | {"format": version}
    for old, new in FORMER_NAMES[version].items():
        record[old] = record.pop(new)
    if version == 2:
        record |= {"draws": {"E": [1.0]}, "noise_scale": [1.0], "noise_pool": [0.1], "noise_kernel": 0.0}
        del record["rivals"]
    assert result.from_dict(record) == noisy


def test_a_fit_describes_itself_briefly(noisy):
    assert len(repr(noisy)) < 150 and "converged, 16 runs" in repr(noisy)
    assert "<td>alpha</td>" in noisy._repr_html_() and "refused" not in noisy._repr_html_()
    assert "95% interval" in noisy.summary() and noisy.hash in noisy.summary().replace("\n", "")
    assert "expected" in repr(fit_of(grid().head(3)))


@pytest.mark.parametrize("flag", ["--confidence", "--level"])
def test_the_command_takes_the_confidence_by_both_names(flag, tmp_path, capsys):
    grid(noise=0.004).to_csv(tmp_path / "runs.csv", index=False)
    assert cli.main(["fit", str(tmp_path / "runs.csv"), flag, "0.9", "--resamples", "20"]) == 0
    assert "90% interval" in capsys.readouterr().out


def test_a_mistyped_option_is_a_type_error():
    for option in ({"resample": 10}, {"objective": "squared"}, {"colums": {}}):
        with pytest.raises(TypeError, match=next(iter(option))):
            fit_law(grid(), **option)
    with pytest.raises(InputError, match="resamples >= 0, got 0, 0.95, 'auto'|expected a bootstrap"):
        fit_law(grid(), bootstrap=0)


def test_one_law_per_group():
    """Two optimizers of different laws: one fit each, equal to the fits of their rows alone."""
    adam, lion = grid(noise=0.002), grid(noise=0.002, seed=5)
    lion["loss"] += 0.5
    both = pandas.concat(
        [adam.assign(**{"config.optimizer.name": "adamw"}), lion.assign(**{"config.optimizer.name": "lion"})]
    )
    with pytest.raises(InputError, match="expected one optimizer.name in a fit, got adamw, lion"):
        fit_of(both)
    found = fit_groups(both, by="optimizer.name", resamples=0)
    assert list(found) == ["adamw", "lion"]
    for frame, fit in ((adam, found["adamw"]), (lion, found["lion"])):
        assert fit.params == fit_of(frame).params and "16 other rows are left out" in " ".join(fit.notes)


def test_bad_fit_files(tmp_path):
    with pytest.raises(InputError, match="run lmjax fit first"):
        result.load(tmp_path / "none.json")
    with pytest.raises(InputError, match="run lmjax fit first"):
        result.load(tmp_path)
    (tmp_path / "cut.json").write_text('{"law": "chin')
    with pytest.raises(InputError, match="run lmjax fit again .*cut.json is corrupt"):
        result.load(tmp_path / "cut.json")
    for text in ("[]", '{"law": "chinchilla"}', '{"law": 1, "formula": 1, "status": 1, "format": 99}'):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(InputError, match="fit again"):
            result.load(tmp_path / "other.json")


@pytest.mark.parametrize("law", ["chinchilla", "kaplan_nd", "quantization"])
def test_headline_and_rendering_of_any_law(law):
    from rich.console import Console

    fit = fit_law(grid(noise=0.002), law, resamples=30)
    assert all(f"{name} = " in headline(fit) for name in fit.params if len(name) > 1)
    assert ("E = " in headline(fit)) == ("E" in fit.params)
    console = Console(width=110, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_fit(fit))
    console.file.close()
    assert fit.hash in console.export_text()


def test_hash_follows_law_objective_conventions_and_data():
    frame = grid(noise=0.002)
    fits = [fit_of(frame), fit_of(frame, "quantization"), fit_of(frame, criterion="squared_log"), fit_of(grid())]
    assert len({fit.hash for fit in fits}) == 4
    assert fit_of(frame.sample(frac=1, random_state=3)).hash == fits[0].hash


# ---- diagnosis -----------------------------------------------------------------------------------------------------


def test_influence_equals_fits_without_the_row():
    frame = grid(noise=0.004)
    fit = fit_of(frame, resamples=100)
    rows = {row["run"]: row for row in fit.influence()}
    for i in (0, 7, 15):
        without = fit_of(frame.drop(index=i))
        for name in ("E", "alpha", "beta"):
            moved = without.params[name] - fit.params[name]
            assert rows[f"row {i + 1}"]["shift"][name] == pytest.approx(moved, abs=1e-6)
    largest = [row["largest"] for row in fit.influence()]
    assert largest == sorted(largest, reverse=True)


def test_profile_has_its_minimum_at_the_fit(noisy):
    for name in ("E", "alpha", "beta"):
        low, high = noisy.intervals[name]
        ratio = noisy.profile(name, [low, noisy.params[name], high])
        assert ratio[1] == pytest.approx(1, abs=1e-9) and min(ratio[0], ratio[2]) > 1.01
    with pytest.raises(InputError, match="did you mean 'beta'"):
        noisy.profile("beta2", [0.1])


def test_audit_names_what_is_wrong():
    frame = grid(noise=0.002)
    frame.loc[15, "loss"] *= 1.1
    words = " ".join(f.text for f in fit_law(frame, resamples=100).audit() if f.severity == "warning")
    assert "row 16" in words and "no run was held out" in words


def test_identifiable_is_quiet_on_a_good_grid_and_precise_on_a_bad_one():
    frame = grid()
    assert identifiable(frame.N, frame.D) == []
    narrow = grid(sizes=(1e6, 1.2e6, 1.4e6, 1.6e6))
    assert "N spans 0.20 decades" in identifiable(narrow.N, narrow.D)[0]
    few = grid(sizes=(1e5, 1e6, 1e7), tokens=(1e8, 1e9, 1e10)).head(8)
    assert any("8 points for 5 parameters" in w for w in identifiable(few.N, few.D))
    assert identifiable([1e6, 2e6], [1e8, 2e8])[0].startswith("cannot be fitted: 2 points for 5 parameters")


def test_render_shows_everything_that_matters(noisy):
    from rich.console import Console

    frame = grid(noise=0.004).assign(status="done", held_out=False)
    frame.loc[2, ["status", "loss"]] = ["diverged", np.nan]
    frame.loc[15, "held_out"] = True
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_fit(fit_law(frame, resamples=100)))
    console.file.close()
    text = console.export_text()
    for words in ("alpha", "95% interval", "row 16", "status diverged", "condition", "resampled errors", "6 N D"):
        assert words in text, words


def test_get_law_passes_laws_through():
    assert get_law(CHINCHILLA) is CHINCHILLA
    with pytest.raises(InputError, match="got no D"):
        predict_loss(CHINCHILLA, PLANTED, N=1e6)
