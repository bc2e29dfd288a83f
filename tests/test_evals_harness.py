"""lmjax models in EleutherAI's harness: real runs on local tasks, offline; equal to the harness's own `hf` model on the
exported or imported folder.

Log probabilities of a continuation agree to 2e-4 nats: sums of up to 60 float32 numbers of two libraries. A near-tie
could make another token greedy; none does with these seeds.
"""

import dataclasses
import functools
import json
import os

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")  # lm_eval's hf model imports it

import tokenizers as library  # noqa: E402
import yaml  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from lmjax import hf as hugging_face  # noqa: E402
from lmjax import trained  # noqa: E402
from lmjax.data import tokenizers  # noqa: E402
from lmjax.errors import InputError  # noqa: E402
from lmjax.evals.harness import LM  # noqa: E402
from lmjax.evals.perplexity import evaluate  # noqa: E402
from lmjax.evals.score import score  # noqa: E402
from tests.random_runs import random_model  # noqa: E402
from tests.test_hf_export import run_of, section_of  # noqa: E402

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

QUESTIONS = [
    {"question": "The cat sat on the", "choices": ["mat", "moon", "idea of it"], "answer": 0},
    {"question": "Two and two make ", "choices": ["five", "four"], "answer": 1},
    {
        "question": "It was the best of times, it was the worst of times, it was the age",
        "choices": ["of", "a"],
        "answer": 0,
    },
    {"question": "A rose by any other name would smell as", "choices": ["sweet", "old", "Grüße"], "answer": 0},
]
TEXTS = [
    "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer.",
    "Short.",
    "Ärger über Öl",
]
TASKS = {
    "local_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "local_shots": {
        "output_type": "multiple_choice",
        "doc_to_text": "Q: {{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "num_fewshot": 1,
        "fewshot_split": "test",
        "metric_list": [{"metric": "acc"}],
    },
    "local_rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
    },
    "local_answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n", "e"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of task files with their data."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, rows in (("questions", QUESTIONS), ("texts", [{"text": text} for text in TEXTS])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    for name, facts in TASKS.items():
        data = folder / ("texts.jsonl" if name == "local_rolling" else "questions.jsonl")
        source = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
        common = {"task": name, "dataset_path": "json", "dataset_kwargs": source, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**common, **facts}, allow_unicode=True), "utf8")
    return folder


def run(model, tasks, names):
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return lm_eval.simple_evaluate(model=model, tasks=names, task_manager=manager, bootstrap_iters=0, batch_size=3)


