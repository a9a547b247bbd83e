"""The command line, and what only it needs: data, a training loop, evaluation, pictures."""

import importlib.metadata
import sys


def main() -> None:
    """The console command `momentax`."""
    if any(argument in ("-V", "--version") for argument in sys.argv[1:2]):
        print(f"momentax {importlib.metadata.version('momentax')}")
        return
    try:
        from ._command import run
    except ModuleNotFoundError as error:
        sys.exit(f"momentax: {error}")
    run(sys.argv[1:])
