"""Workers of the tests: processes of their own, alone or in pairs that reach each other on loopback."""

import os
import pathlib
import socket
import subprocess
import sys

WORKERS = pathlib.Path(__file__).parent / "workers"


def start(worker, *arguments, devices=1):
    """A worker on some devices of the host."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join([str(WORKERS.parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, str(WORKERS / f"{worker}.py"), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def start_pair(worker, *arguments):
    """Two processes of two devices each, that do the same together: the last arguments are a port and who is who."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    return [start(worker, *arguments, port, process, devices=2) for process in range(2)]


def output(process):
    """What it prints, once it has ended well."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.strip()
