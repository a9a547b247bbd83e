"""The reader of PyTorch's old files, and the network that is read from one."""

import os
import pickle
import subprocess
import sys
import types
from collections import OrderedDict

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from efficientnet import WIDTHS, random_tensors, written_out

from momentax.recipes._efficientnet import efficientnet, read_efficientnet
from momentax.recipes._tensors import read_tensors

rng = np.random.default_rng(0)


def images(n, channels):
    return rng.uniform(-1, 1, (n, channels, 32, 32)).astype(np.float32)


class _Storage:
    """What the pickles of PyTorch refer to, for a writer that has none."""

    def __init__(self, array):
        self.array = array


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        if not isinstance(obj, _Storage):
            return None
        kind = {"f": "FloatStorage", "i": "LongStorage"}[obj.array.dtype.kind]
        return "storage", getattr(sys.modules["torch"], kind), str(id(obj)), "cpu", len(obj.array), None


def saved(stream, tensors, storages):
    """Five pickles and the storages, as `torch.save` had them."""
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    for value in (0x1950A86A20F9469CFC6C, 1001, machine, tensors, [str(id(storage)) for storage in storages]):
        _Pickler(stream, 2).dump(value)
    for storage in storages:
        stream.write(len(storage.array).to_bytes(8, "little") + storage.array.tobytes())


