"""Which steps make which job. The tables are the workflows: what runs them only strings them together.

Invariant: every effect lies in a step, and every step may be repeated; tests place a kill before and after each
effect of each step of these tables. Preflight comes first, whole, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from backhaul.configuration_server.lifecycle import (
    canceling,
    changing_point,
    committing,
    ending,
    estimating,
    integrity,
    moving,
    reprotecting,
    resyncing,
)
from backhaul.configuration_server.lifecycle.ending import DISABLE, ENDING, MIGRATED, PURGE
from backhaul.configuration_server.lifecycle.errors import LifecycleUnknown
from backhaul.configuration_server.lifecycle.estimating import Outlook
from backhaul.configuration_server.lifecycle.facts import NOTHING, gather
from backhaul.configuration_server.lifecycle.ports import Ports
from backhaul.configuration_server.lifecycle.steps import detail, require_allowed
from backhaul.configuration_server.lifecycle.values import Ids, Item
from backhaul.recovery import preflight
from backhaul.recovery.findings import Checklist, Finding, require
from backhaul.recovery.item import Action, Operation
from backhaul.recovery.preflight_facts import ItemFacts
from backhaul.recovery.states import is_repeat

PLANNED: Final = "PlannedFailover"
UNPLANNED: Final = "UnplannedFailover"
CHANGE_POINT: Final = "ChangePit"
COMMIT: Final = "Commit"
CANCEL: Final = "CancelFailover"
REPROTECT: Final = "ReverseReplicate"
PROTECT: Final = "EnableProtection"
RESYNC: Final = "RepairReplication"
REBIND: Final = "Rebind"
"""Kinds of jobs, named as Site Recovery names its operations."""

WITHOUT_SITES: Final = ENDING | {RESYNC, REBIND}
"""Kinds that an item may have of whose sites nothing is known: it was protected without them."""


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a job. `run` answers what it did as JSON, or nothing; it may be called again after any failure."""

    name: str
    title: str
    run: Callable[[Ports, Ids], str]


def findings_before(ports: Ports, item: Item, kind: str) -> list[Finding]:
    """All findings before a job of this kind, passes included. Changes nothing. Raises LifecycleUnknown."""
    return look_before(ports, item, kind)[0]


def look_before(ports: Ports, item: Item, kind: str) -> tuple[list[Finding], Outlook | None]:
    """As `findings_before`, and the estimate of what will be moved, where the kind has one."""
    if kind not in WITHOUT_SITES:
        require_sites(item)
    if kind in _CHECKED and is_repeat(item.state, _CHECKED[kind][0]):
        return [], None  # its checks were passed when it was begun, and would judge the middle of it now
    if kind == REPROTECT:
        outlook = estimating.before_reprotect(ports, item)
        needed = outlook.estimate.data_bytes if outlook.estimate else NOTHING
        return preflight.REPROTECT.run(gather(ports, item, Operation.REVERSE_REPLICATE, needed)), outlook
    if kind == PLANNED and item.active is item.cloud:
        return preflight.FAILBACK.run(gather(ports, item, Operation.FAILBACK)), None
    if kind in ENDING:
        checks = preflight.DISABLE if kind == DISABLE else preflight.FORGET
        return checks.run(gather(ports, item, ending.operation_of(kind, item))), None
    operation, checks = _CHECKED[kind]
    return checks.run(gather(ports, item, operation)), None


_CHECKED: Final[Mapping[str, tuple[Operation | Action, Checklist[ItemFacts]]]] = {
    PROTECT: (Action.PROTECT, preflight.PROTECT),
    PLANNED: (Operation.PLANNED_FAILOVER, preflight.PLANNED_FAILOVER),
    UNPLANNED: (Operation.UNPLANNED_FAILOVER, preflight.UNPLANNED_FAILOVER),
    CHANGE_POINT: (Operation.CHANGE_PIT, preflight.CHANGE_POINT),
    COMMIT: (Operation.COMMIT, preflight.COMMIT),
    CANCEL: (Operation.CANCEL_FAILOVER, preflight.CANCEL),
    RESYNC: (Operation.REPAIR_REPLICATION, preflight.RESYNC),
    REBIND: (Action.REBIND, preflight.REBIND),
}


def findings_before_protect(ports: Ports, item: Item) -> list[Finding]:
    """As `findings_before`, also for a machine that is protected without its sites."""
    operation, checks = _CHECKED[PROTECT]
    return checks.run(gather(ports, item, operation))


def require_sites(item: Item) -> None:
    """Raises LifecycleUnknown for an item that was protected without its sites: it cannot be moved."""
    if not item.home.site:
        raise LifecycleUnknown(item=item.name, reason="its sites are not known")


def _preflight(kind: str, refuses: Operation | Action | None = None) -> Step:
    """`refuses`: what the state forbids is raised as such, with its own reason, before anything is asked."""

    def run(ports: Ports, ids: Ids) -> str:
        item = ports.items.load(ids.item)
        if ids.token("begin") in item.done:  # repeated by a kill, it would find the job that it belongs to
            return ""
        if refuses is not None:
            require_allowed(item, refuses)
        ports.servers.settle()
        findings, outlook = look_before(ports, item, kind)
        require(findings, kind)
        if outlook is None:
            return ""
        return detail(estimate=outlook.shown(), estimated=msgspec.to_builtins(outlook.estimate))

    return Step("preflight", "Check what the job needs", run)


