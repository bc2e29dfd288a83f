"""Tables to fit: columns, conventions, and no row excluded without a reason."""

import numpy as np
import pandas
import pytest

from lmjax import identity
from lmjax.errors import InputError
from lmjax.scaling.methods.isoflop import isoflop
from lmjax.scaling.settings import group_keys, setting_text, varying
from lmjax.scaling.table import data_hash, groups, read_table


def runs(count=6, **columns):
    """A frame as run_record.read_runs returns it."""
    i = np.arange(count)
    frame = pandas.DataFrame(
        {
            "run_id": [f"run-{k}" for k in i],
            "status": "done",
            "held_out": False,
            "schedule_complete": True,
            "family": "decoder",
            "objective": "causal_lm",
            "objective_version": "1",
            "n_total": 1e5 * 2**i,
            "n_non_embedding": 8e4 * 2**i,
            "tokens": 1e7 * 3**i,
            "flops_exact": 7e12 * 6.0**i,
            "loss": 3.0 - 0.1 * i,
            "epochs": 0.5,
            "data_digest": "d0",
            "message": "",
        }
    )
    return frame.assign(**columns)


def test_run_records_map_to_n_d_c():
    frame = runs()
    table = read_table(frame)
    np.testing.assert_array_equal(table.points[["N", "D"]], frame[["n_total", "tokens"]])
    np.testing.assert_allclose(table.points.C, 6 * frame.n_total * frame.tokens)
    assert table.conventions == {
        "N": "N = all parameters, embeddings included",
        "D": "D = training tokens seen",
        "C": "C = 6 N D FLOP",
        "loss": "loss = validation nats per predicted token of the objective causal_lm",
    }
    assert table.notes == ("columns: N = n_total, D = tokens, loss = loss; C = 6 N D FLOP",) and table.warnings == ()
    words = read_table(runs(objective="two", lm_loss=2.0, next_loss=0.7)).conventions["loss"]  # not nats per token
    assert words == "loss = validation loss of the objective two: coefficient x loss, summed over its heads"


def test_conventions_of_n_and_c_are_switched_together_and_named():
    """C = 6 N D takes the N of the fit; the others count the attention scores too, or everything."""
    frame = runs(n_matmul_head=[9e5 * k for k in range(1, 7)], flops_attention=[1e13] * 6)
    for n, column, words in (
        ("non_embedding", "n_non_embedding", "without embeddings"),
        ("matmul_head", "n_matmul_head", "output projection included"),
    ):
        for c, extra in (("6nd", 0.0), ("6nd_attention", 1e13)):
            table = read_table(frame, n, c)
            np.testing.assert_array_equal(table.points.N, frame[column])
            np.testing.assert_allclose(table.points.C, 6 * frame[column] * frame.tokens + extra)
            assert words in table.conventions["N"] and ("attention" in table.conventions["C"]) == bool(extra)
    exact = read_table(frame, c="exact")
    np.testing.assert_array_equal(exact.points.C, frame.flops_exact)
    assert exact.conventions["C"] == "C = exact training FLOP"
    with pytest.raises(InputError, match="did you mean '6nd'"):
        read_table(frame, c="6dn")
    with pytest.raises(InputError, match="expected columns 'flops_attention'"):
        read_table(runs(), c="6nd_attention")


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl", ".json"])
def test_every_file_format_gives_the_same_points(tmp_path, ending):
    frame = pandas.DataFrame({"N": [1e6, 2e6, 3e6], "D": [1e8, 2e8, 5e8], "loss": [3.25, 3.125, 2.9]})
    path = tmp_path / f"table{ending}"
    write = {
        ".csv": lambda: frame.to_csv(path, index=False),
        ".parquet": lambda: frame.to_parquet(path),
        ".jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        ".json": lambda: frame.to_json(path, orient="records"),
    }
    write[ending]()
    table = read_table(path)
    np.testing.assert_array_equal(table.points[["N", "D", "loss"]], frame)
    np.testing.assert_allclose(table.points.C, 6 * frame.N * frame.D)
    assert table.conventions["C"] == "C = 6 N D FLOP" and table.source == path.name
    assert data_hash(table.points) == data_hash(read_table(frame.iloc[::-1]).points)