@pytest.fixture(autouse=True, scope="module")
def no_environment_record():
    """The harness calls `pip list` for every result."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        yield


def hf(folder, **options):
    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=3, **options)


def words():
    """A BPE of few words, so that merges cross the border between context and continuation."""
    return tokenizers.train_bpe([*TEXTS, *(q["question"] + " " + q["choices"][0] for q in QUESTIONS)], 330, 8)


def t5_folder(folder):
    """A small random T5 with a tokenizer that ends texts with </s>, as published ones do."""
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 24, "num_layers": 2, "n_positions": 64}
    ids = {"vocab_size": 263, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **ids)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    specials = ["<pad>", "</s>", "<unk>", "<extra_id_0>", "<extra_id_1>"]
    alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {name: i for i, name in enumerate(specials + alphabet)}
    tokenizer = library.Tokenizer(library.models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    tokenizer.post_processor = library.processors.TemplateProcessing("$A </s>", "$A $B </s>", [("</s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.add_special_tokens({"additional_special_tokens": specials[3:]})
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """name -> (our run, a folder of transformers with the same weights), made when first asked for."""

    @functools.cache
    def make(name):
        folder = tmp_path_factory.mktemp(name)
        if name == "t5":
            hugging_face.import_run(t5_folder(folder / "hf"), folder / "run")
            return folder / "run", folder / "hf"
        tokenizer, file = (words(), "preset.py:gpt2") if name == "gpt2" else (tokenizers.Bytes(8), f"{name}.py")
        # as many rows as ids: random weights would choose unused rows, which our decoding never does and theirs may
        section = section_of(file, max_len=64, vocab_size=tokenizer.vocab_size)
        run_dir = run_of(folder, section, tokenizer)
        hugging_face.export_run(run_dir, folder / "hf")
        return run_dir, folder / "hf"

    return make


def responses(results, name):
    """[document][request] -> what the model answered."""
    samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    return [sample["resps"] for sample in samples]


@pytest.mark.parametrize("name", ["decoder", "gpt2", "encoder_decoder", "t5"])
def test_a_real_run_gives_the_numbers_of_the_hf_model(models, tasks, name):
    """Choices, with and without examples shown, and generated answers."""
    run_dir, folder = models(name)
    names = ["local_choice", "local_shots", "local_answer"]
    if name in ("gpt2", "encoder_decoder"):  # their decoding is compared in test_generate_transformers.py
        names.pop()
    mine = run(LM(str(run_dir), batch_size="4"), tasks, names)
    theirs = run(hf(folder), tasks, names)
    for task in ("local_choice", "local_shots"):
        for a, b in zip(responses(mine, task), responses(theirs, task), strict=True):
            a, b = (np.asarray([choice[0] for choice in x], np.float64) for x in (a, b))
            np.testing.assert_allclose(a[:, 0], b[:, 0], atol=2e-4)
            assert a[:, 1].tolist() == b[:, 1].tolist()
        for metric in ("acc,none", "acc_norm,none"):
            assert mine["results"][task].get(metric) == theirs["results"][task].get(metric)
    if "local_answer" in names:
        answers = [[sample[0][0] for sample in responses(x, "local_answer")] for x in (mine, theirs)]
        if name == "t5":  # there, lm_eval counts the source's tokens as room for new ones
            answers[1] = [b[: len(a)] for a, b in zip(*answers, strict=True)]
        assert answers[0] == answers[1] and any(answers[0])


@pytest.mark.parametrize("name", ["decoder", "gpt2", "t5"])
def test_rolling_likelihoods_are_those_of_the_hf_model(models, tasks, name):
    """Windows of 64 tokens. The hf model must not add the prefix to texts: the harness puts one there itself."""
    run_dir, folder = models(name)
    mine = run(LM(trained.load(run_dir)), tasks, ["local_rolling"])
    theirs = run(hf(folder, **({} if name == "t5" else {"add_bos_token": False})), tasks, ["local_rolling"])
    for a, b in zip(responses(mine, "local_rolling"), responses(theirs, "local_rolling"), strict=True):
        assert np.ravel(a).astype(float) == pytest.approx(np.ravel(b).astype(float), abs=5e-4)
    for metric in ("bits_per_byte,none", "word_perplexity,none"):
        expected = theirs["results"]["local_rolling"][metric]
        assert mine["results"]["local_rolling"][metric] == pytest.approx(expected, rel=1e-5)


def test_the_harness_knows_it_by_name(models):
    """lm_eval --model lmjax --model_args trained=RUN, once lmjax.evals.harness is imported."""
    made = get_model("lmjax").create_from_arg_string(f"trained={models('decoder')[0]}", {"batch_size": 2})
    assert isinstance(made, LM) and made.batch_size == 2 and made.max_length == 64


def test_a_results_file_names_run_step_and_semantics(models):
    run_dir, _ = models("decoder")
    facts = LM(str(run_dir)).get_model_info()
    assert facts["lmjax_semantics"] == "causal" and facts["lmjax_step"] == 0 and facts["model_num_parameters"] > 0
    assert LM(str(run_dir)).tokenizer_name != LM(str(models("gpt2")[0])).tokenizer_name


def ask(model, method, *arguments):
    kind = {"loglikelihood": "loglikelihood", "generate_until": "generate_until"}[method]
    return getattr(model, method)([Instance(kind, {}, a, i) for i, a in enumerate(arguments)])


def rolling(model, text):
    return model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])[0]


def test_no_bits_per_byte_of_words():
    """<unk> holds no text, so that bits of ids are none of the text's; the harness divides them by its bytes."""
    words = tokenizers.train_words(TEXTS, 30, 0)
    record = {"data": {"tokenizer": tokenizers.facts(words)}}
    model = LM(dataclasses.replace(random_model(), tokenizer=words, record=record))
    with pytest.raises(InputError, match="bits per byte: .*got 'words', which loses words"):
        rolling(model, "To be , or not to be")
    assert ask(model, "loglikelihood", ("To be ,", "or not"))[0][0] < 0


