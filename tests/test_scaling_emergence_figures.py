"""Emergence figure and command: every tested point is drawn, and written files read back."""

import dataclasses
import json
import re

import matplotlib
import numpy as np
import pandas
import pytest

from lmjax import cli
from lmjax.cli import emergence as command
from lmjax.errors import InputError
from lmjax.evals import table as evaluations
from lmjax.scaling.emergence import curves
from lmjax.scaling.emergence.classify import METRIC_ONLY, classify
from lmjax.scaling.figures import emergence as figures
from tests.emergence_ladders import ladder, power


@pytest.fixture(scope="module")
def tables():
    table, items = ladder(power, 0, items=120)
    table["held_out"] = table["run_id"].str.startswith("g6")
    failed = {"run_id": "f", "task": "", "status": "not_evaluated", "flops_exact": 3e16, "n_total": 3e7, "loss": 2.2}
    return pandas.concat([table, pandas.DataFrame([failed])], ignore_index=True), items


@pytest.fixture(scope="module")
def made(tables):
    return classify(tables[0], "sum", items=tables[1], resamples=60)


@pytest.fixture(scope="module")
def figure(made):
    return figures.emergence_figure(made)


def texts(figure):
    figure.canvas.draw()
    return [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text()]


def drawn(ax, marker):
    return [line for line in ax.lines if line.get_marker() == marker and len(line.get_xdata())]


def test_every_run_and_point_is_drawn(made, figure):
    hard, smooth, deviation, left_out = figure.axes
    for ax, column, sign in ((hard, "hard", 1), (smooth, "smooth", -1)):
        (runs,) = drawn(ax, ".")
        points = set(zip(*runs.get_data(), strict=True))
        assert points == {(row["x"], sign * row[column]) for row in made.cells}
        sizes = [
            (x, y) for marker in "oDv" for line in drawn(ax, marker) for x, y in zip(*line.get_data(), strict=True)
        ]
        censored = [max(row["hard"], 1 / made.n) if column == "hard" else -row["smooth"] for row in made.points]
        np.testing.assert_allclose(sorted(sizes), [(row["x"], y) for row, y in zip(made.points, censored, strict=True)])
        (held,) = drawn(ax, "D")
        assert held.get_xdata().tolist() == [made.points[-1]["x"]] and held.get_markerfacecolor() == "white"
        (cross,) = drawn(ax, "x")
        assert list(cross.get_xdata()) == [3e16]
        assert ax.get_xscale() == "log"
    free = [row for row in made.points if not row["censored"]]
    np.testing.assert_allclose(drawn(deviation, "o")[0].get_ydata(), [row["deviation"] for row in free])
    np.testing.assert_allclose(drawn(left_out, "s")[0].get_ydata(), np.abs(made.broken.power_error))


def test_null_levels_and_laws_are_lines(made, figure):
    hard, smooth, *_ = figure.axes
    lines = {line.get_label(): line for line in (*hard.lines, *smooth.lines)}
    np.testing.assert_allclose(lines["$p^L$, L = 4"].get_ydata(), [row["null"] for row in made.points])
    np.testing.assert_allclose(lines["a sampled answer"].get_ydata(), [row["sampled"] for row in made.points])
    assert set(lines["chance 0"].get_ydata()) == {0.0}
    assert set(lines["1/n above, n = 120"].get_ydata()) == {1 / 120}
    np.testing.assert_allclose(lines["law with a break"].get_ydata(), made.broken.curve[2])
    edges = hard.collections[0].get_paths()[0].vertices
    assert set(edges[:, 1]) >= {row["null_low"] for row in made.points} | {row["null_high"] for row in made.points}


def test_words_are_drawn(made, figure):
    words = texts(figure)
    assert f"sum: {METRIC_ONLY}" in words
    foot = next(w for w in words if made.data_hash in w).replace("\n", " ")
    for part in (made.sentence, *made.conventions.values(), "95% intervals from 60 resamples", *made.warnings):
        assert part in foot


