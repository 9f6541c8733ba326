"""The agent of a machine: keeps one replicator per item of its assignment running, and reports.

Desired state comes from the configuration server (`Control`), replication goes on while that is away. An assignment
that changes what a replicator is made of (disks, target, generation, process server) starts it anew; opening a new
stream is all that costs. Runs on one event loop; blocking work is in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import msgspec
import structlog

from backhaul import __version__
from backhaul.disks.errors import open_failed
from backhaul.disks.opening import open_disk
from backhaul.links.dialer import Address, Redial
from backhaul.links.identity import TrustVerifier
from backhaul.links.tls import Credentials
from backhaul.mobility.choosing import PlannedStill, for_final
from backhaul.mobility.freezer_client import Freezer
from backhaul.mobility.granule_keys import GranuleKeys
from backhaul.mobility.link import ProcessServerLink
from backhaul.mobility.questions import Questions, Sink
from backhaul.mobility.replicator import Known, Replicator
from backhaul.mobility.stream import Stream
from backhaul.mobility.trackers.contract import TrackedDisk
from backhaul.mobility.trackers.scan import ScanTracker
from backhaul.replication.control import AgentMode, AgentReport, Answer, Assignment, ItemAssignment, ItemReport
from backhaul.replication.errors import BackhaulError
from backhaul.replication.maps import GranuleMap
from backhaul.replication.records import ChunkCodec, Completed
from backhaul.replication.source import SourceSession
from backhaul.replication.values import ItemId

REPORT_S: Final = 1.0
"""How often the agent reports; the newest point's age is shown with this error at most. Answers are told at once."""

FINAL_FREEZE_S: Final = 60.0
"""Limit of the final delta's freeze (design section 8): sent and confirmed by then, or thawed and tried again."""

START_RETRY_S: Final = 2.0
"""How often an item whose disks could not be opened, or whose replicator ended, is started again."""

CONTROL_RETRY_S: Final = 2.0
"""Pause after the configuration server could not be reached. Replication does not wait for it."""

_log = structlog.get_logger(__name__)


class Control(Protocol):
    """The agent's way to the configuration server."""

    async def assignment(self, after: int) -> Assignment:
        """The assignment once its revision is above `after`; waits for it. Raises BackhaulError when out of reach."""
        ...

    async def report(self, report: AgentReport) -> None:
        """Raises BackhaulError when out of reach."""
        ...


@dataclass
class _Running:
    """A replicator with all that ends with it."""

    assignment: ItemAssignment
    replicator: Replicator
    link: ProcessServerLink
    disks: list[TrackedDisk]
    tracker: ScanTracker
    task: asyncio.Task[None]


