"""Where what was saved and what is asked for differ, by name, with both sides."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ._leaf import Kind

_ABSENT = "nothing"


def check_kinds(saved: Mapping[str, Kind], wanted: Mapping[str, Kind]) -> None:
    """Demands the same arrays in the same places."""
    differing = [
        f"{name} saved as {saved.get(name, _ABSENT)}, and {wanted.get(name, _ABSENT)} in `like`"
        for name in [*saved, *(name for name in wanted if name not in saved)]
        if saved.get(name) != wanted.get(name)
    ]
    if differing:
        raise ValueError(
            f"needs a `like` with the arrays that were saved; got {_shown(differing)};"
            " do build it as the one that was saved"
        )


def check_config(saved: Mapping[str, Any] | None, wanted: Mapping[str, Any] | None) -> None:
    """Demands the same configuration, where one is wanted."""
    if wanted is None:
        return
    before, now = dict(_entries(saved or {})), dict(_entries(wanted))
    differing = [
        f"{name} saved as {before.get(name, _ABSENT)}, and {now.get(name, _ABSENT)} here"
        for name in [*before, *(name for name in now if name not in before)]
        if before.get(name) != now.get(name)
    ]
    if differing:
        raise ValueError(
            f"needs the configuration that was saved; got {'; '.join(differing)};"
            " do take the saved values, or start in another folder"
        )


def _entries(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested keys joined by dots, with their values as JSON, in which NaN equals itself."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _entries(value, f"{prefix}{key}.")
        else:
            yield prefix + key, json.dumps(value)


def _shown(differing: list[str]) -> str:
    rest = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
    return "; ".join(differing[:5]) + rest
