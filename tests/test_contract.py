"""The public boundary: every demand says what it needs, what it got and what to do."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from helpers import Tanh, linear
from jax.sharding import AxisType

import momentax as mm
from momentax._contract import at_least_single, check_batch, check_key, checked_shape
from momentax._number import real, whole

SENTENCE = r"^needs .+; got .+; .+"


@pytest.mark.parametrize("key", [jax.random.PRNGKey(0), 0, None, jnp.zeros(2, jnp.uint32)])
def test_a_key_that_is_not_typed_is_a_type_error(key):
    with pytest.raises(TypeError, match=SENTENCE):
        check_key(key)


def test_a_batch_of_keys_is_not_a_key():
    with pytest.raises(ValueError, match=SENTENCE):
        check_key(jax.random.split(jax.random.key(0), 3))


def test_the_shape_and_dtype_of_a_wrong_key_are_told():
    with pytest.raises(TypeError, match=r"got uint32\[2\]"):
        check_key(jax.random.PRNGKey(0))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        check_key(jax.random.split(jax.random.key(0), 3))


def test_a_key_under_jit_and_vmap_is_a_key():
    @jax.jit
    @jax.vmap
    def checked(key):
        check_key(key)
        return key

    assert checked(jax.random.split(jax.random.key(0), 3)).shape == (3,)


@pytest.mark.parametrize("x", [jnp.zeros((2, 3), jnp.int32), np.zeros((2, 3), np.uint8), [[1.0, 2.0]], None])
def test_a_batch_that_is_not_floating_point_is_a_type_error(x):
    with pytest.raises(TypeError, match=SENTENCE):
        check_batch(x)


@pytest.mark.parametrize("x", [jnp.zeros(()), jnp.zeros((0, 3))])
def test_a_batch_without_examples_is_an_error(x):
    with pytest.raises(ValueError, match=SENTENCE):
        check_batch(x)


@pytest.mark.parametrize("leaf", [jnp.zeros(()), 3, jnp.zeros((3,)), jnp.zeros((0, 2))])
def test_a_conditioning_of_another_length_is_an_error_that_names_the_leaf(leaf):
    with pytest.raises(ValueError, match=SENTENCE) as error:
        check_batch(jnp.zeros((2, 3)), {"label": jnp.zeros(2), "text": leaf})
    assert "cond['text']" in str(error.value)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_a_batch_of_any_floating_point_with_its_conditioning_passes(dtype):
    check_batch(jnp.zeros((2, 3), dtype), {"label": jnp.zeros(2, jnp.int32), "text": jnp.zeros((2, 5))})
    check_batch(jnp.zeros(1, dtype))


@pytest.mark.usefixtures("_as_users_run_it")
@pytest.mark.parametrize("k", [0, -1, 2.0, True, np.True_, "8", None, float("nan")])
def test_a_number_of_steps_is_a_positive_whole_number(k):
    for make in (lambda: whole("k", k, 1, "use 8"), lambda: mm.Rollout(k=k), lambda: mm.ancestral_sampler(NET, k)):
        with pytest.raises(ValueError, match=SENTENCE):
            make()


@pytest.mark.usefixtures("_as_users_run_it")
@pytest.mark.parametrize("k", [4, np.int64(4), np.uint8(4), jnp.asarray(4, jnp.int32)])
def test_whole_numbers_of_every_library_are_numbers_of_steps(k):
    for found in (whole("k", k, 1, "use 8"), mm.Rollout(k=k).k, mm.ancestral_sampler(NET, k).k):
        assert type(found) is int
        assert found == 4


@pytest.mark.parametrize("shape", [3, None, "ab", (3.0,), (-1,), (2, 0), (None,), (True, 2), jnp.ones(2)])
def test_the_shape_of_an_example_is_positive_whole_numbers(shape):
    with pytest.raises(ValueError, match=SENTENCE):
        checked_shape(shape)
    for right in [(), (3,), [3, 4], (np.int64(3), 1)]:
        assert checked_shape(right) == tuple(right)


INTERVALS = {"[0, 1]": (0, 0.5, 1), "(0, 1)": (0.5,), "[0, 1)": (0, 0.5), "(0, 1]": (0.5, 1)}


@pytest.mark.parametrize("interval", INTERVALS)
def test_an_interval_holds_the_ends_that_its_square_brackets_stand_at(interval):
    for value in (0, 0.5, 1):
        if value in INTERVALS[interval]:
            assert real("eta", value, interval, "use 0.5") == value
        else:
            with pytest.raises(ValueError, match=r"^needs eta as a number in .+; got .+; use 0\.5"):
                real("eta", value, interval, "use 0.5")


@pytest.mark.usefixtures("_as_users_run_it")
@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), jnp.asarray(0.5, jnp.bfloat16), np.asarray(0.5)])
def test_numbers_of_every_library_become_pythons_own(value):
    assert type(real("eta", value, "[0, 1]", "use 0.5")) is float
    assert type(mm.stochastic(value).eta) is float


@pytest.mark.parametrize(
    ("given", "carried"),
    [("bfloat16", "float32"), ("float16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_half_precision_is_carried_in_single_and_nothing_else_changes(given, carried):
    x = jnp.asarray([0.5, -1.25], given)
    assert at_least_single(x).dtype == carried
    np.testing.assert_array_equal(at_least_single(x).astype(float), x.astype(float))


class Untouched(eqx.Module):
    """A network that nothing may have come to: whatever is refused is refused before it is asked."""

    def __call__(self, z, logsnr, cond=None):
        raise AssertionError


def data_parallel(model, x, key, cond=None):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))

    def step(loss, model, opt_state, x, key, cond=None):
        return mm.value_and_grad(loss, "data")(model, x, key, cond)

    return mm.data_parallel(step, mesh)(mm.denoising_loss(axis_name="data"), model, None, x, key, cond)


NET = Untouched()
BOUNDARY = {
    "denoising_loss": mm.denoising_loss(),
    "student_loss": mm.student_loss(NET, NET),
    "aux_loss": mm.aux_loss(NET, NET),
    "instant": mm.instant(NET),
    "Rollout": mm.Rollout(),
    "Forward": lambda model, x, key, cond=None: mm.Forward()(x, key, cond),
    "value_and_grad": mm.value_and_grad(mm.denoising_loss()),
    "value_and_grad of instant": mm.value_and_grad(mm.instant(NET)),
    "data_parallel": data_parallel,
    "nonfinite_logsnr": lambda *args: mm.nonfinite_logsnr(mm.denoising_loss(), *args),
    "ancestral_sampler": lambda model, x, key, cond=None: mm.ancestral_sampler(model)(key, (3,), cond),
}
BATCHED = [name for name in BOUNDARY if name != "ancestral_sampler"]
X, COND, KEY = jnp.ones((8, 3)), jnp.ones((8, 2)), jax.random.key(0)
NO_KEYS = [jax.random.PRNGKey(0), jnp.zeros(2, jnp.uint32), np.zeros(2, np.uint32), 0, 0.5, None, "0", X]
NO_BATCHES = [
    *(X.astype(dtype) for dtype in (jnp.int32, jnp.complex64, bool)),
    *(np.empty((8, 3), dtype) for dtype in (object, np.uint8, "U1", "datetime64[s]")),
    jax.random.split(KEY, 8),
    [[1.0, 2.0]],
    1.0,
    None,
]


@pytest.fixture
def _as_users_run_it(monkeypatch):
    """Without the types checked, which would tell first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.usefixtures("_as_users_run_it")
