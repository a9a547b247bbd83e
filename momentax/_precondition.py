"""Preconditioners Lambda: linear maps from gradients to gradients, in the instant loss the metric of its norm."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ._adam import check_settings, lambdas
from ._contract import at_least_single, check_key
from ._shard import cut, whole


def identity(grads: PyTree[Any]) -> PyTree[Any]:
    r"""$\Lambda = I$: plain gradient descent as the teacher's optimiser."""
    return grads


class Diagonal(eqx.Module):
    r"""$\Lambda = \mathrm{diag}(scale)$: a tree like the gradients'; each leaf keeps the gradient's dtype.

    Leaves that the gradients leave out (None, as a `filter_spec` makes them) are left out.
    """

    scale: PyTree[Any]

    def __call__(self, grads: PyTree[Any]) -> PyTree[Any]:
        try:
            return _paired(_scaled, grads, self.scale)
        except ValueError as error:
            raise _unfit(self.scale, grads, error) from error

    def covered(self, params: PyTree[Any], filter_spec: PyTree[Any]) -> PyTree[Any]:
        """The `filter_spec` without the leaves that have no scale.

        Raises:
            ValueError: where the parameters are of another structure or other shapes, or none of them has a scale.
        """
        moving = eqx.filter(params, filter_spec)
        try:
            both = _paired(_has_both, moving, self.scale)
        except ValueError as error:
            raise _unfit(self.scale, moving, error) from error
        kept, needed = (len(jax.tree.leaves(tree)) for tree in (eqx.filter(moving, both), moving))
        if kept == 0 < needed:
            raise ValueError(
                f"needs a Lambda of some of the {needed} leaves that move; got one of none of them;"
                " pass the filter_spec of the leaves it was taken for"
            )
        return filter_spec if kept == needed else both


def by_pieces(precond: Callable[[PyTree[Any]], PyTree[Any]]) -> Callable[[PyTree[Any]], PyTree[Any]]:
    """Lambda for gradients in pieces too: one that is not known to work element by element is given them whole."""
    if precond is identity or isinstance(precond, Diagonal):
        return precond
    return lambda grads: cut(precond(whole(grads)), grads)


def adam_preconditioner(opt_state: PyTree[Any], *, b2: float | None = None, eps: float | None = None) -> Diagonal:
    r"""$\Lambda = 1 / (\sqrt{\hat\nu} + \epsilon)$: Adam's, from the state the teacher was trained with.

    $\hat\nu = \nu / (1 - \beta_2^n)$ is the bias-corrected second moment (Kingma & Ba 2015, Algorithm 1); Lambda is
    Algorithm 3's. With b1 = 0, minus the learning rate times Lambda times the gradient was the last update.

    Read are `optax.adam`, `adamw`, `nadam`, `amsgrad` (its greatest second moment) and `paper_optimizer`, which is
    `scale_by_rms(bias_correction=True, eps_in_sqrt=False)`. Under `optax.masked` or `optax.partition`, Lambda is None
    at the leaves that no Adam has. In float32 or better, whatever the state is in.

    The states of `optax.adamax` and `optax.yogi` are of Adam's type and cannot be told from it, nor can
    `scale_by_rms(bias_correction=True)` with eps under the root: Lambda would be another's, by orders of magnitude.
    Use `estimate_preconditioner` for these. An `eps_root` is taken to be 0 unless it was injected.

    Args:
        opt_state: of any optax chain that contains such an optimiser, at least one update old; several, if no two
            have a leaf in common.
        b2, eps: as the optimiser had them, which a state does not tell unless `optax.inject_hyperparams` made it.
            None is what was injected, else 0.999 and 1e-8, and for `paper_optimizer` 0.99 and 1e-12.

    Raises:
        ValueError: where the state contains none, or two of the same leaf, or one that has seen no gradient, or an
            optimiser with another second moment; for settings other than those that were injected; for a state so
            coarse that b2 is 1 in it.
    """
    check_settings(0.999 if b2 is None else b2, 1e-8 if eps is None else eps)
    found = lambdas(opt_state, b2, eps)
    if not found:
        raise ValueError(
            "needs an optimiser state with an Adam of optax; got none; pass the state that `init` or `update` returned,"
            " or use `estimate_preconditioner`"
        )
    return Diagonal(_merged(found))


