"""Is a student better than its teacher, whatever the teacher predicts and whatever schedule it was trained under?

    python benchmarks/students.py docs/results/students.json [ring|photographs] [PREDICTION ...] [SCHEDULE ...]

trains a teacher for every prediction under every schedule, on eight Gaussians on a ring and on 16x16 patches of the two
photographs that scikit-learn ships, and distils it in 4 and in 8 steps by Algorithm 2. Schedule, weight, kernel and
sampler are the library's defaults throughout. The figure is the sliced Wasserstein distance to the data; the bar is a
student at 0.8 of its teacher's distance in as many steps. What the record holds already is not trained again.
"""

import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _measure import record
from jax import lax
from sklearn.datasets import load_sample_images

import momentax as mm

PREDICTIONS: dict[str, Callable[..., Any]] = {
    "x": mm.predict_x,
    "eps": mm.predict_eps,
    "v": mm.predict_v,
    "score": mm.predict_score,
    "flow": mm.predict_flow,
    "edm": mm.predict_edm,
}
SCHEDULES: dict[str, mm.AbstractSchedule] = {
    "ddpm-linear": mm.interop.schedule_from_diffusers({"_class_name": "DDPMScheduler"}),
    "scaled-linear": mm.interop.schedule_from_diffusers(
        {"_class_name": "DDPMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    ),
    "cosine": mm.interop.schedule_from_diffusers(
        {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2"}
    ),
    "straight": mm.FlowSchedule(),
    "karras": mm.KarrasSchedule(),
}
STEPS = (4, 8)


class Gated(eqx.Module):
    """An MLP beside its input, scaled by a gate of the log-SNR: what most of an x or an eps is at one of the ends."""

    net: mm.nn.MLP
    gate: eqx.nn.MLP

    def __init__(self, shape: tuple[int, ...], width: int, depth: int, *, key: Any):
        key_net, key_gate = jax.random.split(key)
        self.net = mm.nn.MLP(shape, width=width, depth=depth, key=key_net)
        self.gate = eqx.nn.MLP(2, "scalar", 64, 2, jax.nn.silu, key=key_gate)

    def __call__(self, z, t, cond=None):
        return self.net(z, t) + self.gate(jnp.stack([mm.alpha(t), t / 10])) * z


class Problem(NamedTuple):
    """Data to learn: a batch by key, the data to measure against, a network; how long, how fast, how many samples."""

    batch: Callable[[Any], Any]
    data: np.ndarray
    floor: np.ndarray
    network: Callable[..., Any]
    teacher_updates: int
    teacher_rate: float
    updates: int
    rate: float
    samples: int


def ring() -> Problem:
    """Eight Gaussians of standard deviation 0.05 on the unit circle."""

    def points(angles, key):
        centres = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
        return centres + 0.05 * jax.random.normal(key, centres.shape)

    def batch(key, n=1024):
        key_mode, key_noise = jax.random.split(key)
        return points(jnp.pi / 4 * jax.random.randint(key_mode, (n,), 0, 8), key_noise)

    even = jnp.pi / 4 * (jnp.arange(40_000) % 8)
    data, floor = points(even, jax.random.key(10)), batch(jax.random.key(11), 40_000)
    network = functools.partial(Gated, (2,), 64, 2)
    return Problem(batch, np.asarray(data), np.asarray(floor), network, 4000, 2e-3, 2000, 3e-4, 40_000)


def photographs() -> Problem:
    """Grey 16x16 patches of two photographs at half their size."""
    halves = [_halved(image.mean(-1)) for image in load_sample_images().images]
    data, floor = (_patches(halves, 20_000, seed) for seed in (0, 1))
    held = jnp.asarray(data)

    def batch(key, n=128):
        return held[jax.random.randint(key, (n,), 0, len(held))]

    network = functools.partial(Gated, data.shape[1:], 256, 3)
    return Problem(batch, data, floor[:4000], network, 3000, 1e-3, 1200, 1e-4, 4000)


PROBLEMS = {"ring": ring, "photographs": photographs}


def main(target: str, *names: str) -> None:
    """Prints a row for each teacher and records it, with what made it."""
    found = json.loads(Path(target).read_text())["rows"] if Path(target).is_file() else []
    _check(names)
    for asked in itertools.product(*(_chosen(group, names) for group in (PROBLEMS, PREDICTIONS, SCHEDULES))):
        row = dict(zip(("problem", "prediction", "schedule"), asked, strict=True))
        if not any(row.items() <= known.items() for known in found):
            found.append(row | distilled(_made(asked[0]), *asked[1:]))
            print(found[-1], flush=True)
            record(target, " ".join(["students.py", target, *names]), rows=found)


def distilled(problem: Problem, prediction: str, schedule: str) -> dict[str, Any]:
    """The distances of a teacher, and of its students of 4 and 8 steps."""
    net = problem.network(key=jax.random.key(0))
    untrained = mm.Denoiser(net, PREDICTIONS[prediction], _log_snr, SCHEDULES[schedule])
    teacher = taught(problem, untrained)
    row: dict[str, Any] = {"floor": _rounded(_distance(problem, problem.floor)), "teacher": {}, "student": {}}
    for k in (*STEPS, 64):
        row["teacher"][str(k)] = _rounded(_sampled(problem, teacher, k))
    for k in STEPS:
        row["student"][str(k)] = _rounded(_sampled(problem, student_of(problem, teacher, k), k))
    return row


def taught(problem: Problem, teacher: mm.Denoiser) -> mm.Denoiser:
    """A teacher under the default loss, by Adam with a cosine decay."""
    rate = optax.cosine_decay_schedule(problem.teacher_rate, problem.teacher_updates)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    losses = {"teacher": lambda players: mm.denoising_loss()}
    return trained(problem, {"teacher": teacher}, losses, {"teacher": optimizer}, problem.teacher_updates)["teacher"]


def student_of(problem: Problem, teacher: mm.Denoiser, k: int) -> mm.Denoiser:
    """A student of k steps: as many updates of each player, the auxiliary's rate four times the student's."""
    half = problem.updates // 2
    rates = {"aux": 4 * problem.rate, "student": problem.rate}
    optimizers = {name: mm.paper_optimizer(rate, half, warmup=half // 10) for name, rate in rates.items()}

    def losses(players):
        return mm.moment_match(teacher, players["student"], players["aux"], rollout=mm.Rollout(k=k))

    turns = {"aux": lambda players: losses(players).aux, "student": lambda players: losses(players).student}
    return trained(problem, {"aux": teacher, "student": teacher}, turns, optimizers, half)["student"]


def trained(problem: Problem, players: dict[str, Any], losses: Any, optimizers: Any, updates: int) -> dict[str, Any]:
    """The players after so many updates of each, in turns."""
    states = {name: optimizers[name].init(eqx.filter(model, eqx.is_inexact_array)) for name, model in players.items()}
    arrays, rest = eqx.partition(players, eqx.is_array)

    def turns(state, n):
        arrays, states = state
        players = eqx.combine(arrays, rest)
        for i, name in enumerate(losses):
            key_data, key_loss = jax.random.split(jax.random.fold_in(jax.random.key(1 + i), n))
            grads = eqx.filter_grad(losses[name](players))(players[name], problem.batch(key_data), key_loss)
            changes, opt_state = optimizers[name].update(grads, states[name])
            states = states | {name: opt_state}
            players = players | {name: eqx.apply_updates(players[name], changes)}
        return (eqx.filter(players, eqx.is_array), states), None

    (arrays, _), _ = jax.jit(lambda state: lax.scan(turns, state, jnp.arange(updates)))((arrays, states))
    return eqx.combine(arrays, rest)


def _sampled(problem: Problem, denoiser: mm.Denoiser, k: int) -> float:
    sampler, shape = mm.ancestral_sampler(denoiser, k), problem.data.shape[1:]
    draw = eqx.filter_jit(lambda sampler, keys: jax.vmap(lambda key: sampler(key, shape))(keys))
    parts = np.split(jax.random.split(jax.random.key(2), problem.samples), 10)
    return _distance(problem, np.concatenate([np.asarray(draw(sampler, keys)) for keys in parts]))


def _distance(problem: Problem, samples: np.ndarray) -> float:
    rows, data = (each.reshape(len(each), -1) for each in (samples, problem.data))
    return mm.metrics.sliced_wasserstein(rows, data) if np.isfinite(rows).all() else float("inf")


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _log_snr(logsnr):
    return logsnr


@functools.cache
def _made(name: str) -> Problem:
    return PROBLEMS[name]()


def _halved(image: np.ndarray) -> np.ndarray:
    h, w = (side - side % 2 for side in image.shape)
    return image[:h, :w].reshape(h // 2, 2, w // 2, 2).mean((1, 3))


def _patches(images: list[np.ndarray], count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)

    def patch(image):
        top, left = (rng.integers(0, side - 15) for side in image.shape)
        return image[top : top + 16, left : left + 16]

    patches = np.stack([patch(images[i % len(images)]) for i in range(count)])
    return (patches[:, None] / 127.5 - 1).astype(np.float32)


def _chosen(group: Iterable[str], names: tuple[str, ...]) -> list[str]:
    """Those of a group that are named, or all of it where none is."""
    return [name for name in group if name in names] or list(group)


def _check(names: tuple[str, ...]) -> None:
    known = [*PROBLEMS, *PREDICTIONS, *SCHEDULES]
    if unknown := sorted(set(names) - set(known)):
        sys.exit(f"needs names out of {known}; got {unknown}")


if __name__ == "__main__":
    main(*sys.argv[1:])
