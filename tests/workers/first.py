"""Saves 256 MiB as the first checkpoint of a folder: `python first.py folder`."""

import sys

import numpy as np

from momentax import checkpoint

if __name__ == "__main__":
    tree = {"weight": np.random.default_rng(0).normal(size=(2**25,))}
    checkpoint.save(sys.argv[1], 0, tree).wait()
