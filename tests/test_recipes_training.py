"""The loop that trains: interrupted anywhere it ends as if it never was, and what is not finite changes nothing."""

import contextlib
import dataclasses
import functools
import os
import signal
import threading
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import momentax as mm
from momentax import checkpoint
from momentax.recipes import _interrupt, _training
from momentax.recipes._batches import batches
from momentax.recipes._data import Dataset
from momentax.recipes._folder import Folder
from momentax.recipes._journal import Journal, curves, distances
from momentax.recipes._phases import distillation, teaching
from momentax.recipes._settings import Run
from momentax.recipes._training import PATIENCE, Trial, train

rng = np.random.default_rng(0)
DATA = Dataset(
    "tiny", rng.uniform(-1, 1, (60, 1, 2, 2)).astype(np.float32), rng.integers(0, 3, 60).astype(np.int32), 3, "none"
)
CONFIG = Run(teacher_updates=14, updates=14, batch=8, learning_rate=1e-3, weight="flat", k=2)
UPDATING, OPENED = functools.cache(_training.updating), contextlib.ExitStack()
PHASES = ["teacher", "alternating", "instant"]


@pytest.fixture(autouse=True)
def _as_users_have_jax(monkeypatch):
    monkeypatch.setattr(_training, "updating", UPDATING)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(autouse=True, scope="module")
def _no_threads_are_left():
    with OPENED:
        yield


def network():
    return mm.Denoiser(mm.nn.MLP((1, 2, 2), width=4, depth=1, num_classes=3, key=jax.random.key(0)))


class Hollow(eqx.Module):
    """A network that knows nothing above a log-SNR."""

    net: Any
    above: float

    def __call__(self, z, t, cond=None):
        return jnp.where(t > self.above, jnp.asarray(jnp.nan, z.dtype), self.net(z, t, cond))


@functools.cache
def made(name: str, hollow: bool = False, **changes: Any):
    net: Any = Hollow(network().net, -3.0) if hollow else network().net
    config, key = dataclasses.replace(CONFIG, **changes), jax.random.key(1)
    if name == "teacher":
        phase = teaching(config, DATA, network(), key)
    else:
        teacher = mm.Denoiser(net, schedule=mm.CosineSchedule())
        phase = distillation(dataclasses.replace(config, algorithm=name), DATA, teacher, key)
    OPENED.callback(phase.examples.close)
    return phase, phase.examples.get_state()


def phase_of(name: str, **changes: Any):
    """A phase from its beginning; compiled once, however often a test trains it."""
    phase, position = made(name, **changes)
    phase.examples.set_state(position)
    return phase


def trained(path: Path, phase, every: int = 4, trial: Trial | None = None, told: dict | None = None):
    path.mkdir(exist_ok=True)
    return train(phase, Journal(Folder(path), phase.name, 0, told or {"of": phase.title}), every, trial)


def leaves(state):
    arrays = jax.tree.leaves(eqx.filter(state._replace(key=jax.random.key_data(state.key)), eqx.is_array))
    return [np.asarray(leaf) for leaf in arrays]


def assert_identical(ours, theirs):
    for a, b in zip(leaves(ours), leaves(theirs), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)


class Death(BaseException):
    """What a process does not survive."""


@contextlib.contextmanager
def dying(monkeypatch, at: int):
    """The process dies in update `at`, and nothing is tidied up."""
    record = Journal.record

    def die(self, n, **values):
        if n == at:
            self._pending.clear()
            raise Death
        record(self, n, **values)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "record", die)
        with contextlib.suppress(Death):
            yield
            pytest.fail("nothing died")


@pytest.mark.parametrize("name", [*PHASES, "joint"])
def test_a_phase_that_died_goes_on_as_if_it_never_had(name, tmp_path, monkeypatch, one_device):
    """Twice, with losses on disk that are younger than the last checkpoint: weights, counts, losses, bit for bit."""
    whole = trained(tmp_path / "whole", phase_of(name))
    for at in (2, 11):
        with dying(monkeypatch, at):
            trained(tmp_path / "died", phase_of(name))
    again = trained(tmp_path / "died", phase_of(name)._replace(prepare=_never))
    assert_identical(again, whole)
    lines = [(tmp_path / folder / "losses.jsonl").read_bytes() for folder in ("whole", "died")]
    assert lines[0] == lines[1]
    assert [n for n, _ in checkpoint.read_losses(tmp_path / "died")] == list(range(14))


def _never(*_):
    pytest.fail("what was prepared is in the checkpoint")


def test_the_loop_is_the_plain_one(tmp_path, one_device):
    """XLA may fuse optax's own updates otherwise, at 1e-7."""
    ours = trained(tmp_path, phase_of("alternating"))
    theirs = plainly(alike(mm.paper_optimizer(1e-3, 7, warmup=0)), lambda n: ("student",) if n % 2 else ("auxiliary",))
    assert_near({name: player.model for name, player in ours.players.items()}, theirs)


