"""One replicated item at a master target: its session and its replica together, without a network.

Messages in, messages out, synchronously; called from the item's worker only, one call at a time. Invariants: what
decides who may write is stored before anything that follows from it is sent; a frame is acknowledged only when the
replica says it is durable; what cannot be applied now (full journal, full disk) is kept and tried again, in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog

from backhaul.disks.contract import Disk
from backhaul.disks.errors import DiskError
from backhaul.disks.hashing import refresh
from backhaul.master_target.contract import RecoveryPoint
from backhaul.master_target.errors import (
    JournalFull,
    JournalWriteFailed,
    MasterTargetError,
    ReplicaFileDamaged,
    ReplicaPoisoned,
    StateNotStored,
    UndoImpossible,
)
from backhaul.master_target.replica import Replica
from backhaul.master_target.stored import replace_or_refuse
from backhaul.recovery.policies import ReplicationPolicy
from backhaul.recovery.retention import to_drop
from backhaul.replication import messages as m
from backhaul.replication.epochs import EpochOrder
from backhaul.replication.errors import UNDECODABLE, BackhaulError, EpochViolation, FenceStale, StreamClosed
from backhaul.replication.maps import GranuleMap
from backhaul.replication.opening import read_descriptor
from backhaul.replication.ports import Clock, Files
from backhaul.replication.records import Applied, Completed, Frame, MapAsk, MapLevel, MapPart, Refused, Reply, Waiting
from backhaul.replication.target import Accepted, Target, TargetSession, TargetState
from backhaul.replication.units import BATCH_BYTES, RANGE_GRANULES
from backhaul.replication.values import CompletePoint, EpochBegin, ExtentKind, ItemId, ItemPolicy

MAX_PARTS: Final = 8
"""Answers that are repeated when the agent attaches: twice what an agent has under way at once."""

STATE: Final = "fence"
"""File of the item's folder with its StoredItem."""

SAVE_MAPS_NS: Final = 60 * 1_000_000_000
SAVE_MAPS_SHARE: Final = 20
"""Between two savings of the granule maps pass a minute and so many times what the last one took: what an interrupted
target has to read back afterwards is bounded, and so is what saving costs with the largest disks (a twentieth)."""

_log = structlog.get_logger(__name__)


class StoredItem(msgspec.Struct, frozen=True):
    """What the item's folder holds besides its replica: who may write, and where the disks lie."""

    state: TargetState
    disk_paths: tuple[str, ...]


def store_item(files: Files, folder: Path, stored: StoredItem) -> None:
    """Durable when it returns. Raises StateNotStored (nothing has changed), OSError."""
    replace_or_refuse(files, folder / STATE, msgspec.msgpack.encode(stored))


def load_item(files: Files, folder: Path) -> StoredItem:
    """Raises ReplicaFileDamaged, OSError."""
    try:
        return msgspec.msgpack.decode(files.read(folder / STATE), type=StoredItem)
    except UNDECODABLE as error:
        raise ReplicaFileDamaged(name=str(folder / STATE), reason=str(error)) from error


