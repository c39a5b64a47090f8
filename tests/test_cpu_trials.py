"""The trials towards the floor: every one of them runs, and processes are where they are said to be."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from fundus_rt.benchmarks.cpu_trials import BATCHES, SHIPPED, file_trials  # noqa: E402
from fundus_rt.benchmarks.pinned_processes import PinnedProcesses  # noqa: E402
from fundus_rt.benchmarks.proof.graph_runs import GraphSession, copy_of  # noqa: E402
from fundus_rt.converters.precision.int8_graph import write_weights_int8  # noqa: E402
from tests.quantised_networks import CONVOLUTIONS, SIZE, network, photographs, shipped  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are put on cores as on Linux")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trials") / "small.onnx"
    shipped(path)
    return path


def test_every_trial_is_measured_against_the_way_as_shipped(file: Path) -> None:
    found = file_trials(file, 0.0, 6)
    network_trials = found["network"]
    assert network_trials[SHIPPED]["times_as_fast"]["value"] == 1.0
    others = int(importlib.util.find_spec("openvino") is not None)
    assert len(network_trials) == 1 + len(BATCHES) + 2 + 1 + 2 + 2 + others
    assert all(row["ms_a_picture"] > 0 and row["times_as_fast"]["value"] > 0 for row in network_trials.values())
    half = found["half size"]
    assert half["photographs"] == 11 and 0 < half["grey_levels_mean"] < half["grey_levels_largest"]
    assert half["answers_largest"] > 0
    dynamic = found["dynamic int8"]
    assert 0 < dynamic["answers_largest"] < dynamic["answers_apart"]


def test_weights_in_int8_move_answers_by_their_rounding_alone_and_take_a_quarter_of_the_bytes() -> None:
    model = network()
    lower = copy_of(model)
    write_weights_int8(lower, CONVOLUTIONS)
    kinds = {tensor.name: tensor for tensor in lower.graph.initializer}
    rounded = copy_of(model)
    for tensor in rounded.graph.initializer:
        if tensor.name in {f"{name}_w" for name in CONVOLUTIONS}:
            weights = onnx.numpy_helper.to_array(tensor)
            steps = np.abs(weights).max(axis=(1, 2, 3), keepdims=True) / np.float32(127)
            assert len(kinds[f"{tensor.name}/int8"].raw_data) * 4 == len(tensor.raw_data)
            tensor.CopyFrom(onnx.numpy_helper.from_array((np.rint(weights / steps) * steps).astype(np.float32), tensor.name))
    expected, found = (GraphSession(one).run(photographs()[:2])["sex"] for one in (rounded, lower))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_processes_answer_on_a_core_of_their_own_and_on_any(file: Path) -> None:
    cores = os.sched_getaffinity(0)
    with PinnedProcesses(file, np.zeros((SIZE, SIZE, 3), np.uint8), 2) as processes:
        places = []
        for pinned in (True, False):
            processes.answering(pinned)(0)
            places.append([os.sched_getaffinity(process.pid) for process in processes._processes])
        running = list(processes._processes)
    assert [len(place) for place in places[0]] == [1, 1] and (len(cores) == 1 or places[0][0] != places[0][1])
    assert places[1] == [cores, cores]
    assert not any(process.is_alive() for process in running)
