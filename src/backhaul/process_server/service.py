"""The process server's tasks: connections, the one writer, the senders.

Invariant: all calls of the spool run in one worker thread, all of the relay on the event loop; entries reach the
spool in the order in which the relay decided them. The writer takes all that has arrived, has it written and synced
at once, and only then are the acknowledgements sent. While it writes, the next batch gathers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec
import structlog

from backhaul.links.connection import Connection
from backhaul.links.errors import LinkLost
from backhaul.process_server.errors import MethodUnknown, PeerTooSlow, SpoolWriteFailed
from backhaul.process_server.events import (
    Close,
    Command,
    Connected,
    Control,
    Disconnected,
    Dropped,
    Event,
    Forget,
    Forward,
    Free,
    Measured,
    Purge,
    Received,
    Send,
    SpaceReturned,
    Store,
    Stored,
    StoreFailed,
    Wake,
)
from backhaul.process_server.health import Monitor
from backhaul.process_server.recent import Payload, RecentPayloads
from backhaul.process_server.records import RecordKind
from backhaul.process_server.relay import Relay
from backhaul.process_server.spool import Entry, Space, Spool
from backhaul.replication import messages as m
from backhaul.replication.errors import BackhaulError
from backhaul.replication.units import MiB
from backhaul.replication.values import Fence, ItemId

BATCH: Final = 8 * MiB
"""Most payload of one write: some milliseconds of a disk, so that acknowledgements do not wait long."""

PENDING: Final = 64 * MiB
"""Received and not yet stored, of all agents; above it no further frame is taken from any connection."""

RECENT: Final = 64 * MiB
"""Stored and kept in memory for forwarding."""

FORWARD: Final = 2 * MiB
"""Payload sent to a target at once, before the next item has its turn (one frame where frames are larger)."""

OUTBOX: Final = 8192
"""Messages that wait for a peer. They are small and cumulative; one that does not read so many is cut off."""

TICK_S: Final = 1.0
RETRY_S: Final = 2.0
"""How often a spool that cannot be written is tried: space comes back by people's hands, not in milliseconds."""

T = TypeVar("T")
Handler = Callable[[m.Request], Any]
_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Link:
    number: int
    connection: Connection
    outbox: deque[m.Message] = field(default_factory=deque)
    awake: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class _Batch:
    """What one visit to the spool's thread brought."""

    positions: dict[ItemId, tuple[Fence, int]]
    failed: SpoolWriteFailed | None
    dropped: dict[ItemId, str]
    space: Space


