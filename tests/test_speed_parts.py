"""The pieces of ``fundus-rt bench``: percentiles against SciPy, queues against closed forms, a made-up machine."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fundus_rt.benchmarks.speed import machine_state
from fundus_rt.benchmarks.speed.alternation import alternate
from fundus_rt.benchmarks.speed.arithmetic import arithmetic_of, ceiling
from fundus_rt.benchmarks.speed.order_statistics import interval_ranks, median_ratio, percentile, samples_needed
from fundus_rt.benchmarks.speed.scenarios import (
    Length,
    ServerTrial,
    highest_rate,
    late_queries_allowed,
    offline,
    passes,
    server,
    single_stream,
)


@pytest.mark.parametrize("percent", [50, 90, 99])
@pytest.mark.parametrize("count", [368, 400, 1231])
def test_bounds_are_those_of_scipy(percent: int, count: int) -> None:
    values = np.random.default_rng(count).lognormal(size=count)
    found = percentile(list(values), percent)
    expected = stats.quantile_test(values, p=percent / 100).confidence_interval(0.95)
    assert (found.low, found.high) == (expected.low, expected.high)
    assert found.value == np.quantile(values, percent / 100, method="inverted_cdf")


@pytest.mark.parametrize(("percent", "needed"), [(50, 6), (90, 36), (99, 368)])
def test_too_few_samples_give_no_percentile(percent: int, needed: int) -> None:
    assert samples_needed(percent) == needed
    few = percentile([1.0] * (needed - 1), percent)
    assert (few.value, few.low, few.high, few.samples_needed) == (None, None, None, needed)
    assert percentile([1.0] * needed, percent).value == 1.0
    ends = stats.quantile_test(np.arange(needed - 1), p=percent / 100).confidence_interval(0.95)
    assert np.isnan(ends).any()


def test_the_bound_of_a_percentile_is_kept_by_the_late_queries_that_are_allowed() -> None:
    allowed = late_queries_allowed(1000)
    ranks = interval_ranks(1000, 99)
    assert allowed is not None and ranks is not None
    assert stats.binom.sf(ranks[1] - 1, 1000, 0.99) <= 0.025 < stats.binom.sf(ranks[1] - 2, 1000, 0.99)
    times = [0.5] * (1000 - allowed) + [2.0] * allowed
    assert passes(ServerTrial(1.0, times, True), 1.0)
    assert not passes(ServerTrial(1.0, [*times[1:], 2.0], True), 1.0)
    assert not passes(ServerTrial(1.0, times, False), 1.0)
    assert not passes(ServerTrial(1.0, [0.5] * 300, True), 1.0)  # p99 is not known of so few


def test_ratios_are_paired_and_bracketed_by_scipys_bootstrap() -> None:
    rng = np.random.default_rng(1)
    second = rng.lognormal(size=60)
    first = second * rng.normal(3, 0.3, 60)
    found = median_ratio(list(first), list(second))
    expected = stats.bootstrap(
        (first / second,), np.median, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert found.low is not None and found.high is not None
    assert found.low == pytest.approx(expected.low, rel=0.02) and found.high == pytest.approx(expected.high, rel=0.02)
    assert median_ratio([2.0] * 5, [1.0] * 5).low is None


def test_single_stream_asks_for_every_sample_alike_and_goes_on_until_both_are_reached() -> None:
    asked: list[int] = []
    times = single_stream(asked.append, 7, Length(0.0, 70), seed=3)
    assert len(times) == 70 and len(asked) == 75  # five to warm up
    assert np.bincount(asked[5:]).tolist() == [10] * 7
    begun = time.perf_counter()
    assert len(single_stream(lambda index: None, 1, Length(0.05, 1), 0)) > 1
    assert time.perf_counter() - begun >= 0.05


def test_offline_hands_every_sample_over_in_each_pass() -> None:
    asked: list[int] = []
    found = offline(asked.append, 9, 2, Length(0.0, 27))
    assert [one.samples for one in found] == [9, 9, 9]
    assert np.bincount(asked[5:]).tolist() == [3] * 9


def test_a_latency_counts_from_the_scheduled_arrival() -> None:
    """One server of a fixed time: the waiting is that of Lindley's recursion on the same arrivals, and never shorter."""
    service, rate, queries = 0.01, 80.0, 60
    trial = server(lambda index: time.sleep(service), 4, 1, rate, queries, seed=5)
    gaps = np.random.default_rng(5).exponential(1 / rate, queries)
    waiting = [0.0]
    for gap in gaps[1:]:
        waiting.append(max(0.0, waiting[-1] + service - gap))
    shortest = np.array(waiting) + service
    assert trial.complete and max(waiting) > service
    assert (np.array(trial.latencies) >= shortest - 1e-3).all()


def test_a_server_that_is_too_slow_is_cut_short_and_its_error_is_raised() -> None:
    trial = server(lambda index: time.sleep(0.004), 4, 1, 1000.0, 400, seed=5, bound_s=0.005)
    assert not trial.complete and len(trial.latencies) < 400

    def fails(index: int) -> None:
        raise ValueError("device lost")

    with pytest.raises(ValueError, match="device lost"):
        server(fails, 1, 1, 1000.0, 5, 0)


def test_the_search_ends_next_to_the_highest_rate_that_passes() -> None:
    def trial(rate: float) -> ServerTrial:
        return ServerTrial(rate, [0.1 if rate <= 42 else 0.3] * 400, True)

    best = max(one.rate for one in highest_rate(trial, 0.2, 100) if passes(one, 0.2))
    assert 40 < best <= 42
    assert not any(passes(one, 0.01) for one in highest_rate(trial, 0.01, 100))


