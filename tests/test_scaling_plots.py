"""Figures, read back from their artists: every run, value of N, interval and missing cell is drawn and named."""

import dataclasses
import sys

import matplotlib
import numpy as np
import pandas
import pytest

from lmjax.errors import InputError
from lmjax.scaling.figures import fit as plots
from lmjax.scaling.figures import panels, style
from lmjax.scaling.fitting import fit as fit_law
from lmjax.scaling.laws import CHINCHILLA, predict_loss

PLANTED = dict(E=1.05, A=20.0, alpha=0.33, B=300.0, beta=0.45)
SIZES, TOKENS = (6e4, 1.4e5, 4.2e5, 9.8e5), (4e5, 1.2e6, 3.6e6)


def made_up_runs():
    """Twelve runs and two held out as read_runs gives them; one failed, one diverged; and their metrics."""
    rng = np.random.default_rng(0)
    rows, metrics = [], {}
    for n, d, held_out in [(n, d, False) for n in SIZES for d in TOKENS] + [(1.9e6, 7.2e6, True), (3.6e6, 9e6, True)]:
        loss = float(predict_loss(CHINCHILLA, PLANTED, n, d)) * np.exp(0.003 * rng.standard_normal())
        name = f"run-{len(rows)}"
        rows.append(
            {
                "run_id": name,
                "status": "done",
                "held_out": held_out,
                "objective": "causal_lm",
                "n_total": n,
                "n_non_embedding": 0.8 * n,
                "tokens": d,
                "flops_exact": 7 * n * d,
                "loss": loss,
                "message": "",
            }
        )
        share = np.arange(1, 201) / 200
        metrics[name] = [
            {"step": i, "flops": 7 * n * d * s, "loss": loss * (1 + np.exp(-5 * s))} for i, s in enumerate(share, 1)
        ]
    for k, status in ((3, "failed"), (11, "diverged")):
        rows[k] |= {"status": status, "loss": np.nan}
        metrics[f"run-{k}"] = metrics[f"run-{k}"][:80]
    metrics["run-11"].append({"step": 81, "flops": metrics["run-11"][-1]["flops"] * 1.01, "loss": None})
    return pandas.DataFrame(rows), metrics


@pytest.fixture(scope="module")
def swept():
    runs, metrics = made_up_runs()
    return runs, metrics, fit_law(runs, resamples=100)


def texts(figure):
    figure.canvas.draw()
    return [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text()]


def line_with_marker(ax, marker):
    return [line for line in ax.lines if line.get_marker() == marker and len(line.get_xdata())]


def test_training_curves_draw_every_run(swept):
    runs, metrics, _ = swept
    figure = plots.training_curves(runs, metrics)
    (ax,) = figure.axes
    assert ax.get_xscale() == ax.get_yscale() == "log"
    curves = [line for line in ax.lines if len(line.get_xdata()) > 10]
    assert len(curves) == len(runs)
    for curve, (_, row) in zip(curves, runs.iterrows(), strict=True):
        finite = [r for r in metrics[row.run_id] if r["loss"] is not None]
        assert curve.get_xdata()[-1] == pytest.approx(finite[-1]["flops"])
        assert len(curve.get_xdata()) <= plots.CURVE_BINS
    ends = {tuple(np.ravel(line.get_data())) for line in line_with_marker(ax, "o")}
    done = runs[(runs.status == "done") & ~runs.held_out]
    assert {loss for _, loss in ends} == set(done.loss)
    assert len(line_with_marker(ax, "D")) == 2
    (crosses,) = line_with_marker(ax, "x")
    assert len(crosses.get_xdata()) == 2 and set(crosses.get_ydata()) == {0.985}  # at the top edge
    words = texts(figure)
    assert {"60k", "140k", "420k", "980k", "held out", "no result: diverged, failed"} <= set(words)
    assert "C, training FLOP" in words and any(
        "nats per predicted token of the objective causal_lm" in w for w in words
    )


