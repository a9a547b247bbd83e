"""How benchmarks measure: turns taken in one process, counts of a compiled program, and a record of what made them.

Nothing here, nor in what uses it alone, needs the library's recipes.
"""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

SHORTEST = 0.05


def alternated(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run, round by round: all in turn, so that a busy machine is busy for all of them.

    The first of all calls are not timed. A short one is repeated within its turn, for `SHORTEST` seconds.
    """
    for run in runs.values():
        _seconds(run, 1)
    calls = {name: max(1, math.ceil(SHORTEST / _seconds(run, 1))) for name, run in runs.items()}
    turns = [{name: _seconds(run, calls[name]) for name, run in runs.items()} for _ in range(rounds)]
    return {name: [turn[name] for turn in turns] for name in runs}


def ratio(above: list[float], below: list[float]) -> dict[str, float]:
    """How many times longer: the median over the rounds of their ratios, and that of the two best."""
    each = [a / b for a, b in zip(above, below, strict=True)]
    return {"median": statistics.median(each), "best": min(above) / min(below)}


def lowered(function: Callable[..., Any], *args: Any) -> Any:
    """The program of a call, of arrays or of `jax.ShapeDtypeStruct`s in their place; all else is static."""
    arrays, rest = eqx.partition(args, lambda leaf: eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct))

    def call(arrays):
        return eqx.filter(function(*eqx.combine(arrays, rest)), eqx.is_array)

    return jax.jit(call).lower(arrays)


def building(programs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds to trace, lower and compile each program, round by round, after a first time that is not counted.

    Each is a function that lowers anew.
    """
    turns = [{name: _compiling(program) for name, program in programs.items()} for _ in range(1 + rounds)][1:]
    return {name: [turn[name] for turn in turns] for name in programs}


def counted(function: Callable[..., Any], *args: Any) -> dict[str, float]:
    """Operations, bytes touched, bytes of arguments and results, temporary bytes: compiled for this device."""
    return counts(lowered(function, *args).compile())


def counts(compiled: Any) -> dict[str, float]:
    """The same, of a compiled program."""
    costs, memory = compiled.cost_analysis(), compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return {
        "flops": costs["flops"],
        "bytes": costs["bytes accessed"],
        "held": held,
        "temporary": memory.temp_size_in_bytes,
    }


def size(tree: Any) -> int:
    """Bytes of the arrays of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype"))


def record(target: str, command: str, **told: Any) -> None:
    """Writes what was found, with what made it; written after every row, so that a stopped run leaves its rows."""
    made = {
        "command": f"python benchmarks/{command}",
        "versions": versions(),
        "machine": f"{platform.machine()}, {cores()} cores; {jax.devices()[0].device_kind}",
        "load": round(os.getloadavg()[0], 1),
        "date": time.strftime("%Y-%m-%d"),
    }
    Path(target).write_text(json.dumps(made | told, indent=1) + "\n")


def cores() -> int:
    """How many this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Of everything that has a say in the figures, where it is installed: a clone on the path is not."""
    installed = {"python": platform.python_version()}
    for name in ("momentax", "jax", "jaxlib", "equinox", "optax", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def _compiling(program: Callable[[], Any]) -> float:
    start = time.perf_counter()
    program().compile()
    return time.perf_counter() - start


def _seconds(run: Callable[[], Any], calls: int) -> float:
    """Of one call, on average over some, until the last result is there; none but the last is kept."""
    result, start = None, time.perf_counter()
    for _ in range(calls):
        result = run()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls
