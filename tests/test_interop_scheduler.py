"""Schedules of diffusers' schedulers: their tables as loops, and what would mean something else refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from strategies import DDPM

import momentax
from momentax.interop import schedule_from_diffusers


def written(folder, class_name="DDPMScheduler", **settings):
    """The path of a scheduler's configuration of these settings."""
    path = folder / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": class_name, "_diffusers_version": "0.30.0", **settings}))
    return path


def alphas_cumprod(path):
    """The table of a discrete schedule."""
    schedule = schedule_from_diffusers(path)
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


BETAS = {
    "linear": lambda i: 0.001 + i / 99 * (0.03 - 0.001),
    "scaled_linear": lambda i: (0.001**0.5 + i / 99 * (0.03**0.5 - 0.001**0.5)) ** 2,
    "squaredcos_cap_v2": lambda i: min(0.999, 1 - cosine((i + 1) / 100) / cosine(i / 100)),
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


def test_a_table_rescaled_to_zero_snr_ends_finite(tmp_path):
    r"""$\sqrt{\bar\alpha}$ is moved so that its first stays and its last would be 0 (Lin et al. 2024, algorithm 1)."""
    bare = np.sqrt(table_of(tmp_path, num_train_timesteps=50))
    table = table_of(tmp_path, num_train_timesteps=50, rescale_betas_zero_snr=True)
    np.testing.assert_allclose(np.sqrt(table[:-1]), bare[0] * (bare[:-1] - bare[-1]) / (bare[0] - bare[-1]), rtol=1e-9)
    np.testing.assert_allclose(table[-1], 2.0**-24, rtol=1e-9)


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
    "betas": {"beta_schedule": "laplace"},
    "flow sigmas": {"use_flow_sigmas": True},
    "continuous": {"class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"},
    "edm v": {"class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"},
    "edm exponential": {"class_name": "EDMEulerScheduler", "sigma_schedule": "exponential"},
    "inverted": {"class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True},
}


@pytest.mark.parametrize("settings", REFUSED.values(), ids=REFUSED)
def test_what_would_change_the_convention_is_refused(tmp_path, settings):
    with pytest.raises(ValueError, match=r"^needs .+; got .+; do.+"):
        schedule_from_diffusers(written(tmp_path, **settings))


FAMILY = ["DDPM", "DDIM", "PNDM", "DPMSolverMultistep", "DPMSolverSinglestep", "EulerDiscrete"]
FAMILY += ["EulerAncestralDiscrete", "LMSDiscrete", "DEISMultistep", "UniPCMultistep"]


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("name", FAMILY)
def test_a_scheduler_that_diffusers_writes_has_diffusers_table(tmp_path, name, kind):
    """Theirs is in float32, so that 1 - alpha_bar of the first steps, 1e-4, has lost three digits."""
    scheduler = getattr(pytest.importorskip("diffusers"), f"{name}Scheduler")(beta_schedule=kind)
    scheduler.save_pretrained(tmp_path)
    table = alphas_cumprod(tmp_path)
    np.testing.assert_allclose(table, scheduler.alphas_cumprod.numpy(), rtol=1e-4, atol=1e-7)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["EulerDiscrete", "DPMSolverMultistep"])
def test_a_table_rescaled_to_zero_snr_is_diffusers(tmp_path, name):
    options = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    scheduler = getattr(pytest.importorskip("diffusers"), f"{name}Scheduler")(**options, rescale_betas_zero_snr=True)
    scheduler.save_pretrained(tmp_path)
    table = alphas_cumprod(tmp_path)
    np.testing.assert_allclose(table, scheduler.alphas_cumprod.numpy(), rtol=1e-3, atol=1e-7)
