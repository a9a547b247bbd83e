r"""How far samples are from data: distances between two sets of features, on the host, in float64.

Features are rows, `[n, d]`: what a network of your choice makes of images, or `x.reshape(len(x), -1)`. Two
numbers are comparable only if the same network made their features, from as many samples. What is no array of real
numbers is a TypeError; sets too small, and settings out of their range, are a ValueError.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float64, Real

from ._contract import check_numbers
from ._number import real as checked_real
from ._number import whole

Rows = Float64[np.ndarray, "n d"]


class KernelDistance(NamedTuple):
    """An estimate of the squared kernel distance and its standard error."""

    value: float
    stderr: float


class PrecisionRecall(NamedTuple):
    """The share of the generated that looks real, and of the real that is covered, both from 0 to 1."""

    precision: float
    recall: float


def frechet_distance(a: Real[Array | np.ndarray, "n d"], b: Real[Array | np.ndarray, "m d"]) -> float:
    r"""$|\mu_a - \mu_b|^2 + \mathrm{Tr}(C_a + C_b - 2 (C_a^{1/2} C_b C_a^{1/2})^{1/2})$, in squared units.

    The squared 2-Wasserstein distance of two Gaussians with the sets' means and (unbiased) covariances
    (Dowson and Landau 1982), proposed for images by Heusel et al. (2017). With $C = R^T R$ the last trace is
    the sum of the singular values of $R_a R_b^T$: no square root is taken of what rounding makes negative,
    and covariances of less than full rank lose no digits. Biased upwards for few samples, strongly so for
    fewer than `d`.
    """
    a, b = _pair(a, b, least=2)
    shift = a.mean(0) - b.mean(0)
    root_a, root_b = _covariance_root(a), _covariance_root(b)
    overlap = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    return max(0.0, float(shift @ shift + np.sum(root_a**2) + np.sum(root_b**2) - 2 * overlap))


def kernel_distance(
    a: Real[Array | np.ndarray, "n d"],
    b: Real[Array | np.ndarray, "m d"],
    *,
    block: int = 1000,
    seed: int = 0,
) -> KernelDistance:
    r"""$E k(a, a') + E k(b, b') - 2 E k(a, b)$ with $k(x, y) = (x \cdot y / d + 1)^3$, without bias.

    The squared maximum mean discrepancy of Bińkowski et al. (2018). Both sets are shuffled by `seed` and
    split into equally many blocks of at most `block` rows; the value is the mean of the blocks' independent
    estimates, the standard error is that mean's, and memory stays below a few `block * block` numbers. The
    expectation is zero for equal distributions, whatever the number of samples, so the value may be negative.
    """
    block, seed = whole("block", block, 2, "use 1000"), whole("seed", seed, 0, "use 0")
    a, b = _pair(a, b, least=4)
    count = max(2, -(-max(len(a), len(b)) // block))
    if min(len(a), len(b)) < 2 * count:
        raise ValueError(
            f"needs 2 rows in each of {count} blocks; got sets of {len(a)} and {len(b)} rows; "
            "do pass a larger block, or fewer rows of the larger set"
        )
    rng = np.random.default_rng(seed)
    blocks = zip(_blocks(a, count, rng), _blocks(b, count, rng), strict=True)
    values = np.array([_unbiased_mmd(x, y) for x, y in blocks])
    return KernelDistance(float(values.mean()), float(values.std(ddof=1) / np.sqrt(count)))


def inception_score(probabilities: Real[Array | np.ndarray, "n classes"]) -> float:
    r"""$\exp E_x \mathrm{KL}(p(y | x) \,\|\, E_x p(y | x))$, from 1 to the number of classes.

    Salimans et al. (2016), over all rows at once rather than averaged over ten parts. Rows are a classifier's
    probabilities (not logits); their sums may miss one by 0.001, which half precision does.
    """
    p = _rows(probabilities, "probabilities", least=1)
    total = p.sum(1, keepdims=True)
    if p.min() < 0 or np.abs(total - 1).max() > 1e-3:
        raise ValueError(
            f"needs probabilities of at least 0 that sum to 1; got entries from {p.min():.3g} and sums from "
            f"{total.min():.3g} to {total.max():.3g}; do apply a softmax first"
        )
    p = p / total
    return float(np.exp(_mean_entropy(p.mean(0, keepdims=True)) - _mean_entropy(p)))


def precision_recall(
    real: Real[Array | np.ndarray, "n d"], generated: Real[Array | np.ndarray, "m d"], k: int = 3
) -> PrecisionRecall:
    r"""The share of each set in a ball of the other: $|x - y| \le |y - \mathrm{NN}_k(y)|$ for some $y$.

    The improved precision (of the generated among the real) and recall (of the real among the generated) of
    Kynkäänniemi et al. (2019); a sample is not its own neighbour. Time grows as `n m d`, memory as `n + m`.
    """
    k = whole("k", k, 1, "use 3")
    x, y = _pair(real, generated, least=k + 1)
    centre = x.mean(0)
    x, y = x - centre, y - centre
    return PrecisionRecall(_coverage(y, x, k), _coverage(x, y, k))


def sliced_wasserstein(
    a: Real[Array | np.ndarray, "n d"],
    b: Real[Array | np.ndarray, "m d"],
    *,
    p: float | int = 2,
    projections: int = 256,
    seed: int = 0,
) -> float:
    r"""$(E_\theta \int_0^1 |F_{\theta \cdot a}^{-1}(u) - F_{\theta \cdot b}^{-1}(u)|^p du)^{1/p}$.

    The sliced Wasserstein distance of order `p` >= 1 (Bonneel et al. 2015), over random unit directions drawn
    by `seed`, in the units of the features. Each integral is exact, for sets of different sizes too; in one
    dimension so is the whole.
    """
    p, projections = checked_real("p", p, "[1, inf)", "use 2"), whole("projections", projections, 1, "use 256")
    seed = whole("seed", seed, 0, "use 0")
    a, b = _pair(a, b, least=1)
    n, m = len(a), len(b)
    cuts = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
    left, width = cuts[:-1], np.diff(cuts) / (n * m)
    costs = []
    for theta in _chunks(_directions(a.shape[1], projections, seed), 16):
        gaps = np.sort(a @ theta.T, axis=0)[left // m] - np.sort(b @ theta.T, axis=0)[left // n]
        costs.append(width @ np.abs(gaps) ** p)
    return float(np.concatenate(costs).mean() ** (1 / p))


def _covariance_root(x: Rows) -> Float64[np.ndarray, "r d"]:
    return np.asarray(np.linalg.qr((x - x.mean(0)) / np.sqrt(len(x) - 1), mode="r"))


def _blocks(x: Rows, count: int, rng: np.random.Generator) -> Iterator[Rows]:
    return (x[rows] for rows in np.array_split(rng.permutation(len(x)), count))


def _unbiased_mmd(x: Rows, y: Float64[np.ndarray, "m d"]) -> float:
    return _mean_off_diagonal(_kernel(x, x)) + _mean_off_diagonal(_kernel(y, y)) - 2 * _kernel(x, y).mean()


def _kernel(x: Rows, y: Float64[np.ndarray, "m d"]) -> Float64[np.ndarray, "n m"]:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_off_diagonal(k: Float64[np.ndarray, "n n"]) -> float:
    return (k.sum() - k.trace()) / (len(k) * (len(k) - 1))


def _mean_entropy(p: Rows) -> float:
    return -np.sum(p * np.log(np.where(p > 0, p, 1))) / len(p)


def _coverage(points: Rows, centres: Float64[np.ndarray, "m d"], k: int) -> float:
    """The share of the points inside the ball of at least one centre."""
    chunks = _chunks(centres, 512)
    radii = np.concatenate([np.partition(_squared_distances(part, centres), k, axis=1)[:, k] for part in chunks])
    inside = [np.any(_squared_distances(part, centres) <= radii, axis=1) for part in _chunks(points, 512)]
    return float(np.concatenate(inside).mean())


def _squared_distances(x: Rows, y: Float64[np.ndarray, "m d"]) -> Float64[np.ndarray, "n m"]:
    """Zero where it is zero up to rounding, so that copies of a sample are at no distance from it."""
    scale = np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1)
    squares = scale - 2 * (x @ y.T)
    return np.where(squares > 1e-12 * scale, squares, 0)


def _directions(d: int, count: int, seed: int) -> Float64[np.ndarray, "count d"]:
    theta = np.random.default_rng(seed).standard_normal((count, d))
    return theta / np.linalg.norm(theta, axis=1, keepdims=True)


def _chunks(x: Rows, size: int) -> Iterator[Rows]:
    return (x[start : start + size] for start in range(0, len(x), size))


def _pair(a: Array | np.ndarray, b: Array | np.ndarray, least: int) -> tuple[Rows, Float64[np.ndarray, "m d"]]:
    """Both sets as float64 rows of one length."""
    x, y = _rows(a, "the first set", least), _rows(b, "the second set", least)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"needs features of one width; got {x.shape[1]} and {y.shape[1]}; do use one network for both")
    return x, y


def _rows(x: Array | np.ndarray, name: str, least: int) -> Rows:
    check_numbers(name, x)
    rows = np.asarray(x)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"needs {name} of shape [n, d]; got {rows.shape}; do x.reshape(len(x), -1)")
    if len(rows) < least:
        raise ValueError(f"needs {name} of at least {least} rows; got {len(rows)}; do draw more samples")
    rows = rows.astype(np.float64)
    if not np.isfinite(rows).all():
        raise ValueError(
            f"needs {name} to be finite; got {np.sum(~np.isfinite(rows))} entries that are not; "
            "do look for what diverged"
        )
    return rows
