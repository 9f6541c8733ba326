"""Thinning over a simulated year, with clock steps and daylight saving."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from backhaul.recovery.policies import DAY_S, HOUR_S, ReplicationPolicy
from backhaul.recovery.retention import RetainedPoint, to_drop
from backhaul.replication.values import DEFAULT_TIERS, RetentionTier

S = 1_000_000_000
STEP_S = 1200
BERLIN = ZoneInfo("Europe/Berlin")
NEW_YEAR = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
TIERS = (RetentionTier(2 * HOUR_S, 0), RetentionTier(DAY_S, HOUR_S), RetentionTier(15 * DAY_S, 4 * HOUR_S))
POLICY = ReplicationPolicy(
    "year", point_interval_s=STEP_S, retention_s=15 * DAY_S, retention_points=200, tiers=TIERS
)  # fmt: skip


class Year:
    """A target that makes a point every twenty minutes and thins after each."""

    def __init__(self, policy: ReplicationPolicy = POLICY) -> None:
        self.policy = policy
        self.points: list[RetainedPoint] = []
        self.number = 0

    def run(self, start_s: int, seconds: int, source_ahead_s: int = 0, target_ahead_s: int = 0) -> None:
        for now_s in range(start_s, start_s + seconds, STEP_S):
            self.number += 1
            self.points.append(RetainedPoint(self.number, (now_s + source_ahead_s) * S))
            dropped = set(to_drop(self.points, self.policy, (now_s + target_ahead_s) * S))
            assert self.number not in dropped
            self.points = [point for point in self.points if point.number not in dropped]

    def ages_s(self) -> list[float]:
        return [(self.points[-1].barrier_ns - point.barrier_ns) / S for point in self.points]


def assert_history_is_as_the_policy_says(year: Year) -> None:
    ages = year.ages_s()
    assert max(ages) <= POLICY.retention_s
    assert max(ages) > POLICY.retention_s - 4 * HOUR_S
    assert sorted(age for age in ages if age <= 2 * HOUR_S) == [float(age) for age in range(0, 7201, STEP_S)]
    day = [point for point, age in zip(year.points, ages, strict=True) if 2 * HOUR_S < age <= DAY_S]
    rest = [point for point, age in zip(year.points, ages, strict=True) if age > DAY_S]
    assert set(Counter(point.barrier_ns // (3600 * S) for point in day).values()) == {1}
    assert set(Counter(point.barrier_ns // (4 * 3600 * S) for point in rest).values()) == {1}
    assert len(day) in (22, 23)
    assert len(rest) in (84, 85)


def test_a_year_of_points_keeps_the_history_of_the_policy_through_both_changes_of_the_hour() -> None:
    year = Year()
    months_end = [datetime(2026, month, 28, 12, tzinfo=UTC) for month in range(1, 13)]
    local_offsets = set()
    start_s = NEW_YEAR
    for moment in months_end:
        end_s = int(moment.timestamp())
        year.run(start_s, end_s - start_s)
        start_s = end_s
        local_offsets.add(moment.astimezone(BERLIN).utcoffset())
        assert_history_is_as_the_policy_says(year)
    assert len(local_offsets) == 2  # the year did have both summer and winter time


@pytest.mark.parametrize("change", [(2026, 3, 29), (2026, 10, 25)], ids=["spring", "autumn"])
def test_the_day_on_which_the_hour_changes_has_a_point_in_each_of_its_hours(change: tuple[int, int, int]) -> None:
    midnight = datetime(*change, tzinfo=BERLIN)
    next_midnight = datetime(change[0], change[1], change[2] + 1, tzinfo=BERLIN)
    hours = round((next_midnight.timestamp() - midnight.timestamp()) / 3600)
    assert hours in (23, 25)
    year = Year(
        msgspec.structs.replace(POLICY, tiers=(RetentionTier(2 * HOUR_S, 0), RetentionTier(15 * DAY_S, HOUR_S)))
    )
    year.run(int(midnight.timestamp()) - 86400, 4 * 86400)
    that_day = [
        point for point in year.points if midnight.timestamp() <= point.barrier_ns / S < next_midnight.timestamp()
    ]  # fmt: skip
    assert len(that_day) == len({point.barrier_ns // (3600 * S) for point in that_day}) == hours


def test_a_target_whose_clock_jumps_a_year_ahead_drops_nothing_for_it() -> None:
    year = Year()
    year.run(NEW_YEAR, 20 * 86400)
    before = len(year.points)
    year.run(NEW_YEAR + 20 * 86400, STEP_S, target_ahead_s=365 * 86400)
    assert len(year.points) >= before


def test_a_source_whose_clock_jumps_a_year_ahead_keeps_its_older_points() -> None:
    year = Year()
    year.run(NEW_YEAR, 20 * 86400)
    before = {point.number for point in year.points}
    year.run(NEW_YEAR + 20 * 86400, STEP_S, source_ahead_s=365 * 86400)
    lost = before - {point.number for point in year.points}
    assert len(lost) <= 2


def test_a_source_whose_clock_steps_back_an_hour_loses_no_history() -> None:
    year = Year()
    year.run(NEW_YEAR, 20 * 86400)
    oldest = year.points[0].barrier_ns
    year.run(NEW_YEAR + 20 * 86400, 3 * STEP_S, source_ahead_s=-3600)
    assert year.points[0].barrier_ns == oldest
    year.run(NEW_YEAR + 20 * 86400 + 3 * STEP_S, 86400, source_ahead_s=-3600)
    assert 14.8 * DAY_S < max(year.ages_s()) <= 15 * DAY_S


def test_a_silent_source_keeps_its_history() -> None:
    year = Year()
    year.run(NEW_YEAR, 20 * 86400)
    month_later = (NEW_YEAR + 50 * 86400) * S
    assert len(to_drop(year.points, POLICY, month_later)) <= 1


def test_count_drops_the_oldest_that_is_free() -> None:
    policy = ReplicationPolicy("few", retention_points=3, tiers=())
    points = [RetainedPoint(number, NEW_YEAR * S + number * S, number == 1) for number in range(1, 7)]
    assert to_drop(points, policy, points[-1].barrier_ns) == [2, 3, 4]


def test_pins_are_kept_beyond_age_and_count() -> None:
    policy = ReplicationPolicy("pins", retention_s=60, retention_points=2, tiers=())
    points = [RetainedPoint(number, number * 100 * S, True) for number in range(1, 5)]
    assert to_drop(points, policy, 10**6 * S) == []


def test_nothing_is_dropped_of_nothing_or_of_one() -> None:
    assert to_drop([], POLICY, 0) == []
    assert to_drop([(1, 5, False)], POLICY, 10**30) == []


POINTS = st.lists(st.tuples(st.integers(0, 40 * 86400), st.booleans()), max_size=60)


@given(POINTS, st.integers(0, 80 * 86400), st.sampled_from([TIERS, DEFAULT_TIERS, ()]), st.integers(2, 50))
@settings(deadline=None, max_examples=150)
def test_never_the_newest_nor_a_pin_and_the_same_again(
    raw: list[tuple[int, bool]], now_s: int, tiers: tuple[RetentionTier, ...], count: int
) -> None:
    policy = msgspec.structs.replace(POLICY, tiers=tiers, retention_points=count)
    points = [RetainedPoint(number, at_s * S, pinned) for number, (at_s, pinned) in enumerate(raw)]
    dropped = to_drop(list(reversed(points)), policy, now_s * S)
    assert dropped == sorted(set(dropped))
    kept = [point for point in points if point.number not in dropped]
    assert not points or points[-1] in kept
    assert all(point in kept for point in points if point.pinned)
    free = [point for point in kept[:-1] if not point.pinned]
    assert len(kept) <= count or not free
    again = to_drop(kept, policy, now_s * S)
    assert again == []


def test_the_data_plane_gets_its_part() -> None:
    policy = ReplicationPolicy(
        "day", point_interval_s=30, retention_points=9, tiers=TIERS, freeze_limit_s=1, journal_bytes=4096
    )
    item = policy.for_data_plane()
    assert (item.point_interval_s, item.retention_s, item.retention_points) == (30, DAY_S, 9)
    assert (item.retention_tiers, item.freeze_limit_s, item.journal_bytes) == (TIERS, 1, 4096)
