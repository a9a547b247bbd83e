import gzip
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest

from momentax.recipes._formats import box_halved, gunzip, on_white, read_idx, read_npz, verified

rng = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize("shape", [(5,), (3, 4, 2), (0, 7)])
def test_idx_files_round_trip(shape):
    array = rng.integers(0, 256, shape)
    np.testing.assert_array_equal(read_idx(idx(array), Path("a")), array)


def test_idx_sizes_are_big_endian():
    raw = bytes([0, 0, 8, 1, 0, 0, 1, 2]) + bytes(258)
    assert read_idx(raw, Path("a")).shape == (258,)


@pytest.mark.parametrize("raw", [b"", b"\0\0\x08", b"\0\0\x08\x02\0\0\0\x01", b"\0\0\x0d\x01\0\0\0\0", b"PNG.."])
def test_what_is_not_idx_is_refused(raw):
    with pytest.raises(ValueError, match="needs an IDX file of bytes; got a, "):
        read_idx(raw, Path("a"))


@pytest.mark.parametrize("change", [lambda raw: raw[:-1], lambda raw: raw + b"\0"])
def test_an_idx_file_of_another_length_is_refused(change):
    with pytest.raises(ValueError, match=r"needs the bytes of shape \(3, 4\); got 1[13] in a; do"):
        read_idx(change(idx(np.zeros((3, 4)))), Path("a"))


def test_the_right_bytes_are_verified_and_wrong_ones_refused():
    sha256 = hashlib.sha256(b"right").hexdigest()
    assert verified(b"right", sha256, Path("a")) == b"right"
    with pytest.raises(ValueError, match=f"needs contents of a with sha256 {sha256}; got .*; do delete it"):
        verified(b"wrong", sha256, Path("a"))


@pytest.mark.parametrize("raw", [b"plain", gzip.compress(bytes(99), mtime=0)[:-9]], ids=["plain", "cut"])
def test_a_broken_gzip_file_is_refused(raw, tmp_path):
    (tmp_path / "a.gz").write_bytes(raw)
    with pytest.raises(ValueError, match=r"needs a whole gzip file; got .*a\.gz.*; do fetch it again"):
        gunzip(tmp_path / "a.gz")


def test_clear_pixels_are_white_and_opaque_ones_keep_their_colour():
    rgba = rng.integers(0, 256, (2, 3, 3, 4), np.uint8)
    rgba[0, ..., 3], rgba[1, ..., 3] = 0, 255
    white = on_white(rgba)
    np.testing.assert_array_equal(white[0], 255)
    np.testing.assert_array_equal(white[1], rgba[1, ..., :3])


def test_compositing_agrees_with_pillow():
    """Pillow rounds to a byte, so it may differ by one."""
    image = pytest.importorskip("PIL.Image")
    rgba = rng.integers(0, 256, (16, 16, 4), np.uint8)
    paper = image.new("RGBA", (16, 16), "white")
    paper.alpha_composite(image.fromarray(rgba))
    np.testing.assert_allclose(on_white(rgba), np.array(paper)[..., :3], atol=1)


def test_halving_agrees_with_pillows_box_filter():
    image = pytest.importorskip("PIL.Image")
    x = rng.uniform(0, 255, (3, 8, 6, 1)).astype(np.float32)
    box = np.stack([np.array(image.fromarray(one[..., 0]).resize((3, 4), image.Resampling.BOX)) for one in x])
    np.testing.assert_allclose(box_halved(x)[..., 0], box, rtol=1e-6)


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    return stream.getvalue()


def halved() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, x=np.zeros(3))
    return stream.getvalue()[:100]


@pytest.mark.parametrize("raw", [b"", b"text", npy(), halved()], ids=["empty", "text", "npy", "halved"])
def test_broken_npz_files_are_refused(raw, tmp_path):
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(ValueError, match=r"needs an NPZ file of plain arrays; got .*; write it"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("place", [60, 90, 140])
def test_a_flipped_bit_in_an_npz_file_is_noticed(place, tmp_path):
    np.savez(tmp_path / "a.npz", x=rng.integers(0, 256, (30, 4, 4, 1), np.uint8))
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    raw[place + 100] ^= 1
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(ValueError, match="needs an NPZ file of plain arrays"):
        read_npz(tmp_path / "a.npz")
