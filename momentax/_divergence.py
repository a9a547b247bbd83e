"""What a prediction is measured by: a Bregman divergence, as its loss and its dual map.

All that the losses ask of the data's kind. Squared error is the one of Gaussian data; cross-entropy, whose dual map
is the logarithm, is that of categorical data (equation 9 of arXiv 2603.20155).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class Divergence(NamedTuple):
    r"""A loss $L(target, prediction)$ per example, and the dual map of its predictions.

    The two belong together: $\partial L(x, g)$ in any direction is $c\,(g - x)^T\partial\,dual(g)$ for one c > 0.
    """

    loss: Callable[[Float[Array, "*x"], Float[Array, "*x"]], Float[Array, ""]]
    dual: Callable[[Float[Array, "*x"]], Float[Array, "*x"]]


def _sum_of_squares(target: Float[Array, "*x"], prediction: Float[Array, "*x"]) -> Float[Array, ""]:
    return jnp.sum((target - prediction) ** 2)


def _itself(prediction: Float[Array, "*x"]) -> Float[Array, "*x"]:
    return prediction


squared_error = Divergence(_sum_of_squares, _itself)
