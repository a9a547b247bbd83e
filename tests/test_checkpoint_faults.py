"""Damage is never taken for values: an older checkpoint is, and the damage is told."""

import gc
import json
import pickle
import shutil
import warnings
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from momentax import checkpoint

# Where a read fails, orbax leaves the coroutines of others behind.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True, scope="module")
def _collected():
    yield
    gc.collect()


def tree(step):
    """Values of a step: arrays of jax and NumPy, of noise, and all alike, and a key."""
    return {
        "noise": jnp.asarray(np.random.default_rng(step).normal(size=(50, 20))),
        "alike": np.full((30,), step, np.float32),
        "key": jax.random.key(step),
        "count": jnp.asarray(step),
    }


def values(tree):
    """The bytes of every leaf."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree | {"key": jax.random.key_data(tree["key"])})]


def files(folder, step):
    """All that are not empty."""
    return sorted(path for path in (folder / str(step)).rglob("*") if path.is_file() and path.stat().st_size)


@pytest.fixture
def two(tmp_path):
    """A folder with the checkpoints 1 and 2."""
    for step in (1, 2):
        checkpoint.save(tmp_path, step, tree(step), config={"seed": 0}, notes={"losses": step}).wait()
    return tmp_path


def assert_right_or_older(folder):
    """Restores; the step that it came to, and that alone where it says why."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        restored = checkpoint.restore(folder, tree(0), config={"seed": 0})
    assert values(restored.tree) == values(tree(restored.step))
    assert restored.notes == {"losses": restored.step}
    messages = [str(warning.message) for warning in told if warning.category is UserWarning]
    assert [f"{folder} with 2, of which " in message for message in messages] == [True] * (2 - restored.step)
    return restored.step


def deleted(path):
    path.unlink()


def zeroed(path):
    path.write_bytes(bytes(path.stat().st_size))


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [deleted, zeroed, truncated, emptied])
def test_any_file_may_be_lost(two, damage):
    """What orbax keeps twice, or keeps for people, may be lost without loss."""
    steps = {}
    for path in files(two, 2):
        content = path.read_bytes()
        damage(path)
        steps[str(path.relative_to(two / "2"))] = assert_right_or_older(two)
        path.write_bytes(content)
    assert (steps["manifest/data.json"], steps["tree/manifest.ocdbt"]) == (1, 1)
    assert sum(step == 1 for step in steps.values()) >= 5
    assert assert_right_or_older(two) == 2


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def flips(two, count):
    """How many of some flipped bits, anywhere in the newest checkpoint, made the older one be taken."""
    everything = files(two, 2)
    sizes = [path.stat().st_size for path in everything]
    older = 0
    for _ in range(count):
        path = everything[RNG.choice(len(everything), p=np.asarray(sizes) / sum(sizes))]
        bit = int(RNG.integers(8 * path.stat().st_size))
        flip(path, bit)
        older += assert_right_or_older(two) == 1
        flip(path, bit)
    return older


def test_a_flipped_bit_is_never_a_value(two):
    assert flips(two, 30) > 10
    assert assert_right_or_older(two) == 2


@pytest.mark.slow
def test_hundreds_of_flipped_bits_are_never_values(two):
    assert flips(two, 600) > 200
    assert assert_right_or_older(two) == 2


def test_a_flipped_bit_of_the_manifest_is_damage_and_no_mismatch(two):
    path = two / "2" / "manifest" / "data.json"
    for bit in RNG.integers(8 * path.stat().st_size, size=40):
        flip(path, int(bit))
        assert_right_or_older(two)
        flip(path, int(bit))


def replace_arrays(checkpoint, other):
    shutil.rmtree(checkpoint / "tree")
    shutil.copytree(other / "tree", checkpoint / "tree")


@pytest.mark.parametrize("other", [np.zeros((2, 3), np.float32), np.zeros(6, np.int32)])
def test_the_same_bytes_as_another_array_are_damage(tmp_path, other):
    value = {"x": np.zeros(6, np.float32)}
    for folder, saved in (("here", value), ("there", {"x": other})):
        checkpoint.save(tmp_path / folder, 0, saved).wait()
    replace_arrays(tmp_path / "here" / "0", tmp_path / "there" / "0")
    with pytest.raises(ValueError, match=r"\['x'\] is there as .*, was float32\[6\]"):
        checkpoint.restore(tmp_path / "here", value, step=0)


