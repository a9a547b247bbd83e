"""The recipes' data sets, read from what is installed, what was fetched, or the user's own file."""

import dataclasses
import json
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from ._formats import box_halved, gunzip, on_white, read_idx, read_png, read_tar, require, scaled, verified
from ._own import read_own
from ._pixels import Pixels


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images in [-1, 1], channels first, and what class each is of.

    Labels run from 0 to `num_classes - 1`; without labels `y` is None and there are 0 classes. `source` names
    the package the images come from and their licence. Images that came as bytes stay bytes, and are scaled when some
    of them are taken, `x[rows]`.
    """

    name: str
    x: Float32[np.ndarray, "n c h w"] | Pixels
    y: Int32[np.ndarray, "n"] | None
    num_classes: int
    source: str


def load(name_or_path: str, *, split: str = "train") -> Dataset:
    """The data set `digits`, `icons`, `fashion-mnist` or `emoji`, or the one in the user's own PATH.npz.

    An NPZ file holds `x` of shape [n, h, w, c] with 1 to 4 channels, and optionally `y`, integer labels of
    shape [n] from 0 on. Bytes run from 0, black, to 255, white. Floats are in [-1, 1]; if none is negative
    they are refused as [0, 1] by mistake. What looks otherwise than images is refused with what mends it, or told.

    The archives of `icons` and `emoji` are looked for in the current folder and in `$MOMENTAX_DATA` (or
    `~/.cache/momentax`); the error of a missing one says how to fetch it. Only `fashion-mnist` has a "test"
    split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"needs a split 'train' or 'test'; got {split!r}; do pass one of them")
    if name_or_path == "fashion-mnist":
        return _fashion_mnist(split)
    if split == "test":
        raise ValueError(
            f"needs data with a test split (fashion-mnist); got {name_or_path!r}; do hold out a part of it"
        )
    if name_or_path.endswith(".npz"):
        return _npz(Path(name_or_path).expanduser())
    if name_or_path not in _BY_NAME:
        names = ", ".join(sorted([*_BY_NAME, "fashion-mnist"]))
        raise ValueError(f"needs one of {names}, or a PATH.npz; got {name_or_path!r}; do pass one of these")
    return _BY_NAME[name_or_path]()


def test_split(name_or_path: str) -> Dataset | None:
    """The images that a data set holds back; None where it has no split of its own."""
    return load(name_or_path, split="test") if name_or_path == "fashion-mnist" else None


def fetched(name: str, command: str, sha256: str) -> bytes:
    """The contents of a package's archive, found where the data are and checked.

    Raises:
        FileNotFoundError: where there is none, with the command that fetches it into `{folder}`.
    """
    path = _found(name, command)
    return verified(path.read_bytes(), sha256, path)


def _digits() -> Dataset:
    images, labels = require("sklearn.datasets").load_digits(return_X_y=True)
    x = scaled(images.reshape(-1, 8, 8, 1), white=16)
    return Dataset("digits", x, labels.astype(np.int32), 10, "scikit-learn's load_digits, BSD-3-Clause")


def _icons() -> Dataset:
    sha256 = "5bb672fba02eef84d318590bd94ccb8c89d533a51e5de4975c7d1664bce00fa5"
    command = "pip download --no-deps --no-binary :all: fugue-icons==3.5.6 -d {folder}"
    stem = "fugue-icons-3.5.6/fugue_icons/static/fugue-icons"
    files = read_tar(fetched("fugue-icons-3.5.6.tar.gz", command, sha256), lambda name: name.startswith(stem))
    x = _tiles(read_png(files[f"{stem}.png"]), json.loads(files[f"{stem}.json"]))
    return Dataset("icons", scaled(on_white(x)), None, 0, "fugue-icons 3.5.6 by Yusuke Kamiyamane, CC-BY-3.0")


def _tiles(sheet: UInt8[np.ndarray, "h w 4"], corners: dict[str, list[int]]) -> UInt8[np.ndarray, "n 16 16 4"]:
    """The icons of a sheet by their names' order; a corner is (column, row) of the upper left pixel."""
    return np.stack([sheet[row : row + 16, column : column + 16] for _, (column, row) in sorted(corners.items())])


def _emoji() -> Dataset:
    sha256 = "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
    command = "mkdir -p {folder} && npm pack emoji-datasource-google@16.0.0 --pack-destination {folder}"
    folder = "package/img/google/64/"
    raw = fetched("emoji-datasource-google-16.0.0.tgz", command, sha256)
    files = read_tar(raw, lambda name: name == "package/emoji.json" or name.startswith(folder))
    images, labels, categories = _catalogue(json.loads(files["package/emoji.json"]))
    x = box_halved(on_white(np.stack([read_png(files[folder + image]) for image in images])))
    source = "emoji-datasource-google 16.0.0 (npm), Noto Emoji, Apache-2.0"
    return Dataset("emoji", scaled(x), np.array(labels, np.int32), len(categories), source)


def _catalogue(entries: Sequence[dict]) -> tuple[list[str], list[int], list[str]]:
    """The file of every emoji and of its skin tones, each one's category, and the categories by name."""
    categories = sorted({entry["category"] for entry in entries})
    images, labels = [], []
    for entry in entries:
        shown = [entry, *entry.get("skin_variations", {}).values()]
        images += [one["image"] for one in shown]
        labels += [categories.index(entry["category"])] * len(shown)
    return images, labels, categories


_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_FASHION_MNIST = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def _fashion_mnist(split: str) -> Dataset:
    prefix = {"train": "train", "test": "t10k"}[split]
    x = Pixels(_fashion_file(f"{prefix}-images-idx3-ubyte.gz")[..., None])
    y = _fashion_file(f"{prefix}-labels-idx1-ubyte.gz").astype(np.int32)
    return Dataset("fashion-mnist", x, y, 10, f"dataset-fashion-mnist (Debian), {split} split, MIT")


def _fashion_file(name: str) -> UInt8[np.ndarray, "..."]:
    how = f"put {', '.join(_FASHION_MNIST)} in one of these, or: apt-get install dataset-fashion-mnist"
    path = _found(name, how, _DEBIAN)
    return read_idx(verified(gunzip(path), _FASHION_MNIST[name], path), path)


def _npz(path: Path) -> Dataset:
    x, y, notes = read_own(path)
    for note in notes:
        print(f"note: {note}", flush=True)
    return Dataset(path.stem, x, y, 0 if y is None else int(y.max()) + 1, f"{path.name}, the user's own")


def _found(name: str, command: str, *folders: Path) -> Path:
    """The file in the first folder that has it, or an error with the command that fetches it."""
    kept = os.environ.get("MOMENTAX_DATA", "~/.cache/momentax")
    places = [*folders, Path.cwd(), Path(kept).expanduser()]
    for path in (place / name for place in places):
        if path.is_file():
            return path
    where = ", ".join(map(str, places))
    folder = kept if kept == "~/.cache/momentax" else shlex.quote(kept)
    raise FileNotFoundError(f"needs {name}; got none in {where}; do: {command.format(folder=folder)}")


_BY_NAME: dict[str, Callable[[], Dataset]] = {"digits": _digits, "icons": _icons, "emoji": _emoji}
