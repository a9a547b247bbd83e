"""What is restored is what was saved, bit for bit, wherever it goes; what differs is named."""

import json
import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import linear
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from momentax import checkpoint
from momentax.checkpoint import _arrays, _store

NUMBERS = np.random.default_rng(0).normal(size=(8, 6))
BIG, KEY = 2**22, jax.random.key(11)


def tree():
    """One of every kind of leaf."""
    return {
        "model": linear(jax.random.key(0)),
        "function": jax.nn.relu,
        "rate": 0.1,
        "nothing": None,
        "numpy": NUMBERS,
        "scalar": np.float32(0.1),
        "minus zeros": jnp.full((3,), -0.0, jnp.float32),
        "nan": jnp.asarray([np.nan, -np.inf], jnp.float16),
        "brain": jnp.asarray(NUMBERS, jnp.bfloat16),
        "empty": jnp.zeros((0, 4), jnp.int8),
        "key": jax.random.key(1),
        "keys": jax.random.split(jax.random.key(2, impl="rbg"), (2, 3)),
        "none of them": jax.random.split(jax.random.key(2), 0),
        "weak": jnp.asarray(2.5),
    }


def raw(leaf):
    """The bytes of a leaf, with what they stand for."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf.dtype, raw(jax.random.key_data(leaf))
    if isinstance(leaf, np.ndarray | np.generic | jax.Array):
        return type(leaf), leaf.dtype, leaf.shape, getattr(leaf, "weak_type", None), np.asarray(leaf).tobytes()
    return leaf


def assert_same(a, b):
    """Leaf by leaf, to the bit, in type, dtype and shape."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for place, leaf in jax.tree.leaves_with_path(a):
        assert raw(leaf) == raw(dict(jax.tree.leaves_with_path(b))[place]), place