@pytest.mark.parametrize(
    ("variable", "other", "labels"),
    [
        ("N", "D", {"D = 400k", "D = 1.2M", "D = 3.6M", "D = 7.2M", "D = 9M"}),
        ("D", "N", {"N = 60k", "N = 140k", "N = 420k", "N = 980k", "N = 1.9M", "N = 3.6M"}),
    ],
)
def test_law_figures_draw_points_curves_bands_and_missing_cells(swept, variable, other, labels):
    _, _, fit = swept
    figure = plots.loss_against(fit, variable)
    (ax,) = figure.axes
    markers = [line for line in ax.lines if line.get_marker() not in ("None", "x")]
    drawn = {(x, y) for line in markers for x, y in zip(*line.get_data(), strict=True)}
    assert drawn == {(row[variable], row["loss"]) for row in (*fit.points, *fit.held_out)}
    curves = [line for line in ax.lines if len(line.get_xdata()) == 160]
    assert len(curves) == len(ax.collections) == len(labels)
    assert sum(line.get_linestyle() == "--" for line in curves) == 2  # the levels of held-out runs only
    level = {"D": TOKENS, "N": SIZES}[other][0]
    x = curves[0].get_xdata()
    expected = fit.predict(**{variable: x, other: level}, one_law=True).value
    np.testing.assert_allclose(curves[0].get_ydata(), expected, rtol=1e-9)
    _, low, high = fit.predict(**{variable: x[80], other: level}, new_run=False)
    edges = ax.collections[0].get_paths()[0].vertices
    at = edges[np.isclose(edges[:, 0], x[80])][:, 1]
    assert min(at) == pytest.approx(float(low)) and max(at) == pytest.approx(float(high))
    (crosses,) = line_with_marker(ax, "x")
    assert sorted(crosses.get_xdata()) == sorted(row[variable] for row in fit.excluded)
    words = texts(figure)
    assert labels <= set(words)
    foot = next(w for w in words if fit.data_hash in w).replace("\n", " ")
    for convention in (
        *fit.conventions.values(),
        "delta 0.001",
        "over 10 runs",
        "95% intervals from 100 bootstrap resamples",
        fit.hash,
    ):
        assert convention in foot


def test_rows_left_out_with_a_loss_are_hollow_and_named(swept):
    runs, _, _ = swept
    fit = fit_law(runs.assign(schedule_complete=[k != 5 for k in range(len(runs))]), resamples=0)
    figure = plots.loss_against(fit, "N")
    (ax,) = figure.axes
    (hollow,) = [line for line in ax.lines if line.get_label() == "left out of the fit"]
    assert tuple(np.ravel(hollow.get_data())) == (runs.n_total[5], runs.loss[5])
    assert hollow.get_markerfacecolor() == "white"
    assert any("3 rows left out" in w.replace("\n", " ") for w in texts(figure))


def test_a_law_of_compute_is_one_curve(swept):
    runs, _, _ = swept
    fit = fit_law(runs[~runs.held_out], "power_c", c="exact", resamples=60)
    figure = plots.loss_against(fit, "C")
    (ax,) = figure.axes
    (curve,) = [line for line in ax.lines if len(line.get_xdata()) == 160]
    np.testing.assert_allclose(curve.get_ydata(), fit.predict(C=curve.get_xdata(), one_law=True).value, rtol=1e-9)
    drawn = {(x, y) for line in line_with_marker(ax, "o") for x, y in zip(*line.get_data(), strict=True)}
    assert drawn == {(row["C"], row["loss"]) for row in fit.points}
    assert ax.get_xlabel() == "C, training FLOP"
    assert len(plots.residuals(fit).axes) == 1 and len(plots.predicted_vs_measured(fit).axes) == 1


