"""The contract's suite: every disk passes every test here."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from backhaul.disks import Disk, aligned_buffer
from backhaul.disks.errors import (
    DiskReadFailed,
    DiskReadOnly,
    DiskShrinkRefused,
    DiskSizeInvalid,
    DiskWriteFailed,
    Misaligned,
    OutOfBounds,
)
from backhaul.replication.units import GRANULE, MiB

SIZE = 8 * MiB
ODD_SIZE = 3 * MiB + 512  # whole sectors, no whole block

OpenDisk = Callable[..., Disk]


def pattern(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def read(disk: Disk, offset: int, length: int) -> bytes:
    buffer = bytearray(b"\xee" * length)
    disk.read_into(offset, buffer)
    return bytes(buffer)


def test_new_disk_reads_as_zeros(open_new: OpenDisk) -> None:
    disk = open_new(SIZE)
    assert disk.size == SIZE
    assert read(disk, 0, SIZE) == bytes(SIZE)


def test_says_what_it_is(open_new: OpenDisk) -> None:
    disk = open_new(SIZE)
    assert disk.name
    assert disk.writable
    assert disk.alignment in (512, 4096)


@pytest.mark.parametrize("size", [4096, GRANULE, MiB, 3 * MiB + 4096], ids=["block", "granule", "chunk", "many"])
def test_what_is_written_is_read(open_new: OpenDisk, size: int) -> None:
    disk = open_new(SIZE)
    data = pattern(size)
    disk.write(2 * MiB, data)
    assert read(disk, 2 * MiB, size) == data
    assert read(disk, 0, 2 * MiB) == bytes(2 * MiB)
    assert read(disk, 2 * MiB + size, SIZE - 2 * MiB - size) == bytes(SIZE - 2 * MiB - size)


@pytest.mark.parametrize("shift", [0, 1, 8, 511, 512, 4095], ids=lambda shift: f"shift-{shift}")
def test_memory_of_any_alignment(open_new: OpenDisk, shift: int) -> None:
    disk = open_new(SIZE)
    size = 2 * MiB + 8192  # longer than a bounce buffer
    memory = aligned_buffer(size + 4096)
    memory[shift : shift + size] = data = pattern(size)
    disk.write(4096, memory[shift : shift + size])
    back = aligned_buffer(size + 4096)
    disk.read_into(4096, back[shift : shift + size])
    assert back[shift : shift + size].tobytes() == data
    assert not any(back[:shift])
    assert not any(back[shift + size :])


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview], ids=["bytes", "bytearray", "memoryview"])
def test_writes_every_kind_of_buffer(open_new: OpenDisk, kind: Callable[[bytes], bytes]) -> None:
    disk = open_new(SIZE)
    disk.write(8192, kind(pattern(4096)))
    assert read(disk, 8192, 4096) == pattern(4096)


def test_is_durable_and_there_when_opened_again(open_new: OpenDisk) -> None:
    disk = open_new(SIZE)
    disk.write(MiB, pattern(MiB))
    disk.sync()
    disk.close()
    again = open_new(again=True, writable=False)
    assert read(again, MiB, MiB) == pattern(MiB)


def test_disk_that_ends_inside_a_block(open_new: OpenDisk) -> None:
    disk = open_new(ODD_SIZE)
    assert disk.size == ODD_SIZE
    tail = pattern(4096 + 512)
    disk.write(3 * MiB - 4096, tail)
    assert read(disk, 3 * MiB - 4096, 4096 + 512) == tail
    assert read(disk, 3 * MiB, 512) == tail[4096:]
    disk.zero(3 * MiB, 512)
    assert read(disk, 3 * MiB - 4096, 4096 + 512) == tail[:4096] + bytes(512)
    assert all(offset + length <= ODD_SIZE for offset, length in disk.data_ranges())
    assert disk.size == ODD_SIZE


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, SIZE), (4096, 4096), (MiB - 4096, 8192), (3 * MiB, 0)],
    ids=["whole", "block", "across", "nothing"],
)
def test_zeroed_range_reads_as_zeros_and_nothing_else_does(open_new: OpenDisk, offset: int, length: int) -> None:
    disk = open_new(SIZE)
    data = pattern(SIZE)
    disk.write(0, data)
    disk.zero(offset, length)
    disk.sync()
    assert read(disk, 0, SIZE) == data[:offset] + bytes(length) + data[offset + length :]
    assert disk.size == SIZE


def test_data_ranges_leave_out_nothing_but_zeros(open_new: OpenDisk) -> None:
    disk = open_new(SIZE)
    model = bytearray(SIZE)
    for offset, length in [(0, 4096), (MiB, 3 * 4096), (5 * MiB - 4096, 8192), (SIZE - 4096, 4096)]:
        model[offset : offset + length] = pattern(length, offset)
        disk.write(offset, pattern(length, offset))
    position = 0
    for offset, length in disk.data_ranges():
        assert offset >= position
        assert length > 0
        assert offset % disk.alignment == 0
        assert not any(model[position:offset])
        assert read(disk, offset, length) == model[offset : offset + length]
        position = offset + length
    assert not any(model[position:])
    assert position <= SIZE


def test_data_ranges_stay_within_what_was_asked(open_new: OpenDisk) -> None:
    disk = open_new(SIZE)
    disk.write(0, pattern(SIZE))
    assert list(disk.data_ranges(MiB, 2 * MiB)) == [(MiB, 2 * MiB)]
    assert list(disk.data_ranges(MiB, 0)) == []
    with pytest.raises(OutOfBounds):
        disk.data_ranges(0, SIZE + 4096)


@pytest.mark.parametrize(
    ("offset", "length"), [(SIZE, 4096), (SIZE - 4096, 8192), (-4096, 4096)], ids=["behind", "across", "before"]
)
def test_out_of_bounds_is_refused_and_changes_nothing(open_new: OpenDisk, offset: int, length: int) -> None:
    disk = open_new(SIZE)
    with pytest.raises(OutOfBounds):
        disk.read_into(offset, bytearray(length))
    with pytest.raises(OutOfBounds):
        disk.write(offset, b"x" * length)
    with pytest.raises(OutOfBounds) as caught:
        disk.zero(offset, length)
    assert caught.value.code == "BH-DISK-BOUNDS"
    assert disk.name in str(caught.value)
    assert str(offset) in str(caught.value)
    assert read(disk, 0, SIZE) == bytes(SIZE)


@pytest.mark.parametrize(("offset", "length"), [(100, 4096), (0, 100)], ids=["offset", "length"])
def test_misaligned_is_refused(open_new: OpenDisk, offset: int, length: int) -> None:
    disk = open_new(SIZE)
    with pytest.raises(Misaligned):
        disk.read_into(offset, bytearray(length))
    with pytest.raises(Misaligned):
        disk.write(offset, bytes(length))
    with pytest.raises(Misaligned):
        disk.zero(offset, length)


def test_read_only_disk_refuses_to_change(open_new: OpenDisk) -> None:
    disk = open_new(SIZE, writable=False)
    assert not disk.writable
    with pytest.raises(DiskReadOnly):
        disk.write(0, bytes(4096))
    with pytest.raises(DiskReadOnly):
        disk.zero(0, 4096)
    with pytest.raises(DiskReadOnly):
        disk.grow(2 * SIZE)
    with pytest.raises(DiskReadOnly):
        disk.sync()
    assert read(disk, 0, 4096) == bytes(4096)


def test_never_shrinks(open_new: OpenDisk) -> None:
    disk = open_new(SIZE)
    disk.write(SIZE - 4096, pattern(4096))
    with pytest.raises(DiskShrinkRefused):
        disk.grow(SIZE - 4096)
    with pytest.raises(DiskSizeInvalid):
        disk.grow(SIZE + 100)
    disk.grow(SIZE)
    assert disk.size == SIZE
    assert read(disk, SIZE - 4096, 4096) == pattern(4096)


def test_several_threads_share_a_disk(open_new: OpenDisk) -> None:
    disk = open_new(SIZE)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(8):
                data = pattern(MiB, number * 100 + turn)
                disk.write(number * 2 * MiB, data)  # bytes are not aligned: each thread needs its own bounce buffer
                assert read(disk, number * 2 * MiB, MiB) == data
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_closed_disk_fails_and_closes_again(open_new: OpenDisk) -> None:
    disk = open_new(SIZE)
    disk.close()
    disk.close()
    with pytest.raises(DiskReadFailed):
        disk.read_into(0, bytearray(4096))
    with pytest.raises(DiskWriteFailed):
        disk.write(0, bytes(4096))
