"""The losses of a run, a line for every update, exact to the bit."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

from .._number import any_real, whole
from ._steps import Folder, folder_of
from ._together import is_first

_NAME = "losses.jsonl"
_HEX = "_hex"


def append_losses(folder: Folder, update: int, losses: Mapping[str, float]) -> None:
    """Adds a line of JSON to `losses.jsonl`: every loss as a decimal, null where not finite, and in hexadecimal.

    Of several processes the first one writes. What a process that was killed left of a line is cut off before.

    Raises:
        ValueError: for an update below 0, and losses that are no numbers; for the names `update` and those that end in
            `_hex`, which are taken.
    """
    update = whole("update", update, 0, "count from 0")
    if taken := [name for name in losses if name == "update" or name.endswith(_HEX)]:
        raise ValueError(f"needs other names than `update` and `..._hex`; got {taken}; do rename them")
    if not is_first():
        return
    numbers = {name: any_real(name, loss, "use `float(loss)`") for name, loss in losses.items()}
    line: dict[str, Any] = {"update": update}
    for name, value in numbers.items():
        line[name] = value if math.isfinite(value) else None
        line[name + _HEX] = value.hex()
    path = folder_of(folder)
    path.mkdir(parents=True, exist_ok=True)
    with open(path / _NAME, "a+b", buffering=0) as file:
        file.truncate(_end_of_lines(file))
        file.write(json.dumps(line, allow_nan=False).encode() + b"\n")


def read_losses(folder: Folder) -> list[tuple[int, dict[str, float]]]:
    """Every update with its losses, as they were, in the order of writing; a line that was cut off is left out.

    Raises:
        ValueError: for a line that `append_losses` did not write.
    """
    return [(update, losses) for update, losses, _ in _lines(folder)]


def cut_losses(folder: Folder, update: int) -> None:
    """Keeps the lines before an update, for a run that goes on with it: a new file takes the old one's place at once.

    Raises:
        ValueError: for a line that `append_losses` did not write; nothing is cut then.
    """
    update = whole("update", update, 0, "count from 0")
    path = folder_of(folder) / _NAME
    if not is_first() or not path.exists():
        return
    kept = b"".join(line for done, _, line in _lines(folder) if done < update)
    temporary = path.with_name(f".{_NAME}")
    with open(temporary, "wb") as file:
        file.write(kept)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _lines(folder: Folder) -> Iterator[tuple[int, dict[str, float], bytes]]:
    path = folder_of(folder) / _NAME
    if not path.exists():
        return
    whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    for number, line in enumerate(whole, 1):
        try:
            entry = json.loads(line)
            names = [name for name in entry if name.endswith(_HEX)]
            yield int(entry["update"]), {name[: -len(_HEX)]: float.fromhex(entry[name]) for name in names}, line
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"needs losses in line {number} of {path}; got {line[:80]!r}; do take the line out"
            ) from error


def _end_of_lines(file: Any) -> int:
    """The size of the file without an unfinished line."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
