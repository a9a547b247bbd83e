"""Arrays in safetensors: what is written is what is read, and everything else is refused before it is believed."""

import os
import pickle
import subprocess
import sys
import zipfile

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import ml_dtypes
import numpy as np
import pytest

import momentax
from momentax.interop import load_safetensors, save_safetensors

safetensors = pytest.importorskip("safetensors")
SENTENCE = r"^needs .+; got .+; do.+"
DTYPES = ["bfloat16", "float16", "float32", "float64", "bool"]
DTYPES += [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


def mlp(width=8, seed=0):
    return momentax.nn.MLP((3,), width=width, depth=2, num_classes=2, key=jr.key(seed))


def headers(path):
    """Name, dtype and shape of every array, as the package itself reads them."""
    with safetensors.safe_open(path, framework="numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (found.get_dtype(), found.get_shape()) for name, found in slices.items()}, file.metadata()


def same_bits(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


def test_a_network_comes_back_bit_for_bit_into_one_of_its_shapes(path):
    net = mlp()
    save_safetensors(path, net)
    like = eqx.filter_eval_shape(mlp)
    for back in (load_safetensors(path, like), load_safetensors(str(path), mlp(seed=1))):
        assert eqx.tree_equal(back, net)
        z = jnp.asarray([0.1, -0.2, 0.3])
        np.testing.assert_array_equal(back(z, jnp.asarray(1.0)), net(z, jnp.asarray(1.0)))


def test_names_are_places(path):
    denoiser = momentax.Denoiser(mlp())
    save_safetensors(path, {"teacher": denoiser, "steps": [jnp.arange(3), 5]}, {"seed": "0"})
    found, metadata = headers(path)
    assert found["teacher.net.blocks.0.inner.weight"] == ("F64", [8, 8])
    assert found["steps.0"] == ("I64", [3])
    assert len(found) == 1 + len(jax.tree.leaves(eqx.filter(denoiser, eqx.is_array)))
    assert metadata == {"seed": "0"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_with_its_bits(path, dtype):
    """As JAX's arrays and as NumPy's, and nothing in between: zeros of both signs, a scalar, no entries at all."""
    values = np.asarray([[0, 1, 2], [1, 0, 3]]).astype(dtype)
    extremes = [] if values.dtype.kind not in "f" else [np.asarray([-0.0, np.nan, np.inf], dtype)]
    tree = {"a": jnp.asarray(values), "b": values, "c": jnp.asarray(values[0, 1]), "d": jnp.zeros((0, 3), dtype)}
    tree["e"] = extremes
    save_safetensors(path, tree)
    back = load_safetensors(path, tree)
    jax.tree.map(same_bits, back, tree)
    assert isinstance(back["a"], jax.Array)
    assert type(back["b"]) is np.ndarray


def test_bfloat16_is_the_formats_own_and_not_bytes_of_another(path):
    numbers = np.asarray([1.0, -2.5, 3e38], ml_dtypes.bfloat16)
    save_safetensors(path, {"a": numbers})
    assert headers(path)[0] == {"a": ("BF16", [3])}
    assert path.read_bytes()[-6:] == (numbers.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()


def test_views_and_shared_arrays_are_written_as_they_look(path):
    table = np.arange(24.0).reshape(4, 6)
    tree = {"a": table.T, "b": table[::2, 1:], "c": table, "d": table, "e": table.astype(">f8"), "f": table[::-1]}
    save_safetensors(path, tree)
    back = load_safetensors(path, {name: np.zeros(array.shape) for name, array in tree.items()})
    jax.tree.map(np.testing.assert_array_equal, back, tree)


def test_what_is_no_array_is_kept_from_like(path):
    net = eqx.nn.MLP(2, 2, 4, 1, activation=jnp.tanh, key=jr.key(0))
    save_safetensors(path, {"net": net, "rate": 0.5, "name": "a", "none": None})
    back = load_safetensors(path, {"net": net, "rate": 0.25, "name": "b", "none": None})
    assert back["net"].activation is net.activation
    assert (back["rate"], back["name"], back["none"]) == (0.25, "b", None)


def test_what_is_sharded_comes_back_sharded(path):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jnp.arange(8.0)
    save_safetensors(path, {"x": x})
    for like in (jax.device_put(x, placed), jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)):
        loaded = load_safetensors(path, {"x": like})["x"]
        assert loaded.sharding == placed
        np.testing.assert_array_equal(loaded, x)
    assert not load_safetensors(path, {"x": x})["x"].committed


def test_a_bare_array_is_a_pytree_too(path):
    save_safetensors(path, jnp.arange(3.0))
    np.testing.assert_array_equal(load_safetensors(path, jnp.zeros(3)), np.arange(3.0))


@pytest.mark.parametrize(
    ("like", "told"),
    [
        ({"a": np.zeros((2, 3)), "b": {"c": np.zeros(4)}, "d": np.zeros(1)}, ["'d'"]),
        ({"a": np.zeros((2, 3))}, ["'b.c'"]),
        ({"a": np.zeros((3, 2)), "b": {"c": np.zeros(4)}}, ["'a'", "float64[3, 2]", "float64[2, 3]"]),
        ({"a": np.zeros((2, 3)), "b": {"c": np.zeros((4, 1))}}, ["'b.c'", "float64[4, 1]", "float64[4]"]),
        ({"a": np.zeros((2, 3), np.float32), "b": {"c": np.zeros(4)}}, ["'a'", "float32[2, 3]", "float64[2, 3]"]),
        ({"a": np.zeros((2, 3), np.int64), "b": {"c": np.zeros(4)}}, ["'a'", "int64[2, 3]", "float64[2, 3]"]),
    ],
    ids=["missing", "extra", "transposed", "rank", "precision", "kind"],
)
def test_a_file_that_does_not_fit_is_refused_with_the_leaf_and_both_sides(path, like, told):
    save_safetensors(path, {"a": np.zeros((2, 3)), "b": {"c": np.zeros(4)}})
    with pytest.raises(ValueError, match=SENTENCE) as error:
        load_safetensors(path, like)
    assert all(word in str(error.value) for word in told)


def test_many_missing_names_are_counted(path):
    save_safetensors(path, {})
    with pytest.raises(ValueError, match=r"'0', '1', '2', '3', '4' and 3 more"):
        load_safetensors(path, [np.zeros(1)] * 8)


def test_64_bit_numbers_are_not_cast_where_jax_has_them_off(path):
    save_safetensors(path, {"a": np.ones(2)})
    with jax.enable_x64(False):
        with pytest.raises(ValueError, match=SENTENCE):
            load_safetensors(path, {"a": jax.ShapeDtypeStruct((2,), np.float64)})
        assert load_safetensors(path, {"a": np.zeros(2)})["a"].dtype == np.float64


@pytest.mark.parametrize("leaf", [jr.key(0), jnp.zeros(2, jnp.complex64), jnp.zeros(2, jnp.float8_e4m3fn)])
def test_a_dtype_that_is_not_shared_is_refused_before_anything_is_written(path, leaf):
    with pytest.raises(ValueError, match=SENTENCE) as error:
        save_safetensors(path, {"fine": jnp.zeros(1), "odd": leaf})
    assert "'odd'" in str(error.value)
    assert list(path.parent.iterdir()) == []


def test_dtypes_of_other_writers_that_are_not_shared_are_refused(path):
    package = pytest.importorskip("safetensors.numpy")
    package.save_file({"a": np.zeros(2, ml_dtypes.float8_e5m2)}, path)
    with pytest.raises(ValueError, match=SENTENCE):
        load_safetensors(path, {"a": jnp.zeros(2)})


@pytest.mark.parametrize("tree", [{"a.b": np.zeros(1), "a": {"b": np.zeros(1)}}, {"__metadata__": np.zeros(1)}])
def test_places_of_one_name_are_refused(path, tree):
    with pytest.raises(ValueError, match=SENTENCE):
        save_safetensors(path, tree)


class Exploding:
    """A pickle of it writes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_pickle_is_told_and_never_executed(path, tmp_path, zipped):
    """Bare, or zipped as torch writes it."""
    raw = pickle.dumps(Exploding(tmp_path / "executed"))
    if zipped:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", raw)
    else:
        path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"^needs .+; got .+, a pickle, which .+; do .+"):
        load_safetensors(path, {"a": jnp.zeros(1)})
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kept", [0, 4, 8, 60, -1], ids=["empty", "length", "header", "half a header", "last byte"])
def test_a_file_that_was_cut_is_refused(path, kept):
    save_safetensors(path, mlp())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=SENTENCE):
        load_safetensors(path, eqx.filter_eval_shape(mlp))


@pytest.mark.parametrize("size", [2**63, 10**9])
def test_a_header_that_claims_too_much_is_refused(path, size):
    path.write_bytes(size.to_bytes(8, "little") + b"{}" * 100)
    with pytest.raises(ValueError, match=SENTENCE):
        load_safetensors(path, {"a": jnp.zeros(1)})


def test_nothing_at_a_path_is_told(path):
    with pytest.raises(FileNotFoundError, match=SENTENCE):
        load_safetensors(path, mlp())


def test_writing_is_all_or_nothing(path, monkeypatch):
    """What was there stays where the writing fails, and nothing is left beside it."""
    save_safetensors(path, {"a": np.ones(3)})
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    for module, name in ((safetensors.numpy, "save_file"), (os, "fsync")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(OSError, match="no space"):
                save_safetensors(path, {"a": np.zeros(3)})
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]
    save_safetensors(path, {"a": np.zeros(3)})
    np.testing.assert_array_equal(load_safetensors(path, {"a": np.ones(3)})["a"], np.zeros(3))


def test_the_file_has_the_permissions_of_any_new_file(path):
    save_safetensors(path, {"a": np.ones(3)})
    (path.parent / "other").touch()
    assert path.stat().st_mode == (path.parent / "other").stat().st_mode


def test_importing_needs_no_package_and_calling_says_which(path):
    code = (
        "import sys, momentax.interop as i; assert not [n for n in sys.modules if 'safetensors' == n.split('.')[0]]\n"
    )
    code += "sys.modules['safetensors'] = None\n"
    code += "for call in (lambda: i.save_safetensors('x', {}), lambda: i.load_safetensors('x', {})):\n"
    code += "    try: call()\n    except ImportError as error: print(error)\n"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=path.parent)
    told = 'needs the Python package that provides safetensors; got none; run `pip install ".[interop]"`'
    told += " in a clone of momentax"
    assert result.stdout.splitlines() == [told, told]
    assert list(path.parent.iterdir()) == []


@pytest.mark.oracle
def test_torch_reads_what_is_written_and_what_torch_writes_is_read(path):
    torch, package = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    numbers = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    tree = {"half": jnp.asarray(numbers, jnp.bfloat16), "single": jnp.asarray(numbers)}
    save_safetensors(path, tree)
    found = package.load_file(path)
    assert torch.equal(found["half"], torch.tensor(numbers).bfloat16())
    assert torch.equal(found["single"], torch.tensor(numbers))
    package.save_file(found, path)
    jax.tree.map(same_bits, load_safetensors(path, tree), tree)
