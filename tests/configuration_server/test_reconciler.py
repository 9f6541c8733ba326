"""What is noted of an item, from what its agent and its target say, in whatever order that is heard."""

from __future__ import annotations

import msgspec
import pytest

from backhaul.configuration_server.live import LiveItem
from backhaul.configuration_server.reconciler import due_report
from backhaul.configuration_server.records import ItemRecord
from backhaul.recovery.item import ItemState, Report, State
from backhaul.replication.control import ItemReport, ItemStatus, PointStatus
from backhaul.replication.values import Consistency, Fence, Hash, ItemDescriptor, ItemId, StillKind

ITEM = ItemId("ab" * 16)
FIRST, SECOND = Fence(1, 1, 5), Fence(1, 1, 6)
POINT = PointStatus(1, 1, StillKind.STOPPED, Consistency.CRASH, "", False, 0, 2, 3)


def record(state: State) -> ItemRecord:
    return ItemRecord(id=ITEM, state_json=msgspec.json.encode(ItemState(state=state, generation=1)).decode())


def report(state: str, fence: Fence | None = FIRST) -> ItemReport:
    return ItemReport(ITEM, fence, state, "scan", (), 0, 0, 0, 0, 0, "", {})


def status(generation: int = 1, *, point: bool = True) -> ItemStatus:
    """What a target says of the item; of its many fields only these are looked at."""
    descriptor = ItemDescriptor(ITEM, 1, Hash(b"k"), generation, "target", "agent", "machine", ())
    newest = POINT if point else None
    return ItemStatus(ITEM, descriptor, FIRST, True, 9, None, newest, 1, {}, False, False, False, 0, 0, "", (), ())


def due(
    state: State, said: ItemReport, *, compared: Fence | None = None, generation: int = 1, point: bool = True
) -> Report | None:
    return due_report(record(state), LiveItem(said, 1, status(generation, point=point), 1), compared)


@pytest.mark.parametrize("state", [State.INITIAL_REPLICATION, State.REPROTECTING, State.REPROTECTING_TO_CLOUD])
def test_the_first_point_is_the_targets_word(state: State) -> None:
    assert due(state, report("verifying")) is Report.FIRST_POINT
    assert due(state, report("replicating"), point=False) is None
    assert due(state, report("replicating"), generation=2) is None, "of another generation it says nothing of now"


@pytest.mark.parametrize("state", [State.PROTECTED, State.PROTECTED_TO_HOME])
def test_a_report_of_the_first_compare_that_is_heard_after_the_first_point_is_no_new_compare(state: State) -> None:
    assert due(state, report("verifying"), compared=FIRST) is None
    assert due(state, report("verifying", SECOND), compared=FIRST) is Report.CONTINUITY_LOST
    assert due(state, report("verifying")) is Report.CONTINUITY_LOST, "nothing is known of an earlier compare"


@pytest.mark.parametrize("state", [State.VERIFYING, State.VERIFYING_TO_HOME])
def test_a_compare_has_ended_when_its_agent_goes_on(state: State) -> None:
    assert due(state, report("replicating", SECOND), compared=FIRST) is Report.COMPARED
    assert due(state, report("verifying", SECOND), compared=FIRST) is None
    assert due(state, report("replicating", Fence(1, 2, 1))) is None, "of another generation it says nothing of now"
    assert due(state, report("opening", None)) is None