def test_numbers_that_orbax_reads_without_complaint_are_held_against_their_checksums(two):
    """A shard of another checkpoint in the place of this one's: every file is whole."""
    replace_arrays(two / "2", two / "1")
    with pytest.raises(ValueError, match=r"2, of which \['alike'\]\[slice\(0, 30, None\)\] is not what was written"):
        checkpoint.restore(two, tree(0), step=2)


def test_a_damaged_checkpoint_that_is_asked_for_is_an_error(two):
    deleted(two / "2" / "manifest" / "data.json")
    with pytest.raises(ValueError, match=r"needs a whole checkpoint; got .* with 2, of which its manifest cannot be"):
        checkpoint.restore(two, tree(0), step=2)


def test_where_all_are_damaged_all_are_told(two):
    for step in (1, 2):
        zeroed(two / str(step) / "manifest" / "data.json")
    with (
        pytest.warns(UserWarning, match="needs whole checkpoints"),
        pytest.raises(FileNotFoundError, match=r"got 2, of which its .*; 1, of which its"),
    ):
        checkpoint.restore(two, tree(0))


def test_a_run_that_went_back_saves_the_damaged_step_anew(two):
    zeroed(two / "2" / "tree" / "manifest.ocdbt")
    with pytest.warns(UserWarning, match="needs whole checkpoints"):
        assert checkpoint.restore(two, tree(0)).step == 1
    shutil.copytree(two / "1", two / "2.deleted")
    checkpoint.save(two, 2, tree(2), config={"seed": 0}, notes={"losses": 2}).wait()
    assert assert_right_or_older(two) == 2
    assert sorted(path.name for path in two.iterdir()) == ["1", "2"]


def test_a_mismatch_is_told_of_the_newest_whole_one_and_is_no_reason_to_go_back(two):
    with pytest.raises(ValueError, match=r"\['noise'\] saved as float64\[50, 20\], and nothing"):
        checkpoint.restore(two, {name: leaf for name, leaf in tree(0).items() if name != "noise"})
    with pytest.raises(ValueError, match="seed saved as 0, and 1 here"):
        checkpoint.restore(two, tree(0), config={"seed": 1})


def test_a_later_format_is_told_and_left_alone(two):
    path = two / "2" / "manifest" / "data.json"
    body = json.loads(path.read_text())["manifest"] | {"version": 2}
    text = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    path.write_text(json.dumps({"crc32": zlib.crc32(text), "manifest": body}))
    for act in (lambda: checkpoint.restore(two, tree(0)), lambda: checkpoint.save(two, 2, tree(2))):
        with pytest.raises(ValueError, match=r"needs a checkpoint of format 1; got format 2 in .*; do install"):
            act()
    assert checkpoint.steps(two) == [1, 2]


class Bomb:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was read",)


def pickled(path):
    path.write_bytes(pickle.dumps(Bomb()))


def saved_by_numpy(path):
    with open(path, "wb") as file:
        np.save(file, np.asarray([Bomb()], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("write", [pickled, saved_by_numpy])
@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pt", "a.pkl", "0"])
def test_a_pickle_is_refused_unread(tmp_path, write, name):
    path = tmp_path / name
    write(path)
    with pytest.raises(NotADirectoryError, match=r"needs a folder of checkpoints .* which was not read"):
        checkpoint.restore(path, tree(0))
    with pytest.raises(NotADirectoryError, match="needs a folder of checkpoints"):
        checkpoint.save(path, 0, tree(0))
    with pytest.raises(FileNotFoundError, match=r"needs a whole checkpoint in .*; got none"):
        checkpoint.restore(tmp_path, tree(0))


def test_a_pickle_in_the_place_of_any_file_is_not_run(two):
    (two / "3").mkdir()
    pickled(two / "3" / "data.pkl")
    with pytest.warns(UserWarning, match="with 3, of which its manifest cannot be read"):
        assert checkpoint.restore(two, tree(0)).step == 2
    (two / "3").rename(two / "away")
    for path in files(two, 2):
        content = path.read_bytes()
        pickled(path)
        assert_right_or_older(two)
        path.write_bytes(content)


def test_a_folder_inside_a_file_is_refused_before_anything_is_copied(tmp_path):
    pickled(tmp_path / "file")
    with pytest.raises(OSError, match="needs a folder"):
        checkpoint.save(tmp_path / "file" / "folder", 0, {"x": jax.ShapeDtypeStruct((3,), jnp.float32)})
