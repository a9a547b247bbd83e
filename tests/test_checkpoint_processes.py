"""Processes that are killed, that have no room or no leave, that are two: in processes of their own."""

import os
import random
import runpy
import sys
import time
from typing import Any

import jax
import numpy as np
import pytest
from processes import WORKERS, output, start, start_pair

from momentax import checkpoint
from momentax.checkpoint import _pieces, _together

run: Any = runpy.run_path(str(WORKERS / "run.py"))


def kill_when(process, condition, later=0.0):
    """Kills it as soon as something is so, or some seconds later."""
    while process.poll() is None and not condition():
        time.sleep(0.001)
    time.sleep(later)
    assert process.poll() is None
    process.kill()
    process.communicate()


def test_a_process_killed_in_its_first_save_leaves_no_checkpoint(tmp_path):
    process = start("first", tmp_path)
    kill_when(process, lambda: any(tmp_path.glob("*/tree/ocdbt.process_0/*")))
    assert os.listdir(tmp_path) == ["0.orbax-checkpoint-tmp"]
    assert (checkpoint.steps(tmp_path), checkpoint.latest(tmp_path), checkpoint.best(tmp_path)) == ([], None, None)
    with pytest.raises(FileNotFoundError, match="got none"):
        checkpoint.restore(tmp_path, {"weight": np.zeros(2**25)})
    checkpoint.save(tmp_path, 1, {"weight": np.ones(3)}).wait()
    assert os.listdir(tmp_path) == ["1"]


def curve(folder):
    return [(update, losses["student"].hex()) for update, losses in checkpoint.read_losses(folder)]


def test_a_killed_run_goes_on_as_if_it_had_never_stopped(tmp_path):
    run["train"](tmp_path / "whole", 30)
    kill_when(start("run", tmp_path / "killed", 10**6), lambda: len(curve(tmp_path / "killed")) > 8)
    assert len(curve(tmp_path / "killed")) < 30
    run["train"](tmp_path / "killed", 30)
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_killed_again_and_again_goes_on_as_if_it_had_never_stopped(tmp_path):
    """Thirty times, up to a tenth of a second after it has saved up to three checkpoints more."""
    rng, folder = random.Random(0), tmp_path / "killed"
    for _ in range(30):
        process = start("run", folder, 10**6)
        assert process.stdout is not None
        process.stdout.readline()
        enough = (checkpoint.latest(folder) or 0) + rng.randrange(4)
        kill_when(process, lambda enough=enough: (checkpoint.latest(folder) or 0) >= enough, rng.uniform(0, 0.1))
    updates = (checkpoint.latest(folder) or 0) + 3
    run["train"](tmp_path / "killed", updates)
    run["train"](tmp_path / "whole", updates)
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    assert len(curve(tmp_path / "whole")) == updates
    like = run["initial"]()
    killed, whole = (checkpoint.restore(tmp_path / name, like).tree for name in ("killed", "whole"))
    np.testing.assert_array_equal(killed["weight"], whole["weight"])
    np.testing.assert_array_equal(jax.random.key_data(killed["key"]), jax.random.key_data(whole["key"]))


@pytest.mark.slow
def test_a_program_that_ends_too_early_says_what_is_lost(tmp_path):
    process = start("early", tmp_path)
    _, err = process.communicate(timeout=300)
    assert "needs `wait()` before the program ends; got a checkpoint that did not get to the disk, and is lost" in err
    assert checkpoint.steps(tmp_path) == [0]
    assert checkpoint.restore(tmp_path, {"weight": np.zeros(3)}).step == 0


def test_a_full_disk_is_told_once_at_wait_or_at_the_next_save(tmp_path):
    told = output(start("full", tmp_path)).splitlines()[-1]
    assert told == str([True, True, True, [0], [0, 2]])
    np.testing.assert_array_equal(
        checkpoint.restore(tmp_path, {"weight": np.zeros(10)}, step=0).tree["weight"],
        np.random.default_rng(0).normal(size=10),
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl to bind root")
def test_a_folder_without_leave_to_write_is_told(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    told = output(start("bound", WORKERS / "refused.py", folder))
    assert told.startswith(f"needs a folder it may write to; got {folder}: ")
    assert os.listdir(folder) == []


def pair(action, folder):
    """What two processes print last that do the same together."""
    return [output(process).splitlines()[-1] for process in start_pair("spread", action, folder)]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_two_processes_save_what_one_restores(tmp_path, devices):
    assert pair("save", tmp_path) == ["2 4"] * 2
    assert checkpoint.steps(tmp_path) == [2, 3]
    assert output(start("spread", "restore", tmp_path, devices=devices)) == f"1 {devices}"


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 8])
def test_one_process_saves_what_two_restore(tmp_path, devices):
    assert output(start("spread", "save", tmp_path, devices=devices)) == f"1 {devices}"
    assert pair("restore", tmp_path) == ["2 4"] * 2


@pytest.mark.slow
def test_two_processes_agree_on_what_is_damaged(tmp_path):
    pair("save", tmp_path)
    for path in (tmp_path / "3" / "tree").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    for process in start_pair("spread", "restore", tmp_path):
        _, err = process.communicate(timeout=300)
        assert "needs whole checkpoints" in err
        assert process.returncode != 0


def test_what_one_process_finds_damaged_all_take_for_damaged(tmp_path, monkeypatch):
    for step in range(2):
        checkpoint.save(tmp_path, step, {"x": np.full(3, step)}).wait()
    answers = iter([[True, "its manifest was altered"]])
    monkeypatch.setattr(_together, "gathered", lambda value: [value, next(answers, None)])
    with pytest.warns(UserWarning, match="with 1, of which process 1 finds: its manifest was altered"):
        assert checkpoint.restore(tmp_path, {"x": np.zeros(3, int)}).step == 0


def test_what_fails_in_one_process_fails_in_all(tmp_path, monkeypatch):
    monkeypatch.setattr(_together, "gathered", lambda value: [value, [False, "no room"]])
    with pytest.raises(RuntimeError, match="needs all processes to get this far; got, in process 1: no room"):
        checkpoint.save(tmp_path, 0, {"x": np.zeros(3)})
    assert os.listdir(tmp_path) == []


def test_values_of_their_own_that_differ_between_processes_are_refused(tmp_path, monkeypatch):
    value = {"x": np.zeros(3)}

    def gathered(own):
        ((name, ((bounds, checksum),)),) = own
        return [own, [[name, [[bounds, checksum + 1]]]]]

    monkeypatch.setattr(_pieces, "gathered", gathered)
    with pytest.raises(ValueError, match=r"needs the same values of \['x'\] in every process"):
        checkpoint.save(tmp_path, 0, value)
    monkeypatch.setattr(_pieces, "gathered", lambda own: [own, []])
    with pytest.raises(ValueError, match="needs the same tree in every process; got other arrays in process 1"):
        checkpoint.save(tmp_path, 0, value)
    assert os.listdir(tmp_path) == []
