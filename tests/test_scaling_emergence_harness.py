"""Emergence on other people's evaluations: the harness' files and names are read, and mixed models are no ladder."""

import json
import re

import numpy as np
import pandas
import pytest

from lmjax import cli
from lmjax.errors import InputError
from lmjax.scaling.emergence import curves, harness, noise, null, scatter
from lmjax.scaling.emergence.classify import LOSS_TOO, METRIC_ONLY, UNDECIDED, analyse
from tests.emergence_ladders import checkpoints, families, gentle, ladder, power, step

# -- Files and names


def write_results(folder, old=False, seeds=(1, 2, 3)):
    """A folder as lm-evaluation-harness leaves it, and a table of sizes: 6 models of some seeds on one task.

    Returns the true values: (model, seed) -> (accuracy, log-likelihood).
    """
    truth, sizes = {}, []
    for g, n in enumerate(np.geomspace(1e7, 3e9, 6)):
        sizes.append({"model": f"tiny-{g}", "params": n, "training_tokens": 3e11, "model_family": "tiny"})
        for seed in seeds:
            p, ll = 0.1 + 0.15 * g + 0.001 * seed, -6 * 0.7**g - 0.01 * seed
            truth[f"org/tiny-{g}", seed] = p, ll
            values = {"acc": p, "acc_stderr": np.sqrt(p * (1 - p) / 399), "perplexity": np.exp(-ll)}
            values |= {"perplexity_stderr": 0.02 * np.exp(-ll), "word_perplexity": 99.0}
            config = {"model": "hf", "model_args": f"pretrained=org/tiny-{g},revision=seed{seed},dtype=float32"}
            record = {"results": {"lambada": values}, "config": config}
            if not old:
                record["results"]["lambada"] = {f"{name},none": v for name, v in values.items()} | {
                    "alias": " - lambada"
                }
                record |= {"n-samples": {"lambada": {"original": 5153, "effective": 400}}, "n-shot": {"lambada": 0}}
                record["model_name"] = f"org/tiny-{g}"
            path = folder / f"org__tiny-{g}" / f"results_2025-01-01T00-0{g}-0{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record))
    pandas.DataFrame(sizes).to_csv(folder / "sizes.csv", index=False)
    return truth


@pytest.mark.parametrize("old", [False, True])
def test_results_of_the_harness_are_read(tmp_path, old):
    truth = write_results(tmp_path, old)
    (tmp_path / "notes.json").write_text('{"results": [1]}')  # another file
    table, notes = harness.read(tmp_path, tmp_path / "sizes.csv")
    chosen = curves.select(table, "lambada")
    assert chosen.hard == "accuracy" and chosen.smooth == ("log_likelihood",) and chosen.n == 400
    assert chosen.seeds.tolist() == [3] * 6 and set(chosen.cells["N"]) == set(np.geomspace(1e7, 3e9, 6))
    for row in chosen.cells.to_dict("records"):
        acc, ll = truth["org/tiny-" + re.search(r"tiny-(\d)", row["run_id"])[1], int(row["seed"])]
        assert (row["accuracy"], row["log_likelihood"]) == pytest.approx((acc, ll), abs=1e-12)
        assert row["log_likelihood se"] == pytest.approx(0.02)  # of -ln(perplexity)
        assert row["accuracy se"] == pytest.approx(np.sqrt(acc * (1 - acc) / 399))
    assert any("word_perplexity" in note for note in notes)


def test_the_command_judges_results_of_the_harness(tmp_path, capsys):
    write_results(tmp_path, seeds=[1])
    words = ["emergence", str(tmp_path), "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--sizes", str(tmp_path / "sizes.csv"), "--x", "N", "--columns", "chance=0.1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"lambada: {UNDECIDED}" in said and "accuracy is acc" in said and "word_perplexity" in said
    assert "what the runs do show: accuracy does 10-90 % of its rise between N = " in said
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"emergence-lambada-N.png", "emergence.csv"}
    assert cli.main(words) == 64
    assert "no column of scale (C, N and D, or loss)" in capsys.readouterr().err
    sizes = pandas.read_csv(tmp_path / "sizes.csv")
    table, _ = harness.read(tmp_path, sizes.rename(columns={"params": "size"}), {"N": "size"})
    assert table["N"].max() == pytest.approx(3e9)
    sizes.iloc[1:].to_csv(tmp_path / "few.csv", index=False)
    assert cli.main([*words, "--sizes", str(tmp_path / "few.csv")]) == 64
    assert "no row for 1 models: tiny-0" in capsys.readouterr().err


