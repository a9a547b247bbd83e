"""Low-rank factors beside frozen weights: a student that shares its teacher's memory."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ._number import real, whole


def lora(
    model: Callable[..., Any],
    rank: int,
    *,
    key: PRNGKeyArray,
    filter_spec: PyTree[Any] = True,
    scale: float = 1.0,
):
    r"""The model with $W + s\,BA$ for its weights W, of which only B and A are to be trained (Hu et al. 2021).

    $W \in R^{m \times n}$, $B \in R^{m \times r}$, $A \in R^{r \times n}$ (arXiv 2106.09685, section 4.1). B starts at
    zero, so that the model starts as it is, and A with rows of unit length on average. A weight of more than two axes
    is the matrix that its shape splits into with the longest shorter side: [3, 3, c, d] is 9c by d, if d is at least
    9. A weight whose shorter side is below the rank has factors of that side.

    The result is called as the model is. It holds the model's very arrays, which get no gradient, and the factors, in
    float32 or better; `adapters` selects these and `merge` folds them in. A jitted step should return the factors
    alone, since jit copies what it hands through:

        factors, frozen = eqx.partition(student, momentax.adapters(student))
        grads = eqx.filter_grad(lambda factors: loss_fn(eqx.combine(factors, frozen), x, key))(factors)

    Args:
        rank: r.
        filter_spec: which weights, as in `eqx.filter`; of these the floating-point ones of two axes or more.
        scale: s > 0.

    Raises:
        ValueError: for a rank that is not positive or above every weight's shorter side; for a scale that is not inside
            (0, inf); if no weight is selected.
    """
    rank, scale = whole("rank", rank, 1, "use 8"), real("scale", scale, "(0, inf)", "use 1.0")
    chosen = jax.tree.map(_weight_or_none, eqx.filter(model, filter_spec))
    _check_rank(rank, [min(_sides(weight.shape)) for weight in jax.tree.leaves(chosen)])
    weights, structure = jax.tree.flatten(chosen)
    keys = jax.random.split(key, len(weights))
    left, right = zip(*map(lambda weight, key: _factors(weight, rank, key), weights, keys), strict=True)
    return _LowRank(model, structure.unflatten(left), structure.unflatten(right), scale)


def adapters(model: PyTree[Any]) -> PyTree[bool]:
    """Equinox's filter of what is to be trained: True at the low-rank factors in a model, False elsewhere.

    Raises:
        ValueError: if there are none.
    """
    spec = jax.tree.map(lambda node: node.adapters() if _is_low_rank(node) else False, model, is_leaf=_is_low_rank)
    if not any(jax.tree.leaves(spec)):
        raise ValueError("needs a model with low-rank factors; got none; do `momentax.lora(model, rank, key=key)`")
    return spec


def merge(model: PyTree[Any]) -> Any:
    """The model with its low-rank factors folded into plain weights, of the type that was given to `lora`."""
    return jax.tree.map(lambda node: merge(node.dense()) if _is_low_rank(node) else node, model, is_leaf=_is_low_rank)


class _LowRank(eqx.Module):
    base: Callable[..., Any]
    left: PyTree[Any]
    right: PyTree[Any]
    scale: float = eqx.field(static=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.dense()(*args, **kwargs)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """What `inspect.signature` looks at: the arguments are the base's."""
        return self.base

    def dense(self) -> Any:
        def add(frozen, left, right):
            return _sum(frozen, left, right, self.scale)

        return jax.tree.map(add, _frozen(self.base), self.left, self.right, is_leaf=lambda leaf: leaf is None)

    def adapters(self) -> "_LowRank":
        left, right = jax.tree.map(lambda _: True, (self.left, self.right))
        return _LowRank(jax.tree.map(lambda _: False, self.base), left, right, self.scale)


def _is_low_rank(node: Any) -> bool:
    return isinstance(node, _LowRank)


def _weight_or_none(leaf: Any) -> Any:
    return leaf if eqx.is_inexact_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim > 1 else None


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    cuts = [(math.prod(shape[:cut]), math.prod(shape[cut:])) for cut in range(1, len(shape))]
    return max(cuts, key=min)


def _check_rank(rank: int, sides: list[int]) -> None:
    if not sides:
        raise ValueError(
            "needs floating-point weights of two axes or more; got a model and a filter_spec with none;"
            " select some, or use `filter_spec=True`"
        )
    if rank > max(sides):
        raise ValueError(
            f"needs a rank of at most {max(sides)}, the longest shorter side of a weight; got {rank};"
            " lower it, or train the weights themselves"
        )


def _factors(
    weight: Float[Array, "..."], rank: int, key: PRNGKeyArray
) -> tuple[Float[Array, "m r"], Float[Array, "r n"]]:
    m, n = _sides(weight.shape)
    r, dtype = min(rank, m, n), weight.dtype if jnp.finfo(weight.dtype).bits >= 32 else jnp.float32
    return jnp.zeros((m, r), dtype), jax.random.normal(key, (r, n), dtype) / math.sqrt(n)


def _frozen(model: Any) -> Any:
    return jax.tree.map(lambda leaf: lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf, model)


def _sum(frozen: Any, left: Any, right: Any, scale: float) -> Any:
    if left is None:
        return frozen
    change = scale * (left @ right).reshape(frozen.shape)
    return (frozen.astype(change.dtype) + change).astype(frozen.dtype)
