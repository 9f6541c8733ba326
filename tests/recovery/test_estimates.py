"""Estimates hold what happens, and are honest when nothing is known."""

from __future__ import annotations

import random

import hypothesis.strategies as st
import pytest
from hypothesis import given

from backhaul.recovery.errors import EstimateImpossible
from backhaul.recovery.estimates import DiskSample, Range, error_of, estimate
from backhaul.replication.units import GRANULE, MiB


def sample(granules: int, sampled: int, differing: int, ratio: float = 1.0) -> DiskSample:
    return DiskSample(disk="data", granules=granules, sampled=sampled, differing=differing, wire_ratio=ratio)


def test_a_full_comparison_is_exact() -> None:
    result = estimate([sample(1000, 1000, 250, 0.5)], [1000 * MiB], [100 * MiB])
    assert result.data_bytes == Range(250 * GRANULE, 250 * GRANULE, 250 * GRANULE)
    assert result.wire_bytes == Range(125 * GRANULE, 125 * GRANULE, 125 * GRANULE)


def test_a_sample_without_a_difference_does_not_promise_that_there_is_none() -> None:
    result = estimate([sample(100_000, 100, 0)], [1000 * MiB], [100 * MiB])
    assert result.data_bytes.low == result.data_bytes.expected == 0
    assert 0.02 < result.data_bytes.high / (100_000 * GRANULE) < 0.05


def test_a_larger_sample_narrows_the_bounds() -> None:
    widths = []
    for size in (100, 1000, 10_000):
        data = estimate([sample(100_000, size, size // 10)], [1000 * MiB], [100 * MiB]).data_bytes
        widths.append(data.high - data.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[2] < widths[0] / 5


def test_the_bounds_hold_in_about_nineteen_of_twenty_draws() -> None:
    source = random.Random(7)
    truth_count = 600
    disk = [True] * truth_count + [False] * (10_000 - truth_count)
    held = 0
    for _ in range(400):
        drawn = source.sample(disk, 400)
        held += estimate([sample(10_000, 400, sum(drawn))], [MiB], [MiB]).data_bytes.holds(truth_count * GRANULE)
    assert 0.92 * 400 <= held < 400


def test_errors_of_disks_add_in_quadrature() -> None:
    one = estimate([sample(10_000, 400, 200)], [MiB], [MiB]).data_bytes
    four = estimate([sample(10_000, 400, 200)] * 4, [MiB], [MiB]).data_bytes
    assert four.expected == 4 * one.expected
    assert four.high - four.expected == pytest.approx(2 * (one.high - one.expected))


def test_the_slower_of_hashing_and_link_decides_the_time() -> None:
    hashing = estimate([sample(1600, 1600, 16)], [100 * MiB, 10 * MiB], [100 * MiB]).seconds
    assert hashing.expected == pytest.approx(10)
    link = estimate([sample(1600, 1600, 1600)], [1000 * MiB], [10 * MiB]).seconds
    assert link.expected == pytest.approx(10)
    assert link.low < 10 < link.high


def test_a_link_that_varies_widens_the_time() -> None:
    steady = estimate([sample(1600, 1600, 1600)], [1000 * MiB], [10 * MiB] * 5).seconds
    varying = estimate(
        [sample(1600, 1600, 1600)], [1000 * MiB], [5 * MiB, 8 * MiB, 10 * MiB, 12 * MiB, 15 * MiB]
    ).seconds
    assert varying.high - varying.low > 2 * (steady.high - steady.low)


def test_an_empty_disk_takes_nothing() -> None:
    result = estimate([sample(0, 0, 0)], [MiB], [MiB])
    assert (result.data_bytes.high, result.seconds.high) == (0, 0)


@pytest.mark.parametrize(
    ("samples", "hashing", "link"),
    [
        pytest.param([sample(10, 0, 0)], [MiB], [MiB], id="nothing-sampled"),
        pytest.param([sample(10, 11, 0)], [MiB], [MiB], id="more-sampled-than-there-is"),
        pytest.param([sample(10, 5, 6)], [MiB], [MiB], id="more-differing-than-sampled"),
        pytest.param([sample(10, 5, 5, 0.0)], [MiB], [MiB], id="no-compression-ratio"),
        pytest.param([sample(10, 5, 5)], [], [MiB], id="hashing-not-measured"),
        pytest.param([sample(10, 5, 5)], [MiB], [0.0], id="link-cut"),
        pytest.param([sample(10, 5, 5)], [MiB], [float("nan")], id="link-not-a-number"),
    ],
)
def test_nonsense_is_refused(samples: list[DiskSample], hashing: list[float], link: list[float]) -> None:
    with pytest.raises(EstimateImpossible, match="BH-ESTIMATE-IMPOSSIBLE"):
        estimate(samples, hashing, link)


def test_the_error_is_reported_afterwards() -> None:
    estimated = estimate([sample(1600, 1600, 1600)], [1000 * MiB], [10 * MiB])
    error = error_of(estimated, 50 * MiB, 12.0)
    assert error.bytes_error == pytest.approx(-0.5)
    assert error.seconds_error == pytest.approx(0.2)
    assert (error.bytes_within, error.seconds_within) == (False, True)


def test_no_relative_error_of_nothing() -> None:
    assert error_of(estimate([sample(10, 10, 0)], [MiB], [MiB]), 0, 1.0).bytes_error is None


DISKS = st.integers(1, 10_000).flatmap(
    lambda granules: st.integers(1, granules).flatmap(
        lambda sampled: st.builds(
            sample, st.just(granules), st.just(sampled), st.integers(0, sampled), st.floats(0.01, 1.1)
        )
    )
)


@given(st.lists(DISKS, min_size=1, max_size=4), st.lists(st.floats(1e3, 1e10), min_size=1, max_size=5))
def test_bounds_are_in_order_and_possible(samples: list[DiskSample], rates: list[float]) -> None:
    result = estimate(samples, [1e9], rates)
    for figure in (result.data_bytes, result.wire_bytes, result.seconds):
        assert 0 <= figure.low <= figure.expected <= figure.high
    assert result.data_bytes.high <= sum(disk.granules for disk in samples) * GRANULE * 1.000001
    assert result.data_bytes.low * 1.000001 >= sum(disk.differing for disk in samples) * GRANULE
