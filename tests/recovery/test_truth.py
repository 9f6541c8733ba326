"""Which copy is true, and what acting now would lose."""

from __future__ import annotations

import pytest

from backhaul.recovery.item import ItemState, Operation, Side, State
from backhaul.recovery.rpo import PointAge, rpo
from backhaul.recovery.states import Action, Event, Report, step
from backhaul.recovery.truth import truth

S = 1_000_000_000
NOW = 1_800_000_000 * S
PROTECTED: tuple[Event, ...] = (Action.PROTECT, Report.AGENT_READY, Report.FIRST_POINT)
HELD: tuple[Event, ...] = (
    *PROTECTED, Operation.PLANNED_FAILOVER, Report.FINAL_STORED, Report.OFF_UNCONFIRMED,
)  # fmt: skip
FAILED_OVER: tuple[Event, ...] = (*PROTECTED, Operation.UNPLANNED_FAILOVER, Report.STARTED)
COMMITTED: tuple[Event, ...] = (*FAILED_OVER, Operation.COMMIT, Report.COMMITTED)
HOMEWARD: tuple[Event, ...] = (*COMMITTED, Operation.REVERSE_REPLICATE, Report.FIRST_POINT)


def item_after(events: tuple[Event, ...]) -> ItemState:
    item = ItemState()
    for event in events:
        item = step(item, event)
    return item


@pytest.mark.parametrize(
    ("events", "authoritative", "must_not_start", "loss_s"),
    [
        pytest.param((), Side.HOME, (), None, id="discovered"),
        pytest.param(PROTECTED[:2], Side.HOME, (Side.CLOUD,), None, id="initial-replication"),
        pytest.param(PROTECTED, Side.HOME, (Side.CLOUD,), 38.0, id="protected"),
        pytest.param(HELD, Side.HOME, (Side.HOME, Side.CLOUD), 0.0, id="held"),
        pytest.param(FAILED_OVER, Side.CLOUD, (Side.HOME,), None, id="failed-over"),
        pytest.param(COMMITTED, Side.CLOUD, (Side.HOME,), None, id="committed"),
        pytest.param(HOMEWARD, Side.CLOUD, (Side.HOME,), 38.0, id="protected-to-home"),
    ],
)
def test_truth(
    events: tuple[Event, ...], authoritative: Side, must_not_start: tuple[Side, ...], loss_s: float | None
) -> None:
    told = truth(item_after(events), NOW - 38 * S, NOW)
    assert told.authoritative is authoritative
    assert told.must_not_start == must_not_start
    assert told.data_loss_s == loss_s
    assert f"The copy {'at home' if authoritative is Side.HOME else 'in the cloud'} is authoritative." in told.text


def losses(events: tuple[Event, ...], newest_ns: int | None, moved_ns: int | None = None) -> dict[Operation, str]:
    told = truth(item_after(events), newest_ns, NOW, moved_ns)
    return {loss.operation: loss.text for loss in told.losses}


def test_unplanned_failover_says_what_it_loses() -> None:
    assert losses(PROTECTED, NOW - 38 * S)[Operation.UNPLANNED_FAILOVER] == "fail over now: loses 38 s"


def test_an_unknown_newest_point_is_no_loss_of_nothing() -> None:
    told = truth(item_after(PROTECTED), None, NOW)
    assert told.data_loss_s is None
    assert losses(PROTECTED, None)[Operation.UNPLANNED_FAILOVER] == "fail over now: loses an unknown amount"


def test_after_the_move_cancel_loses_what_was_written_since_and_commit_the_old_side() -> None:
    told = losses(FAILED_OVER, NOW, NOW - 600 * S)
    assert told[Operation.CANCEL_FAILOVER] == "loses what was written in the cloud since the move: 600 s"
    assert told[Operation.COMMIT] == "throws away the state kept at home and every other recovery point"


def test_canceling_a_reprotect_loses_nothing() -> None:
    assert Operation.CANCEL_FAILOVER not in losses((*COMMITTED, Operation.REVERSE_REPLICATE), None)


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ((), "throws away nothing: there is no other copy yet"),
        (PROTECTED, "throws away the replica in the cloud and its recovery points"),
        (COMMITTED, "gives up the way back: the old disks at home can no longer be brought up to date"),
        (HOMEWARD, "throws away the recovery points at home; the disks there are given back as they are"),
    ],
)
def test_the_end_of_a_protection_says_what_it_throws_away(events: tuple[Event, ...], text: str) -> None:
    assert losses(events, NOW)[Operation.DISABLE_PROTECTION] == text


def test_exactly_one_side_is_authoritative_and_it_alone_may_run() -> None:
    for state in State:
        for side in Side:
            told = truth(ItemState(state, active_side=side), None, NOW)
            assert told.may_run in (None, told.authoritative)
            assert told.may_run is None or told.may_run not in told.must_not_start


def test_rpo_is_the_age_of_the_newest_point_that_could_be_used() -> None:
    points = [
        PointAge(1, NOW - 90 * S),
        PointAge(2, NOW - 60 * S),
        PointAge(3, NOW - 30 * S, withdrawn=True),
        PointAge(4, NOW, complete=False),
    ]
    measured = rpo(points, NOW)
    assert (measured.seconds, measured.point) == (60.0, 2)
    assert rpo(points, NOW + 5 * S).seconds == 65.0


def test_rpo_is_unknown_without_a_point_or_a_target_that_answers() -> None:
    assert rpo([PointAge(1, NOW, complete=False)], NOW).seconds is None
    silent = rpo([PointAge(1, NOW)], NOW, target_answers=False)
    assert silent.seconds is None
    assert "does not answer" in silent.why


def test_a_clock_that_is_ahead_is_told_and_never_a_negative_age() -> None:
    measured = rpo([PointAge(1, NOW + 7 * S)], NOW)
    assert (measured.seconds, measured.clock_skew_s) == (0.0, 7.0)


def test_a_stepped_clock_does_not_change_which_point_is_newest() -> None:
    assert rpo([PointAge(1, NOW - 10 * S), PointAge(2, NOW - 3600 * S)], NOW).point == 2
