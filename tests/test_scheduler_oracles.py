"""Kernels, schedules and predictions against diffusers' schedulers, for data N(0.3, 0.7^2) whose network is exact."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import gaussian_denoiser

import momentax
from momentax import FlowSchedule, KarrasSchedule

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

STEPS = [(980, 960), (500, 480), (40, 20)]
"""(t, s) of a sampler with 50 steps in a table of 1000."""
EXACT = gaussian_denoiser()
Z = np.asarray([-1.7, 0.2, 1.1])


@pytest.fixture
def diffusers():
    return pytest.importorskip("diffusers")


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def zero_or_one(monkeypatch, diffusers, torch):
    """Makes the noise of DDPM's step the constant of its choice."""

    def choose(constant):
        def constant_noise(shape, **_):
            return torch.full(shape, constant, dtype=torch.float64)

        monkeypatch.setattr(diffusers.schedulers.scheduling_ddpm, "randn_tensor", constant_noise)

    return choose


def in_double(scheduler):
    """Its table in float64, so that what is compared is the formula."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(50)
    return scheduler


def logsnr_at(scheduler, step):
    kept = scheduler.alphas_cumprod[step].item()
    return jnp.asarray(np.log(kept) - np.log1p(-kept))


def said(z, logsnr, prediction):
    """What the exact network of a prediction type says, in NumPy."""
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))
    x = np.asarray(EXACT(jnp.asarray(z), logsnr))
    noise = (z - alpha * x) / sigma
    return {"epsilon": noise, "sample": x, "v_prediction": alpha * noise - sigma * x}[prediction]


def kernel_step(kernel, logsnr_s, logsnr_t):
    """Our step from Z with the exact x_hat."""
    z_t = jnp.asarray(Z)
    return kernel(z_t, EXACT(z_t, logsnr_t), logsnr_s=logsnr_s, logsnr_t=logsnr_t)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(("t", "s"), STEPS)
def test_the_posterior_is_ddpms_step(diffusers, torch, zero_or_one, prediction, t, s):
    """Mean and standard deviation of `fixed_small`, from every kind of network."""
    scheduler = in_double(diffusers.DDPMScheduler(prediction_type=prediction, clip_sample=False))
    logsnr_s, logsnr_t = logsnr_at(scheduler, s), logsnr_at(scheduler, t)
    output, sample = torch.tensor(said(Z, logsnr_t, prediction))[None], torch.tensor(Z)[None]
    steps = []
    for constant in (0.0, 1.0):
        zero_or_one(constant)
        steps.append(scheduler.step(output, t, sample).prev_sample[0].numpy())
    found = kernel_step(momentax.conditional_posterior, logsnr_s, logsnr_t)
    np.testing.assert_allclose(found.mean, steps[0], rtol=1e-9)
    np.testing.assert_allclose(np.full(3, found.std), steps[1] - steps[0], rtol=1e-8)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("t", "s"), STEPS)
def test_the_family_of_kernels_is_ddims_step(diffusers, torch, eta, t, s):
    r"""$\eta$ of 0 is `ddim`, of 1 the posterior, and `stochastic` is all of them."""
    scheduler = in_double(diffusers.DDIMScheduler(clip_sample=False))
    logsnr_s, logsnr_t = logsnr_at(scheduler, s), logsnr_at(scheduler, t)
    output, sample = torch.tensor(said(Z, logsnr_t, "epsilon")), torch.tensor(Z)
    noises = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    calm, noisy = (scheduler.step(output, t, sample, eta=eta, variance_noise=n).prev_sample.numpy() for n in noises)
    named = {0.0: [momentax.ddim], 0.5: [], 1.0: [momentax.conditional_posterior]}[eta]
    for kernel in [momentax.stochastic(eta), *named]:
        found = kernel_step(kernel, logsnr_s, logsnr_t)
        np.testing.assert_allclose(found.mean, calm, rtol=1e-9)
        np.testing.assert_allclose(np.full(3, found.std), noisy - calm, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("count", [2, 18, 40])
def test_karras_levels_are_edms(diffusers, count):
    """Theirs are in float32."""
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0, rho=5.0)
    scheduler.set_timesteps(count)
    levels = jnp.exp(-KarrasSchedule(0.01, 50.0, 5.0).logsnr(jnp.linspace(1, 0, count)) / 2)
    np.testing.assert_allclose(levels, scheduler.sigmas[:-1].numpy(), rtol=1e-6)
    assert scheduler.sigmas[-1] == 0


def test_karras_levels_are_those_of_a_table_between_its_ends(diffusers):
    """The rule of Karras et al. between the first and the last noise level of DDPM's table."""
    scheduler = diffusers.EulerDiscreteScheduler(use_karras_sigmas=True)
    low, high = (jnp.exp(-logsnr_at(scheduler, step) / 2).item() for step in (0, 999))
    scheduler.set_timesteps(12)
    levels = jnp.exp(-KarrasSchedule(low, high).logsnr(jnp.linspace(1, 0, 12)) / 2)
    np.testing.assert_allclose(levels, scheduler.sigmas[:-1].numpy(), rtol=1e-5)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
