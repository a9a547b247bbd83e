"""The optimiser of the paper's recipe."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from ._contract import at_least_single
from ._number import real_or_traced, whole


def paper_optimizer(
    learning_rate: float,
    updates: int,
    *,
    warmup: int = 1000,
    clip: float = 1.0,
    b1: float = 0.0,
    b2: float = 0.99,
    eps: float = 1e-12,
) -> optax.GradientTransformation:
    r"""Clip, then Adam with $\beta_1 = 0$, warmed up and then linear to zero: the recipe of Salimans et al. 2024.

    Without a first moment Adam is RMSprop with bias correction, $g / (\sqrt{\hat\nu} + \epsilon)$, in half the memory.
    Norm and moments are in float32 or better, whatever the parameters are: in float16 `eps` is zero, and so is the
    square of most gradients. An update has its gradient's dtype.

    Args:
        learning_rate: at the end of the warm-up. The paper does not print it; 1e-6 to 1e-5 for its networks.
        updates: after how many the rate is zero, the warm-up's included.
        warmup: updates from zero to `learning_rate`; fewer than `updates`.
        clip: the largest global norm of a gradient; inf for no clipping.
        b1: of the first moment, which the paper does without; above zero, and below one, this is Adam in full.

    Raises:
        ValueError: for a setting out of its range, NaN included, and a warm-up that does not end.
    """
    learning_rate = real_or_traced("learning_rate", learning_rate, "(0, inf)", "use 1e-5")
    updates, warmup = whole("updates", updates, 1, "use 10_000"), whole("warmup", warmup, 0, "use 1000")
    clip = real_or_traced("clip", clip, "(0, inf]", "use 1.0, or inf for no clipping")
    b1 = real_or_traced("b1", b1, "[0, 1)", "use 0.0, or 0.9")
    b2 = real_or_traced("b2", b2, "[0, 1)", "use 0.99")
    eps = real_or_traced("eps", eps, "[0, inf)", "use 1e-12")
    if warmup >= updates:
        raise ValueError(f"needs warmup < updates; got warmup={warmup}, updates={updates}; lower warmup")
    rate = optax.join_schedules(
        [
            optax.linear_schedule(0.0, learning_rate, warmup),
            optax.linear_schedule(learning_rate, 0.0, updates - warmup),
        ],
        [warmup],
    )
    return _in_single(
        optax.clip_by_global_norm(clip),
        optax.scale_by_adam(b1, b2, eps)
        if b1
        else optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        optax.scale_by_learning_rate(rate),
    )


def _in_single(*transforms: optax.GradientTransformation) -> optax.GradientTransformation:
    """Their chain, which sees gradients and parameters of half precision as float32."""
    chain = optax.chain(*transforms)

    def update(updates, state, params=None):
        grads = updates
        updates, state = chain.update(_single(grads), state, _single(params))
        return jax.tree.map(lambda update, grad: update.astype(jnp.asarray(grad).dtype), updates, grads), state

    return optax.GradientTransformation(lambda params: chain.init(_single(params)), update)


def _single(tree: PyTree[Any]) -> PyTree[Any]:
    return jax.tree.map(lambda leaf: at_least_single(leaf) if eqx.is_inexact_array(leaf) else leaf, tree)