def flat(**extra):
    """A column per metric, under the harness' names."""
    rows = {"Model": list("abcdef"), "Model Family": ["x"] * 6, "Train FLOPs": np.geomspace(1e18, 1e22, 6)}
    rows |= {"acc": np.linspace(0.3, 0.8, 6), "acc_stderr": 0.02, "acc_norm": np.linspace(0.4, 0.9, 6), "f1": 0.5}
    return pandas.DataFrame(rows | {"acc_norm_stderr": 0.03, "exact_match,flexible-extract": 0.2} | extra)


def test_flat_tables_are_read_by_their_names():
    table, notes = harness.read(flat())
    by = table.pivot(index="run_id", columns="metric", values="value")
    assert by["accuracy"].tolist() == np.linspace(0.3, 0.8, 6).tolist() and set(by) == {"accuracy", "exact_match"}
    assert set(table["family"]) == {"x"} and table["C"].max() == pytest.approx(1e22)
    assert {"C is column Train FLOPs", "accuracy is acc"} <= set(notes) and "acc_norm" in " ".join(notes)
    assert "n is derived from standard errors" in " ".join(notes)
    other, _ = harness.read(flat(), columns={"accuracy": "acc_norm", "n": "250", "family": "Model"})
    rows = other[other["metric"] == "accuracy"]
    assert rows["value"].tolist() == np.linspace(0.4, 0.9, 6).tolist()
    assert set(rows["standard_error"]) == {0.03} and set(rows["n"]) == {250} and set(rows["family"]) == set("abcdef")


def test_long_tables_are_read_by_their_names():
    """Standard errors in a column, or as rows of their own."""
    wide = flat()[["Model", "Train FLOPs"]]
    acc = wide.assign(task="t", metric="acc", value=flat()["acc"])
    column, _ = harness.read(acc.assign(stderr=0.02, n=9))
    both = pandas.concat([acc, acc.assign(metric="acc_stderr", value=0.02)]).assign(n=9)
    own, _ = harness.read(both)
    named, _ = harness.read(both.assign(metric=both["metric"].str.replace("acc", "mine")), columns={"accuracy": "mine"})
    keys = ["run_id", "metric", "value", "standard_error", "n", "C"]
    pandas.testing.assert_frame_equal(own[keys], column[keys])
    pandas.testing.assert_frame_equal(named[keys], column[keys])


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"accuracy": "acc_nrm"}, "expected a column 'acc_nrm' for accuracy; did you mean 'acc_norm'"),
        ({"famly": "Model"}, "expected a name of lmjax, got 'famly'; did you mean 'family'"),
    ],
)
def test_unknown_columns_are_refused(columns, words):
    with pytest.raises(InputError, match=words):
        harness.read(flat(), columns=columns)


def test_tables_that_cannot_be_read_say_what_is_missing(tmp_path):
    with pytest.raises(InputError, match="or a column per metric .*, got run_id, f1, task; name them with --columns"):
        harness.read(pandas.DataFrame({"model": ["a"], "f1": [0.3]}))
    with pytest.raises(InputError, match="no evaluations in"):
        harness.read(tmp_path)
    with pytest.raises(InputError, match="expected the number of items in column n, got none.*--columns n="):
        analyse(harness.read(flat().drop(columns=["acc_stderr", "acc_norm_stderr"]))[0])
    with pytest.raises(InputError, match="got 30.* divide percentages by 100"):
        percent = flat(acc=flat()["acc"] * 100).drop(columns="exact_match,flexible-extract")
        analyse(harness.read(percent, columns={"n": "9"})[0])