def _ending(kind: str) -> tuple[Step, ...]:
    """How an ending begins."""

    def check(ports: Ports, ids: Ids) -> str:
        ending.check(ports, ids, kind)
        return _preflight(kind).run(ports, ids)

    return (
        Step("preflight", "Check what the job needs", check),
        Step("begin", "Begin to end the protection", lambda ports, ids: ending.begin_ending(ports, ids, kind)),
        Step("agent", "Have the agent send nothing", ending.stop_agent),
    )


_LAYERS: Final = Step("layers", "Make writable layers over the replica", moving.make_layers)
_START: Final = Step("start", "Start the machine", moving.start_machine)
_REPLICATE: Final = (
    Step("attach", "Hand the other side's disks to its master target", reprotecting.attach_disks),
    Step("replica", "Create the replica", reprotecting.create_replica),
    Step("pin", "Keep the disks' state before", reprotecting.pin_before),
    Step("assign", "Tell the agent", reprotecting.assign_agent),
)
_ENDED: Final = (
    Step("ended", "Note that the protection has ended", ending.ended),
    Step("forget", "Forget the item", ending.forget_item),
)
_COMPARE: Final = (
    Step("doubt", "Have the replica read back", resyncing.doubt_replica),
    Step("assign", "Tell the agent to compare", resyncing.assign_agent),
)

WORKFLOWS: Final[Mapping[str, tuple[Step, ...]]] = {
    PLANNED: (
        _preflight(PLANNED),
        Step("begin", "Begin the move", moving.begin_planned),
        Step("stop-source", "Power the source off", moving.stop_source),
        Step("final", "Make the final recovery point", moving.final_point),
        Step("fence", "Read back that the source is off", moving.fence_source),
        Step("promote", "Hand the item over to its replica", moving.promote),
        _LAYERS,
        Step("compare", "Compare both sides before the start", integrity.compare_before_start),
        _START,
        Step("prove", "Read both sides whole and sign the integrity report", integrity.prove),
    ),
    UNPLANNED: (
        _preflight(UNPLANNED),
        Step("begin", "Begin the move without the source", moving.begin_unplanned),
        Step("promote", "Hand the item over to its replica", moving.promote),
        Step("point", "Go to the chosen recovery point", moving.go_to_point),
        _LAYERS,
        _START,
        Step("stop-old", "Power the old machine off where possible", moving.stop_old_if_possible),
    ),
    CHANGE_POINT: (
        _preflight(CHANGE_POINT, Operation.CHANGE_PIT),
        Step("begin", "Leave the present recovery point", changing_point.begin_change),
        Step("drop", "Power off and drop the layers", changing_point.drop_machine),
        Step("mark", "Note where the replica is", changing_point.mark),
        Step("point", "Go to the chosen recovery point", changing_point.go_there),
        Step("unmark", "Forget the note", changing_point.unmark),
        _LAYERS,
        _START,
        Step("reached", "Note that the point is reached", changing_point.point_reached),
    ),
    COMMIT: (
        Step("accept", "Accept the integrity report by name, if told to", committing.accept_integrity),
        Step("prove", "Make the integrity report, if the move could not", integrity.prove),
        _preflight(COMMIT),
        Step("begin", "Begin the commit", committing.begin_commit),
        Step("hand-out", "Give up recovery points and the replica", committing.hand_out),
        Step("merge", "Make the layers the machine's disks", committing.merge_layers),
        Step("remove-old", "Remove the cloud machine after a failback", committing.remove_old_machine),
        Step("committed", "Note that the move is committed", committing.committed),
    ),
    CANCEL: (
        _preflight(CANCEL, Operation.CANCEL_FAILOVER),
        Step("begin", "Begin the cancel", canceling.begin_cancel),
        Step("fence", "Raise the generation at the target", canceling.fence_target),
        Step("drop", "Drop the new side's machine and layers", canceling.drop_machine),
        Step("mark", "Note where the replica is", canceling.mark),
        Step("return", "Bring the replica back to its state before", canceling.go_back),
        Step("release", "Release what was kept for the cancel", canceling.release),
        Step("give-back", "Give the old disks back to the old machine", canceling.give_disks_back),
        Step("resume", "Let the machine before run and replicate", canceling.resume_source),
        Step("canceled", "Note that the item is as before", canceling.canceled),
    ),
    REPROTECT: (
        _preflight(REPROTECT),
        Step("begin", "Begin to replicate the other way", reprotecting.begin_reprotect),
        *_REPLICATE,
    ),
    PROTECT: (
        _preflight(PROTECT),
        Step("begin", "Begin to protect the machine", reprotecting.begin_protect),
        *_REPLICATE,
    ),
    RESYNC: (
        _preflight(RESYNC, Operation.REPAIR_REPLICATION),
        Step("begin", "Begin to compare", resyncing.begin_resync),
        *_COMPARE,
    ),
    REBIND: (
        _preflight(REBIND, Action.REBIND),
        Step("begin", "Bind the item to the machine that is named", resyncing.begin_rebind),
        *_COMPARE,
    ),
    DISABLE: (
        *_ending(DISABLE),
        Step("fence", "Raise the generation at the target", ending.fence_replica),
        Step("replica", "Throw the replica away", ending.forget_replica),
        Step("disks", "Delete disks made for it, give back others", ending.clear_disks),
        *_ENDED,
    ),
    MIGRATED: (*_ending(MIGRATED), *_ENDED),
    PURGE: (*_ending(PURGE), *_ENDED),
}
