"""Tables that gave a confident wrong law in silence: each is named now, and sound tables are not."""

import ast
import json
import shlex

import numpy as np
import pandas
import pytest

from lmjax import cli
from lmjax.errors import InputError
from lmjax.scaling import fit
from lmjax.scaling.settings import matches
from lmjax.scaling.table import read_table
from tests.conftest import ROOT

N, D = (x.ravel() for x in np.meshgrid(np.geomspace(5e7, 3e9, 5), np.geomspace(2e9, 1e11, 5)))
LOSS = 1.7 + 400 * N**-0.34 + 1500 * D**-0.37
RNG = np.random.default_rng(0)


def table(**columns):
    """25 sound runs with other columns."""
    return pandas.DataFrame({"N": N, "D": D, "loss": LOSS}).assign(**columns)


def twice(**columns):
    """The same (N, D) twice, with columns of 2 values, one per copy."""
    both = pandas.concat([table(), table(loss=LOSS * 1.002)], ignore_index=True)
    return both.assign(**{name: np.repeat(values, 25) for name, values in columns.items()})


def doubts(frame, **options):
    return " | ".join(read_table(frame, **options).warnings)


def wrapped(values, kind):
    """Values as a column of 32 or 64 bits holds them."""
    bits = np.dtype(kind).itemsize * 8
    return np.array([(int(x) + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1) for x in values], kind)


def test_a_sound_table_raises_no_doubt():
    read = read_table(table())
    assert read.warnings == () and read.notes == ("columns: N = N, D = D, loss = loss; C = 6 N D FLOP",)


def test_a_column_of_compute_that_is_not_used_is_named():
    """A table with its own count of FLOPs was fitted and allocated in 6 N D without a word about the column."""
    frame = table(train_flops=6 * N * D * np.linspace(1.3, 1.5, 25))
    *_, said = read_table(frame).notes
    assert "column train_flops is not used: it is 1.3 to 1.5 times 6 N D; --c exact" in said
    exact = read_table(frame, c="exact")
    assert "not used" not in " ".join(exact.notes) and exact.points.C.equals(frame.train_flops.rename("C"))
    assert len(read_table(table(train_flops=6 * N * D * 1.1)).notes) == 1


@pytest.mark.parametrize(
    ("frame", "options", "expected"),
    [
        (table(N=D, D=N), {}, "N and D may be exchanged (--columns N=D,D=N)"),
        (table(D=D / 2**20), {}, "D may count optimizer steps"),
        (table(steps=D / 2**20), {"columns": {"D": "steps"}}, "D is read from the column steps: D must count tokens"),
        (table(S=D / 2**20, B=2.0**20, D=D / 1e3), {}, "steps times tokens per step are 1e+03 times D"),
        (table(N=N / 1e6), {}, "N may be in units of 1e6 (--units N=1e6)"),
        (table(D=D / 1e3), {}, "D may be in units of 1e3 (--units D=1e3)"),
        (table(N=N * 50, D=D / 1e3 * 50, C=6 * N * D * 2500), {}, "C is 1e+03 times 6 N D (median): check the units"),
        (table(), {"units": {"N": 1e6}}, "a unit in --units may be wrong"),
        (table(), {"units": {"N": 1e6, "D": 1e6}}, "N is up to 3e15, more than any model"),
        (table(loss=np.exp(LOSS)), {}, "is loss a perplexity"),
        (table(loss=2 * LOSS, vocab_size=512), {}, "above 6.24 nats, that of a uniform guess"),
        (table(val_ppl=np.exp(LOSS)), {"loss": "val_ppl"}, "the column val_ppl holds a perplexity"),
        (table(U=1e9), {}, "fit --law data_constrained, or only --where 'D <= 4 * U'"),
        (table(epoch=np.linspace(1, 9, 25)), {}, "up to 9.0"),
        (table(weight=np.linspace(1, 2, 25)), {}, "the column weight is not used as weights of the fit"),
        (table(tokens=np.geomspace(1e6, 1e8, 25)), {}, "column D is used as D, and tokens differs from it"),
        (table(val_loss=LOSS + 0.1), {}, "the table also has the validation loss val_loss"),
        (table(C=wrapped(6 * N * D, "int32")), {}, "rows, which an integer overflow does: row "),
        (table(C=wrapped(6 * N * D, "int64")), {}, "rows, which an integer overflow does: row "),
        (table(C=6 * N * D * np.where(np.arange(25) == 3, 1e-3, 1)), {}, "in row 4 (0.001 times): check these rows"),
    ],
)
def test_a_trap_is_named(frame, options, expected):
    assert expected in doubts(frame, **options)


