"""Batches that go on where they stopped: grain's iterators, over the draws of one of numpy's generators."""

from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from ._data import Dataset
from ._formats import require

grain = require("grain")

Batch = tuple[Float32[np.ndarray, "n *x"], Int[np.ndarray, " n"] | None]


def batches(dataset: Dataset, size: int, seed: int, *, hidden: float) -> Any:
    """Examples drawn with replacement, for ever; a share `hidden` of their labels is the one of no class.

    A `grain.DatasetIterator` of `(x, labels or None)`, which a thread keeps four batches ahead. Its state is the
    generator's after the last batch that was taken. It wants to be closed.
    """
    drawn = _Drawn(dataset, size, seed, hidden)
    return iter(grain.experimental.ThreadPrefetchIterDataset(drawn, prefetch_buffer_size=4))


class _Drawn(grain.IterDataset):
    def __init__(self, dataset: Dataset, size: int, seed: int, hidden: float):
        super().__init__()
        self._drawing = dataset, size, seed, hidden

    def __iter__(self) -> "_Draws":
        return _Draws(*self._drawing)


class _Draws(grain.DatasetIterator):
    def __init__(self, dataset: Dataset, size: int, seed: int, hidden: float):
        super().__init__()
        self._dataset, self._size, self._hidden = dataset, size, hidden
        self._rng = np.random.default_rng(seed)

    def __next__(self) -> Batch:
        data = self._dataset
        chosen = self._rng.integers(0, len(data.x), self._size)
        if data.y is None:
            return data.x[chosen], None
        return data.x[chosen], np.where(self._rng.random(self._size) < self._hidden, data.num_classes, data.y[chosen])

    def get_state(self) -> dict[str, Any]:
        return dict(self._rng.bit_generator.state)

    def set_state(self, state: dict[str, Any]) -> None:
        self._rng.bit_generator.state = state
