"""Numbers that a public function is given: told apart from what is no number, and held to their range."""

import numbers
import operator
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def real(name: str, value: Any, interval: str, advice: str) -> float:
    """The number as Python's own; of NumPy or JAX it may be, but no bool and no string.

    Args:
        interval: what it must lie in, as mathematics writes it: `(0, inf)`, `[0, 1)`.
        advice: what to do otherwise, as in "use 1.0".

    Raises:
        ValueError: for anything else, NaN included.
    """
    number = _number(value)
    if number is None or not _inside(number, interval):
        raise ValueError(f"needs {name} as a number in {interval}; got {value!r}; {advice}")
    return number


def a_real(name: str, interval: str, advice: str) -> Callable[[Any], float]:
    """The converter of a field that holds such a number."""
    return partial(real, name, interval=interval, advice=advice)


def any_real(name: str, value: Any, advice: str) -> float:
    """The number as Python's own, NaN and the infinities too: what was measured, and not chosen.

    Raises:
        ValueError: for what is no number.
    """
    number = _number(value)
    if number is None:
        raise ValueError(f"needs {name} as a number; got {value!r}; {advice}")
    return number


def real_or_traced(name: str, value: Any, interval: str, advice: str) -> Any:
    """The same of what may also be traced, whose value nobody knows yet: that is handed on."""
    return value if isinstance(value, Tracer) else real(name, value, interval, advice)


def whole(name: str, value: Any, least: int, advice: str) -> int:
    """The whole number as Python's own, of at least as much; a float is none, even if it is whole.

    Raises:
        ValueError: for anything else.
    """
    try:
        number = None if _is_bool(value) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ValueError(f"needs {name} as a whole number >= {least}; got {value!r}; {advice}")
    return number


def optional_whole(name: str, value: Any, least: int, advice: str) -> int | None:
    """The same, or None."""
    return None if value is None else whole(name, value, least, advice)


def wholes(name: str, values: Any, least: int, advice: str) -> tuple[int, ...]:
    """A sequence of such numbers."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"needs {name} as whole numbers >= {least}; got {values!r}; {advice}")
    return tuple(whole(name, value, least, advice) for value in values)


def _number(value: Any) -> float | None:
    if isinstance(value, jax.Array | np.ndarray):
        is_real = value.shape == () and jnp.issubdtype(value.dtype, np.number) and not jnp.iscomplexobj(value)
        return float(value) if is_real and not isinstance(value, Tracer) else None
    return float(value) if isinstance(value, numbers.Real) and not _is_bool(value) else None


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool | np.bool_) or getattr(value, "dtype", None) == np.dtype(bool)


def _inside(number: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    above = low <= number if interval.startswith("[") else low < number
    below = number <= high if interval.endswith("]") else number < high
    return above and below
