from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped


class Tensors:
    """The named arrays of a checkpoint, each to be taken once; what is missing, misshapen or left over is an error."""

    def __init__(self, arrays: Mapping[str, Shaped[np.ndarray, "..."]], source: Any):
        self._arrays = dict(arrays)
        self._source = source

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def take(self, name: str, shape: tuple[int, ...]) -> Shaped[Array, "..."]:
        """The array of this name and shape, which nobody else will take."""
        if name not in self._arrays:
            raise ValueError(f"needs the tensor {name!r} in {self._source}; got none; do check its config.json")
        array = self._arrays.pop(name)
        if array.shape != tuple(shape):
            raise ValueError(
                f"needs {name!r} of shape {tuple(shape)}; got {array.shape} in {self._source}; do check its config.json"
            )
        return jnp.asarray(array)

    def finish(self) -> None:
        """Demands that nothing is left."""
        if self._arrays:
            names = sorted(self._arrays)
            shown = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise ValueError(
                f"needs a network with a place for every tensor; got {shown} left over from {self._source};"
                " do check its config.json, or report an option that is not supported"
            )
