"""A student in a folder: what is read is what was written, and nothing in the folder is run."""

import json
import pathlib
import pickle
import subprocess
import sys
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import momentax
from momentax import description
from momentax.recipes._folder import Folder
from momentax.recipes._imported import imported, read_teacher, teacher_files
from momentax.recipes._settings import Distill

KEY = jax.random.key(0)
NETWORKS = {
    "MLP": description.Network("MLP", {"shape": [1, 4, 4], "width": 16, "depth": 1, "num_classes": 3}),
    "UViT": description.Network("UViT", {"channels": 1, "width": 8, "depth": 1, "heads": 2, "num_classes": 3}),
}
SCHEDULES = [
    momentax.KarrasSchedule(0.01, 20.0, 5.0),
    momentax.DiscreteSchedule(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))),
    momentax.shifted(momentax.CosineSchedule(-10.0, 12.0), -1.5),
    momentax.interpolated(momentax.shifted(momentax.FlowSchedule(), -1.0), momentax.FlowSchedule()),
    momentax.truncated(momentax.shifted(momentax.CosineSchedule(), 0.3), -10.2),
    momentax.truncated(momentax.DiscreteSchedule(np.cumprod(1 - np.linspace(1e-4, 0.03, 1000))), -10.2),
]
KERNELS = [
    momentax.conditional_posterior,
    momentax.ddim,
    momentax.renoise,
    momentax.stochastic(0.5),
    momentax.noisier(0.3),
]
PIPELINE = pathlib.Path(__file__).parent / "diffusers" / "ddpm-pipeline"


def written(folder, name="MLP", schedule=SCHEDULES[0], kernel=momentax.ddim):
    told = description.Description(NETWORKS[name], (1, 4, 4), 3, 2, schedule, kernel, {"seed": 1})
    (folder / "student.json").write_text(json.dumps(told.as_json()))
    with jax.enable_x64(False):
        student = NETWORKS[name].untrained(KEY)
    eqx.tree_serialise_leaves(folder / "student.eqx", student)
    return student


@pytest.mark.parametrize("name", NETWORKS)
def test_a_student_is_loaded_as_it_was_written_and_draws(name, tmp_path):
    student = written(tmp_path, name)
    loaded = momentax.load(tmp_path)
    assert eqx.tree_equal(loaded.student, student)
    assert (loaded.k, loaded.shape, loaded.num_classes, loaded.configuration) == (2, (1, 4, 4), 3, {"seed": 1})
    sampler = momentax.ancestral_sampler(student, 2, schedule=SCHEDULES[0], kernel=momentax.ddim)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        draw = eqx.filter_jit(lambda sampler: sampler(KEY, loaded.shape, jnp.asarray(1)))
        np.testing.assert_array_equal(draw(loaded.sampler), draw(sampler))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda made: type(made).__name__)
@pytest.mark.parametrize("predict", [momentax.predict_x, momentax.predict_eps, momentax.predict_score])
def test_what_a_network_predicts_and_was_trained_under_comes_back(predict, schedule, tmp_path):
    network = NETWORKS["MLP"]._replace(predict=predict, schedule=schedule)
    told = description.Description(network, (1, 4, 4), 3, 2, schedule, momentax.ddim, {})
    (tmp_path / "student.json").write_text(json.dumps(told.as_json()))
    found = description.read(tmp_path).denoiser
    assert isinstance(found, description.Network)
    assert (found.name, found.arguments, found.predict) == (network.name, network.arguments, predict)
    assert eqx.tree_equal(found.schedule, schedule)
    assert eqx.tree_equal(found.like(tmp_path).schedule, schedule)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda made: type(made).__name__)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda made: getattr(made, "__name__", type(made).__name__))
def test_schedule_and_kernel_come_back_to_the_last_bit(schedule, kernel, tmp_path):
    written(tmp_path, schedule=schedule, kernel=kernel)
    found = description.read(tmp_path)
    assert eqx.tree_equal((found.schedule, found.kernel), (schedule, kernel))


IMPORTED = {
    "pipeline": {"teacher": PIPELINE},
    "network": {"teacher": PIPELINE / "unet", "teacher_predicts": "eps", "teacher_betas": "scaled_linear"},
    "scheduler elsewhere": {"teacher": PIPELINE / "unet", "teacher_scheduler": PIPELINE},
}