def test_given_compute_is_kept():
    table = read_table(pandas.DataFrame({"N": [1e6], "D": [1e8], "loss": [3.0], "C": [7e14]}), c="exact")
    assert table.points.C[0] == 7e14 and table.conventions["C"] == "C as given in the table"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (["size", "D", "loss"], "expected columns 'N'"),
        (["N", "seen", "loss"], "expected columns 'D'"),
        (["N", "D", "Losses"], "did you mean 'Losses'"),
    ],
)
def test_missing_column_names_the_nearest(columns, words):
    with pytest.raises(InputError, match=words):
        read_table(pandas.DataFrame([[1e6, 1e8, 3.0]], columns=columns))


def test_unknown_conventions_and_missing_columns():
    with pytest.raises(InputError, match="did you mean 'total'"):
        read_table(runs(), "totl")
    with pytest.raises(InputError, match="expected columns 'n_non_embedding'.*the table has N, D, loss"):
        read_table(pandas.DataFrame({"N": [1e6], "D": [1e8], "loss": [3.0]}), "non_embedding")
    # only the nearest: a table of runs has 200 columns
    with pytest.raises(InputError, match=r"expected columns 'lm_los'; did you mean 'lm_loss'\?; the table has run_id"):
        read_table(runs(lm_loss=2.0), loss="lm_los")
    with pytest.raises(InputError, match="expected columns 'N', 'loss', 'D'.*the table has paramters, tokns"):
        read_table(pandas.DataFrame({"paramters": [1e6], "tokns": [1e8]}))


def test_files_that_are_no_tables(tmp_path):
    for name, text, words in (
        ("none.csv", None, "no file"),
        ("a.txt", "x", "expected a table ending in"),
        ("a.jsonl", "{", "cannot be read"),
        ("a.parquet", "x", "cannot be read"),
        ("a.csv", "", "cannot be read"),
        ("b.csv", "N,D,loss\n", "has no rows"),
    ):
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_table(path)


def test_every_row_is_somewhere():
    frame = runs(8)
    frame.loc[0, ["status", "loss", "message"]] = ["diverged", np.nan, "step 12"]
    frame.loc[1, ["status", "loss"]] = ["pending", np.nan]
    frame.loc[2, "schedule_complete"] = False
    frame.loc[3, ["status", "loss"]] = ["failed", 9.0]  # a loss of a failed run is no result
    frame.loc[7, "held_out"] = True
    table = read_table(frame)
    assert list(table.points.run) == ["run-4", "run-5", "run-6"]
    assert list(table.held_out.run) == ["run-7"]
    assert dict(zip(table.excluded.run, table.excluded.reason, strict=True)) == {
        "run-0": "status diverged: step 12",
        "run-1": "status pending",
        "run-2": "learning-rate schedule not finished",
        "run-3": "status failed",
    }
    selected = table.select(N=frame.n_total[4])
    assert len(selected.points) + len(selected.held_out) + len(selected.excluded) == 8
    assert selected.excluded.reason.iloc[-1].startswith("held out, and not at N = ")


def test_incomplete_schedules_enter_only_when_asked_and_are_told():
    frame = runs(schedule_complete=[True] * 4 + [False] * 2)
    assert len(read_table(frame).points) == 4
    asked = read_table(frame, allow_incomplete=True)
    assert len(asked.points) == 6 and "2 rows end before their schedule does" in " ".join(asked.warnings)


def test_copies_of_a_row_do_not_count_twice_but_seeds_with_rounded_losses_do():
    frame = runs(seed=0)
    frame = pandas.concat([frame, frame.iloc[:1].assign(run_id="copy")], ignore_index=True)
    table = read_table(frame)
    assert len(table.points) == 6
    assert table.excluded.reason.tolist() == ["copy of run-0: equal N, D, seed and loss"]
    assert len(read_table(frame.assign(seed=range(7))).points) == 7
    unknown = read_table(frame.drop(columns="seed"))
    assert len(unknown.points) == 7 and "copies, or seeds with rounded losses?" in " ".join(unknown.notes)