@pytest.mark.parametrize(
    ("column", "values", "example"),
    [
        ("dataset", ["c4", "pile"], "--where dataset=c4"),
        ("model_family", ["opt", "pythia"], "--where model_family=opt"),
        ("lr", [1e-3, 3e-3], "--where lr=0.001"),
        ("weight decay", [0.1, 0.0], "--where 'weight decay=0.1'"),
        ("data/mix", ["web", "code"], "--where data/mix=web"),
        ("muon", [True, False], "--where muon=True"),
    ],
)
def test_rows_of_two_recipes_are_no_seeds(column, values, example):
    """The scatter between recipes was called seeds, and the law went through their middle."""
    frame = twice(**{column: values})
    said = doubts(frame)
    assert (
        f"rows of the same N and D differ in {column} (" in said
        and example in said
        and f"--by {shlex.quote(column)}" in said
    )
    assert doubts(frame, where=f"`{column}` == {values[0]!r}") == "" and doubts(frame, allow=[column]) == ""
    assert "(seeds)" not in " ".join(read_table(frame).notes)


def test_recipes_that_share_no_n_and_d_are_seen_too_and_learning_rates_drawn_at_random():
    apart = table(N=N * np.exp(0.3 * RNG.standard_normal(25)), series=RNG.choice(["opt", "pythia"], 25))
    assert "differ in series (opt, pythia)" in doubts(apart)
    assert "differ in lr (" in doubts(twice().assign(lr=10 ** RNG.uniform(-4, -2, 50)))


