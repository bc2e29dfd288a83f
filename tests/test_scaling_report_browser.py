"""The report in headless Chromium: guards against a page whose chart, budget or downloads differ from Python's numbers.

`browse` opens a copy of the page with one more script, which acts as a reader would and leaves its findings in the DOM.
The copy's Content-Security-Policy names that script beside the page's own, and stays in force.
"""

import base64
import csv
import hashlib
import html
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pandas
import pytest
from test_scaling_plots import PLANTED, SIZES, TOKENS

from lmjax.format import count
from lmjax.scaling.fitting import fit as fit_law
from lmjax.scaling.laws import CHINCHILLA, optimal_allocation, predict_loss
from lmjax.scaling.report import page as report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser: expected one of {', '.join(NAMES)} on the path")
EVIL = '</script><img src=x onerror="window.pwned=1"><!--\'&'
FORMULA = '=HYPERLINK("http://example.org","x")'
HARNESS = """
const problems = [], files = {};
let blob;
addEventListener("error", (event) => problems.push(String(event.message)));
document.addEventListener("securitypolicyviolation", (event) => problems.push("policy: " + event.violatedDirective));
URL.createObjectURL = (made) => { blob = made; return "#"; };
HTMLAnchorElement.prototype.click = function () { files[this.download] = blob; };
const $ = (query) => document.querySelector(query), all = (query) => [...document.querySelectorAll(query)];
const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const enter = (query, value) => { $(query).value = value; $(query).dispatchEvent(new Event("input")); };
const cells = (query) => [...$(query).cells].slice(1).map((cell) => [Number(cell.dataset.value), cell.textContent]);
const parts = ["N", "D", "tokens_per_param", "loss"];
const best = () => Object.fromEntries(parts.map((name) => [name, cells("#best-" + name)]));
const points = () => all(".point").map((p) => [p.dataset.run, p.classList[1], p.getAttribute("transform")]);
addEventListener("load", async () => {
  let found;
  try { found = await (async () => { BODY })(); } catch (error) { problems.push(String(error)); }
  const out = document.createElement("pre");
  out.id = "found";
  out.textContent = JSON.stringify({ found, problems });
  document.body.append(out);
});
"""


