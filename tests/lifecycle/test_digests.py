"""The request `item.digests` of a master target, against the disks themselves."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backhaul.configuration_server.lifecycle.integrity import SPAN
from backhaul.disks.digests import read_digests
from backhaul.disks.faulty import FaultyDisk, Operation
from backhaul.disks.opening import open_disk
from backhaul.disks.raw_file import create_raw_file
from backhaul.master_target.control import MAX_DIGESTS
from backhaul.replication.control import Method
from backhaul.replication.units import RANGE, MiB, TiB
from dataplane.plane import Machine, Plane, RequestFailed, running_plane

SIZE = RANGE + 3 * MiB + 512
"""Two ranges, the second one short, its last granule shorter still."""


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    async with running_plane(tmp_path) as running:
        yield running


async def replicated(plane: Plane) -> Machine:
    """A machine with data in both ranges, whole at its target, and its agent gone."""
    disk = plane.folder / "web.img"
    disk.write_bytes(os.urandom(MiB) + bytes(SIZE - 2 * MiB) + os.urandom(MiB))
    machine = await plane.protect("web", [SIZE], disks=[disk])
    await plane.complete_after(machine.item)
    await machine.agent.stop()
    return machine


async def asked(plane: Plane, machine: Machine, first: int, count: int, *, reread: bool, disk: int = 0) -> list[bytes]:
    answer = await plane.request(
        Method.ITEM_DIGESTS, item=machine.item, disk=disk, first=first, count=count, reread=reread
    )
    return [bytes(digest) for digest in answer["digests"]]


def of_source(plane: Plane, machine: Machine) -> list[bytes]:
    """What the source's disk itself gives, under the item's key."""
    assert plane.master_target is not None
    disk = open_disk(machine.disks[0], writable=False)
    try:
        return read_digests(disk, plane.master_target.worker(machine.item).item.replica.key, 0, 2)
    finally:
        disk.close()


async def test_equal_disks_have_equal_digests_range_by_range(plane: Plane) -> None:
    machine = await replicated(plane)
    source = of_source(plane, machine)
    assert len(set(source)) == 2
    for reread in (False, True):
        assert await asked(plane, machine, 0, 2, reread=reread) == source
        assert await asked(plane, machine, 1, 1, reread=reread) == source[1:]


async def test_a_flipped_bit_is_seen_by_reading_and_not_by_the_map(plane: Plane) -> None:
    machine = await replicated(plane)
    source = of_source(plane, machine)
    assert await asked(plane, machine, 0, 2, reread=False) == source
    with plane.replicas(machine)[0].open("r+b") as replica:
        replica.seek(SIZE - 1)
        byte = replica.read(1)[0]
        replica.seek(SIZE - 1)
        replica.write(bytes([byte ^ 1]))
    assert await asked(plane, machine, 0, 2, reread=False) == source
    found = await asked(plane, machine, 0, 2, reread=True)
    assert found[0] == source[0]
    assert found[1] != source[1]


@pytest.mark.parametrize(
    ("disk", "first", "count"),
    [(1, 0, 1), (-1, 0, 1), (0, 2, 1), (0, -1, 1), (0, 0, 3), (0, 0, MAX_DIGESTS + 1)],
    ids=["no disk", "negative disk", "behind", "negative", "too many", "above the bound"],
)
@pytest.mark.parametrize("reread", [False, True], ids=["map", "read"])
async def test_what_does_not_exist_is_refused(plane: Plane, disk: int, first: int, count: int, reread: bool) -> None:
    machine = await replicated(plane)
    with pytest.raises(RequestFailed) as refused:
        await asked(plane, machine, first, count, reread=reread, disk=disk)
    assert refused.value.code.startswith("BH-")
    assert await asked(plane, machine, 0, 1, reread=False), "the target serves on"


async def test_a_request_reads_so_much_and_answers_for_that(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a range at least, so that whoever asks again from there on comes to an end."""
    monkeypatch.setattr("backhaul.disks.digests._STEP", 1)
    machine = await replicated(plane)
    source = of_source(plane, machine)
    assert await asked(plane, machine, 0, 2, reread=False) == source
    monkeypatch.setattr("backhaul.master_target.control.DIGEST_BYTES", MiB)
    assert await asked(plane, machine, 0, 2, reread=True) == source[:1]
    assert await asked(plane, machine, 1, 1, reread=True) == source[1:]
    assert await asked(plane, machine, 0, 2, reread=False) == source, "by the map there is nothing to read"


def test_holes_are_not_read_and_count_for_nothing(tmp_path: Path) -> None:
    """A terabyte of them is one request."""
    create_raw_file(tmp_path / "disk", TiB)
    with (tmp_path / "disk").open("r+b") as file:
        file.seek(TiB // 2)
        file.write(os.urandom(MiB))
    disk = FaultyDisk(open_disk(tmp_path / "disk", writable=False))
    digests = read_digests(disk, bytes(32), 0, TiB // RANGE, budget=2 * MiB)
    assert len(digests) == TiB // RANGE
    assert disk.counts[Operation.READ] == 1, "the mebibyte of data, in one piece"
    assert len(set(digests)) == 2
    disk.close()


def test_what_the_report_asks_at_once_is_within_the_bound() -> None:
    assert SPAN <= MAX_DIGESTS
