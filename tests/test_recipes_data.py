import gzip
import hashlib
import importlib
import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from momentax.recipes import _data, _teacher
from momentax.recipes._data import Dataset, load
from momentax.recipes._pixels import Pixels
from momentax.recipes._teacher import identity

FASHION = Path("/usr/share/datasets/fashion-mnist")
rng = np.random.default_rng(0)


def check(data: Dataset, shape: tuple[int, ...], num_classes: int):
    assert data.x.shape == shape
    x = data.x[:]
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    assert x.min() == -1
    assert x.max() == 1
    assert data.num_classes == num_classes
    if data.y is None:
        assert num_classes == 0
    else:
        assert data.y.dtype == np.int32
        assert data.y.shape == shape[:1]
        assert set(data.y) == set(range(num_classes))


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def png(rgba: np.ndarray) -> bytes:
    image = pytest.importorskip("PIL.Image")
    stream = io.BytesIO()
    image.fromarray(rgba).save(stream, format="PNG")
    return stream.getvalue()


def tarball(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, raw in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return stream.getvalue()


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty current folder, and a cache folder that does not exist."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOMENTAX_DATA", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def trusting(monkeypatch):
    """Any checksum passes."""
    monkeypatch.setattr(_data, "verified", lambda raw, sha256, path: raw)


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    data = load("digits")
    check(data, (1797, 1, 8, 8), 10)
    np.testing.assert_array_equal((data.x[:][:, 0] + 1) * 8, load_digits(return_X_y=True)[0].reshape(-1, 8, 8))
    assert "BSD" in data.source


def test_a_missing_package_names_the_extra(monkeypatch):
    def absent(name, *rest, **kwargs):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ModuleNotFoundError, match=r'run `pip install "\.\[recipes\]"` in a clone'):
        load("digits")


def test_importing_the_data_imports_no_optional_package():
    code = "import sys, momentax.recipes._data; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"sklearn", "PIL", "matplotlib"} & set(modules)


