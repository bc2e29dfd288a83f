"""Guards against wrong corruption: rates, spans, sentinels, specials, shapes; and the battery on every objective."""

import dataclasses

import numpy as np
import pytest

from lmjax.errors import InputError
from lmjax.objectives import OBJECTIVES, get, merge_options
from lmjax.objectives.base import Spec
from lmjax.objectives.battery import byte_spec, check_objective
from lmjax.objectives.causal_lm import CAUSAL_LM
from lmjax.objectives.masked_lm import MASKED_LM
from lmjax.objectives.prefix_lm import PREFIX_LM
from lmjax.objectives.span_corruption import SPAN_CORRUPTION, counts


class Fixed:
    """A generator whose draws are given: for the worked examples of the docstrings."""

    def __init__(self, **draws):
        self.draws = {name: list(values) for name, values in draws.items()}

    def __getattr__(self, name):
        return lambda *_, **__: np.asarray(self.draws[name].pop(0))


OF_ROWS = [
    name
    for name, one in OBJECTIVES.items()
    if one.attention == "bidirectional" and "lm" not in [head.name for head in one.heads(one.options)]
]


@pytest.mark.parametrize("name", [*sorted(OBJECTIVES), *(f"masked_lm+{name}" for name in sorted(OF_ROWS))])
def test_battery(name):
    objective = get(name)[0]
    optional = {"reconstruction": objective.reconstruct, "rates": objective.expected_weight}
    held = ["shapes", "determinism", "hidden answers", *(check for check, field in optional.items() if field)]
    assert check_objective(objective, draws=100).startswith(f"{name}: {', '.join(held)} hold")


@pytest.mark.parametrize(
    "options", [{"noise_density": 0.5, "mean_span": 3.0}, {"noise_density": 0.15, "mean_span": 1.0}]
)
def test_battery_of_other_span_options(options):
    assert check_objective(SPAN_CORRUPTION, byte_spec(SPAN_CORRUPTION, options)).endswith("rates hold")


def test_battery_finds_a_leak_and_a_wrong_rate():
    def copies_the_answer(tokens, rng, spec):
        example = MASKED_LM.make_example(tokens, rng, spec)
        return {**example, "inputs": example["targets"]}

    with pytest.raises(AssertionError, match="read off the inputs"):
        check_objective(dataclasses.replace(MASKED_LM, make_example=copies_the_answer))
    with pytest.raises(AssertionError, match="mean weight"):
        check_objective(dataclasses.replace(CAUSAL_LM, expected_weight=lambda n, options: n))
    shifted = dataclasses.replace(
        CAUSAL_LM, make_example=lambda t, r, s: {**CAUSAL_LM.make_example(t, r, s), "inputs": t[1:].astype(np.int32)}
    )
    with pytest.raises(AssertionError, match="read off the inputs|reconstruct"):
        check_objective(shifted)


def test_causal_lm_example():
    example = CAUSAL_LM.make_example(np.array([5, 6, 7, 8]), None, None)
    assert example["inputs"].tolist() == [5, 6, 7]
    assert example["targets"].tolist() == [6, 7, 8]
    assert example["weights"].tolist() == [1, 1, 1]


def test_prefix_lm_example():
    example = PREFIX_LM.make_example(np.array([5, 6, 7, 8, 9]), Fixed(integers=[2]), byte_spec(PREFIX_LM))
    assert example["inputs"].tolist() == [5, 6, 7, 8]
    assert example["prefix"].tolist() == [True, True, False, False]
    assert example["targets"].tolist() == [6, 7, 8, 9]
    assert example["weights"].tolist() == [0, 1, 1, 1]


def test_masked_lm_example():
    spec = byte_spec(MASKED_LM, {"mask_rate": 1 / 3})
    spec = dataclasses.replace(spec, specials=dataclasses.make_dataclass("S", ["mask"])(99))
    rng = Fixed(permutation=[[1, 4, 0, 2, 3, 5]], random=[[0.5, 0.15]], integers=[[7, 42]])
    example = MASKED_LM.make_example(np.arange(10, 16), rng, spec)
    assert example["inputs"].tolist() == [10, 99, 12, 13, 42, 15]
    assert example["targets"].tolist() == [10, 11, 12, 13, 14, 15]
    assert example["weights"].tolist() == [0, 1, 0, 0, 1, 0]


