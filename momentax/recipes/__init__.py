"""The command line, and what only it needs: data, a training loop, evaluation, pictures."""

import sys


def main() -> None:
    """The console command `momentax`."""
    if any(argument in ("-V", "--version") for argument in sys.argv[1:2]):
        from ._report import versions

        print(f"momentax {versions()['momentax']}")
        return
    try:
        from ._command import run
    except ModuleNotFoundError as error:
        sys.exit(f"momentax: {error}")
    run(sys.argv[1:])