@pytest.mark.parametrize(("split", "n"), [("train", 60_000), ("test", 10_000)])
@pytest.mark.skipif(not FASHION.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_debians(split, n):
    data = load("fashion-mnist", split=split)
    check(data, (n, 1, 28, 28), 10)
    assert data.y is not None
    np.testing.assert_array_equal(np.bincount(data.y), n // 10)
    assert f"{split} split" in data.source


def test_fashion_mnist_is_found_in_the_current_folder(here, monkeypatch):
    images, labels = rng.integers(0, 256, (3, 28, 28)), np.array([9, 0, 4])
    hashes = {}
    for name, array in [("t10k-images-idx3-ubyte.gz", images), ("t10k-labels-idx1-ubyte.gz", labels)]:
        (here / name).write_bytes(gzip.compress(idx(array)))
        hashes[name] = hashlib.sha256(idx(array)).hexdigest()
    monkeypatch.setattr(_data, "_FASHION_MNIST", hashes)
    monkeypatch.setattr(_data, "_DEBIAN", here / "nowhere")
    data = load("fashion-mnist", split="test")
    np.testing.assert_allclose(data.x[:][:, 0], images / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(data.y, labels)


@pytest.mark.parametrize("name", ["fashion-mnist", "icons", "emoji"])
def test_archives_of_other_contents_are_refused(name, here, monkeypatch):
    monkeypatch.setattr(_data, "_DEBIAN", here / "nowhere")
    for file in [*_data._FASHION_MNIST, "fugue-icons-3.5.6.tar.gz", "emoji-datasource-google-16.0.0.tgz"]:
        (here / file).write_bytes(gzip.compress(idx(np.zeros((2, 2)))))
    with pytest.raises(ValueError, match="sha256"):
        load(name)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("icons", "pip download --no-deps --no-binary :all: fugue-icons==3.5.6 -d {}"),
        ("emoji", "mkdir -p {0} && npm pack emoji-datasource-google@16.0.0 --pack-destination {0}"),
        (
            "fashion-mnist",
            "put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz,"
            " t10k-labels-idx1-ubyte.gz in one of these, or: apt-get install dataset-fashion-mnist",
        ),
    ],
)
def test_a_missing_archive_comes_with_the_command_that_fetches_it(name, command, here, monkeypatch):
    monkeypatch.setattr(_data, "_DEBIAN", here / "nowhere")
    with pytest.raises(FileNotFoundError) as error:
        load(name)
    assert str(error.value).endswith(f"; do: {command.format(here / 'cache')}")
    monkeypatch.delenv("MOMENTAX_DATA")
    monkeypatch.setenv("HOME", str(here))
    with pytest.raises(FileNotFoundError) as error:
        load(name)
    assert str(error.value).endswith(f"; do: {command.format('~/.cache/momentax')}")


def test_files_are_found_in_the_cache_folder(here):
    (here / "cache").mkdir()
    (here / "cache" / "a").touch()
    assert _data._found("a", "") == here / "cache" / "a"
    (here / "a").touch()
    assert _data._found("a", "") == here / "a"
    (here / "system").mkdir()
    (here / "system" / "a").touch()
    assert _data._found("a", "", here / "system") == here / "system" / "a"


def test_icons_are_cut_from_their_sheet_by_name(here, trusting):
    sheet = rng.integers(0, 256, (48, 32, 4), np.uint8)
    sheet[..., 3] = 255
    stem = "fugue-icons-3.5.6/fugue_icons/static/fugue-icons"
    corners = {"zebra": [16, 32], "ant": [0, 16]}
    files = {f"{stem}.json": json.dumps(corners).encode(), f"{stem}.png": png(sheet), "other": b""}
    (here / "fugue-icons-3.5.6.tar.gz").write_bytes(tarball(files))
    data = load("icons")
    expected = np.stack([sheet[16:32, :16, :3], sheet[32:, 16:, :3]]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose((data.x[:] + 1) * 127.5, expected, atol=1e-4)
    assert data.y is None
    assert data.num_classes == 0


def test_emoji_and_their_skin_tones_share_a_category(here, trusting):
    colours = {"a.png": 0, "b.png": 100, "b-dark.png": 50, "c.png": 200}
    catalogue = [
        {"image": "a.png", "category": "Objects"},
        {"image": "b.png", "category": "Body", "skin_variations": {"1F3FF": {"image": "b-dark.png"}}},
        {"image": "c.png", "category": "Objects"},
    ]
    files = {"package/emoji.json": json.dumps(catalogue).encode()}
    for name, grey in colours.items():
        pixels = np.full((64, 64, 4), grey, np.uint8)
        pixels[..., 3] = 255
        files[f"package/img/google/64/{name}"] = png(pixels)
    (here / "emoji-datasource-google-16.0.0.tgz").write_bytes(tarball(files))
    data = load("emoji")
    assert data.x.shape == (4, 3, 32, 32)
    np.testing.assert_allclose((data.x[:][:, 0, 0, 0] + 1) * 127.5, [0, 100, 50, 200], atol=1e-4)
    np.testing.assert_array_equal(data.y, [1, 0, 0, 1])
    assert data.num_classes == 2


@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "shape", "num_classes"), [("icons", (3570, 3, 16, 16), 0), ("emoji", (3786, 3, 32, 32), 10)]
)
def test_the_command_of_the_error_fetches_what_loads(name, shape, num_classes, here):
    with pytest.raises(FileNotFoundError) as error:
        load(name)
    command = str(error.value).partition("; do: ")[2]
    subprocess.run(command, shell=True, check=True, capture_output=True)
    check(load(name), shape, num_classes)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_npz_files_round_trip(dtype, tmp_path):
    byte = rng.integers(0, 256, (5, 4, 3, 2), np.uint8)
    byte[0, 0, 0] = 0, 255
    x = byte if dtype == np.uint8 else (byte / 127.5 - 1).astype(dtype)
    np.savez(tmp_path / "mine.npz", x=x, y=np.array([0, 2, 1, 2, 0], np.uint8))
    data = load(str(tmp_path / "mine.npz"))
    check(data, (5, 2, 4, 3), 3)
    atol = 1e-3 if dtype == np.float16 else 1e-6
    np.testing.assert_allclose(data.x[:].transpose(0, 2, 3, 1), byte / 127.5 - 1, atol=atol)
    assert data.name == "mine"


