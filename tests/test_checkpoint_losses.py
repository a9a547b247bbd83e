"""The curve beside the checkpoints: exact, whatever ends the process."""

import json
import math

import numpy as np
import pytest

from momentax import checkpoint

VALUES = [0.1, 1 / 3, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan]


def lines(folder):
    return (folder / "losses.jsonl").read_bytes().splitlines()


def test_losses_come_back_bit_for_bit(tmp_path):
    for update, value in enumerate(VALUES):
        checkpoint.append_losses(tmp_path / "new", update, {"student": value, "aux": -value})
    read = checkpoint.read_losses(tmp_path / "new")
    assert [update for update, _ in read] == list(range(len(VALUES)))
    assert all(list(losses) == ["student", "aux"] for _, losses in read)
    np.testing.assert_array_equal([losses["student"].hex() for _, losses in read], [value.hex() for value in VALUES])


def test_a_line_is_json_of_a_decimal_and_its_bits(tmp_path):
    checkpoint.append_losses(tmp_path, 3, {"student": 0.25})
    checkpoint.append_losses(tmp_path, 4, {"student": math.nan})

    def refuse(constant):
        raise AssertionError(constant)

    first, second = (json.loads(line, parse_constant=refuse) for line in lines(tmp_path))
    assert first == {"update": 3, "student": 0.25, "student_hex": "0x1.0000000000000p-2"}
    assert second == {"update": 4, "student": None, "student_hex": "nan"}


def test_a_line_that_was_cut_off_is_not_there(tmp_path):
    for update in range(3):
        checkpoint.append_losses(tmp_path, update, {"x": 0.1 * update})
    whole = (tmp_path / "losses.jsonl").read_bytes()
    *_, start = (i for i, byte in enumerate(whole[:-1]) if byte == ord("\n"))
    for end in range(start + 1, len(whole)):
        (tmp_path / "losses.jsonl").write_bytes(whole[:end])
        assert [update for update, _ in checkpoint.read_losses(tmp_path)] == [0, 1]
    checkpoint.append_losses(tmp_path, 2, {"x": 0.2})
    assert (tmp_path / "losses.jsonl").read_bytes() == whole


@pytest.mark.parametrize("torn", [b'{"upd', b"\0" * 9000])
def test_a_cut_off_first_line_makes_room_for_the_next(tmp_path, torn):
    (tmp_path / "losses.jsonl").write_bytes(torn)
    assert checkpoint.read_losses(tmp_path) == []
    checkpoint.append_losses(tmp_path, 0, {"x": 0.5})
    assert checkpoint.read_losses(tmp_path) == [(0, {"x": 0.5})]


def test_a_run_that_goes_on_cuts_what_it_does_again(tmp_path):
    for update in range(5):
        checkpoint.append_losses(tmp_path, update, {"x": float(update)})
    kept = lines(tmp_path)[:3]
    with open(tmp_path / "losses.jsonl", "ab") as file:
        file.write(b'{"update": 5, "x')
    checkpoint.cut_losses(tmp_path, 3)
    assert lines(tmp_path) == kept
    assert [path.name for path in tmp_path.iterdir()] == ["losses.jsonl"]


def test_without_losses_there_is_nothing_to_read_or_cut(tmp_path):
    assert checkpoint.read_losses(tmp_path) == []
    checkpoint.cut_losses(tmp_path, 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", [b"[]", b"{}", b'{"update": 1, "x_hex": "half"}', b'{"update": 1, "x_hex": 2}', b"a"])
def test_a_strange_line_is_named(tmp_path, line):
    checkpoint.append_losses(tmp_path, 0, {"x": 0.5})
    with open(tmp_path / "losses.jsonl", "ab") as file:
        file.write(line + b"\n")
    for act in (checkpoint.read_losses, lambda folder: checkpoint.cut_losses(folder, 0)):
        with pytest.raises(ValueError, match=r"needs losses in line 2 of .*losses\.jsonl; got"):
            act(tmp_path)
    assert len(lines(tmp_path)) == 2


@pytest.mark.parametrize("name", ["update", "x_hex"])
def test_names_that_are_taken_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=rf"needs other names than .*; got \['{name}'\]"):
        checkpoint.append_losses(tmp_path, 0, {name: 0.5})
    assert list(tmp_path.iterdir()) == []
