"""A law with some parameters fixed or tied is a law of fewer parameters, named like chinchilla[E=1.82 alpha=beta].

The name holds the constraints in full precision, so it works wherever a law's name does, saved fits included.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.format import number
from lmjax.scaling.laws.base import Law, Parameter, value_of


def constrained(law: Law, fix: Mapping[str, float] | None = None, tie: Sequence[str] = ()) -> Law:
    """The law with parameters held at given values (fix) and groups of parameters that share one value (tie).

    Args:
        law: any law; further constraints are added to those it has.
        fix: {name: value in the unit of the table}. Names that are no parameters of the law are an error.
        tie: "alpha=beta", or several names joined by "="; a fixed parameter fixes those tied to it.

    Returns:
        A Law whose `space` holds the free parameters only; `names` and `complete` give all of them.

    Raises:
        InputError: an unknown parameter, a value out of range, a tie of parameters of different kinds (such as an
            exponent and a coefficient), contradictory values, or nothing left to fit.

    Example:
        >>> from lmjax.scaling.laws import get_law
        >>> law = constrained(get_law("chinchilla"), {"E": 1.82}, ["alpha=beta"])
        >>> law.name, law.parameters
        ('chinchilla[E=1.82 alpha=beta]', ('A', 'alpha', 'B'))
        >>> law.formula
        'L(N, D) = E + A N^-alpha + B D^-beta, E = 1.820, alpha = beta'
    """
    if not (fix or tie):
        return law
    base = law.base or law
    fixed = {**law.fixed, **{name: _value(name, value) for name, value in (fix or {}).items()}}
    groups = _groups(base, [f"{leader}={name}" for name, leader in law.tied.items()] + list(tie))
    for name in fixed:
        _known(base, name)
    space, follows, ties = [], {}, []
    for group in groups:
        values = {fixed[name] for name in group if name in fixed}
        one = _shared(base, group)
        if len(values) > 1:
            raise InputError(f"expected one value of the tied parameters {', '.join(group)}, got {sorted(values)}")
        if values:
            (value,) = values
            if not (one.low <= value <= one.high and (value > 0 or not one.log)):
                raise InputError(f"expected {group[0]} within its range {one.low:g} to {one.high:g}, got {value:g}")
            follows |= dict.fromkeys(group, value)
        else:
            space.append(one)
            follows |= dict.fromkeys(group[1:], group[0])
            ties += ["=".join(group)] * (len(group) > 1)
    if not space:
        raise InputError(f"expected a free parameter of {base.formula}, got all of them fixed; leave one out of fix")
    held = {name: value for name, value in follows.items() if isinstance(value, float)}
    words = [f"{name} = {number(value)}" for name, value in held.items()] + [t.replace("=", " = ") for t in ties]
    made = replace(
        base,
        name=f"{base.name}[{' '.join([*(f'{name}={value!r}' for name, value in held.items()), *ties])}]",
        formula=", ".join([base.formula, *words]),
        space=tuple(space),
        linear=tuple(p.name for p in space if p.name in base.linear),
        base=base,
        follows=follows,
    )
    return replace(
        made,
        predict=lambda theta, x: base.predict(made.complete(theta), x),
        starts=base.starts and (lambda x, y: _starts(made, x, y)),
        derive=lambda params: _derive(made, params),
        optimum=base.optimum and (lambda params, C: base.optimum(made.complete(params), C)),
        validate=base.validate and (lambda params: base.validate(made.complete(params))),
    )


def parse(words: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """The values to fix and the ties of words such as E=1.82 and alpha=beta.

    Example:
        >>> parse(["E=1.82", "alpha=beta"])
        ({'E': 1.82}, ['alpha=beta'])
    """
    fix, tie = {}, []
    for word in words:
        name, _, value = word.partition("=")
        if re.fullmatch(r"[-+]?[\d.].*|[-+]?(inf|nan)", value):
            fix[name] = _value(name, value)
        else:
            tie.append(word)
    return fix, tie


def _value(name, value):
    try:
        value = float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"expected a number to fix {name} at, got {value!r}") from error
    if not np.isfinite(value):
        raise InputError(f"expected a finite number to fix {name} at, got {value}")
    return value


def _known(base, name):
    if name not in base.parameters:
        raise InputError(f"expected a parameter of {base.name}, got {name!r}{nearest(name, base.parameters)}")
    return name


def _groups(base, ties):
    """The parameters in groups that share a value, in the order of the law."""
    groups = {name: {name} for name in base.parameters}
    for words in ties:
        names = [_known(base, name.strip()) for name in str(words).split("=")]
        if len(set(names)) < 2:
            raise InputError(f"expected a tie such as alpha=beta, got {words!r}")
        merged = set().union(*(groups[name] for name in names))
        groups |= dict.fromkeys(merged, merged)
    order = base.parameters
    return [sorted(group, key=order.index) for name, group in groups.items() if name == min(group, key=order.index)]


def _shared(base, group):
    """The one parameter that a group shares, within the bounds of all of them."""
    members = [next(p for p in base.space if p.name == name) for name in group]
    kinds = {(p.log, p.keep, p.name in base.linear) for p in members}
    low, high = max(p.low for p in members), min(p.high for p in members)
    if len(kinds) > 1 or low > high:
        raise InputError(
            f"expected tied parameters of one kind (exponents, or coefficients), got {' = '.join(group)} of {base.name}"
        )
    first = members[0]
    return Parameter(first.name, low, high, first.log, first.keep, first.grid)


def _starts(law, x, y):
    """The starts of the base law without the columns that are not free, each once."""
    columns = [law.names.index(name) for name in law.parameters]
    return np.unique(np.asarray(law.base.starts(x, y))[:, columns], axis=0)


def _derive(law, params):
    full = law.complete(params)
    return {name: value_of(full[name]) for name in law.follows} | law.base.derived(full)
