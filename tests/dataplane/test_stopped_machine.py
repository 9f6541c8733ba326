"""A stopped machine is read once, under a still image that is given up as soon as somebody starts the machine."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backhaul.disks.descriptor import DescriptorDisk
from backhaul.mobility.errors import ImageNotStill
from backhaul.replication.source import WINDOW_BYTES
from backhaul.replication.units import CHUNK, GRANULE, MiB
from backhaul.replication.values import ItemPolicy
from dataplane.plane import Plane, running_plane, writable


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    async with running_plane(tmp_path) as running:
        yield running


async def test_an_initial_replication_reads_its_disk_once(
    plane: Plane, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, size = plane.folder / "web-0.img", 24 * MiB
    disk.write_bytes(random.Random(seed).randbytes(size))
    read = 0
    original = DescriptorDisk.read_into

    def counted(self: DescriptorDisk, offset: int, buffer: bytearray | memoryview) -> None:
        nonlocal read
        read += len(buffer) if self.name == str(disk) else 0
        original(self, offset, buffer)

    monkeypatch.setattr(DescriptorDisk, "read_into", counted)
    machine = await plane.protect("web", [size], disks=[disk], policy=ItemPolicy(point_interval_s=3600))
    await plane.complete_after(machine.item)
    assert plane.replicas(machine)[0].read_bytes() == disk.read_bytes()
    assert read == size


async def write(disk: Path, noise: random.Random, length: int) -> None:
    """As the machine would; the agent, on this event loop, waits meanwhile."""
    with await writable(disk) as file:
        for _ in range(-(-length // CHUNK)):
            file.write(noise.randbytes(min(CHUNK, length)))


async def test_who_starts_the_machine_does_not_wait_for_a_link_that_is_down(plane: Plane, seed: int) -> None:
    size = WINDOW_BYTES + 8 * CHUNK
    machine = await plane.protect("web", [size], policy=ItemPolicy(point_interval_s=1.0))
    await plane.complete_after(machine.item)
    await plane.relay.stop()
    noise = random.Random(seed)
    await write(machine.disks[0], noise, size)

    async def window_is_full() -> bool:
        return any(item.unspooled_bytes >= WINDOW_BYTES for report in machine.control.reports for item in report.items)

    await plane.until(window_is_full, "the agent can send no more and holds the image")

    async def image_is_held() -> bool:
        try:
            os.close(os.open(machine.disks[0], os.O_RDWR | os.O_NONBLOCK))
        except BlockingIOError:
            return True
        return False

    await plane.until(image_is_held, "the agent holds the image")

    async def given_up() -> bool:
        return any(item.code == ImageNotStill.code for report in machine.control.reports for item in report.items)

    await plane.until(given_up, "the agent gives the image up")
    await write(machine.disks[0], noise, GRANULE)
    await plane.relay.start()
    await plane.caught_up(machine)
    assert plane.replicas(machine)[0].read_bytes() == machine.disks[0].read_bytes()