def test_words_for_status_and_truth_are_understood_or_refused():
    frame = runs(status=["finished", "Completed", "done", "crashed", "ok", "success"])
    table = read_table(frame)
    assert len(table.points) == 5 and table.excluded.reason.tolist() == ["status crashed"]
    with pytest.raises(InputError, match="unknown status 'great' of run-0; expected one of done, finished"):
        read_table(runs(status=["great"] * 6))
    assert list(read_table(runs(held_out=["yes", "no", "TRUE", "0", "1", ""])).held_out.run) == [
        "run-0",
        "run-2",
        "run-4",
    ]
    assert len(read_table(runs(schedule_complete=["no", "0", 0.0, False, "True", np.nan])).points) == 2
    for column in ("held_out", "schedule_complete"):
        with pytest.raises(InputError, match=f"column {column}: expected true or false, got 'maybe'"):
            read_table(runs(**{column: ["maybe"] * 6}))


def test_columns_by_other_names():
    frame = pandas.DataFrame({"size": [1.0, 2.0], "seen": [20.0, 40.0], "val_loss": [3.0, 2.9], "loss": [9.0, 9.0]})
    names = {"N": "size", "D": "seen", "loss": "val_loss"}
    table = read_table(frame, columns=names, units={"N": 1e6, "D": 1e9})
    np.testing.assert_allclose(table.points[["N", "D", "loss"]], [[1e6, 2e10, 3.0], [2e6, 4e10, 2.9]])
    with pytest.raises(InputError, match="expected columns 'N', 'D'; .*--columns N=...,D=..."):
        read_table(frame)
    with pytest.raises(InputError, match="expected a column 'sizes' for N; did you mean 'size'"):
        read_table(frame, columns={"N": "sizes"})


def test_a_loss_is_called_held_out_only_where_that_is_known():
    frame = runs(objective="train loss smoothed", bits_per_byte=1.0 + np.arange(6)).drop(columns="objective_version")
    assert read_table(frame).conventions["loss"] == "loss in the unit of the table"
    assert read_table(frame, loss="bits_per_byte").conventions["loss"] == "loss = bits per byte"


def test_one_seed_is_told():
    assert "one seed" in " ".join(read_table(runs(seed=0)).notes)
    assert "one seed" not in " ".join(read_table(runs(seed=[0, 1] * 3)).notes)


def test_units_are_said_or_asked_for():
    frame = pandas.DataFrame({"N": [1.0, 2.0, 7.0], "D": [20.0, 40.0, 140.0], "loss": [3.0, 2.9, 2.5]})
    assert "N is at most 7: taken as it is" in " ".join(read_table(frame.assign(D=frame.D * 1e9)).warnings)
    table = read_table(frame, units={"N": 1e6, "D": 1e9})
    np.testing.assert_allclose(table.points[["N", "D"]], frame[["N", "D"]] * [1e6, 1e9])
    np.testing.assert_allclose(table.points.C, 6e15 * frame.N * frame.D)
    assert table.notes == ("columns: N = N x 1e+06, D = D x 1e+09, loss = loss; C = 6 N D FLOP",)
    notes = read_table(frame.assign(C=6 * frame.N * frame.D), units={"N": 1e6, "D": 1e9}).warnings
    assert "the table's C is 1e-15 times 6 N D" in " ".join(notes)
    for units, words in (({"Q": 1e6}, "expected a column of the fit, got 'Q'"), ({"N": -1}, "number above 0 for N")):
        with pytest.raises(InputError, match=words):
            read_table(frame, units=units)


def test_tokens_follow_from_compute():
    frame = pandas.DataFrame({"N": [1e6, 2e6], "C": [6e14, 6e14], "loss": [3.0, 2.9]})
    table = read_table(frame)
    np.testing.assert_allclose(table.points.D, [1e8, 5e7])
    assert table.conventions["D"] == "D = C / 6 N"


