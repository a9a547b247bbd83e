"""The command line, as a stranger uses it: a whole run on real data, and everything that can be asked wrongly."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, cast

import numpy as np
import pytest

from momentax.recipes._data import load
from momentax.recipes._folder import Folder
from momentax.recipes._plots import plot_samples
from momentax.recipes._settings import Distill, resolved
from momentax.recipes._teacher import start

SHORT = ["--teacher-updates", "40", "--updates", "6", "--batch", "16", "--samples", "64"]


def momentax(*arguments, cwd, seconds=240):
    command = [sys.executable, "-c", "from momentax.recipes import main; main()", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=seconds)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished run of both the teacher and a student."""
    root = tmp_path_factory.mktemp("run")
    result = momentax("distill", "--output", "run", *SHORT, cwd=root)
    assert result.returncode == 0, result.stderr
    return root / "run"


def test_a_run_leaves_report_pictures_and_weights(finished):
    report = json.loads((finished / "report.json").read_text())
    assert {"configuration", "seed", "versions", "figures", "features", "data", "teacher", "losses"} <= set(report)
    assert report["configuration"]["weight"] is not None
    assert set(report["figures"]["teacher"]) == {"8", "16", "64", "256"}
    assert set(report["figures"]["student"]) == {"8"}
    assert all(np.isfinite(row["frechet_distance"]) for row in report["figures"]["teacher"].values())
    for picture in ("samples.png", "curves.png"):
        assert (finished / picture).read_bytes().startswith(b"\x89PNG")
    names = {path.name for path in finished.iterdir()}
    assert names == {"report.json", "samples.png", "curves.png", "teacher.eqx", "teacher.json", "student.eqx"}


def test_the_same_command_shows_the_report_and_another_one_is_refused(finished):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    again = momentax("distill", "--output", finished, *SHORT, cwd=finished)
    assert again.returncode == 0
    assert "finished" in again.stdout
    other = momentax("distill", "--output", finished, *SHORT, "--k", "4", cwd=finished)
    assert other.returncode == 1
    assert "--k 8 -> 4" in other.stderr
    assert "--overwrite" in other.stderr
    assert before == {path.name: path.read_bytes() for path in finished.iterdir()}


