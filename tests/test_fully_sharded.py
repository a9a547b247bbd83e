"""In pieces is whole: the same losses, gradients and updates where every device keeps its part of each array."""

import contextlib
import json
import logging
import os
import re
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import Dropping, Tanh, assert_trees_close, linear, moving, program_of
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import momentax as mm

KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(1), (16, 8), jnp.float64)
COND = jax.random.normal(jax.random.key(2), (16, 8), jnp.float64)
TEACHER, STUDENT, AUX = (Tanh(linear(jax.random.key(i), 8)) for i in range(3))
SCALE = mm.Diagonal(jax.tree.map(lambda leaf: 1 + jnp.abs(leaf), TEACHER))
OPTIMIZERS = {
    "sgd": optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1)),
    "adam": optax.chain(optax.clip_by_global_norm(0.5), optax.scale_by_rms(0.99, 1e-12), optax.scale(-1e-2)),
}
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
MESHES = {
    "line": ((4,), "data", [AUTO]),
    "explicit": ((4,), "data", [EXPLICIT]),
    "plane": ((2, 4), ("rows", "cols"), [AUTO, EXPLICIT]),
}


def normalised(grads):
    """A Lambda that is not elementwise: it must see whole arrays."""
    return jax.tree.map(lambda g: g / (1 + jnp.linalg.norm(g)), grads)


def own(model, x, key, cond=None):
    """A loss of one's own, which calls the model itself."""
    return jnp.mean((jax.vmap(lambda x: model(x, jnp.zeros(()), None))(x) - x) ** 2)


LOSSES = {
    "denoising": lambda axis: mm.denoising_loss(axis_name=axis),
    "student": lambda axis: mm.moment_match(TEACHER, STUDENT, AUX, axis_name=axis).student,
    "aux": lambda axis: mm.moment_match(mm.clipped(TEACHER), AUX, STUDENT, axis_name=axis).aux,
    "instant": lambda axis: mm.instant(TEACHER, SCALE, axis_name=axis),
    "instant, guided": lambda axis: mm.instant(mm.guided(TEACHER, 0.5, jnp.zeros(8)), axis_name=axis),
    "instant, dropping out": lambda axis: mm.instant(Dropping(TEACHER), axis_name=axis),
    "joint": lambda axis: mm.joint_loss(TEACHER, axis_name=axis),
    "instant, by a difference": lambda axis: mm.instant(TEACHER, tangent=mm.central_difference, axis_name=axis),
    "instant, in reverse": lambda axis: mm.instant(TEACHER, tangent=mm.reverse_mode, axis_name=axis),
    "instant, not elementwise": lambda axis: mm.instant(TEACHER, normalised, axis_name=axis),
    "instant, some leaves": lambda axis: mm.instant(TEACHER, filter_spec=matrices(TEACHER), axis_name=axis),
    "own": lambda axis: own,
}


def matrices(model):
    return jax.tree.map(lambda leaf: leaf.ndim == 2, model)


def mesh_of(shape, axes, axis_types):
    return jax.make_mesh(shape, (axes,) if isinstance(axes, str) else axes, axis_types=tuple(axis_types))


def step_over(axis, optimizer, **settings):
    def step(loss, model, opt_state, x, key, cond=None):
        value, grads = mm.value_and_grad(loss, axis, **settings)(model, x, key, cond)
        changes, opt_state = optimizer.update(grads, opt_state, model)
        return eqx.apply_updates(model, changes), opt_state, value, grads

    return step


def initial_state(optimizer, model=STUDENT, filter_spec=eqx.is_inexact_array):
    return optimizer.init(eqx.filter(model, filter_spec))


CASES = [(name, "line", "sgd", {}) for name in LOSSES]
CASES += [(name, place, "adam", {}) for name in ("aux", "instant") for place in ("explicit", "plane")]
CASES += [("instant", "plane", "sgd", {"filter_spec": matrices(STUDENT)})]
LONG = [("denoising", "line"), ("student", "line"), ("instant, dropping out", "line"), ("instant", "explicit")]


@pytest.mark.parametrize(
    ("name", "place", "optimizer", "settings"),
    [pytest.param(*case, marks=pytest.mark.slow if case[:2] in LONG else ()) for case in CASES],
)
def test_in_pieces_is_whole(name, place, optimizer, settings):
    """Three updates with clipping by the global norm, which sees every piece's scale."""
    shape, axes, axis_types = MESHES[place]
    optimizer = OPTIMIZERS[optimizer]
    whole = eqx.filter_jit(step_over(None, optimizer, **settings))
    spread = mm.fully_sharded(step_over(axes, optimizer, **settings), mesh_of(shape, axes, axis_types), axes)
    model = theirs = moving(name, STUDENT, AUX)
    state = their_state = initial_state(optimizer, model, **settings)
    for n in range(3):
        key = jax.random.fold_in(KEY, n)
        model, state, value, grads = spread(LOSSES[name](axes), model, state, X, key, COND)
        theirs, their_state, expected, whole_grads = whole(LOSSES[name](None), theirs, their_state, X, key, COND)
        np.testing.assert_allclose(value, expected, rtol=1e-10)
        scale = float(optax.tree.norm(whole_grads))
        assert scale > 0
        assert_trees_close(grads, whole_grads, 0, 1e-10 * scale)
        assert_trees_close((model, state), (theirs, their_state), 1e-9, 1e-11)


