from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.random as jr

from ..nn._embedding import FourierFeatures, StepFeatures
from ..nn._unet import UNet
from ..nn._unet_style import UNetStyle
from ._options import Options
from ._tensors import Tensors
from ._unet_options import block_names, down_padding, residual_style, whole
from ._unet_weights import filled

_DOWN = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
_UP = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")


def build(options: Options, tensors: Tensors) -> UNet:
    """The network of diffusers' `UNet2DModel` in float32, `net(z, step, cond)`; one with classes has none for no class.

    Images may have any size that halves at every level, and any at all where convolutions halve it.
    """
    return filled(_skeleton(options), tensors)


def _skeleton(options: Options) -> UNet:
    options.take("sample_size", None)
    options.take("num_train_timesteps", None)  # of a learned embedding of the time, which is refused
    options.take("class_embed_type", None, None)
    arguments = _arguments(options)
    return eqx.filter_eval_shape(lambda: UNet(**arguments, key=jr.key(0)))


def _arguments(options: Options) -> dict[str, Any]:
    widths = options.take("block_out_channels", (224, 448, 672, 896))
    down = block_names(options, "down_block_types", ("DownBlock2D", *["AttnDownBlock2D"] * 3), _DOWN, len(widths))
    up = block_names(options, "up_block_types", (*["AttnUpBlock2D"] * 3, "UpBlock2D"), _UP, len(widths))[::-1]
    head_width = options.take("attention_head_dim", 8)
    return {
        "channels": options.take("in_channels", 3),
        "out_channels": options.take("out_channels", 3),
        "width": 1,
        "multipliers": widths,
        "blocks": whole(options, "layers_per_block", 2),
        "attention": [name == "AttnDownBlock2D" for name in down],
        "heads": [1 if head_width is None else max(1, c // head_width) for c in widths],
        "num_classes": options.take("num_class_embeds", None),
        "dropout": options.take("dropout", 0.0),
        "style": _style(options, widths[0], down, up),
    }


def _style(options: Options, width: int, down: Sequence[str], up: Sequence[str]) -> UNetStyle:
    residual = residual_style(options)
    halved = options.take("downsample_type", "conv", "conv", "resnet") == "resnet"
    doubled = options.take("upsample_type", "conv", "conv", "resnet") == "resnet"
    groups = options.take("attn_norm_num_groups", None)
    fourier = options.take("time_embedding_type", "positional", "positional", "fourier") == "fourier"
    return UNetStyle(
        residual=residual,
        features=_features(options, width, fourier),
        emb_width=options.take("time_embedding_dim", None) or 4 * width,
        null=False,
        attention_up=[name == "AttnUpBlock2D" for name in up],
        residual_down=[name.startswith("Resnet") or (name.startswith("Attn") and halved) for name in down],
        residual_up=[name.startswith("Resnet") or (name.startswith("Attn") and doubled) for name in up],
        down_padding=down_padding(options),
        middle=options.take("mid_block_type", "UNetMidBlock2D", "UNetMidBlock2D", None) is not None,
        middle_attention=options.take("add_attention", True),
        middle_norm=groups is not None or not residual.scale_shift,
        middle_groups=groups,
        middle_divisor=float(options.take("mid_block_scale_factor", 1)),
        centred=options.take("center_input_sample", False),
        divided=fourier,
    )


def _features(options: Options, width: int, fourier: bool) -> StepFeatures | FourierFeatures:
    shift = options.take("freq_shift", 0)
    cosines_first = options.take("flip_sin_to_cos", True)
    if fourier:
        return eqx.filter_eval_shape(lambda: FourierFeatures(2 * width, key=jr.key(0)))
    return StepFeatures(width, float(shift), flipped=not cosines_first)
