"""Replicates one item: compares, copies ahead, makes points, goes on after every failure.

The way of a block here: the tracker reads and hashes it (`trackers`), a frame takes it (`_send_pieces`), the stream
seals and sends it (`stream`), and until its epoch is COMPLETE at the target it is remembered (`unconfirmed`), so that
whatever is lost on the way is sent again in the next stream and nothing is ever compared for that.

Runs as one task on the agent's event loop; disks are read, hashed and compressed in worker threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import dataclass, field
from typing import Final, ParamSpec, TypeVar

import structlog

from backhaul.disks.errors import open_failed
from backhaul.mobility.choosing import PlannedStill
from backhaul.mobility.compare import Comparison
from backhaul.mobility.errors import (
    DiskReplaced,
    DisksDiffer,
    FreezeTooLong,
    ImageNotStill,
    StillError,
    TooMuchToStage,
)
from backhaul.mobility.framing import Framer, MadeFrame
from backhaul.mobility.frozen import FrozenImage
from backhaul.mobility.still import StillImage, StillSource
from backhaul.mobility.stream import Stream
from backhaul.mobility.trackers.contract import Piece, TrackedDisk, Tracker
from backhaul.mobility.trackers.scan import KIND as SCAN
from backhaul.mobility.trackers.scan import check_fits, measure
from backhaul.mobility.unconfirmed import Unconfirmed
from backhaul.replication.control import DiskProgress, ItemReport
from backhaul.replication.errors import BackhaulError
from backhaul.replication.maps import GranuleMap
from backhaul.replication.ports import Clock
from backhaul.replication.records import ChunkCodec, Completed, encode_frame
from backhaul.replication.source import Opened
from backhaul.replication.units import MiB
from backhaul.replication.values import EpochBegin, EpochEnd, EpochReason, ItemPolicy

STAGE_BYTES: Final = 64 * MiB
"""Memory for what is read while a still image is held; more than that is copied ahead first."""

PRECOPY_ROUNDS: Final = 4
"""Passes over a live disk before the still image; each leaves what was written during it."""

PRECOPY_ENOUGH: Final = 8 * MiB
"""A pass that found less leaves little enough to read in the still image."""

CONFIRM_S: Final = 2.0
"""Between two looks at a still image that lasts: so long may the start of the machine wait. A look takes some ms."""

RETRY_FIRST_S: Final = 0.5
RETRY_MOST_S: Final = 15.0
"""Waits between failed tries: double from the first to the most, so that a target that is away is not hammered."""

P = ParamSpec("P")
T = TypeVar("T")

_log = structlog.get_logger(__name__)


@dataclass
class Known:
    """What is known of the target's replica: outlives a stream, and a replicator whose way or policy changes."""

    maps: dict[int, GranuleMap] = field(default_factory=dict)
    unconfirmed: Unconfirmed = field(default_factory=Unconfirmed)


