"""The command line, and what only it needs: data, a training loop, evaluation, pictures."""

import sys


def main() -> None:
    """The console command `momentax`."""
    if any(argument in ("-V", "--version") for argument in sys.argv[1:2]):
        from ._report import versions

        print(f"momentax {versions()['momentax']}")
        return
    from ._command import run

    run(sys.argv[1:])
