"""The exact laboratory: its quadrature against samples and closed forms, its tables."""

import importlib
import json
import pathlib
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Tanh, linear

import momentax as mm

ROOT = pathlib.Path(__file__).parents[1]
LABORATORY = ROOT / "docs" / "results" / "laboratory"
sys.path.insert(0, str(LABORATORY))
mixture, quadrature = (importlib.import_module(name) for name in ("mixture", "quadrature"))

KEY = jax.random.key(7)
LINE = mixture.line()


def corrected(seed):
    """A student of the line that is not exact."""
    return mixture.Corrected(LINE, Tanh(linear(jax.random.key(seed), 1)))


def means(loss, model, count=16, batch=2048):
    """A loss's mean over fresh batches of the line, and the mean's standard error."""

    @eqx.filter_jit
    def values(loss, model):
        def one(key):
            data, own = jax.random.split(key)
            return loss(model, jax.vmap(LINE.sample)(jax.random.split(data, batch)), own)

        return jax.lax.map(one, jax.random.split(KEY, count))

    found = values(loss, model)
    return float(jnp.mean(found)), float(jnp.std(found, ddof=1)) / count**0.5


def test_the_denoiser_of_a_mixture_is_bayes_rule():
    r"""$E[x | z] = \int x\,q(z | x)\,p(x)\,dx / q(z)$, by quadrature, and so is $q(z)$."""
    x, z, logsnr = jnp.linspace(-4, 4, 8001), jnp.linspace(-2, 2, 9)[:, None], jnp.full(9, 1.5)
    parts = jnp.exp(-(((x[:, None] - LINE.means[:, 0]) / jnp.exp(LINE.log_stds)) ** 2) / 2 - LINE.log_stds)
    prior = parts @ jnp.exp(LINE.logits) / jnp.sqrt(2 * jnp.pi)
    alpha, sigma = mm.alpha(jnp.asarray(1.5)), mm.sigma(jnp.asarray(1.5))
    joint = prior * jnp.exp(-(((z - alpha * x) / sigma) ** 2) / 2) / sigma / jnp.sqrt(2 * jnp.pi)
    np.testing.assert_allclose(jax.vmap(LINE)(z, logsnr)[:, 0], joint @ x / joint.sum(1), rtol=1e-9)
    density = jnp.exp(jax.vmap(LINE.log_density)(z, logsnr))
    np.testing.assert_allclose(density, joint.sum(1) * (x[1] - x[0]), rtol=1e-9)


def test_a_mixtures_samples_have_its_moments():
    drawn = jax.jit(jax.vmap(LINE.sample))(jax.random.split(KEY, 200_000))[:, 0]
    share, mean, std = jnp.exp(LINE.logits), LINE.means[:, 0], jnp.exp(LINE.log_stds)
    np.testing.assert_allclose(jnp.mean(drawn), share @ mean, atol=0.01)
    np.testing.assert_allclose(jnp.mean(drawn**2), share @ (mean**2 + std**2), rtol=0.01)


def test_students_start_as_the_teacher_and_a_teacher_with_tangents_is_one():
    """Of the same values; the second has derivatives in its network's parameters all the same."""
    z, logsnr = jnp.linspace(-2, 2, 5)[:, None], jnp.linspace(-3, 3, 5)
    teacher = mixture.with_tangents(LINE, KEY)
    for model in (mixture.copy(LINE, KEY), teacher):
        np.testing.assert_array_equal(jax.vmap(model)(z, logsnr), jax.vmap(LINE)(z, logsnr))
    gradient = eqx.filter_grad(lambda model: jnp.sum(jax.vmap(model)(z, logsnr)))(teacher)
    assert all(jnp.any(leaf) for leaf in jax.tree.leaves(gradient.net.net.blocks))
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(gradient.exact))


