"""Schedules of diffusers' schedulers: their tables as loops, and what would mean something else refused."""

import inspect
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from strategies import DDPM

import momentax
from momentax.interop import _scheduler, schedule_from_diffusers


def written(folder, class_name="DDPMScheduler", **settings):
    """The path of a scheduler's configuration of these settings."""
    path = folder / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": class_name, "_diffusers_version": "0.30.0", **settings}))
    return path


def alphas_cumprod(config):
    """The table of a discrete schedule."""
    schedule = schedule_from_diffusers(config)
    assert isinstance(schedule, momentax.DiscreteSchedule)
    return np.asarray(jax.nn.sigmoid(jnp.asarray(schedule.logsnrs)))


def table_of(folder, **settings):
    return alphas_cumprod(written(folder, **settings))


def product(betas):
    """The cumulative product as a loop."""
    table, kept = [], 1.0
    for beta in betas:
        kept *= 1 - beta
        table.append(kept)
    return table


def cosine(t):
    return np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2


def laplace(t):
    return np.sqrt(1 / (1 + np.exp(np.copysign(0.5, 0.5 - t) * np.log(1 - 2 * abs(0.5 - t) + 1e-6))))


BETAS = {
    "linear": lambda i: 0.001 + i / 99 * (0.03 - 0.001),
    "scaled_linear": lambda i: (0.001**0.5 + i / 99 * (0.03**0.5 - 0.001**0.5)) ** 2,
    "squaredcos_cap_v2": lambda i: min(0.999, 1 - cosine((i + 1) / 100) / cosine(i / 100)),
    "exp": lambda i: 1 - np.exp(-0.12),
    "laplace": lambda i: min(0.999, 1 - laplace((i + 1) / 100) / laplace(i / 100)),
    "sigmoid": lambda i: 0.001 + (0.03 - 0.001) / (1 + np.exp(6 - 12 * i / 99)),
}


@pytest.mark.parametrize("kind", BETAS)
def test_a_schedulers_table_is_the_product_of_its_betas(tmp_path, kind):
    settings = {"num_train_timesteps": 100, "beta_start": 0.001, "beta_end": 0.03, "beta_schedule": kind}
    np.testing.assert_allclose(table_of(tmp_path, **settings), product(map(BETAS[kind], range(100))), rtol=1e-10)


def test_a_scheduler_that_says_nothing_is_ddpm(tmp_path):
    np.testing.assert_allclose(table_of(tmp_path), DDPM, rtol=1e-10)


def test_betas_of_ones_own_come_first(tmp_path):
    table = table_of(tmp_path, trained_betas=[0.1, 0.5, 0.2], beta_schedule="linear", num_train_timesteps=3)
    np.testing.assert_allclose(table, [0.9, 0.45, 0.36], rtol=1e-12)


def rescaled(table):
    r"""$\sqrt{\bar\alpha}$ moved so that its first stays and its last is 0 (Lin et al. 2024, algorithm 1)."""
    root = np.sqrt(table)
    return (root[0] * (root - root[-1]) / (root[0] - root[-1])) ** 2


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("steps", [2, 10, 50, 1000, 4000])
def test_a_table_rescaled_to_zero_snr_ends_finite_and_below_the_step_before(tmp_path, kind, steps):
    told = {"num_train_timesteps": steps, "beta_schedule": kind}
    expected = rescaled(table_of(tmp_path, **told))
    table = table_of(tmp_path, **told, rescale_betas_zero_snr=True)
    np.testing.assert_allclose(table[:-1], expected[:-1], rtol=1e-5)
    np.testing.assert_allclose(table[-1], min(2.0**-24, expected[-2] / 4), rtol=1e-5)
    assert (np.diff(table) < 0).all()


def test_betas_that_end_in_one_or_begin_with_zero_have_finite_log_snrs(tmp_path):
    """The betas that rescaling to zero SNR leaves, given as one's own, and a first step without noise."""
    np.testing.assert_allclose(table_of(tmp_path, trained_betas=[0.1, 0.5, 1.0]), [0.9, 0.45, 2.0**-24], rtol=1e-9)
    np.testing.assert_allclose(table_of(tmp_path, trained_betas=[0.0, 0.5]), [1 - 2.0**-24, 0.5], rtol=1e-12)


@pytest.mark.parametrize("betas", [[0.1, 0.0, 0.2], [0.1, -0.1], [0.1, 1.0, 0.5], [0.1, 1.5], [0.99] * 1000])
def test_betas_of_no_schedule_are_refused_with_the_step(tmp_path, betas):
    with pytest.raises(ValueError, match=r"^needs betas inside \(0, 1\).+; got alphas_cumprod .+ at step \d+; choose"):
        table_of(tmp_path, trained_betas=betas)