def test_what_was_not_tested_is_said(tables):
    few = classify(tables[0][tables[0]["run_id"].str[:2].isin(["g1", "g2", "g3"])], "sum", resamples=20)
    assert "no test: 3 points; at least 5 are needed" in [
        t.replace("\n", " ") for t in texts(figures.emergence_figure(few))
    ]
    no_tokens = tables[0][tables[0]["metric"] != "token_accuracy"]
    words = texts(figures.emergence_figure(classify(no_tokens, "sum", resamples=20)))
    assert any("no token_accuracy" in word.replace("\n", " ") for word in words)


def test_against_the_loss_the_axis_runs_backwards(tables):
    own = tables[0].assign(run_status="done")  # a column of lmjax's tables only: the loss of others may be anything
    for table, words in ((tables[0], "loss column of the table"), (own, "validation nats per predicted token")):
        figure = figures.emergence_figure(classify(table, "sum", x="loss", resamples=20))
        for ax in figure.axes:
            left, right = ax.get_xlim()
            assert left > right and ax.get_xlabel() == f"loss = {words}"


@pytest.mark.parametrize("decades", [0.02, 0.3, 1.0])
def test_ticks_of_any_range_differ(decades):
    made = classify(ladder(power, 0, sizes=4, decades=decades, items_too=False)[0], "sum")
    figure = figures.emergence_figure(made)
    figure.canvas.draw()
    for ax in figure.axes:
        low, high = ax.get_xlim()
        labels = [label.get_text() for label in ax.get_xticklabels() if low <= label.get_position()[0] <= high]
        assert len(labels) == len(set(labels)) >= 1, labels
        boxes = [label.get_window_extent() for label in ax.get_xticklabels() if label.get_text() in labels]
        boxes.sort(key=lambda box: box.x0)
        assert all(one.x1 < other.x0 for one, other in zip(boxes, boxes[1:], strict=False)), labels


def test_results_are_plain(made, tmp_path):
    plain = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert plain["verdict"] == made.verdict and plain["broken"]["p_value"] == made.broken.p_value
    assert len(plain["points"]) == 7 and plain["points"][0]["hard"] == made.points[0]["hard"]
    rows = command.frame([made])
    assert rows["hard"].tolist() == [row["hard"] for row in made.points] and set(rows["verdict"]) == {made.verdict}