def test_both_players_have_the_first_moment_and_the_rate_that_is_asked_for(tmp_path, one_device):
    ours = trained(tmp_path, phase_of("alternating", b1=0.9, auxiliary_rate=4.0))
    rates = {"student": 1e-3, "auxiliary": 4e-3}
    own = {name: mm.paper_optimizer(rate, 7, warmup=0, b1=0.9) for name, rate in rates.items()}
    theirs = plainly(own, lambda n: ("student",) if n % 2 else ("auxiliary",))
    assert_near({name: player.model for name, player in ours.players.items()}, theirs)


def test_jointly_both_players_move_as_if_each_were_alone(tmp_path, one_device):
    """One rollout for both, and an optimiser for each."""
    ours = trained(tmp_path, phase_of("joint"))
    theirs = plainly(alike(mm.paper_optimizer(1e-3, 14, warmup=1)), lambda n: ("student", "auxiliary"))
    assert_near({"student": ours.student, "auxiliary": ours.players["student"].model[1]}, theirs)


def alike(optimizer):
    return dict.fromkeys(("student", "auxiliary"), optimizer)


def plainly(optimizers, turns):
    """Algorithm 2 as it is written, with optax's own updates, of those whose turn it is; the players after it."""
    teacher, names = mm.Denoiser(network().net, schedule=mm.CosineSchedule()), ("student", "auxiliary")
    players = dict.fromkeys(names, teacher)
    states = {name: own.init(eqx.filter(teacher, eqx.is_inexact_array)) for name, own in optimizers.items()}
    updates = {name: eqx.filter_jit(functools.partial(_plain, own)) for name, own in optimizers.items()}
    with contextlib.closing(batches(DATA, 8, 1, hidden=0.0)) as examples:
        for n in range(14):
            (x, cond), key = next(examples), jax.random.fold_in(jax.random.key(1), n)
            rollout = mm.Rollout(mm.CosineSchedule(), 2)
            losses = mm.moment_match(teacher, *players.values(), rollout=rollout, weight=mm.flat_weight)
            own = dict(zip(names, losses, strict=True))
            moved = {name: updates[name](own[name], players[name], states[name], x, key, cond) for name in turns(n)}
            players |= {name: model for name, (model, _) in moved.items()}
            states |= {name: state for name, (_, state) in moved.items()}
    return players


def assert_near(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert not eqx.is_array(a) or np.allclose(a, b, rtol=1e-5, atol=1e-7)


def _plain(optimizer, loss, model, state, x, key, cond):
    grads = eqx.filter_grad(loss)(model, x, key, cond)
    changes, state = optimizer.update(grads, state, model)
    return eqx.apply_updates(model, changes), state


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, monkeypatch, one_device):
    whole = trained(tmp_path / "whole", phase_of("alternating"))
    with dying(monkeypatch, 13):
        trained(tmp_path / "died", phase_of("alternating"))
    place = tmp_path / "died" / "checkpoints" / "distillation"
    assert checkpoint.steps(place) == [8, 12]
    for file in (place / "12").rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            file.write_bytes(file.read_bytes()[:-50])
    with pytest.warns(UserWarning, match="12"):
        again = trained(tmp_path / "died", phase_of("alternating"))
    assert_identical(again, whole)
    assert (tmp_path / "died" / "losses.jsonl").read_bytes() == (tmp_path / "whole" / "losses.jsonl").read_bytes()


def test_a_checkpoint_of_another_configuration_is_not_gone_on_with(tmp_path, monkeypatch, one_device):
    with dying(monkeypatch, 13):
        trained(tmp_path, phase_of("alternating"), told={"k": 2})
    with pytest.raises(ValueError, match=r"^needs .*k"):
        trained(tmp_path, phase_of("alternating"), told={"k": 4})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_after_the_update_with_everything_saved(number, tmp_path, one_device):
    whole = trained(tmp_path / "whole", phase_of("alternating"))
    phase = phase_of("alternating")
    raised = _interrupt.Terminated if number == signal.SIGTERM else KeyboardInterrupt
    with _interrupt.deferred(str):
        signal.raise_signal(number)
        with pytest.raises(raised):
            trained(tmp_path / "stopped", phase, every=1000)
    assert checkpoint.latest(tmp_path / "stopped" / "checkpoints" / "distillation") == 1
    assert [n for n, _ in checkpoint.read_losses(tmp_path / "stopped")] == [0]
    assert_identical(trained(tmp_path / "stopped", phase_of("alternating")), whole)


