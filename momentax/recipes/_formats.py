"""Bytes into arrays: compressed IDX, PNG, tarballs and NPZ, each checked before it is believed."""

import gzip
import hashlib
import io
import math
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Real, UInt8

from .._extra import required


def require(module: str) -> Any:
    """The module of that name, or an error that says how to install it."""
    return required(module, "recipes")


def verified(raw: bytes, sha256: str, path: Path) -> bytes:
    """`raw` itself, if its SHA-256 is the expected one."""
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256:
        raise ValueError(f"needs contents of {path} with sha256 {sha256}; got {found}; do delete it and fetch it again")
    return raw


def gunzip(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"needs a whole gzip file; got {path}, which fails with '{error}'; do fetch it again"
        ) from error


def read_idx(raw: bytes, path: Path) -> UInt8[np.ndarray, "..."]:
    """The array of an IDX file of bytes: 0, 0, 8, the rank, big-endian sizes, then the entries in C order."""
    rank = raw[3] if raw[:3] == b"\x00\x00\x08" and len(raw) > 3 else 0
    head = 4 + 4 * rank
    if rank == 0 or len(raw) < head:
        raise ValueError(f"needs an IDX file of bytes; got {path}, which starts with {raw[:4]!r}; do fetch it again")
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", count=rank, offset=4))
    if len(raw) - head != math.prod(shape):
        raise ValueError(f"needs the bytes of shape {shape}; got {len(raw) - head} in {path}; do fetch it again")
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)


def read_png(raw: bytes) -> UInt8[np.ndarray, "h w 4"]:
    """The red, green, blue and (straight) alpha of a PNG, whatever its own mode is."""
    with require("PIL.Image").open(io.BytesIO(raw), formats=("PNG",)) as image:
        return np.array(image.convert("RGBA"))


def on_white(rgba: UInt8[np.ndarray, "*n h w 4"]) -> Float32[np.ndarray, "*n h w 3"]:
    r"""The picture laid on white paper, $255 - a (255 - c)$, which rounding never takes out of 0..255."""
    opacity = rgba[..., 3:].astype(np.float32) / 255
    return 255 - opacity * (255 - rgba[..., :3].astype(np.float32))


def box_halved(x: Float32[np.ndarray, "n h w c"]) -> Float32[np.ndarray, "n h//2 w//2 c"]:
    """Each two by two square's mean: a BOX filter at half the size."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))


def read_tar(raw: bytes, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The wanted regular files of a compressed tarball by name, in one pass and without touching the disk."""
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r:gz") as tar:
        return {
            member.name: stream.read()
            for member in tar
            if wanted(member.name) and (stream := tar.extractfile(member)) is not None
        }


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Every array of an NPZ file by name; objects, which could run code, are refused."""
    if not path.is_file():
        raise FileNotFoundError(f"needs an NPZ file; got no file at {path}; check the path")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except (EOFError, OSError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"needs an NPZ file of plain arrays; got {path}, which fails with '{error}'; "
            "write it with numpy.savez(path, x=x, y=y)"
        ) from error


def scaled(x: Real[np.ndarray, "*n h w c"], white: int = 255) -> Float32[np.ndarray, "*n c h w"]:
    """Black (0) to -1 and white to 1."""
    y = np.moveaxis(x, -1, -3).astype(np.float32, order="C")
    y /= white / 2
    y -= 1
    return y


def channels_first(x: Real[np.ndarray, "n h w c"]) -> Float32[np.ndarray, "n c h w"]:
    """In float32; the array itself, seen otherwise, where it is one channel of that already."""
    return np.moveaxis(x, -1, 1).astype(np.float32, order="C", copy=False)
