"""Packages that one part of the library needs and the rest does not."""

import importlib
from typing import Any


def required(module: str, extra: str) -> Any:
    """The module, which the `extra` of pyproject.toml brings.

    Raises:
        ModuleNotFoundError: where it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        raise ModuleNotFoundError(
            f"needs the Python package that provides {missing}; got none;"
            f' run `pip install ".[{extra}]"` in a clone of momentax',
            name=missing,
        ) from error
