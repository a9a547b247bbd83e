"""Closed forms, brute force, and scipy: another path to every number."""

import itertools
import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from hypothesis import given

from momentax.metrics import (
    _directions,
    _kernel,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
    sliced_wasserstein,
)

rng = np.random.default_rng(0)
seeds = st.integers(0, 2**32 - 1)
shifts = st.floats(-100, 100)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def with_moments(mean: np.ndarray, covariance: np.ndarray, n: int) -> np.ndarray:
    """Samples whose mean and covariance are exactly these."""
    x = rng.standard_normal((n, len(mean)))
    x -= x.mean(0)
    white = np.linalg.solve(np.linalg.cholesky(np.cov(x.T)), x.T)
    return (np.linalg.cholesky(covariance) @ white).T + mean


def covariance(seed: int, d: int) -> np.ndarray:
    a = normal(seed, d, d)
    return a @ a.T + 0.1 * np.eye(d)


def frechet_by_sqrtm(a: np.ndarray, b: np.ndarray) -> float:
    ca, cb = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(ca)
    cross = scipy.linalg.sqrtm(root @ cb @ root)
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(ca + cb - 2 * cross).real


@given(seeds, seeds)
def test_the_frechet_distance_agrees_with_the_matrix_square_root(seed, other):
    """Condition numbers stay below 1e3, so that sqrtm itself is good to 1e-9."""
    a = with_moments(normal(seed, 4), covariance(seed, 4), 30)
    b = with_moments(normal(other, 4), covariance(other, 4), 50)
    assert frechet_distance(a, b) == pytest.approx(frechet_by_sqrtm(a, b), rel=1e-8, abs=1e-8)


