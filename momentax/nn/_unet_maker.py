from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import PRNGKeyArray

from ._image import grow, shrink
from ._image_attention import ImageAttention, TextAttention
from ._norm import GroupNorm
from ._residual import Resample, Residual
from ._unet_level import Level, Middle, Step
from ._unet_style import UNetStyle


class UNetMaker(NamedTuple):
    """Makes the levels of a U-Net of these channels (`widths`) and heads, from high to low resolution."""

    widths: Sequence[int]
    heads: Sequence[int]
    blocks: int
    style: UNetStyle
    emb_width: int
    text_width: int | None
    dropout: float
    remat: bool

    def down(self, attention: Sequence[bool], *, key: PRNGKeyArray) -> tuple[Level, ...]:
        """The levels on the way down, which may have attention, in their order."""
        residual = per_level("residual_down", self.style.residual_down, len(self.widths))
        levels = []
        for i, level_key in enumerate(jax.random.split(key, len(self.widths))):
            steps_key, map_key = jax.random.split(level_key)
            c, above = self.widths[i], self.widths[max(i - 1, 0)]
            steps = self._steps([above] + [c] * (self.blocks - 1), i, attention[i], steps_key)
            ends = i == len(self.widths) - 1
            levels.append(Level(self.remat, steps, None if ends else self._halving(c, residual[i], map_key)))
        return tuple(levels)

    def up(self, attention: Sequence[bool], *, key: PRNGKeyArray) -> tuple[Level, ...]:
        """The levels on the way up, in their order, from the lowest."""
        residual = per_level("residual_up", self.style.residual_up, len(self.widths))
        levels = []
        for i, level_key in enumerate(jax.random.split(key, len(self.widths))):
            steps_key, map_key = jax.random.split(level_key)
            c, above, below = self.widths[i], self.widths[max(i - 1, 0)], self.widths[i + 1 : i + 2] or self.widths[-1:]
            skips = [c] * self.blocks + [above]
            widths_in = [h + skip for h, skip in zip([*below] + [c] * self.blocks, skips, strict=True)]
            steps = self._steps(widths_in, i, attention[i], steps_key)
            levels.append(Level(self.remat, steps, None if i == 0 else self._doubling(c, residual[i], map_key)))
        return tuple(levels[::-1])

    def middle(self, *, key: PRNGKeyArray) -> Middle:
        """Two blocks at the lowest resolution, with attention between them."""
        first_key, attention_key, last_key = jax.random.split(key, 3)
        c, style, divisor = self.widths[-1], self.style, self.style.middle_divisor
        groups = style.residual.groups if style.middle_groups is None else style.middle_groups
        norm = style.residual._replace(groups=groups).norm(c) if style.middle_norm else None
        attention = self._attention(-1, norm, divisor, attention_key) if style.middle_attention else None
        first = Step(self._block(c, c, first_key, divisor=divisor), attention)
        return Middle(self.remat, first, Step(self._block(c, c, last_key, divisor=divisor), None))

    def _steps(self, widths_in: Sequence[int], i: int, attention: bool, key: PRNGKeyArray) -> tuple[Step, ...]:
        return tuple(
            self._step(c_in, i, attention, step_key)
            for c_in, step_key in zip(widths_in, jax.random.split(key, len(widths_in)), strict=True)
        )

    def _step(self, c_in: int, i: int, attention: bool, key: PRNGKeyArray) -> Step:
        block_key, attention_key = jax.random.split(key)
        c = self.widths[i]
        norm = self.style.residual.norm(c)
        return Step(
            self._block(c_in, c, block_key), self._attention(i, norm, 1.0, attention_key) if attention else None
        )

    def _halving(self, c: int, residual: bool, key: PRNGKeyArray) -> Residual | Resample:
        if residual:
            return self._block(c, c, key, resample=shrink)
        return Resample(c, stride=2, padding=self.style.down_padding, key=key)

    def _doubling(self, c: int, residual: bool, key: PRNGKeyArray) -> Residual | Resample:
        return self._block(c, c, key, resample=grow) if residual else Resample(c, grows=True, key=key)

    def _attention(
        self, i: int, norm: GroupNorm | None, divisor: float, key: PRNGKeyArray
    ) -> ImageAttention | TextAttention:
        c, heads = self.widths[i], self.heads[i]
        if self.text_width is None:
            return ImageAttention(c, heads, norm=norm, divisor=divisor, key=key)
        groups = self.style.residual.norm(c).groups
        return TextAttention(c, heads, text_width=self.text_width, groups=groups, key=key)

    def _block(
        self,
        c_in: int,
        c: int,
        key: PRNGKeyArray,
        *,
        divisor: float = 1.0,
        resample: Callable[[Any], Any] | None = None,
    ) -> Residual:
        return Residual(
            c_in,
            c,
            self.emb_width,
            style=self.style.residual,
            dropout=self.dropout,
            divisor=divisor,
            resample=resample,
            key=key,
        )


def per_level(name: str, values: Any, levels: int) -> tuple[Any, ...]:
    """One value for each level, of as many or of one for all."""
    values = tuple(values) if isinstance(values, Sequence) else (values,) * levels
    if len(values) != levels:
        raise ValueError(f"{name} needs one value for each of {levels} levels; got {values}; give as many")
    return values
