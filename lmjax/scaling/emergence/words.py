"""A verdict of emergence in a sentence with its numbers. Decides nothing."""

import math

from lmjax.scaling.text import short


def sentence(made) -> str:
    """The verdict with its numbers, in words for people.

    Args:
        made: Emergence of verdict.verdict.
    """
    head = f"{made.task}: {made.verdict}"
    if made.reasons:
        head += f" ({'; '.join(made.reasons)})"
    parts = [f"{head}. {_course(made)}"]
    if math.isfinite(made.rise.width):
        bound = " at most" if made.rise.steps < 1 else ""
        parts[0] += f", 10-90 % of it within{bound} {made.rise.width:.2f} decades, {share(made.rise)} of the ladder"
    if math.isfinite(made.smooth_rise.width):
        parts.append(f"{made.smooth} takes {share(made.smooth_rise)}")
    if made.broken:
        parts += _break_words(made)
    told = "; ".join(parts) + "."
    return f"{told} {_null_words(made)}" if made.draws else told  # below five sizes nothing was tested


def share(rise) -> str:
    """A width as a share of the ladder, with its interval."""
    return f"{rise.share:.2f} [{rise.share_low:.2f}, {rise.share_high:.2f}]"


def plural(count: int, word: str) -> str:
    """A count with its word.

    Example:
        >>> plural(1, "size"), plural(3, "size")
        ('1 size', '3 sizes')
    """
    return f"{count} {word}{'s' * (count != 1)}"


def _course(made):
    """Where the hard metric starts and ends; a single size has one value."""
    first, last, runs = made.levels[0], made.levels[-1], plural(len(made.cells), "run")
    if len(made.levels) == 1:
        return f"At one size ({made.x} = {_scale(made, first)}, {runs}) {made.hard} is {first['hard']:.3f}"
    if f"{first['hard']:.3f}" == f"{last['hard']:.3f}":
        course = f"starts and ends at {first['hard']:.3f}"
    else:
        course = f"goes from {first['hard']:.3f} to {last['hard']:.3f}"
    ends = f"{made.x} = {_scale(made, first)} to {_scale(made, last)}"
    return f"Over {len(made.levels)} sizes ({ends}, {runs}) {made.hard} {course}"


def _break_words(made):
    test = made.broken
    yield (
        f"leaving sizes out, a law with a break errs {_times(test.ratio)} than a power law (p = {test.p_value:.2g}; a "
        f"break as sharp as the metric's is found in {test.found:.0%} of simulations)"
    )
    found = test.laws.get("break", {})
    if found.get("converged"):
        place = 10 ** (found["middle"] * (-1 if made.x == "loss" else 1))
        wide = ", but is wider than half of the ladder: the loss bends, it does not jump"
        bends = wide if made.smooth_rise.verdict == "smooth" else ""
        yield f"the break lies at {made.x} = {_scale(made, {'x': place})}{bends}"


def _scale(made, row):
    return {"C": f"{row['x']:.2g}", "loss": f"{row['x']:.3f}"}.get(made.x, short(row["x"]))


def _times(ratio):
    if 0.95 < ratio < 1.05:
        return "no more or less"
    return f"{ratio:.2g} times less" if ratio >= 1 else f"{1 / ratio:.2g} times more"


def _null_words(made):
    contained = ""
    known = made.contained is not None and math.isfinite(made.contained.portion) and made.rise.rise_low > 0
    if known and made.contained.words not in "".join(made.reasons):
        words = made.contained.words
        contained = f" {words if words.startswith('p^L') else words[0].upper() + words[1:]}."
    if made.null is None:
        return f"No p^L: {made.no_null}.{contained}"
    test = made.null
    if not math.isfinite(test.p_value):
        return f"p^L with L = {test.length:.2g} and {made.hard} both lie below 1/n = {1 / made.n:.2g} everywhere."
    worst, level = test.worst, made.level
    explained = f"explains {max(test.explained, 0):.0%} of the variation of {made.hard}"
    if not math.isfinite(test.explained):
        explained = f"beside a constant {made.hard}"
    return (
        f"p^L with L = {test.length:.2g} {explained}; largest deviation "
        f"{test.deviation[worst]:+.3f} [{test.low[worst]:+.3f}, {test.high[worst]:+.3f}] ({level:.0%}), "
        f"p = {test.p_value:.2g} for independent tokens.{contained}"
    )