@pytest.fixture
def tensor(monkeypatch):
    """A view of a storage that is pickled as PyTorch's tensors are."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("FloatStorage", "LongStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2():
        raise NotImplementedError

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils.__dict__["_rebuild_tensor_v2"] = _rebuild_tensor_v2
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    class Tensor:
        def __init__(self, *view):
            self.view = view

        def __reduce__(self):
            return _rebuild_tensor_v2, (*self.view, False, OrderedDict())

    return Tensor


def test_tensors_are_read_whatever_their_strides(tensor, tmp_path):
    """Transposed, from the middle, of no dimension, and two of one storage."""
    floats, integer = _Storage(rng.standard_normal(12).astype("<f4")), _Storage(np.array([7], "<i8"))
    tensors = OrderedDict(
        plain=tensor(floats, 0, (3, 4), (4, 1)),
        transposed=tensor(floats, 0, (4, 3), (1, 4)),
        middle=tensor(floats, 5, (2,), (3,)),
        scalar=tensor(integer, 0, (), ()),
    )
    with (tmp_path / "a.pth").open("wb") as file:
        saved(file, tensors, [integer, floats])
    found = read_tensors((tmp_path / "a.pth").read_bytes())
    np.testing.assert_array_equal(found["plain"], floats.array.reshape(3, 4))
    np.testing.assert_array_equal(found["transposed"], floats.array.reshape(3, 4).T)
    np.testing.assert_array_equal(found["middle"], floats.array[[5, 8]])
    assert found["scalar"] == 7
    assert {array.dtype for array in found.values()} == {np.dtype("<f4"), np.dtype("<i8")}


@pytest.mark.parametrize("view", [(0, (13,), (1,)), (1, (3, 4), (4, 1)), (0, (2,), (-1,)), (-1, (2,), (1,))])
def test_a_tensor_outside_its_storage_is_refused(view, tensor, tmp_path):
    storage = _Storage(np.zeros(12, "<f4"))
    with (tmp_path / "a.pth").open("wb") as file:
        saved(file, OrderedDict(a=tensor(storage, *view)), [storage])
    with pytest.raises(ValueError, match=r"needs a storage of .* got 12 numbers"):
        read_tensors((tmp_path / "a.pth").read_bytes())


def test_a_cut_file_is_refused(tensor, tmp_path):
    storage = _Storage(np.zeros(12, "<f4"))
    with (tmp_path / "a.pth").open("wb") as file:
        saved(file, OrderedDict(a=tensor(storage, 0, (12,), (1,))), [storage])
    raw = (tmp_path / "a.pth").read_bytes()
    with pytest.raises(ValueError, match="got 11 numbers; do fetch the file again"):
        read_tensors(raw[:-4])
    with pytest.raises(ValueError, match="needs five pickles"):
        read_tensors(raw[:30])


class _Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_something_is_refused(tensor, tmp_path):
    with (tmp_path / "a.pth").open("wb") as file:
        saved(file, OrderedDict(a=_Runs(tmp_path / "made")), [])
    with pytest.raises(ValueError, match=r"needs a pickle of tensors alone; got \w+\.mkdir; do not trust it"):
        read_tensors((tmp_path / "a.pth").read_bytes())
    assert not (tmp_path / "made").exists()


@pytest.fixture(scope="module")
def slim():
    """The network with few channels and random weights: as it is here, and its tensors."""
    tensors = random_tensors(WIDTHS)
    net = efficientnet(tensors)
    return tensors, jax.jit(lambda x: (net.early(x), net.late(x)))


def test_efficientnet_is_the_one_written_out(slim):
    """In float64, convolution by convolution, with nothing folded; of a network of few channels."""
    tensors, net = slim
    x = images(1, 3)[0]
    for ours, theirs in zip(net(x), written_out(tensors, x), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_grey_images_are_seen_as_rgb(slim):
    x = images(1, 1)[0]
    for grey, rgb in zip(slim[1](x), slim[1](np.repeat(x, 3, 0)), strict=True):
        np.testing.assert_allclose(grey, rgb, rtol=1e-5)


@pytest.mark.oracle
def test_efficientnet_and_its_reader_agree_with_torch(tmp_path):
    """At full width; the norm of the difference to torch in float64 is some units of float32's rounding."""
    torch = pytest.importorskip("torch")
    tensors = random_tensors()
    values = OrderedDict((name, torch.as_tensor(array)) for name, array in tensors.items())
    torch.save(values, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    found = read_tensors((tmp_path / "a.pth").read_bytes())
    assert found.keys() == tensors.keys()
    net, x = efficientnet(found), images(2, 3)
    for name, theirs in zip(("early", "late"), written_out_in_torch(torch, values, x), strict=True):
        ours = np.asarray(eqx.filter_jit(eqx.filter_vmap(getattr(net, name)))(jnp.asarray(x)))
        assert np.linalg.norm(ours - theirs) < 5e-6 * np.linalg.norm(theirs)


def written_out_in_torch(torch, values, x):
    values, functional = {name: value.double() for name, value in values.items()}, torch.nn.functional

    def layer(y, name, normalisation, stride=1, groups=1, bounded=True):
        weight = values[f"{name}.weight"]
        added = [max((-(-side // stride) - 1) * stride + weight.shape[2] - side, 0) for side in y.shape[:1:-1]]
        y = functional.pad(y, [part for total in added for part in (total // 2, total - total // 2)])
        y = functional.conv2d(y, weight, stride=stride, groups=groups)
        parts = [values[f"{normalisation}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        y = functional.batch_norm(y, *parts, eps=1e-3)
        return y.clamp(0, 6) if bounded else y

    y = functional.interpolate(torch.as_tensor(x).double(), (96, 96), mode="bilinear")
    y, early = layer(((y + 1) * 127.5 - 127) / 128, "_conv_stem", "_bn0", 2), []
    for n in range(16):
        name = f"_blocks.{n}."
        z = layer(y, f"{name}_expand_conv", f"{name}_bn0") if n else y
        early.append(z.mean((2, 3)).numpy())
        z = layer(z, f"{name}_depthwise_conv", f"{name}_bn1", 2 if n in (1, 3, 5, 11) else 1, z.shape[1])
        z = layer(z, f"{name}_project_conv", f"{name}_bn2", bounded=False)
        y = y + z if y.shape == z.shape else z
    return early[5], layer(y, "_conv_head", "_bn1").mean((2, 3)).numpy()


LARGEST = {29: 3.194802, 755: 3.290833, 468: 3.334891, 2: 3.672055}


@pytest.mark.network
def test_the_package_of_the_error_is_the_network_that_was_recorded(tmp_path, monkeypatch):
    """By its late features of a ramp from black to white."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOMENTAX_DATA", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match=r"needs efficientnet_lite0\S*; got none") as error:
        read_efficientnet()
    subprocess.run(str(error.value).partition("; do: ")[2], shell=True, check=True, capture_output=True)
    ramp = np.linspace(-1, 1, 32, dtype=np.float32) * np.ones((3, 32, 1), np.float32)
    found = np.asarray(eqx.filter_jit(read_efficientnet().late)(jnp.asarray(ramp)))
    assert found.shape == (1280,)
    assert found.mean() == pytest.approx(0.0581178, abs=1e-6)
    assert np.argsort(found)[-4:].tolist() == list(LARGEST)
    np.testing.assert_allclose(found[list(LARGEST)], list(LARGEST.values()), atol=2e-5)