def test_what_was_before_an_update_that_takes_too_long_is_saved(tmp_path, monkeypatch, one_device):
    """All of it, losses included, though the last checkpoint is older; the run that goes on has the same bits."""
    whole, updater = trained(tmp_path / "whole", phase_of("alternating")), _training._updater
    ended, statuses = threading.Event(), []

    def stalled(phase, mesh):
        update = updater(phase, mesh)

        def at_seven(state, n, batch):
            if n == 7:
                signal.raise_signal(signal.SIGTERM)
                assert ended.wait(60)
                raise Death
            return update(state, n, batch)

        return at_seven

    with monkeypatch.context() as patch, contextlib.suppress(Death), _interrupt.deferred(str):
        patch.setattr(_training, "_updater", stalled)
        patch.setattr(_interrupt, "GRACE", 0.01)
        patch.setattr(_interrupt, "TO_SAVE", 60)
        patch.setattr(os, "_exit", lambda status: (statuses.append(status), ended.set()))
        trained(tmp_path / "stopped", phase_of("alternating"), every=4)
    assert statuses == [143]
    assert checkpoint.steps(tmp_path / "stopped" / "checkpoints" / "distillation") == [4, 7]
    assert [n for n, _ in checkpoint.read_losses(tmp_path / "stopped")] == list(range(7))
    assert_identical(trained(tmp_path / "stopped", phase_of("alternating")), whole)
    assert (tmp_path / "stopped" / "losses.jsonl").read_bytes() == (tmp_path / "whole" / "losses.jsonl").read_bytes()


def test_the_newest_two_checkpoints_and_the_best_are_kept(tmp_path, monkeypatch, one_device):
    figures = iter([3.0, 1.0, 2.0, 5.0, 4.0])
    trial = Trial(2, lambda student: next(figures))
    with dying(monkeypatch, 11):
        trained(tmp_path, phase_of("alternating"), every=1000, trial=trial)
    place = tmp_path / "checkpoints" / "distillation"
    assert checkpoint.steps(place) == [4, 8, 10]
    assert checkpoint.best(place) == 4
    assert distances(Folder(tmp_path), 0) == {2: 3.0, 4: 1.0, 6: 2.0, 8: 5.0, 10: 4.0}


def test_the_best_student_is_kept_over_an_interruption(tmp_path, monkeypatch, one_device):
    """The one that the trial saw at its least, although a later checkpoint is gone on from."""
    seen = {}

    def distance(student):
        weights = [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(student, eqx.is_array))]
        figure = abs(len(seen) - 1) + 1.0
        seen[figure] = weights
        return figure

    trial = Trial(4, distance)
    with dying(monkeypatch, 9):
        trained(tmp_path, phase_of("alternating"), every=4, trial=trial)
    trained(tmp_path, phase_of("alternating"), every=4, trial=trial)
    assert distances(Folder(tmp_path), 0) == {4: 2.0, 8: 1.0, 12: 2.0}
    best = Folder(tmp_path).read_weights("student-best.eqx", network())
    for ours, theirs in zip(jax.tree.leaves(eqx.filter(best, eqx.is_array)), seen[1.0], strict=True):
        np.testing.assert_array_equal(np.asarray(ours), theirs)
    assert set(curves(Folder(tmp_path))) == {"auxiliary", "student"}