def test_predicted_vs_measured_marks_held_out_runs_with_their_intervals(swept):
    _, _, fit = swept
    figure = plots.predicted_vs_measured(fit)
    (ax,) = figure.axes
    fitted = ax.collections[0].get_offsets()
    np.testing.assert_allclose(fitted, [(row["loss"], row["predicted"]) for row in fit.points])
    bars = ax.containers
    assert len(bars) == 2
    for bar, row in zip(bars, fit.held_out, strict=True):
        assert tuple(np.ravel(bar[0].get_data())) == (row["loss"], row["predicted"])
        (segment,) = bar[2][0].get_segments()
        np.testing.assert_allclose(segment[:, 1], [row["low"], row["high"]])
    assert any(f"{100 * fit.held_out[0]['relative_error']:+.2f} %" in w for w in texts(figure))


def test_residuals_are_measured_over_predicted_in_percent(swept):
    _, _, fit = swept
    figure = plots.residuals(fit)
    left, right = figure.axes
    expected = [100 * (row["loss"] / row["predicted"] - 1) for row in fit.points]
    np.testing.assert_allclose(left.collections[0].get_offsets()[:, 1], expected)
    np.testing.assert_allclose(right.collections[0].get_offsets()[:, 0], [row["D"] for row in fit.points])
    assert len(line_with_marker(left, "D")[0].get_xdata()) == 2


def test_summary_has_three_named_panels(swept):
    figure = plots.summary_figure(*swept)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["(a)  Training curves", "(b)  Loss against N", "(c)  Predicted against measured"]


def test_plot_all_writes_every_figure(swept, tmp_path):
    names = ("summary", "training_curves", "loss_vs_params", "loss_vs_tokens", "predicted_vs_measured", "residuals")
    names += ("allocation",)
    written = plots.plot_all(swept[2], tmp_path / "new" / "folder", ("png",), *swept[:2])
    assert [p.name for p in written] == [f"{n}.png" for n in names]
    assert all(p.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for p in written)