@pytest.mark.parametrize("noise", [0.002, 0.4, 80.0])
def test_edm_predictions_are_its_schedulers_preconditioning(diffusers, torch, noise, sigma_data):
    scheduler = diffusers.EDMEulerScheduler(sigma_data=sigma_data)
    level = torch.tensor(noise, dtype=torch.float64)
    y, time = torch.tensor(Z), scheduler.precondition_noise(level)
    output = torch.tanh(scheduler.precondition_inputs(y, level)) + time
    expected = scheduler.precondition_outputs(y, output, level).numpy()
    logsnr = jnp.asarray(-2 * np.log(noise))
    predict = eqx.Partial(momentax.predict_edm, sigma_data=sigma_data)
    found = momentax.Denoiser(lambda z, t, cond: jnp.tanh(z) + t, predict)(momentax.alpha(logsnr) * Z, logsnr)
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_a_step_of_edms_sampler_is_a_ddim_step(diffusers, torch):
    r"""Euler's step in $y = z/\alpha$, with a network whose preconditioned output is exact."""
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(18)
    levels = scheduler.sigmas.double()
    for i in (0, 9, 15):
        scheduler._step_index, scheduler.is_scale_input_called = i, True
        logsnr_t, logsnr_s = (jnp.asarray(-2 * np.log(level.item())) for level in levels[i : i + 2])
        y = Z / momentax.alpha(logsnr_t)
        skipped = scheduler.precondition_outputs(torch.tensor(np.asarray(y)), torch.tensor(0.0), levels[i]).numpy()
        scale = scheduler.precondition_outputs(torch.tensor(0.0), torch.tensor(1.0).double(), levels[i]).item()
        output = torch.tensor((np.asarray(EXACT(jnp.asarray(Z), logsnr_t)) - skipped) / scale)
        step = scheduler.step(output, scheduler.timesteps[i], torch.tensor(np.asarray(y))).prev_sample.numpy()
        found = kernel_step(momentax.ddim, logsnr_s, logsnr_t).mean / momentax.alpha(logsnr_s)
        np.testing.assert_allclose(found, step, rtol=3e-5)


def test_a_step_of_eulers_sampler_is_a_ddim_step_of_a_variance_preserving_network(diffusers, torch):
    r"""What the network is given is $z = \alpha y$, what it says is $\epsilon$; theirs is in float32."""
    scheduler = diffusers.EulerDiscreteScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    for i in (0, 4, 8):
        scheduler._step_index = i
        logsnr_t, logsnr_s = (jnp.asarray(-2 * np.log(level.item())) for level in scheduler.sigmas[i : i + 2])
        y = torch.tensor(np.asarray(Z / momentax.alpha(logsnr_t)))
        np.testing.assert_allclose(scheduler.scale_model_input(y, scheduler.timesteps[i]), Z, rtol=1e-6)
        output = torch.tensor(said(Z, logsnr_t, "epsilon"))
        step = scheduler.step(output, scheduler.timesteps[i], y).prev_sample.numpy()
        found = kernel_step(momentax.ddim, logsnr_s, logsnr_t).mean / momentax.alpha(logsnr_s)
        np.testing.assert_allclose(found, step, rtol=1e-5)


def test_a_flows_training_levels_are_linear_in_the_flows_time(diffusers):
    r"""$\tau = 1/1000, ..., 999/1000$; their last, 1, has no finite log-SNR."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    end = 2 * np.log(999.0).item()
    tau = jax.nn.sigmoid(-FlowSchedule(-end, end).logsnr(jnp.linspace(1, 0, 999)) / 2)
    np.testing.assert_allclose(tau, scheduler.sigmas[1:].numpy(), rtol=1e-6)
    np.testing.assert_allclose(1000 * tau, scheduler.timesteps[1:].numpy(), rtol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flows_shift_is_a_shift_of_the_log_snr(diffusers, shift):
    r"""$\ell - 2\ln s$."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    bare = FlowSchedule().logsnr(jnp.linspace(0.9, 0.1, 5))
    scheduler.set_timesteps(sigmas=jax.nn.sigmoid(-bare / 2).tolist())
    shifted = momentax.shifted(FlowSchedule(), -2 * np.log(shift).item()).logsnr(jnp.linspace(0.9, 0.1, 5))
    np.testing.assert_allclose(jax.nn.sigmoid(-shifted / 2), scheduler.sigmas[:-1].numpy(), rtol=1e-6)
    np.testing.assert_allclose(1000 * jax.nn.sigmoid(-shifted / 2), scheduler.timesteps.numpy(), rtol=1e-6)


def test_a_step_of_a_flows_sampler_is_a_ddim_step(diffusers, torch):
    r"""Euler's step of $u = \hat\epsilon - \hat x$ in $y = z / (\alpha + \sigma)$ is DDIM's; theirs is in float32."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[0.95, 0.6, 0.2, 0.01])
    scheduler.set_begin_index(0)
    for i in range(3):
        logsnr_t, logsnr_s = (jnp.asarray(2 * np.log((1 - tau) / tau)) for tau in scheduler.sigmas[i : i + 2].tolist())
        both = [momentax.alpha(logsnr) + momentax.sigma(logsnr) for logsnr in (logsnr_t, logsnr_s)]
        velocity = said(Z, logsnr_t, "epsilon") - said(Z, logsnr_t, "sample")
        y = torch.tensor(np.asarray(Z / both[0]))
        step = scheduler.step(torch.tensor(velocity), scheduler.timesteps[i], y).prev_sample.numpy()
        found = kernel_step(momentax.ddim, logsnr_s, logsnr_t).mean / both[1]
        np.testing.assert_allclose(found, step, rtol=1e-6)
        exact = momentax.Denoiser(lambda z, t, cond: jnp.asarray(velocity), momentax.predict_flow)  # noqa: B023
        np.testing.assert_allclose(exact(jnp.asarray(Z), logsnr_t), EXACT(jnp.asarray(Z), logsnr_t), rtol=1e-12)
