"""Guards against a comparison of architectures whose objectives train another question than evaluation asks, and
against a verdict on compute that the seeds do not bear out."""

import numpy as np
import pandas
import pytest

from lmjax.config import run_file
from lmjax.data import tokenizers
from lmjax.errors import InputError
from lmjax.evals.score import rows_of
from lmjax.objectives import OBJECTIVES
from lmjax.objectives.battery import check_objective
from tests.conftest import ROOT
from tests.random_runs import random_model

FOLDER = ROOT / "experiments" / "emergence"
BYTES = tokenizers.Bytes(8)
EOS, PAD, MASK = BYTES.specials.eos, BYTES.specials.pad, BYTES.specials.mask


@pytest.fixture(scope="module")
def three():
    return run_file(FOLDER / "three.py", "experiment")


@pytest.fixture(scope="module")
def objectives():
    known = dict(OBJECTIVES)
    run_file(FOLDER / "answers.py", "plugin")
    yield {name: OBJECTIVES[name] for name in ("masked_answers", "written_answers", "continued_answers")}
    for name in set(OBJECTIVES) - set(known):
        del OBJECTIVES[name]


def document(text):
    return np.asarray([EOS, *text.encode(), EOS])


def example(objective, text):
    tokens = document(text) if isinstance(text, str) else text
    return objective.make_example(tokens, np.random.default_rng(0), objective.spec(BYTES, {}))


def test_each_objective_trains_the_question_that_evaluation_asks(objectives):
    """eos, context, masks; eos, context, eos and pad, answer; eos, context, answer; the last input is not scored."""
    question, answer = [EOS, *b"mod 20+11="], [*b"22"]
    masked = example(objectives["masked_answers"], "mod 20+11=22")
    assert masked["inputs"].tolist() == [*question, MASK, MASK] and masked["targets"].tolist() == [*question, *answer]
    assert masked["weights"].tolist() == [0] * 11 + [1, 1]
    written = example(objectives["written_answers"], "mod 20+11=22")
    assert written["encoder_inputs"].tolist() == [*question, EOS] and written["inputs"].tolist() == [PAD, *answer]
    assert written["targets"].tolist() == [*answer, EOS] and written["weights"].tolist() == [1, 1, 1]
    continued = example(objectives["continued_answers"], "mod 20+11=22")
    assert continued["inputs"].tolist() == [*question, *answer]
    assert continued["weights"].tolist() == [0] * 10 + [1, 1, 1] and continued["targets"][-1] == EOS
    for family, semantics, trained, less in (
        ("encoder", "masked", masked, 0),
        ("encoder_decoder", "conditional", written, 1),
        ("decoder", "causal", continued, 1),
    ):
        (row,) = rows_of(random_model(family, data__num_sentinels=8), [("mod 20+11=", "22")], semantics)
        seen = row.inputs.copy()
        seen[row.places if row.masked else []] = MASK
        assert seen.tolist() == trained["inputs"][: len(trained["inputs"]) - less].tolist()
        assert row.targets.tolist() == [*answer] == trained["targets"][row.places].tolist()
        assert trained["weights"][row.places].all()
        if family == "encoder_decoder":
            assert row.encoder_inputs.tolist() == trained["encoder_inputs"].tolist()


@pytest.mark.parametrize("text", ["a=b and c=d are equations", "no question", "one = but", "mod 1+1="])
def test_other_text_is_corrupted_as_in_pretraining(objectives, text):
    """Text with other than one "=", a piece of a longer document, and a question without an answer."""
    tokens = document(text)[: -1 if text == "one = but" else None]
    assert 0 < example(objectives["masked_answers"], tokens)["weights"].sum() < len(text) / 2
    sources = example(objectives["written_answers"], tokens)["encoder_inputs"]
    assert BYTES.specials.sentinels[0] in sources
    assert example(objectives["continued_answers"], tokens)["weights"].all()


@pytest.mark.parametrize("name", ["masked_answers", "written_answers", "continued_answers"])
def test_the_objectives_pass_the_battery(objectives, name):
    assert "hidden answers" in check_objective(objectives[name], lengths=(2, 3, 7, 32, 63), draws=60)


def test_every_document_fits_the_declared_lengths(objectives):
    """An answer is at most as long as its question, for each task."""
    config, objective = run_file(FOLDER / "config.py", "config"), objectives["written_answers"]
    from lmjax.evals import tasks

    for task in tasks.find(config.TASKS):
        for item in tasks.make_items(task, 0, 40, 0):
            text = item.context + item.answers[0]
            made, room = example(objective, text), objective.lengths(len(text) + 2, objective.options)
            assert len(made["inputs"]) == len(item.answers[0]) + 1, task.name
            assert all(len(made[side]) <= most for side, most in room.items()), task.name


def planted(family, halves, most=1e13, sizes=9):
    """Evaluations of seeds whose exact match is 0.5 at the given compute, and rises over a factor of 10 around it."""
    rows = []
    for seed, half in enumerate(halves):
        for number, C in enumerate(np.geomspace(1e10, most, sizes)):
            hard = float(np.clip(0.5 + np.log10(C / half), 0, 1))
            facts = {"family": family, "task": "sums", "seed": seed, "n_total": 10.0 * number, "flops_exact": C}
            facts |= {"task_hash": "a", "n": 300, "limit": 300, "seen": 0, "status": "done", "schedule_complete": True}
            rows += [{**facts, "metric": "exact_match", "value": hard}]
            rows += [{**facts, "metric": "log_likelihood_per_token", "value": np.log(0.1 + 0.9 * hard)}]
    return pandas.DataFrame(rows)