@pytest.mark.parametrize(
    ("law", "columns", "conventions"),
    [
        ("kaplan_n", ["N"], ("N as given in the table", "no D in the table", "no C in the table")),
        ("power_c", ["C"], ("no N in the table", "no D in the table", "C as given in the table")),
        ("annealing", ["S1", "S2"], ("no N in the table", "no D in the table", "no C in the table")),
        ("encoder_decoder", ["N_e", "N_d"], ("N = N_e + N_d", "no D in the table", "no C in the table")),
        ("overtrained", ["C", "M"], ("no N in the table", "no D in the table", "C as given in the table")),
    ],
)
def test_a_table_needs_only_what_its_law_reads(law, columns, conventions):
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {name: np.exp(rng.uniform(0, 3, 8)) * 1e6 for name in columns} | {"loss": 3.0 + 0.1 / np.arange(1, 9)}
    )
    table = read_table(frame, law=law)
    assert tuple(table.conventions[name] for name in "NDC") == conventions
    np.testing.assert_array_equal(table.points[columns], frame[columns])
    assert table.points.N.isna().all() == ("no N" in conventions[0])
    missing = "'N', 'D'" if columns[0] == "C" else f"'{columns[0]}'"  # C also follows from N and D
    with pytest.raises(InputError, match=f"expected columns {missing}"):
        read_table(frame.drop(columns=columns[0]), law=law)


def test_shares_are_0_to_1_and_may_repeat():
    frame = pandas.DataFrame({"C": [1e9, 1e10, 1e11, 1e11], "accuracy": [0.0, 0.5, 1.0, 1.0]})
    table = read_table(frame, loss="accuracy", law="sigmoid_c")
    assert table.points.loss.tolist() == [0.0, 0.5, 1.0, 1.0]
    with pytest.raises(InputError, match=r"expected shares of 0 to 1 in column loss, got row 2 \(1.5\)"):
        read_table(frame.assign(accuracy=[0, 1.5, 1, 1]), loss="accuracy", law="sigmoid_c")


def test_losses_of_two_tokenizers_do_not_mix_but_bits_per_byte_do():
    frame = runs(tokenizer=["bytes", "bpe"] * 3, bits_per_byte=[2.0, 1.9, 1.8, 1.7, 1.6, 1.5])
    with pytest.raises(InputError, match="expected one tokenizer in a fit, got bpe, bytes"):
        read_table(frame)
    table = read_table(frame, loss="bits_per_byte")
    np.testing.assert_array_equal(table.points.loss, frame.bits_per_byte)
    assert table.conventions["loss"] == "loss = validation bits per byte"


def test_nan_in_a_finished_run_is_an_error():
    frame = runs()
    frame.loc[[2, 4], "loss"] = np.nan
    with pytest.raises(InputError, match=r"run-2 \(nan\), run-4 \(nan\)"):
        read_table(frame)


@pytest.mark.parametrize(("column", "value"), [("n_total", 0.0), ("tokens", -1.0), ("loss", np.inf), ("loss", 0.0)])
def test_numbers_that_are_not_positive(column, value):
    frame = runs()
    frame.loc[3, column] = value
    with pytest.raises(InputError, match="run-3"):
        read_table(frame)


def test_text_in_a_number_column(tmp_path):
    (tmp_path / "t.csv").write_text("N,D,loss\n1e6,1e8,3.0\n2e6,many,2.9\n")
    with pytest.raises(InputError, match=r"column D, got row 2 \(many\)"):
        read_table(tmp_path / "t.csv")


