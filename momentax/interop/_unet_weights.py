from typing import Any, NamedTuple

from .._fixed import Fixed
from ..nn._embedding import Embedding, FourierFeatures
from ..nn._image_attention import ImageAttention, TextAttention
from ..nn._residual import Resample, Residual
from ..nn._unet import UNet
from ..nn._unet_level import Level, Middle
from ._reader import Reader, replaced
from ._tensors import Tensors


def filled(net: UNet, tensors: Tensors, *, linear_projection: bool = False) -> UNet:
    """A U-Net, or its shapes, with the arrays that diffusers has stored."""
    return _UNetReader(Reader(tensors), linear_projection).unet(net)


class _UNetReader(NamedTuple):
    read: Reader
    linear_projection: bool

    def unet(self, net: UNet) -> UNet:
        return replaced(
            net,
            embedding=self.embedding(net.embedding),
            first=self.read.conv(net.first, "conv_in"),
            down=tuple(self.level(level, f"down_blocks.{i}", "downsamplers.0") for i, level in enumerate(net.down)),
            middle=None if net.middle is None else self.middle(net.middle),
            up=tuple(self.level(level, f"up_blocks.{i}", "upsamplers.0") for i, level in enumerate(net.up)),
            norm=self.read.norm(net.norm, "conv_norm_out"),
            last=self.read.conv(net.last, "conv_out"),
        )

    def embedding(self, embedding: Embedding) -> Embedding:
        classes, features = embedding.classes, embedding.features
        if isinstance(features, FourierFeatures):
            weight = Fixed(self.read.take("time_proj.weight", features.weight.bits.shape))
            embedding = replaced(embedding, features=replaced(features, weight=weight))
        return replaced(
            embedding,
            inner=self.read.equinox_linear(embedding.inner, "time_embedding.linear_1"),
            outer=self.read.equinox_linear(embedding.outer, "time_embedding.linear_2"),
            classes=None if classes is None else self.read.take("class_embedding.weight", classes.shape),
        )

    def level(self, level: Level, name: str, map_name: str) -> Level:
        steps = tuple(
            replaced(
                step,
                block=self.residual(step.block, f"{name}.resnets.{i}"),
                attention=self.attention(step.attention, f"{name}.attentions.{i}"),
            )
            for i, step in enumerate(level.steps)
        )
        return replaced(level, steps=steps, resample=self.resample(level.resample, f"{name}.{map_name}"))

    def middle(self, middle: Middle) -> Middle:
        attention = self.attention(middle.first.attention, "mid_block.attentions.0")
        first, last = (
            self.residual(step.block, f"mid_block.resnets.{i}") for i, step in enumerate((middle.first, middle.last))
        )
        return replaced(
            middle,
            first=replaced(middle.first, block=first, attention=attention),
            last=replaced(middle.last, block=last),
        )

    def resample(self, module: Residual | Resample | None, name: str) -> Residual | Resample | None:
        if isinstance(module, Resample):
            return replaced(module, conv=self.read.conv(module.conv, f"{name}.conv"))
        return None if module is None else self.residual(module, name)

    def residual(self, block: Residual, name: str) -> Residual:
        shortcut = block.shortcut
        return replaced(
            block,
            norm=self.read.norm(block.norm, f"{name}.norm1"),
            inner=self.read.conv(block.inner, f"{name}.conv1"),
            modulation=self.read.linear(block.modulation, f"{name}.time_emb_proj"),
            middle=self.read.norm(block.middle, f"{name}.norm2"),
            outer=self.read.conv(block.outer, f"{name}.conv2"),
            shortcut=None if shortcut is None else self.read.linear(shortcut, f"{name}.conv_shortcut", conv=True),
        )

    def attention(self, module: ImageAttention | TextAttention | None, name: str) -> Any:
        if isinstance(module, TextAttention):
            return self.text_attention(module, name)
        if module is None:
            return None
        norm = None if module.norm is None else self.read.norm(module.norm, f"{name}.group_norm")
        return replaced(module, norm=norm, attention=self.read.attention(module.attention, name))

    def text_attention(self, module: TextAttention, name: str) -> TextAttention:
        read, block, conv = self.read, f"{name}.transformer_blocks.0", not self.linear_projection
        return replaced(
            module,
            norm=read.norm(module.norm, f"{name}.norm"),
            first=read.linear(module.first, f"{name}.proj_in", conv=conv),
            pixel_norm=read.norm(module.pixel_norm, f"{block}.norm1"),
            pixels=read.attention(module.pixels, f"{block}.attn1"),
            text_norm=read.norm(module.text_norm, f"{block}.norm2"),
            text=read.attention(module.text, f"{block}.attn2"),
            hidden_norm=read.norm(module.hidden_norm, f"{block}.norm3"),
            gated=read.linear(module.gated, f"{block}.ff.net.0.proj"),
            hidden=read.linear(module.hidden, f"{block}.ff.net.2"),
            last=read.linear(module.last, f"{name}.proj_out", conv=conv),
        )
