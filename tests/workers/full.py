"""Saves onto a disk that is full to files above 64 KiB, then onto one that is not: `python full.py folder`."""

import resource
import signal
import sys

import numpy as np

from momentax import checkpoint


def limit(size):
    """The largest file that may be written."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def told(act):
    """Whether it fails for want of room."""
    try:
        act()
    except OSError as error:
        return "make room and save again: older checkpoints are whole" in str(error)
    return False


if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    folder = sys.argv[1]
    small, large = ({"weight": np.random.default_rng(0).normal(size=size)} for size in (10, 2**20))
    checkpoint.save(folder, 0, small).wait()
    limit(2**16)
    saving = checkpoint.save(folder, 1, large)
    at_wait, again = told(saving.wait), told(saving.wait)
    checkpoint.save(folder, 1, large)
    at_next = told(lambda: checkpoint.save(folder, 2, small))
    between = checkpoint.steps(folder)
    limit(resource.RLIM_INFINITY)
    checkpoint.save(folder, 2, large).wait()
    print([at_wait, again, at_next, between, checkpoint.steps(folder)])
