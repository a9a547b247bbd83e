"""Images that stay the bytes they came as, a quarter of what they are as numbers."""

from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from ._formats import scaled


class Pixels:
    """Bytes [n, h, w, c] that look like an array [n, c, h, w] in [-1, 1]: what is taken of them is scaled then."""

    def __init__(self, raw: UInt8[np.ndarray, "n h w c"]):
        self._raw = raw

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the scaled images."""
        n, h, w, c = self._raw.shape
        return n, c, h, w

    def __len__(self) -> int:
        return len(self._raw)

    def __getitem__(self, rows: Any) -> Float32[np.ndarray, "..."]:
        """Some images, or one, in float32, channels first; rows are what NumPy takes for the first axis."""
        return scaled(self._raw[rows])
