"""Committed results stay readable, and the numbers on their pages are those of the records beside them."""

import importlib.util
import pathlib

import pytest

from lmjax import config as configs
from lmjax import run_record, scaling
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
