"""The figures in the documentation are those of the recorded reports, and those say how to make them again."""

import importlib
import json
import pathlib
import statistics

import numpy as np
import pytest
import tyro

from momentax.recipes._data import Dataset
from momentax.recipes._presets import resolved
from momentax.recipes._settings import Distill

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
REPORTS = sorted(RESULTS.glob("*/report-*.json"))


def reports(name):
    return [json.loads(path.read_text()) for path in REPORTS if path.parent.name == name]


def spread(values):
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def distances(report, model):
    return {int(steps): row["frechet_distance"] for steps, row in report["figures"][model].items()}


@pytest.mark.parametrize("name", ["digits-alternating", "digits-instant"])
def test_the_table_of_digits_is_that_of_three_seeds(name):
    readme, found = (ROOT / "README.md").read_text(), reports(name)
    assert [report["seed"] for report in found] == [0, 1, 2]
    assert spread([distances(report, "student")[8] for report in found]) in readme
    assert spread([distances(report, "teacher")[8] for report in found]) in readme
    assert spread([min(distances(report, "teacher").values()) for report in found]) in readme


def test_the_figures_of_the_old_network_of_fashion_mnist_are_those_of_its_report():
    page, (found,) = (RESULTS / "README.md").read_text(), reports("fashion-mnist-alternating")
    teacher = distances(found, "teacher")
    assert f"{distances(found, 'student')[8]:.2f} in 8 steps, its teacher {teacher[8]:.2f}, and" in page
    assert f"and {min(teacher.values()):.2f} in {min(teacher, key=lambda steps: teacher[steps])}" in page


def test_the_table_of_the_imported_teacher_is_that_of_its_reports():
    """And the two students had the same teacher."""
    readme = (ROOT / "README.md").read_text()
    (alternating,), (instant,) = reports("diffusers-alternating"), reports("diffusers-instant")
    assert alternating["teacher"]["files"] == instant["teacher"]["files"]
    assert alternating["figures"]["teacher"] == instant["figures"]["teacher"]
    teacher = distances(alternating, "teacher")
    best = min(teacher, key=lambda steps: teacher[steps])
    assert f"the best of 4, 8, 16, 64 and 256 steps ({best}) | {teacher[best]:.2f} |" in readme
    for steps in (4, 8, 16):
        assert f"| teacher, {steps} steps | {teacher[steps]:.2f} |" in readme
    for report, batch in ((alternating, 64), (instant, 128)):
        assert report["configuration"]["batch"] == batch
        updates = f"{report['configuration']['updates']:,} updates, batch {batch}"
        assert f"student, 4 steps** ({updates}) | {distances(report, 'student')[4]:.2f} |" in readme


def test_the_counts_in_the_page_of_teachers_are_the_recorded_ones():
    page = (ROOT / "docs" / "teachers.md").read_text()
    memory = json.loads((RESULTS / "memory.json").read_text())["bytes"]
    for algorithm in list(memory["DiT-XL/2"])[1:]:
        counts = (f"{sizes[algorithm] / sizes['teacher']:.2f}" for sizes in memory.values())
        assert f"| {algorithm} | {' | '.join(counts)} |" in page
    rows = json.loads((RESULTS / "tangents.json").read_text())["rows"]
    for network in {row["network"] for row in rows}:
        counted = [row for row in rows if row["network"] == network and row["program"] != "forward"]
        assert f"| {network} | {' | '.join('{flops:.2f}, {memory:.1f}'.format(**row) for row in counted)} |" in page


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_report_says_how_to_make_it_again(path):
    report = json.loads(path.read_text())
    assert report["command"].startswith("momentax distill --data")
    assert {"momentax", "jax", "equinox", "optax", "numpy", "python"} <= set(report["versions"])
    assert report["configuration"]["seed"] == report["seed"]


@pytest.fixture
def of_paper(monkeypatch):
    """A module of the paper's experiments, by name."""
    monkeypatch.syspath_prepend(str(RESULTS / "paper"))
    return importlib.import_module


