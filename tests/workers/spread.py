"""Saves or restores one tree on whatever devices there are: `python spread.py save|restore folder [port process]`."""

import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from momentax import checkpoint


def tree(rows):
    """Values that tell their place: spread over rows and columns, whole on every device, keys, a process's own."""
    mesh = jax.make_mesh((rows, jax.device_count() // rows), ("row", "column"), axis_types=(AxisType.Auto,) * 2)

    def made():
        grid = jnp.arange(8 * 16, dtype=jnp.float32).reshape(8, 16) / 7
        return {"grid": grid, "rows": grid * 3, "whole": grid[0] - 1, "key": jax.random.split(jax.random.key(4), 8)}

    specs = {"grid": P("row", "column"), "rows": P("row"), "whole": P(), "key": P("row")}
    placed = jax.jit(made, out_shardings={name: NamedSharding(mesh, spec) for name, spec in specs.items()})()
    return placed | {"own": jnp.arange(3.0), "host": np.arange(4), "none": jnp.zeros((0, 2))}


def same(a, b):
    """Whether every piece that this process holds is the same, bit for bit, and lies in the same place."""

    def pieces(leaf):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if not isinstance(leaf, jax.Array):
            return zlib.crc32(leaf.tobytes()), leaf.dtype
        return [(s.device, str(s.index), np.asarray(s.data).tobytes()) for s in leaf.addressable_shards], leaf.dtype

    return jax.tree.all(jax.tree.map(lambda x, y: pieces(x) == pieces(y), a, b))


if __name__ == "__main__":
    action, folder, *peers = sys.argv[1:]
    if peers:
        port, process = peers
        jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process), heartbeat_timeout_seconds=60)
    if action == "save":
        for step in range(3):
            checkpoint.save(folder, step, tree(2), notes={"step": step}, figure=-float(step), keep=1)
        checkpoint.save(folder, 3, tree(1), keep=1).wait()
    else:
        wanted = tree(jax.device_count())
        restored = checkpoint.restore(folder, wanted)
        assert same(restored.tree, wanted)
        assert restored.step == 3
    print(jax.process_count(), jax.device_count())
