from collections.abc import Sequence
from typing import NamedTuple

from .._number import optional_whole, real, wholes
from ._embedding import FourierFeatures, LogSNRFeatures, StepFeatures
from ._residual import ADM_STYLE, ResidualStyle


class UNetStyle(NamedTuple):
    """In what a U-Net may differ from that of Dhariwal & Nichol (2021), which the defaults are.

    Attributes:
        residual: the style of all residual blocks.
        features: of the time, before the embedding.
        emb_width: of the embedding; None is four times the network's width.
        null: whether there is a class, or a text, for `cond=None`.
        attention_up: the levels with attention on the way up; None is those on the way down.
        residual_down: for each level, or for all, whether a residual block halves the size (or a convolution).
        residual_up: whether a residual block doubles it (or repetition and a convolution).
        down_padding: zeros before and after each axis where a convolution halves the size.
        middle: whether there is something between the ways.
        middle_attention: whether that has attention.
        middle_norm: whether that attention has a norm.
        middle_groups: the groups of that norm; None is those of the residual blocks.
        middle_divisor: what each sum with a residual is divided by there.
        centred: whether images come as 0..1, to be mapped to -1..1.
        divided: whether the output is divided by the time.
    """

    residual: ResidualStyle = ADM_STYLE
    features: LogSNRFeatures | StepFeatures | FourierFeatures = LogSNRFeatures()
    emb_width: int | None = None
    null: bool = True
    attention_up: Sequence[bool] | None = None
    residual_down: bool | Sequence[bool] = True
    residual_up: bool | Sequence[bool] = True
    down_padding: tuple[int, int] = (1, 1)
    middle: bool = True
    middle_attention: bool = True
    middle_norm: bool = True
    middle_groups: int | None = None
    middle_divisor: float = 1.0
    centred: bool = False
    divided: bool = False


ADM = UNetStyle()


def checked_style(style: UNetStyle) -> UNetStyle:
    """The style, whose numbers are demanded to be in their range; norms see to those that are theirs alone."""
    return style._replace(
        emb_width=optional_whole("emb_width", style.emb_width, 1, "use None for four times the width"),
        down_padding=wholes("down_padding", style.down_padding, 0, "use (1, 1)"),
        middle_groups=optional_whole("middle_groups", style.middle_groups, 1, "use None for the blocks' own"),
        middle_divisor=real("middle_divisor", style.middle_divisor, "(0, inf)", "use 1.0"),
    )