def test_command_writes_what_it_says(tables, tmp_path, capsys):
    source, out = tmp_path / "sweep", tmp_path / "out"
    source.mkdir()
    told = tables[0].assign(kind="generation", better="higher", text_source="", reason="")
    evaluations.write(evaluations.frame(told.to_dict("records")), source / "evaluations.csv")
    for run_id, part in tables[1].groupby("run_id"):
        folder = source / run_id / "evaluations"
        folder.mkdir(parents=True)
        metrics = {m: [p["numerator"].tolist(), p["denominator"].tolist()] for m, p in part.groupby("metric")}
        facts = {"step": 10, "task": "sum", "task_hash": "t", "shots": 0, "limit": None, "seed": 0}
        (folder / "sum.json").write_text(json.dumps(facts | {"values": metrics, "items": {"index": list(range(120))}}))
    assert cli.main(["emergence", str(source), "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert METRIC_ONLY in said and "rise, hard metric" in said and "1 cell left out: not evaluated" in said
    names = {path.name for path in out.iterdir()}
    assert names == {"emergence.csv", "emergence.json", "emergence-sum-C.png"}
    (kept,) = json.loads((out / "emergence.json").read_text())
    assert kept["resamples"] == 400 and kept["verdict"] == METRIC_ONLY and len(kept["points"]) == 7
    assert not any("no table of items" in warning for warning in kept["warnings"])
    _, items, _ = command.read(source)
    assert items.groupby(["run_id", "metric"]).ngroups == tables[1].groupby(["run_id", "metric"]).ngroups
    assert cli.main(["emergence", str(tmp_path)]) == 64
    assert "make one with lmjax eval" in capsys.readouterr().err
    assert cli.main(["emergence", str(source), "--tasks", "summ"]) == 64
    assert "did you mean 'sum'" in capsys.readouterr().err


def test_the_command_writes_beside_its_source_unless_told_otherwise(tmp_path, capsys):
    """Nothing was written without --out, although the help promised the source's folder."""
    (tmp_path / "tables").mkdir()
    own_csv(2).to_csv(tmp_path / "tables" / "mine.csv", index=False)
    assert cli.main(["emergence", str(tmp_path / "tables" / "mine.csv")]) == 0
    assert (tmp_path / "tables" / "emergence.csv").is_file() and "emergence.json" in capsys.readouterr().out
    assert cli.main(["emergence", str(tmp_path / "tables" / "mine.csv"), "--where", "C"]) == 64


def own_csv(sizes=1, tasks=("sum",), **extra):
    """A table of somebody else's: no run_id, no steps, no statuses."""
    table = pandas.concat([ladder(power, k, sizes=sizes, seeds=3, items=60, items_too=False)[0].assign(task=name)
                           for k, name in enumerate(tasks)])  # fmt: skip
    return table[["task", "metric", "value", "n", "flops_exact"]].rename(columns={"flops_exact": "C"}).assign(**extra)


def test_tasks_of_few_points_are_listed_and_not_drawn(tmp_path, capsys, monkeypatch):
    source, out = tmp_path / "mine.csv", tmp_path / "out"
    own_csv(1, [f"task{k}" for k in range(12)]).to_csv(source, index=False)
    monkeypatch.setattr("lmjax.scaling.emergence.null.draw", None)  # decided before anything is resampled
    assert cli.main(["emergence", str(source), "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "12 tasks: not decidable from these runs: 1 point, at least 5 are needed task0, task1, task10" in said
    assert said.count("warning: the table has no run_id") == said.count("warning: no table of items") == 1
    assert {path.name for path in out.iterdir()} == {"emergence.csv", "emergence.json"}
    assert len(pandas.read_csv(out / "emergence.csv")) == 12


def test_rows_without_run_id_are_runs_in_their_order():
    table = own_csv(7)
    made = classify(table, "sum", resamples=50)
    known = ladder(power, 0, sizes=7, seeds=3, items=60, items_too=False)[0]
    pairs = known.pivot(index="run_id", columns="metric", values="value")
    assert {(row["hard"], row["smooth"]) for row in made.cells} == set(
        zip(pairs["exact_match"], pairs["log_likelihood_per_token"], strict=True)
    )
    assert any("no run_id" in warning for warning in made.warnings) and len({r["run_id"] for r in made.cells}) == 21


def test_all_missing_columns_are_named_at_once():
    with pytest.raises(
        InputError, match=r"no column task, metric, value, n, of scale .*; it has a; expected a row per"
    ) as e:
        curves.read(pandas.DataFrame({"a": [1]}))
    assert curves.COLUMNS_WORDS in str(e.value) and "exact_match" in str(e.value) and "bits_per_byte" in str(e.value)
    with pytest.raises(InputError, match="no column value, n; it has"):
        curves.read(own_csv().drop(columns=["value", "n"]))


def test_names_of_tasks_are_no_paths(made, tmp_path):
    names = ["../../evil", "a/b", "a b", "A", "a", "sum", "x" * 300, "..", "größe"]
    results = [dataclasses.replace(made, task=name) for name in names]
    stems = command._names(results)
    assert len({name.lower() for name in stems}) == len(names) and "emergence-sum-C" in stems
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,120}", name) for name in stems)
    paths = command.write(results[:1], tmp_path / "deep" / "out")
    assert all(path.parent == tmp_path / "deep" / "out" and path.is_file() for path in paths) and len(paths) == 3


def test_no_table_is_written_where_a_figure_fails(made, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "emergence_figure", lambda result: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command.write([made], tmp_path)
    assert not list(tmp_path.iterdir())