def test_a_teacher_in_the_folder_is_taken_and_instant_works(finished, tmp_path):
    for name in ("teacher.eqx", "teacher.json"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    result = momentax("distill", "--output", ".", *SHORT[2:], "--algorithm", "instant", "--k", "2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert "teacher" not in report["losses"]
    assert report["configuration"]["teacher_updates"] == 40
    assert (tmp_path / "teacher.eqx").read_bytes() == (finished / "teacher.eqx").read_bytes()


def test_samples_are_drawn_again_alike_and_evaluated(finished):
    for _ in range(2):
        result = momentax("sample", "--output", finished, "--samples", "20", cwd=finished)
        assert result.returncode == 0, result.stderr
    with np.load(finished / "drawn.npz", allow_pickle=False) as drawn:
        assert drawn["x"].shape == (20, 8, 8, 1)
        assert drawn["y"].shape == (20,)
        assert np.abs(drawn["x"]).max() <= 1
    evaluated = momentax("evaluate", "--output", finished, "--samples", "64", cwd=finished)
    assert evaluated.returncode == 0, evaluated.stderr
    figures = json.loads((finished / "evaluation-student-8-0.json").read_text())
    report = json.loads((finished / "report.json").read_text())
    assert figures["frechet_distance"] == report["figures"]["student"]["8"]["frechet_distance"]
    for name in ("drawn.npz", "drawn.png", "evaluation-student-8-0.json"):
        (finished / name).unlink()


PIPELINE = pathlib.Path(__file__).parent / "diffusers" / "ddpm-pipeline"
IMPORTED = ["--teacher", "teacher", "--updates", "4", "--batch", "16", "--samples", "32", "--k", "2"]


DIT = PIPELINE.parent / "dit"


@pytest.mark.parametrize(
    ("algorithm", "source", "told"),
    [
        pytest.param("alternating", PIPELINE, [], marks=pytest.mark.slow),
        pytest.param("instant", PIPELINE, [], marks=pytest.mark.slow),
        ("instant", DIT, ["--teacher-predicts", "eps"]),
    ],
)
def test_a_teacher_of_diffusers_is_distilled_and_kept(algorithm, source, told, tmp_path):
    """A pipeline's folder, or a network's; afterwards the run needs it no more."""
    shutil.copytree(source, tmp_path / "teacher")
    arguments = ["--algorithm", algorithm, "--guidance", "0.5", *IMPORTED[2:]]
    result = momentax("distill", "--teacher", "teacher", *told, *arguments, "--output", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["configuration"]["teacher"] == "teacher"
    assert report["teacher"]["folder"] == "teacher"
    assert "--teacher teacher" in report["command"]
    assert "None" not in report["command"]
    shutil.rmtree(tmp_path / "teacher")
    again = momentax("distill", *arguments, "--output", "run", cwd=tmp_path)
    assert "finished" in again.stdout, again.stderr
    for model in ("student", "teacher"):
        drawn = momentax("sample", "--output", "run", "--model", model, "--samples", "8", cwd=tmp_path)
        assert drawn.returncode == 0, drawn.stderr


WRONG_TEACHERS: dict[str, tuple[dict[str, Any], str]] = {
    "no folder": ({"teacher": "none"}, "needs a folder for --teacher; got none"),
    "network without a scheduler": ({"teacher": "teacher/unet"}, "needs --teacher-predicts"),
    "pipeline with a prediction": ({"teacher": "teacher", "teacher_predicts": "v"}, "do drop them"),
    "trained too": ({"teacher": "teacher", "teacher_updates": 5}, "needs --teacher or --teacher-updates"),
    "prediction without a teacher": ({"teacher_predicts": "v"}, "needs --teacher with --teacher-predicts"),
    "images of another size": ({"teacher": "teacher", "data": "odd.npz"}, "needs a teacher of the data's images"),
    "data without labels": ({"teacher": "teacher", "data": "plain.npz"}, "needs labels for a class-conditional"),
    "more classes": ({"teacher": "teacher", "data": "many.npz"}, "needs a teacher of 12 labels"),
    "no class for none": (
        {"teacher": "teacher", "data": "eleven.npz", "guidance": 1.0},
        "needs a teacher of 12 labels, that of no class",
    ),
    "pickle": ({"teacher": "pickle", "teacher_predicts": "v"}, "a pickle, which could run code"),
}


@pytest.mark.parametrize("name", WRONG_TEACHERS)
def test_a_teacher_that_does_not_fit_is_told_before_anything_is_written(name, tmp_path, monkeypatch):
    shutil.copytree(PIPELINE, tmp_path / "teacher")
    (tmp_path / "pickle").mkdir()
    shutil.copyfile(PIPELINE / "unet" / "config.json", tmp_path / "pickle" / "config.json")
    (tmp_path / "pickle" / "diffusion_pytorch_model.bin").write_bytes(b"")
    for file, classes, side in (("odd", 10, 9), ("plain", None, 8), ("many", 12, 8), ("eleven", 11, 8)):
        labels: dict[str, Any] = {} if classes is None else {"y": np.arange(24) % classes}
        np.savez(tmp_path / f"{file}.npz", x=np.zeros((24, side, side, 1), np.uint8), **labels)
    monkeypatch.chdir(tmp_path)
    options, words = WRONG_TEACHERS[name]
    given = {name: pathlib.Path(value) if name == "teacher" else value for name, value in options.items()}
    config = Distill(output=tmp_path / "run", **cast(Any, given))
    with pytest.raises((ValueError, OSError), match=f"^needs .*{re.escape(words.removeprefix('needs '))}"):
        resolved(*start(Folder(config.output), config, load(config.data))[:2])
    assert not config.output.exists()


def test_another_teacher_in_the_folder_is_refused(finished, tmp_path):
    for name in ("teacher.eqx", "teacher.json"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    result = momentax("distill", "--teacher", PIPELINE, "--output", ".", cwd=tmp_path)
    assert result.returncode == 1
    assert "needs a folder without a teacher" in result.stderr


WRONG = {
    "unknown data": (["--data", "digitz"], "needs one of digits"),
    "missing file": (["--data", "none.npz"], "none.npz"),
    "no steps": (["--k", "0"], "needs --k > 0"),
    "negative rate": (["--learning-rate", "-1"], "needs --learning-rate > 0"),
    "odd batch": (["--algorithm", "instant", "--batch", "7"], "needs an even --batch"),
    "few samples": (["--samples", "4"], "needs --samples >= 16"),
    "unlabelled guidance": (["--data", "plain.npz", "--guidance", "1"], "needs labels for --guidance"),
    "odd sides": (["--data", "odd.npz"], "needs images of sides that divide by 4"),
    "output is a file": (["--output", "plain.npz"], "needs a folder for --output"),
    "unknown choice": (["--algorithm", "both"], "alternating"),
    "unknown flag": (["--kk", "8"], "--kk"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_asked_wrongly_is_told_in_a_line_before_anything_is_written(name, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "plain.npz", x=rng.integers(0, 256, (20, 8, 8, 1), np.uint8))
    np.savez(tmp_path / "odd.npz", x=rng.integers(0, 256, (20, 10, 9, 3), np.uint8))
    arguments, words = WRONG[name]
    result = momentax("distill", *arguments, cwd=tmp_path)
    assert result.returncode != 0
    assert words in result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"plain.npz", "odd.npz"}


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_folder_without_a_run_is_told(command, tmp_path):
    result = momentax(command, "--output", "nothing", cwd=tmp_path)
    assert result.returncode == 1
    assert "do run `momentax distill --output nothing` first" in result.stderr


def test_a_teacher_of_other_data_is_refused(finished, tmp_path):
    for name in ("teacher.eqx", "teacher.json"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    np.savez(tmp_path / "own.npz", x=np.zeros((20, 8, 8, 1), np.uint8))
    result = momentax("distill", "--data", "own.npz", "--output", ".", cwd=tmp_path)
    assert result.returncode == 1
    assert "needs the teacher in . to fit" in result.stderr
    longer = momentax("distill", "--teacher-updates", "41", "--output", ".", cwd=tmp_path)
    assert "teacher_updates 41; got 40" in longer.stderr


def test_damaged_weights_are_refused(finished, tmp_path):
    for name in ("teacher.json", "report.json"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    (tmp_path / "student.eqx").write_bytes((finished / "student.eqx").read_bytes()[:1000])
    result = momentax("sample", "--output", ".", cwd=tmp_path)
    assert result.returncode == 1
    assert "needs whole weights" in result.stderr


@pytest.mark.parametrize("seconds", [0.5, 6, 20])
def test_an_interrupt_ends_cleanly_and_keeps_what_was_written(seconds, finished, tmp_path):
    """While it compiles and while it trains."""
    for name in ("teacher.eqx", "teacher.json"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    command = [sys.executable, "-c", "from momentax.recipes import main; main()", "distill", "--output", "."]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "the teacher of" in process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "interrupted; . keeps teacher.eqx, teacher.json" in told
    assert "Traceback" not in told
    assert {path.name for path in tmp_path.iterdir()} == {"teacher.eqx", "teacher.json"}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_any_number_of_channels_have_a_picture(channels, tmp_path):
    rows = {"one": np.zeros((20, channels, 8, 8), np.float32), "another": np.ones((5, channels, 8, 8), np.float32)}
    plot_samples(Folder(tmp_path), "rows.png", rows)
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_that_could_not_be_filled_leaves_the_old_one(tmp_path):
    folder = Folder(tmp_path)
    folder.write_json("a.json", [1])

    def fail(file):
        file.write(b"half")
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        folder.write("a.json", fail)
    assert folder.read_json("a.json") == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
