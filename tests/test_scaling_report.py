"""The report: one file, offline, escaped, and honest."""

import base64
import hashlib
import html.parser
import json
import re

import numpy as np
import pandas
import pytest
from test_scaling_plots import PLANTED, SIZES, made_up_runs

from lmjax.errors import InputError
from lmjax.format import count as short
from lmjax.scaling import audit, result
from lmjax.scaling.figures import fit as plots
from lmjax.scaling.figures import style
from lmjax.scaling.fitting import fit as fit_law
from lmjax.scaling.laws import CHINCHILLA, predict_loss
from lmjax.scaling.report import data
from lmjax.scaling.report import page as report
from lmjax.scaling.table import read_table
from lmjax.scaling.text import headline

EVIL = "<script>alert('x')</script>\"&"


class Page(html.parser.HTMLParser):
    """Collects tags, attributes and text; keeps a stack, so that unclosed tags are found."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    runs, metrics = made_up_runs()
    runs["run_id"] = [f"{name}{EVIL}" for name in runs.run_id]
    metrics = {f"{name}{EVIL}": records for name, records in metrics.items()}
    runs.loc[11, "message"] = EVIL
    runs = runs.assign(
        **{
            "config.model.d_model": range(14),
            "config.data.sources": f"('classic', {EVIL!r})",
            "commit": "0123abc",
            "wall_seconds": 30.0,
            "device": "1 x cpu",
        }
    )
    fit = fit_law(runs, resamples=100)
    figures = plots.plot_all(fit, folder / "figures", ("png", "svg"), runs, metrics)
    path = report.write_report(
        folder / "report.html",
        runs,
        fit,
        figures,
        title=f"A title {EVIL}",
        command=f"lmjax sweep {EVIL}",
        provenance={"versions": {"jax": "0.10", EVIL: EVIL}},
    )
    return path, path.read_text("utf8"), runs, fit, figures


def embedded(text):
    """What the script reads."""
    (record,) = re.findall(r"<script type='application/json' id='data'>(.*?)</script>", text)
    assert not set("<>&") & set(record)
    return json.loads(record)


def test_everything_is_escaped_and_well_formed(written):
    _, text, runs, _, _ = written
    page = Page(text)
    assert page.open == [] and page.tags.count("script") == 2  # the data and the code, nothing from a name
    outside = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "<script" not in outside.lower() and outside.count("&lt;script&gt;") > 20
    assert f"A title {EVIL}" in "".join(page.words)
    record = embedded(text)
    assert {row["facts"][0][1] for row in record["rows"]} == set(runs.run_id)


def test_it_needs_nothing_else(written):
    _, text, _, _, figures = written
    bare = text.replace("http://www.w3.org/2000/svg", "")  # the name of SVG, which nothing loads
    assert not re.search(r"https?://|//[a-z]+\.|url\((?!#)|@import|<link|innerHTML|eval\(", bare)
    page = Page(text)
    sources = [value for name, value in page.attributes if name == "src"]
    assert len(sources) == 7 and all(s.startswith("data:image/png;base64,") for s in sources)
    images = {base64.b64decode(s.partition(",")[2]) for s in sources}
    assert images == {path.read_bytes() for path in figures if path.suffix == ".png"}
    links = [value for name, value in page.attributes if name == "href"]
    assert set(links) == {f"figures/{path.name}" for path in figures}
    assert len(text) < 3e6


def test_only_its_own_script_and_style_may_run(written):
    _, text, _, _, _ = written
    policy = next(value for name, value in Page(text).attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "style=" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)  # the policy would drop it


def test_without_a_script_the_page_is_whole(written):
    _, text, _, _, _ = written
    assert "<section id=explore hidden>" in text and "<noscript>" in text
    static = re.sub(r"<section id=explore.*?</section>", "", text, flags=re.DOTALL)
    for name in ("parameters", "held_out", "budgets", "runs", "excluded"):
        assert f"data-csv='{name}'" in static


def test_curves_of_the_chart_are_predictions(written):
    _, text, _, fit, _ = written
    record = embedded(text)
    curves = record["axes"]["N"]["curves"]
    assert [curve["name"] for curve in curves][:3] == ["D = 400k", "D = 1.2M", "D = 3.6M"]
    for curve, D in zip(curves, (4e5, 1.2e6, 3.6e6, 7.2e6, 9e6), strict=True):
        for name, values in zip(("y", "low", "high"), fit.predict(curve["x"], D, new_run=False), strict=True):
            np.testing.assert_allclose(curve[name], values, rtol=1e-6)
    for curve, N in zip(record["axes"]["C"]["curves"], (*SIZES, 1.9e6, 3.6e6), strict=True):
        expected = fit.predict(N, np.array(curve["x"]) / (6 * N), new_run=False).value
        np.testing.assert_allclose(curve["y"], expected, rtol=1e-6)
    frontier = record["axes"]["C"]["frontier"]
    np.testing.assert_allclose(frontier["y"], fit.allocate(np.array(frontier["x"]))["loss"], rtol=1e-6)


def test_exact_compute_moves_the_points_and_has_no_frontier():
    """A budget is 6 N D: where C is counted otherwise its optimum is not drawn against C."""
    runs, _ = made_up_runs()
    record = data.payload(runs, fit_law(runs, c="exact", resamples=0))
    axis = record["axes"]["C"]
    assert (
        "frontier" not in axis
        and "marker" not in axis
        and "frontier" in data.payload(runs, fit_law(runs, resamples=0))["axes"]["C"]
    )
    place = {row["facts"][0][1]: row["place"]["C"] for row in record["rows"]}
    assert all(place[row.run_id] == pytest.approx(row.flops_exact) for row in runs.itertuples())
    steps = [np.array(curve["x"]) for curve in axis["curves"]]
    np.testing.assert_allclose([x[1] / steps[0][1] for x in steps], np.array([*SIZES, 1.9e6, 3.6e6]) / SIZES[0], 1e-6)


def test_exactly_one_fit_is_made(monkeypatch, tmp_path):
    """The page reports the fit it is given; other conventions are not fitted in silence."""
    runs, _ = made_up_runs()
    fit = fit_law(runs, resamples=20)
    monkeypatch.setattr("lmjax.scaling.fitting.fit", None)
    record = embedded(report.write_report(tmp_path / "r.html", runs, fit).read_text("utf8"))
    assert result.from_dict(record["fit"]).params == fit.params


def test_it_says_everything(written):
    _, text, runs, fit, _ = written
    words = " ".join("".join(Page(text).words).split())
    assert headline(fit) in words
    for name in runs.run_id:
        assert words.count(name) >= 1
    for heading in (
        "The fit",
        "Held-out runs",
        "Where to spend the next budget",
        "How far to trust it",
        "All runs",
        "Rows not in the fit",
        "Configuration",
        "Conventions",
        "Origin",
    ):
        assert heading in words
    for row in fit.held_out:
        assert f"{row['predicted']:.4f}" in words and f"{100 * row['relative_error']:+.2f} %" in words
    for row in fit.excluded:
        assert row["reason"] in words
    for convention in fit.conventions.values():
        assert convention in words
    assert "What varies" in words and "model.d_model" in words and "0123abc" in words and fit.data_hash in words
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_refused_fit_is_reported_with_its_reasons(tmp_path):
    N = np.geomspace(1e5, 1e8, 8)
    fit = fit_law(pandas.DataFrame({"N": N, "D": 20 * N, "loss": 3 * N**-0.05}))
    text = report.write_report(tmp_path / "r.html", None, fit, []).read_text("utf8")
    assert "could not be fitted" in text and "D = 20 N" in text and "Where to spend" not in text
    Page(text)


def test_a_law_of_one_variable_is_drawn_at_its_level(tmp_path):
    runs, _ = made_up_runs()
    fit = fit_law(runs, "power_n", resamples=50)
    record = embedded(report.write_report(tmp_path / "r.html", runs, fit).read_text("utf8"))
    for name, per_size in (("N", 1.0), ("C", 6 * fit.points[0]["D"])):
        (curve,) = record["axes"][name]["curves"]
        expected = fit.predict(np.array(curve["x"]) / per_size, new_run=False).value
        np.testing.assert_allclose(curve["y"], expected, rtol=1e-6)
    assert record["budget"] is None and len(record["rows"]) == len(runs)


def test_any_law_is_drawn_by_its_predictions():
    """A law of three variables, one of them neither N nor D: a curve per pair of the others, refits included."""
    N, D, epochs = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 6e7, 4), [1e8, 1e9], [1.0, 8.0]))
    noise = np.exp(0.002 * np.random.default_rng(2).standard_normal(len(N)))
    rows = pandas.DataFrame({"N": N, "D": D, "U": D / epochs, "loss": (1.1 + 20 * N**-0.33 + 300 * D**-0.45) * noise})
    fit = fit_law(rows, "data_constrained", resamples=20, profiles=False)
    record = data.payload(None, fit)
    assert {"N", "D", "U"} <= set(record["axes"]) and not fit.refused
    curves = record["axes"]["N"]["curves"]
    assert [curve["name"] for curve in curves][:2] == ["D = 100M, U = 12.5M", "D = 100M, U = 100M"]
    expected = fit.predict(curves[0]["x"], 1e8, U=1e8 / 8, new_run=False)
    for name, values in zip(("y", "low", "high"), expected, strict=True):
        np.testing.assert_allclose(curves[0][name], values, rtol=1e-6)
    figure = plots.loss_against(fit, "U")
    drawn = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 160]
    assert len(drawn) == 8  # four sizes at two token counts


def test_headline_is_honest():
    runs, _ = made_up_runs()
    fit = fit_law(runs, resamples=50)
    worst = max(abs(row["relative_error"]) for row in fit.held_out)
    assert f"predicted within {100 * worst:.2f} %" in headline(fit)
    assert "untested" in headline(fit_law(runs[~runs.held_out], resamples=50))


def test_a_fit_without_refits_is_drawn_and_reported_without_intervals(tmp_path):
    runs, metrics = made_up_runs()
    fit = fit_law(runs, resamples=0)
    assert [row["inside"] for row in fit.held_out] == [None, None]
    assert result.from_dict(fit.to_dict()).to_dict() == fit.to_dict()
    figures = [style.save(plots.predicted_vs_measured(fit), tmp_path / "predicted_vs_measured", ("png",))[0]]
    assert len(plots.loss_against(fit, "N").axes[0].collections) == 0
    text = report.write_report(tmp_path / "r.html", runs, fit, figures).read_text("utf8")
    assert "no intervals were computed" in text and "nan" not in re.sub("base64,[^']*", "", text)
    Page(text)


def test_missing_figure_is_an_error(tmp_path):
    runs, _ = made_up_runs()
    with pytest.raises(InputError, match="no figure"):
        report.write_report(tmp_path / "r.html", runs, fit_law(runs, resamples=0), [tmp_path / "gone.png"])
    assert not (tmp_path / "r.html").exists()


def words_of(path):
    return " ".join(" ".join(Page(path.read_text("utf8")).words).split())


def test_questions_are_answered_on_the_page(written, tmp_path):
    _, _, runs, fit, _ = written
    to_predict, budgets = [{"N": 7e6, "D": 1.4e8}, {"N": 2e5, "D": 3e6}], [2e13, 3e12]
    path = report.write_report(tmp_path / "r.html", runs, fit, to_predict=to_predict, budgets=budgets)
    text = path.read_text("utf8")
    answers = text[text.index("<h2>Your questions</h2>") : text.index("<h2>The fit</h2>")]
    for cell in to_predict:
        for value in fit.predict(**cell):
            assert f"<td data-value='{float(value)!r}'>{float(value):.4f}</td>" in answers
    for C in budgets:
        best = fit.allocate(C)
        for end in ("", "_low", "_high"):
            assert f"data-value='{float(best['loss' + end])!r}'" in answers
        assert short(float(best["N"])) in answers
    budget = embedded(text)["budget"]
    assert budget["C"][budget["start"]] == budgets[0]
    assert "Your questions" not in report.write_report(tmp_path / "none.html", runs, fit).read_text("utf8")
    plain = fit_law(runs, resamples=0)
    bare = report.write_report(tmp_path / "bare.html", runs, plain, to_predict=to_predict, budgets=budgets)
    bare = bare.read_text("utf8")
    assert f"{float(predict_loss(CHINCHILLA, plain.params, 7e6, 1.4e8)):.4f}" in bare


def grid(noise, seed=5, reach=30.0):
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, reach * 1e6, 5), np.geomspace(1e8, reach * 1e8, 4)))
    noise = np.exp(noise * np.random.default_rng(seed).standard_normal(20))
    return pandas.DataFrame({"N": N, "D": D, "loss": predict_loss(CHINCHILLA, PLANTED, N, D) * noise})


def test_green_is_only_for_a_fit_without_doubts(tmp_path):
    sound, outlier, narrow = grid(0.002), grid(0.002), grid(0.01, 6, 4.0)
    outlier.loc[6, "loss"] *= 2.1
    for name, rows, kind, words in (
        ("sound", sound, "ok", "converged: fit is sound"),
        ("outlier", outlier, "warning", "largest residual"),
        ("narrow", narrow, "warning", "no compute-optimal split is determined"),
    ):
        fit = fit_law(rows, resamples=200)
        text = report.write_report(tmp_path / f"{name}.html", None, fit).read_text("utf8")
        assert f"<span class='status {kind}'>" in text and words in words_of(tmp_path / f"{name}.html"), name
    assert any("decades" in words for words in audit.wide_intervals(fit))
    assert "not determined" in text  # its splits


def test_a_bound_is_in_the_headline(tmp_path):
    rows = grid(0.0).assign(loss=lambda f: 20 * f.N**-0.33 + 300 * f.D**-0.45)
    fit = fit_law(rows, resamples=30)
    assert fit.status == "at_bound" and not fit.refused
    text = report.write_report(tmp_path / "r.html", None, fit).read_text("utf8")
    assert re.search(r"class='headline'>[^<]*bound", text) and "<span class='status warning'>at bound" in text


def test_facts_of_the_table_reach_the_page(tmp_path):
    runs, _ = made_up_runs()
    table = read_table(runs.assign(schedule_complete=True))
    fit = fit_law(table, resamples=50)
    denial = "the table does not say whether schedules completed"
    with_table = words_of(report.write_report(tmp_path / "with.html", runs, fit, table=table))
    without = words_of(report.write_report(tmp_path / "without.html", runs, fit))
    assert "schedules completed in all fitted rows" in with_table
    for words in (with_table, without):
        assert denial not in words
    assert "no other count" not in without


def test_without_held_out_runs_the_quarter_of_most_compute_is_predicted(tmp_path):
    """By a second fit of the others alone; the numbers of the report stay those of all runs."""
    N, D = (v.ravel() for v in np.meshgrid(1e6 * 3.0 ** np.arange(5), 1e8 * 3.0 ** np.arange(4)))
    frame = pandas.DataFrame({"N": N, "D": D, "run": [f"r{i}" for i in range(20)]})
    frame["loss"] = predict_loss(CHINCHILLA, PLANTED, N, D) * np.exp(0.003 * np.cos(5 * np.arange(20)))
    fit = fit_law(frame, resamples=60, profiles=False)
    checked, _ = report.check_by_compute(fit)
    largest = set(frame.run[np.argsort(-N * D, kind="stable")[: len(checked.held_out)]])
    assert {row["run"] for row in checked.held_out} == largest and 4 <= len(largest) <= 6
    second = fit_law(frame, resamples=60, profiles=False, held_out=sorted(largest))
    expected = {row["run"]: row["predicted"] for row in second.held_out}
    assert {row["run"]: row["predicted"] for row in checked.held_out} == pytest.approx(expected, rel=1e-9)
    text = report.write_report(tmp_path / "r.html", None, fit).read_text("utf8")
    share = f"{len(largest) / 20:.0%}"
    assert f"As a check, a second fit left out the {share} of the runs with the largest C" in text
    assert "Diamonds" not in headline(fit) and f"alpha = {fit.params['alpha']:.4g}"[:12] in text


def test_where_no_second_fit_is_possible_the_report_says_why(tmp_path, monkeypatch):
    frame = pandas.DataFrame({"N": [1e6, 1e7, 1e8] * 3, "D": np.repeat([1e8, 1e9, 1e10], 3)})
    monkeypatch.setattr(report, "CHECKED", 0.6)
    fit = fit_law(frame.assign(loss=predict_loss(CHINCHILLA, PLANTED, frame.N, frame.D)), resamples=0)
    checked, why = report.check_by_compute(fit)
    assert checked is None and "no cut leaves runs that identify" in why
    text = report.write_report(tmp_path / "r.html", None, fit).read_text("utf8")
    assert "the prediction is untested: no cut leaves" in text
