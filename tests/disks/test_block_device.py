"""What only a block device does: claiming, growing with its device, zeroing by command. Needs loop devices."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import backhaul.disks.block_device as block_device_module
from backhaul.disks import BlockDevice, open_disk
from backhaul.disks.errors import DiskBusy, DiskGrowFailed, DiskUnsupported
from backhaul.disks.zeroing import zero_out
from backhaul.replication.units import MiB

pytestmark = pytest.mark.root
SIZE = 8 * MiB
MakeLoop = Callable[[int], Path]


def read(disk: BlockDevice, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    disk.read_into(offset, buffer)
    return bytes(buffer)


def test_is_direct_with_its_sector_as_alignment(loop_device: MakeLoop) -> None:
    disk = BlockDevice(loop_device(SIZE), writable=False)
    assert disk.direct
    assert disk.alignment == 512
    assert list(disk.data_ranges()) == [(0, SIZE)]
    disk.close()


def test_device_that_is_claimed_is_refused_for_writing(loop_device: MakeLoop) -> None:
    device = loop_device(SIZE)
    holder = os.open(device, os.O_RDONLY | os.O_EXCL)  # as a mount holds it
    with pytest.raises(DiskBusy) as caught:
        BlockDevice(device, writable=True)
    assert caught.value.code == "BH-DISK-BUSY"
    BlockDevice(device, writable=False).close()
    os.close(holder)
    BlockDevice(device, writable=True).close()


@pytest.mark.parametrize("way", ["punched", "zeroed-out", "written"])
def test_every_way_of_zeroing(loop_device: MakeLoop, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    taken: list[str] = []

    def punch(descriptor: int, offset: int, length: int) -> bool:
        taken.append("punch")
        return False

    def zeroed_out(descriptor: int, offset: int, length: int) -> bool:
        taken.append("zeroed-out")
        return way == "zeroed-out" and zero_out(descriptor, offset, length)

    if way != "punched":
        monkeypatch.setattr(block_device_module, "punch_hole", punch)
        monkeypatch.setattr(block_device_module, "zero_out", zeroed_out)
    disk = BlockDevice(loop_device(SIZE), writable=True)
    disk.write(0, b"x" * SIZE)
    disk.zero(MiB + 512, 3 * MiB)
    assert read(disk, 0, SIZE) == b"x" * (MiB + 512) + bytes(3 * MiB) + b"x" * (SIZE - 4 * MiB - 512)
    assert taken == ([] if way == "punched" else ["punch", "zeroed-out"])
    disk.close()


def test_punching_frees_the_image_below(loop_device: MakeLoop, tmp_path: Path) -> None:
    disk = BlockDevice(loop_device(SIZE), writable=True)
    disk.write(0, b"x" * SIZE)
    disk.sync()
    disk.zero(0, SIZE)
    disk.sync()
    assert (tmp_path / "loop-0.img").stat().st_blocks == 0
    disk.close()


def test_grows_with_its_device_only(loop_device: MakeLoop, tmp_path: Path) -> None:
    device = loop_device(SIZE)
    disk = BlockDevice(device, writable=True)
    disk.write(SIZE - 4096, b"x" * 4096)
    with pytest.raises(DiskGrowFailed):
        disk.grow(2 * SIZE)
    assert disk.size == SIZE
    with (tmp_path / "loop-0.img").open("r+b") as image:
        image.seek(SIZE)
        image.write(b"old content of a volume" * 1000)
        image.truncate(2 * SIZE)
    subprocess.run(["losetup", "--set-capacity", str(device)], check=True)
    disk.grow(2 * SIZE)
    assert disk.size == 2 * SIZE
    assert read(disk, SIZE - 4096, 4096) == b"x" * 4096
    assert read(disk, SIZE, SIZE) == bytes(SIZE)
    disk.close()


def test_opened_by_what_it_is(loop_device: MakeLoop, tmp_path: Path) -> None:
    link = tmp_path / "by-id"
    link.symlink_to(loop_device(SIZE))
    disk = open_disk(link, writable=True)
    assert isinstance(disk, BlockDevice)
    disk.close()


def test_regular_file_is_no_block_device(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(4096))
    with pytest.raises(DiskUnsupported):
        BlockDevice(tmp_path / "disk.img", writable=False)
