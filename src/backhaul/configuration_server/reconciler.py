"""Notes what became of desired state: compares what agents and targets say with the items' states, again and again.

Invariant: it only takes reports that the state machine expects, so running it twice, or late, changes nothing more.
One task on the event loop, woken with each round of heartbeats.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from backhaul.configuration_server.errors import ServerSilent
from backhaul.configuration_server.item_way import broken_way
from backhaul.configuration_server.items import state_of, target_of
from backhaul.configuration_server.live import LiveItem
from backhaul.configuration_server.outcomes import note_outcome
from backhaul.configuration_server.plane import ControlPlane
from backhaul.configuration_server.records import ItemRecord
from backhaul.recovery.item import Report, State
from backhaul.replication.control import ItemStatus, Method
from backhaul.replication.errors import BackhaulError
from backhaul.replication.opening import read_target_key
from backhaul.replication.values import Fence

ABSENT_S: Final = 10.0
"""Ten reports: the active machine is away when it made none of them."""

_RUNNING = frozenset({"replicating", "final", "held"})
_HAS_POINTS = frozenset({State.PROTECTED, State.VERIFYING, State.PROTECTED_TO_HOME, State.VERIFYING_TO_HOME})
_log = structlog.get_logger(__name__)


class Reconciler:
    """The noting task."""

    def __init__(self, plane: ControlPlane, every_s: float) -> None:
        self._plane, self._every_s = plane, every_s
        self._moved: dict[str, tuple[int, int]] = {}
        self._broken: dict[str, int] = {}
        self._certificates: dict[str, int] = {}
        self._arrived: dict[str, int] = {}
        """Items whose first recovery point has come, and its barrier (ns), until what that moved is noted."""
        self._compared: dict[str, Fence] = {}
        """The stream that brought an item its first recovery point: whatever was compared in it is compared."""

    def unmoved_since(self, item: str) -> int:
        """When the item's applied position moved last, monotonic nanoseconds; 0: not known."""
        return self._moved.get(item, (0, 0))[1]

    def broken_since(self, item: str) -> int:
        """Since when the item's way is broken, monotonic nanoseconds; 0: it is whole as far as is known."""
        return self._broken.get(item, 0)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.round()
            except BackhaulError as error:
                _log.warning("reconciler.round_failed", code=error.code, reason=error.message)
            await asyncio.sleep(self._every_s)

    async def round(self) -> None:
        """Look at every item once."""
        for record in await asyncio.to_thread(self._plane.items.list):
            await self._look_for_copies(record)
            live = self._plane.live.items.get(record.id)
            if live is None:
                continue
            self._note_progress(record.id, live)
            self._note_way(record)
            event = due_report(record, live, self._compared.get(record.id))
            if event is not None:
                settled = await asyncio.to_thread(self._plane.items.settle, record.id, event, _TEXT[event])
                status = live.status
                if settled and event is Report.FIRST_POINT and status is not None and status.newest_point is not None:
                    self._arrived[record.id] = status.newest_point.barrier_ns
                    self._compared[record.id] = status.fence
            if record.id in self._arrived:
                await self._note_outcome(record, live)
            await self._refresh_key(record)

    async def _look_for_copies(self, record: ItemRecord) -> None:
        only_copies = self._plane.live.only_copies(record.agent, record.machine, ABSENT_S)
        event = due_standby(record, only_copies)
        if event is not None:
            severity = "Warning" if event is Report.COPY_FOUND else "OK"
            await asyncio.to_thread(self._plane.items.settle, record.id, event, _TEXT[event], severity)

    async def _note_outcome(self, record: ItemRecord, live: LiveItem) -> None:
        """What the first replication really moved, beside its estimate."""
        report = live.report
        if report is None or report.fence is None or report.fence.generation != state_of(record).generation:
            return  # the next round looks again
        if report.newest_point_ns < self._arrived[record.id]:
            return  # it was made before the agent heard of the point, so it may not count all that was compared
        del self._arrived[record.id]
        differing = sum(disk.differing for disk in report.disks)
        await asyncio.to_thread(note_outcome, self._plane.jobs, record.id, differing, report.sent_bytes)

    def _note_progress(self, item: str, live: LiveItem) -> None:
        applied = live.status.applied if live.status else 0
        if item not in self._moved or self._moved[item][0] != applied:
            self._moved[item] = (applied, self._plane.vault.clock.monotonic_ns())

    def _note_way(self, record: ItemRecord) -> None:
        """A link that comes back at once is nobody's concern: health tells of one that stays away."""
        if broken_way(self._plane, record):
            self._broken.setdefault(record.id, self._plane.vault.clock.monotonic_ns())
        else:
            self._broken.pop(record.id, None)

    async def _refresh_key(self, record: ItemRecord) -> None:
        """A target's sealing key changes with its certificate; agents must be given the new one."""
        target = target_of(record)
        status = self._plane.live.server(target).status if target else None
        if status is None or not record.target_key:
            return
        if self._certificates.get(record.id) == status.certificate_not_after_ns:
            return
        try:
            answer = await self._plane.links.request(target, Method.TARGET_KEY)
            fresh = read_target_key(self._plane.verifier, answer["key"])
        except (ServerSilent, KeyError):
            return  # the next round asks again
        self._certificates[record.id] = status.certificate_not_after_ns
        try:
            unchanged = read_target_key(self._plane.verifier, record.target_key).public == fresh.public
        except BackhaulError:
            unchanged = False  # it was signed under a certificate that is over
        if not unchanged:
            await asyncio.to_thread(self._plane.items.keep_target_key, record.id, answer["key"])


_TEXT = {
    Report.FIRST_POINT: "It has its first recovery point.",
    Report.CONTINUITY_LOST: "All disks are compared, as not every change since the newest point is known.",
    Report.COMPARED: "Comparing has ended.",
    Report.COPY_FOUND: "Only a copy of the machine reports: its id is another one. It stands by and sends nothing.",
    Report.ACTIVE_RETURNED: "The active machine reports again.",
}


def due_standby(record: ItemRecord, only_copies: bool | None) -> Report | None:
    """What is to be noted of who reports as the item's machine (`Live.only_copies`); None for nothing."""
    state = state_of(record).state
    if only_copies and state in _HAS_POINTS:
        return Report.COPY_FOUND
    if only_copies is False and state in (State.STANDBY, State.STANDBY_TO_HOME):
        return Report.ACTIVE_RETURNED
    return None


def due_report(record: ItemRecord, live: LiveItem, compared: Fence | None = None) -> Report | None:
    """What is to be noted of an item, from what agent and target say; None for nothing. `compared`: a stream whose
    compare is over; a report that tells of it was made before the target's word, and is only heard after it.
    """
    state, status, report = state_of(record), live.status, live.report
    if not _is_of(record, status):
        return None
    if state.state in (State.INITIAL_REPLICATION, State.REPROTECTING, State.REPROTECTING_TO_CLOUD):
        return Report.FIRST_POINT if status is not None and status.newest_point is not None else None
    if report is None or report.fence is None or report.fence.generation != state.generation:
        return None
    protected = state.state in (State.PROTECTED, State.PROTECTED_TO_HOME)
    if protected and report.state == "verifying" and report.fence != compared:
        return Report.CONTINUITY_LOST
    if state.state in (State.VERIFYING, State.VERIFYING_TO_HOME) and report.state in _RUNNING:
        return Report.COMPARED
    return None


def _is_of(record: ItemRecord, status: ItemStatus | None) -> bool:
    """Whether the target's word is of this generation: older ones say nothing about now."""
    return status is None or status.descriptor.generation == state_of(record).generation