def test_columns_that_name_seed_or_measure_a_run_raise_no_doubt():
    i = np.arange(50)
    harmless = {
        "run_id": [f"r{k}" for k in i], "data_seed": i % 2, "replicate": np.repeat([0, 1], 25),
        "host": [f"n{k % 3}" for k in i], "grad_norm": RNG.uniform(0, 1, 50),
        "_timestamp": 1.7e9 + i, "created_at": [f"2025-01-{1 + k % 28:02d}" for k in i], "notes": ["", "again"] * 25,
        "wall_seconds": RNG.uniform(1, 9, 50), "tokens_per_second": RNG.uniform(1, 9, 50),
        "hellaswag": RNG.uniform(0, 1, 50), "acc": np.round(RNG.uniform(0, 1, 50), 1), "peak_memory_gb": i % 5,
        "commit": [f"c{k % 4}" for k in i], "gpu_type": ["a", "b"] * 25, "path": [f"/x/{k % 7}" for k in i],
    }  # fmt: skip
    for name, values in harmless.items():
        assert doubts(twice().assign(**{name: values})) == "", name
    size = pandas.Series(N).rank(method="dense").map(lambda k: f"size {k:.0f}")
    budget = pandas.Series(N * D).round(-18).astype(str)
    assert doubts(table(model=size, budget=budget, width=N // 1e6, lr=N**-0.5, batch=D // 1e6)) == ""


def test_columns_that_follow_another_variable_of_the_law_raise_no_doubt():
    unique = twice(U=[1e9, 4e9], epochs_planned=[4, 1], subset=["small", "large"])
    assert doubts(unique, law="data_constrained") == "" and "and with it epochs_planned, subset" in doubts(unique)
    compute = pandas.DataFrame({"C": N * D, "loss": LOSS, "lr": D**-0.5, "budget": pandas.Series(N * D).rank() // 5})
    assert doubts(compute, law="power_c") == ""


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").rglob("runs.csv")), ids=lambda path: path.parent.name)
def test_tables_of_run_records_raise_no_doubt(path):
    """Also where nothing marks them as lmjax's own, so that the rules above judge their 140 columns. That seeds scatter
    unequally, as in the addition experiment, is no doubt about columns."""
    frame = pandas.read_csv(path)
    for table in (read_table(frame), read_table(frame.drop(columns="objective_version"))):
        assert [warning for warning in table.warnings if "do not scatter equally" not in warning] == []


def test_checkpoints_of_one_run_are_no_runs():
    curve = [
        {"N": n, "D": x * 20 * n, "loss": 3.0, "Name": f"r{n:g}"} for n in (1e8, 2e8) for x in np.linspace(0.1, 1, 10)
    ]
    frame = pandas.DataFrame(curve)
    assert "rows of one Name look like checkpoints of one run (r1e+08: D = 200M to 2B)" in doubts(frame)
    assert "N = 100M has 10 evenly spaced values of D" in doubts(frame.drop(columns="Name"))
    with pytest.raises(
        InputError, match="got 'r1e.08' more than once in run. If its rows are checkpoints, keep the last"
    ):
        read_table(frame.rename(columns={"Name": "run"}))
    assert len(read_table(frame.rename(columns={"Name": "run"}), allow_incomplete=True).points) == 20


def test_rows_before_the_last_step_of_their_schedule_are_left_out():
    read = read_table(table(step=[500] * 10 + [1000] * 15, max_steps=1000))
    assert len(read.points) == 15 and set(read.excluded.reason) == {"learning-rate schedule not finished"}


def test_weights_are_used_where_they_are_asked_for():
    sizes = np.linspace(1, 2, 25)
    assert (read_table(table(weight=sizes)).points.weight == 1).all()
    for options in ({"weights": "w"}, {"columns": {"weight": "w"}}):
        read = read_table(table(w=sizes), **options)
        assert read.points.weight.tolist() == sizes.tolist() and "weight = w" in read.notes[0] and not read.warnings


def test_the_noise_of_mixed_rows_is_named():
    noisy = table(loss=LOSS * np.exp(0.1 * RNG.standard_normal(25)))
    assert "the noise of a run is" in " ".join(fit(noisy, resamples=20, profiles=False).warnings)
    assert "the noise of a run is" not in " ".join(
        fit(table(loss=LOSS + 1e-3 * np.sin(N)), resamples=20, profiles=False).warnings
    )


# ---- names of other programs ----------------------------------------------------------------------------------------


def test_an_export_of_weights_and_biases_is_understood():
    frame = pandas.DataFrame(
        {
            "Name": [f"run-{k}" for k in range(25)], "State": ["finished"] * 24 + ["crashed"], "Runtime": 9,
            "config.n_params": N, "Tokens Seen": D, "train/loss": LOSS - 0.1, "val/loss": LOSS, "_step": 10,
        }
    )  # fmt: skip
    read = read_table(frame)
    np.testing.assert_array_equal(
        read.points[["N", "D", "loss"]], frame[["config.n_params", "Tokens Seen", "val/loss"]][:24]
    )
    assert read.notes[:2] == (
        "columns: N = config.n_params, D = Tokens Seen, loss = val/loss; C = 6 N D FLOP",
        "the validation loss val/loss is fitted, not the training loss train/loss",
    )
    assert read.points.run[3] == "run-3" and read.excluded.reason.tolist() == ["status crashed"] and not read.warnings
    training = read_table(frame.drop(columns="val/loss"))
    assert "no validation loss was found: the training loss train/loss is fitted" in training.notes
    assert len(read_table(frame.assign(State=["Ohio", "Texas"] * 12 + ["Ohio"])).points) == 25


def test_metrics_of_the_evaluation_harness_are_found_without_their_filter():
    frame = table(**{"bits_per_byte,none": LOSS / 3})
    assert read_table(frame, loss="bits_per_byte").points.loss.tolist() == (LOSS / 3).tolist()
    two = frame.assign(**{"bits_per_byte,flexible": LOSS})
    with pytest.raises(
        InputError, match="expected one column for bits_per_byte, got bits_per_byte,none, bits_per_byte,fl"
    ):
        read_table(two, loss="bits_per_byte")


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (table(tokens_seen=D, train_tokens=2 * D).drop(columns="D"), "D, got tokens_seen, train_tokens with different"),
        (table(params=N, num_params=2 * N).drop(columns="N"), "N, got params, num_params with different"),
        (table(val_loss=LOSS, eval_loss=LOSS + 1).drop(columns="loss"), "loss, got val_loss, eval_loss with different"),
    ],
)
def test_two_columns_that_could_be_one_variable_are_an_error(frame, expected):
    with pytest.raises(InputError, match=f"expected one column for {expected}"):
        read_table(frame)
    same = frame.assign(train_tokens=D) if "train_tokens" in frame else frame.assign(num_params=N, eval_loss=LOSS)
    assert len(read_table(same.drop(columns=[] if "loss" in frame else "num_params")).points) == 25


def test_rows_without_a_number_are_left_out_where_that_is_asked():
    frame = table(D=[str(x) for x in D])
    frame.loc[3, "loss"], frame.loc[5, "D"] = np.nan, "many"
    for bad in (frame, frame[frame.loss.notna()]):
        with pytest.raises(InputError, match="--drop-missing"):
            read_table(bad)
    read = read_table(frame, drop_missing=True)
    assert len(read.points) == 23 and "left out 2 rows without a number (--drop-missing)" in read.notes
    assert dict(zip(read.excluded.run, read.excluded.reason, strict=True)) == {
        "row 4": "loss is not a number",
        "row 6": "D is not a number",
    }
    assert "excluded" in fit(frame, drop_missing=True, resamples=0).summary()


@pytest.mark.parametrize("N", ["31,622,777", "31.6M"])
def test_numbers_with_separators_or_suffixes_are_to_be_rewritten_not_dropped(N):
    with pytest.raises(InputError, match=r"got row 1 \(31.*; write 31,600,000 or 31.6M as 31600000 or 3.16e7$"):
        read_table(table(N=[N] * 25))


# ---- conditions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "dataset == 'c4' and epoch <= 1",
        "not (dataset == 'c4' or N > 1e9)",
        "dataset in ['c4', 'web'] and 1e8 <= N < 1e9",
        "dataset not in ('c4',) and D / N * 2 >= 40",
        "final and epoch != 2",
        "-epoch + 2 > 0 or not final",
        "epoch == epoch and dataset != 'x'",
    ],
)
def test_an_expression_selects_the_rows_that_pandas_does(text):
    frame = table(
        dataset=["c4", "pile", "web", "c4", "pile"] * 5, epoch=[1, 2, 3, 1, 1] * 5, final=[True, False] * 12 + [True]
    )
    np.testing.assert_array_equal(matches(frame, text), frame.eval(text, engine="python"))


