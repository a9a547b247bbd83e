"""What a run shows of its figures: a table with the floor, pictures with the distances, curves with numbers."""

import json
import pathlib

import numpy as np
import pytest

from momentax import metrics
from momentax.recipes import _plots
from momentax.recipes._data import Dataset, load
from momentax.recipes._features import features
from momentax.recipes._figures import reference, report_floor
from momentax.recipes._folder import Folder
from momentax.recipes._plots import columns, plot_curves, plot_samples
from momentax.recipes._report import table

RECORDED = pathlib.Path(__file__).parents[1] / "docs" / "results" / "digits-alternating" / "report-0.json"


@pytest.fixture
def figures(monkeypatch):
    """The figures that would be saved."""
    saved = []
    monkeypatch.setattr(_plots, "_save", lambda figure, folder, name: saved.append(figure))
    return saved


def test_the_floor_of_the_report_is_that_of_an_evaluation_and_between_images_of_the_data_alone(tmp_path):
    data = load("digits")
    pixels = features("pixels", data, None, Folder(tmp_path))
    floor, evaluated = report_floor(pixels, data, None, 40), reference(pixels, data, None, 40, 160).floor
    assert floor == {name: evaluated[name] for name in floor}
    order = np.random.default_rng(0).permutation(200)
    rows = data.x[:200].reshape(200, -1)[order]
    assert floor["frechet_distance"] == metrics.frechet_distance(rows[:40], rows[40:])
    assert (floor["samples"], floor["images"], floor["of"]) == (40, 160, "training split")


def test_the_floor_is_a_row_of_the_table_and_what_is_better_is_said():
    written = json.loads(RECORDED.read_text())
    of = {"samples": 898, "images": 899, "of": "training split"}
    written["floor"] = of | {"frechet_distance": 0.2554, "precision": 0.902, "recall": 0.912}
    header, floor, names, first, *_ = table(written).split("\n")
    assert header == "Frechet distances to the data on pixels, 64 numbers in [-1, 1]: lower is better"
    assert floor.startswith("the floor: 898 images of the training split against 899 others, fewer than the 5000")
    assert first == "data (floor)         0.255      0.902   0.912"
    assert len(names) == len(first)


def test_a_report_of_before_there_was_a_floor_is_still_shown():
    header, names, first, *rest = table(json.loads(RECORDED.read_text())).split("\n")
    assert "lower is better" in header
    assert first.split() == ["student", "8", "0.209", "0.964", "0.716"]
    assert "floor" not in " ".join([names, *rest])


@pytest.mark.parametrize(("side", "shown"), [(8, 8), (16, 8), (17, 16), (28, 16)])
def test_small_images_have_larger_tiles_in_a_picture_of_the_same_width(side, shown, figures, tmp_path):
    images = np.zeros((20, 1, side, side), np.float32)
    plot_samples(Folder(tmp_path), "a.png", {"data  (floor 0.26)": images, "student, 8 steps  0.21": images})
    assert columns(images) == shown
    (figure,) = figures
    assert [axis.get_ylabel() for axis in figure.axes] == ["data  (floor 0.26)", "student, 8 steps  0.21"]
    assert [axis.images[0].get_array().shape for axis in figure.axes] == [(side + 2, shown * (side + 2))] * 2
    assert figure.get_figwidth() == pytest.approx(2.6 + 9.92)


CURVES = {
    "narrow": 29.1875 + 0.01 * np.sin(np.arange(200.0)),
    "of a decade": np.linspace(1, 12, 200),
    "wide": np.exp(-np.linspace(0, 12, 200)),
    "partly negative": np.linspace(-1, 1, 200),
}


@pytest.mark.parametrize("name", CURVES)
def test_the_numbers_of_a_curve_are_plain_different_and_few(name, figures, tmp_path):
    plot_curves(Folder(tmp_path), {"student": CURVES[name].tolist()}, {10: 0.31, 20: 0.29})
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    (figure,) = figures
    FigureCanvasAgg(figure).draw()
    for axis in figure.axes:
        low, high = axis.get_ylim()
        texts = [*axis.get_yticklabels(), *axis.get_yticklabels(minor=True)]
        shown = [text.get_text() for text in texts if text.get_text() and low <= text.get_position()[1] <= high]
        assert 2 <= len(shown) <= 12
        assert len({float(text.replace("\N{MINUS SIGN}", "-")) for text in shown}) == len(shown)


def test_a_table_of_data_with_a_test_split_names_it(tmp_path):
    test = Dataset("a", np.random.default_rng(0).uniform(-1, 1, (30, 1, 2, 2)).astype(np.float32), None, 0, "")
    floor = report_floor(features("pixels", test, None, Folder(tmp_path)), test, test, 20)
    assert floor["of"] == "test split"
    assert floor["frechet_distance"] == metrics.frechet_distance(test.x[:20].reshape(20, 4), test.x[:].reshape(30, 4))
