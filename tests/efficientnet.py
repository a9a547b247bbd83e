"""EfficientNet-Lite0 written out in NumPy, and random weights for it."""

import numpy as np

STAGES = [(1, 1, 3), (2, 6, 3), (2, 6, 5), (3, 6, 3), (3, 6, 5), (4, 6, 5), (1, 6, 3)]
"""Of each width: how many blocks, how much they expand, the side of their kernels."""
STRIDED = (1, 3, 5, 11)
FULL = (32, 16, 24, 40, 80, 112, 192, 320, 1280)
WIDTHS = (4, 3, 4, 5, 6, 7, 8, 9, 10)


def random_tensors(widths=FULL):
    """By their names in the package, such that most activations are between 0 and 6."""
    rng, tensors = np.random.default_rng(0), {}

    def layer(name, normalisation, *shape):
        fan_in = np.prod(shape[1:])
        tensors[f"{name}.weight"] = rng.standard_normal(shape) * np.sqrt(2 / fan_in)
        tensors[f"{normalisation}.weight"] = rng.uniform(0.5, 1.5, shape[0])
        tensors[f"{normalisation}.bias"] = rng.uniform(-0.5, 1, shape[0])
        tensors[f"{normalisation}.running_mean"] = 0.3 * rng.standard_normal(shape[0])
        tensors[f"{normalisation}.running_var"] = rng.uniform(0.5, 2, shape[0])

    layer("_conv_stem", "_bn0", widths[0], 3, 3, 3)
    for n, (width, wide, k, d) in enumerate(blocks(widths)):
        name = f"_blocks.{n}."
        if n:
            layer(f"{name}_expand_conv", f"{name}_bn0", wide, width, 1, 1)
        layer(f"{name}_depthwise_conv", f"{name}_bn1", wide, 1, k, k)
        layer(f"{name}_project_conv", f"{name}_bn2", d, wide, 1, 1)
    layer("_conv_head", "_bn1", widths[8], widths[7], 1, 1)
    return {name: array.astype(np.float32) for name, array in tensors.items()}


def blocks(widths):
    """Of each block: channels before, expanded, the kernel's side, channels after."""
    width = widths[0]
    for d, (count, expanded, k) in zip(widths[1:8], STAGES, strict=True):
        for before in (width, *[d] * (count - 1)):
            yield before, expanded * before, k, d
        width = d


def written_out(tensors, x):
    """Early and late features of one RGB image [3, h, w] in [-1, 1], of at most 96 pixels."""
    tensors = {name: array.astype(np.float64) for name, array in tensors.items()}

    def normalised(y, name):
        mean, variance, scale, shift = (
            tensors[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / np.sqrt(variance + 1e-3) * scale + shift

    def mixed(y, name, normalisation):
        return normalised(np.einsum("oc,chw->ohw", tensors[f"{name}.weight"][:, :, 0, 0], y), normalisation)

    y = np.clip(normalised(_stem((127.5 * (_larger(x) + 1) - 127) / 128, tensors["_conv_stem.weight"]), "_bn0"), 0, 6)
    seen = []
    for n in range(16):
        name = f"_blocks.{n}."
        z = np.clip(mixed(y, f"{name}_expand_conv", f"{name}_bn0"), 0, 6) if n else y
        seen.append(z.mean((1, 2)))
        windows = _windows(z, tensors[f"{name}_depthwise_conv.weight"].shape[-1], 2 if n in STRIDED else 1)
        z = np.einsum("chwij,cij->chw", windows, tensors[f"{name}_depthwise_conv.weight"][:, 0])
        z = mixed(np.clip(normalised(z, f"{name}_bn1"), 0, 6), f"{name}_project_conv", f"{name}_bn2")
        y = y + z if n in (2, 4, 6, 7, 9, 10, 12, 13, 14) else z
    return seen[5], np.clip(mixed(y, "_conv_head", "_bn1"), 0, 6).mean((1, 2))


def _stem(y, weight):
    return np.einsum("chwij,ocij->ohw", _windows(y, 3, 2), weight)


def _windows(y, k, stride):
    """The k by k neighbours of each pixel that is kept; with an even side and stride two, one more is added after."""
    before, after = ((k - 1) // 2, (k - 1) // 2) if stride == 1 else ((k - 2) // 2, (k - 1) // 2)
    padded = np.pad(y, ((0, 0), (before, after), (before, after)))
    return np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(1, 2))[:, ::stride, ::stride]


def _larger(x):
    """At 96 by 96: along each axis, linear between the two nearest centres of pixels."""
    for axis in (1, 2):
        centres = (np.arange(96) + 0.5) * x.shape[axis] / 96 - 0.5
        low = np.clip(np.floor(centres), 0, x.shape[axis] - 1).astype(int)
        high, share = np.minimum(low + 1, x.shape[axis] - 1), np.clip(centres - low, 0, 1)
        share = share.reshape(-1, *[1] * (2 - axis))
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return x
