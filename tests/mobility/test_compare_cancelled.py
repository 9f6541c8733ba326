"""A compare that is cancelled has let go of its disk: whoever cancels it closes the disk next."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import cast

from backhaul.disks.contract import Disk
from backhaul.mobility.compare import Comparison
from backhaul.mobility.stream import Stream
from backhaul.replication.records import MapAsk, MapPart
from backhaul.replication.units import MiB


class DifferingStream:
    """Answers that nothing is alike, so that everything is read."""

    async def ask(self, question: MapAsk) -> MapPart:
        return MapPart(1, question.disk, question.level, question.first, b"\1" * 16 * question.count)


class HeldDisk:
    """The first read waits until it may go on. `closed`: nobody may read any more."""

    name, size, alignment, writable = "held", 64 * MiB, 512, False

    def __init__(self) -> None:
        self.reading, self.go = threading.Event(), threading.Event()
        self.closed = False
        self.reads = self.reads_closed = 0

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        self.reading.set()
        assert self.go.wait(60)
        self.reads += 1
        self.reads_closed += self.closed

    def data_ranges(self, offset: int = 0, length: int | None = None) -> Iterator[tuple[int, int]]:
        yield offset, self.size - offset if length is None else length


async def test_a_compare_that_is_cancelled_has_let_go_of_the_disk() -> None:
    disk = HeldDisk()
    stream = cast(Stream, DifferingStream())
    comparing = asyncio.create_task(Comparison(stream, 0, cast(Disk, disk), bytes(32), lambda done, found: None).run())
    await asyncio.to_thread(disk.reading.wait, 60)
    comparing.cancel()
    for _ in range(10):  # the cancellation is delivered; a read is still under way
        await asyncio.sleep(0)
    ended_early = comparing.done()
    disk.closed = ended_early
    disk.go.set()
    await asyncio.gather(comparing, return_exceptions=True)
    disk.closed = True  # as the agent does
    await asyncio.get_running_loop().shutdown_default_executor()  # a read that goes on is seen
    assert (ended_early, disk.reads_closed) == (False, 0)
    assert disk.reads < 64, "it does not read the rest first"
