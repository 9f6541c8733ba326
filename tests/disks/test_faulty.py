"""The faulty disk does what its plan says, once, and counts."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from backhaul.disks import RawFile, create_raw_file
from backhaul.disks.errors import DiskFull, DiskGrowFailed, DiskReadFailed, DiskSyncFailed, DiskWriteFailed, OutOfBounds
from backhaul.disks.faulty import Fault, FaultyDisk, Operation
from backhaul.replication.units import MiB


@pytest.fixture
def inner(tmp_path: Path) -> Iterator[RawFile]:
    create_raw_file(tmp_path / "disk.img", MiB)
    disk = RawFile(tmp_path / "disk.img", writable=True)
    yield disk
    disk.close()


def read(disk: RawFile | FaultyDisk, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    disk.read_into(offset, buffer)
    return bytes(buffer)


def test_nth_read_fails_and_the_next_does_not(inner: RawFile) -> None:
    fault = Fault(Operation.READ, 2)
    disk = FaultyDisk(inner, [fault])
    read(disk, 0, 4096)
    with pytest.raises(DiskReadFailed) as caught:
        read(disk, 8192, 4096)
    assert caught.value.params["offset"] == 8192
    assert disk.fired == [fault]
    read(disk, 8192, 4096)
    assert disk.counts[Operation.READ] == 3


def test_torn_write(inner: RawFile) -> None:
    disk = FaultyDisk(inner, [Fault(Operation.WRITE, 1, errno=errno.EIO, kept=8192)])
    with pytest.raises(DiskWriteFailed) as caught:
        disk.write(4096, b"x" * 16384)
    assert caught.value.params["offset"] == 4096 + 8192
    assert read(inner, 4096, 16384) == b"x" * 8192 + bytes(8192)


def test_short_read_leaves_the_rest_of_the_buffer(inner: RawFile) -> None:
    inner.write(0, b"x" * 8192)
    disk = FaultyDisk(inner, [Fault(Operation.READ, 1, kept=4096)])
    buffer = bytearray(b"\xee" * 8192)
    with pytest.raises(DiskReadFailed):
        disk.read_into(0, buffer)
    assert buffer == b"x" * 4096 + b"\xee" * 4096


def test_full_disk_and_torn_zeroing(inner: RawFile) -> None:
    inner.write(0, b"x" * 8192)
    plan = [Fault(Operation.WRITE, 1, errno=errno.ENOSPC), Fault(Operation.ZERO, 1, kept=4096)]
    disk = FaultyDisk(inner, plan)
    with pytest.raises(DiskFull):
        disk.write(0, b"y" * 4096)
    with pytest.raises(DiskWriteFailed):
        disk.zero(0, 8192)
    assert read(inner, 0, 8192) == bytes(4096) + b"x" * 4096
    assert disk.fired == plan


def test_failed_sync_poisons(inner: RawFile) -> None:
    disk = FaultyDisk(inner, [Fault(Operation.SYNC, 1)])
    for _ in range(2):
        with pytest.raises(DiskSyncFailed):
            disk.sync()
    with pytest.raises(DiskSyncFailed):
        disk.write(0, bytes(4096))
    assert disk.counts[Operation.SYNC] == 1
    assert disk.counts[Operation.WRITE] == 0


def test_failed_growth_changes_nothing(inner: RawFile) -> None:
    disk = FaultyDisk(inner, [Fault(Operation.GROW, 1)])
    with pytest.raises(DiskGrowFailed):
        disk.grow(2 * MiB)
    assert disk.size == MiB
    disk.grow(2 * MiB)
    assert disk.size == 2 * MiB


def test_something_done_before_a_call(inner: RawFile) -> None:
    disk = FaultyDisk(
        inner, [Fault(Operation.READ, 1, errno=None, before=lambda: inner.write(0, b"late" + bytes(4092)))]
    )
    assert read(disk, 0, 4096)[:4] == b"late"


def test_refused_calls_do_not_count(inner: RawFile) -> None:
    disk = FaultyDisk(inner)
    with pytest.raises(OutOfBounds):
        disk.read_into(MiB, bytearray(4096))
    assert disk.counts[Operation.READ] == 0