class TargetItem:
    """See the module."""

    def __init__(self, folder: Path, target: Target, stored: StoredItem, replica: Replica, files: Files, clock: Clock):
        self._folder, self._files, self._clock = folder, files, clock
        self._target = target
        self._stored = stored
        self.replica = replica
        self._steps: deque[Callable[[], list[Reply]]] = deque()
        self._staged_bytes = 0
        self._refusal: Refused | None = None
        """Why the open stream is applied no further."""
        self.waiting: BackhaulError | None = None
        """Why nothing is applied at the moment; None when all is well."""
        self._sealed_frames: deque[m.Message] = deque()
        """Frames that came while the item waits: left as they are, so the process server's window bounds them."""
        self._parts: deque[MapPart] = deque(maxlen=MAX_PARTS)
        self._stale_frames = 0
        self._maps_changed = False
        self._maps_saved_ns, self._saving_ns = clock.monotonic_ns(), 0
        self.maps_due = False
        """Whether the maps are to be saved, once what was answered has been sent."""
        newest = self.newest_point()
        if newest and newest.final and replica.applied_stream == stored.state.stream and not replica.tries:
            final = msgspec.structs.replace(stored.state, final=True)  # it ended between the point and this file
            self._stored = msgspec.structs.replace(stored, state=final)
        self.session = self._new_session(target)

    def _new_session(self, target: Target) -> TargetSession:
        state, replica = self._stored.state, self.replica
        tries = list(replica.tries)
        running = bool(tries) and bool(state.opening) and tries[-1].stream == state.stream
        applied = replica.applied_frame if replica.applied_stream == state.stream else 0
        return TargetSession(target, state, EpochOrder(replica.newest_complete, tries, running), applied)

    @property
    def item(self) -> ItemId:
        """The item."""
        return self.session.item

    @property
    def applied(self) -> int:
        """Newest durable frame of the newest stream."""
        return self.replica.applied_frame if self.replica.applied_stream == self.session.state.stream else 0

    def served(self) -> m.Served:
        """What a process server must know of the item."""
        return m.Served(self.item, self.session.fence, self.applied, self.session.descriptor.agent)

    # --- messages -----------------------------------------------------------------------------------------------

    def handle(self, batch: Sequence[m.Message]) -> list[m.Message]:
        """Take messages in order and apply what they hold, in as few syncs as possible; what to send back.

        Raises ReplicaPoisoned and OSError of the state file: the process must end, and recovers when it starts.
        """
        out: list[m.Message] = []
        for message in batch:
            if message.type is m.MessageType.FRAME and (self.waiting is not None or self._sealed_frames):
                self._sealed_frames.append(message)
            else:
                out += self._one(message)
        out += self.proceed()
        while self._sealed_frames and self.waiting is None:
            out += self._one(self._sealed_frames.popleft())
            if not self._sealed_frames:
                out += self.proceed()
        if self._stale_frames:
            _log.info("frames.stale", item=self.item, frames=self._stale_frames, accepted=str(self.session.fence))
            out.append(m.message(m.Discard(self.item, self.session.fence)))  # once: it speaks of all of them
            self._stale_frames = 0
        if self._refusal is not None and any(message.type is m.MessageType.FRAME for message in batch):
            out += self._sealed([self._refusal])  # whoever goes on sending has not heard it
        return out

    def _one(self, message: m.Message) -> list[m.Message]:
        out: list[m.Message] = []
        try:
            self._take(message, out)
        except FenceStale:
            self._stale_frames += 1
        except ReplicaPoisoned:
            raise
        except BackhaulError as error:  # of the stream, or of a signature or certificate in it: its sender's fault
            out += self._refuse(message, error)
        if self._staged_bytes >= BATCH_BYTES:
            out += self.proceed()
        return out

    def _take(self, message: m.Message, out: list[m.Message]) -> None:
        match message.type:
            case m.MessageType.FRAME:
                self._frame(message)
            case m.MessageType.STREAM:
                self._header(message, out)
            case m.MessageType.OPEN_REQUEST:
                self._open(message, out)
            case m.MessageType.ATTACH:
                out += self._newest()
            case _:
                raise StreamClosed(item=self.item)

    def _frame(self, message: m.Message) -> None:
        if self._refusal is not None:
            return  # of a stream that was refused: the agent is opening the next one
        accepted = self.session.frame(m.FrameHead.decode(message.head), message.payload)
        if accepted is not None:
            self._steps += self._steps_of(accepted)

    def _header(self, message: m.Message, out: list[m.Message]) -> None:
        state = self.session.header(message)
        if state is not None:
            self._store(state)
            self._refusal = None
        out += self._newest()

    def _open(self, message: m.Message, out: list[m.Message]) -> None:
        out += self.proceed()
        try:
            order = EpochOrder(self.replica.newest_complete, list(self.replica.tries))
            state, answer = self.session.answer(message, self.replica.key, order)
            self._store(state)
        except BackhaulError as error:
            _log.warning("opening.refused", item=self.item, code=error.code, reason=error.message)
            out.append(m.message(m.OpenRefused(self.item, error.code, error.plain_params())))
            return
        self._forget_unapplied()
        self._refusal = None
        self._parts.clear()
        out += [answer, m.message(m.Discard(self.item, self.session.fence))]

    def _forget_unapplied(self) -> None:
        """A new stream: what an earlier one brought and could not be applied is sent again by the agent."""
        self._steps.clear()
        self._sealed_frames.clear()
        self._staged_bytes = 0
        self.waiting = None
        self.replica.drop_staged()
        self.session.epochs = EpochOrder(self.replica.newest_complete, list(self.replica.tries))

    def _store(self, state: TargetState) -> None:
        """Durably, before anything follows from it. Raises StateNotStored: then nothing may follow from it."""
        stored = msgspec.structs.replace(self._stored, state=state)
        store_item(self._files, self._folder, stored)
        self._stored = stored
        self.session.adopt(state)

    def _refuse(self, message: m.Message, error: BackhaulError) -> list[m.Message]:
        _log.warning("stream.refused", item=self.item, code=error.code, reason=error.message)
        if message.type is not m.MessageType.FRAME:
            return [m.message(m.OpenRefused(self.item, error.code, error.plain_params()))]
        self._refusal = Refused(self.session.received + 1, error.code, error.plain_params())
        return []  # `handle` tells it, at its end

    def _newest(self) -> list[m.Message]:
        """Where the item stands, for an agent or process server that may have missed it."""
        replies: list[Reply] = [Applied(self.applied)]
        if complete := self.replica.newest_complete:
            replies.append(Completed(self.applied, complete, self.session.state.final))
        replies += self._parts
        if self._refusal is not None:
            replies.append(self._refusal)
        return [m.message(m.AppliedHead(self.item, self.session.state.stream, self.applied)), *self._sealed(replies)]

    def _sealed(self, replies: list[Reply]) -> list[m.Message]:
        sealed = self.session.reply(replies) if replies else None
        return [sealed] if sealed else []

    # --- applying -----------------------------------------------------------------------------------------------

    def _steps_of(self, accepted: Accepted) -> list[Callable[[], list[Reply]]]:
        number, frame = accepted.number, accepted.frame
        steps: list[Callable[[], list[Reply]]] = []
        if (begin := frame.begin) is not None:
            steps.append(lambda: self._begin(begin))
        if frame.extents:
            steps.append(lambda: self._stage(number, frame))
        if (ask := frame.ask) is not None:
            if ask.disk not in range(len(self.replica.disks)):
                what = f"a question about disk {ask.disk}"
                raise EpochViolation(item=self.item, what=what, reason="there is no such disk")
            steps.append(lambda: [self._hashes(number, ask)])
        if frame.end is not None:
            steps.append(lambda: self._complete(number, frame))
        self._staged_bytes += len(frame.data)
        return steps

    def proceed(self) -> list[m.Message]:
        """Apply everything that was taken, as far as it can be; the messages that follow from it."""
        replies: list[Reply] = []
        before = self.applied
        try:
            while self._steps:
                replies += self._steps[0]()
                self._steps.popleft()
            self.replica.flush()
            self._staged_bytes = 0
            self.waiting = None
        except ReplicaPoisoned:
            raise
        except (JournalFull, JournalWriteFailed, StateNotStored, DiskError) as error:
            if self.waiting is None or self.waiting.code != error.code:
                _log.warning("applying.waits", item=self.item, code=error.code, reason=error.message)
            self.waiting = error
            replies.append(Waiting(self.applied + 1, error.code, error.plain_params()))
        except (MasterTargetError, EpochViolation) as error:
            _log.warning("applying.refused", item=self.item, code=error.code, reason=error.message)
            self._steps.clear()
            self._refusal = Refused(self.applied + 1, error.code, error.plain_params())
            replies.append(self._refusal)
        if self.applied == before:
            return self._sealed(replies)
        replies.insert(0, Applied(self.applied))
        head = m.AppliedHead(self.item, self.session.state.stream, self.applied)
        return [m.message(head), *self._sealed(replies)]

    def _begin(self, begin: EpochBegin) -> list[Reply]:
        self.replica.begin(begin)
        return []

    def _stage(self, number: int, frame: Frame) -> list[Reply]:
        self._maps_changed = True
        data, at = memoryview(frame.data), 0
        for extent in frame.extents:
            if extent.kind is ExtentKind.DATA:
                self.replica.stage(extent, data[at : at + extent.length], number)
                at += extent.length
            else:
                self.replica.stage(extent, None, number)
        return []

    def _hashes(self, number: int, ask: MapAsk) -> Reply:
        self.replica.flush()
        self._maps_changed = True
        granules, disk = self.replica.maps[ask.disk], self.replica.disks[ask.disk]
        if ask.level is MapLevel.GRANULE:
            last = min(granules.count, ask.first + ask.count)
            _refresh(disk, granules, range(ask.first, last))
            hashes = granules.hashes(ask.first, last - ask.first) if ask.first < last else []
        else:
            last = min(granules.range_count, ask.first + ask.count)
            _refresh(disk, granules, range(ask.first * RANGE_GRANULES, min(granules.count, last * RANGE_GRANULES)))
            hashes = [granules.range_digest(index) for index in range(ask.first, last)]
        part = MapPart(number, ask.disk, ask.level, ask.first, b"".join(digest or bytes(16) for digest in hashes))
        self._parts.append(part)
        return part

    def _complete(self, number: int, frame: Frame) -> list[Reply]:
        end = frame.end
        assert end is not None, "the step was made for an end"
        self.replica.complete(end, number)
        if end.final:
            self._store(self.session.ended())
        try:
            self.thin()
        except ReplicaPoisoned:
            raise
        except MasterTargetError as error:  # the point stands; tried again at the next one
            _log.warning("thinning.failed", item=self.item, code=error.code, reason=error.message)
        since_ns = self._clock.monotonic_ns() - self._maps_saved_ns
        self.maps_due = self._maps_changed and since_ns >= max(SAVE_MAPS_NS, SAVE_MAPS_SHARE * self._saving_ns)
        return [Completed(number, CompletePoint(end.number, end.lineage()), end.final)]

    def thin(self) -> None:
        """Drop the points that the item's policy does not keep; none between failover and commit or cancel."""
        if self.session.state.promoted:
            return
        points = self.replica.points()
        pinned = set(self.replica.pins().values())
        facts = [(point.number, point.barrier_ns, point.number in pinned) for point in points]
        drop = set(to_drop(facts, _policy(self.session.descriptor.policy), self._clock.wall_ns()))
        if drop:
            self.replica.thin([point.number for point in points if point.number not in drop])

    # --- control ------------------------------------------------------------------------------------------------

    def raise_descriptor(self, blob: bytes) -> None:
        """Take a newer descriptor: fence, policy, grown disks. Points may be thinned again unless it is promoted.

        Raises DescriptorRefused, OpeningForged, DisksChanged; nothing changes then. Raises StateNotStored: who may
        write does not change then, disks that have grown stay so, and the same request may be repeated.
        """
        closes = not self.session.raised(blob).opening
        self.replica.adopt(read_descriptor(self._target.verifier, blob))
        if closes:
            self.proceed()
        state = self.session.raised(blob)  # again: what was applied just now may have been the final point
        self._store(state)
        if closes:
            self._forget_unapplied()  # not before it is stored: until then the stream may go on
        self.replica.hold(state.promoted)

    def verify(self, blob: bytes) -> None:
        """Take a newer generation and believe no map from then on: what the disks hold is read back when it is asked
        for. The generation that is in force already changes nothing. Raises as `raise_descriptor` and
        `Replica.doubt`; what is doubted then stays so.
        """
        self.session.raised(blob)
        if read_descriptor(self._target.verifier, blob).generation > self.session.descriptor.generation:
            self.replica.doubt()
        self.raise_descriptor(blob)

    def promote(self, blob: bytes) -> None:
        """Hand the item over to this replica: the batch in hand ends, the new generation is stored, the started epoch
        is undone, nothing is thinned until the next generation. Idempotent. Raises as `raise_descriptor` does.
        """
        self.session.raised(blob)
        self.proceed()
        state = self.session.raised(blob)
        self._store(msgspec.structs.replace(state, opening=b"", promoted=True))
        self._forget_unapplied()
        self.replica.hold(True)
        self.replica.undo_started()
        self.session.epochs = EpochOrder(self.replica.newest_complete)

    def go_to(self, point: int) -> None:
        """Make the disks what they were at `point`; nothing if they are. Raises UndoImpossible while a stream is open,
        and as `Replica.go_to`.
        """
        if self.session.is_open:
            raise UndoImpossible(item=self.item, reason="a stream is open; raise the generation first")
        if self.replica.stands_at != point or not self.replica.newest_complete:
            self.replica.go_to(point)
            self.session.epochs = EpochOrder(self.replica.newest_complete)

    def hand_out(self) -> None:
        """The disks will be written by somebody else: points and pins end, everything is compared afterwards."""
        self._store(msgspec.structs.replace(self.session.closed(), promoted=True))  # until the next generation
        self._forget_unapplied()
        self.replica.hand_out()
        self.session.epochs = EpochOrder(self.replica.newest_complete)

    @property
    def disk_paths(self) -> tuple[str, ...]:
        """Where the disks lie, by index."""
        return self._stored.disk_paths

    def newest_point(self) -> RecoveryPoint | None:
        """The newest recovery point, None when there is none."""
        points = self.replica.points()
        return points[-1] if points else None

    def save_maps(self) -> None:
        """Save the granule maps, so that less is read back after an opening. Raises ReplicaPoisoned."""
        began_ns = self._clock.monotonic_ns()
        self.maps_due = False
        try:
            self.replica.save_maps()
            self._maps_changed = False
        except JournalWriteFailed as error:  # nothing is lost by it, and the next point tries again
            _log.warning("maps.not_saved", item=self.item, code=error.code, reason=error.message)
        self._maps_saved_ns = self._clock.monotonic_ns()
        self._saving_ns = self._maps_saved_ns - began_ns

    def close(self) -> None:
        """Save the maps and let go of the replica. Raises ReplicaPoisoned, when all is let go."""
        try:
            self.save_maps()
        finally:
            self.replica.close()
            for disk in self.replica.disks:
                disk.close()


def _refresh(disk: Disk, granules: GranuleMap, wanted: range) -> None:
    stale = granules.stale_granules()
    mine = [index for index in wanted if index in stale] if stale else []
    if mine:
        refresh(disk, granules, mine)


def _policy(policy: ItemPolicy) -> ReplicationPolicy:
    return ReplicationPolicy(
        name="item",
        retention_s=policy.retention_s,
        retention_points=policy.retention_points,
        tiers=policy.retention_tiers,
    )
