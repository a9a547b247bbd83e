"""Two processes train, save and restore together; one goes on alone, and two go on where one was; one of two dies."""

import time

import numpy as np
import pytest
from processes import output, start, start_pair

from momentax import checkpoint

pytestmark = pytest.mark.slow
SPREADS = ["data_parallel", "fully_sharded"]


def losses(folder):
    return np.array([next(iter(losses.values())) for _, losses in checkpoint.read_losses(folder)])


@pytest.fixture(scope="module", params=SPREADS)
def alone(request, tmp_path_factory):
    """A run of twenty updates in one process, on four devices."""
    folder = tmp_path_factory.mktemp("alone")
    assert output(start("distil", folder, 20, request.param, devices=4)).endswith("1 4")
    return request.param, losses(folder)


def test_two_processes_train_as_one(alone, tmp_path):
    """Of four devices in all: a sum over the same pieces, in whatever order they arrive."""
    spread, expected = alone
    assert [output(process).splitlines()[-1] for process in start_pair("distil", tmp_path, 20, spread)] == ["2 4"] * 2
    np.testing.assert_allclose(losses(tmp_path), expected, rtol=1e-5)


@pytest.mark.parametrize("devices", [1, 4])
def test_one_process_goes_on_where_two_were(alone, tmp_path, devices):
    spread, expected = alone
    for process in start_pair("distil", tmp_path, 10, spread):
        output(process)
    assert output(start("distil", tmp_path, 20, spread, devices=devices)).endswith(f"1 {devices}")
    np.testing.assert_allclose(losses(tmp_path), expected, rtol=1e-5)


def test_two_processes_go_on_where_one_was(alone, tmp_path):
    spread, expected = alone
    output(start("distil", tmp_path, 10, spread, devices=1))
    for process in start_pair("distil", tmp_path, 20, spread):
        output(process)
    np.testing.assert_allclose(losses(tmp_path), expected, rtol=1e-5)


def test_a_process_whose_peer_dies_ends_and_the_next_pair_goes_on(alone, tmp_path):
    """At the latest once the heartbeat's twenty seconds are over, and not well."""
    spread, expected = alone
    survivor, peer = start_pair("distil", tmp_path, 10**6, spread)
    while not checkpoint.steps(tmp_path):
        assert peer.poll() is None
        time.sleep(0.05)
    peer.kill()
    peer.communicate()
    survivor.communicate(timeout=120)
    assert survivor.returncode != 0
    updates = max(*checkpoint.steps(tmp_path), 20)
    for process in start_pair("distil", tmp_path, updates, spread):
        output(process)
    np.testing.assert_allclose(losses(tmp_path)[:20], expected, rtol=1e-5)
