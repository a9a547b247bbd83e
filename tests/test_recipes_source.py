"""A finished run is drawn from and measured wherever it lies, and with the data that it was made of alone."""

import json
import os
import pathlib
import shutil

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import told

import momentax as mm
from momentax.recipes._command import run
from momentax.recipes._data import load
from momentax.recipes._distillation import _describe
from momentax.recipes._finished import Finished, opened
from momentax.recipes._folder import Folder
from momentax.recipes._presets import resolved
from momentax.recipes._settings import Distill, Draw, as_json
from momentax.recipes._source import keep, kept_outline
from momentax.recipes._teacher import network, record_of, start
from momentax.recipes._unfinished import begin

FEW = ["--samples", "16", "--k", "1"]


@pytest.fixture(autouse=True)
def as_users_have_it(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


def images(seed=0, n=80, side=4):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 1), np.uint8)


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A run of data named relative to where it was made, of a student that has learnt nothing."""
    (tmp_path / "made").mkdir()
    monkeypatch.chdir(tmp_path / "made")
    np.savez("own.npz", x=images(), y=np.arange(80) % 3)
    folder = Folder(pathlib.Path("run"))
    begun = start(folder, Distill(data="own.npz", output=folder.path), load("own.npz"))
    config = resolved(begun.config, begun.dataset)
    folder.create()
    teacher = network(begun.dataset, jax.random.key(0))
    for name in ("teacher", "student"):
        folder.write_weights(f"{name}.eqx", teacher)
    folder.write_json("teacher.json", record_of(config, begun.dataset))
    _describe(config, begun, folder, teacher)
    folder.write_json("report.json", {"configuration": as_json(config)})
    return pathlib.Path("run").absolute()


def older(folder):
    """As runs were before they had a description."""
    for name in ("student.json", "labels.npy", "data.json"):
        (folder / name).unlink()


def drawn(folder, *arguments):
    run(["sample", "--output", str(folder), *FEW, *arguments])
    return (folder / "drawn.npz").read_bytes()


@pytest.mark.parametrize("model", ["student", "teacher"])
def test_without_its_data_a_run_draws_what_it_drew_with_them(model, finished, tmp_path, monkeypatch):
    """From another folder, and after it was moved: what runs without a description draw of their data."""
    shutil.copytree(finished, tmp_path / "made" / "older")
    older(tmp_path / "made" / "older")
    of_data = drawn(pathlib.Path("older"), "--model", model)
    finished.rename(tmp_path / "moved")
    (tmp_path / "made" / "own.npz").unlink()
    monkeypatch.chdir(tmp_path)
    assert drawn(pathlib.Path("moved"), "--model", model) == of_data


def test_the_teacher_of_a_guided_run_is_drawn_with_guidance_and_a_student_is_not(finished):
    report = json.loads((finished / "report.json").read_text())
    report["configuration"]["guidance"] = 1.5
    (finished / "report.json").write_text(json.dumps(report))
    teacher = mm.load_teacher(finished)
    drawn_of = {model: opened(Draw(output=finished, model=model), 16).model for model in ("teacher", "student")}
    assert eqx.tree_equal(drawn_of["teacher"], mm.guided(teacher, 1.5, jnp.asarray(3)))
    assert eqx.tree_equal(drawn_of["student"], teacher)


def test_labels_are_kept_small_and_in_order(finished):
    kept = np.load(finished / "labels.npy", allow_pickle=False)
    assert kept.dtype == np.uint8
    np.testing.assert_array_equal(kept, np.arange(80) % 3)


def test_data_without_labels_keep_none(tmp_path):
    np.savez(tmp_path / "plain.npz", x=images())
    keep(Folder(tmp_path), str(tmp_path / "plain.npz"), load(str(tmp_path / "plain.npz")))
    assert not (tmp_path / "labels.npy").exists()
    assert kept_outline(Folder(tmp_path), (1, 4, 4), 0) == ((1, 4, 4), None)


def test_the_report_names_no_folder(finished):
    assert load(str(finished.parent / "own.npz")).source == "own.npz, the user's own"


class Malicious:
    def __reduce__(self):
        return pathlib.Path("executed").touch, ()


WRONG_LABELS = {
    "pickle": np.array([Malicious()], dtype=object),
    "floats": np.zeros(3, np.float32),
    "a class too many": np.array([3], np.uint8),
    "none": np.zeros(0, np.uint8),
    "pairs": np.zeros((3, 2), np.uint8),
}


@pytest.mark.parametrize("name", WRONG_LABELS)
def test_labels_that_cannot_be_are_refused_and_nothing_is_run(name, finished):
    np.save(finished / "labels.npy", WRONG_LABELS[name], allow_pickle=True)
    assert "needs labels 0 to 2 of the data in" in told("sample", "--output", finished, *FEW)
    assert not pathlib.Path("executed").exists()


def evaluated(folder, *arguments):
    run(["evaluate", "--output", str(folder), *FEW, "--images", "40", *arguments])
    return json.loads((folder / "evaluation-student-1-0.json").read_text())


def test_a_run_is_measured_by_its_data_from_anywhere(finished, tmp_path, monkeypatch):
    """Where they were, of whichever folder it is called from; or where they are now."""
    here = evaluated(pathlib.Path("run"))
    monkeypatch.chdir(tmp_path)
    assert evaluated(finished) == here
    (tmp_path / "made" / "own.npz").rename(tmp_path / "renamed.npz")
    assert evaluated(finished, "--data", "renamed.npz") == here
    older(finished)
    assert evaluated(finished, "--data", "renamed.npz") == here


OTHERS = {
    "contents": ({"x": images(1), "y": np.arange(80) % 3}, "of sha256"),
    "labels": ({"x": images(), "y": np.arange(80)[::-1] % 3}, "of sha256"),
    "sides": ({"x": images(side=8), "y": np.arange(80) % 3}, "of shape [1, 4, 4]; got [1, 8, 8] in other.npz"),
    "classes": ({"x": images(), "y": np.arange(80) % 4}, "of num_classes 3; got 4 in other.npz"),
    "nothing": (None, "needs the data of the run in run; got no file other.npz; name where they are by --data"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_data_are_told_before_anything_is_drawn(name, finished, monkeypatch):
    monkeypatch.setattr(Finished, "drawn", lambda self, seed: pytest.fail("drawn"))
    arrays, words = OTHERS[name]
    if arrays:
        np.savez("other.npz", **arrays)
    assert words in told("evaluate", "--output", "run", "--to", "elsewhere", "--data", "other.npz")
    assert not pathlib.Path("elsewhere").exists()


def test_data_that_are_gone_are_told_before_anything_is_drawn(finished, monkeypatch):
    monkeypatch.setattr(Finished, "drawn", lambda self, seed: pytest.fail("drawn"))
    pathlib.Path("own.npz").unlink()
    assert f"got no file {os.path.abspath('own.npz')}; name where they are by --data" in told(
        "evaluate", "--output", "run"
    )
    older(finished)
    words = "needs student.json and labels.npy in run, or the data own.npz, as it is of an older momentax; got neither"
    assert words in told("sample", "--output", "run")
    assert "name where they are by --data" in told("evaluate", "--output", "run")


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_run_that_is_being_made_anew_is_unfinished(command, finished, monkeypatch):
    """Whatever the one before left there."""
    monkeypatch.setattr(Finished, "drawn", lambda self, seed: pytest.fail("drawn"))
    (finished / "run.json").write_text("{}")
    words = "needs a finished run in run; got an unfinished one; run `momentax distill --resume --output run` first"
    assert words in told(command, "--output", "run")


def test_a_run_goes_on_from_another_folder(finished, tmp_path, monkeypatch):
    """With the data from where they were when it began."""
    folder, seen = Folder(tmp_path / "begun"), []
    folder.create()
    dataset = load("own.npz")
    begin(folder, resolved(Distill(data="own.npz", output=folder.path), dataset), dataset)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    monkeypatch.setattr("momentax.recipes._distillation.distil", lambda *told: seen.append(told))
    run(["distill", "--resume", "--output", "../begun"])
    config, begun = seen[0][:2]
    assert config.data == "own.npz"
    np.testing.assert_array_equal(begun.dataset.x[:], dataset.x[:])
    assert begun.dataset.source == dataset.source