@pytest.mark.parametrize("name", IMPORTED)
def test_the_student_of_an_imported_teacher_is_loaded_from_its_folder_alone(name, tmp_path):
    """Its own weights in the teacher's network, whose prediction and schedule it has, wherever the folder is moved."""
    (tmp_path / "run").mkdir()
    config, folder = Distill(**cast(Any, IMPORTED[name])), Folder(tmp_path / "run")
    assert config.teacher is not None
    with jax.enable_x64(False):
        teacher = read_teacher(config.teacher, config)
        arrays, static = eqx.partition(teacher, eqx.is_inexact_array)
        student = eqx.combine(jax.tree.map(lambda leaf: leaf + 1, arrays), static)
    schedule = momentax.default_schedule(teacher)
    told = description.Description(imported(config), (1, 8, 8), 11, 2, schedule, momentax.ddim, {})
    folder.copy("teacher", teacher_files(config.teacher, config.teacher_scheduler))
    folder.write_weights("student.eqx", student)
    folder.write_json("student.json", told.as_json())
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    loaded, kept = momentax.load(moved), momentax.load_teacher(moved)
    assert eqx.tree_equal(loaded.student, student)
    assert eqx.tree_equal(kept, teacher)
    assert not eqx.tree_equal(kept, loaded.student)
    assert loaded.schedule == schedule
    assert cast(Any, kept).predict is (momentax.predict_eps if name == "network" else momentax.predict_v)


def test_the_best_student_and_the_teacher_have_files_of_their_own(tmp_path):
    last = written(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^needs the weights .*student-best\.eqx; got none"):
        momentax.load(tmp_path, best=True)
    with pytest.raises(FileNotFoundError, match=r"^needs the weights .*teacher\.eqx; got none"):
        momentax.load_teacher(tmp_path)
    with jax.enable_x64(False):
        best, teacher = (NETWORKS["MLP"].untrained(jax.random.key(seed)) for seed in (1, 2))
    eqx.tree_serialise_leaves(tmp_path / "student-best.eqx", best)
    eqx.tree_serialise_leaves(tmp_path / "teacher.eqx", teacher)
    assert eqx.tree_equal(momentax.load(tmp_path, best=True).student, best)
    assert eqx.tree_equal(momentax.load(tmp_path).student, last)
    assert eqx.tree_equal(momentax.load_teacher(tmp_path), teacher)


def test_a_student_is_loaded_without_the_packages_of_the_command_line(tmp_path):
    written(tmp_path)
    extras = ["orbax", "tyro", "matplotlib", "sklearn", "grain", "tqdm"]
    code = f"import sys, momentax; momentax.load('.'); print([name for name in {extras} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


DAMAGED: dict[str, dict[str, Any]] = {
    "a kernel that there is not": {"kernel": {"name": "os.system"}},
    "a schedule that there is not": {"schedule": {"name": "__import__", "path": "os"}},
    "arguments that it has not": {"schedule": {"name": "CosineSchedule", "foo": 1}},
    "a network that there is not": {"denoiser": {"network": "Popen", "predict": None, "schedule": None}},
    "a folder above": {"denoiser": {"diffusers": "../x", "predict": None, "schedule": None, "variant": None}},
    "the folder above": {"denoiser": {"diffusers": "..", "predict": None, "schedule": None, "variant": None}},
    "a table that rises": {"schedule": {"name": "DiscreteSchedule", "logsnrs": [0.0, 1.0]}},
    "no shape": {"shape": None},
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_description_that_names_anything_else_is_refused(name, tmp_path):
    written(tmp_path)
    values = json.loads((tmp_path / "student.json").read_text()) | DAMAGED[name]
    (tmp_path / "student.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"^needs a description of a student in .*student\.json; got one that fails"):
        momentax.load(tmp_path)


class Malicious:
    def __reduce__(self):
        return pathlib.Path("executed").touch, ()


def test_a_pickle_in_the_weights_place_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    for fill in (pickle.dump, lambda value, file: np.save(file, np.array([value]), allow_pickle=True)):
        with (tmp_path / "student.eqx").open("wb") as file:
            fill(Malicious(), file)
        with pytest.raises(ValueError, match=r"^needs whole weights"):
            momentax.load(tmp_path)
        assert not (tmp_path / "executed").exists()


def test_a_later_format_names_the_version_that_is_needed(tmp_path):
    written(tmp_path)
    values = json.loads((tmp_path / "student.json").read_text()) | {"format": 2, "momentax": "9.1"}
    (tmp_path / "student.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"^needs momentax 9\.1 or later"):
        momentax.load(tmp_path)


@pytest.mark.parametrize(
    ("file", "words"),
    [("run.json", "--resume"), ("report.json", "of an older momentax"), (None, "run `momentax distill --output")],
)
def test_a_folder_without_a_description_says_what_to_do(file, words, tmp_path):
    if file:
        (tmp_path / file).write_text("{}")
    with pytest.raises(FileNotFoundError, match=words):
        momentax.load(tmp_path)