def test_columns_of_any_name_text_and_missing_numbers_in_conditions():
    frame = pandas.DataFrame(
        {"val/loss": [1.0, np.nan, 3.0], "optimizer.name": ["adamw", "lion", "adamw"], "lr": ["1e-3", "0.001", "x"]}
    )
    for where, expected in (
        ("`val/loss` < 9", [True, False, True]),
        ("optimizer.name == 'lion'", [False, True, False]),
        ("lr == 1e-3", [True, True, False]),
        ("lr=0.001", [True, True, False]),
        ("optimizer.name = 'adamw'", [True, False, True]),
        (["optimizer.name=adamw", "`val/loss` > 2"], [False, False, True]),
        ([], [True] * 3),
        ({"optimizer.name": "adamw", "lr": "x"}, [False, False, True]),
    ):
        assert matches(frame, where).tolist() == expected, where


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("datset == 'c4'", "expected a column 'datset'; did you mean 'dataset'"),
        ("dataset=web", "expected rows with dataset = web, got none among 50; dataset is c4, pile"),
        ("dataset in 'c4'", r"expected a list such as \['c4', 'pile'\] after in"),
        ("dataset > 3", "expected numbers to compare, got 'dataset'"),
        ("dataset ==", "expected KEY=VALUE or an expression"),
        ("__import__('os').system('true')", "neither a comparison nor and, or, not"),
        ("dataset.upper() == 'C4'", "expected a column, a number or text, got"),
        ("[x for x in (1,)] == 1", "expected a column, a number or text"),
        ("(lambda: 1)() > 0", "expected a column, a number or text"),
        ("N ** N > 0", "expected a column, a number or text"),
        ("N", "column N: expected true or false"),
    ],
)
def test_conditions_that_cannot_be_met_or_are_none(text, expected):
    with pytest.raises(InputError, match=expected):
        read_table(twice(dataset=["c4", "pile"]), where=text)


# ---- the commands ---------------------------------------------------------------------------------------------------


def said(capsys, *argv):
    code = cli.main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return code, " ".join(out.split()), " ".join(err.split())