@given(hnp.arrays(float, 3, elements=shifts), hnp.arrays(float, (2, 3), elements=st.floats(0.1, 10)))
def test_the_frechet_distance_of_commuting_gaussians_is_a_difference_of_deviations(shift, stds):
    r"""$|\mu|^2 + |\sigma_a - \sigma_b|^2$ where the covariances share their axes."""
    axes = np.linalg.qr(normal(3, 3, 3))[0]
    a, b = (with_moments(m, axes @ np.diag(s**2) @ axes.T, 20) for m, s in zip([0 * shift, shift], stds, strict=True))
    expected = np.sum(shift**2) + np.sum((stds[0] - stds[1]) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("n", [3, 8, 40])
def test_identical_sets_are_at_no_frechet_distance_whatever_their_rank(n):
    """The distance is a difference of traces of size d: 1e-12 is thousands of its last digits."""
    a = normal(0, n, 8)
    assert frechet_distance(a, a[::-1]) <= 1e-12
    assert frechet_distance(a, a + 3) == pytest.approx(8 * 9, rel=1e-12)


def test_the_frechet_distance_of_covariances_of_less_than_full_rank():
    """Gaussians on orthogonal lines: nothing overlaps, and the traces add up."""
    line = np.array([-1.0, 0, 1])
    a, b = np.outer(line, [1, 0, 0, 0]), np.outer(line, [0, 2, 0, 0])
    assert frechet_distance(a, b) == pytest.approx(1 + 4, rel=1e-14)
    assert frechet_distance(a, 3 * a) == pytest.approx(4, rel=1e-14)


@given(seeds, hnp.arrays(float, 4, elements=shifts))
def test_a_shift_of_both_sets_moves_no_distance(seed, shift):
    """A shift of 100 costs the squares four of their sixteen digits."""
    a, b = normal(seed, 12, 4), 2 * normal(seed + 1, 15, 4)
    for metric in (frechet_distance, sliced_wasserstein):
        assert metric(a + shift, b + shift) == pytest.approx(metric(a, b), rel=1e-9)
    assert precision_recall(a + shift, b + shift) == precision_recall(a, b)


def kernel_distance_by_loops(a: np.ndarray, b: np.ndarray) -> float:
    def k(x, y):
        return (sum(x * y) / len(x) + 1) ** 3

    def within(x):
        return np.mean([k(x[i], x[j]) for i, j in itertools.permutations(range(len(x)), 2)])

    return float(within(a) + within(b) - 2 * np.mean([k(x, y) for x in a for y in b]))


def test_the_kernel_distance_is_the_mean_over_blocks_of_the_loops():
    a, b = normal(0, 11, 3), normal(1, 9, 3) + 0.5
    shuffle = np.random.default_rng(5)
    parts = [np.array_split(x[shuffle.permutation(len(x))], 3) for x in (a, b)]
    values = [kernel_distance_by_loops(x, y) for x, y in zip(*parts, strict=True)]
    value, stderr = kernel_distance(a, b, block=4, seed=5)
    assert value == pytest.approx(np.mean(values), rel=1e-12)
    assert stderr == pytest.approx(scipy.stats.sem(values), rel=1e-12)


def test_the_kernel_distance_is_unbiased():
    """The mean over every draw of four and four from two and two points is these points' own distance."""
    a, b = normal(0, 2, 3), normal(1, 2, 3)
    draws = [list(draw) for draw in itertools.product(range(2), repeat=4)]
    mean = np.mean([kernel_distance(a[i], b[j]).value for i, j in itertools.product(draws, repeat=2)])
    assert mean == pytest.approx(_kernel(a, a).mean() + _kernel(b, b).mean() - 2 * _kernel(a, b).mean(), rel=1e-12)


def test_the_kernel_distance_of_equal_distributions_is_zero_within_its_error():
    value, stderr = kernel_distance(normal(0, 2000, 3), normal(1, 2500, 3), block=100)
    assert abs(value) < 4 * stderr
    value, stderr = kernel_distance(normal(0, 2000, 3), normal(1, 2500, 3) + 0.5, block=100)
    assert value > 8 * stderr


def test_the_standard_error_is_the_spread_of_repeated_estimates():
    """Forty estimates know their spread to 11%, their mean stderr is good to 3%: 1.6 is four deviations."""
    runs = [kernel_distance(normal(2 * i, 400, 2), normal(2 * i + 1, 400, 2) + 1, block=20) for i in range(40)]
    spread = np.std([run.value for run in runs], ddof=1)
    assert 1 / 1.6 < np.mean([run.stderr for run in runs]) / spread < 1.6


def test_the_same_seed_gives_the_same_numbers():
    a, b = normal(0, 20, 3), normal(1, 30, 3)
    assert kernel_distance(a, b, block=5, seed=1) == kernel_distance(a, b, block=5, seed=1)
    assert kernel_distance(a, b, block=5, seed=1) != kernel_distance(a, b, block=5, seed=2)
    assert sliced_wasserstein(a, b, seed=1) == sliced_wasserstein(a, b, seed=1)
    assert sliced_wasserstein(a, b, seed=1) != sliced_wasserstein(a, b, seed=2)


@given(seeds)
def test_the_inception_score_is_the_mean_divergence_from_the_marginal(seed):
    p = np.random.default_rng(seed).dirichlet(np.full(5, 0.3), 7)
    divergences = [scipy.stats.entropy(row, p.mean(0)) for row in p]
    score = inception_score(p)
    assert score == pytest.approx(math.exp(np.mean(divergences)), rel=1e-10)
    assert 1 - 1e-12 <= score <= 5 + 1e-12


def test_the_inception_score_reaches_its_bounds():
    assert inception_score(np.eye(7)) == pytest.approx(7, rel=1e-14)
    assert inception_score(np.full((3, 7), 1 / 7)) == pytest.approx(1, rel=1e-14)
    assert inception_score(np.eye(7)[:1]) == 1
    assert inception_score(np.eye(7) * 1.0009) == pytest.approx(7, rel=1e-14)
    assert inception_score(np.eye(7)[[0, 0, 1, 1]]) == pytest.approx(2, rel=1e-14)


def share_covered(points: np.ndarray, centres: np.ndarray, k: int) -> float:
    def inside(x, y):
        others = sorted(math.dist(y, z) for z in centres if z is not y)
        return math.dist(x, y) <= others[k - 1]

    centres = list(centres)  # pyright: ignore[reportAssignmentType]
    return sum(any(inside(x, y) for y in centres) for x in points) / len(points)


@given(seeds, st.integers(1, 5))
def test_precision_and_recall_agree_with_brute_force(seed, k):
    a, b = normal(seed, 9, 2), 0.7 * normal(seed + 1, 12, 2) + 0.5
    precision, recall = precision_recall(a, b, k)
    assert precision == share_covered(b, a, k)
    assert recall == share_covered(a, b, k)


def test_precision_and_recall_do_not_depend_on_the_chunks():
    """More than one chunk of 512 on each side."""
    a, b = normal(0, 700, 4), normal(1, 600, 4) + 1
    far = np.linalg.norm(a[:, None] - b, axis=-1)
    radius = np.sort(np.linalg.norm(a[:, None] - a, axis=-1), axis=1)[:, 3]
    assert precision_recall(a, b).precision == np.mean(np.any(far <= radius[:, None], axis=0))


def test_a_collapsed_generator_is_precise_and_recalls_nothing():
    a = normal(0, 50, 3)
    assert precision_recall(a, np.repeat(a[:1], 50, axis=0)) == (1, 1 / 50)
    assert precision_recall(a, a + 100) == (0, 0)


@given(seeds)
def test_copies_are_covered_even_where_every_ball_is_a_point(seed):
    """At 100 dimensions rounding would put a copy at a distance."""
    a = normal(seed, 41, 100)
    assert precision_recall(np.tile(a, (4, 1)), np.tile(a, (3, 1))[::-1], k=2) == (1, 1)


def test_precision_and_recall_survive_an_offset_that_dwarfs_the_data():
    """The squares of 1e6 would leave four digits of the distances."""
    a, b = normal(0, 40, 3), normal(1, 50, 3) + 1
    assert precision_recall(a + 1e6, b + 1e6) == precision_recall(a, b)


@given(seeds, st.integers(1, 9), st.integers(1, 9))
def test_one_dimension_is_the_wasserstein_distance(seed, n, m):
    a, b = normal(seed, n, 1), 2 * normal(seed + 1, m, 1)
    expected = scipy.stats.wasserstein_distance(a[:, 0], b[:, 0])
    assert sliced_wasserstein(a, b, p=1, projections=2) == pytest.approx(expected, rel=1e-10)


@given(seeds, st.floats(1, 4))
def test_repeating_a_set_changes_no_sliced_distance(seed, p):
    """Copies change no distribution, which is what sets of different sizes are compared as."""
    a, b = normal(seed, 6, 3), normal(seed + 1, 4, 3)
    copies = sliced_wasserstein(np.repeat(a, 2, axis=0), np.repeat(b, 3, axis=0), p=p)
    assert sliced_wasserstein(a, b, p=p) == pytest.approx(copies, rel=1e-10)
    assert sliced_wasserstein(a, np.repeat(a, 3, axis=0), p=p) == 0


@given(st.floats(1, 4), hnp.arrays(float, 3, elements=shifts))
def test_a_shifted_set_is_at_its_shift_seen_along_each_direction(p, shift):
    a = normal(0, 10, 3)
    along = np.abs(_directions(3, 40, seed=7) @ shift)
    expected = np.mean(along**p) ** (1 / p)
    assert sliced_wasserstein(a, a + shift, p=p, projections=40, seed=7) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_directions_are_of_length_one_and_of_no_preference():
    """The mean of theta theta^T is 1 / d, here to four of its standard errors, 0.6 / 100 at most."""
    theta = _directions(3, 10_000, seed=0)
    np.testing.assert_allclose(np.linalg.norm(theta, axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(theta.T @ theta / 10_000, np.eye(3) / 3, atol=4 * 0.006)


@pytest.mark.oracle
def test_the_frechet_distance_agrees_with_torchmetrics():
    torch = pytest.importorskip("torch")
    fid = pytest.importorskip("torchmetrics.image.fid")
    a, b = normal(0, 200, 6), 2 * normal(1, 300, 6) + 1
    moments = [torch.as_tensor(x) for s in (a, b) for x in (s.mean(0), np.cov(s.T))]
    assert frechet_distance(a, b) == pytest.approx(float(fid._compute_fid(*moments)), rel=1e-8)


@pytest.mark.oracle
def test_the_kernel_distance_agrees_with_torchmetrics():
    torch = pytest.importorskip("torch")
    kid = pytest.importorskip("torchmetrics.image.kid")
    a, b = normal(0, 20, 6), normal(1, 20, 6) + 1
    shuffle = np.random.default_rng(0)
    parts = [np.split(torch.as_tensor(x[shuffle.permutation(20)]), 2) for x in (a, b)]
    theirs = np.mean([float(kid.poly_mmd(x, y)) for x, y in zip(*parts, strict=True)])
    assert kernel_distance(a, b).value == pytest.approx(theirs, rel=1e-9)


@pytest.mark.oracle
@pytest.mark.parametrize("p", [1, 2, 3])
def test_the_sliced_distance_agrees_with_pot(p):
    ot = pytest.importorskip("ot")
    a, b = normal(0, 30, 4), normal(1, 50, 4) + 1
    theta = _directions(4, 64, seed=3).T
    theirs = ot.sliced_wasserstein_distance(a, b, projections=theta, p=p)
    assert sliced_wasserstein(a, b, p=p, projections=64, seed=3) == pytest.approx(theirs, rel=1e-9)
