"""Which states of optax tell a Lambda, and that it is the one their optimiser used."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_trees_close, linear

import momentax

RATE = 0.01
PARAMS = linear(jax.random.key(0))
GRADIENTS = [linear(key) for key in jax.random.split(jax.random.key(1), 4)]
MATRIX, VECTOR = (jax.tree.map(lambda leaf, n=n: leaf.ndim == n, PARAMS) for n in (2, 1))
X = jax.random.normal(jax.random.key(2), (8, 3))


@pytest.fixture(autouse=True, scope="module")
def _optax_promotes():
    """Optax raises its decay rates to an int32 count."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def after(optimizer: Any, params: Any = PARAMS) -> tuple[Any, Any]:
    """The state after some updates, and the last update."""
    state, update, step = optimizer.init(params), None, jax.jit(optimizer.update)
    for gradient in GRADIENTS:
        update, state = step(gradient, state, params)
    return state, update


def injected(factory: Any, **settings: Any) -> Any:
    return optax.inject_hyperparams(factory)(RATE, **settings)


READ = {
    "adamw": optax.adamw(RATE, b1=0.0, weight_decay=0.0),
    "nadam": optax.nadam(RATE, b1=0.0),
    "amsgrad": optax.amsgrad(RATE, b1=0.0),
    "paper": momentax.paper_optimizer(RATE, 10**9, warmup=0, clip=float("inf")),
    "adam alone": optax.scale_by_adam(b1=0.0),
    "injected adam": injected(optax.adam, b1=0.0, b2=0.9, eps=0.1),
    "injected eps_root": injected(optax.adam, b1=0.0, eps_root=0.1),
    "injected amsgrad": injected(optax.amsgrad, b1=0.0, b2=0.9, eps=0.1),
    "injected schedule": injected(optax.adam, b1=0.0, eps=lambda n: 0.1 * n),
    "injected outside a chain": optax.inject_hyperparams(
        lambda b2: optax.chain(optax.clip(1e9), optax.scale_by_adam(b1=0.0, b2=b2))
    )(0.9),
    "injected rms": optax.inject_hyperparams(optax.scale_by_rms)(
        decay=0.9, eps=0.1, eps_in_sqrt=False, bias_correction=True
    ),
}


@pytest.mark.parametrize("optimizer", READ.values(), ids=READ)
def test_the_last_update_is_lambda_of_the_last_gradient_up_to_the_rate(optimizer):
    """The settings are the state's own, or the optimiser's defaults."""
    state, update = after(optimizer)
    found = momentax.adam_preconditioner(state)(GRADIENTS[-1])
    rate = jnp.vdot(update.drift, found.drift) / jnp.vdot(found.drift, found.drift)
    # Optax's schedule takes the rate in float32.
    assert min(abs(rate + RATE), abs(rate - 1)) < 1e-7
    assert_trees_close(jax.tree.map(lambda leaf: rate * leaf, found), update, rtol=1e-9)


def test_settings_that_are_told_and_injected_must_agree():
    state, _ = after(injected(optax.adam, b2=0.9, eps=0.1))
    told = momentax.adam_preconditioner(state, b2=0.9, eps=0.1)
    assert_trees_close(told.scale, momentax.adam_preconditioner(state).scale, rtol=1e-12)
    for name, other in (("b2", 0.999), ("eps", 1e-8)):
        with pytest.raises(ValueError, match=rf"^needs the {name} that the state .+; got {other}; leave it out"):
            momentax.adam_preconditioner(state, **{name: other})


