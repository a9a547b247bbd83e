"""The command line, as a stranger uses it: a whole run on real data, and everything that can be asked wrongly."""

import dataclasses
import errno
import json
import pathlib
import re
import shutil
import signal
import tempfile
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import momentax, stopped, told

import momentax as mm
from momentax import checkpoint
from momentax.recipes._data import Dataset, load
from momentax.recipes._finished import Finished
from momentax.recipes._folder import Folder, _serialised
from momentax.recipes._imported import teacher_files
from momentax.recipes._plots import plot_samples
from momentax.recipes._presets import resolved
from momentax.recipes._refusal import refusal
from momentax.recipes._settings import Distill, Run, as_json, from_json
from momentax.recipes._teacher import guide, network, record_of, start

DIGIT = Dataset("zeros", np.zeros((20, 1, 8, 8), np.float32), None, 0, "made up")
SHORT = ["--teacher-updates", "40", "--updates", "6", "--batch", "16", "--samples", "64"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished run of both the teacher and a student."""
    root = tmp_path_factory.mktemp("run")
    result = momentax("distill", "--output", "run", *SHORT, cwd=root)
    assert result.returncode == 0, result.stderr
    (root / "log").write_text(result.stderr)
    return root / "run"


def copied(finished, folder):
    """A folder that has the teacher and nothing else."""
    folder.mkdir()
    for name in ("teacher.eqx", "teacher.json"):
        (folder / name).write_bytes((finished / name).read_bytes())
    return folder


def test_a_run_leaves_report_pictures_and_weights(finished):
    report = json.loads((finished / "report.json").read_text())
    assert {"configuration", "seed", "versions", "figures", "features", "data", "teacher", "losses"} <= set(report)
    assert report["skipped_updates"] == {"teacher": 0, "auxiliary": 0, "student": 0}
    assert report["configuration"]["weight"] is not None
    assert set(report["figures"]["teacher"]) == {"8", "16", "64", "256"}
    assert set(report["figures"]["student"]) == {"8"}
    assert all(np.isfinite(row["frechet_distance"]) for row in report["figures"]["teacher"].values())
    assert (report["floor"]["samples"], report["floor"]["images"]) == (64, 256)
    assert 0 < report["floor"]["frechet_distance"] < report["figures"]["student"]["8"]["frechet_distance"]
    for picture in ("samples.png", "curves.png"):
        assert (finished / picture).read_bytes().startswith(b"\x89PNG")
    names = {path.name for path in finished.iterdir()}
    weights = {"teacher.eqx", "teacher.json", "student.eqx", "student.json", "data.json", "labels.npy"}
    assert names == weights | {"report.json", "samples.png", "curves.png", "losses.jsonl"}


def test_what_the_command_says_on_its_way_can_be_read_in_a_file(finished):
    """Of each phase a line at least, with updates, rate, times and losses; nothing that is drawn over."""
    lines = (finished.parent / "log").read_bytes().decode().split("\n")
    assert lines.pop() == ""
    shown = r"\w+: \d+ of \d+ updates, .* updates.*, [\d:]+ gone, ([\d:]+|\?) to go(, \w+=[-+.\de]+)*"
    assert all(re.fullmatch(shown, line) for line in lines), lines
    assert any(line.startswith("teacher: 40 of 40 updates, ") and ", teacher=" in line for line in lines)
    assert any(line.startswith("alternating: 6 of 6 updates, ") and ", student=" in line for line in lines)


def test_the_command_makes_its_keys_under_any_default_of_keys(tmp_path):
    """Of a run and of its samples, where the variable names one that the library refuses."""
    np.savez(tmp_path / "eight.npz", x=np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), np.uint8))
    tiny = ["--teacher-updates", "2", "--updates", "2", "--batch", "4", "--samples", "16", "--k", "1"]
    for arguments in (["distill", "--data", "eight.npz", *tiny], ["sample", "--samples", "2"]):
        result = momentax(*arguments, "--output", "run", cwd=tmp_path, JAX_DEFAULT_PRNG_IMPL="rbg")
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "report.json").is_file()


def test_a_student_is_loaded_from_its_two_files_alone_and_draws(finished, tmp_path):
    for name in ("student.eqx", "student.json"):
        shutil.copyfile(finished / name, tmp_path / name)
    loaded = mm.load(tmp_path)
    assert (loaded.k, loaded.shape, loaded.num_classes) == (8, (1, 8, 8), 10)
    assert loaded.configuration["updates"] == 6
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        drawn = loaded.sampler(jax.random.key(0), loaded.shape, jnp.asarray(3))
    assert drawn.shape == (1, 8, 8)


def test_every_loss_is_on_record_and_the_report_is_of_these(finished):
    lines = checkpoint.read_losses(finished)
    assert [n for n, _ in lines] == list(range(46))
    assert [list(values) for _, values in lines] == [["teacher"]] * 40 + [["auxiliary"], ["student"]] * 3
    losses = json.loads((finished / "report.json").read_text())["losses"]
    assert losses["teacher"]["first_tenth"] == np.mean([values["teacher"] for _, values in lines[:4]])
    assert losses["student"] == {
        "updates": 3,
        "first_tenth": lines[41][1]["student"],
        "last_tenth": lines[45][1]["student"],
    }


def test_the_same_command_shows_the_report_and_another_one_is_refused(finished):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    again = momentax("distill", "--output", finished, *SHORT, cwd=finished)
    assert again.returncode == 0
    assert "finished" in again.stdout
    other = told("distill", "--output", finished, *SHORT, "--k", "4")
    assert "--k 8 -> 4" in other
    assert "--overwrite" in other
    assert before == {path.name: path.read_bytes() for path in finished.iterdir()}


def test_a_teacher_in_the_folder_is_taken_and_instant_works(finished, tmp_path):
    folder = copied(finished, tmp_path / "run")
    arguments = ["--output", "run", *SHORT[2:], "--algorithm", "instant", "--k", "2"]
    result = momentax("distill", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads((folder / "report.json").read_text())
    assert "teacher" not in report["losses"]
    assert report["configuration"]["teacher_updates"] == 40
    assert (folder / "teacher.eqx").read_bytes() == (finished / "teacher.eqx").read_bytes()


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


def drawing_nothing(finished, monkeypatch, *arguments: Any) -> str:
    """What a command says that ends before it draws."""
    monkeypatch.setattr(Finished, "drawn", lambda self, seed: pytest.fail("drawn"))
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        return told(*arguments, "--output", finished)


WRONG_DRAWS = {
    "seed": (["--seed", "-1"], "needs 0 <= --seed < "),
    "no steps": (["--k", "0"], "needs --k > 0; got 0"),
    "no samples": (["--samples", "0"], "needs --samples > 0; got 0"),
    "noise": (["--noise", "2"], "needs 0 <= --noise <= 1; got 2.0"),
    "noise that is no number": (["--noise", "nan"], "needs 0 <= --noise <= 1; got nan"),
    "no best student": (["--model", "student-best"], "use --model student, or distil with --evaluate-every"),
}


@pytest.mark.parametrize("name", WRONG_DRAWS)
@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_what_cannot_be_drawn_is_told(command, name, finished, monkeypatch):
    arguments, words = WRONG_DRAWS[name]
    assert words in drawing_nothing(finished, monkeypatch, command, *arguments)


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_where_nothing_may_be_written_nothing_is_drawn(command, finished, monkeypatch, tmp_path):
    """A run that is read only is told, with the flag that names another folder; so is one that is a file."""

    def refused(**options):
        raise OSError(errno.EROFS, "Read-only file system")

    (tmp_path / "file").touch()
    below = drawing_nothing(finished, monkeypatch, command, "--to", tmp_path / "file" / "x")
    assert "(Not a directory); name another by --to" in below
    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    words = drawing_nothing(finished, monkeypatch, command)
    assert f"needs a folder it may write to; got {finished} (Read-only file system); name another by --to" in words


def test_what_is_drawn_of_a_run_may_be_put_elsewhere(finished, tmp_path):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    result = momentax("sample", "--output", finished, "--samples", "8", "--to", "drawn/here", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "drawn/here/drawn.npz" in result.stdout
    assert {path.name for path in (tmp_path / "drawn" / "here").iterdir()} == {"drawn.npz", "drawn.png"}
    assert before == {path.name: path.read_bytes() for path in finished.iterdir()}


PIPELINE = pathlib.Path(__file__).parent / "diffusers" / "ddpm-pipeline"
IMPORTED = ["--teacher", "teacher", "--updates", "4", "--batch", "16", "--samples", "32", "--k", "2"]


DIT = PIPELINE.parent / "dit"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "source", "told"),
    [("alternating", PIPELINE, []), ("instant", PIPELINE, []), ("instant", DIT, ["--teacher-predicts", "eps"])],
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
    "pipeline with a prediction": ({"teacher": "teacher", "teacher_predicts": "v"}, "has its own"),
    "trained too": ({"teacher": "teacher", "teacher_updates": 5}, "needs --teacher or --teacher-updates"),
    "network too": ({"teacher": "teacher", "network": "mlp"}, "needs --teacher or --network"),
    "prediction without a teacher": ({"teacher_predicts": "v"}, "needs --teacher with what is told of one"),
    "scheduler without a teacher": ({"teacher_scheduler": "teacher"}, "needs --teacher with what is told of one"),
    "pipeline with a scheduler": ({"teacher": "teacher", "teacher_scheduler": "teacher"}, "has its own"),
    "scheduler and betas": (
        {"teacher": "teacher/unet", "teacher_scheduler": "teacher", "teacher_betas": "linear"},
        "got both",
    ),
    "no scheduler there": (
        {"teacher": "teacher/unet", "teacher_scheduler": "teacher/unet"},
        "needs a scheduler_config.json for --teacher-scheduler",
    ),
    "no such variant": ({"teacher": "teacher", "teacher_variant": "fp16"}, "needs diffusion_pytorch_model.fp16"),
    "colours": (
        {"teacher": "teacher", "data": "rgb.npz"},
        "got rgb, where UNet needs one image of shape (1, h, w); got",
    ),
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
    for file, classes, channels in (("rgb", 10, 3), ("plain", None, 1), ("many", 12, 1), ("eleven", 11, 1)):
        labels: dict[str, Any] = {} if classes is None else {"y": np.arange(24) % classes}
        np.savez(tmp_path / f"{file}.npz", x=np.zeros((24, 8, 8, channels), np.uint8), **labels)
    monkeypatch.chdir(tmp_path)
    options, words = WRONG_TEACHERS[name]
    given = {
        name: pathlib.Path(value) if name in ("teacher", "teacher_scheduler") else value
        for name, value in options.items()
    }
    config = Distill(output=tmp_path / "run", **cast(Any, given))
    with pytest.raises((ValueError, OSError), match=f"^needs .*{re.escape(words.removeprefix('needs '))}") as error:
        resolved(*start(Folder(tmp_path / "run"), config, load(config.data))[:2])
    assert "vmap" not in str(error.value)
    assert not (tmp_path / "run").exists()


def begun(folder, data, **options):
    """What `momentax distill` starts from, of data in an NPZ file."""
    config = Distill(output=folder, data=str(data), **cast(Any, options))
    return start(Folder(folder), config, load(config.data))


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_guidance_takes_the_teachers_own_last_label_for_no_class(guidance, tmp_path, capsys):
    """Not the one after the data's, which are fewer: they are told, and the teacher's number is kept on record."""
    np.savez(tmp_path / "three.npz", x=np.zeros((24, 8, 8, 1), np.uint8), y=np.arange(24) % 3)
    told = begun(tmp_path / "run", tmp_path / "three.npz", teacher=PIPELINE, guidance=guidance)
    assert told.given is not None
    run, printed = resolved(told.config, told.dataset), capsys.readouterr().out
    assert "the teacher has the labels 0 to 10, and three has 0 to 2, which are all that the student learns" in printed
    assert ("--guidance takes 10, the teacher's last, for no class" in printed) == (guidance > 0)
    record = record_of(run, told.dataset, told.given)
    assert (record["num_labels"], record["num_classes"]) == (11, 3)
    z, logsnr, labels = jnp.ones((1, 8, 8), jnp.float32), jnp.float32(0.5), jnp.arange(11, dtype=jnp.int32)
    each = eqx.filter_jit(lambda net: jax.vmap(net, (None, None, 0))(z, logsnr, labels))(told.given)
    found = eqx.filter_jit(guide(run, told.given))(z, logsnr, labels[1])
    np.testing.assert_allclose(found, each[1] + guidance * (each[1] - each[10]), rtol=0, atol=1e-5)


def test_guidance_of_a_teacher_that_is_trained_takes_the_label_it_hides(tmp_path):
    np.savez(tmp_path / "three.npz", x=np.zeros((24, 8, 8, 1), np.uint8), y=np.arange(24) % 3)
    told = begun(tmp_path / "run", tmp_path / "three.npz", guidance=1.0)
    teacher = network(told.dataset, jax.random.key(0))
    assert guide(resolved(told.config, told.dataset), teacher).null == told.dataset.num_classes == 3


def test_a_network_is_taken_with_a_scheduler_from_elsewhere_and_kept_with_it(tmp_path, capsys):
    """As the pipeline that both are of, also from the copy, after the original is gone."""
    shutil.copytree(PIPELINE, tmp_path / "pipeline")
    (tmp_path / "pipeline" / "unet").rename(tmp_path / "net")
    np.savez(tmp_path / "ten.npz", x=np.zeros((24, 8, 8, 1), np.uint8), y=np.arange(24) % 10)
    options = {"teacher": tmp_path / "net", "teacher_scheduler": tmp_path / "pipeline"}
    told = begun(tmp_path / "run", tmp_path / "ten.npz", **options)
    assert eqx.tree_equal(told.given, mm.interop.denoiser_from_diffusers(PIPELINE))
    folder, run = Folder(tmp_path / "run"), resolved(told.config, told.dataset)
    folder.create()
    folder.copy("teacher", teacher_files(tmp_path / "net", tmp_path / "pipeline"))
    folder.write_json("teacher.json", record_of(run, told.dataset, told.given))
    assert eqx.tree_equal(
        begun(tmp_path / "run", tmp_path / "ten.npz", **options)[2:],
        (record_of(run, told.dataset, told.given), told.given),
    )
    shutil.rmtree(tmp_path / "pipeline")
    shutil.rmtree(tmp_path / "net")
    again = begun(tmp_path / "run", tmp_path / "ten.npz")
    assert eqx.tree_equal(again.given, told.given)
    assert resolved(again.config, again.dataset) == run
    assert from_json(as_json(run)) == dataclasses.replace(run, output=Run.output)


def test_of_a_trainings_output_the_average_is_the_teacher_and_half_precision_is_told(tmp_path, capsys):
    """Each choice in a line, and the copy holds what was chosen."""
    output, scheduler = tmp_path / "output", PIPELINE
    shutil.copytree(PIPELINE / "unet", output / "unet")
    shutil.copytree(PIPELINE / "unet", output / "unet_ema")
    stem = output / "unet_ema" / "diffusion_pytorch_model"
    stem.with_suffix(".safetensors").rename(stem.with_suffix(".fp16.safetensors"))
    np.savez(tmp_path / "ten.npz", x=np.zeros((24, 8, 8, 1), np.uint8), y=np.arange(24) % 10)
    begun(tmp_path / "run", tmp_path / "ten.npz", teacher=output, teacher_scheduler=scheduler)
    printed = capsys.readouterr().out
    assert "has unet and its average unet_ema, which is taken" in printed
    assert "weights of the variant 'fp16' alone, which are taken" in printed
    places = set(teacher_files(output, scheduler))
    assert places == {
        "unet_ema/config.json",
        "unet_ema/diffusion_pytorch_model.fp16.safetensors",
        "scheduler/scheduler_config.json",
    }
    begun(tmp_path / "run", tmp_path / "ten.npz", teacher=output, teacher_scheduler=scheduler, teacher_variant="fp16")
    assert "variant" not in capsys.readouterr().out


def test_another_teacher_in_the_folder_is_refused(finished, tmp_path):
    folder = copied(finished, tmp_path / "run")
    assert "needs a folder without a teacher" in told("distill", "--teacher", PIPELINE, "--output", folder)


WRONG = {
    "unknown data": (["--data", "digitz"], "needs one of digits"),
    "missing file": (["--data", "none.npz"], "none.npz"),
    "no steps": (["--k", "0"], "needs --k > 0"),
    "negative rate": (["--learning-rate", "-1"], "needs --learning-rate > 0"),
    "endless rate": (["--learning-rate", "inf"], "needs --learning-rate > 0 and finite; got inf"),
    "rate that is no number": (["--learning-rate", "nan"], "needs --learning-rate > 0; got nan"),
    "negative seed": (["--seed", "-1"], "needs 0 <= --seed < "),
    "large seed": (["--seed", "99999999999"], "needs 0 <= --seed < "),
    "guidance that is no number": (["--guidance", "nan"], "needs --guidance >= 0 and finite; got nan"),
    "negative guidance": (["--guidance", "-1"], "needs --guidance >= 0 and finite; got -1"),
    "first moment": (["--b1", "1"], "needs 0 <= --b1 < 1"),
    "no auxiliary": (["--algorithm", "instant", "--auxiliary-rate", "4"], "needs an auxiliary for --auxiliary-rate"),
    "still auxiliary": (["--auxiliary-rate", "0"], "needs --auxiliary-rate > 0"),
    "odd batch": (["--algorithm", "instant", "--batch", "7"], "needs an even --batch"),
    "few samples": (["--samples", "4"], "needs --samples >= 16"),
    "few images": (["--data", "three.npz"], "needs at least 4 images to measure samples against; got 3 in three; add"),
    "unlabelled guidance": (["--data", "plain.npz", "--guidance", "1"], "needs labels for --guidance"),
    "odd sides": (["--data", "odd.npz"], "needs images of sides that divide by 4"),
    "output is a file": (["--output", "plain.npz"], "needs a folder for --output"),
    "unknown choice": (["--algorithm", "both"], "alternating"),
    "unknown flag": (["--kk", "8"], "--kk"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_asked_wrongly_is_told_in_a_line_before_anything_is_written(name, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "plain.npz", x=rng.integers(0, 256, (20, 8, 8, 1), np.uint8))
    np.savez(tmp_path / "odd.npz", x=rng.integers(0, 256, (20, 10, 9, 3), np.uint8))
    np.savez(tmp_path / "three.npz", x=rng.integers(0, 256, (3, 8, 8, 1), np.uint8))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    arguments, words = WRONG[name]
    assert words in told("distill", *arguments)
    assert {path.name for path in tmp_path.iterdir()} == {"plain.npz", "odd.npz", "three.npz"}


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_folder_without_a_run_is_told(command, tmp_path):
    nothing = tmp_path / "nothing"
    assert f"run `momentax distill --output {nothing}` first" in told(command, "--output", nothing)


def test_an_error_is_one_line_and_a_status(tmp_path):
    result = momentax("distill", "--k", "0", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr == "momentax: needs --k > 0; got 0; give a positive number\n"


def test_a_teacher_of_other_data_is_refused(finished, tmp_path, monkeypatch):
    folder = copied(finished, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    np.savez("own.npz", x=np.zeros((20, 8, 8, 1), np.uint8))
    assert f"needs the teacher in {folder} to fit" in told("distill", "--data", "own.npz", "--output", folder)
    assert "network uvit-small; got mlp" in told("distill", "--network", "uvit-small", "--output", folder)
    assert "teacher_updates 41; got 40" in told("distill", "--teacher-updates", "41", "--output", folder)


@pytest.mark.parametrize("asked", [None, "mlp", "uvit-small"])
def test_a_teacher_of_any_network_is_recorded_taken_and_drawn_from(asked, tmp_path):
    """What suits the data by itself is nothing asked for; what the folder has need not be asked for again."""
    shape, name = (1, 8, 8), "mlp" if asked is None else asked
    dataset = Dataset("zeros", np.zeros((20, *shape), np.float32), None, 0, "made up")
    run = resolved(Distill(network=asked, output=tmp_path), dataset)
    assert run.network == (None if name == "mlp" else name)
    folder = Folder(tmp_path)
    assert record_of(run, dataset)["network"] == name
    folder.write_json("teacher.json", record_of(run, dataset))
    assert resolved(*start(folder, Distill(output=tmp_path), dataset)[:2]) == run
    untrained = network(dataset, jax.random.key(0), run.network)
    assert type(untrained.net) is (mm.nn.MLP if name == "mlp" else mm.nn.UViT)
    assert jax.vmap(untrained)(jnp.ones((2, *shape)), jnp.zeros(2)).shape == (2, *shape)


def test_a_record_without_a_network_is_of_the_one_that_suits_the_data(tmp_path):
    """As they were before there was a choice."""
    dataset = Dataset("zeros", np.zeros((20, 1, 28, 28), np.float32), None, 0, "made up")
    folder, run = Folder(tmp_path), resolved(Distill(output=tmp_path), dataset)
    folder.write_json("teacher.json", {key: of for key, of in record_of(run, dataset).items() if key != "network"})
    assert resolved(*start(folder, Distill(output=tmp_path, network="uvit"), dataset)[:2]) == run
    with pytest.raises(ValueError, match="network uvit-small; got uvit;"):
        start(folder, Distill(output=tmp_path, network="uvit-small"), dataset)


def test_damaged_weights_are_refused(finished, tmp_path):
    for name in ("teacher.json", "report.json"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    (tmp_path / "student.eqx").write_bytes((finished / "student.eqx").read_bytes()[:1000])
    assert "needs whole weights" in told("sample", "--output", tmp_path)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 1), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_ends_cleanly_and_says_how_to_go_on(number, status, finished, tmp_path):
    """While it trains; while it compiles is another's (`test_recipes_interrupt.py`)."""
    folder = copied(finished, tmp_path / "run")
    begun = folder / "losses.jsonl"
    returned, _, error = stopped(number, begun.is_file, "distill", "--output", "run", cwd=tmp_path)
    assert returned == status
    kept = ["checkpoints", "losses.jsonl", "run.json", "teacher.eqx", "teacher.json"]
    assert f"interrupted; run keeps {', '.join(kept)}; go on with: momentax distill --resume --output run" in error
    assert "Traceback" not in error
    assert sorted(path.name for path in folder.iterdir()) == kept


def test_a_killed_distillation_goes_on_as_if_it_never_was(finished, tmp_path):
    """By the same command, to the same bits."""
    folder = copied(finished, tmp_path / "run")
    command = ["distill", "--output", "run", *SHORT, "--checkpoint-every", "2"]
    saved = folder / "checkpoints" / "distillation"
    returned, _, _ = stopped(signal.SIGKILL, lambda: any(saved.glob("[0-9]*")), *command, cwd=tmp_path)
    assert returned == -signal.SIGKILL
    again = momentax(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "going on with the unfinished run in run" in again.stdout
    assert (folder / "student.eqx").read_bytes() == (finished / "student.eqx").read_bytes()
    assert checkpoint.read_losses(folder) == checkpoint.read_losses(finished)[40:]
    ours, theirs = (json.loads((path / "report.json").read_text())["figures"] for path in (folder, finished))
    assert ours == theirs
    assert {path.name for path in folder.iterdir()} == {path.name for path in finished.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["alternating", "instant"])
def test_a_run_that_is_killed_and_stopped_again_and_again_comes_to_the_same_bits(algorithm, tmp_path):
    """In the teacher and in the distillation, with and without --resume."""
    command = [*SHORT, "--algorithm", algorithm, "--checkpoint-every", "3"]
    whole = momentax("distill", "--output", "whole", *command, cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    saved = tmp_path / "run" / "checkpoints"
    stops = [
        ("teacher/3", command),
        ("teacher/9", ["--resume"]),
        ("distillation/3", command),
        ("distillation/6", ["--resume"]),
    ]
    for place, arguments in stops:
        number = signal.SIGTERM if place == "teacher/9" else signal.SIGKILL
        stopped(number, (saved / place).is_dir, "distill", "--output", "run", *arguments, cwd=tmp_path)
    again = momentax("distill", "--output", "run", *command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    for name in ("teacher.eqx", "student.eqx", "losses.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["alternating", "joint"])
def test_a_rate_that_is_far_too_high_stops_with_the_log_snrs(algorithm, finished, tmp_path):
    folder = copied(finished, tmp_path / "run")
    command = ["--updates", "100", "--batch", "16", "--learning-rate", "1e30", "--algorithm", algorithm]
    result = momentax("distill", "--output", "run", *command, cwd=tmp_path)
    assert result.returncode == 1
    assert re.search(
        r"got 1\d updates of the \w+ in a row that were not, .* at log-SNRs [-\d.]+ to [-\d.]+; do", result.stderr
    )
    assert (folder / "checkpoints" / "distillation").is_dir()


@pytest.mark.slow
def test_all_devices_train_and_another_number_goes_on(finished, tmp_path):
    folder = copied(finished, tmp_path / "run")
    command = ["distill", "--output", "run", *SHORT]
    odd = momentax(*command[:3], "--batch", "18", cwd=tmp_path, devices=4)
    assert "needs a --batch that divides by 4: 4 devices" in odd.stderr
    assert not (folder / "run.json").exists()
    saved = folder / "checkpoints" / "distillation"
    stopped(signal.SIGKILL, lambda: any(saved.glob("[0-9]*")), *command, "--checkpoint-every", "2", cwd=tmp_path)
    again = momentax("distill", "--output", "run", "--resume", cwd=tmp_path, devices=4)
    assert again.returncode == 0, again.stderr
    report = json.loads((folder / "report.json").read_text())
    assert report["device"].endswith("4 of them")
    theirs = json.loads((finished / "report.json").read_text())["figures"]["student"]["8"]["frechet_distance"]
    np.testing.assert_allclose(report["figures"]["student"]["8"]["frechet_distance"], theirs, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_any_number_of_channels_have_a_picture(channels, tmp_path):
    rows = {"one": np.zeros((20, channels, 8, 8), np.float32), "another": np.ones((5, channels, 8, 8), np.float32)}
    plot_samples(Folder(tmp_path), "rows.png", rows)
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")


def test_a_disk_that_is_full_while_weights_are_written_is_told():
    """The system's own word, of however many of Equinox's errors it is the cause."""
    with (
        open("/dev/full", "wb", buffering=0) as full,
        pytest.raises(OSError, match=r"No space left|requested and") as error,
    ):
        _serialised(full, {"net": [network(DIGIT, jax.random.key(0))]})
    assert str(refusal(error.value)).startswith("needs a file system that takes and gives its files; got ")


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
