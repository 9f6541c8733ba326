"""A disk of 2 TiB with little data goes there and back with `stopped` points, in bounded memory."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from backhaul.disks.opening import open_disk
from backhaul.disks.raw_file import create_raw_file
from backhaul.replication.units import GRANULE, GiB, MiB, TiB
from dataplane.plane import Machine
from dataplane.processes.plane import ProcessPlane, Service, running_processes

SIZE = 2 * TiB

MEMORY_BOUND: Final = 256 * MiB
"""Most memory of any service (VmHWM), measured 124 MiB with 1 GiB of data: an interpreter with its libraries (60 MiB),
a window of frames that wait for the process server or a batch that is being applied (64 MiB), hashes of the granules
with data (16 KiB per GiB) and some bytes per range of 16 MiB; the rest is room for allocators. A dense map alone
would be 512 MiB.
"""


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ProcessPlane]:
    async with running_processes(tmp_path) as running:
        yield running


def scatter(image: Path, seed: int, total: int) -> None:
    """`total` bytes of noise in pieces all over the disk, its first and last bytes among them."""
    chance = random.Random(seed)
    piece = 256 * 1024
    places = [0, SIZE - piece, *(chance.randrange(SIZE // GRANULE - 4) * GRANULE for _ in range(total // piece - 2))]
    with image.open("r+b") as file:
        for place in places:
            file.seek(place)
            file.write(chance.randbytes(piece))


def copy_sparse(source: Path, destination: Path) -> None:
    """The data only: what a reflink does at once."""
    create_raw_file(destination, source.stat().st_size)
    disk = open_disk(source, writable=False, direct=False)
    try:
        with destination.open("r+b") as file:
            for offset, length in disk.data_ranges():
                buffer = bytearray(length)
                disk.read_into(offset, buffer)
                file.seek(offset)
                file.write(buffer)
    finally:
        disk.close()


def assert_same_content(one: Path, other: Path) -> int:
    """Equal wherever either has data; how many bytes that was."""
    total = 0
    with one.open("rb") as left, other.open("rb") as right:
        for image in (one, other):
            disk = open_disk(image, writable=False, direct=False)
            for offset, length in disk.data_ranges():
                left.seek(offset)
                right.seek(offset)
                assert left.read(length) == right.read(length), f"{length} bytes at {offset} differ"
                total += length
            disk.close()
    return total


def peak_bytes(service: Service) -> int:
    """Most memory the process ever had."""
    lines = Path(f"/proc/{service.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def assert_bounded(plane: ProcessPlane, machine: Machine) -> None:
    peaks = {name: peak_bytes(plane.service(name, machine)) for name in ("agent", "relay", "target")}
    print({name: f"{peak // MiB} MiB" for name, peak in peaks.items()})
    assert max(peaks.values()) < MEMORY_BOUND, peaks


@pytest.mark.timeout(900)
async def test_two_tebibytes_go_there_and_back(plane: ProcessPlane, seed: int, deep: bool) -> None:
    image = plane.folder / "web-0.img"
    create_raw_file(image, SIZE)
    scatter(image, seed, GiB if deep else 6 * MiB)
    machine = await plane.protect("web", [SIZE], disks=[image])
    await plane.complete_after(machine.item, within_s=600)
    assert_bounded(plane, machine)
    assert assert_same_content(image, plane.replicas(machine)[0]) > 0
    await machine.agent.stop()
    await plane.promote(machine, 2)
    layer = plane.folder / "layer.img"
    copy_sparse(plane.replicas(machine)[0], layer)
    scatter(layer, seed + 1, MiB)
    home = await plane.protect("wez", [SIZE], disks=[layer], paths=[str(image)])
    await plane.complete_after(home.item, within_s=600)
    assert_bounded(plane, home)
    assert assert_same_content(layer, image) > 0
    sent = plane.by_agent.passed["up"]
    assert sent < (GiB + 64 * MiB if deep else 16 * MiB), "only what differs travels home"