def test_span_corruption_example():
    specials = dataclasses.make_dataclass("S", ["eos", "pad", "sentinels"])(90, 89, (91, 92))
    spec = Spec(100, 80, specials, {"noise_density": 0.375, "mean_span": 1.5})
    # removed 3 in 2 spans: lengths (2, 1); kept 5: gaps 2, 2, 1, drawn as 3, 2, 2 of 7
    rng = Fixed(choice=[[1], [2, 4]])
    example = SPAN_CORRUPTION.make_example(np.arange(5, 13), rng, spec)
    assert example["encoder_inputs"].tolist() == [5, 6, 91, 9, 10, 92, 12, 90]
    assert example["inputs"].tolist() == [89, 91, 7, 8, 92, 11]
    assert example["targets"].tolist() == [91, 7, 8, 92, 11, 90]


def test_masked_lm_realised_rates():
    """15 % selected; of those 80 / 10 / 10. Chi-square with 2 degrees of freedom below its 99.99 % point, 18.4."""
    spec = byte_spec(MASKED_LM)
    fates = np.zeros(3)
    tokens = np.tile(np.arange(256), 4)
    for seed in range(60):
        example = MASKED_LM.make_example(tokens, np.random.default_rng(seed), spec)
        chosen = example["weights"] > 0
        assert chosen.sum() == round(0.15 * len(tokens))
        assert np.array_equal(example["inputs"][~chosen], tokens[~chosen])
        shown, true = example["inputs"][chosen], tokens[chosen]
        fates += [(shown == 258).sum(), ((shown != 258) & (shown != true)).sum(), (shown == true).sum()]
    expected = fates.sum() * np.array([0.8, 0.1 * 255 / 256, 0.1 + 0.1 / 256])  # a random token may be the true one
    assert ((fates - expected) ** 2 / expected).sum() < 18.4


def test_special_ids_are_never_masked():
    spec = byte_spec(MASKED_LM, {"mask_rate": 0.9})
    tokens = np.array([256, 1, 2, 3, 256, 4, 257, 256])
    for seed in range(50):
        example = MASKED_LM.make_example(tokens, np.random.default_rng(seed), spec)
        special = tokens >= 256
        assert not example["weights"][special].any()
        assert np.array_equal(example["inputs"][special], tokens[special])


def test_span_corruption_counts_and_places():
    """Density and span number are exact; away from the ends every token is removed equally often, at them less."""
    spec = byte_spec(SPAN_CORRUPTION)
    n, draws = 100, 4000
    assert counts(n, spec.options) == (15, 5)
    removed = np.zeros(n)
    for seed in range(draws):
        example = SPAN_CORRUPTION.make_example(np.arange(n), np.random.default_rng(seed), spec)
        text = example["targets"][example["targets"] < 256]
        assert len(text) == 15
        sentinels = example["encoder_inputs"][example["encoder_inputs"] >= 259]
        assert sentinels.tolist() == list(range(259, 264))
        assert example["targets"][example["targets"] >= 259].tolist() == sentinels.tolist()
        removed[text] += 1
    spread = 5 * np.sqrt(draws * 0.15 * 0.85)
    # 5 standard errors of a binomial, and 10 % for what the ends leave to the middle.
    assert abs(removed[10:-10] - draws * 0.15).max() < spread + 0.1 * draws * 0.15
    assert removed.min() > draws * 0.15 * 0.3  # the original never removes the first token
    assert abs(removed[:10].sum() - removed[-10:].sum()) < 5 * np.sqrt(2 * 10 * draws * 0.15)


@pytest.mark.parametrize("density", [0.05, 0.15, 0.5, 0.9])
@pytest.mark.parametrize("mean_span", [1.0, 3.0, 10.0])
def test_span_corruption_reconstructs_for_all_shapes(density, mean_span):
    spec = byte_spec(SPAN_CORRUPTION, {"noise_density": density, "mean_span": mean_span}, sentinels=200)
    for n in (2, 3, 5, 17, 64, 200):
        tokens = np.arange(n) % 256
        example = SPAN_CORRUPTION.make_example(tokens, np.random.default_rng(n), spec)
        assert np.array_equal(SPAN_CORRUPTION.reconstruct(example, spec), tokens)
        lengths = SPAN_CORRUPTION.lengths(n, spec.options)
        assert (len(example["inputs"]), len(example["encoder_inputs"])) == (
            lengths["inputs"],
            lengths["encoder_inputs"],
        )


