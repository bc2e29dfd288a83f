"""The report: one file, offline, escaped, and honest."""

import base64
import html.parser
import re

import numpy as np
import pandas
import pytest
from test_scaling_plots import made_up_runs

from lmjax.errors import InputError
from lmjax.scaling import axes, plots, result
from lmjax.scaling.fitting import fit as fit_law
from lmjax.scaling.render import headline
from lmjax.scaling.report import page as report

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
        if tag not in ("meta", "img"):
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
    fit = fit_law(runs, bootstrap=100)
    figures = plots.plot_all(runs, metrics, fit, folder / "figures", ("png", "svg"))
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


def test_everything_is_escaped_and_well_formed(written):
    _, text, _, _, _ = written
    assert "<script" not in text.lower() and text.count("&lt;script&gt;") > 20
    page = Page(text)
    assert page.open == [] and "script" not in page.tags
    assert f"A title {EVIL}" in "".join(page.words)


def test_it_needs_nothing_else(written):
    _, text, _, _, figures = written
    assert not re.search(r"https?://|//[a-z]+\.|url\(|@import|<link", text)
    page = Page(text)
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert len(sources) == 6 and all(s.startswith("data:image/png;base64,") for s in sources)
    images = {base64.b64decode(s.partition(",")[2]) for s in sources}
    assert images == {path.read_bytes() for path in figures if path.suffix == ".png"}


def test_it_says_everything(written):
    _, text, runs, fit, _ = written
    words = " ".join("".join(Page(text).words).split())
    assert headline(fit) in words
    for name in runs.run_id:
        assert words.count(name) >= 1
    for heading in (
        "The fit",
        "Runs that were held out",
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


def test_headline_is_honest():
    runs, _ = made_up_runs()
    fit = fit_law(runs, bootstrap=50)
    worst = max(abs(row["relative_error"]) for row in fit.held_out)
    assert f"predicted within {100 * worst:.2f} %" in headline(fit)
    assert "untested" in headline(fit_law(runs[~runs.held_out], bootstrap=50))


def test_a_fit_without_refits_is_drawn_and_reported_without_intervals(tmp_path):
    runs, metrics = made_up_runs()
    fit = fit_law(runs, bootstrap=0)
    assert [row["inside"] for row in fit.held_out] == [None, None]
    assert result.from_dict(fit.to_dict()).to_dict() == fit.to_dict()
    figures = [axes.save(plots.predicted_vs_measured(fit), tmp_path / "predicted_vs_measured", ("png",))[0]]
    assert len(plots.loss_vs_params(fit).axes[0].collections) == 0
    text = report.write_report(tmp_path / "r.html", runs, fit, figures).read_text("utf8")
    assert "no intervals were made" in text and "nan" not in re.sub("base64,[^']*", "", text)
    Page(text)


def test_missing_figure_is_an_error(tmp_path):
    runs, _ = made_up_runs()
    with pytest.raises(InputError, match="no figure"):
        report.write_report(tmp_path / "r.html", runs, fit_law(runs, bootstrap=0), [tmp_path / "gone.png"])
    assert not (tmp_path / "r.html").exists()
