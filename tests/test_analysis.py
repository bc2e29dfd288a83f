"""From run directories to fit.json, figures and report.html by the commands, on runs written from a planted law."""

import functools
import io
import json
import math
import pathlib
import shutil
import sys
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict
from rich.console import Console

from lmjax import cli, run_record, scaling
from lmjax.format import count
from lmjax.scaling import result
from lmjax.scaling.figures import fit as fit_figures
from lmjax.scaling.settings import varying
from lmjax.sweeps import analysis, local, plan
from lmjax.sweeps.cells import load_cells
from lmjax.sweeps.live import SweepView
from tests.conftest import ONE_DEVICE, ROOT
from tests.test_sweep import write_sweep

PLANTED = {"E": 1.2, "A": 40.0, "alpha": 0.35, "B": 60.0, "beta": 0.3}


def planted_loss(N, D):
    p = PLANTED
    return p["E"] + p["A"] * N ** -p["alpha"] + p["B"] * D ** -p["beta"]


def write_run(workdir, N, D, held_out=False, status="done"):
    """A run directory as the trainer leaves it."""
    name = f"decoder-{N}-{D}"
    run_dir = workdir / name
    run_dir.mkdir(parents=True)
    derived = {
        "family": "decoder",
        "objective": "causal_lm",
        "n_total": N,
        "n_non_embedding": N // 2,
        "tokens": D,
        "flops_exact": 7 * N * D,
        "flops_6nd": 6 * N * D,
        "epochs": 0.5,
        "steps": 100,
    }
    config = {
        "model": {"d_model": N // 1000, "num_layers": 2},
        "run": {"held_out": held_out},
        "objective": {},
        "data": {},
    }
    run_record.write_json(run_dir / "config.json", {"run_id": name, "config": config, "derived": derived})
    run_record.write_json(
        run_dir / "status.json", {"status": status, "attempts": 1, "message": "<script>alert(1)</script>"}
    )
    lines = [
        {
            "step": s,
            "tokens": D * s // 100,
            "flops": 7 * N * D * s // 100,
            "loss": planted_loss(N, D) + 2 / s,
            "learning_rate": 1e-3,
            "grad_norm": 1.0,
            "tokens_per_second": 1e4,
        }
        for s in range(10, 101, 10)
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if status == "done":
        run_record.write_json(
            run_dir / "summary.json",
            {
                **derived,
                "run_id": name,
                "status": "done",
                "held_out": held_out,
                "loss": planted_loss(N, D),
                "schedule_complete": True,
                "bits_per_byte": planted_loss(N, D) / math.log(2),
                "learning_rate": 1e-3,
                "seed": 0,
                "data_digest": "d",
                "objective_version": "1",
                "parametrization": "standard",
                "versions": {},
            },
        )
    return run_dir


@pytest.fixture
def workdir(tmp_path):
    for N in (20_000, 60_000, 200_000, 600_000):
        for D in (200_000, 1_000_000, 5_000_000):
            write_run(tmp_path / "runs", N, D)
    write_run(tmp_path / "runs", 2_000_000, 10_000_000, held_out=True)
    write_run(tmp_path / "runs", 900_000, 5_000_000, status="diverged")
    return tmp_path / "runs"


def test_fit_recovers_the_planted_law_and_excludes_what_diverged_visibly(workdir, capsys):
    assert cli.main(["fit", str(workdir), "--resamples", "50"]) == 0
    fit = run_record.read_json(workdir / "fit.json")
    for name, value in PLANTED.items():
        assert fit["params"][name] == pytest.approx(value, rel=1e-4)
    assert fit["held_out"][0]["relative_error"] == pytest.approx(0, abs=1e-6)
    assert [row["reason"] for row in fit["excluded"]] and "diverged" in json.dumps(fit["excluded"])
    assert "diverged" in capsys.readouterr().out


def test_fit_of_a_directory_takes_the_runs_of_its_last_sweep(workdir, capsys):
    """After a sweep file was edited, `lmjax sweep` and `lmjax fit` must not fit different runs in silence."""
    kept = {path.name: False for path in workdir.glob("decoder-*") if "-5000000" in path.name or "-200000" in path.name}
    kept["decoder-2000000-10000000"] = True
    run_record.write_json(workdir / "sweep.json", {"sweep": "mine.py", "runs": kept})
    runs, metrics = analysis.read(workdir)
    assert set(runs["run_id"]) == set(kept) == set(metrics)
    assert runs["run_id"][runs["held_out"]].tolist() == ["decoder-2000000-10000000"]
    assert "left out (not in the sweep mine.py; delete sweep.json to fit all runs)" in capsys.readouterr().err


def test_a_sweep_of_two_families_has_a_law_each(workdir, capsys, monkeypatch):
    """Their losses do not compare: no common fit, no traceback, a folder per family and one table of both."""
    for N in (20_000, 60_000, 200_000, 600_000):
        for D in (200_000, 1_000_000, 5_000_000):
            run_dir = write_run(workdir, N, D + 1)
            for name in ("config.json", "summary.json"):
                record = run_record.read_json(run_dir / name)
                record.get("derived", record)["family"] = "encoder"
                run_record.write_json(run_dir / name, record)
    assert cli.main(["fit", str(workdir), "--resamples", "0"]) == 64
    assert "--by family" in capsys.readouterr().err
    assert cli.main(["fit", str(workdir), "--resamples", "0", "--by", "family"]) == 0
    for family in ("decoder", "encoder"):
        assert result.load(workdir / family / "fit.json").params["alpha"] == pytest.approx(0.35, rel=1e-3)
    draw = fit_figures.plot_all  # the figures of one family are enough here
    one = lambda fit, folder, *rest: draw(fit, folder, *rest) if folder.parent.name == "decoder" else []  # noqa: E731
    monkeypatch.setattr(fit_figures, "plot_all", one)
    monkeypatch.setattr(analysis.fitting, "fit", functools.partial(analysis.fitting.fit, resamples=50))
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    analysis.analyse(workdir, [], console, "both.py")
    console.file.close()
    shown = console.export_text()
    assert {"decoder", "encoder"} <= set(shown.split()) and (workdir / "encoder" / "report.html").exists()
    assert (workdir / "decoder" / "report.html").read_text().count("data:image/png") >= 6
    assert any(line.split()[:1] == ["alpha"] and line.count("0.35") >= 2 for line in shown.splitlines())


def test_runs_from_before_a_config_key_existed_are_fitted_with_later_ones(workdir):
    """A key that is missing has its default; only another value of it makes another law."""
    later = sorted(workdir.glob("decoder-*"))[::2]
    for value in (16.0, 32.0):
        for run_dir in later:
            record = run_record.read_json(run_dir / "config.json")
            record["config"]["model"]["embedding_scale"] = value
            run_record.write_json(run_dir / "config.json", record)
        differing = varying(run_record.read_runs(workdir))
        assert differing == ({} if value == 16.0 else {"config.model.embedding_scale": ["16", "32"]})


def test_held_out_runs_of_several_families_are_predicted_by_the_law_of_their_own(workdir):
    for path in list(workdir.glob("decoder-*")):
        if "2000000" in path.name.split("-")[1] or "900000" in path.name.split("-")[1]:
            shutil.rmtree(path)
            continue
        other = path.with_name(path.name.replace("decoder", "encoder"))
        shutil.copytree(path, other)
        for name in ("config.json", "summary.json"):
            record = run_record.read_json(other / name)
            record.get("derived", record)["family"], record["run_id"] = "encoder", other.name
            if name == "summary.json":
                record["loss"] += 0.5
            run_record.write_json(other / name, record)

    def cell(family, N, D):
        derived = {"family": family, "n_total": N, "tokens": D}
        run = SimpleNamespace(
            run_id=f"{family}-{N}-{D}", derived=derived, config=ConfigDict({"model": {"family": family}})
        )
        return SimpleNamespace(run=run, run_dir=workdir / run.run_id)

    fitted = [cell(*path.name.split("-")) for path in workdir.glob("*coder-*")]
    held_out = [cell(family, 2_000_000, 10_000_000) for family in ("decoder", "encoder")]
    analysis.predict_held_out(workdir, fitted, held_out)
    groups = run_record.read_json(workdir / "prediction.json")["groups"]
    assert [(group["group"], [row["run"] for row in group["held_out"]]) for group in groups] == [
        ("decoder", ["decoder-2000000-10000000"]),
        ("encoder", ["encoder-2000000-10000000"]),
    ]
    for group, shift in zip(groups, (0.0, 0.5), strict=True):
        expected = planted_loss(2_000_000, 10_000_000) + shift
        assert group["held_out"][0]["predicted"] == pytest.approx(expected, rel=1e-4)


def test_a_report_has_its_figures_and_escapes_what_runs_say(workdir):
    assert cli.main(["report", str(workdir), "--resamples", "50"]) == 0
    names = {path.stem for path in (workdir / "figures").glob("*.png")}
    assert {
        "training_curves",
        "loss_vs_params",
        "loss_vs_tokens",
        "predicted_vs_measured",
        "residuals",
        "summary",
    } <= names
    page = (workdir / "report.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "data:image/png;base64," in page


def test_fit_of_a_table_and_its_refusals(tmp_path, capsys):
    table = tmp_path / "points.csv"
    rows = [(N, D) for N in (1e6, 4e6, 2e7, 1e8) for D in (1e8, 1e9, 1e10)]
    table.write_text("N,D,loss\n" + "".join(f"{N},{D},{planted_loss(N, D)}\n" for N, D in rows))
    assert cli.main(["fit", str(table), "--resamples", "50", "--out", str(tmp_path / "law")]) == 0
    assert run_record.read_json(tmp_path / "law" / "fit.json")["params"]["alpha"] == pytest.approx(0.35, rel=1e-4)
    table.write_text("N,D,loss\n" + "".join(f"{N},{20 * N},{planted_loss(N, 20 * N)}\n" for N, _ in rows[::2]))
    assert cli.main(["fit", str(table)]) == 64
    assert "refused" in capsys.readouterr().out.lower()
    table.write_text("N,D,loss\n1e6,1e8,nan\n")
    assert cli.main(["fit", str(table)]) == 64
    table.write_text("N,Tokns,loss\n1e6,1e8,2\n")
    assert cli.main(["fit", str(table)]) == 64


def test_a_table_of_any_framework_to_law_prediction_split_figures_and_page(tmp_path, capsys, monkeypatch):
    """Counts in millions and billions; the prediction and the split are those of the planted law."""
    monkeypatch.chdir(tmp_path)
    rows = [(N, D) for N in (1, 4, 20, 100) for D in (0.1, 1, 10)]
    pathlib.Path("mine.csv").write_text(
        "N,D,val\n" + "".join(f"{N},{D},{planted_loss(N * 1e6, D * 1e9)}\n" for N, D in rows)
    )
    command = ["report", "mine.csv", "--columns", "loss=val", "--units", "N=1M,D=1e9", "--resamples", "50"]
    assert cli.main([*command, "--predict", "N=1B,D=2e10", "--budget", "1e20"]) == 0
    printed = capsys.readouterr().out
    assert f"predicted at N = 1B, D = 20B (20 times the largest fitted 6 N D): {planted_loss(1e9, 2e10):.4f}" in printed
    assert printed.count("more than 10 times above the largest fitted compute") == 2
    fit = result.load("mine-law/fit.json")
    best = scaling.optimal_allocation(PLANTED, 1e20)
    assert f"N* {count(float(best['N']))} (" in printed and f"loss {float(best['loss']):.4f} (" in printed
    assert fit.params["beta"] == pytest.approx(PLANTED["beta"], rel=1e-4)
    assert pathlib.Path("mine-law/report.html").stat().st_size > 10_000
    for bad, words in (
        (["--predict", "N=1e9"], "expected N and D"),
        (["--predict", "N:1"], "expected NAME=VALUE"),
        (["--units", "N=x"], "expected a number such as 7e9 or 7B, got 'x'"),
        (["--law", "chinchila"], "did you mean 'chinchilla'"),
        (["--n", "non_embedding"], "expected columns 'n_non_embedding'"),
        (["--hold-out", "much"], "--hold-out: expected a number"),
        (["--out", "law.json"], "expected a folder"),
    ):
        assert cli.main([*command, *bad]) == 64
        assert words in capsys.readouterr().err, bad


def test_results_as_csv_and_json_stand_alone_on_standard_output(tmp_path, capsys):
    """A table of parameters, holdout rows or proposed runs can be piped: everything else goes to standard error."""
    table = tmp_path / "t.csv"
    rows = [(N, D) for N in (1e6, 4e6, 2e7, 1e8) for D in (1e8, 1e9, 1e10)]
    table.write_text("N,D,loss\n" + "".join(f"{N},{D},{planted_loss(N, D)}\n" for N, D in rows))
    assert cli.main(["fit", str(table), "--resamples", "20", "--format", "json", "--budget", "1e20"]) == 0
    printed = capsys.readouterr()
    values = {row["parameter"]: row["value"] for row in json.loads(printed.out)}
    assert values["beta"] == pytest.approx(PLANTED["beta"], rel=1e-4) and "budget 1e20 FLOP" in printed.err
    assert cli.main(["holdout", str(table), "--resamples", "0", "--format", "csv"]) == 0
    heads, first, *_ = capsys.readouterr().out.splitlines()
    assert {"N", "D", "loss", "predicted"} <= set(heads.split(",")) and first.count(",") == heads.count(",")
    assert cli.main(["design", "--budgets", "1e15,1e16,1e17", "--format", "json"]) == 0
    assert all(cell["C"] in (1e15, 1e16, 1e17) for cell in json.loads(capsys.readouterr().out))


def test_figures_that_cannot_be_drawn_are_refused_before_anything_is_fitted(tmp_path, capsys, monkeypatch):
    """A missing matplotlib or an unknown format was reported after minutes of computation."""
    (tmp_path / "t.csv").write_text("N,D,loss\n1e6,1e8,2\n")
    source = str(tmp_path / "t.csv")
    monkeypatch.setattr("lmjax.scaling.table.read_table", None)
    assert cli.main(["plot", source, "--formats", "gif"]) == 64
    assert "expected png, svg, pdf, got 'gif'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for command in (["report", source], ["isoflop", source, "--out", "x.png"], ["frontier", source, "--out", "x.png"]):
        assert cli.main(command) == 64
        assert 'figures need matplotlib: pip install "lmjax[plot]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("law", "loss", "header", "rows"),
    [
        ("kaplan_n", "loss", "N,loss", [(N, (8.8e13 / N) ** 0.076) for N in (1e6, 3e6, 1e7, 3e7, 1e8, 3e8)]),
        (
            "encoder_decoder",
            "loss",
            "N_e,N_d,loss",
            [(e, d, 1.5 + 30 * e**-0.1 * d**-0.15) for e in (1e6, 1e7, 1e8) for d in (2e6, 3e7, 2e8)],
        ),
        ("sigmoid_c", "acc", "C,acc", [(10.0**k, 0.1 + 0.8 / (1 + math.exp(2 * (11 - k)))) for k in range(5, 17)]),
    ],
    ids=lambda value: value if value in ("kaplan_n", "encoder_decoder", "sigmoid_c") else "",
)
def test_laws_of_other_variables_from_table_to_page(tmp_path, law, loss, header, rows, capsys):
    """Neither N nor D need be there; the law comes back, its figures and, by `report`, its page are drawn."""
    table, out = tmp_path / "t.csv", tmp_path / "law"
    table.write_text("\n".join([header, *(",".join(map(repr, row)) for row in rows)]))
    options = [str(table), "--law", law, "--loss", loss, "--resamples", "20", "--out", str(out)]
    if law == "sigmoid_c":
        assert cli.main(["plot", *options, "--formats", "pdf,svg"]) == 0, capsys.readouterr()
        kinds = [path.suffix for path in (out / "figures").iterdir()]
        assert kinds.count(".pdf") == kinds.count(".svg") >= 3 and not (out / "report.html").exists()
    assert cli.main(["report", *options]) == 0, capsys.readouterr()
    fit = result.load(out / "fit.json")
    assert max(abs(row["residual"]) for row in fit.points) < 1e-6  # rounding of an exact law
    assert len(list((out / "figures").glob("*.png"))) >= 3 and (out / "report.html").exists()


def test_a_split_becomes_the_command_of_the_nearest_model(tmp_path, capsys):
    """The printed model has the count it says, within the step of the family, and its command resolves."""
    table = tmp_path / "t.csv"
    rows = [(N, D) for N in (1e4, 4e4, 2e5, 1e6) for D in (1e5, 1e6, 1e7)]
    table.write_text("N,D,loss\n" + "".join(f"{N},{D},{planted_loss(N, D)}\n" for N, D in rows))
    options = ["--budget", "2e12", "--config", str(ROOT / "configs" / "tiny.py"), "--config.optimizer.b1=0.8"]
    assert cli.main(["fit", str(table), "--resamples", "20", *options]) == 0
    printed = capsys.readouterr().out
    words = next(line for line in printed.splitlines() if line.startswith("lmjax train")).split()[2:]
    assert cli.main(["describe", *words, "--format", "json"]) == 0
    derived = json.loads(capsys.readouterr().out)["derived"]
    wanted = scaling.optimal_allocation(PLANTED, 2e12)
    assert abs(math.log(derived["n_total"] / wanted["N"])) < math.log(1.5)
    assert derived["tokens"] == pytest.approx(float(wanted["D"]), rel=0.01)
    assert f"N = {count(derived['n_total'])} (" in printed and "--config.optimizer.b1=0.8" in words


def test_plan_prints_costs_time_and_warnings(tmp_path, capsys, monkeypatch):
    """Calibration really runs a worker, the design along one ray is called out, and 80 columns show every number."""
    cells = '[{"model.d_model": d, "duration.steps": s} for d, s in ((8, 10), (16, 24), (24, 43), (32, 64), (40, 90))]'
    sweep = write_sweep(tmp_path, cells)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("XLA_FLAGS", ONE_DEVICE)  # of the worker
    in_worker = plan._calibrate_in_worker
    first = functools.cache(lambda: in_worker(load_cells(str(sweep), tmp_path / "runs", {})[0], local.slots()[0], 1, 5))
    monkeypatch.setattr(plan, "_calibrate_in_worker", lambda *_: first())  # a second worker shows nothing new
    assert cli.main(["sweep", str(sweep), "--dry-run", "--workdir", str(tmp_path / "runs")]) == 0
    shown = capsys.readouterr().out
    for words in ("5 cells to train", "C (exact)", "lr", "time", "of disk, about", "design:"):
        assert words in shown, words
    table = shown.split("not shown")[0]
    for cell in load_cells(str(sweep), tmp_path / "runs", {}):
        numbers = (cell.run.run_id[-10:][:6], count(cell.run.derived["n_total"]), f" {cell.run.steps} ")
        assert any(all(number in line for number in numbers) for line in table.split("\n")), (numbers, table)
    assert "…" not in shown and not (tmp_path / "runs").exists()


def test_the_live_table_shows_status_progress_and_time_left(tmp_path):
    cells = load_cells(str(write_sweep(tmp_path, 'fixed({"train.seed": 1}) + fixed({"train.seed": 2})')), tmp_path, {})
    view = SweepView(cells, Console(width=160, record=True, file=open("/dev/null", "w")))  # noqa: SIM115
    first, second = (cell.run.run_id for cell in cells)
    view.headline({})
    statuses = {
        first: {"status": "done", "step": 6, "loss": 2.5, "validation_loss": 2.75},
        second: {"status": "running", "step": 3, "loss": 3.25, "tokens_per_second": 12345.0, "eta_seconds": 65.0},
    }
    view.console.print(view.table(statuses))
    shown = view.console.export_text()
    view.console.file.close()
    for words in ("1 done, 1 running", "train loss", "validation loss", "2.750", "3/6", "3.250", "12.3k", "1m05s"):
        assert words in shown, words
    narrow = Console(width=60, record=True, file=io.StringIO())
    narrow.print(SweepView(cells, narrow).table(statuses))
    shown = narrow.export_text()
    assert "…" not in shown and "3/6" in shown and "3.250" in shown and "not shown at this width" in shown


def test_a_sweep_of_rates_at_one_size_names_the_next_step(tmp_path):
    """Where no law can be fitted because only the learning rate varies, `fit` and `sweep` say so."""
    import pandas

    rows = [
        {"status": "done", "n_total": 1e4, "tokens": 1e6, "config.optimizer.learning_rate": r} for r in (1e-3, 3e-3)
    ]
    advice = analysis.rate_sweep_advice(pandas.DataFrame(rows), tmp_path)
    assert "learning rate (0.001, 0.003)" in advice and f"lmjax tuning {tmp_path}" in advice
    assert not analysis.rate_sweep_advice(pandas.DataFrame([{**rows[0]}, {**rows[1], "n_total": 2e4}]), tmp_path)
    assert not analysis.rate_sweep_advice(pandas.DataFrame(rows[:1]), tmp_path)