class Service:
    """Runs until cancelled, or until a failed sync ends it."""

    def __init__(self, relay: Relay, spool: Spool, monitor: Monitor, configure: Handler) -> None:
        self._relay = relay
        self._spool = spool
        self._monitor = monitor
        self._configure = configure
        self._thread = ThreadPoolExecutor(1, "spool")
        self._links: dict[int, _Link] = {}
        self._numbers = 0
        self._queue: deque[Store | Free | Forget] = deque()
        self._pending_bytes = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._recent = RecentPayloads(relay.items, RECENT)
        self._closing: set[asyncio.Task[None]] = set()
        self.space = spool.space()

    async def run(self) -> None:
        """Store, measure and retry. Raises SpoolSyncFailed: the process must end."""
        tasks = [asyncio.create_task(work) for work in (self._write(), self._tick(), self._retry())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def stop(self, *, clean: bool) -> None:
        """End the spool's thread; `clean`: write down what is applied (never after a failed sync)."""
        if clean:
            try:
                await self._in_spool(self._spool.close)
            except SpoolWriteFailed as error:  # a restart then sends again what is applied already: harmless
                _log.warning("spool.not_closed", reason=error.message)
        self._thread.shutdown()

    # Connections

    async def serve(self, connection: Connection) -> None:
        """One connection that has been greeted, until it ends."""
        self._numbers += 1
        link = _Link(self._numbers, connection)
        self._links[link.number] = link
        sender = asyncio.create_task(self._send(link))
        self._do(Connected(link.number, connection.peer.role, connection.peer.id))
        try:
            while link.number in self._links:
                received = await connection.receive()
                await self._room.wait()
                self._monitor.in_bytes += len(received.payload)
                self._do(Received(link.number, received))
        except LinkLost as error:
            _log.info("connection.ended", peer=connection.peer.name, reason=error.message)
        finally:
            self._links.pop(link.number, None)
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            self._do(Disconnected(link.number))
            await asyncio.gather(*self._closing, return_exceptions=True)

    async def _send(self, link: _Link) -> None:
        """Everything that goes to one peer: what waits in its outbox first, then frames, as far as it reads."""
        try:
            while True:
                await link.awake.wait()
                link.awake.clear()
                await self._send_waiting(link)
                while (forward := self._relay.take(link.number, FORWARD)) is not None:
                    await self._forward(link, forward)
                    await self._send_waiting(link)
        except LinkLost:
            pass  # the receiving side ends the connection
        except Exception:
            _log.exception("connection.sender_failed", peer=link.connection.peer.name)
            link.connection.abort()

    async def _send_waiting(self, link: _Link) -> None:
        while link.outbox:
            waiting = tuple(link.outbox)
            link.outbox.clear()
            await link.connection.send_many(waiting)

    async def _forward(self, link: _Link, forward: Forward) -> None:
        found = self._recent.take(forward)
        while len(found) < forward.count:
            first = forward.first + len(found)
            read, dropped = await self._in_spool(self._read, forward.item, forward.fence, first)
            found += read[: forward.count - len(found)]
            if dropped:
                self._do(Dropped(dropped))
            if not read or not self._relay.is_current(forward):
                break
        if found and self._relay.is_current(forward):
            await link.connection.send_many(
                [_frame(forward, number, *payload) for number, payload in enumerate(found, forward.first)]
            )
            self._monitor.out_bytes += sum(len(payload) for payload, _ in found)

    def _read(self, item: ItemId, fence: Fence, first: int) -> tuple[Sequence[Payload], dict[ItemId, str]]:
        return self._spool.read(item, fence, first, FORWARD), self._spool.take_dropped()

    # The relay's commands

    def _do(self, event: Event) -> None:
        for command in self._relay.handle(event):
            self._execute(command)

    def _execute(self, command: Command) -> None:
        match command:
            case Store():
                self._queue.append(command)
                self._add_pending(len(command.entry.payload))
                self._arrived.set()
            case Free() | Forget():
                self._queue.append(command)
                self._arrived.set()
            case Send():
                self._post(command.connection, command.message)
            case Wake():
                link = self._links.get(command.connection)
                if link is not None:
                    link.awake.set()
            case Close():
                self._close(command.connection, command.reason)
            case Purge():
                self._purge(command.item)
            case Control():
                self._control(command)

    def _post(self, number: int, message: m.Message) -> None:
        link = self._links.get(number)
        if link is None:
            return
        if len(link.outbox) >= OUTBOX:
            peer = link.connection.peer.name
            self._close(number, PeerTooSlow(peer=peer, waiting=OUTBOX))
            return
        link.outbox.append(message)
        link.awake.set()

    def _close(self, number: int, reason: BackhaulError) -> None:
        link = self._links.pop(number, None)
        if link is not None:
            task = asyncio.create_task(self._say_farewell(link, reason))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    @staticmethod
    async def _say_farewell(link: _Link, reason: BackhaulError) -> None:
        waiting, link.outbox = tuple(link.outbox), deque()
        try:
            if waiting and not isinstance(reason, PeerTooSlow):
                async with asyncio.timeout(TICK_S):
                    await link.connection.send_many(waiting)
        except (LinkLost, TimeoutError):
            pass  # it does not hear us; the close says the same
        await link.connection.close(reason)

    def _purge(self, item: ItemId) -> None:
        kept: deque[Store | Free | Forget] = deque()
        for command in self._queue:
            doomed = isinstance(command, Store) and command.entry.item == item
            if doomed and isinstance(command, Store) and command.entry.kind is not RecordKind.GRANT:
                self._add_pending(-len(command.entry.payload))
            else:
                kept.append(command)
        self._queue = kept

    def _add_pending(self, size: int) -> None:
        self._pending_bytes += size
        if self._pending_bytes > PENDING:
            self._room.clear()
        else:
            self._room.set()

    # The spool

    async def _in_spool(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    async def _write(self) -> None:
        while True:
            await self._arrived.wait()
            entries, after = self._gather()
            if not entries and not after:
                self._arrived.clear()
                continue
            batch = await self._in_spool(self._store, entries, after)
            self.space = batch.space
            if batch.dropped:
                self._do(Dropped(batch.dropped))
            if batch.failed is not None:
                self._do(StoreFailed(entries + self._drain(), batch.failed))
            elif entries:
                for entry in entries:
                    if entry.kind is not RecordKind.GRANT:
                        self._recent.add(entry)
                self._do(Stored(_asked(entries), batch.positions))
            self._add_pending(-sum(len(entry.payload) for entry in entries))
            self._do(Measured(batch.space))

    def _gather(self) -> tuple[list[Entry], list[Free | Forget]]:
        """All that waits, up to a batch, then what is to be freed behind it."""
        entries: list[Entry] = []
        after: list[Free | Forget] = []
        size = 0
        while self._queue:
            command = self._queue[0]
            if isinstance(command, Store):
                if after or (entries and size + len(command.entry.payload) > BATCH):
                    break
                entries.append(command.entry)
                size += len(command.entry.payload)
            else:
                after.append(command)
            self._queue.popleft()
        return entries, after

    def _drain(self) -> list[Entry]:
        """Every entry that still waits; it would leave a gap behind what could not be stored."""
        drained = [command.entry for command in self._queue if isinstance(command, Store)]
        self._queue = deque(command for command in self._queue if not isinstance(command, Store))
        self._add_pending(-sum(len(entry.payload) for entry in drained))
        return drained

    def _store(self, entries: Sequence[Entry], after: Sequence[Free | Forget]) -> _Batch:
        """In the spool's thread: one write and one sync, then what may be forgotten."""
        failed: SpoolWriteFailed | None = None
        positions: dict[ItemId, tuple[Fence, int]] = {}
        try:
            positions = self._spool.append(entries)
        except SpoolWriteFailed as error:
            failed = error
        for command in after:
            if isinstance(command, Free):
                self._spool.free(command.item, command.fence, command.number)
            else:
                self._spool.forget(command.item)
        self._spool.collect()
        return _Batch(positions, failed, self._spool.take_dropped(), self._spool.space())

    async def _tick(self) -> None:
        while True:
            self.space = await self._in_spool(self._spool.space)
            self._do(Measured(self.space))
            self._monitor.tick()
            await asyncio.sleep(TICK_S)

    async def _retry(self) -> None:
        while True:
            await asyncio.sleep(RETRY_S)
            if self._relay.blocked is None:
                continue
            try:
                await self._in_spool(self._spool.reopen)
            except SpoolWriteFailed as error:
                _log.info("spool.still_blocked", reason=error.message)
            else:
                self._do(SpaceReturned())

    # Control

    def _control(self, command: Control) -> None:
        request = command.request
        try:
            if request.method == "status":
                health = self._monitor.sample(self.space)
                answer = m.message(m.Response(request.id, ""), msgspec.msgpack.encode(health))
            elif request.method == "configure":
                answer = m.message(m.Response(request.id, ""), msgspec.msgpack.encode(self._configure(request)))
            else:
                raise MethodUnknown(method=request.method[:100])
        except BackhaulError as error:
            answer = m.message(m.Response(request.id, error.code, error.plain_params()))
        self._post(command.connection, answer)


def _asked(entries: Sequence[Entry]) -> dict[ItemId, int]:
    return {entry.item: entry.number for entry in entries if entry.kind is not RecordKind.GRANT}


def _frame(forward: Forward, number: int, payload: bytes | bytearray | memoryview, flags: int) -> m.Message:
    if number == 0:
        return m.message(m.StreamHead(forward.item, forward.fence), payload)
    head = m.FrameHead(forward.item, forward.fence, number, flags)
    return m.Message(m.MessageType.FRAME, head.encode(), payload)
