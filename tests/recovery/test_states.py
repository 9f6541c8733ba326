"""The state machine, walked exhaustively and at random."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from backhaul.recovery.errors import OperationRefused
from backhaul.recovery.item import CLOUD_ACTIVE, ENDED, MEANING
from backhaul.recovery.refusals import PHASES, REASONS
from backhaul.recovery.states import (
    TABLE,
    Action,
    Event,
    Integrity,
    ItemState,
    Operation,
    Report,
    Side,
    State,
    allowed_operations,
    refusal,
    refused_operations,
    step,
)

EVENTS: tuple[Event, ...] = (*Operation, *Action, *Report)
LEAVING = {Operation.PLANNED_FAILOVER, Operation.UNPLANNED_FAILOVER, Operation.FAILBACK, Operation.REVERSE_REPLICATE}
RESTING = {
    State.PROTECTED, State.VERIFYING, State.STANDBY, State.FAILED_OVER_COMMITTED, State.PROTECTED_TO_HOME,
    State.VERIFYING_TO_HOME, State.STANDBY_TO_HOME, State.FAILED_BACK_COMMITTED,
}  # fmt: skip


def same_generation(item: ItemState) -> ItemState:
    """The item with every generation set to 1, so that a finite number of items is left."""
    before = same_generation(item.before) if item.before else None
    return msgspec.structs.replace(item, generation=1, before=before)


def every_item() -> list[ItemState]:
    """All items that can be reached, whatever happens in whatever order."""
    found = {ItemState(): None}
    todo = [ItemState()]
    while todo:
        item = todo.pop()
        for event in EVENTS:
            if refusal(item, event) is None:
                after = same_generation(step(item, event))
                if after not in found:
                    found[after] = None
                    todo.append(after)
    return list(found)


ITEMS = every_item()


def walk(item: ItemState, *events: Event) -> ItemState:
    for event in events:
        item = step(item, event)
    return item


PROTECT = (Action.PROTECT, Report.AGENT_READY, Report.FIRST_POINT)
PLANNED = (Operation.PLANNED_FAILOVER, Report.FINAL_STORED, Report.OFF_CONFIRMED, Report.STARTED)
COMMIT = (Report.INTEGRITY_PASSED, Operation.COMMIT, Report.COMMITTED)
REPROTECT = (Operation.REVERSE_REPLICATE, Report.FIRST_POINT)
FAILBACK = (Operation.FAILBACK, Report.FINAL_STORED, Report.OFF_CONFIRMED, Report.STARTED)


def test_every_state_is_reached() -> None:
    assert {item.state for item in ITEMS} == set(State)


def test_every_state_has_a_meaning_and_a_phase() -> None:
    assert set(MEANING) == set(PHASES) == set(State)


def test_every_row_of_the_table_is_taken() -> None:
    taken = {(item.state, event) for item in ITEMS for event in EVENTS if refusal(item, event) is None}
    assert taken == set(TABLE)


def test_every_operation_is_possible_or_has_a_reason() -> None:
    for item in ITEMS:
        for event in EVENTS:
            reason = refusal(item, event)
            if reason is None:
                step(item, event)
                continue
            assert reason.code.startswith("BH-REFUSED-")
            assert reason.text
            assert reason.fix
            with pytest.raises(OperationRefused) as refused:
                step(item, event)
            assert refused.value.reason is reason
            assert refused.value.advice == reason.fix
            assert reason.code in str(refused.value)


def test_every_reason_is_given_somewhere() -> None:
    given = {reason.code for item in ITEMS for event in EVENTS if (reason := refusal(item, event))}
    assert given == set(REASONS)


def test_allowed_and_refused_operations_are_the_whole_enumeration() -> None:
    for item in ITEMS:
        assert {*allowed_operations(item), *refused_operations(item)} == set(Operation)
        assert not {*allowed_operations(item)} & {*refused_operations(item)}


def test_active_side_belongs_to_the_state() -> None:
    for item in ITEMS:
        if item.state not in ENDED:
            assert (item.active_side is Side.CLOUD) == (item.state in CLOUD_ACTIVE), item


def test_what_cancel_returns_to_is_at_most_two_deep() -> None:
    def depth(item: ItemState) -> int:
        return 1 + depth(item.before) if item.before else 0

    assert {depth(item) for item in ITEMS} == {0, 1, 2}


def test_whatever_can_be_canceled_returns_to_exactly_the_state_before() -> None:
    allowed = [item for item in ITEMS if Operation.CANCEL_FAILOVER in allowed_operations(item)]
    again = [item for item in allowed if item.state.startswith("canceling")]
    assert again
    assert all(step(item, Operation.CANCEL_FAILOVER) == item for item in again)
    cancelable = [item for item in allowed if item not in again]
    for item in cancelable:
        assert item.before is not None
        back = walk(item, Operation.CANCEL_FAILOVER, Report.CANCELED)
        generation = item.generation + 1
        assert back == msgspec.structs.replace(item.before, generation=generation, resync_required=item.resync_required)
    uncommitted = {item for item in ITEMS if item.old_side_kept and not item.state.startswith("canceling")}
    reprotecting = {item for item in ITEMS if item.state.startswith("reprotecting") and item.before}
    assert uncommitted | reprotecting <= set(cancelable)


def test_the_side_that_may_run_changes_directly_only_when_the_source_is_given_up() -> None:
    for item in ITEMS:
        for event in EVENTS:
            if refusal(item, event) is not None:
                continue
            after = step(item, event)
            if item.may_run and after.may_run and item.may_run is not after.may_run:
                assert event is Operation.UNPLANNED_FAILOVER, (item, event)
            if after.active_side is not item.active_side:
                assert after.generation == item.generation + 1, (item, event)


def test_a_planned_move_starts_nothing_before_power_off_is_confirmed() -> None:
    held = walk(ItemState(), *PROTECT, *PLANNED[:2], Report.OFF_UNCONFIRMED)
    assert held.state is State.HELD
    assert held.may_run is None
    assert allowed_operations(held) == (
        Operation.PLANNED_FAILOVER, Operation.UNPLANNED_FAILOVER, Operation.CANCEL_FAILOVER,
    )  # fmt: skip
    assert step(held, Operation.PLANNED_FAILOVER).state is State.FENCING
    gone = step(held, Operation.UNPLANNED_FAILOVER)
    assert (gone.active_side, gone.generation) == (Side.CLOUD, held.generation + 1)


def test_round_trip_ends_protected_with_a_risen_generation() -> None:
    item = walk(ItemState(), *PROTECT, *PLANNED, *COMMIT, *REPROTECT, *FAILBACK, *COMMIT, *REPROTECT)
    assert item == ItemState(State.PROTECTED, generation=3)


def test_a_canceled_failback_can_still_cancel_the_reprotect() -> None:
    failed_back = walk(ItemState(), *PROTECT, *PLANNED, *COMMIT, *REPROTECT, *FAILBACK)
    item = walk(failed_back, Operation.CANCEL_FAILOVER, Report.CANCELED)
    assert item.state is State.PROTECTED_TO_HOME
    item = walk(item, Operation.CANCEL_FAILOVER, Report.CANCELED)
    assert item == ItemState(State.FAILED_OVER_COMMITTED, generation=5, active_side=Side.CLOUD)


def test_cancel_given_up_by_name_is_refused_with_its_reason() -> None:
    item = walk(ItemState(), *PROTECT, *PLANNED, *COMMIT, Action.REPROTECT_WITHOUT_CANCEL)
    reason = refusal(item, Operation.CANCEL_FAILOVER)
    assert reason is not None
    assert reason.code == "BH-REFUSED-CANCEL-GIVEN-UP"


@pytest.mark.parametrize(
    ("report", "code"),
    [
        pytest.param(None, "BH-REFUSED-INTEGRITY-PENDING", id="pending"),
        pytest.param(Report.INTEGRITY_FAILED, "BH-REFUSED-INTEGRITY-FAILED", id="failed"),
    ],
)
def test_commit_waits_for_the_integrity_report(report: Report | None, code: str) -> None:
    item = walk(ItemState(), *PROTECT, *PLANNED)
    item = step(item, report) if report else item
    reason = refusal(item, Operation.COMMIT)
    assert reason is not None
    assert reason.code == code
    accepted = step(item, Action.ACCEPT_INTEGRITY)
    assert accepted.integrity is Integrity.ACCEPTED
    assert step(accepted, Operation.COMMIT).state is State.COMMITTING_FAILOVER


def test_change_of_point_is_possible_before_commit_only() -> None:
    states = {item.state for item in ITEMS if Operation.CHANGE_PIT in allowed_operations(item)}
    again = {State.CHANGING_POINT, State.FAILBACK_CHANGING_POINT}
    assert states - again == {State.FAILED_OVER, State.FAILED_BACK}
    assert again <= states


def test_required_resync_refuses_a_final_delta_but_no_unplanned_failover() -> None:
    item = walk(ItemState(), *PROTECT, Report.RESYNC_NEEDED)
    assert Operation.UNPLANNED_FAILOVER in allowed_operations(item)
    reason = refusal(item, Operation.PLANNED_FAILOVER)
    assert reason is not None
    assert reason.code == "BH-REFUSED-RESYNC-FIRST"
    resynced = walk(item, Operation.REPAIR_REPLICATION, Report.COMPARED)
    assert resynced == walk(ItemState(), *PROTECT)


def test_what_this_version_cannot_do_is_offered_in_no_state() -> None:
    for item in ITEMS:
        for operation in (Operation.TEST_FAILOVER, Operation.TEST_FAILOVER_CLEANUP):
            reason = refusal(item, operation)
            assert reason is not None
            assert reason.code == "BH-REFUSED-NOT-IN-THIS-VERSION"


def test_what_did_not_end_may_be_asked_for_again() -> None:
    protected = walk(ItemState(), *PROTECT)
    for operation in (Operation.REPAIR_REPLICATION, Operation.DISABLE_PROTECTION):
        begun = step(protected, operation)
        assert step(begun, operation) == begun
    standing_by = step(protected, Report.COPY_FOUND)
    moving = step(protected, Operation.PLANNED_FAILOVER)
    canceling = step(moving, Operation.CANCEL_FAILOVER)
    assert step(moving, Operation.PLANNED_FAILOVER) == moving
    assert step(canceling, Operation.CANCEL_FAILOVER) == canceling
    bound = step(standing_by, Action.REBIND)
    assert step(bound, Action.REBIND) == bound


def test_an_item_can_be_given_up_before_anything_was_copied() -> None:
    assert walk(ItemState(), Operation.DISABLE_PROTECTION, Report.PROTECTION_ENDED).state is State.DISABLED


def test_state_survives_storage() -> None:
    for item in ITEMS:
        assert msgspec.json.decode(msgspec.json.encode(item), type=ItemState) == item


class Walk(RuleBasedStateMachine):
    """Any events in any order, against a model that knows only what design section 8 says."""

    def __init__(self) -> None:
        super().__init__()
        self.item = ItemState()
        self.returns_to: list[ItemState] = []

    def possible(self) -> Iterator[Event]:
        return (event for event in EVENTS if refusal(self.item, event) is None)

    @rule(data=st.data())
    def anything_possible(self, data: st.DataObject) -> None:
        events = list(self.possible())
        if events:
            self.take(data.draw(st.sampled_from(events)))

    @rule(event=st.sampled_from(EVENTS))
    def anything_at_all(self, event: Event) -> None:
        if refusal(self.item, event) is None:
            self.take(event)
        else:
            with pytest.raises(OperationRefused):
                step(self.item, event)

    def take(self, event: Event) -> None:
        before, after = self.item, step(self.item, event)
        self.item = after
        assert after.generation >= before.generation
        if event is Operation.CANCEL_FAILOVER and before.state.startswith("canceling"):
            assert after == before, "the same cancel, under the generation that it has raised"
            return
        canceled = event is Operation.CANCEL_FAILOVER
        assert (after.generation > before.generation) >= (canceled or after.active_side is not before.active_side)
        if before.old_side_kept and not after.old_side_kept:
            assert event in (Operation.COMMIT, Report.CANCELED)
        if event in LEAVING and before.state in RESTING:
            self.returns_to.append(before)
        if event is Report.CANCELED:
            expected = self.returns_to.pop()
            for field in ("state", "active_side", "old_side_kept", "integrity", "before"):
                assert getattr(after, field) == getattr(expected, field)
            assert after.generation > expected.generation
        if after.before is None:
            self.returns_to.clear()

    @invariant()
    def cancel_returns_to_what_was_left(self) -> None:
        assert self.item.before == (self.returns_to[-1] if self.returns_to else None)

    @invariant()
    def the_kept_side_is_not_the_one_that_runs(self) -> None:
        if self.item.old_side_kept:
            assert self.item.before is not None
            if not self.item.state.startswith("canceling"):
                assert self.item.active_side is self.item.before.active_side.other


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
