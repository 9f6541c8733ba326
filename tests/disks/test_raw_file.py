"""What only a raw file does: holes, O_DIRECT or not, growing, and the kernel's errors."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import backhaul.disks.raw_file as raw_file_module
from backhaul.disks import RawFile, create_raw_file
from backhaul.disks.errors import (
    DiskExists,
    DiskFull,
    DiskMissing,
    DiskReadFailed,
    DiskSizeInvalid,
    DiskSyncFailed,
    DiskWriteFailed,
)
from backhaul.replication.units import MAX_DISK_BYTES, GiB, MiB, TiB

SIZE = 8 * MiB


def raw(tmp_path: Path, size: int = SIZE, *, writable: bool = True, direct: bool = True) -> RawFile:
    path = tmp_path / "disk.img"
    create_raw_file(path, size)
    return RawFile(path, writable=writable, direct=direct)


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_new_file_is_private_and_takes_no_space(tmp_path: Path) -> None:
    create_raw_file(tmp_path / "disk.img", 2 * TiB)
    status = (tmp_path / "disk.img").stat()
    assert status.st_size == 2 * TiB
    assert status.st_mode & 0o777 == 0o600
    assert allocated(tmp_path / "disk.img") == 0


def test_new_file_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(b"precious")
    with pytest.raises(DiskExists):
        create_raw_file(tmp_path / "disk.img", SIZE)
    assert (tmp_path / "disk.img").read_bytes() == b"precious"


def test_new_file_needs_its_folder(tmp_path: Path) -> None:
    with pytest.raises(DiskMissing):
        create_raw_file(tmp_path / "nowhere" / "disk.img", SIZE)


@pytest.mark.parametrize("size", [0, 100, 513, MAX_DISK_BYTES + 512], ids=["none", "part", "odd", "too-large"])
def test_sizes_that_are_no_disk(tmp_path: Path, size: int) -> None:
    with pytest.raises(DiskSizeInvalid):
        create_raw_file(tmp_path / "disk.img", size)
    if size < SIZE:
        (tmp_path / "other.img").write_bytes(bytes(size))
        with pytest.raises(DiskSizeInvalid):
            RawFile(tmp_path / "other.img", writable=False)


def test_holes_are_not_data(tmp_path: Path) -> None:
    disk = raw(tmp_path, 4 * GiB)
    disk.write(GiB, b"a" * 8192)
    disk.write(3 * GiB, b"b" * 4096)
    assert list(disk.data_ranges()) == [(GiB, 8192), (3 * GiB, 4096)]
    assert list(disk.data_ranges(GiB + 4096, 2 * GiB)) == [(GiB + 4096, 4096), (3 * GiB, 4096)]
    disk.close()


def test_zeroing_frees_space(tmp_path: Path) -> None:
    disk = raw(tmp_path)
    disk.write(0, b"x" * SIZE)
    disk.sync()
    before = allocated(tmp_path / "disk.img")
    disk.zero(MiB, 6 * MiB)
    assert allocated(tmp_path / "disk.img") <= before - 6 * MiB
    assert list(disk.data_ranges()) == [(0, MiB), (7 * MiB, MiB)]
    disk.close()


def test_zeroing_where_holes_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def unsupported(descriptor: int, offset: int, length: int) -> bool:
        asked.append(length)
        return False

    monkeypatch.setattr(raw_file_module, "punch_hole", unsupported)
    disk = raw(tmp_path)
    disk.write(0, b"x" * SIZE)
    disk.zero(4096, 3 * MiB)
    buffer = bytearray(SIZE)
    disk.read_into(0, buffer)
    assert asked == [3 * MiB]
    assert buffer == b"x" * 4096 + bytes(3 * MiB) + b"x" * (SIZE - 3 * MiB - 4096)
    disk.close()


def test_file_system_that_cannot_tell_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, position: int, whence: int) -> int:
        raise OSError(errno.EINVAL, "no SEEK_DATA here")

    disk = raw(tmp_path)
    monkeypatch.setattr(os, "lseek", refuse)
    assert list(disk.data_ranges(MiB, MiB)) == [(MiB, MiB)]
    disk.close()


def test_growing_adds_a_hole(tmp_path: Path) -> None:
    disk = raw(tmp_path)
    disk.write(SIZE - 4096, b"x" * 4096)
    disk.grow(2 * SIZE)
    assert disk.size == (tmp_path / "disk.img").stat().st_size == 2 * SIZE
    assert list(disk.data_ranges()) == [(SIZE - 4096, 4096)]
    disk.write(2 * SIZE - 4096, b"y" * 4096)
    disk.close()


def test_growing_to_and_from_an_odd_size(tmp_path: Path) -> None:
    disk = raw(tmp_path)
    was_direct = disk.direct
    disk.write(SIZE - 4096, b"x" * 4096)
    disk.grow(SIZE + 512)
    assert (disk.direct, disk.alignment) == (False, 512)
    disk.write(SIZE, b"y" * 512)
    disk.grow(SIZE + 4096)
    assert disk.direct == was_direct
    buffer = bytearray(8192)
    disk.read_into(SIZE - 4096, buffer)
    assert buffer == b"x" * 4096 + b"y" * 512 + bytes(3584)
    disk.close()


def test_direct_where_possible_and_only_when_wanted(tmp_path: Path) -> None:
    disk = raw(tmp_path)
    if not disk.direct:
        pytest.skip("the file system below tmp_path has no O_DIRECT")
    assert disk.alignment == 4096
    assert raw_file_flags(disk) & os.O_DIRECT
    other = RawFile(tmp_path / "disk.img", writable=False, direct=False)
    assert (other.direct, other.alignment) == (False, 512)
    assert not raw_file_flags(other) & os.O_DIRECT
    disk.close()
    other.close()


def raw_file_flags(disk: RawFile) -> int:
    """The open flags, as the kernel shows them for the one descriptor of that file that this test opened so."""
    for entry in Path("/proc/self/fdinfo").iterdir():
        target = Path("/proc/self/fd") / entry.name
        if not target.is_symlink() or str(target.readlink()) != disk.name:
            continue
        flags = int(entry.read_text().split("flags:")[1].split()[0], 8)
        if bool(flags & os.O_ACCMODE) == disk.writable:
            return flags
    raise AssertionError("no such descriptor")


def test_file_cut_short_below_is_an_error_not_zeros(tmp_path: Path) -> None:
    disk = raw(tmp_path)
    os.truncate(tmp_path / "disk.img", 4 * MiB)
    with pytest.raises(DiskReadFailed) as caught:
        disk.read_into(3 * MiB, bytearray(2 * MiB))
    assert caught.value.params["offset"] == 4 * MiB
    disk.close()


def failing_after(calls: int, number: int, real: Callable[..., int]) -> tuple[Callable[..., int], list[int]]:
    """`real` moving at most 4096 bytes a call, failing with errno `number` after so many calls."""
    seen: list[int] = []

    def call(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        seen.append(offset)
        if len(seen) > calls:
            raise OSError(number, os.strerror(number))
        return real(descriptor, [buffers[0][:4096]], offset)

    return call, seen


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (errno.EIO, DiskWriteFailed, "BH-DISK-WRITE"),
        (errno.ENOSPC, DiskFull, "BH-DISK-FULL"),
        (errno.EDQUOT, DiskFull, "BH-DISK-FULL"),
        (errno.EINVAL, DiskWriteFailed, "BH-DISK-WRITE"),
    ],
    ids=["EIO", "ENOSPC", "EDQUOT", "EINVAL"],
)
def test_failed_write_names_disk_and_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[DiskWriteFailed], code: str
) -> None:
    disk = raw(tmp_path, direct=False)
    call, seen = failing_after(2, number, os.pwritev)
    monkeypatch.setattr(os, "pwritev", call)
    with pytest.raises(DiskWriteFailed) as caught:
        disk.write(MiB, b"x" * 16384)
    assert seen[:3] == [MiB, MiB + 4096, MiB + 8192]
    assert type(caught.value) is kind
    assert caught.value.code == code
    assert caught.value.params["offset"] == MiB + 8192
    assert str(tmp_path / "disk.img") in caught.value.message
    disk.close()


def test_failed_read_names_disk_and_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = raw(tmp_path, direct=False)
    call, seen = failing_after(3, errno.EIO, os.preadv)
    monkeypatch.setattr(os, "preadv", call)
    with pytest.raises(DiskReadFailed) as caught:
        disk.read_into(MiB, bytearray(16384))
    assert seen[-1] == caught.value.params["offset"] == MiB + 12288
    assert caught.value.code == "BH-DISK-READ"
    disk.close()


def test_short_reads_and_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = raw(tmp_path, direct=False)
    data = os.urandom(65536)
    write, written = failing_after(16, errno.EIO, os.pwritev)
    read, reads = failing_after(16, errno.EIO, os.preadv)
    monkeypatch.setattr(os, "pwritev", write)
    monkeypatch.setattr(os, "preadv", read)
    disk.write(MiB, data)
    buffer = bytearray(65536)
    disk.read_into(MiB, buffer)
    assert (len(written), len(reads)) == (16, 16)
    assert buffer == data
    disk.close()


def test_failed_sync_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports a lost write-back once; a second sync that succeeded would be a lie."""
    disk = raw(tmp_path)
    calls: list[int] = []

    def fail_once(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            raise OSError(errno.EIO, "write-back failed")

    monkeypatch.setattr(os, "fdatasync", fail_once)
    with pytest.raises(DiskSyncFailed):
        disk.sync()
    with pytest.raises(DiskSyncFailed):
        disk.sync()
    with pytest.raises(DiskSyncFailed):
        disk.write(0, bytes(4096))
    with pytest.raises(DiskSyncFailed):
        disk.zero(0, 4096)
    assert len(calls) == 1
    disk.read_into(0, bytearray(4096))
    disk.close()
