"""A replicator that is cancelled while it has a still image gives the image up, and ends: whoever cancels it waits."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any, cast

import pytest

from backhaul.mobility.choosing import PlannedStill
from backhaul.mobility.errors import QuiesceFailed, TrackerStopped
from backhaul.mobility.replicator import Known, Replicator
from backhaul.mobility.stream import Stream
from backhaul.mobility.trackers.contract import Piece, Tracker
from backhaul.replication.ports import RealClock
from backhaul.replication.records import ChunkCodec
from backhaul.replication.source import Opened
from backhaul.replication.values import CompletePoint, Fence, Hash, ItemId, ItemPolicy

OPENED = Opened(Fence(1, 1, 1), CompletePoint(1, Hash(bytes(32))), (), bytes(32), ())
"""A stream that goes on from what is known; the item has no disks, so nothing is sent."""


class OpenStream:
    """Always open."""

    item = ItemId("0" * 32)

    @contextlib.asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        yield

    async def open(self, tracker: str) -> Opened:
        return OPENED

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0)

    def fail(self, error: BaseException) -> None:
        """Nobody else waits."""


class Gate:
    """Where a worker thread waits in the middle of its work."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.reached.set()
        assert self.go.wait(60)


class Still:
    """A still image of a running machine, and its source. `again`: somebody asked for a second one."""

    limit_s = 1.0
    held_s = None

    def __init__(self, entering: Gate | None = None) -> None:
        self.entering = entering
        self.again = threading.Event()
        self.asked = self.left = 0

    def lasts(self) -> bool:
        self.asked += 1
        if self.asked > 1:
            self.again.set()
        return False

    def hold(self) -> Still:
        return self

    def __enter__(self) -> Still:
        if self.entering is not None:
            self.entering.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.left += 1
        raise QuiesceFailed(stage="post", script="resume", status="status 1", output="the application is gone")


class EmptyTracker:
    """Finds nothing; while the image is held (`stage_bytes`), only once it may go on."""

    kind = "empty"

    def __init__(self, reading: Gate | None = None) -> None:
        self.reading = reading

    def collect(self, _: Any, *, stop: threading.Event, stage_bytes: int | None = None) -> Iterator[Piece]:
        if stage_bytes is not None and self.reading is not None:
            self.reading.wait()
        if stop.is_set():
            raise TrackerStopped(bytes_read=0)
        yield from ()


@pytest.mark.parametrize("where", ["taking the image", "reading it"])
async def test_a_cancelled_replicator_ends_though_its_image_cannot_be_ended(where: str) -> None:
    """An application that stops just before its agent: the post script fails, which is no reason to go on."""
    gate = Gate()
    still = Still(gate if where == "taking the image" else None)
    tracker = EmptyTracker(gate if where == "reading it" else None)
    known = Known()
    known.unconfirmed.compared(OPENED)
    replicator = Replicator(
        cast(Stream, OpenStream()),
        [],
        cast(Tracker, tracker),
        lambda final: cast(PlannedStill, still),
        ItemPolicy(point_interval_s=0.01),
        ChunkCodec(),
        RealClock(),
        known,
    )
    running = asyncio.create_task(replicator.run())
    await asyncio.to_thread(gate.reached.wait, 60)
    running.cancel()
    for _ in range(10):  # the cancellation is delivered; the thread is still at work
        await asyncio.sleep(0)
    assert not running.done()
    gate.go.set()
    going_on = asyncio.create_task(asyncio.to_thread(still.again.wait, 60))
    await asyncio.wait({running, going_on}, return_when=asyncio.FIRST_COMPLETED)
    left, ended = still.left, running.cancelled()
    still.again.set()
    running.cancel()
    await asyncio.gather(going_on, running, return_exceptions=True)
    assert (ended, left) == (True, 1)
