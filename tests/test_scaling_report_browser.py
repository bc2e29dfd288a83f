"""The report in a real headless Chromium: what is drawn and computed there is what Python says."""

import csv
import io
import json

import chromium
import numpy as np
import pandas
import pytest
from test_scaling_plots import PLANTED, SIZES, TOKENS

from lmjax.format import count as short
from lmjax.format import number
from lmjax.scaling.audit import determined
from lmjax.scaling.fitting import fit as fit_law
from lmjax.scaling.laws import CHINCHILLA, optimal_allocation, predict_loss
from lmjax.scaling.report import page as report

pytestmark = pytest.mark.skipif(
    chromium.find() is None, reason=f"no browser: wanted one of {', '.join(chromium.NAMES)} on the path"
)
EVIL = '</script><img src=x onerror="window.pwned=1"><!--\'&'
FORMULA = '=HYPERLINK("http://example.org","x")'
SAME_NUMBER = 1e-6  # relative; the formulas are the same, the sums in another order


def sweep():
    """14 finished runs, 2 of them held out, one failed and one with an unfinished schedule; awkward names."""
    rng = np.random.default_rng(3)
    rows = []
    for n, d, held_out in [(n, d, False) for n in SIZES for d in TOKENS] + [(1.9e6, 7.2e6, True), (3.6e6, 9e6, True)]:
        noise = np.exp(0.003 * rng.standard_normal())
        rows.append({"run_id": f"run-{len(rows)}", "status": "done", "held_out": held_out, "n_total": n, "tokens": d})
        rows[-1]["loss"] = float(predict_loss(CHINCHILLA, PLANTED, n, d)) * noise
    frame = pandas.DataFrame(rows)
    frame = frame.assign(
        n_non_embedding=frame.n_total - 60 * np.sqrt(frame.n_total),
        flops_exact=7 * frame.n_total * frame.tokens,
        schedule_complete=True,
        wall_seconds=30.0,
        objective="causal_lm",
        message="",
    )
    frame.loc[3, ["status", "loss"]] = ["failed", np.nan]
    frame.loc[7, "schedule_complete"] = False
    frame.loc[0, "run_id"], frame.loc[1, "run_id"] = f"{EVIL}", FORMULA
    return frame


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    runs = sweep()
    fit = fit_law(runs, resamples=200)
    path = tmp_path_factory.mktemp("report") / "report.html"
    return report.write_report(path, runs, fit, [], title=f"A title {EVIL}"), runs, fit