class Replicator:
    """Keeps one item's replica behind its disks."""

    def __init__(
        self,
        stream: Stream,
        disks: list[TrackedDisk],
        tracker: Tracker,
        still: Callable[[bool], PlannedStill],
        policy: ItemPolicy,
        codec: ChunkCodec,
        clock: Clock,
        known: Known | None = None,
    ) -> None:
        """`still` chooses the way to a still image each time a point is due, given whether it is to be the final one;
        `disks` are in the item's order.
        """
        self._stream, self._disks, self._tracker = stream, disks, tracker
        self._still, self._policy, self._codec, self._clock = still, policy, codec, clock
        self.known = known = known or Known()
        self._maps, self._unconfirmed = known.maps, known.unconfirmed
        self._opened: Opened | None = None
        self._begin: EpochBegin | None = None
        self._compares: tuple[int, ...] = ()
        self._stop = threading.Event()
        self._asked_for = False
        self._final_generation = 0
        self._made_point = False
        self.holds_frozen = False
        """Whether the file systems stay frozen until the machine is powered off, or thawed by a cancel."""
        self._state = "waiting"
        self._error: BackhaulError | None = None
        self._frozen_us = 0
        self._progress = {disk.identity.index: (0, 0) for disk in disks}
        self._sent = dict.fromkeys(self._progress, 0)

    # --- what the agent calls -----------------------------------------------------------------------------------

    def point_now(self) -> None:
        """Make the next point at once instead of at its interval."""
        self._asked_for = True
        self._stream.wake()

    def make_final(self, generation: int) -> None:
        """Make a final point under this generation, and under no other: the machine is stopped, or is held frozen until
        it is powered off. A target that has a higher one was told of a cancel that this agent has not heard of.
        """
        self._final_generation = generation
        self.point_now()

    @property
    def _final(self) -> bool:
        return self._opened is not None and self._opened.fence.generation == self._final_generation

    @property
    def granule_key(self) -> bytes | None:
        """The key of the replica's hashes; None before the first stream."""
        return self._opened.granule_key if self._opened else None

    def completed(self, reply: Completed) -> None:
        """An epoch became a recovery point at the target."""
        self._unconfirmed.completed(reply.point)
        if reply.final:
            self._state = "held"

    def report(self) -> ItemReport:
        """What is known of the item now."""
        opened = self._opened
        progress = tuple(
            DiskProgress(index, compared, differing, self._sent[index], disk.identity.size)
            for disk in self._disks
            for index, (compared, differing) in [(disk.identity.index, self._progress[disk.identity.index])]
        )
        return ItemReport(
            item=self._stream.item,
            fence=opened.fence if opened else None,
            state=self._state,
            tracker=self._tracker.kind,
            disks=progress,
            newest_point_ns=self._unconfirmed.newest_barrier_ns,
            newest_epoch=self._unconfirmed.newest_epoch,
            sent_bytes=self._stream.sent_bytes,
            unspooled_bytes=self._stream.unspooled_bytes,
            frozen_us=self._frozen_us,
            code=self._error.code if self._error else self._stream.waiting,
            params=self._error.plain_params() if self._error else {},
            held_frozen=self.holds_frozen,
        )

    async def run(self) -> None:
        """Replicate until cancelled. Raises DiskReplaced: what lies at a disk's path now must be opened first."""
        wait_s = RETRY_FIRST_S
        try:
            async with self._stream.sending():
                while True:
                    try:
                        self._state = "opening"
                        self._made_point = False
                        await self._replicate(await self._stream.open(self._tracker.kind))
                    except DiskReplaced as error:
                        self._failed(error)
                        raise  # another disk lies there: the agent opens it, and starts anew
                    except BackhaulError as error:
                        self._failed(error)
                    except OSError as error:  # a disk's path that cannot be looked at
                        self._failed(open_failed(str(error.filename), error))
                    if self._made_point:  # opening alone proves little: a bad sector lets every stream open
                        wait_s = RETRY_FIRST_S
                    await asyncio.sleep(wait_s)
                    wait_s = min(2 * wait_s, RETRY_MOST_S)
        finally:
            self._stop.set()

    def _failed(self, error: BackhaulError) -> None:
        _log.warning("replication.interrupted", item=self._stream.item, code=error.code, reason=error.message)
        self._error = error
        self._begin = None
        self._stream.fail(error)

    # --- one stream ---------------------------------------------------------------------------------------------

    async def _replicate(self, opened: Opened) -> None:
        self._opened, self._begin = opened, None
        sizes = tuple(disk.identity.size for disk in self._disks)
        if opened.disk_bytes != sizes:
            raise DisksDiffer(item=self._stream.item, reason=f"{sizes} bytes here, {opened.disk_bytes} there")
        if not self._unconfirmed.go_on_from(opened, self._maps):
            await self._compare(opened)
        while not (self._final and self._state == "held"):
            await self._make_point()
            await self._until_due()
        await self._stream.until(lambda: False)  # held: nothing more is sent; a failure of the stream ends it

    async def _compare(self, opened: Opened) -> None:
        """Learn what the target holds of every disk; a tracker must be attached before."""
        self._state = "verifying"
        self._maps.clear()
        self._unconfirmed.forget()
        self._compares = tuple(disk.identity.index for disk in self._disks)
        maps: dict[int, GranuleMap] = {}
        for tracked in self._disks:
            index = tracked.identity.index

            def progress(compared: int, differing: int, index: int = index) -> None:
                self._progress[index] = (compared, differing)

            maps[index] = await Comparison(self._stream, index, tracked.disk, opened.granule_key, progress).run()
        self._maps.update(maps)
        self._unconfirmed.compared(opened)

    async def _until_due(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._policy.point_interval_s):
                await self._stream.until(lambda: self._asked_for)
        self._asked_for = False

    # --- a recovery point ---------------------------------------------------------------------------------------

    async def _make_point(self) -> None:
        """Copy ahead unless the machine is stopped, then read the rest from a still image and end the epoch. Without
        a still image the epoch goes on: its data stays sent, and the RPO grows, with the reason shown.
        """
        self._state = "final" if self._final else "replicating"
        try:
            source = self._still(self._final)
            if not await self._in_thread(source.lasts):
                await self._copy_ahead()
                await self._in_thread(self._check_fits, source)
            await self._read_still(source)
        except (StillError, TooMuchToStage, FreezeTooLong) as error:
            _log.warning("point.missed", item=self._stream.item, code=error.code, reason=error.message)
            self._error = error
        else:
            self._error, self._made_point = None, True

    def _check_fits(self, source: PlannedStill) -> None:
        """Hold no writer for a scan that cannot end in time. Measured each time: disks grow, and have busier moments.

        Raises FreezeTooLong, DiskReadFailed.
        """
        if source.held_s is not None and self._tracker.kind == SCAN:
            check_fits(measure([disk.disk for disk in self._disks], self._clock), source.held_s)

    async def _copy_ahead(self) -> None:
        for _ in range(PRECOPY_ROUNDS):
            if await self._send_pieces(self._collect()) < PRECOPY_ENOUGH:
                return

    async def _read_still(self, source: StillSource) -> None:
        final = self._final
        async with self._held(source) as image:
            if image.limit_s is None:  # it lasts: what is read goes out as it comes
                await self._send_while_still(image)
                staged: list[Piece] = []
            elif final and isinstance(image, FrozenImage):
                await self._hold_final(image)
                return
            else:  # the writers go on afterwards, so this cannot be the last point
                final = False
                staged = await self._in_thread(self._stage, image)
        self._frozen_us = image.frozen_us
        await self._send_pieces(piece for piece in staged)
        await self._end(image, final=final)

    @contextlib.asynccontextmanager
    async def _held(self, source: StillSource) -> AsyncIterator[StillImage]:
        """The image, taken and given up in threads. Given up also when it was cancelled while being taken; and then
        what fails in giving it up does not take the place of the cancellation, or the replicator would go on, and
        whoever ends it would wait for ever.
        """
        held = contextlib.ExitStack()
        try:
            yield await self._in_thread(held.enter_context, source.hold())
        except asyncio.CancelledError:
            try:
                await self._in_thread(held.close)
            except Exception as error:
                _log.warning("still.end_failed", item=self._stream.item, reason=str(error))
            raise
        finally:
            await self._in_thread(held.close)  # nothing, where it was given up above

    async def _hold_final(self, image: FrozenImage) -> None:
        """The final delta read from inside the machine: send while frozen, and stay frozen once the target has it.

        Raises ImageNotStill when it thawed: before the end was sent, nothing happened; after it, the target holds a
        final point that is none any more, and the control plane raises the generation to try again.
        """
        await self._send_pieces(self._collect())
        await self._in_thread(image.check)
        await self._end(image, final=True)
        try:
            async with asyncio.timeout(image.limit_s):
                await self._stream.until(lambda: self._state == "held")
        except TimeoutError:
            raise ImageNotStill(reason="the target did not confirm the final point within the freeze's limit") from None
        self._state = "final"
        await self._in_thread(image.disarm)
        self._state, self.holds_frozen = "held", True

    def _stage(self, image: StillImage) -> list[Piece]:
        staged = list(self._collect(STAGE_BYTES))
        image.confirm()
        return staged

    def _collect(self, stage_bytes: int | None = None) -> Generator[Piece, None, None]:
        yield from self._tracker.collect(self._maps, stop=self._stop, stage_bytes=stage_bytes)

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work in a thread. Cancelled, it waits for the thread: nobody else may use what that uses."""
        task = asyncio.create_task(asyncio.to_thread(work, *args, **kwargs))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._stop.set()
            await asyncio.wait({task})
            if (error := task.exception()) is not None:  # it has no other reader any more
                _log.debug("work.ended", item=self._stream.item, reason=str(error))
            raise

    async def _send_while_still(self, image: StillImage) -> None:
        """Send what is read from an image that lasts. Raises ImageNotStill as soon as it does not, even while nothing
        can be sent: the kernel lets who opens the disk for writing wait until the image is given up.
        """
        sending = asyncio.create_task(self._send_pieces(self._collect()))
        try:
            while not (await asyncio.wait({sending}, timeout=CONFIRM_S))[0]:
                await self._in_thread(image.confirm)
        finally:
            if not sending.done():
                sending.cancel()
                await asyncio.wait({sending})
                self._stop = threading.Event()  # the cancelled read has it; the next one goes on
        await sending
        await self._in_thread(image.confirm)

    async def _send_pieces(self, pieces: Generator[Piece, None, None]) -> int:
        """Send all pieces as frames of the running epoch; bytes of disk they cover. While some frames are sealed and
        sent the next ones are read, hashed and compressed.
        """
        framer = Framer(pieces, self._codec, self._next_begin() if self._begin is None else None)
        covered = 0
        ahead = asyncio.create_task(self._in_thread(framer.frames))
        try:
            while frames := await ahead:
                ahead = asyncio.create_task(self._in_thread(framer.frames))
                for frame in frames:
                    await self._send_frame(frame)
                    covered += sum(piece.extent.length for piece in frame.pieces)
        except asyncio.CancelledError:
            ahead.cancel()
            raise
        finally:
            await asyncio.wait({ahead})
            error = None if ahead.cancelled() else ahead.exception()
            if error is not None:  # raised above, unless sending failed first
                _log.debug("work.ended", item=self._stream.item, reason=str(error))
            pieces.close()
        return covered

    async def _send_frame(self, frame: MadeFrame) -> None:
        self._unconfirmed.sending([piece.extent for piece in frame.pieces])
        await self._stream.send(frame.plaintext)
        self._begin = frame.begin or self._begin
        for piece in frame.pieces:
            piece.captured()
            self._sent[piece.extent.disk] += len(piece.data)

    def _next_begin(self) -> EpochBegin:
        """Begin of the epoch's next try."""
        assert self._opened is not None, "a stream is open"
        return self._unconfirmed.begin(
            self._opened,
            begun_ns=self._clock.wall_ns(),
            reason=EpochReason.COMPARE if self._compares else EpochReason.DELTA,
            tracker=self._tracker.kind,
            compares=self._compares,
        )

    async def _end(self, image: StillImage, *, final: bool) -> None:
        begin = self._next_begin() if self._begin is None else None
        running = begin or self._begin
        assert running is not None, "one of the two is"
        end = EpochEnd(
            number=running.number,
            begin=running.digest(),
            barrier_ns=image.barrier_ns,
            kind=image.kind,
            consistency=image.consistency,
            final=final,
            frozen_us=image.frozen_us,
            compared=self._compares,
        )
        await self._stream.send(encode_frame(self._codec, begin=begin, end=end))
        self._unconfirmed.ended(end)
        self._begin, self._compares = None, ()