@pytest.mark.parametrize("k", [1, 8])
def test_an_exact_student_has_no_moment_gap_and_its_teacher_has_one(k):
    r"""Equation (3), by quadrature; the teacher in the student's place takes the mean for the sample."""
    exact = quadrature.moments(quadrature.exact_atoms(LINE, states=501), k, times=6, states=126)
    teacher = quadrature.moments(quadrature.student_atoms(LINE, LINE, states=501), k, times=6, states=126)
    assert quadrature.moment_gap(exact, LINE) < 1e-8
    assert quadrature.moment_gap(teacher, LINE) > 1e-3
    np.testing.assert_allclose([exact.mass.sum(), teacher.mass.sum()], 1, atol=1e-5)


def test_the_quadrature_has_converged():
    """Fewer nodes in every direction change the gap by a hundredth at most."""
    fine = quadrature.moments(quadrature.student_atoms(LINE, corrected(0)), 4)
    nodes = quadrature.student_atoms(LINE, corrected(0), steps=4, states=501)
    coarse = quadrature.moments(nodes, 4, times=10, states=126)
    gaps = [quadrature.moment_gap(found, LINE) for found in (coarse, fine)]
    np.testing.assert_allclose(*gaps, rtol=1e-2)


@pytest.mark.slow
def test_the_losses_estimate_what_the_quadrature_says():
    """Both algorithms' values, within four standard errors of 32,768 examples."""
    student, aux, rollout = corrected(3), corrected(4), mm.Rollout(quadrature.SCHEDULE, 1)
    found = quadrature.moments(quadrature.student_atoms(LINE, student), 1)
    teacher = mixture.Corrected(LINE, mixture.Centred(Tanh(linear(KEY, 1))))
    for loss, expected in [
        (
            mm.student_loss(LINE, aux, rollout=rollout, weight=mm.flat_weight),
            quadrature.student_value(found, LINE, aux),
        ),
        (mm.instant(LINE, rollout=rollout, weight=mm.flat_weight), quadrature.instant_value(found, LINE)),
        (mm.instant(teacher, rollout=rollout, weight=mm.flat_weight), quadrature.instant_value(found, teacher)),
    ]:
        value, error = means(loss, student)
        assert abs(value - expected) < 4 * error
        assert error < 0.1 * abs(expected)


def test_the_readings_of_an_auxiliary_are_those_of_a_converged_one_and_its_error():
    r"""With $g_\phi$ the average of $E_g$ and $g_\theta$, the student's loss is the gap."""
    found = quadrature.moments(quadrature.student_atoms(LINE, corrected(0), states=501), 4, times=6, states=126)
    gap = quadrature.moment_gap(found, LINE)

    class Converged(eqx.Module):
        average: jax.Array

        def __call__(self, z, logsnr, cond=None):
            nodes = (jnp.abs(found.z - z) < 1e-9) & (jnp.abs(found.logsnr - logsnr) < 1e-9)
            return self.average[jnp.argmax(nodes)][None]

    converged = Converged(jnp.asarray((found.mean + found.of(LINE)) / 2))
    np.testing.assert_allclose(quadrature.student_value(found, LINE, converged), gap, rtol=1e-9)
    assert quadrature.auxiliary_error(found, LINE, converged) < 1e-20
    np.testing.assert_allclose(quadrature.auxiliary_error(found, LINE, LINE), gap / 4, rtol=1e-9)