@pytest.fixture(scope="module")
def open_page(written, tmp_path_factory):
    with chromium.Page(written[0], tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def best_of(page):
    """{name: [(value, shown text) of the optimum, low and high]} as the page has them."""
    rows = "['N','D','tokens_per_param','loss'].map(n => [n, [...document.getElementById('best-' + n).cells].slice(1)"
    return dict(page.run(rows + ".map(c => [Number(c.dataset.value), c.textContent])])"))


def assert_same_as_python(page, fit, C):
    best = fit.allocate(C)
    for name, cells in best_of(page).items():
        how = (lambda v: f"{v:.4f}") if name == "loss" else short
        for (value, shown), end in zip(cells, ("", "_low", "_high"), strict=True):
            expected = float(best[f"{name}{end}"])
            assert value == pytest.approx(expected, rel=SAME_NUMBER)
            vague = end == "" and name != "loss" and not determined(best, name)
            assert shown == ("not determined" if vague else how(expected))


def test_every_run_is_drawn_and_nothing_goes_wrong(open_page, written):
    page, (_, runs, fit) = open_page, written
    drawn = page.run("[...document.querySelectorAll('.point')].map(p => [p.dataset.run, p.classList[1]])")
    kinds = {row["run"]: kind for kind in ("fitted",) for row in fit.points}
    kinds |= {row["run"]: "held-out" for row in fit.held_out} | {"run-3": "no-result", "run-7": "excluded"}
    assert dict(drawn) == kinds and set(kinds) == set(runs.run_id)
    assert page.run("document.querySelectorAll('.curve').length") == 5  # three token counts and two held-out ones
    assert page.run("document.querySelectorAll('.curve.dashed').length") == 2
    assert page.problems == []
    assert page.run("window.pwned === undefined && !document.querySelector('main img')")
    assert EVIL in page.run("document.querySelector('h1').textContent")
    assert all(url.startswith(("file:", "data:")) for url in page.requests)


def test_points_stand_where_their_numbers_are(open_page, written):
    """The pixel of each point is linear in the logarithms of its numbers."""
    page, (_, _, fit) = open_page, written
    read = "[...document.querySelectorAll('.point.fitted')].map(p => [p.dataset.run, p.getAttribute('transform')])"
    place = dict(page.run(read))
    at = np.array([[float(v) for v in place[row["run"]][10:-1].split(",")] for row in fit.points])
    for column, name in ((0, "N"), (1, "loss")):
        logs = np.log([row[name] for row in fit.points])
        line = np.polyfit(logs, at[:, column], 1)
        np.testing.assert_allclose(np.polyval(line, logs), at[:, column], atol=0.11)  # pixels are written with 0.1
        assert line[0] * (1 if name == "N" else -1) > 0


def test_slider_by_keyboard_gives_the_numbers_of_python(open_page, written):
    page, (_, _, fit) = open_page, written
    page.run("document.getElementById('slider').focus()")
    seen = set()
    for key, times in (("Home", 1), ("PageUp", 1), ("ArrowRight", 7), ("ArrowLeft", 2), ("End", 1)):
        page.key(key, times)
        value = page.run("document.getElementById('slider').value")
        seen.add(value)
        assert_same_as_python(page, fit, 10 ** float(value))
    assert len(seen) == 5
    page.pointer("#slider", click=True)
    middle = page.run("s = document.getElementById('slider'); (Number(s.min) + Number(s.max)) / 2")
    C = 10 ** float(page.run("s.value"))
    assert np.log10(C) == pytest.approx(middle, abs=0.1)  # the thumb is wider than a step
    assert_same_as_python(page, fit, C)
    largest = max(6 * row["N"] * row["D"] for row in fit.points)
    assert 10 ** float(value) == pytest.approx(1000 * largest, rel=0.03)  # the end of the slider
    assert "an extrapolation" in page.run("document.getElementById('times').textContent")


def test_a_typed_budget_gives_the_numbers_of_python(open_page, written):
    page, (_, _, fit) = open_page, written
    for typed, C in (("3.7e12", 3.7e12), ("123456789012", 123456789012)):
        page.run("document.getElementById('typed').select()")
        page.write_text(typed)
        assert_same_as_python(page, fit, C)
    page.run("document.getElementById('typed').select()")
    page.write_text("much")
    assert page.run("document.getElementById('wrong').textContent").startswith("wanted a budget above 0 FLOP")
    assert_same_as_python(page, fit, C)  # the last good budget stays


def test_the_cost_of_another_size_is_that_of_python(open_page, written):
    page, (_, _, fit) = open_page, written
    page.run("document.getElementById('typed').select()")
    page.write_text("3e12")
    page.run("document.getElementById('chosen').select()")
    page.write_text("2.5e5")
    cells = page.run(
        "[...document.getElementById('cost').cells].slice(1).map(c => [Number(c.dataset.value), c.textContent])"
    )
    for (value, shown), expected in zip(cells, fit.excess(3e12, 2.5e5), strict=True):
        assert value == pytest.approx(float(expected), rel=SAME_NUMBER, abs=1e-12)  # the low end may be 0
        assert shown == number(float(expected), 3)


def test_bias_corrected_intervals_and_a_plain_table(tmp_path):
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 3e7, 6), np.geomspace(1e8, 3e9, 4)))
    noise = np.exp(0.003 * np.random.default_rng(5).standard_normal(24))
    frame = pandas.DataFrame({"N": N, "D": D, "loss": predict_loss(CHINCHILLA, PLANTED, N, D) * noise})
    fit = fit_law(frame, resamples=300, method="configurations")
    path = report.write_report(tmp_path / "r.html", None, fit)
    with chromium.Page(path, tmp_path / "browser", dark=True) as page:
        for C in (6e14, 1e17, 3e20):
            page.run(f"typed = document.getElementById('typed'); typed.select(); typed.value = {C}")
            page.run("typed.dispatchEvent(new Event('input'))")
            assert_same_as_python(page, fit, C)
        assert page.run("document.querySelectorAll('.point').length") == 24
        assert page.problems == []


def test_conventions_show_the_parameters_of_their_own_fit(open_page, written):
    page, (_, runs, fit) = open_page, written
    other = fit_law(runs, n="non_embedding", resamples=200)
    read = "[...document.querySelectorAll('#parameters tbody tr')].map(r => [r.dataset.name, "
    read += "[...r.cells].slice(1).map(c => [Number(c.dataset.value), c.textContent])])"

    def assert_shown(one):
        rows = dict(page.run(read))
        assert set(rows) == {*one.params, *one.derived}
        for name, value in {**one.params, **one.derived}.items():
            assert [v for v, _ in rows[name]] == [value, *one.intervals[name]]
            assert rows[name][0][1] == number(value, 5)
        assert one.hash in page.run("document.getElementById('which').textContent")
        assert one.hash in page.run("document.getElementById('caption').textContent")

    assert_shown(fit)
    page.run("document.querySelector('#count-n input:checked').focus()")
    page.key("ArrowRight")
    assert other.params["A"] != pytest.approx(fit.params["A"], rel=1e-3)
    assert_shown(other)
    caption = page.run("document.getElementById('caption').textContent")
    assert "parameters without embeddings" in caption and "all parameters" not in caption
    C = 10 ** float(page.run("document.getElementById('slider').value"))
    page.run("s = document.getElementById('slider'); s.focus()")
    page.key("ArrowRight")
    C = 10 ** float(page.run("document.getElementById('slider').value"))
    assert_same_as_python(page, other, C)
    page.run("document.querySelector('#count-n input:checked').focus()")
    page.key("ArrowLeft")
    assert_shown(fit)