def test_labels_are_optional(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 3, 3, 1), np.uint8))
    data = load(str(tmp_path / "a.npz"))
    assert data.y is None
    assert data.num_classes == 0


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 3, 3, 1), np.uint8))
    assert load("~/a.npz").x.shape == (2, 1, 3, 3)


X = np.zeros((3, 4, 4, 1), np.uint8)
F = np.linspace(-1, 1, 48).reshape(3, 4, 4, 1)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": X}, r"needs arrays named x and, optionally, y; got \['images'\]"),
        ({"x": X, "labels": np.arange(3)}, r"got \['labels', 'x'\]"),
        ({"x": X[..., 0]}, r"needs x of shape \[n, h, w, c\] with 1 to 4 channels; got \(3, 4, 4\)"),
        ({"x": X[:0]}, r"got \(0, 4, 4, 1\).*; store some images"),
        ({"x": np.zeros((3, 64), np.uint8)}, r"got \(3, 64\).*; write x.reshape\(n, h, w, c\)"),
        ({"x": np.zeros((3, 5, 8, 8), np.uint8)}, r"got \(3, 5, 8, 8\).*; write x.reshape\(n, h, w, c\)"),
        ({"x": np.zeros((3, 1, 8, 8), np.uint8)}, r"got \(3, 1, 8, 8\).*moveaxis"),
        ({"x": np.zeros((3, 3, 8, 4), np.uint8)}, r"got \(3, 3, 8, 4\).*moveaxis"),
        ({"x": np.zeros((3, 3, 4, 4), np.uint8)}, r"got \(3, 3, 4, 4\).*moveaxis"),
        ({"x": np.zeros((3, 1, 3, 3), np.uint8)}, r"got \(3, 1, 3, 3\).*moveaxis"),
        ({"x": np.zeros((3, 4, 9, 4), np.uint8)}, r"got \(3, 4, 9, 4\).*moveaxis"),
        ({"x": X.astype(str)}, "needs x of uint8 or floats; got <U.*; store bytes"),
        ({"x": X.astype(complex)}, "needs x of uint8 or floats; got complex128.*; store bytes"),
        ({"x": X.astype(np.int64)}, "got int64 from 0 to 0 .*; store images that are not all black"),
        ({"x": np.where(F > 0.9, np.inf, F)}, "got -1.0 to inf"),
        ({"x": X, "y": np.arange(4)}, r"needs y of shape \[3\], .*; got \(4,\).*; store one label for each image"),
        ({"x": X, "y": np.full((3, 2), 0.5)}, r"got \(3, 2\).*; store one label for each image"),
        ({"x": X, "y": np.array([0.0, 0.5, 1.0])}, "needs y of integers; got float64.*; store the number"),
        ({"x": X, "y": np.array([0.0, np.nan, 1.0])}, "needs y of integers; got float64.*; store the number"),
        ({"x": np.array([object()])}, "needs an NPZ file of plain arrays"),
    ],
)
def test_npz_files_of_other_contents_are_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        load(str(tmp_path / "a.npz"))
    assert re.search(r"; (write|store) ", str(error.value))
    assert "a.npz" in str(error.value)


PICTURE = rng.integers(0, 256, (6, 8, 7, 3)).astype(np.uint8)
PICTURE[0, 0, 0] = 0, 128, 255
SIGNED = PICTURE / 127.5 - 1
TWO = 255 * (PICTURE > 99).astype(np.uint8)
TWELVE = np.round(PICTURE / 255 * 4095)


def followed(advice: str, **arrays: np.ndarray) -> np.ndarray:
    """What the advice in an error or a note says to write."""
    expression = re.split(r", (?:if|which|or|the) ", re.split(r"(?:; |, )write ", advice)[-1])[0]
    return eval(expression, {"numpy": np, **arrays})


