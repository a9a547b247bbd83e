"""The figures in the documentation are those of the recorded reports, and those say how to make them again."""

import json
import pathlib
import statistics

import pytest

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


def test_the_table_of_fashion_mnist_is_that_of_its_report():
    readme, (found,) = (ROOT / "README.md").read_text(), reports("fashion-mnist-alternating")
    for model in ("student", "teacher"):
        assert f"{distances(found, model)[8]:.2f}" in readme
    assert f"{min(distances(found, 'teacher').values()):.2f}" in readme


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_report_says_how_to_make_it_again(path):
    report = json.loads(path.read_text())
    assert report["command"].startswith("momentax distill --data")
    assert {"momentax", "jax", "equinox", "optax", "numpy", "python"} <= set(report["versions"])
    assert report["configuration"]["seed"] == report["seed"]
