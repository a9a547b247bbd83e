"""A student in a folder: what is read is what was written, and nothing in the folder is run."""

import json
import pathlib
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import momentax
from momentax import description

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
]
KERNELS = [momentax.conditional_posterior, momentax.ddim, momentax.renoise, momentax.stochastic(0.5)]


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
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda made: getattr(made, "__name__", type(made).__name__))
def test_schedule_and_kernel_come_back_to_the_last_bit(schedule, kernel, tmp_path):
    written(tmp_path, schedule=schedule, kernel=kernel)
    found = description.read(tmp_path)
    assert eqx.tree_equal((found.schedule, found.kernel), (schedule, kernel))


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
