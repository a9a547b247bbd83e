"""The weights in a model's folder: whole or sharded, plain or of a variant, in safetensors alone."""

import re
import warnings
from pathlib import Path
from typing import Any

from ._options import read_json
from ._safetensors import read_arrays
from ._tensors import Tensors

_STEM = "diffusion_pytorch_model"
_VARIANT = re.compile(rf"{_STEM}\.(?:([^.]+)\.safetensors(?:\.index\.json)?|safetensors\.index\.([^.]+)\.json)")


def read_weights(folder: Path, variant: str | None) -> Tensors:
    """The tensors of a variant; of None the plain ones, or, with a warning, those of the only variant there is."""
    path = _found(folder, variant)
    if path is None and variant is None:
        path = _found(folder, _only_variant(folder))
    if path is None:
        raise _missing(folder, variant)
    return Tensors(_sharded(path) if path.suffix == ".json" else read_arrays(path), path)


def existing(path: Path) -> Path:
    """The path, of a file that there is."""
    if not path.is_file():
        raise FileNotFoundError(f"needs {path.name}; got none in {path.parent}; check the folder, or fetch it again")
    return path


def _names(variant: str | None) -> list[str]:
    """What the weights, or the index of their shards, may be called; diffusers has changed the place of the variant."""
    if variant is None:
        return [f"{_STEM}.safetensors", f"{_STEM}.safetensors.index.json"]
    whole = f"{_STEM}.{variant}.safetensors"
    return [whole, f"{_STEM}.safetensors.index.{variant}.json", f"{whole}.index.json"]


def _found(folder: Path, variant: str | None) -> Path | None:
    return next((folder / name for name in _names(variant) if (folder / name).is_file()), None)


def _only_variant(folder: Path) -> str | None:
    matches = (_VARIANT.fullmatch(path.name) for path in folder.iterdir())
    variants = sorted({match[1] or match[2] for match in matches if match})
    if len(variants) > 1:
        raise ValueError(
            f"needs one variant of the weights to be named; got {variants} in {folder}, and none without a name; pass"
            f" variant={variants[0]!r} (--teacher-variant {variants[0]}), or another"
        )
    if variants:
        warnings.warn(f"{folder} has weights of the variant {variants[0]!r} alone, which are taken", stacklevel=5)
    return variants[0] if variants else None


def _missing(folder: Path, variant: str | None) -> Exception:
    whole, index = _names(variant)[:2]
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        return ValueError(
            f"needs {whole}; got {pickles[0]} in {folder}, a pickle, which could run code and is not read;"
            " call `model.save_pretrained(folder, safe_serialization=True)` of diffusers where you trust it"
        )
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    return FileNotFoundError(f"needs {whole} or {index}; got {found} in {folder}; check folder and variant")


def _sharded(index: Path) -> dict[str, Any]:
    places = read_json(index).get("weight_map", {})
    arrays: dict[str, Any] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise ValueError(f"needs shards beside their index; got {name!r} in {index}; fetch it again")
        shard = read_arrays(existing(index.parent / name))
        if set(shard) != {tensor for tensor, place in places.items() if place == name}:
            raise ValueError(f"needs {name} to hold what {index} says; got other tensors; fetch both again")
        arrays |= shard
    return arrays
