"""Networks and denoisers of the folders that diffusers' `save_pretrained` writes."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .._denoiser import Denoiser, Time
from .._schedule import AbstractSchedule, DiscreteSchedule
from ._options import Options
from ._safetensors import read_arrays
from ._scheduler import Convention, convention, read_json
from ._tensors import Tensors

_BUILDERS = {
    "DiTTransformer2DModel": "_dit",
    "Transformer2DModel": "_dit",
    "UNet2DConditionModel": "_unet_2d_condition",
    "UNet2DModel": "_unet_2d",
}
_STEM = "diffusion_pytorch_model"


def from_diffusers(folder: str | os.PathLike[str], *, variant: str | None = None) -> Any:
    """The network `net(z, t, cond)` of a model's folder: `config.json` and weights in safetensors, whole or sharded.

    A `UNet2DModel`, `UNet2DConditionModel` or `DiTTransformer2DModel` (formerly a `Transformer2DModel`). Every tensor
    and every option is used or refused.

    Args:
        variant: the weights' variant, as in `diffusion_pytorch_model.fp16.safetensors`.

    Raises:
        ValueError: for another class, an option that is not supported, a tensor that is missing, left over or
            misshapen, and for weights as a pickle, which are never read.
    """
    folder = Path(folder)
    path = _existing(folder / "config.json")
    values = read_json(path)
    name = values.get("_class_name")
    if name not in _BUILDERS:
        raise ValueError(f"needs a model out of {sorted(_BUILDERS)}; got {name!r} in {path}; do choose another")
    options, tensors = Options(values, path), _tensors(folder, variant)
    net = importlib.import_module(f".{_BUILDERS[name]}", __package__).build(options, tensors)
    options.finish()
    tensors.finish()
    return net


def denoiser_from_diffusers(
    folder: str | os.PathLike[str],
    *,
    predict: Callable[..., Any] | None = None,
    schedule: DiscreteSchedule | None = None,
    variant: str | None = None,
    rounded: bool = False,
) -> Denoiser:
    r"""The denoiser of a pipeline's folder: its network, with the prediction and the time its scheduler names.

    In variance-preserving scaling, whose data is what the network was trained on: a latent model's latents, scaled.
    Its floating-point leaves are the network's own: no table of a schedule is among them to be trained. What only a
    sampler does, as the clipping of DDPM (`momentax.clipped`), is left out.

    Args:
        folder: a pipeline's, with `model_index.json`, or one model's, which needs `predict` and `schedule`.
        predict: for one model's folder, `momentax.predict_eps` or another.
        schedule: for one model's folder, the table it was trained with.
        variant: the weights' variant.
        rounded: gives the network the nearest whole step of its table; by default it is given fractions, which
            embeddings by sines and cosines extend to.

    Raises:
        ValueError: for what `from_diffusers` and `schedule_from_diffusers` refuse; for `rounded` without a table.
        FileNotFoundError: where there is no such folder, or a file is missing in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"needs a folder that diffusers wrote; got none at {folder}; check the path")
    if (folder / "model_index.json").is_file():
        _check_unset(folder, predict, schedule)
        model, (table, predict, time) = _part(folder, _network_of(folder)), convention(folder)
    else:
        model, (table, predict, time) = folder, _given(folder, predict, schedule)
    net, time = from_diffusers(model, variant=variant), _rounded(table, folder) if rounded else time
    return Denoiser(net, predict, time, table)


def _check_unset(folder: Path, predict: Any, schedule: Any) -> None:
    if predict is not None or schedule is not None:
        raise ValueError(
            f"needs no predict or schedule for a pipeline, whose scheduler names them; got them with {folder};"
            " do give the folder of its network"
        )


def _given(folder: Path, predict: Callable[..., Any] | None, schedule: DiscreteSchedule | None) -> Convention:
    if predict is None or schedule is None:
        raise ValueError(
            f"needs predict and schedule for one model's folder; got {folder} without a model_index.json;"
            " do give both, or the pipeline's folder"
        )
    return Convention(schedule, predict, schedule.step)


def _rounded(schedule: AbstractSchedule, folder: Path) -> Time:
    if not isinstance(schedule, DiscreteSchedule):
        raise ValueError(f"needs a table of steps to round to; got continuous time in {folder}; do rounded=False")
    return schedule.nearest_step


def _network_of(folder: Path) -> str:
    index = read_json(folder / "model_index.json")
    names = [name for name in ("unet", "transformer") if any(index.get(name) or ())]
    if len(names) != 1:
        raise ValueError(
            f"needs a pipeline with one unet or transformer; got {names} in {folder / 'model_index.json'};"
            " do give the folder of one network with predict and schedule"
        )
    return names[0]


def _part(folder: Path, name: str) -> Path:
    """A pipeline's part; in old pipelines of one network everything lies side by side."""
    return folder / name if (folder / name).is_dir() else folder


def _tensors(folder: Path, variant: str | None) -> Tensors:
    infix = "" if variant is None else f".{variant}"
    whole, index = folder / f"{_STEM}{infix}.safetensors", folder / f"{_STEM}.safetensors.index{infix}.json"
    if whole.is_file():
        return Tensors(read_arrays(whole), whole)
    if index.is_file():
        return Tensors(_sharded(index), index)
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise ValueError(
            f"needs {whole.name}; got {pickles[0]} in {folder}, a pickle, which could run code and is not read;"
            " do `model.save_pretrained(folder, safe_serialization=True)` with diffusers where you trust it"
        )
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    raise FileNotFoundError(f"needs {whole.name} or {index.name}; got {found} in {folder}; do check folder and variant")


def _sharded(index: Path) -> dict[str, Any]:
    places = read_json(index).get("weight_map", {})
    arrays: dict[str, Any] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise ValueError(f"needs shards beside their index; got {name!r} in {index}; do fetch it again")
        shard = read_arrays(_existing(index.parent / name))
        if set(shard) != {tensor for tensor, place in places.items() if place == name}:
            raise ValueError(f"needs {name} to hold what {index} says; got other tensors; do fetch both again")
        arrays |= shard
    return arrays


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"needs {path.name}; got none in {path.parent}; do check the folder, or fetch it again")
    return path
