"""Ends without waiting for its second save: `python early.py folder`."""

import sys

import numpy as np

from momentax import checkpoint

if __name__ == "__main__":
    checkpoint.save(sys.argv[1], 0, {"weight": np.zeros(3)}).wait()
    checkpoint.save(sys.argv[1], 1, {"weight": np.random.default_rng(0).normal(size=2**25)})
