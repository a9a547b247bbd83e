from collections.abc import Sequence

from ..nn._residual import ResidualStyle
from ._options import Options


def block_names(
    options: Options, name: str, default: Sequence[str], supported: Sequence[str], levels: int
) -> list[str]:
    """The types of the blocks of all levels, each of them supported."""
    names = list(options.take(name, default))
    if unknown := [block for block in names if block not in supported]:
        raise ValueError(f"needs {name} among {list(supported)}; got {unknown}; do choose another checkpoint")
    if len(names) != levels:
        raise ValueError(f"needs {levels} {name}, one per level; got {names}; do check config.json")
    return names


def whole(options: Options, name: str, default: int) -> int:
    """One number for all levels."""
    value = options.take(name, default)
    if not isinstance(value, int):
        raise ValueError(f"needs {name} to be one number; got {value}; do choose another checkpoint")
    return value


def residual_style(options: Options) -> ResidualStyle:
    """How the residual blocks normalise, and take the time."""
    options.take("act_fn", "silu", "silu", "swish")
    modulation = options.take("resnet_time_scale_shift", "default", "default", "scale_shift")
    groups, epsilon = whole(options, "norm_num_groups", 32), options.take("norm_eps", 1e-5)
    return ResidualStyle(groups, epsilon, scale_shift=modulation == "scale_shift")


def down_padding(options: Options) -> tuple[int, int]:
    """The zeros before and after each axis where a convolution halves the size."""
    return (1, 1) if options.take("downsample_padding", 1, 0, 1) else (0, 1)
