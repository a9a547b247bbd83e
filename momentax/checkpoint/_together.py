"""What several processes tell each other: plain values, and failures, so that none goes on alone."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from ._damage import DamageError

Result = TypeVar("Result")


def is_first() -> bool:
    """Whether this process is the one that writes what is written once."""
    return jax.process_index() == 0


def gathered(value: Any) -> list[Any]:
    """The JSON value of every process, in every process, in their order."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(text.size, np.int32)).reshape(-1)
    padded = np.pad(text, (0, int(sizes.max()) - text.size))
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def together(act: Callable[[], Result]) -> Result:
    """What `act` comes to; where it fails in one process, it fails in all of them, of damage as damage."""
    try:
        result = act()
    except Exception as error:
        gathered([isinstance(error, DamageError), str(error)])
        raise
    for process, failure in enumerate(gathered(None)):
        if failure is not None:
            is_damage, message = failure
            if is_damage:
                raise DamageError(f"process {process} finds: {message}")
            raise RuntimeError(f"needs all processes to get this far; got, in process {process}: {message}; do mend it")
    return result