def test_exact_compute_moves_the_points_and_keeps_the_fit(open_page, written):
    page, (_, runs, fit) = open_page, written
    page.pointer("#axis input[value=C]", click=True)
    label = f"p => p.dataset.run === {json.dumps('run-5')}"
    words = f"[...document.querySelectorAll('.point')].find({label}).getAttribute('aria-label')"
    row = runs.iloc[5]
    assert f"C {6 * row.n_total * row.tokens:.3g}," in page.run(words)
    assert page.run("document.querySelectorAll('.frontier').length") == 1
    page.pointer("#count-c input[value=exact]", click=True)
    assert f"C {row.flops_exact:.3g}," in page.run(words)
    assert page.run("document.querySelectorAll('.frontier').length") == 0  # its budget is 6 N D
    assert fit.hash in page.run("document.getElementById('caption').textContent")
    page.pointer("#count-c input[value='6nd']", click=True)
    page.pointer("#axis input[value=N]", click=True)


def test_keyboard_and_pointer_show_the_run(open_page, written):
    page, (_, _, fit) = open_page, written
    tip = "document.getElementById('tip')"
    page.run("document.querySelector('#count-c input:checked').focus()")
    page.key("Tab")
    assert page.run("document.activeElement.classList.contains('point')") and not page.run(f"{tip}.hidden")
    order, names = [page.run("document.activeElement.dataset.run")], [row["run"] for row in fit.points]
    for _ in range(13):
        page.key("ArrowRight")
        order.append(page.run("document.activeElement.dataset.run"))
    assert len(set(order)) == 14 and set(names) <= set(order)
    page.key("End")
    page.key("Home")
    assert page.run("document.activeElement.dataset.run") == order[0]
    page.key("ArrowRight")
    row = next(r for r in fit.points if r["run"] == order[1])
    words = page.run(f"{tip}.textContent")
    for fact in (row["run"], short(row["N"]), short(row["D"]), f"{row['loss']:.4f}", f"{row['predicted']:.4f}", "30 s"):
        assert fact in words
    assert f"measured over predicted{100 * (row['loss'] / row['predicted'] - 1):+.2f} %" in words
    page.key("Escape")
    assert page.run(f"{tip}.hidden")
    page.pointer(".point.held-out")
    row = next(r for r in fit.held_out if r["run"] == "run-12")
    assert "held out" in page.run(f"{tip}.textContent") and f"{row['loss']:.4f}" in page.run(f"{tip}.textContent")
    page.pointer("h1")
    assert page.run(f"{tip}.hidden")


def test_tables_sort_and_download(open_page, written):
    page, (_, runs, fit) = open_page, written
    table = "document.querySelector('table[data-csv=runs]')"
    head = [h.partition("\u2195")[0] for h in page.run(f"[...{table}.tHead.rows[0].cells].map(c => c.dataset.value)")]
    column = head.index("loss")
    button = f"{table}.tHead.rows[0].cells[{column}].querySelector('button')"
    page.run(f"{button}.focus()")
    shown = f"[...{table}.tBodies[0].rows].map(r => r.cells[{column}].textContent)"
    for key, state, order in (("Enter", "ascending", 1), (" ", "descending", -1)):
        page.key(key)
        assert page.run(f"{table}.tHead.rows[0].cells[{column}].getAttribute('aria-sort')") == state
        values = page.run(shown)
        assert values[-1] == "-"  # the failed run is last both ways
        assert values[:-1] == [f"{v:.4f}" for v in sorted(runs.loss.dropna(), key=lambda v: order * v)]
    page.run(f"{table}.parentElement.nextElementSibling.focus()")
    page.key("Enter")
    text = page.downloaded("runs.csv").decode("utf-8-sig")
    rows = {row["run"]: row for row in csv.DictReader(io.StringIO(text))}
    assert rows["run-3"]["loss"] == ""  # the failed run: an empty field, no dash
    assert set(rows) == {*runs.run_id} - {FORMULA} | {"'" + FORMULA}  # no spreadsheet runs it
    for record in runs.to_dict("records"):
        name = record["run_id"] if record["run_id"] != FORMULA else "'" + FORMULA
        if record["status"] == "done":
            assert float(rows[name]["loss"]) == record["loss"]
        assert float(rows[name]["N total"]) == record["n_total"]
    page.run("document.getElementById('fit-json').focus()")
    page.key("Enter")
    assert json.loads(page.downloaded(f"fit-{fit.hash}.json")) == json.loads(json.dumps(fit.to_dict()))
    assert page.problems == [] and all(u.startswith(("file:", "data:", "blob:")) for u in page.requests)


