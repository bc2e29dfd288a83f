"""Training objectives by name. To add your own, write a file that adds it to OBJECTIVES, and name the file in
config.objective.file or config.plugins."""

from lmjax.config import run_once
from lmjax.errors import InputError, nearest
from lmjax.objectives.bart import BART
from lmjax.objectives.base import LM, Example, Head, Objective, Spec, merge_options
from lmjax.objectives.capitalisation import CAPITALISATION
from lmjax.objectives.causal_lm import CAUSAL_LM
from lmjax.objectives.compose import over
from lmjax.objectives.deshuffling import DESHUFFLING, SENTENCE_DESHUFFLING
from lmjax.objectives.discourse_relation import DISCOURSE_RELATION
from lmjax.objectives.electra import ELECTRA
from lmjax.objectives.fill_in_the_middle import FILL_IN_THE_MIDDLE
from lmjax.objectives.ir_relevance import IR_RELEVANCE
from lmjax.objectives.masked_column import MASKED_COLUMN
from lmjax.objectives.masked_lm import MASKED_LM
from lmjax.objectives.next_sentence import NEXT_SENTENCE
from lmjax.objectives.permutation_lm import PERMUTATION_LM
from lmjax.objectives.prefix_lm import PREFIX_LM
from lmjax.objectives.sentence_distance import SENTENCE_DISTANCE
from lmjax.objectives.sentence_order import SENTENCE_ORDER
from lmjax.objectives.skip_gram import SKIP_GRAM
from lmjax.objectives.span_corruption import SPAN_CORRUPTION
from lmjax.objectives.translation import MULTILINGUAL_DENOISING, TRANSLATION
from lmjax.objectives.translation_lm import TRANSLATION_LM
from lmjax.objectives.ul2 import UL2, UL2_DECODER
from lmjax.registry import Registry, of_type

__all__ = ["LM", "OBJECTIVES", "Example", "Head", "Objective", "Spec", "get", "merge_options"]

_BUILT_IN = (
    CAUSAL_LM,
    MASKED_LM,
    PREFIX_LM,
    SPAN_CORRUPTION,
    DESHUFFLING,
    NEXT_SENTENCE,
    SENTENCE_ORDER,
    SENTENCE_DESHUFFLING,
    SENTENCE_DISTANCE,
    DISCOURSE_RELATION,
    IR_RELEVANCE,
    CAPITALISATION,
    FILL_IN_THE_MIDDLE,
    BART,
    UL2,
    UL2_DECODER,
    ELECTRA,
    PERMUTATION_LM,
    TRANSLATION_LM,
    TRANSLATION,
    MULTILINGUAL_DENOISING,
    MASKED_COLUMN,
    SKIP_GRAM,
)
OBJECTIVES: dict[str, Objective] = Registry("objective", {one.name: one for one in _BUILT_IN}, of_type(Objective))


def get(name: str, file: str | None = None) -> tuple[Objective, str]:
    """Returns (objective, version). If a file is given, it is run first and should add `name` to OBJECTIVES.

    "masked_lm+next_sentence" applies the first objective to the rows of the second; see `compose.over`.

    The version is "1" for a built-in, "1+<hash of the file>" for your own, so that editing the file starts new runs.

    Raises:
        InputError: unknown name; missing file; the file redefines a name.
    """
    version = "+" + run_once(file, "objective.file") if file else ""
    parts = [name] if name in OBJECTIVES else name.split("+", 1)
    for part in parts:
        if part not in OBJECTIVES:
            where = f" in {file}" if file else "; one of your own needs objective.file or plugins"
            raise InputError(f"unknown objective.name {part!r}{where}{nearest(part, OBJECTIVES)}")
    objective = OBJECTIVES[name] if name in OBJECTIVES else over(*(OBJECTIVES[part] for part in parts))
    return objective, f"{objective.version}{version}"