def browse(path, body, width=1200):
    """Runs `body`, JavaScript that returns a JSON value, in the page; returns (value, errors of the page)."""
    script = HARNESS.replace("BODY", body)
    text = path.read_text("utf8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = text.replace("script-src '", f"script-src 'sha256-{digest}' '", 1)
    copy = path.with_name(f"{path.stem}-copy.html")
    copy.write_text(
        text.replace("<meta name='viewport'", f"<script>{script}</script>\n<meta name='viewport'", 1), "utf8"
    )
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={path.parent / 'profile'}"]
    options += ["--virtual-time-budget=5000", f"--window-size={width},900", "--dump-dom", f"file://{copy}"]
    done = subprocess.run([BROWSER, *options], capture_output=True, text=True, timeout=120, check=True)
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    record = json.loads(html.unescape(found))
    return record.get("found"), record["problems"]


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
        flops_exact=7 * frame.n_total * frame.tokens, schedule_complete=True, wall_seconds=30.0, objective="causal_lm"
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
def seen(written):
    """Everything a reader does on one page, in one visit."""
    found, problems = browse(
        written[0],
        """
        const found = { points: points(), curves: all(".curve").length, dashed: all(".curve.dashed").length };
        found.pwned = window.pwned, found.images = all("main img").length, found.title = $("h1").textContent;
        found.end = Number($("#slider").max);
        found.slider = [0, 40, found.end].map((i) => { enter("#slider", i); return [i, best(), $("#times").textContent]; });
        found.typed = [3.3e12, 7.7e14].map((C) => { enter("#typed", C); return [C, best()]; });
        found.cost = [0.3, 1.1, 4].map((share) => {
          enter("#chosen", share * best().N[0][0]);
          return [Number($("#chosen").value), cells("#cost")];
        });
        found.wrong = ["-3", "1e99", ""].map((typed) => { enter("#typed", typed); return $("#wrong").textContent; });
        $("input[value=C]").click();
        found.onC = [points().length, all(".frontier").length, all(".curve").length];
        $("input[value=N]").click();
        $(".point").focus();
        found.order = [...Array(14)].map(() => { const run = document.activeElement.dataset.run; press("ArrowRight"); return run; });
        press("Home"), press("ArrowRight");
        found.tip = [document.activeElement.dataset.run, $("#tip").textContent, $("#tip").hidden];
        press("Escape");
        found.hidden = $("#tip").hidden;
        document.activeElement.blur();
        $(".point.held-out").dispatchEvent(new Event("pointerenter"));
        found.pointed = $("#tip").textContent;
        const table = $("table[data-csv=runs]"), heads = [...table.tHead.rows[0].cells];
        const column = heads.findIndex((head) => head.dataset.value === "loss");
        const shown = () => [...table.tBodies[0].rows].map((row) => row.cells[column].textContent);
        found.sorted = [0, 1].map(() => { heads[column].querySelector("button").click(); return [heads[column].getAttribute("aria-sort"), shown()]; });
        table.parentElement.nextElementSibling.click();
        $("#fit-json").click();
        found.files = {};
        for (const [name, file] of Object.entries(files)) found.files[name] = await file.text();
        found.width = [document.documentElement.scrollWidth, innerWidth];
        return found;
        """,  # noqa: E501
    )
    assert problems == []
    return found


def assert_best(cells, fit, C, tolerance):
    best = fit.allocate(C)
    for name, shown in cells.items():
        vague = name != "loss" and best[f"{name}_high"] > 100 * best[f"{name}_low"]
        for (value, text), end in zip(shown, ("", "_low", "_high"), strict=True):
            assert value == pytest.approx(float(best[name + end]), rel=tolerance)
            if tolerance < 1e-6:
                expected = f"{value:.4f}" if name == "loss" else count(value)
                assert text == ("not determined" if vague and not end else expected)


def test_every_run_is_drawn(seen, written):
    _, runs, fit = written
    kinds = {row["run"]: "fitted" for row in fit.points} | {row["run"]: "held-out" for row in fit.held_out}
    kinds |= {"run-3": "no-result", "run-7": "excluded"}
    assert {run: kind for run, kind, _ in seen["points"]} == kinds and set(kinds) == set(runs.run_id)
    assert (seen["curves"], seen["dashed"]) == (5, 2)  # three token counts, and two of held-out runs only
    assert seen.get("pwned") is None and seen["images"] == 0 and EVIL in seen["title"]
    assert seen["onC"] == [14, 1, 6]  # points, the frontier, a curve per size


def test_points_are_where_their_numbers_are(seen, written):
    """The pixel of each point is linear in the logarithms of its numbers."""
    fit = written[2]
    place = {run: transform for run, _, transform in seen["points"]}
    at = np.array([[float(v) for v in place[row["run"]][10:-1].split(",")] for row in fit.points])
    for column, name in ((0, "N"), (1, "loss")):
        logs = np.log([row[name] for row in fit.points])
        line = np.polyfit(logs, at[:, column], 1)
        np.testing.assert_allclose(np.polyval(line, logs), at[:, column], atol=0.11)  # pixels are written with 0.1
        assert line[0] * (1 if name == "N" else -1) > 0


def test_budgets_have_the_answers_of_python(seen, written):
    fit = written[2]
    largest = max(6 * row["N"] * row["D"] for row in fit.points)
    start = max(seen["slider"], key=lambda at: at[0])
    below = round(np.log10(largest / min(6 * row["N"] * row["D"] for row in fit.points)) / 0.02 + 0.4999)
    for i, cells, _ in seen["slider"]:
        assert_best(cells, fit, largest * 10 ** (0.02 * (i - below)), 5e-7)
    assert "an extrapolation" in start[2] and seen["end"] >= below + 3 / 0.02
    for C, cells in seen["typed"]:
        assert_best(cells, fit, C, 3e-3)
    for N, cells in seen["cost"]:
        expected = fit.excess(seen["typed"][-1][0], N)
        for (value, _), right in zip(cells, (expected.value, expected.low, expected.high), strict=True):
            # interpolated, shown with two digits: ends within 3 % of the width of their interval
            assert value == pytest.approx(float(right), rel=0.005, abs=0.03 * float(expected.high - expected.low))
    assert seen["wrong"][0].startswith("expected a budget from") and "got 1e99" in seen["wrong"][1]
    assert seen["wrong"][2] == ""


def test_keyboard_and_pointer_show_the_run(seen, written):
    fit = written[2]
    assert len(set(seen["order"])) == 14 and {row["run"] for row in fit.points} <= set(seen["order"])
    run, tip, hidden = seen["tip"]
    row = next(r for r in fit.points if r["run"] == run)
    assert run == seen["order"][1] and not hidden and seen["hidden"]
    for fact in (run, count(row["N"]), count(row["D"]), f"{row['loss']:.4f}", f"{row['predicted']:.4f}", "30 s"):
        assert fact in tip
    assert f"measured over predicted{100 * (row['loss'] / row['predicted'] - 1):+.2f} %" in tip
    assert "held out" in seen["pointed"]


def test_tables_sort_and_download(seen, written):
    _, runs, fit = written
    for (state, values), expected, order in zip(seen["sorted"], ("ascending", "descending"), (1, -1), strict=True):
        assert state == expected and values[-1] == "-"  # the failed run is last both ways
        assert values[:-1] == [f"{v:.4f}" for v in sorted(runs.loss.dropna(), key=lambda v, o=order: o * v)]
    rows = {row["run"]: row for row in csv.DictReader(io.StringIO(seen["files"]["runs.csv"].lstrip("\ufeff")))}
    assert rows["run-3"]["loss"] == ""  # the failed run: an empty field, no dash
    assert set(rows) == {*runs.run_id} - {FORMULA} | {"'" + FORMULA}  # no spreadsheet runs it
    for record in runs.to_dict("records"):
        name = record["run_id"] if record["run_id"] != FORMULA else "'" + FORMULA
        if record["status"] == "done":
            assert float(rows[name]["loss"]) == record["loss"]
        assert float(rows[name]["N total"]) == record["n_total"]
    assert json.loads(seen["files"][f"fit-{fit.hash}.json"]) == json.loads(json.dumps(fit.to_dict()))
    assert seen["width"][0] <= seen["width"][1]


def test_nothing_else_can_run_or_load(written):
    (ran, fetched), problems = browse(
        written[0],
        """const added = document.createElement("script");
        added.textContent = "window.ran = 1";
        document.body.append(added);
        await new Promise((done) => setTimeout(done, 100));
        return [window.ran === undefined, await fetch("http://127.0.0.1:9/").then(() => "went", () => "blocked")];""",
    )
    assert ran and fetched == "blocked" and problems and all(words.startswith("policy: ") for words in problems)


LOOK = """return [points().length, all(".curve").length, $("#budget").hidden, $("#budget").hidden ? null : best(),
  $("#budget").hidden ? null : $("#typed").value, document.documentElement.scrollWidth <= innerWidth];"""


def cases():
    """Name -> (frame of runs, table to fit, options, number of points, number of curves)."""
    N, rng = np.geomspace(1e5, 1e8, 8), np.random.default_rng(1)
    many = pandas.DataFrame({"N": np.exp(rng.uniform(13, 20, 40)), "D": np.exp(rng.uniform(18, 25, 40))})
    many["loss"] = predict_loss(CHINCHILLA, PLANTED, many.N, many.D) * np.exp(0.003 * rng.standard_normal(40))
    return {
        "refused": (None, pandas.DataFrame({"N": N, "D": 20 * N, "loss": 3 * N**-0.05}), {}, 8, 0),
        "no_intervals": (sweep(), sweep(), {"resamples": 0}, 14, 5),
        "one_variable": (sweep(), sweep(), {"law": "power_n", "resamples": 50}, 14, 1),
        "many_curves": (None, many, {"resamples": 50}, 40, 3),
    }


@pytest.mark.parametrize("name", cases())
def test_a_page_of_any_fit_draws_its_rows(name, tmp_path):
    """Refused, without intervals, of one variable, of many curves: no error, every row, on a narrow screen too."""
    runs, rows, options, expected_points, expected_curves = cases()[name]
    fit = fit_law(rows, **options)
    far = [1e21] * (name == "no_intervals")
    path = report.write_report(tmp_path / "r.html", runs, fit, budgets=far)
    (drawn, curves, no_budget, best, typed, narrow), problems = browse(path, LOOK, width=500)
    assert problems == [] and (drawn, curves) == (expected_points, expected_curves) and narrow
    assert no_budget == (fit.law != "chinchilla" or fit.refused)
    if far:  # the slider opens at the budget that was asked for
        assert typed == "1e21"
        for key, ((value, _), *ends) in best.items():
            assert value == pytest.approx(float(optimal_allocation(fit.params, 1e21)[key]), rel=1e-6)
            assert [shown for _, shown in ends] == ["-", "-"]