def test_commands_print_the_columns_they_used_and_their_doubts(tmp_path, capsys):
    path = tmp_path / "t.csv"
    twice(dataset=["c4", "pile"]).rename(columns={"N": "size", "D": "train_tokens", "loss": "Val Loss"}).to_csv(path)
    used, doubt = "columns: N = size, D = train_tokens, loss = Val Loss; C = 6 N D FLOP", "differ in dataset (c4, pile)"
    _, out, _ = said(capsys, "fit", path, "--columns", "N=size", "--resamples", "0")
    assert f"note: {used}" in out and doubt in out
    code, out, err = said(
        capsys,
        "fit",
        path,
        "--columns",
        "N=size",
        "--resamples",
        "20",
        "--format",
        "json",
        "--where",
        "dataset == 'c4'",
    )
    assert code == 0 and used in err and "warning" not in err
    assert all(row["notes"][0] == used for row in json.loads(out))
    code, _, err = said(capsys, "holdout", path, "--columns", "N=size", "--resamples", "0")
    assert code == 0 and used in err and f"warning: rows of the same N and D {doubt}" in err


def test_tables_of_methods_take_names_and_conditions_too(tmp_path, capsys):
    rows = [
        {"params": n, "tokens_seen": d, "lr": rate, "eval/loss": 3 + np.log(rate / 1e-3) ** 2, "kind": kind}
        for n in (1e7, 4e7) for d in (1e9, 4e9) for rate in np.geomspace(1e-4, 1e-2, 7) for kind in "ab"
    ]  # fmt: skip
    pandas.DataFrame(rows).to_csv(tmp_path / "t.csv")
    code, out, err = said(capsys, "tuning", tmp_path / "t.csv", "--where", "kind == 'a'")
    assert code == 0 and "columns: batch" not in err and "N = params, D = tokens_seen, learning_rate = lr" in err
    code, _, err = said(capsys, "tuning", tmp_path / "t.csv", "--columns", "loss=los")
    assert code == 64 and "expected a column 'los' for loss; did you mean" in err


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("N=1e6,D=1e9", "more than 10 times below the smallest fitted compute"),
        ("N=1e11,D=1e12", "more than 10 times above the largest fitted compute"),
        ("N=3e8,D=1e10", ""),
    ],
)
def test_predictions_far_below_the_fitted_runs_are_marked_as_those_far_above(tmp_path, capsys, cell, words):
    table(loss=LOSS * np.exp(0.002 * np.sin(N))).to_csv(tmp_path / "t.csv", index=False)
    cell_C = 6 * np.prod([float(part.split("=")[1]) for part in cell.split(",")])
    _, out, _ = said(capsys, "fit", tmp_path / "t.csv", "--resamples", "20", "--predict", cell, "--budget", cell_C)
    assert out.count(words or "more than 10 times") == (2 if words else 0)


def test_no_text_of_a_table_is_evaluated():
    """Neither eval nor pandas.query may read a condition."""
    tree = ast.parse((ROOT / "lmjax" / "scaling" / "settings.py").read_text())
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert "ast.parse" in called
    assert not [name for name in called if name.endswith((".eval", ".query")) or name in ("eval", "exec", "compile")]


def test_conditions_are_in_the_units_that_are_printed_and_know_compute():
    frame = table()
    millions = frame.assign(N=frame["N"] / 1e6)
    middle = float(frame["N"].median())
    found = read_table(millions, units={"N": 1e6}, where=f"N <= {middle}")
    assert len(found.points) == (frame["N"] <= middle).sum() < len(frame)
    C = 6 * frame["N"] * frame["D"]
    assert len(read_table(frame, where=f"C <= {C.median()}").points) == (C <= C.median()).sum()


def test_the_suggested_condition_works_for_a_column_with_brackets():
    frame = twice(**{"Model (family)": ["gpt", "t5"]})
    (example,) = [text.strip(",") for text in shlex.split(doubts(frame)) if text.startswith("Model (family)=")]
    assert len(read_table(frame, where=example).points) == len(frame) / 2


def test_columns_of_one_name_are_refused():
    frame = table()
    with pytest.raises(InputError, match="one column per name"):
        read_table(pandas.concat([frame, frame[["loss"]]], axis=1))