def test_objectives_and_families_are_not_mixed():
    for column, values in (("objective", ["causal_lm", "masked_lm"]), ("family", ["decoder", "encoder"])):
        frame = runs(**{column: values * 3})
        with pytest.raises(InputError, match=f"expected one {column} in a fit, got {', '.join(values)}"):
            read_table(frame)


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("objective.options.mask_rate", [0.15, 0.3]),
        ("objective.options.keep_rate", [0.1, 0.0]),
        ("data.seq_len", [64, 128]),
        ("data.mode", ["concat_and_split", "pack"]),
        ("data.vocab_size", [512, 1024]),
        ("data.sources", ["['classic']", "['code']"]),
        ("data.global_batch_size", [8, 16]),
        ("evaluation.max_tokens", [1000, None]),
        ("evaluation.seed", [0, 1]),
        ("optimizer.name", ["adamw", "lion"]),
        ("optimizer.clip_norm", [1.0, None]),
        ("schedule.name", ["cosine", "wsd"]),
        ("model.embedding_scale", [1.0, 8.0]),
        ("model.activation", ["gelu", "swiglu"]),
    ],
)
def test_rows_with_different_settings_are_not_pooled_in_silence(setting, values):
    """Half of the runs of a sweep have another setting: one law through both would be of neither."""
    frame = runs(**{f"config.{setting}": values * 3, "config.model.d_model": 16 * 2 ** np.arange(6)})
    with pytest.raises(InputError) as error:
        read_table(frame)
    assert f"expected one {setting} in a fit, got " in str(error.value)
    assert all(
        part in str(error.value) for part in (*map(setting_text, values), f"--where {setting}=", f"--by {setting}")
    )
    table = read_table(frame, where={setting: values[0]})
    assert table.points.run.tolist() == ["run-0", "run-2", "run-4"]
    assert f"3 other rows are left out: not at {setting} = {values[0]}" in table.notes
    allowed = read_table(frame, allow=[setting])
    assert len(allowed.points) == 6 and f"rows differ in {setting}, as allowed" in " ".join(allowed.notes)
    assert list(groups(frame, setting)) == [setting_text(v) for v in values]


def test_settings_of_size_tokens_seed_and_operation_may_differ():
    i = np.arange(6)
    free = {"model.d_model": 16 * 2**i, "model.num_layers": 1 + i, "duration.tokens": 10**i, "train.seed": i}
    free |= {"data.seed": i, "run.name": [f"a{k}" for k in i], "mesh.data": i, "checkpoint.keep": i}
    free |= {"evaluation.every_steps": i, "model.remat": ["none", "full"] * 3, "train.accumulation_steps": 1 + i}
    free |= {"model.logit_scale": (16.0 * 2**i) ** -0.5}  # follows the width
    assert len(read_table(runs(**{f"config.{key}": value for key, value in free.items()})).points) == 6


def test_a_learning_rate_may_follow_the_size_or_a_declared_rule():
    rate, rule = "config.optimizer.learning_rate", "config.run.learning_rate_rule"
    assert len(read_table(runs(**{rate: 1e-3 / np.arange(1, 7)})).points) == 6
    twice = pandas.concat([runs(), runs(run_id=[f"again-{k}" for k in range(6)], tokens=1e9)], ignore_index=True)
    swept = twice.assign(**{rate: [1e-3] * 6 + [3e-3] * 6})
    with pytest.raises(InputError, match="expected one optimizer.learning_rate in a fit, got 0.001, 0.003"):
        read_table(swept)
    assert len(read_table(swept.assign(**{rule: "1e-3 (D / 1e8)^0.2"})).points) == 12
    with pytest.raises(InputError, match="expected one run.learning_rate_rule in a fit, got a, b"):
        read_table(swept.assign(**{rule: ["a", "b"] * 6}))


def test_one_key_that_decides_the_others_is_named_alone():
    both = {"family": "encoder decoder", "objective": "masked_lm causal_lm", "config.optimizer.name": "lion adamw"}
    with pytest.raises(InputError) as error:
        read_table(runs(**{name: words.split() * 3 for name, words in both.items()}))
    assert "expected one family in a fit, got decoder, encoder (2 more settings differ)" in str(error.value)
    assert "--by family " in str(error.value)


def test_settings_that_vary_independently_are_all_needed_to_group_rows():
    frame = runs(**{"config.optimizer.name": ["adamw", "lion"] * 3, "config.data.mode": ["pack"] * 3 + ["x"] * 3})
    keys = group_keys(frame, varying(frame))
    assert set(keys) == {"config.optimizer.name", "config.data.mode"}
    assert len(groups(frame, ["optimizer.name", "data.mode"])) == 4
    with pytest.raises(InputError, match=r"expected one .* in a fit, got .*; .* in a fit, got .*--by .*,"):
        read_table(frame)


def test_isoflop_curves_of_two_optimizers_are_not_pooled_either():
    frame = runs(**{"config.optimizer.name": ["adamw", "lion"] * 3}).rename(columns={"n_total": "N", "tokens": "D"})
    with pytest.raises(InputError, match="the isoFLOP table: expected one optimizer.name in a fit, got adamw, lion"):
        isoflop(frame.assign(C=1e18))


