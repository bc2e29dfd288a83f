"""An lmjax model in EleutherAI's harness (extra [eval]); `python -m lmjax.evals.harness` runs lm_eval with it.

    from lmjax.evals.harness import LM
    lm_eval.simple_evaluate(model=LM("runs/decoder-..."), tasks=["lambada_openai"])
    python -m lmjax.evals.harness --model lmjax --model_args trained=runs/decoder-... --tasks lambada_openai

Models with a likelihood are supported, `causal` or of an encoder-decoder; an encoder does not define it. Rolling
likelihoods, which the harness divides by bytes, need ids that hold the whole text. Pair boundaries, truncation and
rolling windows follow the harness. Every text gets the prefix of the model's training data once.
lm_eval's own `hf` model agrees if its tokenizer adds the prefix (as the tokenizers of `lmjax export` do), except that
its rolling likelihoods then have two; there, set add_bos_token=False.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from lmjax import models
from lmjax.errors import InputError
from lmjax.evals import framing
from lmjax.evals.framing import array, last
from lmjax.evals.rows import Row, context_window, continued, predict
from lmjax.evals.score import available, score, unknown
from lmjax.trained import Trained, load

try:
    from lm_eval.api import model as harness_model
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as error:
    missing = f"lm_eval is not installed ({error}); run: pip install 'lmjax[eval]'"
    if __name__ == "__main__":
        print(f"lmjax: {missing}", file=sys.stderr)
        sys.exit(64)
    raise InputError(missing) from error

# Types of generation arguments in task files. Others are refused, because ignoring them would silently change results.
_SETTINGS = {"temperature": float, "top_k": int, "top_p": float, "min_p": float, "repetition_penalty": float}
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@register_model("lmjax")
class LM(harness_model.LM):
    """The harness's view of a trained model.

    Args:
        trained: a loaded model, or the path of a run.
        semantics: causal; of an encoder-decoder conditional (the harness's own, and the default) or infilling.
        batch_size: rows per call; changes speed only.
        max_gen_toks: tokens to generate if a task does not say; 0: the harness's 256, at most half the window.
        step: checkpoint step if `trained` is a path; None: the newest.
        max_batch_size, device: passed by the harness to every model; not used.
    """

    def __init__(
        self,
        trained: Trained | str | pathlib.Path,
        semantics: str = "",
        batch_size: int | str = 16,
        max_gen_toks: int = 0,
        step: int | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ):
        super().__init__()
        self.trained = trained if isinstance(trained, Trained) else load(trained, step)
        family = self.trained.config.model.family
        every = available(self.trained)
        known = [name for name in every if name not in ("pseudo", "masked")]
        if every and not known:
            raise InputError(
                f"model.family {family}: the harness needs p(continuation | context), which this model does not "
                "define; use lmjax eval, which reports pseudo-likelihoods"
            )
        try:
            self.batch_size = int(batch_size)
        except ValueError as error:
            raise InputError(f"batch_size: expected a whole number, got {batch_size!r}") from error
        self.frame = framing.frame(self.trained)
        if reason := unknown(semantics, known, family):
            raise InputError(reason)
        self.semantics = semantics or ("causal" if "causal" in known else "conditional")
        self.is_decoder = not models.reads_source(family)
        self.attention = self.trained.objective.attention
        self.max_length = context_window(self.trained)
        self.max_gen_toks = max_gen_toks or min(256, self.max_length // 2)

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's cache of requests."""
        return f"lmjax-{self.trained.tokenizer.hash[:16]}"

    def get_model_info(self) -> dict:
        """Returns the metadata that the harness writes with its results."""
        record = self.trained.record
        facts = {"lmjax_run": record["run_id"], "lmjax_step": self.trained.step, "lmjax_semantics": self.semantics}
        return facts | {"model_num_parameters": record["derived"]["n_total"]}

    # -- The three methods

    def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns for each (context, continuation) its log probability in nats, and whether it is the greedy one."""
        pairs = [request.args for request in requests]
        scores = score(self.trained, pairs, self.semantics, self.batch_size, unconditional=False)
        answers = [(result.log_prob, result.is_greedy) for result in scores]
        for pair, answer in zip(pairs, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, answer)
        return answers

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Returns log p(text) of each text, in the harness's windows: every token once, after the prefix.

        An encoder-decoder reads the prefix, later the previous token, as its source (as in lm_eval's `hf`), unlike in
        its training.

        Raises:
            InputError: a tokenizer that loses text, such as `words`: the harness makes bits per byte of this, which are
                not defined for the ids of a part of the text.
        """
        tokenizer = self.trained.tokenizer
        if not tokenizer.lossless:
            raise InputError(
                f"bits per byte: expected a tokenizer whose ids hold the whole text, got {tokenizer.name!r}, which "
                "loses words outside its vocabulary; use lmjax eval --tasks perplexity, which reports a perplexity "
                "per word"
            )
        texts = [request.args[0] for request in requests]
        rows, counts = [], []
        for text in texts:
            found = [self._rolling_row(*pair) for pair in self._windows(text)]
            rows += found
            counts.append(len(found))
        found = iter(predict(self.trained, rows, self.batch_size))
        totals = [sum(float(next(found).log_probs.astype(np.float64).sum()) for _ in range(count)) for count in counts]
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Returns a continuation of each (context, arguments), cut before the first of arguments["until"]."""
        from lmjax.generate import generate

        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(number)
        answers = [""] * len(requests)
        for numbers in groups.values():
            settings = self._settings(requests[numbers[0]].args[1])
            prompts = [self._prompt(requests[number].args[0], settings.max_new_tokens) for number in numbers]
            found = generate(self.trained, prompts, settings, self.batch_size)
            for number, (generation,) in zip(numbers, found, strict=True):
                answers[number] = self._text(generation, settings)
                self.cache_hook.add_partial("generate_until", requests[number].args, answers[number])
        return answers

    # -- Rows

    def _start(self) -> np.ndarray:
        """The ids before a text; there must be at least one to predict the first token from."""
        return array(self.frame.start or (self.trained.tokenizer.specials.eos,))

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        tokens = self.trained.tokenizer.encode(text).tolist()
        if not self.is_decoder:
            tokens += self.frame.end
        most = self.max_length - (self.attention == "permutation")  # which also has the last id in the row
        windows = get_rolling_token_windows(tokens, int(self._start()[-1]), most, 1)
        return [make_disjoint_window(pair) for pair in windows]

    def _rolling_row(self, context: Sequence[int], tokens: Sequence[int]) -> Row:
        if self.is_decoder:
            return continued(self.attention, array(context), array(tokens))
        row = continued(self.attention, array(self.frame.target), array(tokens))
        return dataclasses.replace(row, encoder_inputs=array(context))

    def _prompt(self, context: str, new_tokens: int) -> list[int]:
        """The ids of a prompt without its oldest tokens if it is too long; a decoder's leaves room for new tokens."""
        ids = array(self.trained.tokenizer.encode(context))
        start, end = array(self.frame.start), array(() if self.is_decoder else self.frame.end)
        room = self.max_length - len(end) - (new_tokens if self.is_decoder else 0)
        if room < 1:
            raise InputError(
                f"max_gen_toks: expected fewer than the model's window of {self.max_length} tokens, got {new_tokens}; "
                "set it in the task's generation_kwargs"
            )
        if len(start) + len(ids) > room and not self.frame.every_row:
            start = start[:0]
        return np.concatenate([start, last(ids, room - len(start)), end]).tolist()

    def _text(self, generation, settings) -> str:
        """The text of a generation without special ids, as in the harness."""
        tokenizer = self.trained.tokenizer
        specials = tokenizer.specials
        hidden = {specials.eos, specials.pad, specials.mask, *specials.sentinels}
        if not hidden.intersection(generation.ids[:-1]):
            return generation.text
        text = tokenizer.decode([token for token in generation.ids if token not in hidden])
        for stop in settings.stop_strings:
            text = text.split(stop)[0]
        return text

    def _settings(self, arguments: Mapping):
        """Generation arguments of a task file as decoding settings."""
        from lmjax.generate import Settings

        given = dict(arguments)
        until = given.pop("until", None) or []
        until = [until] if isinstance(until, str) else list(until)
        lengths = [given.pop(name) for name in _LENGTHS if name in given]
        temperature = float(given.pop("temperature", 0.0))
        draws = given.pop("do_sample", temperature > 0)
        unknown = sorted(set(given) - set(_SETTINGS))
        if unknown:
            raise InputError(
                f"generation argument {unknown[0]!r} of the task: expected until, do_sample, {', '.join(_LENGTHS)} or "
                f"{', '.join(_SETTINGS)}"
            )
        chosen = {name: _SETTINGS[name](value) for name, value in given.items()}
        if draws:
            chosen["temperature"] = temperature or 1.0
        else:  # top_k and the like do not change the most probable token
            chosen = {name: value for name, value in chosen.items() if name == "repetition_penalty"}
        return Settings(
            method="sample" if draws else "greedy",
            max_new_tokens=int(lengths[0]) if lengths else self.max_gen_toks,
            stop_strings=tuple(text for text in until if text),
            **chosen,
        )


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
