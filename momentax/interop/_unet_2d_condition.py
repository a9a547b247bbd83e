from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.random as jr

from ..nn._embedding import StepFeatures
from ..nn._unet import UNet
from ..nn._unet_style import UNetStyle
from ._options import Options
from ._tensors import Tensors
from ._unet_options import block_names, down_padding, residual_style, whole
from ._unet_weights import filled

_DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
_UP = ("CrossAttnUpBlock2D", "UpBlock2D")
_MIDDLE = "UNetMidBlock2DCrossAttn"

# What is supported at its default only.
_FIXED = {
    "addition_embed_type": None,
    "attention_type": "default",
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": 1,
}
# What changes nothing: our softmax always is in float32, and the others are of additions that are refused.
_IDLE = (
    "sample_size",
    "upcast_attention",
    "addition_embed_type_num_heads",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
)


def build(options: Options, tensors: Tensors) -> UNet:
    """The network of diffusers' `UNet2DConditionModel` in float32, as Stable Diffusion 1 and 2 have it.

    `net(z, step, cond)`, where `cond` is a `momentax.nn.Text`: for no text, that of the empty prompt. A mask is what
    diffusers calls `encoder_attention_mask`, which the pipelines of Stable Diffusion leave out: their networks attend
    to the padding. Images may have any size.
    """
    linear_projection = options.take("use_linear_projection", False, False, True)
    return filled(_skeleton(options), tensors, linear_projection=linear_projection)


def _skeleton(options: Options) -> UNet:
    for name in _IDLE:
        options.take(name, None)
    for name, value in _FIXED.items():
        options.take(name, value, value)
    options.take("mid_block_only_cross_attention", None, None, False)
    arguments = _arguments(options)
    return eqx.filter_eval_shape(lambda: UNet(**arguments, key=jr.key(0)))


def _arguments(options: Options) -> dict[str, Any]:
    widths = options.take("block_out_channels", (320, 640, 1280, 1280))
    down = block_names(options, "down_block_types", (*[_DOWN[0]] * 3, _DOWN[1]), _DOWN, len(widths))
    up = block_names(options, "up_block_types", (_UP[1], *[_UP[0]] * 3), _UP, len(widths))[::-1]
    return {
        "channels": options.take("in_channels", 4),
        "out_channels": options.take("out_channels", 4),
        "width": 1,
        "multipliers": widths,
        "blocks": whole(options, "layers_per_block", 2),
        "attention": [name == _DOWN[0] for name in down],
        "heads": options.take("attention_head_dim", 8),  # they are heads, whatever their name
        "text_width": whole(options, "cross_attention_dim", 1280),
        "dropout": options.take("dropout", 0.0),
        "style": _style(options, widths[0], [name == _UP[0] for name in up]),
    }


def _style(options: Options, width: int, attention_up: Sequence[bool]) -> UNetStyle:
    shift, flipped = options.take("freq_shift", 0), not options.take("flip_sin_to_cos", True)
    return UNetStyle(
        residual=residual_style(options),
        features=StepFeatures(width, float(shift), flipped=flipped),
        emb_width=options.take("time_embedding_dim", None) or 4 * width,
        null=False,
        attention_up=attention_up,
        residual_down=False,
        residual_up=False,
        down_padding=down_padding(options),
        middle=options.take("mid_block_type", _MIDDLE, _MIDDLE, None) is not None,
        middle_divisor=float(options.take("mid_block_scale_factor", 1)),
        centred=options.take("center_input_sample", False),
    )
