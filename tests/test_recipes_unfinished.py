"""A folder with an unfinished run: what goes on with it, what is refused, and that nothing is touched then."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from commands import RUN, environment, told

from momentax.recipes._data import load
from momentax.recipes._folder import Folder
from momentax.recipes._lock import Lock
from momentax.recipes._presets import resolved
from momentax.recipes._settings import Distill
from momentax.recipes._unfinished import begin, resumed, unfinished

TOLD = ["--data", "own.npz", "--updates", "6", "--batch", "16", "--output", "run"]
CONFIG = Distill(data="own.npz", updates=6, batch=16, checkpoint_every=7, output=pathlib.Path("run"))


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a run of TOLD was begun."""
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "own.npz", x=np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1), np.uint8))
    folder = Folder(pathlib.Path("run"))
    folder.create()
    dataset = load("own.npz")
    begin(folder, resolved(CONFIG, dataset), dataset)
    return folder


def refused(*arguments: str) -> str:
    """What a command says when it ends before anything is touched."""
    before = {path: path.read_bytes() for path in pathlib.Path("run").rglob("*")}
    words = told("distill", *arguments)
    assert {path: path.read_bytes() for path in pathlib.Path("run").rglob("*")} == before
    assert words.startswith("momentax: needs ")
    return words


OTHERS = {
    "steps": (["--k", "4"], "--k 8 -> 4"),
    "algorithm": (["--algorithm", "instant"], "--algorithm alternating -> instant"),
    "schedule": (["--schedule", "flow"], "--schedule teacher -> flow"),
    "batch": (["--batch", "32"], "--batch 16 -> 32"),
    "rate": (["--learning-rate", "0.5"], "--learning-rate 0.001 -> 0.5"),
    "seed": (["--seed", "1"], "--seed 0 -> 1"),
    "micro-batches": (["--micro-batches", "2"], "--micro-batches 1 -> 2"),
    "evaluation": (["--evaluate-every", "2"], "--evaluate-every None -> 2"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_configuration_is_refused_and_the_difference_named(name, folder):
    arguments, difference = OTHERS[name]
    words = refused(*TOLD, *arguments)
    assert "needs a folder without an unfinished run of another configuration; got run" in words
    assert difference in words
    assert "--resume, choose another --output, or --overwrite" in words
    flagged = refused("--resume", "--output", "run", *arguments)
    assert f"needs the flags of the unfinished run in run with --resume; got {difference};" in flagged


def test_a_flag_that_is_given_at_its_default_differs_too(folder):
    dataset = load("own.npz")
    begin(folder, resolved(dataclasses.replace(CONFIG, k=4), dataset), dataset)
    assert "--k 4 -> 8" in refused("--resume", "--output", "run", "--k", "8")


def test_resuming_takes_the_runs_own_settings(folder):
    arguments = ["--resume", "--output", "run", "--updates", "6"]
    config = resumed(folder, unfinished(folder), Distill(resume=True, output=pathlib.Path("run")), arguments)
    assert (config.data, config.batch, config.updates, config.checkpoint_every) == ("own.npz", 16, 6, 7)
    config = resumed(folder, unfinished(folder), Distill(resume=True), [*arguments, "--checkpoint-every", "9"])
    assert config.checkpoint_every == 9


def test_resuming_takes_the_copy_of_a_teacher_from_elsewhere(folder):
    """Once there is one: before, it is still to be made."""
    run = unfinished(folder)
    assert run is not None
    run["configuration"] |= {"teacher": "elsewhere", "teacher_predicts": "eps", "teacher_updates": 0}
    arguments = ["--resume", "--output", "run"]
    assert resumed(folder, run, Distill(resume=True), arguments).teacher == pathlib.Path("elsewhere")
    folder.write_json("teacher.json", {})
    assert resumed(folder, run, Distill(resume=True), arguments).teacher is None


@pytest.mark.parametrize("state", ["nowhere", "empty", "finished"])
def test_nothing_to_resume_is_told(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if state != "nowhere":
        pathlib.Path("run").mkdir()
    if state == "finished":
        pathlib.Path("run", "report.json").write_text("{}")
    words = refused("--resume", "--output", "run")
    assert (
        f"needs an unfinished run in run to --resume; got {'a finished one' if state == 'finished' else 'none'};"
        in words
    )
    assert pathlib.Path("run").exists() == (state != "nowhere")


def test_resume_and_overwrite_together_are_refused(folder):
    assert "needs --resume or --overwrite; got both" in refused("--resume", "--overwrite", "--output", "run")


@pytest.mark.parametrize("arguments", [TOLD, ["--resume", "--output", "run"]])
def test_other_contents_of_the_data_are_refused(arguments, folder):
    np.savez("own.npz", x=np.random.default_rng(1).integers(0, 256, (20, 4, 4, 1), np.uint8))
    assert "needs the data that the unfinished run in run began with" in refused(*arguments)


def test_a_run_file_that_is_cut_is_told(folder):
    path = folder.path / "run.json"
    path.write_bytes(path.read_bytes()[:50])
    assert "needs JSON in run/run.json" in refused(*TOLD)


def test_a_second_run_in_a_folder_is_refused_at_once(folder):
    with Lock(folder.path):
        words = refused(*TOLD)
    assert "needs a folder that no other run is at work in; got run;" in words
    assert not (folder.path / ".lock").exists()
    assert "--k 8 -> 4" in refused(*TOLD, "--k", "4")


def test_a_lock_is_released_by_death_and_leaves_nothing_when_it_is_let_go(tmp_path):
    code = f"""
import os, pathlib, signal
from momentax.recipes._lock import Lock
Lock(pathlib.Path({str(tmp_path)!r})).take()
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert (tmp_path / ".lock").exists()
    with Lock(tmp_path) as lock:
        lock.take()
        with pytest.raises(BlockingIOError, match=r"^needs a folder"), Lock(tmp_path):
            pass
    assert not list(tmp_path.iterdir())


def test_without_fcntl_the_command_says_its_help_and_folders_are_locked(tmp_path):
    """As on Windows, which has no such module; a lock of another kind, of the same library."""
    code = f"""
import sys, warnings
sys.modules["fcntl"] = None
warnings.simplefilter("ignore")
import pathlib
from momentax.recipes import main
from momentax.recipes._lock import Lock
with Lock(pathlib.Path({str(tmp_path)!r})) as lock:
    assert (pathlib.Path({str(tmp_path)!r}) / ".lock").exists()
    try:
        Lock(pathlib.Path({str(tmp_path)!r})).take()
    except BlockingIOError as error:
        print(error)
sys.argv = ["momentax", "distill", "--help"]
main()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("needs a folder that no other run is at work in")
    assert "--learning-rate" in result.stdout
    assert not list(tmp_path.iterdir())


def test_a_lock_whose_file_was_taken_away_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """Between our opening the file and our locking it, its holder removed it: locking that would exclude no one."""
    fcntl = pytest.importorskip("fcntl")
    first, flock = Lock(tmp_path), fcntl.flock
    first.take()

    def late(file, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        first.__exit__()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with Lock(tmp_path) as second:
        second.take()
        with pytest.raises(BlockingIOError):
            Lock(tmp_path).take()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": 18}, "needs a --batch that divides by 4: 4 devices times 1 --micro-batches; got 18; do take 20"),
        ({"batch": 20, "micro_batches": 2}, "divides by 8: 4 devices times 2 --micro-batches; got 20; do take 24"),
        (
            {"batch": 20, "algorithm": "instant"},
            "4 devices times 1 --micro-batches times 2 for instant; got 20; do take 24",
        ),
        ({"micro_batches": 0}, "needs --micro-batches > 0; got 0"),
        ({"checkpoint_every": 0}, "needs --checkpoint-every > 0; got 0"),
        ({"evaluate_every": 0}, "needs --evaluate-every > 0; got 0"),
    ],
)
def test_a_batch_that_does_not_divide_is_told_before_anything_compiles(changes, words, folder, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    with pytest.raises(ValueError, match=r"^needs ") as error:
        resolved(dataclasses.replace(CONFIG, **changes), load("own.npz"))
    assert words in str(error.value)


def test_a_folder_that_may_not_be_written_to_is_told(tmp_path):
    """Root's right to write anywhere is laid down first."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o555)
    drop = (
        f"import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 1, 0, 0, 0); os.execv({sys.executable!r}, sys.argv[1:])"
    )
    command = [sys.executable, "-c", drop, sys.executable, "-c", RUN, "distill", "--output", "run"]
    options = {"capture_output": True, "text": True, "timeout": 120}
    result = subprocess.run(command, cwd=tmp_path, env=environment(), check=False, **options)
    (tmp_path / "run").chmod(0o755)
    assert result.returncode == 1
    assert "needs a folder it may write to; got run" in result.stderr
    assert not os.listdir(tmp_path / "run")


def test_what_is_on_record_is_plain(folder):
    run = json.loads((folder.path / "run.json").read_text())
    assert set(run) == {"configuration", "data", "place", "checkpoint_every", "phases"}
    assert run["configuration"]["batch"] == 16
    assert "output" not in run["configuration"]
