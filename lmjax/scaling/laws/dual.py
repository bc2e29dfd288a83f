"""Exact derivatives of a law by forward differentiation: numbers that carry their derivatives through NumPy.

Knows no law. A law written with the functions below needs no gradient of its own.
"""

import numpy as np

# partial derivatives of each function in its arguments, from its value and the arguments
PARTIALS = {
    "add": (lambda out, a, b: 1.0, lambda out, a, b: 1.0),
    "subtract": (lambda out, a, b: 1.0, lambda out, a, b: -1.0),
    "multiply": (lambda out, a, b: b, lambda out, a, b: a),
    "divide": (lambda out, a, b: 1.0 / b, lambda out, a, b: -out / b),
    "power": (lambda out, a, b: b * a ** (b - 1.0), lambda out, a, b: out * np.log(a)),
    "negative": (lambda out, a: -1.0,),
    "exp": (lambda out, a: out,),
    "expm1": (lambda out, a: out + 1.0,),
    "log": (lambda out, a: 1.0 / a,),
    "log1p": (lambda out, a: 1.0 / (1.0 + a),),
    "sqrt": (lambda out, a: 0.5 / out,),
    "square": (lambda out, a: 2.0 * a,),
    "tanh": (lambda out, a: 1.0 - out * out,),
    "logaddexp": (lambda out, a, b: np.exp(a - out), lambda out, a, b: np.exp(b - out)),
    "minimum": (lambda out, a, b: a <= b, lambda out, a, b: a > b),
    "maximum": (lambda out, a, b: a >= b, lambda out, a, b: a < b),
}
PLAIN = ("less", "less_equal", "greater", "greater_equal", "isfinite", "absolute")  # without derivatives


class Dual(np.lib.mixins.NDArrayOperatorsMixin):
    """An array `value` with its derivatives `slopes` {name: array that broadcasts with it}.

    Example (d/da of a^2 x at a = 3):
        >>> a = Dual(np.array(3.0), {"a": 1.0})
        >>> {name: slope.tolist() for name, slope in (a * a * np.array([1.0, 2.0])).slopes.items()}
        {'a': [6.0, 12.0]}
    """

    def __init__(self, value, slopes):
        self.value, self.slopes = value, slopes

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        values = [value_of(v) for v in inputs]
        if ufunc.__name__ in PLAIN:
            return ufunc(*values)
        if method != "__call__" or options or ufunc.__name__ not in PARTIALS:
            return NotImplemented
        out = ufunc(*values)
        slopes = {}
        for v, partial in zip(inputs, PARTIALS[ufunc.__name__], strict=True):
            if isinstance(v, Dual):
                factor = partial(out, *values)
                for name, slope in v.slopes.items():
                    slopes[name] = slopes[name] + factor * slope if name in slopes else factor * slope
        return Dual(out, slopes)

    def __array_function__(self, function, types, args, kwargs):
        if function is not np.where or len(args) != 3:
            return NotImplemented
        chosen, a, b = args
        parts = [v.slopes if isinstance(v, Dual) else {} for v in (a, b)]
        names = dict.fromkeys([*parts[0], *parts[1]])
        slopes = {name: np.where(chosen, *(part.get(name, 0.0) for part in parts)) for name in names}
        return Dual(np.where(chosen, value_of(a), value_of(b)), slopes)


def value_of(v):
    """The plain array of a number that may carry derivatives."""
    return v.value if isinstance(v, Dual) else v
