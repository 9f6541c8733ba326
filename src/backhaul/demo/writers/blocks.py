"""The block writer: overwrites blocks of a machine's disks at random, several in flight, each with its stamp.

Run as `python -m backhaul.demo.writers.blocks SPEC.json`, or in a process of one's own by `run_block_writer`. The
disks are open for writing from before the first write until after the last, so that *nobody has them open* means
what it says. Writes are O_DSYNC, and O_DIRECT where that works: acknowledged means durable.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import sys
import threading
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Final

from backhaul.demo.oracle.acklog import AckLog, Origin, Region, merged
from backhaul.demo.oracle.checker import scan
from backhaul.demo.oracle.stamps import NOISE_BYTES, Stamp, machine_tag, place, stamped_block
from backhaul.demo.writers.errors import WriterDiskFailed, WriterSpecInvalid
from backhaul.demo.writers.process import run_program, run_workload
from backhaul.demo.writers.spec import MAX_THREADS, BlockWriterSpec
from backhaul.demo.writers.workload import Workload
from backhaul.replication.ports import Clock, RealClock
from backhaul.replication.units import BLOCK, MAX_DISKS

_FLAGS: Final = os.O_RDWR | os.O_DSYNC | os.O_CLOEXEC


class BlockWriter(Workload):
    """Overwrites the regions of its disks. Never has two writes of one block in flight."""

    def __init__(self, spec: BlockWriterSpec, clock: Clock) -> None:
        if not 1 <= spec.threads <= MAX_THREADS:
            raise WriterSpecInvalid(reason=f"{spec.threads} threads; 1 to {MAX_THREADS} are possible")
        if not 1 <= len(spec.disks) <= MAX_DISKS:
            raise WriterSpecInvalid(reason=f"{len(spec.disks)} disks; 1 to {MAX_DISKS} are possible")
        super().__init__(spec, clock, spec.threads)
        self._spec = spec
        self._machine = machine_tag(spec.machine)
        self._descriptors: list[int] = []
        self._regions: list[Region] = []
        self._ends: list[int] = []
        self._busy: set[int] = set()
        self._buffers = threading.local()

    def _open(self) -> AckLog:
        for path in self._spec.disks:
            self._descriptors.append(_open_disk(path))
        self._regions = self._chosen_regions()
        self._ends = list(accumulate(region.blocks for region in self._regions))
        if self._ends[-1] < 2 * self._spec.threads:
            raise WriterSpecInvalid(reason=f"{self._ends[-1]} blocks are too few for {self._spec.threads} threads")
        contents, _ = scan(self._spec.disks, self._machine, self._regions)
        return AckLog.begin(self._spec.log, Origin(self._machine, self._regions, contents), self._clock)

    def _chosen_regions(self) -> list[Region]:
        sizes = [os.lseek(descriptor, 0, os.SEEK_END) // BLOCK for descriptor in self._descriptors]
        if not self._spec.regions:
            return [Region(disk, 0, blocks) for disk, blocks in enumerate(sizes) if blocks]
        for region in self._spec.regions:
            fits = 0 <= region.disk < len(sizes) and region.first >= 0 and region.blocks > 0
            if not fits or region.first + region.blocks > sizes[region.disk]:
                raise WriterSpecInvalid(reason=f"{region} is not on the disks, which have {sizes} blocks")
        return merged(Region(region.disk, region.first, region.blocks) for region in self._spec.regions)

    def _write(self, randomness: random.Random) -> int:
        with self._lock:
            disk, block = self._free_block(randomness)
            self._newest += 1
            sequence = self._newest
            self._busy.add(place(disk, block))
            wall_ns = self.log.issued(sequence, disk, block)
        stamp = Stamp(self._machine, self.log.incarnation, disk, block, sequence, wall_ns)
        buffer = self._buffer()
        buffer[:] = stamped_block(stamp, randomness.randbytes(NOISE_BYTES))
        began = self._clock.monotonic_ns()
        self._put(disk, block, buffer)
        latency_ns = self._clock.monotonic_ns() - began
        with self._lock:
            self.log.acknowledged(sequence, disk, block)
            self._busy.remove(place(disk, block))
        return latency_ns

    def _free_block(self, randomness: random.Random) -> tuple[int, int]:
        """A block without a write in flight; ends, as at least half of all blocks are free."""
        while True:
            number = randomness.randrange(self._ends[-1])
            index = bisect_right(self._ends, number)
            region = self._regions[index]
            block = region.first + number - (self._ends[index] - region.blocks)
            if place(region.disk, block) not in self._busy:
                return region.disk, block

    def _buffer(self) -> mmap.mmap:
        """The thread's own page, aligned as O_DIRECT needs it."""
        buffer: mmap.mmap | None = getattr(self._buffers, "page", None)
        if buffer is None:
            buffer = self._buffers.page = mmap.mmap(-1, BLOCK)
        return buffer

    def _put(self, disk: int, block: int, buffer: mmap.mmap) -> None:
        path = self._spec.disks[disk]
        try:
            written = os.pwritev(self._descriptors[disk], [buffer], block * BLOCK)
        except OSError as failure:
            raise WriterDiskFailed(what=f"Writing block {block}", path=path, reason=failure.strerror) from failure
        if written != BLOCK:
            raise WriterDiskFailed(what=f"Writing block {block}", path=path, reason=f"only {written} bytes went in")

    def _close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())


def _open_disk(path: Path) -> int:
    try:
        try:
            return os.open(path, _FLAGS | os.O_DIRECT)
        except OSError as failure:
            if failure.errno != errno.EINVAL:  # how a file system says that it cannot write directly
                raise
            return os.open(path, _FLAGS)
    except OSError as failure:
        raise WriterDiskFailed(what="Opening for writing", path=path, reason=failure.strerror) from failure


def run_block_writer(spec: BlockWriterSpec) -> int:
    """Write until told to stop; for the main thread of a process. Answers the exit code."""
    return run_workload(BlockWriter(spec, RealClock()), spec)


if __name__ == "__main__":
    sys.exit(run_program(sys.argv[1:], BlockWriterSpec, run_block_writer))
