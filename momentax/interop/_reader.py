from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..nn._attention import Attention
from ..nn._image import Conv
from ..nn._linear import Linear
from ._tensors import Tensors

# The maps of attention, as they are stored and as they once were.
_FORMER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


class Reader(NamedTuple):
    """Fills layers, or their shapes, with PyTorch's arrays of a name, in float32."""

    tensors: Tensors

    def take(self, name: str, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """The array of this name and shape."""
        return jnp.asarray(self.tensors.take(name, shape), jnp.float32)

    def conv(self, conv: Conv, name: str) -> Conv:
        """A convolution, which PyTorch has channels-first."""
        h, w, c_in, c_out = conv.weight.shape
        weight = self.take(f"{name}.weight", (c_out, c_in, h, w)).transpose(2, 3, 1, 0)
        return replaced(conv, weight=weight, bias=self.take(f"{name}.bias", (c_out,)))

    def linear(self, linear: Linear, name: str, *, conv: bool = False) -> Linear:
        """A linear map, which may be stored as a convolution of one pixel."""
        c_in, c_out = linear.weight.shape
        weight = self.take(f"{name}.weight", (c_out, c_in, 1, 1) if conv else (c_out, c_in)).reshape(c_out, c_in)
        bias = None if linear.bias is None else self.take(f"{name}.bias", (c_out,))
        return replaced(linear, weight=weight.T, bias=bias)

    def equinox_linear(self, linear: eqx.nn.Linear, name: str) -> eqx.nn.Linear:
        """A linear map of one vector, whose weight is PyTorch's."""
        weight = self.take(f"{name}.weight", linear.weight.shape)
        return replaced(linear, weight=weight, bias=self.take(f"{name}.bias", weight.shape[:1]))

    def norm(self, norm: Any, name: str) -> Any:
        """A `GroupNorm` or `LayerNorm` with scale and shift."""
        shape = norm.weight.shape
        return replaced(norm, weight=self.take(f"{name}.weight", shape), bias=self.take(f"{name}.bias", shape))

    def attention(self, attention: Attention, name: str) -> Attention:
        """Attention, whose keys and values are two maps there."""
        key_value = attention.key_value
        parts = []
        for leaf, kind in ((key_value.weight, "weight"), (key_value.bias, "bias")):
            shape = None if leaf is None else (leaf.shape[-1] // 2, *leaf.shape[:-1])
            names = [(name, part, kind) for part in ("to_k", "to_v")]
            parts.append(None if shape is None else jnp.concatenate([self._part(*n, shape) for n in names]).T)
        return replaced(
            attention,
            query=self._map(attention.query, name, "to_q"),
            key_value=replaced(key_value, weight=parts[0], bias=parts[1]),
            out=self._map(attention.out, name, "to_out.0"),
        )

    def _map(self, linear: Linear, name: str, part: str) -> Linear:
        weight = self._part(name, part, "weight", linear.weight.shape[::-1]).T
        bias = None if linear.bias is None else self._part(name, part, "bias", linear.bias.shape)
        return replaced(linear, weight=weight, bias=bias)

    def _part(self, name: str, part: str, kind: str, shape: tuple[int, ...]) -> Float[Array, "..."]:
        former = f"{name}.{_FORMER[part]}.{kind}"
        return self.take(former if former in self.tensors else f"{name}.{part}.{kind}", shape)


def replaced(module: Any, **parts: Any) -> Any:
    """The module with other values in these fields, of which those without any keep none."""
    names = [name for name in parts if getattr(module, name) is not None]
    return eqx.tree_at(lambda m: [getattr(m, name) for name in names], module, [parts[name] for name in names])
