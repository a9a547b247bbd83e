"""What whoever called can mend is told in a line; a bug keeps its traceback; without extras there is a way on."""

import errno
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from commands import told

import momentax as mm
from momentax import _diagnosis
from momentax.interop import denoiser_from_diffusers
from momentax.recipes import _command, _program
from momentax.recipes._program import command
from momentax.recipes._refusal import refusal
from momentax.recipes._settings import Distill, folder_of

Z, LOGSNR = jnp.zeros((3, 8, 8)), jnp.zeros(())


def from_a_network() -> None:
    mm.nn.MLP((1, 8, 8), width=8, depth=1, key=jax.random.key(0))(Z, LOGSNR)


def from_a_network_under_transformations() -> None:
    net = mm.nn.MLP((1, 8, 8), width=8, depth=1, key=jax.random.key(0))
    jax.jit(jax.vmap(net))(Z[None], LOGSNR[None])


def from_the_system() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/student.eqx")


def from_a_device() -> None:
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.\nmore")


def from_a_host() -> None:
    raise MemoryError("Unable to allocate 728. TiB")


TO_BE_MENDED = {
    from_a_network: "MLP needs one example of shape (1, 8, 8); got (3, 8, 8); ",
    from_a_network_under_transformations: "MLP needs one example of shape (1, 8, 8); got (3, 8, 8); ",
    from_the_system: "needs a file system that takes and gives its files; got [Errno 28] No space left on device:",
    from_a_device: "needs more memory; got RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.; use a",
    from_a_host: "needs more memory; got Unable to allocate 728. TiB; use a smaller --batch",
}
BUGS: dict[str, tuple[Callable[[], Any], type[Exception]]] = {
    "a lookup": (lambda: {}["key"], KeyError),
    "an attribute": (lambda: object().data, AttributeError),  # type: ignore[attr-defined]
    "another library's": (lambda: jnp.zeros(3) + jnp.zeros(4), TypeError),
    "another library's own, by a `raise`": (lambda: json.loads("x"), ValueError),
    "Python's own, in a line of ours": (lambda: _diagnosis._of_players(*[None] * 6), TypeError),
    "of another's words": (lambda: int("needs x; got y; use z"), ValueError),
}


@pytest.mark.parametrize("act", TO_BE_MENDED, ids=lambda act: act.__name__)
def test_what_can_be_mended_is_told_in_a_line_whatever_its_first_word(act, monkeypatch, tmp_path):
    monkeypatch.setattr(_command, "load", lambda data: act())
    words = told("distill", "--output", tmp_path / "run")
    assert words.startswith(f"momentax: {TO_BE_MENDED[act]}")
    assert "\n" not in words


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_keeps_its_traceback(name, monkeypatch, tmp_path):
    act, kind = BUGS[name]
    monkeypatch.setattr(_command, "load", lambda data: act())
    with pytest.raises(kind) as error:
        _command.run(["distill", "--output", str(tmp_path / "run")])
    assert refusal(error.value) is None