def test_every_round_has_every_way_on_the_same_sample() -> None:
    asked: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    times = alternate({name: seen.append for name, seen in asked.items()}, 0.0, 20, seed=1)
    assert {len(values) for values in times.values()} == {20}
    assert asked["a"] == asked["b"] == asked["c"]
    assert asked["a"][5:][1::2] == list(range(20))  # every second answer is the timed one


def machine(folder: Path, clock: int = 2400000, energy: int = 1000, busy: int = 100, stolen: int = 0) -> Path:
    """A made-up tree of /sys and /proc: two cores of one package."""
    texts = {
        "sys/class/powercap/intel-rapl:0/name": "package-0", "sys/class/powercap/intel-rapl:0/energy_uj": str(energy),
        "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "9999999",
        "sys/class/powercap/intel-rapl:0:0/name": "core", "sys/class/powercap/intel-rapl:0:0/energy_uj": "777",
        "sys/class/powercap/intel-rapl:0:0/max_energy_range_uj": "9999999",
        "sys/class/powercap/intel-rapl:1/name": "psys", "sys/class/powercap/intel-rapl:1/energy_uj": "555",
        "sys/class/powercap/intel-rapl:1/max_energy_range_uj": "9999999",
        "proc/stat": f"cpu  {busy} 0 0 1000 0 0 0 {stolen} 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n",
    }  # fmt: skip
    for core in (0, 1):
        where = f"sys/devices/system/cpu/cpu{core}"
        texts[f"{where}/cpufreq/scaling_cur_freq"] = str(clock)
        texts[f"{where}/thermal_throttle/core_throttle_count"] = "3"
        texts[f"{where}/thermal_throttle/package_throttle_count"] = "5"
        texts[f"{where}/topology/physical_package_id"] = "0"
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return folder


def test_what_the_machine_tells_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_state.os, "sysconf", lambda name: 100)
    before = machine_state.read_machine(machine(tmp_path / "before", energy=9_999_000))
    after = machine_state.read_machine(machine(tmp_path / "after", energy=2_000_999, busy=300, stolen=50))
    assert before.clocks_mhz == [2400.0, 2400.0]
    assert before.throttle_events == 3 + 3 + 5  # the package's count stands with each of its cores
    assert before.package_uj == {"intel-rapl:0": (9_999_000, 9_999_999)}  # neither its part nor the platform around it
    after = dataclasses.replace(after, own_s=before.own_s + 1.0, moment=before.moment + 2.0)
    found = machine_state.change(before, after, answers=4, tegra_mw=[4000, 6000])
    assert found["joules_an_answer"] == {"processor_packages": 2_001_999 * 1e-6 / 4, "gpu": None, "jetson_module": 2.5}
    # 2.5 s busy, 1 s of it our own, of 2.5 s that passed on all cores (idle stood still)
    assert found["others_share"] == pytest.approx(1.5 / 2.5) and found["stolen_share"] == pytest.approx(0.5 / 2.5)
    assert found["throttle_events"] == 0


def test_what_the_machine_does_not_tell_is_none(tmp_path: Path) -> None:
    nothing = dataclasses.replace(machine_state.read_machine(tmp_path), gpu=None)
    assert (nothing.clocks_mhz, nothing.throttle_events, nothing.package_uj, nothing.total_s) == (None,) * 4
    found = machine_state.change(nothing, nothing, answers=3)
    assert set(found["joules_an_answer"].values()) == {None}
    assert found["others_share"] is None and found["throttle_events"] is None


def test_a_busy_machine_is_said() -> None:
    assert machine_state.busy_warning(0.1) is None and machine_state.busy_warning(None) is None
    assert "25 %" in str(machine_state.busy_warning(0.25))


def test_a_jetsons_power_is_read() -> None:
    line = "RAM 1/2MB CPU [1%@729] VDD_IN 4810mW/4759mW VDD_CPU_GPU_CV 800mW/790mW\n"
    assert machine_state.tegra_milliwatts(line * 2) == [4810, 4810]
    assert machine_state.tegra_milliwatts("POM_5V_IN 2000/1900 POM_5V_GPU 1/1") == [2000]
    assert machine_state.tegra_milliwatts("nothing") == []


def test_operations_are_those_of_the_closed_form(tmp_path: Path) -> None:
    """A strided grouped convolution, a dense layer and a product of matrices, exported by torch."""
    import torch
    from torch import nn

    class Three(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
            self.dense = nn.Linear(6 * 8 * 8, 10)

        def forward(self, images: Any) -> Any:
            maps = self.convolution(images)
            rows = maps.flatten(2)
            return self.dense(maps.flatten(1)), rows @ rows.transpose(1, 2)

    path = tmp_path / "three.onnx"
    torch.onnx.export(
        Three().eval(), (torch.zeros(1, 4, 16, 16),), str(path), dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}}
    )
    convolution = 2 * 8 * 8 * 6 * (4 // 2 * 9)
    assert arithmetic_of(path).flop == convolution + 2 * 384 * 10 + 2 * 6 * 6 * 64


def test_a_graph_that_cannot_be_counted_says_why() -> None:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Einsum", ["x", "x"], ["y"], equation="ij,kj->ik")], "g", [value], [out])
    found = arithmetic_of(helper.make_model(graph))
    assert found.flop is None and "Einsum" in found.reason


def test_the_ceiling_is_what_a_product_of_matrices_reaches() -> None:
    """Between a hundredth and a hundred times of what the same product takes here, in this process."""
    rng = np.random.default_rng(0)
    a = rng.random((1024, 1024), np.float32)
    started = time.perf_counter()
    for _ in range(3):
        a @ a
    here = 3 * 2 * 1024**3 / (time.perf_counter() - started)
    assert here / 100 < ceiling(1, rounds=2) < here * 100
