"""The command, whose update of some number takes minutes: `python stalled.py compiles|computes number argument...`.

It makes the file `stalled` just before.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
from jax import lax

from momentax.recipes import _training, main


def compiles():
    """A program of ten thousand instructions that nothing merges."""

    def long(x):
        for _ in range(5000):
            x = jnp.sort(jnp.sin(x @ x))
        return x

    return jax.jit(long)(jnp.ones((8, 8)))


def computes():
    """A program that runs for hours."""
    return jax.jit(lambda x: lax.fori_loop(0, 2**31 - 1, lambda i, x: jnp.sin(x @ x), x))(jnp.ones((64, 64)))


if __name__ == "__main__":
    stall, at, *arguments = sys.argv[1:]
    plain = _training._updater

    def updater(phase, mesh):
        update = plain(phase, mesh)

        def stalled(state, n, batch):
            if n == int(at):
                pathlib.Path("stalled").touch()
                jax.block_until_ready({"compiles": compiles, "computes": computes}[stall]())
            return update(state, n, batch)

        return stalled

    _training._updater = updater
    sys.argv[1:] = arguments
    main()
