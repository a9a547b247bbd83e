"""Tries to save into a folder that its mode bits close: `python refused.py folder`."""

import sys

import numpy as np

from momentax import checkpoint

if __name__ == "__main__":
    try:
        checkpoint.save(sys.argv[1], 0, {"weight": np.zeros(3)})
    except PermissionError as error:
        print(error)