def blank(leaf):
    """Another value of the same kind."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.zeros_like(jax.random.key_data(leaf)), impl=str(jax.random.key_impl(leaf)))
    if isinstance(leaf, jax.Array):
        return jnp.zeros_like(leaf)
    return np.zeros_like(leaf)[()] if isinstance(leaf, np.ndarray | np.generic) else leaf


def mesh(*shape, names=("a", "b")):
    devices = np.asarray(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return jax.sharding.Mesh(devices, names[: len(shape)], axis_types=(AxisType.Auto,) * len(shape))


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path):
    checkpoint.save(tmp_path, 7, tree(), notes={"position": [3, 0.1]}, figure=2).wait()
    restored = checkpoint.restore(tmp_path, jax.tree.map(blank, tree()))
    assert_same(restored.tree, tree())
    assert restored[1:] == (7, {"position": [3, 0.1]}, 2.0)


def test_a_tree_is_read_in_parts(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(_arrays, "AT_ONCE", 100)
    monkeypatch.setattr(_arrays, "read_arrays", lambda *args: read.append(args[1]) or _store.read_arrays(*args))
    value = {str(i): np.arange(i, i + 6.0) for i in range(5)} | {"large": NUMBERS, "small": np.arange(3)}
    checkpoint.save(tmp_path, 0, value).wait()
    assert_same(checkpoint.restore(tmp_path, value).tree, value)
    assert read == [["0", "1"], ["2", "3"], ["4"], ["5"], ["6"]]


@pytest.mark.parametrize("dtype", [*"?bhilBHILefdFD", "bfloat16", "int4", "float8_e4m3fn", "float8_e5m2"])
def test_every_dtype_comes_back_bit_for_bit(tmp_path, dtype):
    value = {"on the host": np.arange(-3, 4).astype(dtype), "on a device": jnp.arange(-3, 4).astype(dtype)}
    checkpoint.save(tmp_path, 0, value).wait()
    assert_same(checkpoint.restore(tmp_path, value).tree, value)


@pytest.mark.parametrize("value", [np.asarray(["a"]), np.asarray([{}]), np.arange(3, dtype=">f4"), np.longdouble(1)])
def test_what_is_no_native_number_is_refused(tmp_path, value):
    with pytest.raises(TypeError, match=r"needs \['x'\] of one of the dtypes"):
        checkpoint.save(tmp_path, 0, {"x": value})
    assert checkpoint.steps(tmp_path) == []


def test_what_stands_for_an_array_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match=r"needs arrays; got ShapeDtypeStruct at \['x'\]"):
        checkpoint.save(tmp_path, 0, {"x": jax.ShapeDtypeStruct((3,), jnp.float32)})


def test_a_tree_without_arrays_is_a_checkpoint(tmp_path):
    checkpoint.save(tmp_path, 0, {"rate": 0.1}, notes={"a": 1}).wait()
    assert checkpoint.restore(tmp_path, {"rate": 0.2}) == ({"rate": 0.2}, 0, {"a": 1}, None)


def test_an_optimisers_state_goes_on_as_if_it_had_never_stopped(tmp_path):
    optimizer, grads = optax.adam(0.1), {"w": jnp.asarray([1.0, 2.0])}
    with jax.numpy_dtype_promotion("standard"):
        update = jax.jit(optimizer.update)
        _, state = update(grads, optimizer.init(grads))
        checkpoint.save(tmp_path, 1, state).wait()
        restored = checkpoint.restore(tmp_path, optimizer.init(grads)).tree
        assert_same(restored, state)
        assert_same(update(grads, restored), update(grads, state))


def test_shapes_alone_say_where_it_goes(tmp_path):
    value = {"x": jnp.arange(8.0), "key": jax.random.key(0), "rows": jnp.arange(4)}
    checkpoint.save(tmp_path, 0, value).wait()
    split = NamedSharding(mesh(4), P("a"))
    like = eqx.filter_eval_shape(lambda: value)
    like["rows"] = jax.ShapeDtypeStruct((4,), jnp.int64, sharding=split)
    restored = checkpoint.restore(tmp_path, like).tree
    assert_same(restored, value)
    assert restored["rows"].sharding == split


def test_what_is_bound_to_no_device_stays_so(tmp_path):
    device = jax.devices()[1]
    value = {"free": jnp.arange(3.0), "bound": jax.device_put(jnp.arange(3.0), device)}
    checkpoint.save(tmp_path, 0, value).wait()
    restored = checkpoint.restore(tmp_path, value).tree
    assert [leaf.committed for leaf in (restored["free"], restored["bound"])] == [False, True]
    assert restored["bound"].device == device


@pytest.mark.parametrize("there", [(1,), (2,), (4,), (2, 2), (1, 4)])
@pytest.mark.parametrize("here", [(4,), (2, 2)])
def test_any_sharding_restores_onto_any_other(tmp_path, here, there):
    def spread(shape):
        specs = {"x": P(*("a", "b")[: len(shape)]), "y": P(None, "a"), "whole": P(), "keys": P("a")}
        return {name: jax.device_put(value[name], NamedSharding(mesh(*shape), specs[name])) for name in specs}

    value = {"x": NUMBERS[:, :4], "y": NUMBERS[:, :4] * 2, "whole": NUMBERS, "keys": jax.random.split(KEY, 8)}
    checkpoint.save(tmp_path, 0, spread(here)).wait()
    restored = checkpoint.restore(tmp_path, jax.tree.map(blank, spread(there))).tree
    assert_same(restored, spread(there))
    assert jax.tree.all(
        jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), restored, spread(there))
    )


def test_a_spread_array_has_a_checksum_for_every_distinct_piece(tmp_path):
    split = jax.device_put(NUMBERS, NamedSharding(mesh(2, 2), P("b")))
    checkpoint.save(tmp_path, 0, split).wait()
    (array,) = json.loads((tmp_path / "0" / "manifest" / "data.json").read_text())["manifest"]["arrays"]
    assert sorted(bounds for bounds, _ in array["pieces"]) == [[[0, 4], [0, 6]], [[4, 8], [0, 6]]]


def test_arrays_that_change_right_after_a_save_are_saved_as_they_were(tmp_path):
    host, kept = np.arange(BIG, dtype=np.float32), jnp.arange(BIG, dtype=jnp.float32)
    donated = kept + 1
    checkpoint.save(tmp_path, 0, {"host": host, "donated": donated})
    host[:] = -1
    jax.block_until_ready(jax.jit(lambda x: x * 0 - 1, donate_argnums=0)(donated))
    donated.delete()
    restored = checkpoint.restore(tmp_path, {"host": host, "donated": kept}).tree
    np.testing.assert_array_equal(restored["host"], np.arange(BIG))
    np.testing.assert_array_equal(restored["donated"], np.arange(BIG) + 1)


def test_the_newest_stay_and_the_best_besides(tmp_path):
    figures = [float("nan"), 1.0, 3.0, 2.0, None, 5.0, 4.0]
    for step, figure in enumerate(figures):
        checkpoint.save(tmp_path, step, {"x": np.asarray(step)}, figure=figure, keep=2).wait()
    assert checkpoint.steps(tmp_path) == [1, 5, 6]
    assert (checkpoint.latest(tmp_path), checkpoint.best(tmp_path)) == (6, 1)
    assert checkpoint.restore(tmp_path, {"x": np.asarray(0)}, step=1)[1:] == (1, None, 1.0)


def test_what_is_kept_is_there_until_the_new_one_is_complete(tmp_path):
    checkpoint.save(tmp_path, 0, {"x": np.zeros(3)}, keep=1).wait()
    saving = checkpoint.save(tmp_path, 1, {"x": np.zeros(BIG)}, keep=1)
    seen = set()
    while not saving.is_done():
        seen.add(bool(checkpoint.steps(tmp_path)))
    assert seen <= {True}
    assert checkpoint.steps(tmp_path) == [1]


def test_a_save_waits_for_the_one_before(tmp_path):
    first = checkpoint.save(tmp_path, 0, {"x": np.zeros(BIG)})
    second = checkpoint.save(tmp_path, 1, {"x": np.zeros(3)})
    assert first.is_done()
    second.wait()
    assert checkpoint.steps(tmp_path) == [0, 1]


def test_a_restore_waits_for_the_save_before(tmp_path):
    checkpoint.save(tmp_path, 0, {"x": np.arange(BIG)})
    assert checkpoint.restore(tmp_path, {"x": np.zeros(BIG, int)}).step == 0


def test_other_folders_and_files_are_no_checkpoints_and_are_left_alone(tmp_path):
    others = ["01", "x", "-1", "1.old", "x.deleted", "٣"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / "2").write_text("a file")
    checkpoint.save(tmp_path, 0, {"x": np.zeros(3)}, keep=1).wait()
    checkpoint.save(tmp_path, 3, {"x": np.zeros(3)}, keep=1).wait()
    assert checkpoint.steps(tmp_path) == [3]
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "2", "3"])


def test_nothing_is_the_newest_of_nothing(tmp_path):
    for folder in (tmp_path, tmp_path / "not yet"):
        assert (checkpoint.steps(folder), checkpoint.latest(folder), checkpoint.best(folder)) == ([], None, None)
        with pytest.raises(FileNotFoundError, match=r"needs a whole checkpoint in .*; got none"):
            checkpoint.restore(folder, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": 3}, "needs a step above 3, which is saved in .*; got 3; do count on"),
        ({"step": 2}, "needs a step above 3, which is saved in .*; got 2; do count on"),
        ({"step": -1}, "needs step as a whole number >= 0; got -1; count from 0"),
        ({"step": True}, "needs step as a whole number >= 0; got True; count from 0"),
        ({"step": 4, "keep": 0}, "needs keep as a whole number >= 1; got 0; use 1"),
        ({"step": 4, "config": {"f": len}}, "needs config as a mapping of JSON's types"),
        ({"step": 4, "notes": {"x": NUMBERS}}, "needs notes as a mapping of JSON's types"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(tmp_path, arguments, message):
    checkpoint.save(tmp_path, 3, {"x": NUMBERS}).wait()
    with pytest.raises((ValueError, TypeError), match=message):
        checkpoint.save(tmp_path, tree={"x": NUMBERS}, **arguments)
    assert os.listdir(tmp_path) == ["3"]


SAVED = {"w": np.zeros((2, 3), np.float32), "k": jax.random.key(0), "model": linear(jax.random.key(0))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": np.zeros((2, 3))}, r"\['w'\] saved as float32\[2, 3\], and float64\[2, 3\] in `like`"),
        ({"w": jnp.zeros((2, 4), jnp.float32)}, r"\['w'\] saved as float32\[2, 3\], and float32\[2, 4\] in `like`"),
        ({"w": 0.5}, r"\['w'\] saved as float32\[2, 3\], and nothing in `like`"),
        ({"b": np.zeros(2)}, r"\['b'\] saved as nothing, and float64\[2\] in `like`"),
        (
            {"k": jax.random.key(0, impl="rbg")},
            r"\['k'\] saved as uint32\[2\] of threefry2x32 keys, and uint32\[4\] of rbg keys in `like`",
        ),
        ({"k": jax.random.PRNGKey(0)}, r"\['k'\] saved as .* of threefry2x32 keys, and uint32\[2\] in `like`"),
        (
            {"model": linear(jax.random.key(0), d=4)},
            r"\['model'\]\.weight saved as float64\[3, 3\], and float64\[4, 4\] in `like`; \['model'\]\.drift",
        ),
    ],
)
def test_arrays_that_differ_are_named_with_both_sides(tmp_path, change, message):
    for step in range(2):
        checkpoint.save(tmp_path, step, SAVED).wait()
    with pytest.raises(ValueError, match=message):
        checkpoint.restore(tmp_path, SAVED | change)


def test_another_optimiser_is_named(tmp_path):
    parameters = {"w": jnp.zeros(3)}
    checkpoint.save(tmp_path, 0, optax.adam(0.1).init(parameters)).wait()
    with pytest.raises(ValueError, match=r"\[0\]\.mu\['w'\] saved as float64\[3\], and nothing in `like`"):
        checkpoint.restore(tmp_path, optax.sgd(0.1).init(parameters))


def test_a_configuration_that_differs_is_named_with_both_sides(tmp_path):
    config = {"model": {"width": 64, "depths": (1, 2)}, "limit": float("nan"), "seed": 3}
    checkpoint.save(tmp_path, 0, SAVED, config=config).wait()
    assert checkpoint.restore(tmp_path, SAVED, config=config).step == 0
    assert checkpoint.restore(tmp_path, SAVED).step == 0
    other = {"model": {"width": 32, "depths": (1, 2)}, "limit": float("nan"), "new": "x"}
    with pytest.raises(ValueError, match="needs the configuration that was saved") as told:
        checkpoint.restore(tmp_path, SAVED, config=other)
    shown = "got model.width saved as 64, and 32 here; seed saved as 3, and nothing here; new saved as nothing, and "
    assert shown + '"x" here; do' in str(told.value)


def test_64_bits_are_not_cut_to_32(tmp_path):
    checkpoint.save(tmp_path, 0, {"x": jnp.arange(3.0)}).wait()
    like = {"x": jax.ShapeDtypeStruct((3,), np.dtype("float64"))}
    with jax.enable_x64(False), pytest.raises(ValueError, match=r"needs 64-bit numbers for \['x'\]"):
        checkpoint.restore(tmp_path, like)


def test_a_missing_step_is_told_with_those_there_are(tmp_path):
    checkpoint.save(tmp_path, 3, SAVED).wait()
    with pytest.raises(FileNotFoundError, match=r"needs a checkpoint 4 in .*; got \[3\]; do choose one of them"):
        checkpoint.restore(tmp_path, SAVED, step=4)


def test_without_orbax_the_package_to_install_is_named():
    code = "import sys; sys.modules['orbax'] = None; import momentax; from momentax import checkpoint"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    message = 'got none; run `pip install ".[checkpoint]"` in a clone of momentax'
    told = f"ModuleNotFoundError: needs the Python package that provides orbax; {message}"
    assert result.stderr.splitlines()[-1] == told