def test_a_pipeline_for_video_has_its_signal_divided(tmp_path):
    r"""$\mathrm{SNR} / 3$, in the class's own betas."""
    bare = product((0.00085**0.5 + i / 99 * (0.012**0.5 - 0.00085**0.5)) ** 2 for i in range(100))
    table = alphas_cumprod(written(tmp_path, "CogVideoXDDIMScheduler", num_train_timesteps=100))
    np.testing.assert_allclose(table / (1 - table), np.divide(bare, np.subtract(1, bare)) / 3, rtol=1e-9)


RECORDED = json.loads((pathlib.Path(__file__).parent / "diffusers" / "tables.json").read_text())


@pytest.mark.parametrize("name", RECORDED["tables"])
def test_a_class_that_says_nothing_has_the_table_that_diffusers_recorded(name):
    """Steps 0, 250, 500, 750 and 999; theirs are in float32."""
    table = alphas_cumprod({"_class_name": name})[RECORDED["steps"]]
    np.testing.assert_allclose(table, RECORDED["tables"][name], rtol=1e-4)


def test_a_flows_schedule_has_its_shift(tmp_path):
    r"""$\tau' = s\tau / (1 + (s - 1)\tau)$."""
    written(tmp_path, "FlowMatchEulerDiscreteScheduler", shift=3.0)
    tau, ends = np.linspace(0.1, 0.9, 5), 1 / (1 + np.exp(7.5))
    shifted = 3 * tau / (1 + 2 * tau)
    logsnrs = schedule_from_diffusers(tmp_path).logsnr(jnp.asarray((tau - ends) / (1 - 2 * ends)))
    np.testing.assert_allclose(logsnrs, 2 * np.log((1 - shifted) / shifted), rtol=1e-11)


def test_edms_schedule_has_its_levels(tmp_path):
    written(tmp_path, "EDMEulerScheduler", sigma_max=40, rho=5.0)
    assert schedule_from_diffusers(tmp_path) == momentax.KarrasSchedule(0.002, 40.0, 5.0)


REFUSED = {
    "class": {"class_name": "VQDiffusionScheduler"},
    "prediction": {"prediction_type": "flow_prediction"},
    "deprecated": {"predict_epsilon": False},
    "betas": {"beta_schedule": "cosine"},
    "flow sigmas": {"use_flow_sigmas": True},
    "continuous": {"class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"},
    "edm v": {"class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"},
    "edm exponential": {"class_name": "EDMEulerScheduler", "sigma_schedule": "exponential"},
    "inverted": {"class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True},
}


@pytest.mark.parametrize("settings", REFUSED.values(), ids=REFUSED)
def test_what_would_change_the_convention_is_refused(tmp_path, settings):
    with pytest.raises(ValueError, match=r"^needs .+; got .+; \w+.+"):
        schedule_from_diffusers(written(tmp_path, **settings))


FAMILY = [name for name, reader in _scheduler._READERS.items() if reader not in (_scheduler._flow, _scheduler._edm)]


@pytest.mark.parametrize("name", FAMILY)
def test_every_class_with_a_table_is_recorded(name):
    assert name in RECORDED["tables"]


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
@pytest.mark.parametrize("rescale", [False, True], ids=["as it is", "rescaled"])
@pytest.mark.parametrize("kind", [None, *BETAS])
@pytest.mark.parametrize("name", FAMILY)
def test_a_scheduler_that_diffusers_writes_has_diffusers_table(tmp_path, name, kind, rescale):
    """Every class, for its own and every other kind of betas; theirs are in float32, so that small ones lose digits."""
    make = getattr(pytest.importorskip("diffusers"), name)
    told = ({} if kind is None else {"beta_schedule": kind}) | ({"rescale_betas_zero_snr": True} if rescale else {})
    if not set(told) <= set(inspect.signature(make.__init__).parameters):
        pytest.skip("has no such setting")
    for steps in (10, 50, 1000, 4000):
        try:
            scheduler = make(**told, num_train_timesteps=steps)
        except (NotImplementedError, ValueError):
            pytest.skip("has no such betas")
        scheduler.save_pretrained(tmp_path)
        table = alphas_cumprod(tmp_path)
        np.testing.assert_allclose(table, scheduler.alphas_cumprod.numpy(), rtol=1e-4, atol=1e-7)
