"""Parameter tangents: a function's value and its derivative in one direction, for networks of every kind.

Functions of one type, `(function, primals, tangents) -> (value, J tangents)`, for pytrees of floating-point arrays.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._contract import at_least_single
from ._number import real_or_traced
from ._shard import norm

Tangent = Callable[[Callable[..., Any], PyTree[Any], PyTree[Any]], tuple[Any, Any]]


def forward_mode(
    function: Callable[[PyTree[Any]], PyTree[Any]], primals: PyTree[Any], tangents: PyTree[Any]
) -> tuple[PyTree[Any], PyTree[Any]]:
    r"""$f(\theta)$ and $J\nu$ in one pass, without stored activations: `jax.jvp`.

    Raises:
        ValueError: when traced, before anything is compiled, where the function has a part without a forward-mode
            derivative: a `jax.custom_vjp`, a fused attention kernel.
    """
    _check_forward_mode(function, primals, tangents)
    return jax.jvp(function, (primals,), (tangents,))


def reverse_mode(
    function: Callable[[PyTree[Any]], PyTree[Any]], primals: PyTree[Any], tangents: PyTree[Any]
) -> tuple[PyTree[Any], PyTree[Any]]:
    r"""$f(\theta)$ and $J\nu$ as the derivative of $u \mapsto J^T u$, transposed: exact, at forward mode's cost.

    For functions with a `jax.custom_vjp` whose backward pass is itself differentiable.
    """
    value, pull = jax.vjp(function, primals)
    _, push = jax.vjp(lambda u: pull(u)[0], value)
    return value, push(tangents)[0]


def central_difference(
    function: Callable[[PyTree[Any]], PyTree[Any]],
    primals: PyTree[Any],
    tangents: PyTree[Any],
    *,
    step: float = 2e-3,
) -> tuple[PyTree[Any], PyTree[Any]]:
    r"""$f(\theta)$ and $(f(\theta + h\nu) - f(\theta - h\nu)) / 2h$: three evaluations of any function.

    In float32 or better, which half-precision parameters are cast to; a network that computes in half precision
    whatever its parameters are has no digits left for a difference.

    Args:
        step: $h|\nu| / |\theta|$, the relative length of the step. The error is of the order of its square, and of
            the rounding over it.
    """
    step = real_or_traced("step", step, "(0, inf)", "use 2e-3")
    primals, tangents = (jax.tree.map(at_least_single, tree) for tree in (primals, tangents))
    length = norm(tangents)
    h = step * norm(primals) / jnp.where(length > 0, length, 1)
    ahead, behind = (function(_moved(primals, h * sign, tangents)) for sign in (1, -1))
    return function(primals), jax.tree.map(lambda a, b: (a - b) / (2 * h).astype(a.dtype), ahead, behind)


def _moved(primals: PyTree[Any], h: Float[Array, ""], tangents: PyTree[Any]) -> PyTree[Any]:
    return jax.tree.map(lambda primal, tangent: primal + h.astype(primal.dtype) * tangent, primals, tangents)


def _check_forward_mode(function: Callable[..., Any], primals: PyTree[Any], tangents: PyTree[Any]) -> None:
    # jax.jvp itself lets a custom_vjp pass, as the primitive custom_lin, which only lowering refuses.
    try:
        program = jax.make_jaxpr(lambda p, t: jax.jvp(function, (p,), (t,)))(primals, tangents)
        reason = "a custom_vjp" if "custom_lin" in set(_primitives(program)) else None
    except NotImplementedError as error:
        reason = str(error).partition("\n")[0]
    if reason is not None:
        raise ValueError(
            f"needs a network with a forward-mode derivative; got {reason};"
            " do pass tangent=momentax.reverse_mode, or tangent=momentax.central_difference where that fails too"
        )


def _primitives(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for parameter in jax.tree.leaves(tuple(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(parameter):
                yield from _primitives(parameter)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns")