def without(*packages: str, arguments: str) -> subprocess.CompletedProcess[str]:
    """The command where some packages are not installed."""
    code = f"import sys; sys.modules.update(dict.fromkeys({packages})); sys.argv[1:] = {arguments.split()}"
    code += "; from momentax.recipes import main; main()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_version_is_told_without_extras():
    result = without("tyro", "grain", "filelock", arguments="--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("momentax ")


def test_the_help_is_shown_without_what_only_a_run_needs():
    result = without("grain", "orbax", "matplotlib", "tqdm", "sklearn", arguments="distill --help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "--learning-rate" in result.stdout


@pytest.mark.parametrize("arguments", ["--help", "distill --help", "distill"])
def test_without_what_parses_its_flags_the_command_says_how_to_install_it(arguments):
    result = without("tyro", arguments=arguments)
    line = (
        'needs the Python package that provides tyro; got none; run `pip install ".[recipes]"` in a clone of momentax'
    )
    assert (result.returncode, result.stderr) == (1, f"momentax: {line}\n")


@pytest.mark.parametrize("package", ["grain", "orbax", "matplotlib", "tqdm", "sklearn"])
def test_a_run_without_a_package_says_how_to_install_it_before_anything_is_written(package, tmp_path):
    result = without(package, arguments=f"distill --output {tmp_path / 'run'}")
    assert result.returncode == 1
    assert result.stderr.startswith(f"momentax: needs the Python package that provides {package}; got none; run `pip")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["distill", "sample", "evaluate"])
def test_a_wrong_flag_points_to_the_help_that_has_the_flags(name):
    assert f"momentax {name} --help" in told(name, "--kk", "8")


@pytest.mark.parametrize(
    ("data", "folder"), [("digits", "runs/digits"), ("emoji", "runs/emoji"), ("to/own.npz", "runs/own")]
)
def test_a_run_without_an_output_is_in_a_folder_of_the_datas_name(data, folder):
    assert folder_of(Distill(data=data)) == pathlib.Path(folder)
    assert folder_of(Distill(data=data, output=pathlib.Path("run"))) == pathlib.Path("run")


def test_where_there_is_no_run_those_beside_it_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("emoji", "own"):
        pathlib.Path("runs", name).mkdir(parents=True)
        pathlib.Path("runs", name, "report.json").write_text("{}")
    pathlib.Path("runs", "begun").mkdir()
    pathlib.Path("runs", "begun", "run.json").write_text("{}")
    words = told("sample")
    assert "needs a finished run in runs/digits; got none; run `momentax distill --output runs/digits` first" in words
    assert words.endswith("or name the --output of another one: runs/emoji, runs/own")
    assert "run `momentax distill --resume --output runs/begun` first" in told("evaluate", "--output", "runs/begun")
    assert told("distill", "--resume").endswith("name the --output of the run: runs/begun")


RECORDS = {
    "no JSON": "{",
    "no text": b"\xff\xfe\x00",
    "no object": "[]",
    "no configuration": "{}",
    "a configuration that is none": '{"configuration": 3, "figures": {}}',
    "a setting that there is not": '{"configuration": {"foo": 1}, "figures": {}}',
    "a choice that there is not": '{"configuration": {"kernel": "foo"}, "figures": {}}',
    "a setting of another type": '{"configuration": {"k": "eight"}, "figures": {}}',
}


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("arguments", [["sample"], ["evaluate"], ["distill", "--updates", "6", "--batch", "16"]])
def test_a_damaged_report_is_told_in_a_line(arguments, name, tmp_path):
    record = RECORDS[name]
    (tmp_path / "report.json").write_bytes(record if isinstance(record, bytes) else record.encode())
    assert told(*arguments, "--output", tmp_path).startswith("momentax: needs ")


@pytest.mark.parametrize("record", ["{", "[]", "{}", '{"folder": 1}'])
def test_a_damaged_record_of_a_teacher_is_told_in_a_line(record, tmp_path):
    (tmp_path / "teacher.json").write_text(record)
    words = told("distill", "--output", tmp_path)
    assert words.startswith("momentax: needs ")
    assert "delete the file and" in words


@pytest.mark.parametrize(
    "record", ["[]", "{}", '{"configuration": [], "data": {}, "checkpoint_every": 1, "phases": {}}']
)
@pytest.mark.parametrize("arguments", [[], ["--resume"]])
def test_a_damaged_record_of_a_run_is_told_in_a_line(arguments, record, tmp_path):
    (tmp_path / "run.json").write_text(record)
    assert told("distill", *arguments, "--output", tmp_path).startswith("momentax: needs ")


@pytest.mark.parametrize("below", ["file/run", "file/far/below"])
def test_a_folder_below_a_file_is_told(below, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("file").touch()
    words = f"momentax: needs a folder it may write to; got {below} (Not a directory); name another by --output"
    assert told("distill", "--output", below) == words


def test_a_file_system_that_is_read_only_is_told(tmp_path, monkeypatch):
    def refused(**options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(options["dir"]))

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    words = told("distill", "--output", tmp_path / "run")
    assert f"needs a folder it may write to; got {tmp_path / 'run'} (Read-only file system); name another" in words


def test_a_command_that_is_shown_can_be_pasted(tmp_path, monkeypatch):
    """By its name where the shell finds it, otherwise as it was called; a program of one's own has its name alone."""
    for place in ("on", "off"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "momentax").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "on"))
    shown = {
        str(tmp_path / "on" / "momentax"): "momentax",
        str(tmp_path / "off" / "momentax"): str(tmp_path / "off" / "momentax"),
        str(tmp_path / "my own" / "momentax"): f"'{tmp_path}/my own/momentax'",
        "own.py": "momentax",
        "-c": "momentax",
    }
    (tmp_path / "my own").mkdir()
    (tmp_path / "my own" / "momentax").touch(0o755)
    for called, name in shown.items():
        monkeypatch.setattr(_program.sys, "argv", [called])
        assert command("distill", pathlib.Path("a run"), "--resume") == f"{name} distill --resume --output 'a run'"


def test_a_folder_that_there_is_not_has_no_teacher(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"needs a folder that diffusers wrote; got none at .*nowhere; check"):
        denoiser_from_diffusers(tmp_path / "nowhere")
