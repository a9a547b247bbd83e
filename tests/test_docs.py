"""The documentation is true: every Python block runs, every name exists, every public name is documented."""

import importlib
import inspect
import json
import pathlib
import re
import shutil

import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest

import momentax
from momentax import description

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
PUBLIC = re.findall(r"import \w+ as (\w+)", pathlib.Path(momentax.__file__).read_text())
MODULES = ["momentax", "momentax.checkpoint", "momentax.interop", "momentax.nn", "momentax.metrics"]


def executed(page, folder, monkeypatch, **names):
    """What is left of a page's blocks, run from top to bottom in one namespace, with JAX as users have it.

    A pipeline of diffusers and the folder of a finished run lie in the folder.
    """
    shutil.copytree(ROOT / "tests" / "diffusers" / "ddpm-pipeline", folder / "ddpm-pipeline")
    monkeypatch.chdir(folder)
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    namespace = {"__name__": "__main__", **names}
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        finished_run(folder / "runs" / "digits")
        for number, block in enumerate(blocks):
            exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)
    assert blocks or page.name not in ("README.md", "teachers.md", "usage.md")
    return namespace


def finished_run(folder):
    """What `momentax.load` reads of one: a student of digits that has learned nothing."""
    folder.mkdir(parents=True)
    net = description.Network("MLP", {"shape": (1, 8, 8), "width": 16, "depth": 1, "num_classes": 10})
    told = description.Description(net, (1, 8, 8), 10, 8, momentax.CosineSchedule(), momentax.conditional_posterior, {})
    (folder / "student.json").write_text(json.dumps(told.as_json()))
    eqx.tree_serialise_leaves(folder / "student.eqx", net.untrained(jax.random.key(0)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_runs(page, tmp_path, monkeypatch):
    """With loops of at most twenty rounds."""
    executed(page, tmp_path, monkeypatch, range=lambda *ends: range(*ends)[:20])


@pytest.mark.slow
def test_the_first_page_shows_the_method_and_its_picture_is_what_its_code_draws(tmp_path, monkeypatch):
    """Both students are nearer to the data than their teacher in as many steps, the alternating one by far."""
    figures = executed(ROOT / "README.md", tmp_path, monkeypatch)["distances"]
    assert figures["student, 4 steps"] < 0.4 * figures["teacher, 4 steps"]
    assert figures["instant student, 4 steps"] < 0.8 * figures["teacher, 4 steps"]
    drawn, shown = (plt.imread(path).astype(float) for path in (tmp_path / "ring.png", ROOT / "docs" / "ring.png"))
    assert drawn.shape == shown.shape
    assert np.mean(np.abs(drawn - shown)) < 0.02


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_name_leads_somewhere(page):
    """Relative links are files; `momentax.x`, `tests/x.py` and `x.py::test_y` in code spans exist."""
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for name in re.findall(r"`momentax\.((?:\w+\.)*\w+)", text):
        value = momentax
        for part in name.split("."):
            value = getattr(value, part, None) or importlib.import_module(f"momentax.{part}")
    for file, test in re.findall(r"`(test_\w+\.py)::(test_\w+)`", text):
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"


def test_every_public_name_is_in_paper_to_code_or_usage():
    """What is exported is explained: each name of the flat namespace stands in the documentation."""
    text = "".join(page.read_text() for page in PAGES)
    missing = [name for name in PUBLIC if not re.search(rf"\b{name}\b", text)]
    assert not missing


def _documented(module):
    names = [name for name in vars(module) if not name.startswith("_")]
    values = [getattr(module, name) for name in names]
    return [value for value in values if inspect.isfunction(value) or inspect.isclass(value)]


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_a_docstring_and_types(module):
    """A sentence, and jaxtyping's shapes on every array that goes in or out."""
    for value in _documented(importlib.import_module(module)):
        if value.__module__.startswith("momentax"):
            assert inspect.getdoc(value), value
            called = value.__init__ if inspect.isclass(value) else value
            signature = inspect.signature(called)
            untyped = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name != "self"]
            assert not untyped or inspect.isclass(value) or value.__name__.startswith("predict_"), (value, untyped)


@pytest.mark.parametrize("name", ["student_loss", "aux_loss", "joint_loss", "instant", "denoising_loss"])
def test_a_loss_says_what_its_value_and_its_gradient_mean(name):
    text = inspect.getdoc(getattr(momentax, name)) or ""
    assert "Value:" in text
    assert "Gradient:" in text
