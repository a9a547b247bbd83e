"""Benchmarks run in their smallest form, those but that train students, and what they count is what they say."""

import importlib
import json
import os
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import momentax as mm

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"
SMALL = {"MLP": lambda key: mm.nn.MLP((3, 8, 8), width=16, depth=1, key=key)}


@pytest.fixture
def script(monkeypatch):
    """A benchmark by name, of one small network, with JAX as users have it; what it sets is undone."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("XLA_FLAGS", "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.setenv(name, os.environ.get(name, "cpu" if name == "JAX_PLATFORMS" else ""))
    networks = importlib.import_module("_networks")
    monkeypatch.setattr(networks, "SHAPE", (3, 8, 8))
    monkeypatch.setattr(networks, "NETWORKS", SMALL)

    def imported(name):
        module = importlib.import_module(name)
        if hasattr(module, "SHAPE"):
            monkeypatch.setattr(module, "SHAPE", (3, 8, 8))
        return module

    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield imported


def rows_of(module, tmp_path, *names, **settings):
    """What a script records, with the command that makes it again."""
    target = tmp_path / "found.json"
    module.main(str(target), *names, **settings)
    found = json.loads(target.read_text())
    assert found["command"] == " ".join([f"python benchmarks/{module.__name__}.py", str(target), *names])
    assert {"versions", "machine", "load", "date"} <= set(found)
    return found["rows"]


def test_the_tables_of_the_readme_are_those_of_the_records(script):
    readme, tables = (BENCHMARKS / "README.md").read_text(), script("tables").recorded()
    assert tables
    assert [name for name, table in tables.items() if table not in readme] == []


def test_the_floor_is_five_forwards(script):
    """For every player, with a gradient or a tangent of three; three for the teacher's own training."""
    floor = script("floor")
    each = {"forward": 1, "gradient": 3, "half forward": 0.5, "half gradient": 1.5, "half tangent": 1.5}
    found = {part: {"flops": count, "bytes": 1, "temporary": 8} for part, count in each.items()}
    found |= {part: {"flops": 0, "bytes": 1} for part in ("noise", "optimiser", "Lambda")}
    update, model = {"flops": 5, "bytes": 10, "held": 100, "temporary": 24}, jnp.zeros(2, jnp.float32)
    rows = {name: floor.compared(name, update, found, model) for name in floor.FLOORS}
    assert {name: row["flops"] for name, row in rows.items()} == {
        "denoising": 5 / 3,
        "student": 1,
        "aux": 1,
        "joint": 5 / 7,
        "instant": 1,
    }
    assert {name: row["memory"] for name, row in rows.items()} == {
        "denoising": 124 / 108,
        "student": 124 / 116,
        "aux": 124 / 108,
        "joint": 124 / 116,
        "instant": 124 / 124,
    }


@pytest.mark.slow
def test_the_floor_of_every_loss(script, tmp_path):
    """Never below it, by more than what the compiler merges."""
    rows = rows_of(script("floor"), tmp_path)
    assert [row["update"] for row in rows] == ["denoising", "student", "aux", "instant", "joint"]
    for row in rows:
        assert row["flops"] >= 0.99
        assert row["networks"] > row["flops"]


@pytest.mark.slow
def test_jvp(script, tmp_path):
    rows = rows_of(script("jvp"), tmp_path, batches=(2,), dtypes=("bfloat16",), rounds=1)
    assert 2 < rows[0]["jvp / forward"]["flops"] < 3.2


@pytest.mark.slow
def test_what_is_written_by_hand_is_the_library(script, tmp_path):
    """Which the script itself demands; of what is closed over every byte is in its program."""
    naive = script("naive")
    model = eqx.filter_jit(SMALL["MLP"])(jax.random.key(0))
    players = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model) if hasattr(leaf, "dtype"))
    alone = naive.size(naive.lowered(lambda x: x + 1, jnp.zeros(3, jnp.float32)))
    bound = naive.size(naive.lowered(lambda x: jax.vmap(model)(x, x[:, 0, 0, 0]), jnp.zeros((2, 3, 8, 8), jnp.float32)))
    assert players < bound - alone < 1.5 * players
    rows = rows_of(naive, tmp_path, rounds=1)
    assert [row["update"] for row in rows] == ["student", "student", "aux", "aux", "instant", "instant"]
    assert [row["kind"] for row in rows] == ["by hand", "closure"] * 3
    assert all(row["step"]["median"] > 0 and row["program"] > 1 for row in rows)