# -- Scatter: models of several families are no ladder


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("column", ["vendor", None])
def test_sixty_models_of_eighteen_families_are_no_ladder(smooth, column):
    table = families(0, column=column)
    (made,) = analyse(table if smooth else table[table.metric == "exact_match"], resamples=20)
    assert made.verdict == UNDECIDED and "the runs are not one ladder" in made.reasons[0], made.sentence
    assert ("use --by vendor" if column else "add a column family") in made.reasons[0]
    assert made.broken is None and not made.remarks


def test_rows_are_selected_by_an_expression():
    table = families(0, models=20, kinds=6, column="vendor")
    (made,) = analyse(table, where="C > 1e22 and vendor != 'kind 0'", resamples=20)
    kept = table[(table["C"] > 1e22) & (table["vendor"] != "kind 0")]
    assert {row["run_id"] for row in made.cells} == set(kept["run_id"])


def test_one_family_column_splits_them():
    table = families(0, models=20, kinds=6, column="vendor")
    results = analyse(table, by="vendor", resamples=20)
    assert len(results) == table["vendor"].nunique() and not any("not one ladder" in m.sentence for m in results)
    named, _ = harness.read(table.rename(columns={"vendor": "Model Family"}))
    assert len(analyse(named, resamples=20)) == len(results)


def test_equal_compute_is_no_seed():
    """Runs of one C were pooled as seeds whatever they were."""
    table, _ = ladder(power, 0, items_too=False)
    (made,) = analyse(table.drop(columns="seed"), resamples=20)
    assert made.verdict == UNDECIDED and "no seed, so they do not count as seeds" in made.reasons[0]
    apart = table.assign(data=np.where(table["seed"] == 0, "web", "code"))
    shift = np.where((table["seed"] == 0) & (table["metric"] == "log_likelihood_per_token"), 1.5, 1.0)
    (made,) = analyse(apart.assign(value=table["value"] * shift), resamples=20)
    assert "differ in data (code, web), so they are not seeds: use --by data" in made.reasons[0]
    (made,) = analyse(apart, resamples=20)  # a column that changes nothing is no reason to refuse
    assert made.verdict == METRIC_ONLY


def test_the_monotone_fit_is_the_least_squares_one():
    """Against the min-max formula of isotonic regression, and its test against its stated error rate."""
    rng = np.random.default_rng(0)
    y, w = rng.normal(size=9), rng.random(9) + 0.1
    means = [[np.average(y[i : j + 1], weights=w[i : j + 1]) if j >= i else np.nan for j in range(9)] for i in range(9)]
    oracle = [max(min(means[i][j] for j in range(k, 9)) for i in range(k + 1)) for k in range(9)]
    np.testing.assert_allclose(scatter.rising(y, w), oracle, atol=1e-12)


def mixed_up(tables):
    """Share of tables that the test of scatter refuses."""
    chosen = [curves.select(table, "sum", both=False) for table in tables]
    return np.mean([scatter.test(one, null.draw(one, 60, k), k).mixed for k, one in enumerate(chosen)])


def test_ladders_are_seldom_called_mixed_and_families_often():
    truths = [(power, 3), (step, 3), (gentle, 3), (power, 1)] * 2
    assert mixed_up(ladder(truth, k, sizes=12, seeds=seeds, items_too=False)[0]
                    for k, (truth, seeds) in enumerate(truths)) <= 0.1  # fmt: skip
    assert mixed_up(families(seed, offset=0.1) for seed in range(4)) == 1


# -- What can be said without seeds, or with one metric


def test_neighbouring_checkpoints_stand_in_for_seeds():
    """Four late checkpoints of each run: a smooth loss is no jump, a step of the loss is one."""
    for truth, word in ((power, METRIC_ONLY), (step, LOSS_TOO)):
        table = checkpoints(truth, 0, sizes=9)
        table = table[table["metric"] != "log_likelihood"].assign(answer_tokens=4)
        (made,) = analyse(table, resamples=40)
        assert made.verdict == word, made.sentence
        assert any("neighbouring checkpoints" in warning for warning in made.warnings)
        assert len(made.points) == 9 and {row["step"] for row in made.points} == {1000.0}
        last = table[table["step"] == 1000]
        (made,) = analyse(last, resamples=20)
        assert made.verdict == UNDECIDED and "one seed per point" in made.reasons[0]