@pytest.mark.parametrize("k", [1, 4])
def test_the_distance_of_a_gaussian_sampler_is_that_of_its_recursion(k):
    r"""For data $N(m, s^2)$ both are normal: $W_2$ is the distance of means and deviations."""
    data = mixture.Mixture(jnp.zeros(1), jnp.full((1, 1), 0.3), jnp.log(jnp.full(1, 0.5)))
    at, mean, variance = (lambda i: quadrature.SCHEDULE.logsnr(jnp.asarray(i / k))), 0.0, 1.0

    def affine(function):
        """Intercept and slope."""
        low, high = (function(jnp.full(1, end))[0] for end in (0.0, 1.0))
        return low, high - low

    for i in range(k, 1, -1):
        x, slope = affine(lambda z, i=i: data(z, at(i)))
        settings = {"logsnr_s": at(i - 1), "logsnr_t": at(i)}
        offset, kept = affine(lambda z, s=settings, i=i: mm.conditional_posterior(z, data(z, at(i)), **s).mean)
        std = mm.conditional_posterior(x, slope, **settings).std
        mean, variance = offset + kept * mean, kept**2 * variance + std**2
    x, slope = affine(lambda z: data(z, at(1)))
    expected = jnp.hypot(x + slope * mean - 0.3, slope * jnp.sqrt(variance) - 0.5)
    np.testing.assert_allclose(quadrature.distance(data, data, k), expected, rtol=1e-3)


def test_the_distance_of_a_sampler_is_that_of_its_samples():
    """And the one of the data to themselves is that of the sampler in many steps, small."""
    sample = mm.ancestral_sampler(LINE, 4, schedule=quadrature.SCHEDULE)
    drawn = jax.jit(jax.vmap(lambda key: sample(key, (1,))))(jax.random.split(KEY, 50_000))
    truth = jax.jit(jax.vmap(LINE.sample))(jax.random.split(jax.random.key(8), 50_000))
    found = mm.metrics.sliced_wasserstein(drawn, truth, projections=1)
    np.testing.assert_allclose(quadrature.distance(LINE, LINE, 4), found, rtol=0.03)


def figure(value):
    """As the tables print it."""
    return f"{value:.3f}"


def small(value):
    return f"{value * 1e4:.2f}"


def recorded(name):
    return json.loads((LABORATORY / name).read_text()), (LABORATORY / "README.md").read_text()


def test_the_table_of_the_line_is_that_of_its_record():
    found, readme = recorded("exact.json")
    teacher = found["references"]["teacher"]
    assert f"`{found['command']}`" in readme
    for row in found["rows"]:
        cells = [row["algorithm"], str(row["k"]), figure(teacher[str(row["k"])]), figure(row["distance"])]
        cells += [small(row["first_gap"]), small(row["gap"])]
        assert f"| {' | '.join(cells)} |" in readme
        cells = [row["algorithm"], str(row["k"]), f"{row['value']:.2e} ± {row['error']:.1e}", f"{row['expected']:.2e}"]
        assert f"| {' | '.join(cells)} |" in readme
    assert figure(teacher["256"]) in readme
    assert max(found["references"]["exact student"].values()) < 1e-12


def test_the_tables_of_the_ring_are_those_of_its_record():
    found, readme = recorded("ring.json")
    assert f"`{found['command']}`" in readme
    rows = {(row["algorithm"], row["weight"], row["k"]): row["distance"] for row in found["rows"]}
    for k in (1, 2, 4, 8):
        cells = [found["teacher"][str(k)], rows["alternating", "flat", k], rows["instant", "flat", k]]
        assert f"| {k} | {' | '.join(map(figure, cells))} |" in readme
    for k in (1, 2):
        cells = [rows["alternating", weight, k] for weight in ("flat", "adaptive", "EDM")]
        assert f"| {k} | {' | '.join(map(figure, cells))} |" in readme
    assert figure(found["floor"]) in readme
    assert figure(found["teacher"]["256"]) in readme


@pytest.mark.slow
@pytest.mark.parametrize("script", ["exact", "ring"])
def test_the_command_writes_its_table_and_its_picture(script, tmp_path):
    """In the smallest number of rounds."""
    code = f"import sys; sys.path.insert(0, {str(LABORATORY)!r}); import {script};"
    code += f"{script}.main({str(tmp_path / 'found.json')!r}, 200, 200)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
    assert len(json.loads((tmp_path / "found.json").read_text())["rows"]) == {"exact": 14, "ring": 12}[script]
    assert (tmp_path / "found.png").stat().st_size > 0