def spoiled(name: str, at: set[int]):
    """A phase in which some batches hold a NaN."""
    phase = phase_of(name)

    class Examples:
        def __init__(self):
            self.taken = 0

        def __next__(self):
            x, cond = next(phase.examples)
            self.taken += 1
            return np.where(self.taken - 1 in at, np.float32(np.nan), x), cond

        def get_state(self):
            return {"taken": self.taken, "of": phase.examples.get_state()}

        def set_state(self, state):
            self.taken = state["taken"]
            phase.examples.set_state(state["of"])

    return phase._replace(examples=Examples())


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_an_update_that_is_not_finite_changes_nothing_and_is_counted(devices, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    before = trained(tmp_path / "before", spoiled("alternating", set())._replace(updates=4))
    state = trained(tmp_path / "spoiled", spoiled("alternating", {4, 5, 6})._replace(updates=7))
    assert state.skipped == {"auxiliary": 2, "student": 1}
    for name, player in before.players.items():
        after = state.players[name]
        for a, b in zip(jax.tree.leaves(player[:2]), jax.tree.leaves(after[:2]), strict=True):
            assert not eqx.is_array(a) or np.asarray(a).tobytes() == np.asarray(b).tobytes()
    lines = dict(checkpoint.read_losses(tmp_path / "spoiled"))
    assert [n for n in lines if not all(np.isfinite(value) for value in lines[n].values())] == [4, 5, 6]
    assert {name: len(values) for name, values in curves(Folder(tmp_path / "spoiled")).items()} == {
        "auxiliary": 2,
        "student": 2,
    }


def test_the_average_of_the_teacher_skips_what_its_weights_skip(tmp_path, one_device):
    before = trained(tmp_path / "before", spoiled("teacher", set())._replace(updates=4))
    state = trained(tmp_path / "spoiled", spoiled("teacher", {4, 5})._replace(updates=6))
    assert state.skipped == {"teacher": 2}
    for a, b in zip(jax.tree.leaves(state.average), jax.tree.leaves(before.average), strict=True):
        assert not eqx.is_array(a) or np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_skipped_updates_with_good_ones_between_them_do_not_stop_it(tmp_path, one_device):
    """More than the patience in all, never two in a row."""
    state = trained(tmp_path, spoiled("teacher", set(range(0, 30, 2)))._replace(updates=30), every=1000)
    assert state.skipped == {"teacher": 15}


@pytest.mark.parametrize("algorithm", ["alternating", pytest.param("instant", marks=pytest.mark.slow)])
def test_updates_that_never_are_finite_stop_with_the_log_snrs_and_the_last_good_state(algorithm, tmp_path, one_device):
    phase = phase_of(algorithm, hollow=True, updates=40)._replace(prepare=None)
    if algorithm == "instant":
        scale = jax.tree.map(jnp.ones_like, phase.state.precond)
        phase = phase._replace(state=phase.state._replace(precond=scale))
    with pytest.raises(FloatingPointError, match=f"^needs finite losses and gradients[;] got {PATIENCE}") as error:
        trained(tmp_path, phase)
    low, high = (float(word) for word in str(error.value).split("log-SNRs ")[1].split(";")[0].split(" to "))
    assert -3 <= low < high <= 15
    step = checkpoint.latest(tmp_path / "checkpoints" / "distillation")
    assert step == PATIENCE * len(phase.turns)
    kept = checkpoint.restore(tmp_path / "checkpoints" / "distillation", phase.state).tree
    for name, player in phase.state.players.items():
        for a, b in zip(jax.tree.leaves(player[:2]), jax.tree.leaves(kept.players[name][:2]), strict=True):
            assert not eqx.is_array(a) or np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize(
    "name",
    [pytest.param("teacher", marks=pytest.mark.slow), "alternating", pytest.param("instant", marks=pytest.mark.slow)],
)
def test_all_devices_train_as_one_does_and_any_number_goes_on(name, tmp_path, monkeypatch):
    """Begun on four, gone on with on two and ended on one: sums are taken in another order, at 2e-7 each update."""
    with monkeypatch.context() as patch:
        patch.setattr(jax, "device_count", lambda: 1)
        whole = trained(tmp_path / "one", phase_of(name))
    for devices, at in ((4, 5), (2, 9)):
        with monkeypatch.context() as patch, dying(monkeypatch, at):
            patch.setattr(jax, "device_count", lambda devices=devices: devices)
            trained(tmp_path / "many", phase_of(name))
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    many = trained(tmp_path / "many", phase_of(name))
    for a, b in zip(leaves(many), leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    ours, theirs = (curves(Folder(tmp_path / folder)) for folder in ("many", "one"))
    for loss in theirs:
        np.testing.assert_allclose(ours[loss], theirs[loss], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["alternating", "instant"])
def test_micro_batches_change_the_memory_and_not_the_losses(algorithm, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    taken, value_and_grad = set(), mm.value_and_grad

    def counted(*arguments, micro_batches):
        taken.add(micro_batches)
        return value_and_grad(*arguments, micro_batches=micro_batches)

    monkeypatch.setattr(mm, "value_and_grad", counted)
    for parts in (1, 2):
        trained(tmp_path / str(parts), phase_of(algorithm, batch=16, micro_batches=parts, updates=6))
    assert taken == {1, 2}
    ours, theirs = (curves(Folder(tmp_path / folder)) for folder in ("1", "2"))
    for loss in theirs:
        np.testing.assert_allclose(ours[loss], theirs[loss], rtol=1e-4, atol=1e-5)


def test_losses_that_went_missing_are_told(tmp_path, monkeypatch, one_device):
    with dying(monkeypatch, 9):
        trained(tmp_path, phase_of("teacher"))
    path = tmp_path / "losses.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(ValueError, match=r"^needs every loss of 8 updates in .*losses.jsonl; got 7; do put"):
        trained(tmp_path, phase_of("teacher"))


def test_checkpoints_that_all_are_damaged_are_told(tmp_path, monkeypatch, one_device):
    with dying(monkeypatch, 6):
        trained(tmp_path, phase_of("teacher"))
    for file in (tmp_path / "checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="damaged|whole"),
        pytest.raises(FileNotFoundError, match=r"^needs a whole checkpoint .*--overwrite"),
    ):
        trained(tmp_path, phase_of("teacher"))