def test_noise_of_checkpoints_is_that_between_seeds():
    """Independent noise of 3 % around a falling loss: within 20 % of it, over 12 runs."""
    rows = curves.scaled(checkpoints(power, 1, sizes=12, spread=0.03, many=10), "C")[0]
    variance, errors = np.array(list(noise.checkpoints(rows, "sum")["log_likelihood_per_token"].values())).T
    assert 0.8 < np.sqrt(variance.mean()) / 0.03 < 1.2 and errors.tolist() == [8] * 12


def test_a_stated_noise_stands_in_for_seeds():
    table = ladder(step, 0, seeds=1, sizes=8, items_too=False)[0]
    table = table[table["metric"].isin(["exact_match", "log_likelihood_per_token"])]
    (made,) = analyse(table, resamples=20)
    words = (
        r"another seed \(column seed\) at C = ([^o]*), or at least 4 .*--noise exact_match=SD,log_likelihood_per_tok"
    )
    told = re.search(words, made.reasons[0])
    assert len(told[1].split(", ")) == 3
    stated = {"exact_match": 0.01, "log_likelihood_per_token": 0.02}
    (made,) = analyse(table, resamples=40, stated=stated)
    assert made.verdict == LOSS_TOO and made.broken.noise.min() >= 0.02
    (made,) = analyse(table, resamples=20, stated={"exact_match": 0.01})
    assert "--noise log_likelihood_per_token=SD" in made.reasons[0]
    with pytest.raises(InputError, match="noise: expected METRIC=SD with SD >= 0, got exact=0.1; did you mean"):
        analyse(table, stated={"exact": 0.1})


def test_a_hard_metric_alone_gets_its_rise():
    table, _ = ladder(step, 0, items_too=False)
    (made,) = analyse(table[table.metric == "exact_match"], resamples=100)
    assert made.verdict == UNDECIDED and made.smooth == "" and "no smooth metric" in made.reasons[0]
    (told,) = made.remarks
    assert "exact_match does 10-90 % of its rise between C = " in told and ": steeper than a logistic" in told
    (made,) = analyse(ladder(gentle, 0, length=1, items_too=False)[0].query("metric == 'exact_match'"), resamples=100)
    assert ": no steeper than a logistic" in made.remarks[0]
    one = table[(table.metric == "exact_match") & (table["seed"] == 0)]
    (made,) = analyse(one.drop(columns="standard_error"), resamples=100)  # n items have the noise of a share
    chosen = curves.select(one.drop(columns="standard_error"), "sum", both=False)
    p, n = chosen.cells["exact_match"], chosen.n
    np.testing.assert_allclose(chosen.cells["exact_match se"], np.sqrt(p * (1 - p) / n), atol=1 / n)
    assert made.rise.low < made.rise.width < made.rise.high


@pytest.mark.parametrize(("truth", "word"), [(step, "a law with a break is better"), (power, "no break is detected")])
def test_a_smooth_metric_alone_gets_its_break_test(truth, word):
    table, _ = ladder(truth, 0, sizes=9, items_too=False)
    only = table[table.metric == "log_likelihood_per_token"].assign(n=np.nan)
    (made,) = analyse(only, resamples=40)
    assert made.verdict == UNDECIDED and made.hard == "" and "no hard metric" in made.reasons[0]
    assert word in made.remarks[-1] and "for a break within half of the ladder" in made.remarks[-1]
    assert made.rise.width != made.rise.width and made.smooth_rise.width > 0
    plain = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert plain["remarks"] == list(made.remarks)
    (made,) = analyse(only[only["seed"] == 0].drop(columns="standard_error"), resamples=20)  # no noise is known
    assert made.broken is None and np.isnan(made.mixed.p_value) and "one seed per point" in made.reasons[-1]


def test_runs_without_a_value_are_named():
    table = pandas.DataFrame({"model": ["m1", "m2", "m3"], "task": "t", "N": [1e6, 1e7, 1e8], "acc": [0.1, None, 0.5]})
    frame, notes = harness.read(table)
    assert len(frame) == 2 and any("1 rows have no value of acc" in note for note in notes)