REFUSED = {
    "ScaleByRmsState": optax.rmsprop(RATE),
    "ScaleByBeliefState": optax.adabelief(RATE),
    "ScaleByAdanState": optax.adan(RATE),
    "ScaleByLionState": optax.lion(RATE),
    "ScaleByRStdDevState": optax.rmsprop(RATE, centered=True),
    "ScaleByNovogradState": optax.novograd(RATE),
    "ScaleBySM3State": optax.sm3(RATE),
    "ScaleByRssState": optax.adagrad(RATE),
    "ScaleByAdaDeltaState": optax.adadelta(RATE),
    "FactoredState": optax.adafactor(RATE),
    "ScaleByRpropState": optax.rprop(RATE),
    "ScaleByLBFGSState": optax.scale_by_lbfgs(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_second_moment_is_refused_by_its_name(name):
    """Beside an Adam too: Lambda is then not the Adam's."""
    for optimizer in (REFUSED[name], optax.chain(REFUSED[name], optax.scale_by_adam())):
        with pytest.raises(ValueError, match=rf"^needs .+Adam's second moment; got optax\.{name}, .+; pass the state"):
            momentax.adam_preconditioner(optimizer.init({"a": jnp.ones((3, 3))}))


def test_leaves_that_an_adam_does_not_have_are_left_out():
    state, update = after(optax.masked(optax.adam(RATE, b1=0.0), MATRIX))
    precond = momentax.adam_preconditioner(state)
    assert precond.scale.drift is None
    found = precond(eqx.filter(GRADIENTS[-1], MATRIX))
    np.testing.assert_allclose(-RATE * found.weight, update.weight, rtol=1e-12)


ADAMS: dict[Any, Any] = {n: injected(optax.adam, b1=0.0, eps=0.1 * n) for n in (1, 2)}


def test_adams_of_other_leaves_are_put_together():
    state, update = after(optax.partition(ADAMS, lambda params: jax.tree.map(jnp.ndim, params)))
    found = momentax.adam_preconditioner(state)(GRADIENTS[-1])
    assert_trees_close(jax.tree.map(lambda leaf: -RATE * leaf, found), update, rtol=1e-12)


def test_adams_of_whole_branches_are_put_together():
    """A mask that is a prefix of the parameters leaves one mark for all that is below."""
    params: Any
    gradient: Any
    params, gradient = ({"a": tree, "b": tree, "c": tree} for tree in (PARAMS, GRADIENTS[-1]))
    adams: dict[Any, Any] = ADAMS | {3: optax.sgd(RATE)}
    optimizer: Any = optax.partition(adams, {"a": 1, "b": 2, "c": 3})
    update, state = optimizer.update(gradient, optimizer.init(params))
    precond = momentax.adam_preconditioner(state)
    assert precond.scale["c"] is None
    found = precond(gradient | {"c": jax.tree.map(lambda _: None, PARAMS)})
    for name in ("a", "b"):
        assert_trees_close(jax.tree.map(lambda leaf: -RATE * leaf, found[name]), update[name], rtol=1e-12)
    with pytest.raises(ValueError, match="needs gradients of the scale's structure"):
        precond(gradient)


def test_adams_of_two_networks_are_refused():
    state = {"a": after(optax.adam(RATE))[0], "b": optax.adam(RATE).init([jnp.ones(2)])}
    state["b"] = optax.adam(RATE).update([jnp.ones(2)], state["b"])[1]
    with pytest.raises(ValueError, match=r"^needs .+ one Adam to each leaf of one network; got 2 .+; pass"):
        momentax.adam_preconditioner(state)


@eqx.filter_jit
def evaluate(loss):
    return eqx.filter_value_and_grad(loss)(linear(jax.random.key(5)), X, jax.random.key(3))


@pytest.mark.parametrize("given", [eqx.is_inexact_array, MATRIX], ids=["all", "some"])
def test_instant_under_a_lambda_of_some_leaves_is_instant_over_these(given):
    state, _ = after(optax.masked(optax.adam(RATE), MATRIX))
    full = momentax.adam_preconditioner(after(optax.adam(RATE))[0])
    found = evaluate(momentax.instant(PARAMS, momentax.adam_preconditioner(state), filter_spec=given))
    assert_trees_close(found, evaluate(momentax.instant(PARAMS, full, filter_spec=MATRIX)), rtol=1e-12)
    assert found[0] != evaluate(momentax.instant(PARAMS, full))[0]


def test_instant_under_a_lambda_of_whole_branches_is_instant_over_these():
    class Pair(eqx.Module):
        nets: dict

        def __call__(self, z, logsnr, cond=None):
            return self.nets["a"](z, logsnr / 10) + jnp.tanh(self.nets["b"](z, logsnr / 10))

    teacher = Pair({"a": PARAMS, "b": GRADIENTS[0]})
    part = momentax.Diagonal(Pair({"a": GRADIENTS[1], "b": None}))
    full = momentax.Diagonal(Pair({"a": GRADIENTS[1], "b": GRADIENTS[2]}))
    spec = Pair({"a": True, "b": False})
    found = evaluate(momentax.instant(teacher, part))
    assert_trees_close(found, evaluate(momentax.instant(teacher, full, filter_spec=spec)), rtol=1e-12)


@pytest.mark.parametrize(
    "scale",
    [{"a": jnp.ones(2)}, eqx.tree_at(lambda net: net.weight, PARAMS, jnp.ones(5)), eqx.filter(PARAMS, VECTOR)],
    ids=["structure", "shape", "no leaf"],
)
def test_a_lambda_that_does_not_fit_is_told_when_the_loss_is_built(scale):
    with pytest.raises(ValueError, match=r"^needs .+; got .+; (take|pass) .+"):
        momentax.instant(PARAMS, momentax.Diagonal(scale), filter_spec=MATRIX)


def test_a_lambda_of_all_leaves_changes_nothing():
    for spec in (eqx.is_inexact_array, MATRIX):
        loss: Any = momentax.instant(PARAMS, momentax.Diagonal(PARAMS), filter_spec=spec)
        assert loss.filter_spec is spec