def test_mixed_versions_of_the_code_are_noted():
    """After a change of the code a sweep keeps its finished runs: the table says that it mixes both."""
    frame = runs(code=["a1"] * 3 + ["b2"] * 3, commit=["c1"] * 3 + ["c2"] * 3, device=["cpu"] * 5 + ["gpu"])
    notes = " | ".join(read_table(frame).notes)
    assert "rows differ in code versions of lmjax" in notes and "a1, b2" in notes and "device: cpu, gpu" in notes
    assert "commit" not in notes and "commit: c1, c2" in " | ".join(read_table(frame.drop(columns="code")).notes)


def test_compute_of_encoder_decoders_and_shared_layers_is_the_exact_count():
    """6 N D counts every parameter for every token, which these models do not compute."""
    shared = runs(**{"config.model.share_layers": True}, flops_exact=3e13 * 6.0 ** np.arange(6))
    for frame in (runs(family="encoder_decoder", flops_exact=3e13 * 6.0 ** np.arange(6)), shared):
        table = read_table(frame)
        np.testing.assert_array_equal(table.points.C, frame.flops_exact)
        assert table.conventions["C"] == "C = exact training FLOP"
        assert "exact training FLOP are 5 to 5 times 6 N D" in " ".join(table.notes)
        assert read_table(frame, c="6nd").conventions["C"] == "C = 6 N D FLOP"
    assert read_table(runs()).conventions["C"] == "C = 6 N D FLOP"


def test_a_wide_file_is_read_without_warnings(tmp_path):
    """pandas warns of fragmentation when columns are inserted into a csv of 150; warnings are errors in tests."""
    frame = pandas.concat([runs(), pandas.DataFrame(1, range(6), [f"extra_{k}" for k in range(150)])], axis=1)
    frame.to_csv(tmp_path / "runs.csv", index=False)
    assert len(read_table(tmp_path / "runs.csv").points) == 6


def test_notes_tell_what_differs():
    frame = runs(data_digest=["d0"] * 5 + ["d1"], epochs=[1, 1, 1, 1, 2, 6.5])
    frame.loc[1, ["n_total", "tokens"]] = frame.loc[0, ["n_total", "tokens"]]
    table = read_table(frame)
    notes = " | ".join([*table.notes, *table.warnings])
    assert "rows differ in data_digest: d0, d1" in notes
    assert "1 runs saw their data more than 4 times (up to 6.5)" in notes
    assert "1 rows repeat an (N, D)" in notes


def test_two_rows_of_one_run():
    with pytest.raises(InputError, match="'run-0' more than once"):
        read_table(runs(run_id=["run-0", "run-0", "a", "b", "c", "d"]))


def test_select_needs_a_match():
    with pytest.raises(InputError, match="expected rows with D = 5, got none among 6"):
        read_table(runs()).select(D=5)
    with pytest.raises(InputError, match="did you mean 'family'"):
        read_table(runs()).select(famly="decoder")


def test_hashes_of_digits_and_one_e_are_not_infinite_numbers():
    """Two code versions were both listed as "inf", hence as one."""
    assert setting_text("927871e366") == "927871e366" and setting_text("1e999") == "1e999"
    assert setting_text(1.0) == setting_text("1") == setting_text(np.int64(1)) == "1"
    assert identity.code_digest()[0] == "c"  # a reader of CSV files keeps it as text


def test_a_file_with_a_repeated_index_is_read_row_by_row(tmp_path):
    """pandas.concat(...).to_parquet keeps both indexes; rows were lost without a reason."""
    frame = runs(12, status=["done"] * 11 + ["failed"])
    frame.index = [*range(6), *range(6)]
    frame.to_parquet(tmp_path / "runs.parquet")
    table = read_table(tmp_path / "runs.parquet")
    assert len(table.points) == 11 and table.excluded.reason.tolist() == ["status failed"]


def test_a_column_called_reason_is_kept():
    table = read_table(runs(6, reason=list("abcdef"), status=["done"] * 5 + ["failed"]))
    assert table.points.reason.tolist() == list("abcde") and table.excluded.reason.tolist() == ["status failed"]
