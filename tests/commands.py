"""The command line: in a process of its own, with one device and JAX as a user has it, or in this one."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from momentax.recipes._command import run

CACHE = str(Path(__file__).parents[1] / ".jax_cache")
RUN = "from momentax.recipes import main; main()"


def environment(devices: int = 1) -> dict[str, str]:
    flags = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def momentax(*arguments, cwd, seconds=240, devices=1, **variables):
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    told = {"capture_output": True, "text": True, "timeout": seconds}
    # Not where a process is killed, which may leave half an entry.
    compiled = {"JAX_COMPILATION_CACHE_DIR": CACHE, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}
    return subprocess.run(command, cwd=cwd, env=environment(devices) | compiled | variables, check=False, **told)


def told(*arguments) -> str:
    """What the command says before it ends with an error, run in this process."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(error), pytest.raises(SystemExit) as exit:
        run([str(argument) for argument in arguments])
    assert exit.value.code != 0
    return error.getvalue() + str(exit.value)


def stopped(
    number: signal.Signals,
    when: Callable[[], bool],
    *arguments,
    cwd: Path,
    seconds: float = 240,
    within: float | None = None,
    program: tuple[str, ...] = ("-c", RUN),
):
    """The command, sent a signal as soon as something is so: exit status, standard output and error.

    It may take so many seconds until then, and so many more to end.
    """
    command = [sys.executable, *program, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=cwd, env=environment(), **pipes)
    end = time.monotonic() + seconds
    while process.poll() is None and not when() and time.monotonic() < end:
        time.sleep(0.002)
    process.send_signal(number)
    try:
        output, error = process.communicate(timeout=within or seconds)
    finally:
        process.kill()
    return process.returncode, output, error
