"""What the state of an optax optimiser tells of its second moment."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Inexact, PyTree

from ._contract import at_least_single
from ._number import real_or_traced

# Which optax does not export: what `scale_by_rms` makes.
_ScaleByRmsWithCountState = type(jax.eval_shape(optax.scale_by_rms(bias_correction=True).init, ()))
_INJECTED = (optax.InjectHyperparamsState, optax.InjectStatefulHyperparamsState)
_REFUSED = (
    optax.FactoredState,
    optax.ScaleByAdaDeltaState,
    optax.ScaleByAdanState,
    optax.ScaleByBeliefState,
    optax.ScaleByLionState,
    optax.ScaleByLBFGSState,
    optax.ScaleByNovogradState,
    optax.ScaleByRmsState,
    optax.ScaleByRpropState,
    optax.ScaleByRssState,
    optax.ScaleByRStdDevState,
    optax.ScaleBySM3State,
)


class _Settings(NamedTuple):
    """Of an Adam: the decay of its second moment, and what it adds to its root, and under it."""

    b2: Any
    eps: Any
    eps_root: Any = 0.0


def lambdas(opt_state: PyTree[Any], b2: Any, eps: Any) -> list[PyTree[Any]]:
    r"""$1 / (\sqrt{\hat\nu + \epsilon_{root}} + \epsilon)$ of every Adam in a state; None at leaves that it has not."""
    return [_READ[type(state)](state, hyper, b2, eps) for state, hyper in _states(opt_state, {})]


def check_settings(b2: Any, eps: Any) -> None:
    """Demands settings of an Adam."""
    real_or_traced("b2", b2, "[0, 1)", "use 0.999, or what the optimiser had")
    real_or_traced("eps", eps, "[0, inf)", "use 1e-8, or what the optimiser had")


def _states(node: PyTree[Any], hyper: Mapping[str, Any]) -> list[tuple[Any, Mapping[str, Any]]]:
    """The states that can be read, each with the hyperparameters that were injected around it."""
    found = []
    for leaf in jax.tree.leaves(node, is_leaf=_is_known):
        if isinstance(leaf, _INJECTED):
            found += _states(leaf.inner_state, {**hyper, **leaf.hyperparams})
        elif isinstance(leaf, tuple(_READ)):
            found.append((leaf, hyper))
        elif isinstance(leaf, _REFUSED):
            raise ValueError(
                f"needs an optimiser with Adam's second moment; got {_named(leaf)}, which divides by another;"
                " pass the state of an Adam beside it alone, or use `estimate_preconditioner`"
            )
    return found


def _is_known(node: Any) -> bool:
    return isinstance(node, (*_INJECTED, *_READ, *_REFUSED))


def _of_adam(state: optax.ScaleByAdamState, hyper: Mapping[str, Any], b2: Any, eps: Any) -> PyTree[Any]:
    return _corrected(state, _settings(hyper, {"b2": b2, "eps": eps}, _Settings(0.999, 1e-8)))


def _of_rms(state: Any, hyper: Mapping[str, Any], b2: Any, eps: Any) -> PyTree[Any]:
    decay = "decay" if "decay" in hyper else "b2"
    return _corrected(state, _settings(hyper, {decay: b2, "eps": eps}, _Settings(0.99, 1e-12)))


def _of_amsgrad(state: optax.ScaleByAmsgradState, hyper: Mapping[str, Any], b2: Any, eps: Any) -> PyTree[Any]:
    """Its greatest second moment, which has been corrected before it was compared."""
    settings = _settings(hyper, {"b2": b2, "eps": eps}, _Settings(0.999, 1e-8))
    _check_state(state, settings)
    return jax.tree.map(lambda nu: _inverse_root(_real(nu), settings), _given(state.nu_max))


_READ: dict[type, Callable[..., PyTree[Any]]] = {
    optax.ScaleByAdamState: _of_adam,
    optax.ScaleByAmsgradState: _of_amsgrad,
    _ScaleByRmsWithCountState: _of_rms,
}


def _corrected(state: Any, settings: _Settings) -> PyTree[Any]:
    _check_state(state, settings)
    nu = jax.tree.map(_real, _given(state.nu))
    corrected = optax.tree.bias_correction(nu, settings.b2, state.count)
    return jax.tree.map(lambda nu: _inverse_root(nu, settings), corrected)


def _inverse_root(nu: Float[Array, "..."], settings: _Settings) -> Float[Array, "..."]:
    """One over the root."""
    return 1 / (jnp.sqrt(nu + settings.eps_root) + settings.eps)


def _given(tree: PyTree[Any]) -> PyTree[Any]:
    """None in the place of what `optax.masked` left out."""
    return jax.tree.map(lambda leaf: None if _is_masked(leaf) else leaf, tree, is_leaf=_is_masked)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _real(nu: Inexact[Array, "..."]) -> Float[Array, "..."]:
    """Of complex parameters optax keeps |g|^2 as a complex number."""
    return jnp.real(at_least_single(nu))


def _settings(hyper: Mapping[str, Any], told: Mapping[str, Any], default: _Settings) -> _Settings:
    """What was told, and else what was injected, and else what the optimiser has by default."""
    b2, eps = (_agreed(name, value, hyper.get(name)) for name, value in told.items())
    return _Settings(
        default.b2 if b2 is None else b2, default.eps if eps is None else eps, hyper.get("eps_root", default.eps_root)
    )


def _agreed(name: str, told: Any, injected: Any) -> Any:
    if told is None or injected is None:
        return injected if told is None else told
    known = not isinstance(told, Tracer) and not isinstance(injected, Tracer)
    if known and np.asarray(told).astype(np.asarray(injected).dtype) != np.asarray(injected):
        raise ValueError(f"needs the {name} that the state was made with, {float(injected)}; got {told}; leave it out")
    return told


def _check_decay(b2: Any, dtype: Any) -> None:
    if not isinstance(b2, Tracer) and np.asarray(b2).astype(jnp.finfo(dtype).dtype) == 1:
        raise ValueError(
            f"needs a second moment in a precision that tells b2={float(b2)} from 1; got {dtype}, a sum without decay;"
            " use `estimate_preconditioner`"
        )


def _check_state(state: Any, settings: _Settings) -> None:
    for nu in jax.tree.leaves(state.nu):
        _check_decay(settings.b2, nu.dtype)
    if not isinstance(state.count, Tracer) and int(jnp.asarray(state.count)) < 1:
        raise ValueError("needs an Adam state that has seen a gradient; got count 0; update it at least once")


def _named(state: Any) -> str:
    return f"optax.{type(state).__name__}"