def test_every_large_array_stays_in_pieces():
    """Of the student, its optimiser's state and what is returned: a quarter of each on each device."""
    mesh, optimizer = mesh_of(*MESHES["line"]), OPTIMIZERS["adam"]
    spread = mm.fully_sharded(step_over("data", optimizer), mesh)
    model, state, _, grads = spread(LOSSES["instant"]("data"), STUDENT, initial_state(optimizer), X, KEY)
    for leaf in jax.tree.leaves((model, state, grads)):
        local = leaf.addressable_shards[0].data.size
        assert local == (leaf.size // 4 if leaf.ndim == 2 else leaf.size)


@pytest.mark.parametrize("place", [*MESHES, "auto last"])
def test_what_a_step_makes_anew_is_in_pieces_too(place):
    """An array that no sharded one went into, which the compiler would leave whole on every device; a small one is."""
    shape, axes, axis_types = (MESHES | {"auto last": ((2, 4), ("rows", "cols"), [EXPLICIT, AUTO])})[place]

    def step(loss, model, state, x, key):
        return jnp.full((8, 8), jnp.sum(x)), jnp.sum(x)

    taken = mm.fully_sharded(step, mesh_of(shape, axes, axis_types), axes)
    made, total = taken(LOSSES["aux"](axes), STUDENT, None, X, KEY)
    assert made.addressable_shards[0].data.shape == (2, 8)
    assert total.is_fully_replicated


@pytest.mark.parametrize("place", ["line", "explicit", "plane"])
def test_a_step_is_compiled_once(place):
    """From arrays on one device, then from its own results: the placement is the same."""
    traces, (shape, axes, axis_types), optimizer = [], MESHES[place], OPTIMIZERS["adam"]

    def step(*arguments):
        traces.append(arguments)
        return step_over(axes, optimizer)(*arguments)

    for spread in (mm.fully_sharded, mm.data_parallel):
        traces.clear()
        taken = spread(step, mesh_of(shape, axes, axis_types), axes)
        model, state = STUDENT, initial_state(optimizer)
        with jax.log_compiles(True), compilations() as compiled:
            for n in range(3):
                key = jax.random.fold_in(KEY, n)
                model, state, *_ = taken(LOSSES["student"](axes), model, state, X, key)
        assert len(traces) == 1
        assert sum("_call" in line for line in compiled) == 1


@pytest.mark.parametrize("spread", [mm.data_parallel, mm.fully_sharded])
def test_what_is_placed_already_is_not_copied(spread):
    """A run's own results go in as they came out; and NumPy's arrays are placed like any other."""
    taken = spread(step_over("data", OPTIMIZERS["sgd"]), mesh_of(*MESHES["line"]))
    once = taken.place({"jax": STUDENT, "numpy": np.ones((8, 8))})
    for ours, theirs in zip(jax.tree.leaves(taken.place(once)), jax.tree.leaves(once), strict=True):
        assert ours is theirs
        assert len(ours.sharding.device_set) == 4


@contextlib.contextmanager
def compilations():
    """The names of what is compiled inside."""
    lines, logger = [], logging.getLogger("jax._src.interpreters.pxla")
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize("name", ["student", "instant"])
def test_plain_jit_over_sharded_inputs_is_the_same(name):
    """Without any of our wrappers: the compiler spreads the program, a loss of no axis gives the same."""
    mesh, optimizer = mesh_of(*MESHES["line"]), OPTIMIZERS["sgd"]

    def placed(tree):
        arrays, rest = eqx.partition(tree, eqx.is_array)
        placed = jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, quarter(leaf))), arrays)
        return eqx.combine(placed, rest)

    step = eqx.filter_jit(step_over(None, optimizer))
    theirs = step(LOSSES[name](None), STUDENT, initial_state(optimizer), X, KEY)
    x = jax.device_put(X, NamedSharding(mesh, P("data")))
    ours = step(placed(LOSSES[name](None)), placed(STUDENT), initial_state(optimizer), x, KEY)
    assert_trees_close(ours, theirs, 1e-9, 1e-11)


def quarter(leaf):
    return P("data") if leaf.ndim == 2 else P()


class TwoLayers(eqx.Module):
    """A network whose second weight its derivative asks for, and whose first it does not."""

    first: Tanh
    second: Tanh

    def __call__(self, z, logsnr, cond=None):
        return self.second(self.first(z, logsnr), logsnr)


DEEP = TwoLayers(STUDENT, AUX)
DEEP_LOSSES = {
    "denoising": mm.denoising_loss(axis_name="data"),
    "student": mm.moment_match(DEEP, DEEP, DEEP, axis_name="data").student,
    "aux": mm.moment_match(DEEP, DEEP, DEEP, axis_name="data").aux,
    "joint": mm.joint_loss(DEEP, axis_name="data"),
    "instant": mm.instant(DEEP, axis_name="data"),
}