@pytest.mark.parametrize("data", ["fashion-mnist", "emoji"])
def test_every_run_of_the_papers_experiments_is_a_command(of_paper, data):
    """Of one teacher, with options that exist and fit; and what is drawn is drawn of one of them."""
    plan = of_paper("plan")
    shape = (4, 1, 28, 28) if data == "fashion-mnist" else (4, 3, 32, 32)
    dataset = Dataset(data, np.zeros(shape, np.float32), np.arange(4, dtype=np.int32), 4, "none")
    runs = {name: resolved(tyro.cli(Distill, args=told), dataset) for name, told in plan.runs(data).items()}
    assert next(iter(runs)) == plan.FIRST
    assert len({run.teacher_updates for run in runs.values()}) == 1
    assert len(set(runs.values())) == len(runs)
    drawings = plan.drawings(data)
    assert len({drawing.name for drawing in drawings}) == len(drawings)
    assert {drawing.run for drawing in drawings} == set(runs)
    assert all(drawing.k == runs[drawing.run].k for drawing in drawings if drawing.model == "student")


def test_the_table_of_fashion_mnist_is_of_the_papers_experiments(of_paper):
    """Cell by cell, of what the page has in its rows of the same name."""
    readme, pages = (ROOT / "README.md").read_text(), of_paper("pages")
    told = json.loads((RESULTS / "paper" / "fashion-mnist.json").read_text())
    found = pages.steps(told) | pages.kernels(told["figures"])
    alternating = "**alternating student, 8 steps** (800 updates, 400 of each player, batch 64: a minute)"
    rows = {
        "teacher, 8 steps": "teacher, 8 steps",
        "teacher, 8 steps, DDIM": "teacher, 8 steps, kernel ddim",
        "teacher, 64 steps": "teacher, 64 steps",
        "teacher, 1024 steps": "teacher, 1024 steps",
        alternating: "**alternating, 8 steps**, 3 seeds",
        "the same with re-noising": "re-noising, 3 seeds",
        "**instant student, 8 steps** (300 updates, batch 128: a minute)": "**instant, 8 steps**, 3 seeds",
    }
    columns = [pages.COLUMNS[name] for name in ("FD, EfficientNet", "FD, classifier", "sliced W, pixels")]
    for title, name in rows.items():
        cells = (pages.cell([of[features][figure] for of in found[name]], form) for features, figure, form in columns)
        assert f"| {title} | {' | '.join(cells)} |" in readme
    arguments = of_paper("plan").TRAINING["fashion-mnist"]
    assert arguments["alternating"] == ["--updates", "800", "--batch", "64"]
    assert arguments["instant"] == ["--updates", "300", "--batch", "128"]


MEASURED = sorted((RESULTS / "paper").glob("*.json"))


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_the_tables_of_the_papers_experiments_are_those_of_their_record(of_paper, path):
    told, page = json.loads(path.read_text()), (RESULTS / "paper" / "README.md").read_text()
    assert all(table in page for table in of_paper("pages").tables(told))
    assert told["samples"] >= (10_000 if path.stem == "fashion-mnist" else 1500)
    assert told["features"].keys() == {"pixels", "classifier", "efficientnet"}


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_every_figure_of_the_papers_experiments_is_of_a_run_of_the_plan(of_paper, path):
    """And of one teacher, which is beside the record."""
    told, plan = json.loads(path.read_text()), of_paper("plan")
    made = {drawing.name: plan.command(told["data"], drawing.run) for drawing in plan.drawings(told["data"])}
    assert {name: figures["command"] for name, figures in told["figures"].items()}.items() <= made.items()
    for name, run in told["runs"].items():
        assert run["command"] == plan.command(told["data"], name)
        assert {"momentax", "jax", "equinox", "optax", "numpy", "python"} <= set(run["versions"])
    assert {made[name] for name in told["figures"]} <= {run["command"] for run in told["runs"].values()}
    teacher = json.loads((path.with_suffix("") / "teacher.json").read_text())
    assert {run["configuration"]["teacher_updates"] for run in told["runs"].values()} == {teacher["teacher_updates"]}
