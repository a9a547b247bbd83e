"""Errors that whoever called can mend, told from bugs."""

import traceback
from pathlib import Path

import jax

_PACKAGE = Path(__file__).parents[1]
_TYPES = (ArithmeticError, ImportError, OSError, TypeError, ValueError)


def refusal(error: Exception) -> str | None:
    """What to tell of an error in a line; None for a bug, which keeps its traceback.

    To be mended by whoever called is what a line of momentax raises on purpose, whatever its words; what the operating
    system refuses; and a want of memory. An error that Python or another library raises within our code is a bug: what
    was asked should have been refused before.
    """
    raised_here = _raised_here(error)
    if isinstance(error, OSError) and (error.errno is not None or not raised_here):
        return f"needs a file system that takes and gives its files; got {error}; mend the path, its rights or its room"
    if isinstance(error, _TYPES) and raised_here:
        return str(error)
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        said = str(error).partition("\n")[0] or type(error).__name__
        return f"needs more memory; got {said}; use a smaller --batch or --samples, or more --micro-batches"
    return None


def _raised_here(error: Exception) -> bool:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(last.filename).is_relative_to(_PACKAGE) and (last.line or "").startswith("raise ")


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, jax.errors.JaxRuntimeError) and str(error).startswith("RESOURCE_EXHAUSTED")
