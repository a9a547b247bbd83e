"""The user's own file: images and labels as they are, or what is wrong with them and what mends it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Shaped

from ._formats import channels_first, read_npz
from ._pixels import Pixels

Images = Float32[np.ndarray, "n c h w"] | Pixels


class Own(NamedTuple):
    """What a file holds, and what is to be told of it."""

    x: Images
    y: Int32[np.ndarray, "n"] | None
    notes: list[str]


def read_own(path: Path) -> Own:
    """Images in [-1, 1] and their labels, of an NPZ file.

    Raises:
        ValueError: with what mends it, for what cannot be images or labels.
    """
    arrays = read_npz(path)
    if not {"x"} <= set(arrays) <= {"x", "y"}:
        raise ValueError(
            f"needs arrays named x and, optionally, y; got {sorted(arrays)} in {path}; "
            "write it with numpy.savez(path, x=x, y=y)"
        )
    x = arrays.pop("x")
    _check_shape(x, path)
    images, notes = _bytes(x, path) if x.dtype == np.uint8 else _floats(x, path)
    if "y" not in arrays:
        return Own(images, None, notes)
    y = _labels(arrays["y"], len(x), path)
    return Own(images, y, notes + _gaps(y, path))


def _check_shape(x: Shaped[np.ndarray, "..."], path: Path) -> None:
    if x.size == 0:
        mended = "store some images"
    elif x.ndim == 3:
        mended = "write x[..., None], which adds the channel of grey images"
    elif x.ndim == 4 and (x.shape[-1] > 4 >= x.shape[1] or _seems_channels_first(x.shape)):
        mended = "write numpy.moveaxis(x, 1, -1), which moves the channels last"
    elif x.ndim == 4 and x.shape[-1] <= 4:
        return
    else:
        mended = "write x.reshape(n, h, w, c) with the sizes that the images have"
    raise ValueError(f"needs x of shape [n, h, w, c] with 1 to 4 channels; got {tuple(x.shape)} in {path}; {mended}")


def _seems_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether images of 3 or 4 columns would else be 1, 3 or 4 rows high, and less high than wide."""
    _, channels, h, w = shape
    return channels in (1, 3, 4) and w in (3, 4) and h > channels


def _bytes(x: Shaped[np.ndarray, "n h w c"], path: Path) -> tuple[Pixels, list[str]]:
    high = int(x.max())
    if high == 1:
        raise ValueError(
            f"needs bytes from 0, black, to 255, white; got none above 1 in {path}; write 255 * x, if 1 is white"
        )
    dark = f"the brightest byte of x in {path} is {high}, where 255 is white"
    mended = f"; if {high} is white, write {_stretched(0, high)}" if high else ""
    return Pixels(x), [dark + mended] if high <= 127 else []


def _floats(x: Shaped[np.ndarray, "n h w c"], path: Path) -> tuple[Float32[np.ndarray, "n c h w"], list[str]]:
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"needs x of uint8 or floats; got {x.dtype}{_span(x)} in {path}; {_integers_mended(x)}")
    low, high = float(x.min()), float(x.max())
    if not (-1 <= low < 0 and high <= 1):
        raise ValueError(
            f"needs finite floats in [-1, 1], some of them negative; got {low} to {high} in {path}; "
            f"{_floats_mended(low, high)}"
        )
    pale = f"x in {path} runs from {low:.3g} to {high:.3g}, where -1 is black and 1 is white"
    mended = f"; if these are black and white, write numpy.interp(x, ({low}, {high}), (-1, 1))"
    return channels_first(x), [pale + mended] if high - low <= 1 and high > low else []


def _span(x: Shaped[np.ndarray, "..."]) -> str:
    return f" from {x.min()} to {x.max()}" if np.issubdtype(x.dtype, np.integer) else ""


def _integers_mended(x: Shaped[np.ndarray, "..."]) -> str:
    """By what makes the same pictures of bytes: a cast alone would wrap what is above 255."""
    if x.dtype == np.bool_:
        return "write 255 * x.astype(numpy.uint8)"
    if not np.issubdtype(x.dtype, np.integer):
        return "store bytes from 0, black, to 255, white"
    low, high = min(int(x.min()), 0), int(x.max())
    if low == 0 and 127 < high <= 255:
        return "write x.astype(numpy.uint8), if 255 is white"
    if high <= low:
        return "store images that are not all black"
    return f"write {_stretched(low, high)}, if {high} is white, or with the number that is"


def _stretched(low: int, high: int) -> str:
    return f"numpy.interp(x, ({low}, {high}), (0, 255)).round().astype(numpy.uint8)"


def _floats_mended(low: float, high: float) -> str:
    if not np.isfinite([low, high]).all():
        return "write x[numpy.isfinite(x).all((1, 2, 3))], which leaves the damaged images out, and as much of y"
    if low >= 0:
        return _positive_mended(high)
    if max(-low, high) <= 1.1:
        return "write x.clip(-1, 1)"
    return f"write numpy.interp(x, ({low}, {high}), (-1, 1))"


def _positive_mended(high: float) -> str:
    if high <= 1.1:
        return "write 2 * x.clip(0, 1) - 1, if 1 is white"
    if 127 < high <= 255:
        return "write x / 127.5 - 1, if 255 is white"
    return f"write numpy.interp(x, (0, {high}), (-1, 1)), if {high} is white, or with the number that is"


def _labels(y: Shaped[np.ndarray, "..."], n: int, path: Path) -> Int32[np.ndarray, "n"]:
    if y.shape != (n,):
        raise ValueError(
            f"needs y of shape [{n}], one label for each image; got {tuple(y.shape)} in {path}; {_shape_mended(y, n)}"
        )
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"needs y of integers; got {y.dtype} in {path}; {_dtype_mended(y)}")
    if y.min() < 0 or y.max() >= max(100_000, n):
        raise ValueError(
            f"needs labels 0 .. classes - 1; got {y.min()} to {y.max()}, {len(np.unique(y))} of them, in {path}; write"
            " numpy.unique(y, return_inverse=True)[1], or the numbers that a given --teacher has for these classes"
        )
    return y.astype(np.int32)


def _shape_mended(y: Shaped[np.ndarray, "..."], n: int) -> str:
    if y.size == n:
        return "write y.reshape(-1)"
    if y.ndim == 2 and len(y) == n and np.isin(y, (0, 1)).all() and (y.sum(1) == 1).all():
        return "write y.argmax(1), the labels of what is one-hot"
    return "store one label for each image, or leave y out"


def _dtype_mended(y: Shaped[np.ndarray, "n"]) -> str:
    if y.dtype == np.bool_ or (np.issubdtype(y.dtype, np.floating) and np.isfinite(y).all() and (y == y.round()).all()):
        return "write y.astype(numpy.int32)"
    if np.issubdtype(y.dtype, np.character):
        return "write numpy.unique(y, return_inverse=True)[1]"
    return "store the number of each image's class, or leave y out"


def _gaps(y: Int32[np.ndarray, "n"], path: Path) -> list[str]:
    found, classes = len(np.unique(y)), int(y.max()) + 1
    return [f"y in {path} has {found} of {classes} classes, 0 to {classes - 1}"] if found < classes else []
