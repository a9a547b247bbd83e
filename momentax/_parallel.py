"""Steps over many devices: replicated and with the batch spread, or with every large array in pieces."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ._contract import check_batch, check_key
from ._shard import Axes, names, spec


def data_parallel(step: Callable[..., Any], mesh: Mesh, axis_name: Axes = "data"):
    r"""The same step, compiled once, with its batch spread over a mesh axis and everything else replicated.

    Args:
        step: `(loss, model, opt_state, x, key[, cond]) -> any pytree`, such as `(model, opt_state, value)`; its
            gradients come from `value_and_grad(loss, axis_name)`. What it returns must be the same on every device.
        mesh: with Auto or Explicit axes; of several processes too, each of which passes the same arrays, or global
            ones of `jax.make_array_from_process_local_data`.
        axis_name: the axis, or several, that the batch is spread over.

    Returns:
        A callable pytree of the step's signature. `cond` is handed on where it is given.

    Raises:
        ValueError: where the mesh has no such axis, or (at the call) the batch does not divide by it.
    """
    _check_axes(mesh, axis_name)
    return _Parallel(step, mesh, names(axis_name), _replicated, _whole)


def fully_sharded(step: Callable[..., Any], mesh: Mesh, axis_name: Axes = "data"):
    r"""The same step with the batch spread over a mesh axis, and model, optimiser state and loss in pieces over it.

    ZeRO-3 (Rajbhandari et al. 2020): every device keeps one piece of each array of the student, the auxiliary, the
    teacher, Lambda and the optimiser's state. A network is gathered for each of its evaluations, and again for its
    derivative, and gradients are scattered as they are summed. An array is split in its largest dimension that
    divides by the axis; vectors, and what does not divide, are replicated. The optimiser works on whole arrays as
    the compiler sees them: clipping by the global norm is that of one device.

    Args:
        step: as `data_parallel`'s: gradients from `value_and_grad(loss, axis_name)`, and no collectives of its own.
        axis_name: the axis; or several, which the batch is spread over, with pieces over the last of them.

    Returns:
        A callable pytree of the step's signature; every array that it returns is placed as the inputs are.

    Raises:
        ValueError: where the mesh has no such axis, or (at the call) the batch does not divide by it.
    """
    _check_axes(mesh, axis_name)
    return _Parallel(step, mesh, names(axis_name), _in_pieces, spec)


class _Parallel(eqx.Module):
    """A step over a mesh: how it is taken, and how the arrays of its players are placed."""

    step: Callable[..., Any]
    mesh: Mesh = eqx.field(static=True)
    axes: tuple[str, ...] = eqx.field(static=True)
    taken: Callable[..., PyTree[Any]] = eqx.field(static=True)
    spec: Callable[..., P] = eqx.field(static=True)

    def __call__(
        self,
        loss: Callable[..., Any],
        model: PyTree[Any],
        opt_state: PyTree[Any],
        x: Float[Array, "n *x"],
        key: PRNGKeyArray,
        cond: PyTree[Any] = None,
    ) -> PyTree[Any]:
        check_batch(x, cond)
        check_key(key)
        return _jitted(self, *self._placed((loss, model, opt_state), (x, cond), key))

    def lower(
        self, loss: Any, model: PyTree[Any], opt_state: PyTree[Any], x: Any, key: Any, cond: PyTree[Any] = None
    ) -> Any:
        """The program of a call, to read or to compile: of arrays, or of `jax.ShapeDtypeStruct`s in their place."""
        placed = self._placed((loss, model, opt_state), (x, cond), key)
        arrays, rest = eqx.partition((self, *placed), lambda leaf: eqx.is_array(leaf) or _is_struct(leaf))
        return jax.jit(lambda arrays: eqx.filter(_call(*eqx.combine(arrays, rest)), eqx.is_array)).lower(arrays)

    def place(self, tree: PyTree[Any]) -> PyTree[Any]:
        """Every array of a player where it belongs on the mesh."""
        return _placed(tree, self.mesh, lambda leaf: self.spec(leaf, self.axes[-1], self.mesh.shape[self.axes[-1]]))

    def _placed(self, players, batch, key):
        _check_divides(batch[0], self.mesh, self.axes)
        batch = _placed(batch, self.mesh, lambda leaf: P(self.axes))
        return self.place(players), batch, _placed(key, self.mesh, lambda leaf: P())


def _call(parallel: _Parallel, players: PyTree[Any], batch: PyTree[Any], key: PRNGKeyArray) -> PyTree[Any]:
    return parallel.taken(parallel, players, batch, key)


_jitted = eqx.filter_jit(_call)


def _replicated(parallel: _Parallel, players: PyTree[Any], batch: PyTree[Any], key: PRNGKeyArray) -> PyTree[Any]:
    arrays, rest = eqx.partition(players, eqx.is_array)
    results = []

    def on_one_device(arrays, batch, key):
        dynamic, static = eqx.partition(_taken(parallel.step, eqx.combine(arrays, rest), batch, key), eqx.is_array)
        results.append(static)
        return dynamic

    in_specs = (P(), P(parallel.axes), P())
    spread = jax.shard_map(on_one_device, mesh=parallel.mesh, in_specs=in_specs, out_specs=P())
    return eqx.combine(spread(arrays, batch, key), results[-1])


def _in_pieces(parallel: _Parallel, players: PyTree[Any], batch: PyTree[Any], key: PRNGKeyArray) -> PyTree[Any]:
    with jax.sharding.use_abstract_mesh(parallel.mesh.abstract_mesh):
        return parallel.place(_taken(parallel.step, players, batch, key))


def _taken(step: Callable[..., Any], players: PyTree[Any], batch: PyTree[Any], key: PRNGKeyArray) -> PyTree[Any]:
    x, cond = batch
    return step(*players, x, key, *(() if cond is None else (cond,)))


def _whole(leaf: Any, axis: str, devices: int) -> P:
    return P()


def _placed(tree: PyTree[Any], mesh: Mesh, spec: Callable[[Any], P]) -> PyTree[Any]:
    """Every array where it belongs on the mesh; of several processes, each puts there what it has."""

    def place(leaf):
        if _is_struct(leaf):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec(leaf)))
        if not isinstance(leaf, jax.Array | np.ndarray):
            return leaf
        sharding = NamedSharding(mesh, spec(leaf))
        if isinstance(leaf, Tracer):
            return _constrained(leaf, sharding)
        if getattr(leaf, "sharding", None) == sharding:
            return leaf
        here = sharding.is_fully_addressable or not getattr(leaf, "is_fully_addressable", True)
        return jax.device_put(leaf, sharding) if here else _global(leaf, sharding)

    return jax.tree.map(place, tree)


def _constrained(leaf: Any, sharding: NamedSharding) -> Any:
    """Inside a program, where `jax.device_put` binds the compiler on explicit axes only."""
    types = dict(zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True))

    def over(axis_type):
        return P(*(axis if types.get(axis) == axis_type else None for axis in sharding.spec))

    if AxisType.Explicit in types.values():
        leaf = jax.sharding.reshard(leaf, NamedSharding(sharding.mesh, over(AxisType.Explicit)))
    if AxisType.Auto in types.values():
        leaf = lax.with_sharding_constraint(leaf, NamedSharding(sharding.mesh, over(AxisType.Auto)))
    return leaf


def _is_struct(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _global(leaf: Array | np.ndarray, sharding: NamedSharding) -> Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _global(jax.random.key_data(leaf), NamedSharding(sharding.mesh, sharding.spec))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, values.__getitem__)


def _check_axes(mesh: Mesh, axis_name: Axes) -> None:
    for name in names(axis_name):
        if name not in mesh.shape:
            raise ValueError(f"needs a mesh with the axis {name!r}; got {tuple(mesh.shape)}; do name one of these")


def _check_divides(x: Any, mesh: Mesh, axes: tuple[str, ...]) -> None:
    """Demands a batch that is spread evenly."""
    devices = int(np.prod([mesh.shape[name] for name in axes]))
    if x.shape[0] % devices:
        raise ValueError(
            f"needs a batch that divides by the {devices} devices of the axis; got {x.shape[0]} examples;"
            f" do take {x.shape[0] - x.shape[0] % devices or devices}"
        )
