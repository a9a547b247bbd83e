"""The program as it was called, for commands that are shown to be pasted."""

import os
import shlex
import shutil
import sys
from pathlib import Path


def program() -> str:
    """`momentax`, or where it lies if the shell would find none, or another one."""
    called, found = sys.argv[0], shutil.which("momentax")
    if Path(called).stem != "momentax" or (found and os.path.samefile(found, called)):
        return "momentax"
    return shlex.quote(called)


def command(name: str, output: Path, *flags: str) -> str:
    """The command of that name in a run's folder."""
    return " ".join([program(), name, *flags, "--output", shlex.quote(str(output))])
