"""A writer under full control: each write is issued, reaches its image, and is acknowledged when told to.

Real stamps and a real log, images in memory: with it the tests make every history that a writer with several
writes in flight can have, and every fault the oracle must catch. Simulated are only the disks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from backhaul.demo.oracle.acklog import AckLog, Origin, Region
from backhaul.demo.oracle.checker import scan
from backhaul.demo.oracle.stamps import NOISE_BYTES, Stamp, disk_and_block, machine_tag, place, stamped_block
from backhaul.replication.ports import Clock
from backhaul.replication.units import BLOCK

TICK_NS: Final = 1_000_000
"""The simulated clock goes on by a millisecond with every look at it."""


class TickingClock:
    """A clock that goes on by TICK_NS with every look, from `start_ns`."""

    def __init__(self, start_ns: int = 1_700_000_000_000_000_000) -> None:
        self.now_ns = start_ns

    def wall_ns(self) -> int:
        self.now_ns += TICK_NS
        return self.now_ns

    def monotonic_ns(self) -> int:
        return self.wall_ns()


class SimulatedWriter:
    """One incarnation over images in memory; `images` are changed in place."""

    def __init__(self, folder: Path, images: Sequence[bytearray], clock: Clock, machine: str = "simulated") -> None:
        self.images = images
        self._machine = machine_tag(machine)
        regions = [Region(disk, 0, len(image) // BLOCK) for disk, image in enumerate(images)]
        contents, _ = scan([bytes(image) for image in images], self._machine, regions)
        self.log = AckLog.begin(folder, Origin(self._machine, regions, contents), clock)
        self._places: dict[int, int] = {}
        self._stamps: dict[int, bytes] = {}
        self.newest = self.log.first_sequence - 1

    def issue(self, disk: int, block: int) -> int:
        """Log that a write begins; nothing reaches the image. Answers its sequence."""
        self.newest += 1
        wall_ns = self.log.issued(self.newest, disk, block)
        stamp = Stamp(self._machine, self.log.incarnation, disk, block, self.newest, wall_ns)
        self._places[self.newest] = place(disk, block)
        self._stamps[self.newest] = stamped_block(stamp, bytes([self.newest & 0xFF]) * NOISE_BYTES)
        return self.newest

    def land(self, sequence: int) -> None:
        """The write reaches its image."""
        disk, block = disk_and_block(self._places[sequence])
        self.images[disk][block * BLOCK : (block + 1) * BLOCK] = self._stamps[sequence]

    def acknowledge(self, sequence: int) -> None:
        """Log that the write was acknowledged."""
        self.log.acknowledged(sequence, *disk_and_block(self._places[sequence]))

    def write(self, disk: int, block: int) -> int:
        """A whole write, nothing else meanwhile. Answers its sequence."""
        sequence = self.issue(disk, block)
        self.land(sequence)
        self.acknowledge(sequence)
        return sequence

    def stamp(self, sequence: int) -> bytes:
        """The 4 KiB of a write."""
        return self._stamps[sequence]