def estimate_preconditioner(
    loss: Callable[..., Float[Array, ""]],
    teacher: PyTree[Any],
    batches: Iterable[Any],
    key: PRNGKeyArray,
    *,
    b2: float = 0.999,
    eps: float = 1e-8,
    filter_spec: PyTree[Any] = eqx.is_inexact_array,
) -> Diagonal:
    r"""Adam's Lambda for a teacher whose optimiser state is lost: its second moment over some batches.

    The parameters do not move. Salimans et al. 2024 read Lambda off the teacher's Adam; this runs
    Adam's recursion at the teacher itself, in float32 or better whatever the parameters are.

    Args:
        loss: what the teacher was trained with, `(model, x, key, cond=None) -> scalar`: `denoising_loss(...)`.
        batches: some tens of batches `x`, or pairs `(x, cond)`.
        filter_spec: which leaves it is for, as in `eqx.partition`: those of `instant(..., filter_spec=...)`.

    Raises:
        ValueError: where there are no batches.
    """
    check_key(key)
    check_settings(b2, eps)
    adam = optax.scale_by_adam(b2=b2, eps=eps)

    @eqx.filter_jit
    def observe(state, teacher, x, key, cond):
        moving, fixed = eqx.partition(teacher, filter_spec)
        grads = jax.grad(lambda moving: loss(eqx.combine(moving, fixed), x, key, cond))(moving)
        return adam.update(_single(grads), state)[1]

    state = adam.init(_single(eqx.filter(teacher, filter_spec)))
    for i, batch in enumerate(batches):
        x, cond = batch if isinstance(batch, tuple) else (batch, None)
        state = observe(state, teacher, x, jax.random.fold_in(key, i), cond)
    return adam_preconditioner(state, b2=b2, eps=eps)


def _single(tree: PyTree[Any]) -> PyTree[Any]:
    return jax.tree.map(at_least_single, tree)


def _paired(function: Callable[[Any, Any], Any], a: PyTree[Any], b: PyTree[Any]) -> PyTree[Any]:
    """The function of what is in the same place of both trees; None in one stands for all that the other has there."""
    if any(node is None or jax.tree_util.all_leaves([node]) for node in (a, b)):
        return function(a, b)
    (below_a, of_a), (below_b, of_b) = map(eqx.tree_flatten_one_level, (a, b))
    if of_a != of_b:
        raise ValueError(f"{of_a} is not {of_b}")
    return jax.tree.unflatten(of_a, [_paired(function, *both) for both in zip(below_a, below_b, strict=True)])


def _scaled(grad: Any, scale: Any) -> Any:
    if not jax.tree.leaves(grad) and (grad is None or scale is None):
        return grad
    _check_leaves(grad, scale)
    with jax.numpy_dtype_promotion("standard"):
        return (grad * scale).astype(grad.dtype)


def _has_both(param: Any, scale: Any) -> bool:
    if param is None or scale is None:
        return False
    _check_leaves(param, scale)
    if not _broadcasts(scale.shape, param.shape):
        raise ValueError(f"an array of shape {param.shape} is not one of {scale.shape}")
    return True


def _merged(trees: list[PyTree[Any]]) -> PyTree[Any]:
    try:
        return functools.reduce(functools.partial(_paired, _either), trees)
    except ValueError as error:
        raise ValueError(
            f"needs an optimiser state with one Adam to each leaf of one network; got {len(trees)} that do not fit"
            " together; pass the state of one alone, or use `estimate_preconditioner`"
        ) from error


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return jnp.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def _either(a: Any, b: Any) -> Any:
    if a is not None and b is not None:
        raise ValueError("two of the same leaf")
    return b if a is None else a


def _check_leaves(*nodes: Any) -> None:
    if not jax.tree_util.all_leaves(nodes):
        raise ValueError("an array is not a tree")


def _unfit(scale: PyTree[Any], grads: PyTree[Any], error: ValueError) -> ValueError:
    return ValueError(
        f"needs gradients of the scale's structure, {jax.tree.structure(scale)};"
        f" got {jax.tree.structure(grads)} ({error}); take Lambda from this teacher,"
        " by `estimate_preconditioner` if it is guided or clipped"
    )