@pytest.mark.parametrize("name", BOUNDARY)
def test_what_is_no_key_is_refused_before_anything_is_asked(name):
    for key in NO_KEYS:
        with pytest.raises(TypeError, match=SENTENCE):
            BOUNDARY[name](NET, X, key, COND)
    with pytest.raises(ValueError, match=SENTENCE):
        BOUNDARY[name](NET, X, jax.random.split(KEY, 8), COND)


@pytest.mark.usefixtures("_as_users_run_it")
@pytest.mark.parametrize("name", BATCHED)
def test_what_is_no_batch_is_refused_before_anything_is_asked(name):
    for x in NO_BATCHES:
        with pytest.raises(TypeError, match=SENTENCE):
            BOUNDARY[name](NET, x, KEY)
    for x in (jnp.zeros((0, 3)), jnp.zeros(())):
        with pytest.raises(ValueError, match=SENTENCE):
            BOUNDARY[name](NET, x, KEY)


@pytest.mark.usefixtures("_as_users_run_it")
@pytest.mark.parametrize("name", BATCHED)
def test_a_conditioning_that_is_not_the_batchs_is_refused_before_anything_is_asked(name):
    for cond in (COND[:7], jnp.zeros(()), 1, {"label": COND, "text": COND[:4]}, [COND, 0.5]):
        with pytest.raises(ValueError, match=SENTENCE):
            BOUNDARY[name](NET, X, KEY, cond)