ROWS = pandas.DataFrame({"family": ["encoder", "encoder_decoder", "decoder_answers"], "share": [0.9, 0.6, 0.9]})


def test_halves_and_verdicts_are_those_of_planted_curves(three):
    made = [
        planted("decoder", [1e12, 2e12, 3e12]),
        planted("decoder_answers", [5e11, 6e11, 1.1e12]),  # overlaps
        planted("encoder", [1e11, 2e11, 3e11]),
        planted("encoder_decoder", [4e12, 5e12, 1e15]),  # the last one never; more, but not without the padding
    ]
    points = three.points(made)
    assert len(points) == 4 * 3 * 9 and points["soft"].between(0.1, 1).all()
    found = three.halves(points).set_index(["family", "seed"])
    assert found.loc[("encoder", 1), "high"] == pytest.approx(2e11, rel=1e-6) == found.loc[("encoder", 1), "low"]
    assert found.loc[("encoder_decoder", 2), ["low", "high"]].tolist() == [pytest.approx(1e13), np.inf]
    (row,) = three.analyse(points, ROWS).to_dict("records")
    assert row["encoder/decoder"] == "less" and row["decoder_answers/decoder"] == "not separated"
    assert row["encoder_decoder/decoder"] == "not separated", "4e12 x 0.6 is below 3e12 x 0.9"
    assert row["encoder_decoder/decoder_answers"] == "more", "4e12 x 0.6 is above 1.1e12 x 0.9"
    assert (row["encoder_decoder_reached"], row["encoder_decoder_seeds"]) == (2, 3)
    assert three._half(row, "encoder_decoder") == "2 of 3 seeds, from 4e+12"
    assert three._half(row, "encoder") == "1e+11 to 3e+11"
    never = [planted(family, [1e15] * 3) for family in three.LOOKS]
    (row,) = three.analyse(three.points(never), ROWS).to_dict("records")
    assert {row["/".join(pair)] for pair in three.PAIRS} == {"neither reaches half"}
    other = made[2].assign(n=299)
    with pytest.raises(InputError, match="sums: expected the same items for all families, got"):
        three.points([*made[:2], other])
    failed = made[2].iloc[:1].assign(task="", metric="", status="not_evaluated", schedule_complete=False)
    with pytest.raises(InputError, match="expected evaluations that are done, got .*'not_evaluated'"):
        three.points([*made, failed])


def test_the_page_and_the_figure_say_what_planted_records_say(three):
    names = three.order()
    tables = [planted(family, [1e12 / (1 + i)] * 3) for i, family in enumerate(three.LOOKS)]
    points = three.points([table.assign(task=name) for table in tables for name in names])
    runs = pandas.DataFrame({"family": list(three.LOOKS), "n_total": 1e5, "flops_exact": 1e12, "wall_seconds": 3600.0})
    text = "\n".join(three.section(runs, three.analyse(points, ROWS), ROWS))
    assert "- encoder: 1 runs of 100k to 100k parameters, 1e+12 FLOP, 1.0 core-hours" in text
    assert "| sums | 1e+12 to 1e+12 | 5e+11 to 5e+11 | 3.3e+11 to 3.3e+11 | 2.5e+11 to 2.5e+11 |" in text
    assert "chance rises from 0.011 to 0.021 and from 0.034 to 0.069" in text
    assert (
        "5. encoders need more in sorting and words, less in sums and modular: sorting less, words less, sums less, "
        in text
    )
    assert "modular less: 2 of 4 right." in text and "8. the control needs less than decoders in at least four" in text
    drawn = three.figure(points)
    axes = [ax for ax in drawn.axes if ax.lines]
    assert len(axes) == 2 * len(names) and len(axes[0].get_legend_handles_labels()[1]) == 4


def test_the_chance_of_encoders_counts_lengths(three):
    """Without lengths it is the chance of the tasks; sums: 80 of 99 and 90 of 109 of the 8,100 pairs."""
    for task, answers in three.ANSWERS.items():
        most = pandas.Series(answers).value_counts().max()
        assert most / len(answers) == pytest.approx(three.chance(task, "decoder"))
    assert three.chance("sums", "encoder") == pytest.approx(170 / 8100)
    assert three.chance("modular", "encoder") == pytest.approx(2 / 29)
    assert three.chance("copying", "encoder") == three.chance("copying", "decoder")


def test_the_decoders_of_the_ladder_are_as_they_were():
    """The ids of their runs are in the committed evaluations; the other families are variants."""
    config = run_file(FOLDER / "config.py", "config")
    cells = config.sweep()
    assert len(cells) == 36 and cells[0]["duration.steps"] == 900 and "plugins" not in cells[0]
    for family in config.FAMILIES:
        made = config.sweep(family)
        assert len(made) == 3 * len(config.THREE) and {cell["train.seed"] for cell in made} == {0, 1, 2}
        assert next(cell for cell in made if cell["model.d_model"] == 32)["duration.steps"] == 2350


def test_the_committed_verdicts_are_those_of_the_committed_evaluations(three):
    if not (FOLDER / "three.csv").exists():
        pytest.skip("the families are not trained yet")
    _, points, rows = three.load()
    pandas.testing.assert_frame_equal(three.analyse(points, rows), pandas.read_csv(FOLDER / "three.csv"), rtol=1e-9)
