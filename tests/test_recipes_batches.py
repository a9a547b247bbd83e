"""Batches: numpy's own draws, in a thread, from any position on."""

import contextlib
import json
import threading
import tracemalloc

import numpy as np
import pytest

from momentax.recipes._batches import batches
from momentax.recipes._data import Dataset

rng = np.random.default_rng(0)
X = rng.uniform(-1, 1, (50, 1, 4, 4)).astype(np.float32)
LABELLED = Dataset("labelled", X, rng.integers(0, 7, 50).astype(np.int32), 7, "none")
PLAIN = Dataset("plain", X, None, 0, "none")


def drawn(dataset, size, seed, hidden):
    """What is drawn, written down once more."""
    rng = np.random.default_rng(seed)
    while True:
        chosen = rng.integers(0, len(dataset.x), size)
        if dataset.y is None:
            yield dataset.x[chosen], None
        else:
            yield dataset.x[chosen], np.where(rng.random(size) < hidden, dataset.num_classes, dataset.y[chosen])


def assert_alike(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dataset", [LABELLED, PLAIN], ids=lambda dataset: dataset.name)
@pytest.mark.parametrize(("size", "seed", "hidden"), [(5, 0, 0.1), (16, 3, 0.0)])
def test_the_draws_are_those_of_the_generator(dataset, size, seed, hidden):
    with contextlib.closing(batches(dataset, size, seed, hidden=hidden)) as examples:
        for _, batch, expected in zip(range(20), examples, drawn(dataset, size, seed, hidden), strict=False):
            assert_alike(batch, expected)


@pytest.mark.parametrize("taken", [0, 1, 7])
def test_a_position_is_plain_json_and_the_draws_go_on_from_it(taken):
    """Although a thread is batches ahead of it."""
    expected = drawn(LABELLED, 5, 0, 0.1)
    with contextlib.closing(batches(LABELLED, 5, 0, hidden=0.1)) as examples:
        for _ in range(taken):
            assert_alike(next(examples), next(expected))
        position = json.loads(json.dumps(examples.get_state()))
        for _ in range(3):
            next(examples)
    with contextlib.closing(batches(LABELLED, 5, 99, hidden=0.1)) as examples:
        next(examples)
        examples.set_state(position)
        for _ in range(10):
            assert_alike(next(examples), next(expected))


def test_no_thread_is_left_behind():
    before = set(threading.enumerate())
    with contextlib.closing(batches(PLAIN, 5, 0, hidden=0.0)) as examples:
        next(examples)
        assert set(threading.enumerate()) - before
    assert not set(threading.enumerate()) - before


def test_memory_stays_flat_over_thousands_of_batches():
    """What Python and numpy hold after 2,000 batches of 400 kB, and after 200: five batches are noise."""
    large = Dataset("large", rng.uniform(-1, 1, (100, 1, 32, 32)).astype(np.float32), None, 0, "none")
    tracemalloc.start()
    try:
        with contextlib.closing(batches(large, 100, 0, hidden=0.0)) as examples:
            early = _held_after(examples, 200)
            late = _held_after(examples, 1800)
    finally:
        tracemalloc.stop()
    assert late - early < 2_000_000


def _held_after(examples, count):
    for _ in range(count):
        next(examples)
    return tracemalloc.get_traced_memory()[0]