class Tensor:
    """What a DataLoader of PyTorch gives, as far as it goes: its dtype is none of NumPy's."""

    dtype, shape, ndim = "torch.float32", (8, 3), 2


@pytest.mark.usefixtures("_as_users_run_it")
def test_a_tensor_is_refused_with_what_makes_an_array_of_it():
    for name in BATCHED:
        with pytest.raises(TypeError, match=r"got test_contract.Tensor; use `jnp.asarray\(x.numpy\(\)\)`"):
            BOUNDARY[name](NET, Tensor(), KEY)
    for name in BOUNDARY:
        with pytest.raises(TypeError, match=r"needs cond.+ got test_contract.Tensor; use"):
            BOUNDARY[name](NET, X, KEY, {"label": Tensor()})


DRAWS = {
    "Gaussian.sample": lambda key: mm.Gaussian(jnp.zeros(3), jnp.asarray(1.0)).sample(key),
    "Denoiser": lambda key: mm.Denoiser(lambda z, t, cond, *, key: z)(jnp.zeros(3), jnp.asarray(0.0), key=key),
    "estimate_preconditioner": lambda key: mm.estimate_preconditioner(mm.denoising_loss(), NET, [], key),
}


@pytest.mark.parametrize("name", DRAWS)
def test_what_draws_without_a_loss_demands_a_key_too(name):
    with pytest.raises(ValueError, match=r"needs a key with independent draws .+threefry2x32"):
        DRAWS[name](jax.random.key(0, impl="rbg"))
    with pytest.raises(TypeError, match="needs a typed key"):
        DRAWS[name](jax.random.PRNGKey(0))


@pytest.mark.usefixtures("_as_users_run_it")
@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_whose_draws_depend_on_their_neighbours_are_refused(impl):
    for name in BOUNDARY:
        with pytest.raises(ValueError, match=r"needs a key with independent draws .+threefry2x32"):
            BOUNDARY[name](NET, X, jax.random.key(0, impl=impl), COND)


def test_an_instant_loss_is_built_for_its_data_under_any_default_of_keys():
    with jax.default_prng_impl("rbg"):
        mm.instant(Tanh(linear(jax.random.key(0, impl="threefry2x32"))), like=jnp.ones((4, 3)))


def test_one_example_is_not_told_to_become_none():
    with pytest.raises(ValueError, match="got 1 examples; take two"):
        mm.instant(NET)(NET, X[:1], KEY)


@pytest.mark.parametrize("name", ["denoising_loss", "instant", "ancestral_sampler"])
def test_the_same_key_gives_the_same_numbers_and_another_key_others(name):
    """A key that is used twice is not seen: whoever hands one on takes care, by `jax.random.fold_in`."""
    teacher, student = (Tanh(linear(jax.random.key(i))) for i in range(2))
    functions = {
        "denoising_loss": mm.denoising_loss(),
        "instant": mm.instant(teacher),
        "ancestral_sampler": lambda model, x, key: mm.ancestral_sampler(model)(key, (3,)),
    }
    function = eqx.filter_jit(functions[name])
    first, again, other = (np.asarray(function(student, X, jax.random.key(seed))) for seed in (3, 3, 4))
    assert first.tobytes() == again.tobytes()
    assert np.all(first != other)
