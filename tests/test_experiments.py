"""Committed results stay readable, and the numbers on their pages are those of the records beside them."""

import importlib.util
import pathlib
import re

import numpy as np
import pandas
import pytest

from lmjax import config as configs
from lmjax import run_record, scaling
from lmjax.sweeps import records
from tests.conftest import ROOT

EXPERIMENTS = ROOT / "experiments"


def relative(path: pathlib.Path) -> str:
    return str(path.relative_to(EXPERIMENTS))


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.rglob("fit.json")), ids=relative)
def test_every_committed_fit_loads_and_predicts(path):
    """A change of the format must refresh the artefacts, or read the old one."""
    fit = scaling.load(path)
    fit.usable()
    prediction = fit.predict(N=1e6, D=1e7)
    assert prediction.low < prediction.value < prediction.high


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.rglob("config.json")), ids=relative)
def test_every_committed_config_is_read(path):
    configs.check(configs.from_record(configs.read_record(path)))


def script(name):
    """The module of experiments/<name>."""
    spec = importlib.util.spec_from_file_location("collect", EXPERIMENTS / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_the_showcase_are_those_of_its_records():
    folder = EXPERIMENTS / "showcase"
    collect = script("showcase/collect.py")
    summaries = {family: run_record.read_json(folder / family / "summary.json") for family in collect.FAMILIES}
    page = (folder / "README.md").read_text()
    for table in collect.tables(summaries, run_record.read_json(folder / "parity.json")):
        assert table in page


def test_the_page_of_the_quickstarts_is_what_their_records_say():
    assert script("quickstart/collect.py").readme() == (EXPERIMENTS / "quickstart" / "README.md").read_text()


def test_the_learning_rate_experiment_finds_planted_optima(monkeypatch):
    """Parabolas in log2 of the rate: exact without noise; an optimum at the edge of the rates is none."""
    collect = script("mup/collect.py")
    monkeypatch.setattr(collect, "RESAMPLES", 20)
    rows = []
    for name, slope in (("standard", 1.0), ("mup", 0.0)):
        for width in (32, 64, 128, 256) if name == "standard" else (32, 64, 128):
            best = -9.4 - slope * np.log2(width / 256)
            for x in range(-11, -3):
                facts = {"part": "", "family": "decoder", "name": name, "width": width, "x": x}
                loss = 3 - width / 256 + 0.05 * (x - best) ** 2
                rows += [{**facts, "seed": seed, "loss": loss} for seed in (0, 1)]
    table = pandas.DataFrame(rows)
    standard, mup = collect.analyse(table)
    np.testing.assert_allclose(standard["drift"], 3.0, rtol=1e-9)
    np.testing.assert_allclose(standard["regret"], 0.05 * 9, rtol=1e-9)
    np.testing.assert_allclose([*mup["drift"], *mup["regret"]], 0.0, atol=1e-9)
    np.testing.assert_allclose(mup["optima"][128], -9.4, rtol=1e-9)
    assert collect.goals(standard) == collect.goals(mup) == "reached"
    narrow = table[~((table["name"] == "mup") & (table["x"] < -9))]
    assert np.isnan(collect.analyse(narrow)[1]["drift"][0])


@pytest.mark.parametrize(
    ("file", "spec"),
    [
        ("chinchilla/rates.parquet", "chinchilla"),
        ("three_architectures/encoder.rates.parquet", "three_architectures:encoder"),
        ("three_architectures/encoder_decoder.rates.parquet", "three_architectures:encoder_decoder"),
    ],
)
def test_the_rate_of_a_grid_is_the_best_of_its_records(file, spec):
    folder, _, family = spec.partition(":")
    config = configs.load(f"{EXPERIMENTS / folder / 'config.py'}:{family}".rstrip(":"))
    rates = records.read(EXPERIMENTS / file)[0].sort_values("learning_rate").reset_index(drop=True)
    best = rates["loss"].idxmin()
    assert 0 < best < len(rates) - 1 and rates["learning_rate"][best] == config.optimizer.learning_rate
    for loss in rates["loss"][best - 1 : best + 1]:
        assert f"{loss:.4f}" in (EXPERIMENTS / folder / "config.py").read_text()


def test_branches_are_compared_with_cosine_runs_of_their_seed(tmp_path):
    """Planted: branches 0.01 nats above; seeds 0.1 apart cancel in the pairs. Trunk 8, decays of 1 and 2 FLOPs."""
    collect, rows = script("wsd_reuse/collect.py"), []
    for seed in (0, 1, 2):
        facts = {"n_total": 100, "seed": seed, "wall_seconds": 1.0}
        rows.append({**facts, "tokens": 8, "loss": 9.0, "flops_exact": 8.0, "config.schedule.name": "constant"})
        for tokens in (5, 10):
            whole = {**facts, "tokens": tokens, "flops_exact": float(tokens)}
            rows.append({**whole, "loss": 2.0 + 0.1 * seed, "config.schedule.name": "cosine"})
            decay = {"flops_inherited": 0.8 * tokens, "loss": 2.01 + 0.1 * seed, "config.schedule.name": "wsd"}
            rows.append({**whole, **decay})
    found = collect.compare(pandas.DataFrame(rows))
    np.testing.assert_allclose(found["cells"]["difference"], 0.01, rtol=1e-9)
    np.testing.assert_allclose(found["cells"]["high"], 0.01, rtol=1e-9)
    np.testing.assert_allclose([found["noise"], found["separate"], found["together"]], [0.1, 3 * 15, 3 * 11], rtol=1e-9)
    np.testing.assert_allclose(found["mean"], np.mean([0.01 / 2.0, 0.01 / 2.1, 0.01 / 2.2]), rtol=1e-9)
    assert collect.verdict(found) == "cannot be decided here"  # 0.43 % to 0.52 %
    collect.axes.save(collect.figure(found), tmp_path / "figure")
    assert "27% saved" in collect.page(found, pandas.DataFrame(rows))


def test_the_page_of_the_learning_rate_experiment_is_what_its_records_say():
    collect = script("mup/collect.py")
    runs = collect.collect()
    results = collect.analyse(runs)
    found = collect.parts(runs, collect.decoder_noise(results))
    assert collect.page(runs, results, found) == (EXPERIMENTS / "mup" / "README.md").read_text()


def test_the_page_of_the_isoflop_grid_is_what_its_records_say():
    collect = script("chinchilla/collect.py")
    assert collect.page(*collect.read()) == (EXPERIMENTS / "chinchilla" / "README.md").read_text()


def test_intervals_in_the_text_of_the_gallery_are_those_of_the_pages():
    claims, *sections = re.split(r"\n## ", (EXPERIMENTS / "README.md").read_text())
    for section in sections:
        page = claims + (EXPERIMENTS / re.match(r"\[(\w+)\]", section)[1] / "README.md").read_text()
        for interval in re.findall(r"[\d.]+ \[[\d.]+, [\d.]+\]", section):
            assert interval in page


def test_the_claims_of_the_gallery_are_what_the_records_say():
    gallery = script("gallery.py")
    text = (EXPERIMENTS / "README.md").read_text()
    assert gallery.page(text) == text