class Agent:
    """See the module. `run` until cancelled."""

    def __init__(
        self,
        machine: str,
        credentials: Credentials,
        control: Control,
        world: Redial,
        keys: GranuleKeys | None = None,
        sink: Sink | None = None,
        freezer: Freezer | None = None,
    ) -> None:
        """`machine`: its id as hypervisor or cloud reports it (`metadata.read_machine_id`); `keys` None: they are
        forgotten with the agent; `sink` None: the link to the configuration server cannot be tested; `freezer` None:
        it is started by the agent, which is root.
        """
        self.machine = machine
        self._keys = keys or GranuleKeys()
        self._questions = Questions(machine, self._keys.get, self._maps_of, world.clock, world.randomness, sink)
        self._credentials, self._control, self._world = credentials, control, world
        self._freezer = freezer or Freezer()
        self._assignment: Assignment | None = None
        self._adopting = asyncio.Lock()
        self._items: dict[ItemId, _Running] = {}
        self._kept: dict[ItemId, _Running] = {}
        self._standing_by: dict[ItemId, ItemReport] = {}
        self._known: dict[ItemId, Known] = {}
        """What was known of the replica of an item that stands by now."""
        self._failed: dict[ItemId, ItemReport] = {}
        self._links: dict[str, tuple[ProcessServerLink, asyncio.Task[None], list[Address]]] = {}

    async def run(self) -> None:
        """Follow the assignment and report."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow())
                tasks.create_task(self._start_again())
                tasks.create_task(self._report())
        finally:
            await self._questions.close()
            for item in tuple(self._items):
                await self._stop(item)
            for kept in self._kept.values():
                _close(kept.disks)
            await self._hang_up(set(self._links))
            await asyncio.to_thread(self._freezer.close)

    async def _follow(self) -> None:
        while True:
            known = self._assignment.revision if self._assignment else 0
            try:
                assignment = await self._control.assignment(known)
            except BackhaulError as error:
                _log.info("control.out_of_reach", code=error.code, reason=error.message)
                await asyncio.sleep(CONTROL_RETRY_S)
                continue
            async with self._adopting:
                await self._adopt(assignment)
            self._assignment = assignment
            self._questions.take(assignment.questions)

    async def _start_again(self) -> None:
        """What could not be started needs no new assignment: a disk comes back by itself or by people's hands."""
        while True:
            await asyncio.sleep(START_RETRY_S)
            async with self._adopting:
                ended = any(running.task.done() for running in self._items.values())
                if self._assignment is not None and (ended or self._failed):
                    await self._adopt(self._assignment)

    async def _adopt(self, assignment: Assignment) -> None:
        wanted = {
            item.item: item for item in assignment.items if _is_active(item) and assignment.machine == self.machine
        }
        await self._learn_keys(assignment)
        for item in tuple(self._items):
            if item not in wanted or self._must_end(self._items[item], wanted[item]):
                await self._stop(item, keep=item in wanted)
        idle = {item.item for item in assignment.items} - wanted.keys()
        self._known = {item: known for item, known in self._known.items() if item in idle}
        self._standing_by = {item.item: _standby(item.item) for item in assignment.items if item.item not in wanted}
        self._failed = {item: report for item, report in self._failed.items() if item in wanted}
        for item, item_assignment in wanted.items():
            self._link(item_assignment)
            if item not in self._items:
                try:
                    self._items[item] = await self._start(item_assignment)
                except BackhaulError as error:
                    _log.warning("item.not_started", item=item, code=error.code, reason=error.message)
                    self._failed[item] = _standby(item, error)
                    continue
                self._failed.pop(item, None)
            running = self._items[item]
            running.assignment = item_assignment
            if item_assignment.mode is AgentMode.FINAL:
                running.replicator.make_final(item_assignment.generation)

        self._drop_kept(wanted.keys())
        await self._hang_up(self._links.keys() - {item.process_server for item in wanted.values()})

    async def _learn_keys(self, assignment: Assignment) -> None:
        """An item that stands by is asked about under the key it had."""
        keys = {item: key for item, each in self._items.items() if (key := each.replicator.granule_key) is not None}
        await asyncio.to_thread(self._keys.learn, keys, {item.item for item in assignment.items})

    def _maps_of(self, item: ItemId) -> dict[int, GranuleMap]:
        known = self._known.get(item)
        return known.maps if known else {}

    def _drop_kept(self, wanted: Collection[ItemId]) -> None:
        for item in self._kept.keys() - set(wanted):
            _close(self._kept.pop(item).disks)

    async def _hang_up(self, servers: Collection[str]) -> None:
        """End the links to process servers that no item uses any more."""
        tasks = [self._links.pop(server)[1] for server in tuple(servers)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    def _must_end(running: _Running, wanted: ItemAssignment) -> bool:
        """Whether the replicator cannot become what is wanted: it ended, is made of other things, or is final."""
        given_up = running.assignment.mode is AgentMode.FINAL and wanted.mode is not AgentMode.FINAL
        return running.task.done() or given_up or _structure(wanted) != _structure(running.assignment)

    def _link(self, item: ItemAssignment) -> ProcessServerLink:
        addresses = [Address.parse(text) for text in item.process_server_addresses]
        if item.process_server in self._links:
            link, _, known = self._links[item.process_server]
            known[:] = addresses + [address for address in known if address not in addresses]
            return link
        known = addresses
        link = ProcessServerLink(self.machine, item.process_server, lambda: known, self._credentials, self._world)
        self._links[item.process_server] = (link, asyncio.create_task(link.run()), known)
        return link

    async def _start(self, item: ItemAssignment) -> _Running:
        old = self._kept.pop(item.item, None)
        if old is not None and old.assignment.disks == item.disks:
            anew = item.compare and item.generation > old.assignment.generation
            disks, tracker, known = old.disks, old.tracker, Known() if anew else old.replicator.known
        else:
            _close(old.disks if old else [])
            disks = await asyncio.to_thread(_open, item)
            tracker, known = ScanTracker(self._world.clock, self._world.randomness), Known()
        try:
            if tracker.truth is None:
                await asyncio.to_thread(tracker.attach, disks)
            replicator, link, stream = self._make(item, disks, tracker, known)
        except OSError as error:  # a path that vanished since it was opened
            _close(disks)
            raise open_failed(str(error.filename), error) from error
        except BackhaulError:
            _close(disks)
            raise
        await link.join(stream)
        task = asyncio.create_task(replicator.run(), name=f"replicate {item.item}")
        return _Running(item, replicator, link, disks, tracker, task)

    def _make(
        self, item: ItemAssignment, disks: list[TrackedDisk], tracker: ScanTracker, known: Known
    ) -> tuple[Replicator, ProcessServerLink, Stream]:
        credentials, world = self._credentials, self._world
        verifier = TrustVerifier(lambda: credentials.identity.trust, world.clock)
        session = SourceSession(
            item.item, self.machine, item.target_key, credentials.identity, verifier, world.randomness, world.clock
        )
        codec = ChunkCodec()
        link = self._link(item)

        def completed(reply: Completed) -> None:
            replicator.completed(reply)

        stream = Stream(session, link, codec, completed)
        paths = [disk.path for disk in disks]

        def still(final: bool) -> PlannedStill:
            limit_s = FINAL_FREEZE_S if final else item.policy.freeze_limit_s
            running = self._items.get(item.item)
            off = final and running is not None and running.assignment.source_off
            plan = for_final(item.still) if final else item.still
            return PlannedStill(plan, paths, self._freezer, world.clock, limit_s, off)

        replicator = Replicator(stream, disks, tracker, still, item.policy, codec, world.clock, known)
        return replicator, link, stream

    async def _stop(self, item: ItemId, *, keep: bool = False) -> None:
        """`keep` disks, tracker and what is known of the replica, for a replicator that goes on another way."""
        running = self._items.pop(item)
        ended = running.task.done()
        running.link.leave(item)
        running.task.cancel()
        await asyncio.gather(running.task, return_exceptions=True)
        if running.replicator.holds_frozen:  # it is no longer final: a cancel, and the new generation is in force
            await asyncio.to_thread(self._freezer.thaw)
        if keep and not ended:
            self._kept[item] = running
        else:
            self._known[item] = running.replicator.known
            _close(running.disks)

    async def _report(self) -> None:
        while True:
            if self._assignment is not None:
                await self._learn_keys(self._assignment)
            answers = self._questions.untold()
            try:
                await self._control.report(self._report_of_now(answers))
                self._questions.told(answers)
            except BackhaulError as error:
                _log.info("report.not_taken", code=error.code, reason=error.message)
                await asyncio.sleep(REPORT_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_S):
                    await self._questions.answered.wait()

    def _report_of_now(self, answers: tuple[Answer, ...]) -> AgentReport:
        items = [running.replicator.report() for running in self._items.values()]
        return AgentReport(
            agent=self._credentials.identity.peer.id,
            machine=self.machine,
            version=__version__,
            now_ns=self._world.clock.wall_ns(),
            revision=self._assignment.revision if self._assignment else 0,
            items=(*items, *self._standing_by.values(), *self._failed.values()),
            answers=answers,
            answers_questions=True,
        )


def _is_active(item: ItemAssignment) -> bool:
    return item.mode is not AgentMode.STANDBY


def _structure(item: ItemAssignment) -> ItemAssignment:
    """What a running replicator cannot change: all but the mode, what it was started for, where its process server is
    reached, and what the site says of the machine.
    """
    return msgspec.structs.replace(
        item, mode=AgentMode.REPLICATE, process_server_addresses=(), compare=False, source_off=False
    )


def _open(item: ItemAssignment) -> list[TrackedDisk]:
    disks: list[TrackedDisk] = []
    try:
        for source in item.disks:
            path = Path(source.path)
            disks.append(TrackedDisk(source.identity, path, open_disk(path, writable=False)))
    except BackhaulError:
        _close(disks)
        raise
    return disks


def _close(disks: list[TrackedDisk]) -> None:
    for tracked in disks:
        tracked.disk.close()


def _standby(item: ItemId, error: BackhaulError | None = None) -> ItemReport:
    return ItemReport(
        item=item,
        fence=None,
        state="failed" if error else "standby",
        tracker="",
        disks=(),
        newest_point_ns=0,
        newest_epoch=0,
        sent_bytes=0,
        unspooled_bytes=0,
        frozen_us=0,
        code=error.code if error else "",
        params=error.plain_params() if error else {},
    )