@pytest.mark.parametrize(
    ("family", "length", "keys"),
    [
        ("rnn", 32, {}),
        ("encoder", 30, {"objective__name": "permutation_lm", "model__family": "xlnet", "model__position": "alibi"}),
    ],
)
def test_other_models_that_read_from_left_to_right(family, length, keys):
    """The harness's likelihoods are those of `score` and of perplexities: of every byte once, in two windows of 16, in
    which XLNet predicts 15."""
    trained = random_model(family, **keys)
    model, text = LM(trained), "Shall I compare thee to a summer"[:length]
    assert model.semantics == "causal"
    found = evaluate(trained, documents=[text], semantics="causal", include_end=False, bins=0)
    assert rolling(model, text) == pytest.approx(-found["loss"] * len(text), rel=1e-4)
    pair = ("The cat", " sat")
    assert ask(model, "loglikelihood", pair)[0][0] == pytest.approx(score(trained, [pair])[0].log_prob, abs=1e-5)
    with pytest.raises(InputError, match="'pseudo'.* has causal"):
        LM(trained, semantics="pseudo")


def test_infilling_is_another_semantics(models):
    run_dir, _ = models("t5")
    pair = ("The cat", " sat")
    plain, filled = (ask(LM(str(run_dir), semantics=s), "loglikelihood", pair)[0][0] for s in ("", "infilling"))
    assert LM(str(run_dir)).semantics == "conditional" and abs(plain - filled) > 1e-3


def test_generation_arguments(models):
    """Answers keep their order over groups of arguments; stop strings cut; sampling takes its settings."""
    model = LM(str(models("decoder")[0]), max_gen_toks=5)
    greedy, one = {"until": "\n"}, {"until": [], "max_gen_toks": 1}
    answers = ask(model, "generate_until", ("The", greedy), ("The", one), ("A", greedy), ("A", one))
    assert answers[0].startswith(answers[1]) and answers[2].startswith(answers[3])
    assert ask(model, "generate_until", ("The", greedy)) == answers[:1]
    settings = model._settings({"until": ["x", ""], "do_sample": True, "temperature": 0.7, "top_p": 0.9})
    assert (settings.method, settings.temperature, settings.top_p) == ("sample", 0.7, 0.9)
    assert (settings.stop_strings, settings.max_new_tokens) == (("x",), 5)
    assert model._settings({"temperature": 0.0, "top_k": 5}).method == "greedy"


def test_bad_input_is_refused(models, tmp_path):
    run_dir, _ = models("decoder")
    with pytest.raises(InputError, match="encoder: the harness needs"):
        LM(str(run_of(tmp_path, section_of("encoder.py"))))
    keys = {"model__num_layers": 1, "data__tokenizer": "bytes", "data__vocab_size": None, "data__seq_len": 384}
    vectors = random_model("word2vec", **keys)
    with pytest.raises(InputError, match="'word2vec' has no probabilities of a text: .*; lmjax vectors"):
        LM(vectors)
    with pytest.raises(InputError, match="batch_size.*'auto'"):
        LM(str(run_dir), batch_size="auto")
    with pytest.raises(InputError, match="has causal"):
        LM(str(run_dir), semantics="infilling")
    model = LM(str(run_dir))
    with pytest.raises(InputError, match="'num_beamz'"):
        ask(model, "generate_until", ("a", {"num_beamz": 2}))
    with pytest.raises(InputError, match="max_gen_toks.*window of 64"):
        ask(model, "generate_until", ("a", {"max_gen_toks": 64}))