def test_by_hand_with_the_printed_sign_is_told(script, monkeypatch):
    """The check that comes before the timing sees a loss that is not the library's."""
    naive, key = script("naive"), jax.random.key(0)
    teacher, other, model = (mm.Denoiser(eqx.filter_jit(SMALL["MLP"])(key)) for key in jax.random.split(key, 3))
    x = jax.random.normal(key, (4, 3, 8, 8), jnp.float32)
    printed = naive.instant_loss
    monkeypatch.setattr(naive, "instant_loss", lambda *args: -printed(*args))
    with pytest.raises(AssertionError):
        naive.check("instant", teacher, other, model, x, key)


@pytest.mark.slow
def test_sampler(script, tmp_path):
    rows = rows_of(script("sampler"), tmp_path, rounds=1, many=16)
    assert rows[0]["samples/s"] > 0


def test_bare_evaluations_are_as_many_as_steps(script):
    module = script("sampler")
    z = jnp.ones((2, 3, 8, 8))
    count = module.bare(lambda z, t: z + 1, 8)(z)
    np.testing.assert_array_equal(count, z + 8)


@pytest.mark.slow
def test_startup_traces_each_step_once(script, tmp_path):
    """And nothing heavy comes with the library."""
    rows = rows_of(script("startup"), tmp_path, rounds=1)
    assert [row["traces"] for row in rows] == [1, 1, 1, 1]
    assert json.loads((tmp_path / "found.json").read_text())["import"]["heavy"] == []


@pytest.mark.slow
def test_no_program_grows_with_the_square_of_the_arrays(script, tmp_path):
    """Of any step of the command and of the library: twice the arrays, at most a little more than twice as large."""
    rows = rows_of(script("compile"), tmp_path, leaves=(20, 40))
    assert len(rows) == 2 * len(script("compile").STEPS)
    for few, many in zip(rows[::2], rows[1::2], strict=True):
        assert few["step"] == many["step"]
        assert 1 < many["instructions"] < 2.1 * few["instructions"]


@pytest.mark.parametrize("name", ["average", "sampler"])
def test_a_programs_instructions_are_counted(name, script, tmp_path):
    (row,) = rows_of(script("compile"), tmp_path, name, leaves=(4,))
    assert (row["step"], row["leaves"]) == (name, 4)
    assert row["instructions"] > 4
    assert row["CPU seconds"] >= 0


def test_scaling(script, tmp_path, monkeypatch):
    """What is replicated sends a gradient each way, twice over for instant; what is in pieces is held once over n."""
    scaling = script("scaling")
    monkeypatch.setattr(scaling, "NETWORKS", {"small": ((3, 8, 8), SMALL["MLP"])})
    monkeypatch.setattr(scaling, "COMPILED_FOR", {"small": ()})
    rows = {
        (row["spread"], row["update"], row["devices"]): row for row in rows_of(scaling, tmp_path, "small", devices=(4,))
    }
    model = eqx.filter_eval_shape(SMALL["MLP"], jax.random.key(0))
    gradient = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model) if hasattr(leaf, "dtype"))
    for update, times in (("student", 1), ("aux", 1), ("instant", 2)):
        sent = rows["data_parallel", update, 4]["sent"]["all_reduce"]
        assert 0 <= sent - times * gradient * 2 * 3 / 4 < 16
        assert rows["fully_sharded", update, 4]["held"] < rows["data_parallel", update, 4]["held"] / 2


def test_collectives_are_read_off_a_program(script):
    """One of each kind, of 8 by 4 numbers of four bytes on 4 devices."""
    scaling = script("scaling")
    mesh = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,))

    def crossing(x):
        whole = jax.lax.all_gather(x, "data", tiled=True)
        return jax.lax.psum_scatter(jax.lax.psum(whole * x[0], "data") + whole, "data", tiled=True)

    spread = jax.shard_map(crossing, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data"), check_vma=False)
    program = jax.jit(spread).lower(jax.ShapeDtypeStruct((8, 4), jnp.float32))
    numbers, sent = scaling.crossing(program.as_text(), 4)
    assert numbers == {"all_gather": 1, "reduce_scatter": 1, "all_reduce": 1}
    assert scaling.left(program.compile().as_text()) == numbers
    assert sent == {"all_gather": 96.0, "reduce_scatter": 96.0, "all_reduce": 192.0}


def test_ratios_are_of_the_same_round(script):
    ratio = script("_measure").ratio
    assert ratio([4.0, 8.0, 6.0], [1.0, 2.0, 3.0]) == {"median": 4.0, "best": 4.0}


@pytest.mark.oracle
def test_torch(script, tmp_path):
    """Values and gradients agree, which the script itself demands."""
    pytest.importorskip("torch")
    rows = rows_of(script("torch_compare"), tmp_path, "16", rounds=1, compiled=False)
    assert [row["update"] for row in rows] == ["student", "aux", "instant"]