def test_too_few_sentinels_is_an_error_with_the_number_to_set():
    spec = byte_spec(SPAN_CORRUPTION, {"noise_density": 0.5}, sentinels=4)
    with pytest.raises(InputError, match=r"needs 17 sentinels.*num_sentinels=17"):
        SPAN_CORRUPTION.make_example(np.arange(100), np.random.default_rng(0), spec)


def test_the_largest_prefix_still_leaves_a_token_to_predict():
    spec = byte_spec(PREFIX_LM, {"min_prefix": 1.0})
    assert check_objective(PREFIX_LM, spec).endswith("rates hold")
    assert PREFIX_LM.make_example(np.arange(9), np.random.default_rng(0), spec)["weights"].sum() == 1


def test_a_file_may_not_redefine_a_built_in(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import dataclasses\nfrom lmjax.objectives import OBJECTIVES\n"
        "OBJECTIVES['causal_lm'] = dataclasses.replace(OBJECTIVES['causal_lm'], version=7)\n"
    )
    with pytest.raises(InputError, match="'causal_lm' is registered already, by lmjax"):
        get("causal_lm", str(path))
    assert OBJECTIVES["causal_lm"] is CAUSAL_LM


def test_window_length():
    assert CAUSAL_LM.window_length({}, 128, 0) == 129
    assert MASKED_LM.window_length(MASKED_LM.options, 128, 0) == 128
    n = SPAN_CORRUPTION.window_length(SPAN_CORRUPTION.options, 128, 128)
    assert SPAN_CORRUPTION.lengths(n, SPAN_CORRUPTION.options)["encoder_inputs"] <= 128
    assert SPAN_CORRUPTION.lengths(n + 1, SPAN_CORRUPTION.options)["encoder_inputs"] > 128


def test_unknown_objective_and_options_name_the_nearest():
    with pytest.raises(InputError, match="did you mean 'causal_lm'"):
        get("causl_lm")
    with pytest.raises(InputError, match="did you mean 'mask_rate'"):
        merge_options(MASKED_LM, {"mask_rat": 0.2})
    for objective, option, value in (
        (MASKED_LM, "mask_rate", 1.5),
        (SPAN_CORRUPTION, "mean_span", 0.0),
        (PREFIX_LM, "min_prefix", -0.1),
    ):
        with pytest.raises(InputError, match=f"objective.options.{option}: expected"):
            merge_options(objective, {option: value})
    with pytest.raises(InputError, match="expected float"):
        merge_options(MASKED_LM, {"mask_rate": "much"})


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        (MASKED_LM, {"keep_rate": 0.9, "random_rate": 0.9}, "keep_rate . random_rate of at most 1, got 1.8"),
        (MASKED_LM, {"mask_rate": 0.0}, "mask_rate above 0"),
        (PREFIX_LM, {"min_prefix": 0.8, "max_prefix": 0.2}, "min_prefix up to options.max_prefix 0.2"),
        (SPAN_CORRUPTION, {"noise_density": 0.0}, "noise_density above 0"),
    ],
)
def test_contradicting_options_are_refused(objective, options, message):
    """They used to train with other rates than asked for."""
    with pytest.raises(InputError, match=message):
        merge_options(objective, options)


def test_rows_too_short_for_an_evaluation_are_refused_with_the_rest_of_the_config():
    """masked_lm with rows of 2 tokens used to fail only after compiling."""
    with pytest.raises(InputError, match="3 source tokens or more, got data.seq_len 2"):
        MASKED_LM.window_length(MASKED_LM.options, 2, 0)
    assert MASKED_LM.window_length(MASKED_LM.options, 3, 0) == 3
    assert CAUSAL_LM.window_length({}, 1, 0) == 2


def test_an_objective_file_that_cannot_be_imported_is_named(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import no_such_package_of_mine\n")
    with pytest.raises(InputError, match=r"mine\.py cannot be run: No module named 'no_such_package_of_mine'"):
        get("mine", str(path))


def test_what_could_not_be_checked_is_said():
    """`lmjax data check` claimed that reconstruction and rates hold where the objective defines neither."""
    bare = dataclasses.replace(CAUSAL_LM, reconstruct=None, expected_weight=None)
    assert check_objective(bare) == (
        "causal_lm: shapes, determinism, hidden answers hold; "
        "not checked: reconstruction (define `reconstruct`), rates (define `expected_weight`)"
    )
