"""Distils on all devices there are, from where the folder is: `python distil.py folder updates spread [port process]`.

A checkpoint every fifth update; losses by update beside them.
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType

import momentax as mm
from momentax import checkpoint

SPREADS = {"data_parallel": mm.data_parallel, "fully_sharded": mm.fully_sharded}
OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.5), optax.scale_by_rms(0.99, 1e-12), optax.scale(-1e-3))


def step(loss, model, opt_state, x, key):
    value, grads = mm.value_and_grad(loss, "data")(model, x, key)
    model, opt_state, finite = mm.update_if_finite(OPTIMIZER, model, opt_state, value, grads)
    return model, opt_state, value, finite


def train(folder, updates, spread):
    """Alternating, on a mesh over the devices of every process."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    taken, x = SPREADS[spread](step, mesh), jax.random.normal(jax.random.key(1), (16, 8), jnp.float32)
    teacher, student = (mm.Denoiser(mm.nn.MLP((8,), width=16, depth=1, key=jax.random.key(i))) for i in range(2))
    state, start = taken.place({"student": _player(student), "aux": _player(student)}), 0
    if checkpoint.latest(folder) is not None:
        state, start, *_ = checkpoint.restore(folder, state)
    checkpoint.cut_losses(folder, start)
    for n in range(start, updates):
        mover = "aux" if n % 2 == 0 else "student"
        student, aux = state["student"][0], state["aux"][0]
        losses = mm.moment_match(teacher, student, aux, weight=mm.flat_weight, axis_name="data")
        key = jax.random.fold_in(jax.random.key(7), n)
        model, opt_state = state[mover]
        model, opt_state, value, finite = taken(getattr(losses, mover), model, opt_state, x, key)
        state[mover] = model, opt_state
        assert bool(finite)
        checkpoint.append_losses(folder, n, {mover: float(value)})
        if n % 5 == 4:
            checkpoint.save(folder, n + 1, state).wait()
            print(n + 1, flush=True)


def _player(model):
    return model, OPTIMIZER.init(eqx.filter(model, eqx.is_inexact_array))


if __name__ == "__main__":
    folder, updates, spread, *peers = sys.argv[1:]
    if peers:
        port, process = peers
        jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process), heartbeat_timeout_seconds=20)
    train(folder, int(updates), spread)
    print(jax.process_count(), jax.device_count())
