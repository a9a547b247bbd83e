"""A checkpoint's files: flat arrays and one JSON value, written and read by orbax, never a pickle."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from .._extra import required

ocp = required("orbax.checkpoint", "checkpoint").v1

UNFINISHED = ".orbax-checkpoint-tmp"


def write(path: Path, arrays: Mapping[str, Any], manifest: Mapping[str, Any]) -> Callable[[], None]:
    """Copies to the host and starts to write; what it returns waits until all processes have written."""
    context = _context()
    # Of weights it saves a tenth of the room, for three times the time to read them.
    context.array.saving.use_compression = False
    # Made in the background, a folder that cannot be made is told only after minutes.
    context.asynchronous.create_directories_asynchronously = False
    parts: dict[str, Any] = {"manifest": dict(manifest)}
    if arrays:
        parts["tree"] = dict(arrays)
    with context:
        return ocp.save_checkpointables_async(str(path), parts).result


def read_manifest(path: Path) -> Any:
    """The JSON value, as it stands there."""
    return json.loads((path / "manifest" / "data.json").read_bytes())


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Some of the arrays, whole, on this process's host."""
    context = _context()
    context.pytree.loading.partial_load = True
    # Every process reads for itself: none waits for another in the middle of a damaged file.
    context.multiprocessing.active_processes = {jax.process_index()}
    context.multiprocessing.primary_host = jax.process_index()
    with context:
        return ocp.load_checkpointables(str(path), {"tree": dict.fromkeys(names, np.ndarray)})["tree"]


def _context() -> Any:
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.PyTreeHandler, checkpointable_name="tree")
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="manifest")
    context: Any = ocp.Context()
    context.checkpointables.registry = registry
    return context