def test_equal_figures_are_equal_files(swept, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        style.save(plots.residuals(swept[2]), tmp_path / name / "figure", ("png", "svg", "pdf"))
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        one, two = ((tmp_path / name / f"figure{suffix}").read_bytes() for name in ("a", "b"))
        assert one == two and one.startswith(start)
    with pytest.raises(InputError, match="expected png, svg, pdf, got 'gif'"):
        style.save(plots.residuals(swept[2]), tmp_path / "c", ("gif",))


def test_refused_fit_draws_points_and_says_so(swept, tmp_path):
    N = np.geomspace(1e5, 1e8, 8)
    frame = pandas.DataFrame({"N": N, "D": 20 * N, "loss": predict_loss(CHINCHILLA, PLANTED, N, 20 * N)})
    fit = fit_law(frame)
    paths = plots.plot_all(fit, tmp_path)
    assert [p.stem for p in paths] == ["loss_vs_params", "loss_vs_tokens"]
    figure = plots.loss_against(fit, "N")
    assert "not fitted" in texts(figure) and not [line for line in figure.axes[0].lines if len(line.get_xdata()) == 160]


def test_sweep_without_a_finished_run_is_drawn(swept, tmp_path):
    runs, metrics, _ = swept
    fit = fit_law(runs.assign(status="running", loss=np.nan))
    assert fit.refused and len(fit.excluded) == len(runs)
    assert "no finished run" in texts(plots.loss_against(fit, "N"))
    assert len(plots.plot_all(fit, tmp_path, runs=runs.assign(status="running"), metrics=metrics)) == 4
    alone = runs.assign(status=["done"] + ["failed"] * 13, loss=[2.0] + [np.nan] * 13)
    figure = plots.loss_against(fit_law(alone), "N")
    left, right = figure.axes[0].get_xlim()
    assert left < runs.n_total.min() and right > runs.n_total.max()  # missing cells are inside the axes
    texts(figure)
    started = {run: records[:0] for run, records in metrics.items()}
    plots.training_curves(runs, started)


def test_of_many_levels_a_few_are_drawn_and_named():
    rng = np.random.default_rng(1)
    N, D = np.exp(rng.uniform(np.log([1e6, 1e8]), np.log([1e9, 1e11]), (60, 2))).T
    loss = predict_loss(CHINCHILLA, PLANTED, N, D) * np.exp(0.003 * rng.standard_normal(60))
    figure = plots.loss_against(fit_law(pandas.DataFrame({"N": N, "D": D, "loss": loss}), resamples=50), "N")
    (ax,) = figure.axes
    names = [t for t in ax.texts if t.get_text().startswith("D = ")]
    assert len([line for line in ax.lines if len(line.get_xdata()) == 160]) == len(names) == 6
    heights = sorted(t.get_position()[1] for t in names)
    assert 0 <= heights[0] and heights[-1] <= 1 and np.diff(heights).min() > 0.05


def test_no_global_state_is_left_behind(swept):
    before = dict(matplotlib.rcParams)
    plots.residuals(swept[2])
    assert dict(matplotlib.rcParams) == before
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()


def test_without_matplotlib_the_extra_is_named(swept, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r'pip install "lmjax\[plot\]"'):
        plots.residuals(swept[2])
    with pytest.raises(InputError, match=r'pip install "lmjax\[plot\]"'):
        plots.plot_all(swept[2], tmp_path)


def test_colours_of_levels_differ_in_lightness():
    """Readable without colour vision and in grey print: neighbouring levels differ in luminance, in one direction."""
    for variable in ("N", "D"):
        palette = style.colours(variable, np.array([1.0, 2.0, 4.0, 8.0, 16.0]))
        luminance = [np.dot(palette[v][:3], [0.2126, 0.7152, 0.0722]) for v in sorted(palette)]
        assert np.all(np.diff(luminance) > 0.04)


def test_ticks_are_inside_and_enough():
    for low, high in (
        (1e5, 2e5),
        (3e4, 8e6),
        (1e6, 1e12),
        (1.5, 1.6),
        (0.9, 7.0),
        (2.0, 90.0),
        (3e5, 8e5),
        (2e5, 1.9e7),
        (1.5, 4.0),
    ):
        for linear in (False, True):
            major, minor = style.log_ticks(low, high, linear)
            assert all(low * (1 - 1e-9) <= t <= high * (1 + 1e-9) for t in (*major, *minor))
            assert 3 <= len(major) <= 10, (low, high, linear, major)


def test_end_labels_keep_their_distance():
    with style.new_figure(4, 3) as (figure, grid):
        ax = grid[0, 0]
        style.log_axis(ax.yaxis, "loss", 1.0, 2.0)
        panels.end_labels(ax, [(1.5, "a", "k"), (1.501, "b", "k"), (1.502, "c", "k")])
    places = [t.get_position()[1] for t in ax.texts]
    assert np.diff(places).min() > 0.05 and [t.get_text() for t in ax.texts] == ["a", "b", "c"]
    assert figure.axes == [ax]


def test_the_split_is_drawn_as_allocate_has_it(swept):
    _, _, fit = swept
    figure = plots.allocation(fit)
    split, ratio, plane = figure.axes
    largest = max(6 * row["N"] * row["D"] for row in fit.points)
    for ax, names in ((split, ("N", "D")), (ratio, ("tokens_per_param",))):
        for k, name in enumerate(names):
            solid, dashed = [line for line in ax.lines if len(line.get_xdata()) > 20][2 * k : 2 * k + 2]
            assert solid.get_linestyle() == "-" and dashed.get_linestyle() == "--"
            assert solid.get_xdata()[-1] <= 10 * largest * (1 + 1e-9) < dashed.get_xdata()[0]
            for line in (solid, dashed):
                np.testing.assert_allclose(line.get_ydata(), fit.allocate(line.get_xdata())[name], rtol=1e-12)
            edges = ax.collections[k].get_paths()[0].vertices
            at = edges[np.isclose(edges[:, 0], solid.get_xdata()[9])][:, 1]
            best = fit.allocate(solid.get_xdata()[9])
            assert [at.min(), at.max()] == pytest.approx([float(best[f"{name}_{end}"]) for end in ("low", "high")])
        marks = [line for line in ax.lines if line.get_marker() == "o"]
        assert [line.get_xdata()[0] / largest for line in marks] == pytest.approx([1, 3, 10, 100] * len(names))
        hollow = [line.get_markerfacecolor() == "white" for line in marks]
        assert hollow == [False, False, False, True] * len(names)
        (ticks,) = line_with_marker(ax, "|")
        np.testing.assert_allclose(ticks.get_xdata(), [6 * row["N"] * row["D"] for row in fit.points])
    path = next(line for line in plane.lines if line.get_label() == "best split N*(C)")
    best = fit.allocate(6 * path.get_xdata() * path.get_ydata())
    np.testing.assert_allclose(path.get_xdata(), best["N"], rtol=1e-9)
    (points,) = line_with_marker(plane, "o")
    assert list(points.get_xdata()) == [row["N"] for row in fit.points]
    lines = next(c for c in plane.collections if hasattr(c, "levels"))
    for level, curve in zip(lines.levels, lines.get_paths(), strict=True):
        N, D = curve.vertices[: max(len(curve.vertices), 1)].T
        np.testing.assert_allclose(predict_loss(CHINCHILLA, fit.params, N, D), level, rtol=2e-3)  # straight pieces


def test_dollar_signs_in_names_are_drawn(swept, tmp_path):
    """A loss column, a status and names of runs that mathtext would not read."""
    runs, metrics, _ = swept
    runs = runs.rename(columns={"loss": r"my$\x$"}).assign(objective="$\\a$")
    runs["loss"] = runs[r"my$\x$"]
    rows = runs[runs["loss"].notna()].rename(columns={"n_total": "N", "tokens": "D", "run_id": "run"})
    frame = rows[["N", "D", "run", r"my$\x$"]].assign(run=[f"$\\{k}$" for k in range(len(rows))])
    fit = fit_law(frame, loss=r"my$\x$", resamples=50)
    fit = dataclasses.replace(fit, target=r"my$\x$")
    paths = plots.plot_all(fit, tmp_path, ("svg",))
    assert len(paths) == 5
    assert r"my$\x$" in (tmp_path / "loss_vs_params.svg").read_text("utf8")
    odd = runs.assign(status=["$\\b$" if k == 3 else s for k, s in enumerate(runs.status)])
    style.save(plots.training_curves(odd, metrics), tmp_path / "curves", ("png",))


def test_small_print_names_only_what_is_drawn(swept):
    runs, _, fit = swept

    def foot(figure):
        return " ".join(figure.texts[0].get_text().split())

    assert "; bands: 95%" in foot(plots.loss_against(fit, "N"))
    assert "Bars: 95%" in foot(plots.predicted_vs_measured(fit))
    assert "intervals" not in foot(plots.residuals(fit))
    assert "Bars" not in foot(plots.predicted_vs_measured(fit_law(runs[~runs.held_out], resamples=30)))


def test_colours_are_named_in_each_panel(swept):
    _, _, fit = swept
    left, right = plots.residuals(fit).axes
    assert [ax.get_legend().get_title().get_text() for ax in (left, right)] == ["colour: D", "colour: N"]
    assert {"400k", "1.2M", "9M", "held out"} <= {t.get_text() for t in left.get_legend().get_texts()}
    assert plots.predicted_vs_measured(fit).axes[0].get_legend().get_title().get_text() == "colour: N"


def test_a_refused_fit_of_many_levels_has_a_colour_bar():
    N = np.geomspace(1e5, 1e8, 12)
    frame = pandas.DataFrame({"N": N, "D": 20 * N, "loss": predict_loss(CHINCHILLA, PLANTED, N, 20 * N)})
    ax, bar = plots.loss_against(fit_law(frame), "N").axes
    assert bar.get_ylabel() == "D, training tokens" and [t.get_text() for t in ax.texts] == ["not fitted"]


def misfit(side=6):
    """Runs at equal compute whose losses bend away from the law between N and D."""
    C, ratio = (v.ravel() for v in np.meshgrid(np.geomspace(1e15, 1e18, 4), np.geomspace(0.1, 10, side)))
    N = 0.1 * ratio * np.sqrt(C)
    D = C / 6 / N
    noise = 0.002 * np.cos(7 * np.arange(len(N)) ** 1.5)
    loss = predict_loss(CHINCHILLA, PLANTED, N, D) * np.exp(0.004 * np.log(ratio) ** 2 + noise)
    return pandas.DataFrame({"N": N, "D": D, "loss": loss})


def test_runs_at_equal_compute_get_a_panel_of_budgets(tmp_path):
    """Each budget has its curve through the runs, its label and the law's least loss, as allocate gives it."""
    fit = fit_law(misfit(), resamples=0)
    assert "isoflop" in [path.stem for path in plots.plot_all(fit, tmp_path)]
    (ax,) = plots.isoflop(fit).axes
    assert [t.get_text() for t in ax.texts] == [f"C = $10^{{{k}}}$" for k in (18, 17, 16, 15)]
    (stars,) = [line for line in ax.lines if line.get_marker() == "*"]
    best = fit.allocate(np.geomspace(1e15, 1e18, 4))
    np.testing.assert_allclose(stars.get_xdata(), best["N"], rtol=0.02)
    np.testing.assert_allclose(stars.get_ydata(), best["loss"], rtol=1e-4)
    rng = np.random.default_rng(0)
    scattered = misfit().assign(D=lambda t: t.D * np.exp(rng.uniform(-1, 1, len(t))))
    assert not plots._budgets(fit_law(scattered, resamples=0))


def test_residuals_show_their_systematic_part():
    fit = fit_law(misfit(), resamples=0)
    assert fit.lack_of_fit["p"] < 0.01
    figure = plots.residuals(fit)
    assert [ax.get_title(loc="left") for ax in figure.axes][2].startswith("Systematic part")
    assert "lack of fit p" in figure.texts[0].get_text()
    N = np.geomspace(1e6, 1e9, 24)
    wave = pandas.DataFrame({"N": N, "loss": (1.8 + 300 * N**-0.33) * np.exp(0.004 * np.sin(1.5 * np.log(N)))})
    along = fit_law(wave, law="power_n", resamples=0)
    (curve,) = [line for line in plots.residuals(along).axes[0].lines if line.get_label() == "systematic part"]
    at_rows = np.interp(np.log(N), np.log(curve.get_xdata()), curve.get_ydata())
    np.testing.assert_allclose(at_rows, 100 * np.expm1(along.column("systematic")), atol=0.01)


def test_legends_hide_no_data(swept):
    """Every legend lies beside, above or below its axes."""
    _, _, fit = swept
    for figure in (plots.loss_against(fit, "N"), plots.predicted_vs_measured(fit), plots.residuals(fit)):
        figure.draw_without_rendering()
        for ax in figure.axes:
            if ax.get_legend():
                box, inner = ax.get_legend().get_window_extent(), ax.get_window_extent()
                assert box.x0 >= inner.x1 - 1 or box.y0 >= inner.y1 - 1 or box.y1 <= inner.y0 + 1


def test_ticks_of_compute_are_right_within_a_decade():
    ticks = style.log_ticks(2.1e17, 3.2e17)[0]
    assert len(ticks) >= 4
    for value in ticks:
        factor, _, power = style.tick_label("C", value).strip("$").partition("\\times 10^")
        assert float(factor) * 10 ** int(power.strip("{}")) == pytest.approx(value, rel=1e-3)