MISTAKEN = {
    "uint16 of 12 bits": (TWELVE.astype(np.uint16), PICTURE),
    "uint16 of 16 bits": (PICTURE.astype(np.uint16) * 257, PICTURE),
    "int16 of 12 bits": (TWELVE.astype(np.int16), PICTURE),
    "int64 bytes": (PICTURE.astype(np.int64), PICTURE),
    "int64 of 0 and 1": (TWO.astype(np.int64) // 255, TWO),
    "int32 of 0..15": (np.round(PICTURE / 17).astype(np.int32), np.round(PICTURE / 17) * 17),
    "signed bytes": ((PICTURE.astype(int) - 128).astype(np.int8), PICTURE),
    "bools": (TWO > 0, TWO),
    "bytes of 0 and 1": (TWO // 255, TWO),
    "floats in [0, 1]": (PICTURE / 255, PICTURE),
    "floats in [0, 1] that overshoot": (PICTURE / 255 * 1.02 - 0.0, np.clip(PICTURE * 1.02, 0, 255)),
    "floats in [0, 255]": (PICTURE.astype(np.float32), PICTURE),
    "floats in [0, 16]": (PICTURE / 255 * 16, PICTURE),
    "floats of 12 bits": (TWELVE, PICTURE),
    "floats in [-1, 1] that overshoot": (
        (PICTURE / 127.5 - 1) * 1.05,
        np.clip((PICTURE - 127.5) * 1.05 + 127.5, 0, 255),
    ),
    "floats of mean zero and variance one": ((PICTURE - PICTURE.mean()) / PICTURE.std(), PICTURE),
    "grey without a channel": (PICTURE[..., 0], PICTURE[..., :1]),
    "channels first": (np.moveaxis(PICTURE, -1, 1), PICTURE),
    "channels first of four columns": (np.moveaxis(PICTURE[:, :, :4], -1, 1), PICTURE[:, :, :4]),
    "channels first of three columns": (np.moveaxis(PICTURE[:, :, :3], -1, 1), PICTURE[:, :, :3]),
}


@pytest.mark.parametrize("name", MISTAKEN)
def test_what_an_error_says_to_write_is_the_picture(name, tmp_path):
    """To half a byte of rounding."""
    x, picture = MISTAKEN[name]
    np.savez(tmp_path / "a.npz", x=x)
    with pytest.raises(ValueError, match=r"^needs .+; got .+; write ") as error:
        load(str(tmp_path / "a.npz"))
    np.savez(tmp_path / "a.npz", x=followed(str(error.value), x=x))
    found = load(str(tmp_path / "a.npz")).x[:].transpose(0, 2, 3, 1)
    np.testing.assert_allclose((found + 1) * 127.5, picture, atol=0.51)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_images_that_are_damaged_are_left_out_by_what_the_error_says(bad, tmp_path):
    x = PICTURE / 127.5 - 1
    x[2, 3, 4, 1] = bad
    np.savez(tmp_path / "a.npz", x=x)
    with pytest.raises(ValueError, match="needs finite floats in") as error:
        load(str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(followed(str(error.value), x=x), np.delete(x, 2, axis=0))


@pytest.mark.parametrize(
    ("x", "picture"),
    [
        (np.round(PICTURE / 17).astype(np.uint8), np.round(PICTURE / 17) * 17),
        (PICTURE / 255 - 0.5, PICTURE),
    ],
    ids=["bytes of 0..15", "floats in [-0.5, 0.5]"],
)
def test_what_is_far_too_dark_or_pale_is_taken_and_told_with_what_mends_it(x, picture, tmp_path, capsys):
    np.savez(tmp_path / "a.npz", x=x)
    load(str(tmp_path / "a.npz"))
    note = capsys.readouterr().out.strip()
    assert note.startswith("note: ")
    np.savez(tmp_path / "a.npz", x=followed(note, x=x))
    found = load(str(tmp_path / "a.npz")).x[:].transpose(0, 2, 3, 1)
    assert capsys.readouterr().out == ""
    np.testing.assert_allclose((found + 1) * 127.5, picture, atol=0.51)


@pytest.mark.parametrize(
    "y",
    [
        np.array([[2], [0], [1]]),
        np.eye(3, dtype=int)[[2, 0, 1]],
        np.eye(3)[[2, 0, 1]],
        np.array([2.0, 0.0, 1.0]),
        np.array(["c", "a", "b"]),
        np.array([10**6, 0, 999]),
        np.array([1, -1, 0]),
        np.arange(3)[[2, 0, 1]] * 2**40,
    ],
    ids=["column", "one hot", "one hot floats", "floats", "names", "gaps", "negative", "huge"],
)
def test_what_an_error_says_to_write_are_the_labels(y, tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=y)
    with pytest.raises(ValueError, match=r"^needs (y|labels) .+; got .+; write ") as error:
        load(str(tmp_path / "a.npz"))
    np.savez(tmp_path / "a.npz", x=X, y=followed(str(error.value), y=y))
    np.testing.assert_array_equal(load(str(tmp_path / "a.npz")).y, [2, 0, 1])


def test_labels_with_gaps_keep_their_numbers_which_may_be_a_teachers_and_are_told(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", x=X + 255, y=[7, 2, 7])
    data = load(str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(data.y, [7, 2, 7])
    assert data.num_classes == 8
    assert "has 2 of 8 classes, 0 to 7" in capsys.readouterr().out


def test_images_that_came_as_bytes_are_scaled_as_they_are_taken():
    """The very numbers that all of them at once have, so that what is recorded of them stays."""
    pixels, whole = Pixels(PICTURE), (np.moveaxis(PICTURE, -1, 1).astype(np.float32) / np.float32(127.5)) - 1
    assert pixels.shape == whole.shape
    assert len(pixels) == len(whole)
    for rows in (slice(None), slice(1, 5, 2), np.array([3, 3, 0]), 2):
        np.testing.assert_array_equal(pixels[rows], whole[rows])
        assert pixels[rows].dtype == np.float32


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("x", [PICTURE, PICTURE / 127.5 - 1], ids=["bytes", "floats"])
def test_the_checksum_of_data_is_that_of_all_its_numbers(x, labelled, tmp_path, monkeypatch):
    """Of float32 images, channels first, and then int32 labels, whatever pieces it is taken in."""
    labels: Any = {"y": np.arange(6)} if labelled else {}
    np.savez(tmp_path / "a.npz", x=x, **labels)
    whole = np.moveaxis(x, -1, 1).astype(np.float32, order="C")
    whole = whole / np.float32(127.5) - 1 if x.dtype == np.uint8 else whole
    raw = whole.tobytes() + (np.arange(6, dtype=np.int32).tobytes() if labelled else b"")
    data = load(str(tmp_path / "a.npz"))
    assert identity(data)["sha256"] == hashlib.sha256(raw).hexdigest()
    monkeypatch.setattr(_teacher, "_PIECE", 300)
    assert identity(data)["sha256"] == hashlib.sha256(raw).hexdigest()


LOADED = """
import sys, tracemalloc
from momentax.recipes._data import load
from momentax.recipes._teacher import identity
from momentax.recipes._batches import batches
import numpy, sklearn
tracemalloc.start()
data = load(sys.argv[1])
identity(data)
next(batches(data, 16, 0, hidden=0.0))
print(tracemalloc.get_traced_memory()[1])
"""


@pytest.mark.parametrize("kind", ["bytes", "floats"])
def test_data_take_their_own_size_in_memory_when_they_are_loaded(kind, tmp_path):
    """The array, once; besides some megabytes at a time: the piece that is hashed, as bytes and twice as floats."""
    x = rng.integers(0, 256, (20_000, 32, 32, 1), np.uint8)
    x = x if kind == "bytes" else (x[:5000] / 127.5 - 1).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=x, y=np.zeros(len(x), np.int32))
    peak = subprocess.run(
        [sys.executable, "-c", LOADED, str(tmp_path / "a.npz")], capture_output=True, text=True, check=True
    )
    pieces = 4 * 2**20 * (1 / 4 + 1 + 1)
    assert x.nbytes <= int(peak.stdout) <= x.nbytes + pieces + 2**21


def test_a_missing_npz_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"needs an NPZ file; got no file at .*none\.npz; check"):
        load(str(tmp_path / "none.npz"))


def test_an_unknown_name_lists_the_known_ones():
    message = r"needs one of digits, emoji, fashion-mnist, icons, or a PATH\.npz; got 'mnist'"
    with pytest.raises(ValueError, match=message):
        load("mnist")


@pytest.mark.parametrize(("split", "message"), [("test", "needs data with a test split"), ("t10k", "needs a split")])
def test_unknown_splits_are_refused(split, message):
    with pytest.raises(ValueError, match=message):
        load("digits", split=split)


def test_a_data_set_is_immutable():
    with pytest.raises(AttributeError):
        load("digits").name = "other"  # pyright: ignore[reportAttributeAccessIssue]