def test_a_page_of_any_fit_draws_its_rows(tmp_path):
    """Refused, without refits, of one variable, of many levels: no error, every row, and what can be said is said."""
    runs, N = sweep(), np.geomspace(1e5, 1e8, 8)
    line = pandas.DataFrame({"N": N, "D": 20 * N, "loss": 3 * N**-0.05})
    rng = np.random.default_rng(1)
    many = pandas.DataFrame({"N": np.exp(rng.uniform(13, 20, 40)), "D": np.exp(rng.uniform(18, 25, 40))})
    many["loss"] = predict_loss(CHINCHILLA, PLANTED, many.N, many.D) * np.exp(0.003 * rng.standard_normal(40))
    cases = {
        "refused": (None, fit_law(line), 8, 0),
        "no_refits": (runs, fit_law(runs, resamples=0), 14, 5),
        "one_variable": (runs, fit_law(runs, "power_n", resamples=50), 14, 1),
        "many_levels": (None, fit_law(many, resamples=50), 40, 3),
    }
    paths = {name: report.write_report(tmp_path / f"{name}.html", frame, f) for name, (frame, f, _, _) in cases.items()}
    with chromium.Page(paths["refused"], tmp_path / "browser") as page:
        for name, (_, fit, points, curves) in cases.items():
            page.open(paths[name])
            assert page.run("document.querySelectorAll('.point').length") == points, name
            assert page.run("document.querySelectorAll('.curve').length") == curves, name
            assert fit.hash in page.run("document.getElementById('which').textContent")
            assert page.problems == [], name
            has_optimum = fit.law == "chinchilla" and not fit.refused
            assert page.run("document.getElementById('budget').hidden") is not has_optimum
            if name == "refused":
                assert "D = 20 N" in page.run("document.getElementById('reasons').textContent")
            if name == "no_refits":
                page.run("document.getElementById('slider').dispatchEvent(new Event('input'))")
                C = 10 ** float(page.run("document.getElementById('slider').value"))
                best, cells = optimal_allocation(fit.params, C), best_of(page)
                for key, ((value, _), *ends) in cells.items():
                    assert value == pytest.approx(float(best[key]), rel=SAME_NUMBER)
                    assert [shown for _, shown in ends] == ["-", "-"]


def test_nothing_can_be_loaded(written, tmp_path):
    with chromium.Page(written[0], tmp_path) as page:
        assert page.run("fetch('http://127.0.0.1:9/').then(() => 'went', () => 'blocked')") == "blocked"
        page.run("added = document.createElement('script'); added.textContent = 'window.ran = 1'")
        page.run("document.body.append(added)")
        assert page.run("window.ran === undefined")
        assert len(page.problems) >= 2 and all("Content Security Policy" in text for text in page.problems)


def test_a_phone_and_paper(written, tmp_path):
    with chromium.Page(written[0], tmp_path, width=400) as page:
        assert page.run("document.documentElement.scrollWidth") <= 400
        assert page.run("document.querySelector('#plot svg').getBoundingClientRect().width") > 330
        page.send("Emulation.setEmulatedMedia", media="print")
        assert page.run("getComputedStyle(document.querySelector('.download')).display") == "none"
        assert page.problems == []


def test_the_slider_opens_at_the_budget_that_was_asked_for(written, tmp_path):
    _, runs, fit = written
    path = report.write_report(tmp_path / "r.html", runs, fit, budgets=[4.4e13, 1e12])
    far = report.write_report(tmp_path / "far.html", runs, fit, budgets=[1e21])
    with chromium.Page(path, tmp_path / "browser") as page:
        for where, C in ((path, 4.4e13), (far, 1e21)):
            page.open(where)
            assert_same_as_python(page, fit, C)
            assert page.run("document.getElementById('typed').value") == f"{C:.4g}"
            reach = page.run("s = document.getElementById('slider'); [Number(s.min), Number(s.max)]")
            assert reach[0] <= np.log10(C) <= reach[1] + 0.005  # the ends are written with two decimals
        numbers = (999.4, 999.5, 999499.0, 999500.0, 999999999.0, 9.996e14, 1.25e7)
        assert page.problems == []
    shown = json.dumps([short(v) for v in numbers])
    assert shown == '["999", "1k", "999k", "1M", "1B", "1e+15", "12.5M"]'