@pytest.mark.parametrize(
    ("name", "gathers", "scatters"),
    [
        ("denoising", 2 + 1, 2),
        ("student", 2 + 1 + 2 + 2, 2),
        ("aux", 2 + 2 + 2 + 1, 2),
        ("joint", 2 + 1 + 2 + 2 + 1, 4),
        ("instant", 2 + 3 + 3 + 4, 4),
    ],
)
def test_what_crosses_the_mesh_is_counted(name, gathers, scatters):
    """Both weights are gathered for each evaluation, the second again for a derivative; a gradient is scattered once.

    The student: itself and its derivative, the teacher, the auxiliary. The auxiliary: the student, the teacher, itself
    and its derivative. Jointly: both and their derivatives, the teacher. Instant: the student for nu; the teacher and
    its gradient; the student and its derivative; the teacher with its tangent, of which there are as many.
    """
    mesh, optimizer = mesh_of(*MESHES["line"]), OPTIMIZERS["sgd"]
    spread = mm.fully_sharded(step_over("data", optimizer), mesh)
    model = moving(name, DEEP, DEEP)
    lowered = program_of(spread, DEEP_LOSSES[name], model, initial_state(optimizer, model), X, KEY)
    counts = [
        shapes_of(kind, lowered).count(full)
        for kind, full in {"all_gather": "8x8x", "reduce_scatter": "2x8x", "all_reduce": "8x8x"}.items()
    ]
    assert counts == [gathers, scatters, 0]


def shapes_of(kind, program):
    return re.findall(rf"stablehlo\.{kind}.*?-> tensor<([0-9x]*)f64>", program, re.DOTALL)


MEMORY = """
import equinox as eqx, jax, jax.numpy as jnp, json, optax, momentax as mm

optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_rms(0.99), optax.scale(-1e-3))
nets = {
    "MLP": ((64,), lambda key: mm.nn.MLP((64,), width=512, depth=8, key=key)),
    "UViT": ((3, 16, 16), lambda key: mm.nn.UViT(3, width=32, multipliers=(1, 4), heads=2, key=key)),
}

def players(net, key):
    student = mm.Denoiser(net(key))
    moving = eqx.filter(student, eqx.is_inexact_array)
    return student, optimizer.init(moving), mm.Diagonal(moving)

def step(loss, model, state, x, key):
    value, grads = mm.value_and_grad(loss, "data")(model, x, key)
    changes, state = optimizer.update(grads, state)
    return eqx.apply_updates(model, changes), state, value

def memory(net, spread, name, count):
    mesh = jax.make_mesh((count,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:count])
    shape, make = nets[net]
    student, state, scale = eqx.filter_eval_shape(players, make, jax.random.key(0))
    losses = mm.moment_match(student, student, student, axis_name="data")
    loss = {"student": losses.student, "instant": mm.instant(student, scale, axis_name="data")}[name]
    x = jax.ShapeDtypeStruct((64, *shape), jnp.float32)
    lowered = spread(step, mesh).lower(loss, student, state, x, jax.random.key(0))
    return lowered.compile().memory_analysis()

def total(memory):
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes

def size(net):
    student, *_ = eqx.filter_eval_shape(players, nets[net][1], jax.random.key(0))
    return sum(leaf.size * 4 for leaf in jax.tree.leaves(student) if hasattr(leaf, "size"))

"""


def counted(program):
    """What a program over eight devices prints, in a process of its own.

    With the scheduler that looks after memory, and with the second gathering kept apart from the first, as other
    backends have it: the CPU's own defaults look after concurrency.
    """
    flags = (
        "--xla_force_host_platform_device_count=8 --xla_cpu_enable_concurrency_optimized_scheduler=false"
        " --xla_disable_hlo_passes=cse_barrier_expander"
    )
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", f"{MEMORY}\nprint(json.dumps({program}))"]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_memory_on_a_device_falls_as_one_over_n():
    """Arguments, results and temporaries of an update of 8.5 million parameters, as the compiler counts them.

    It still gathers the teacher of `instant` once as a whole, for the tangent.
    """
    each = "[total(memory('MLP', mm.fully_sharded, name, n)) for n in (1, 2, 4, 8)]"
    network, sizes = counted(f"[size('MLP'), {{name: {each} for name in ('student', 'instant')}}]")
    for name, gathered in (("student", 0), ("instant", network)):
        whole, *spread = sizes[name]
        for count, size in zip((2, 4, 8), spread, strict=True):
            assert size < 1.2 * whole / count + gathered


@pytest.mark.slow
def test_activations_of_what_is_gathered_are_those_of_what_is_whole():
    """Besides them an update has one network at a time, gathered, where the other has its whole gradient."""
    each = (
        "[memory('UViT', spread, 'student', 8).temp_size_in_bytes for spread in (mm.data_parallel, mm.fully_sharded)]"
    )
    network, (replicated, in_pieces) = counted(f"[size('UViT'), {each}]")
    assert in_pieces < replicated + network
