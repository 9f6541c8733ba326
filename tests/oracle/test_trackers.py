"""The oracle tells trackers apart: the right one is never flagged, each broken one is caught."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backhaul.demo.oracle import Barrier, CheckReport
from backhaul.demo.oracle.checker import judge
from backhaul.demo.oracle.simulated_trackers import (
    CutTracker,
    LateTracker,
    LosingTracker,
    SubmissionOnlyTracker,
    simulate,
)


def reports(tracker: CutTracker, seed: int) -> list[CheckReport]:
    history, points = simulate(tracker, seed)
    return [judge(history, point.contents, Barrier.at_ns(point.barrier_ns)) for point in points]


@given(seed=st.integers(0, 2**64 - 1))
@settings(max_examples=400, deadline=None)
def test_the_right_tracker_is_never_flagged(seed: int) -> None:
    for report in reports(CutTracker(), seed):
        assert report.ok, report.text()


def test_its_points_hold_something() -> None:
    assert sum(reports(CutTracker(), seed)[-1].contained for seed in range(20)) > 200


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(SubmissionOnlyTracker, id="marks at submission only"),
        pytest.param(LosingTracker, id="marks lost at the swap"),
        pytest.param(LateTracker, id="one disk's barrier late"),
    ],
)
def test_each_broken_tracker_is_caught(broken: type[CutTracker]) -> None:
    caught = sum(any(not report.ok for report in reports(broken(), seed)) for seed in range(60))
    assert caught >= 5  # the seeds are fixed, so it is always the same number: 11 for the swap, more for the others
