"""Who reports as an item's machine: the active one, only copies of it, or it is not known yet."""

from __future__ import annotations

import msgspec
import pytest

from backhaul.configuration_server.live import MAX_MACHINES, Live
from backhaul.configuration_server.reconciler import ABSENT_S, due_standby
from backhaul.configuration_server.records import ItemRecord
from backhaul.recovery.health import Thresholds
from backhaul.recovery.item import ItemState, Report, State
from backhaul.replication.control import AgentReport

SECOND = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 100 * SECOND

    def wall_ns(self) -> int:
        return self.now

    def monotonic_ns(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def live(clock: Clock) -> Live:
    return Live(clock, Thresholds())


def report(live: Live, machine: str) -> None:
    live.reported(AgentReport("agent", machine, "1", 0, 1, ()), frozenset())


def looked(live: Live) -> bool | None:
    return live.only_copies("agent", "active", ABSENT_S)


def test_nobody_is_a_copy_until_the_active_machine_had_time_to_report(clock: Clock, live: Live) -> None:
    assert looked(live) is None
    report(live, "copy")
    assert looked(live) is None, "this server has only just started"
    clock.now += int(ABSENT_S * SECOND)
    report(live, "copy")
    assert looked(live) is True


def test_a_copy_beside_the_active_machine_changes_nothing(clock: Clock, live: Live) -> None:
    for _ in range(60):
        clock.now += SECOND // 2
        report(live, "active")
        clock.now += SECOND // 2
        report(live, "copy")
        assert looked(live) is False


def test_the_active_machine_alone_that_is_silent_is_no_copy(clock: Clock, live: Live) -> None:
    report(live, "active")
    clock.now += 100 * SECOND
    assert looked(live) is None


def test_a_copy_is_found_when_the_active_machine_is_away_and_it_returns(clock: Clock, live: Live) -> None:
    report(live, "active")
    clock.now += int(ABSENT_S * SECOND)
    report(live, "copy")
    assert looked(live) is True
    report(live, "active")
    assert looked(live) is False


def test_memory_of_machines_is_bounded_and_keeps_the_newest(live: Live) -> None:
    for number in range(3 * MAX_MACHINES):
        report(live, f"machine-{number}")
    assert len(live.machines["agent"]) == MAX_MACHINES
    assert f"machine-{3 * MAX_MACHINES - 1}" in live.machines["agent"]


@pytest.mark.parametrize(
    ("state", "only_copies", "event"),
    [
        (State.PROTECTED, True, Report.COPY_FOUND),
        (State.VERIFYING_TO_HOME, True, Report.COPY_FOUND),
        (State.PROTECTED, False, None),
        (State.PROTECTED, None, None),
        (State.FAILED_OVER, True, None),
        (State.INITIAL_REPLICATION, True, None),
        (State.STANDBY, False, Report.ACTIVE_RETURNED),
        (State.STANDBY_TO_HOME, False, Report.ACTIVE_RETURNED),
        (State.STANDBY, None, None),
        (State.STANDBY, True, None),
    ],
)
def test_what_is_noted_of_it(state: State, only_copies: bool | None, event: Report | None) -> None:
    record = ItemRecord(id="i", state_json=msgspec.json.encode(ItemState(state)).decode())
    assert due_standby(record, only_copies) is event
