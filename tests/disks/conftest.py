"""The disks that the contract's suite runs over, and loop devices that are always given back."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backhaul.disks import BlockDevice, Disk, RawFile, create_raw_file
from backhaul.disks.faulty import FaultyDisk
from backhaul.replication.units import MiB

OpenDisk = Callable[..., Disk]
"""open_new(size, writable=True): a disk of zeros. Called again with `again=True`: the same disk opened anew."""


def attach_loop(image: Path) -> Path:
    """A loop device over `image`; the caller detaches it."""
    done = subprocess.run(["losetup", "--find", "--show", str(image)], check=True, capture_output=True, text=True)
    return Path(done.stdout.strip())


def detach_loop(device: Path) -> None:
    subprocess.run(["losetup", "--detach", str(device)], check=True)


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes loop devices of so many bytes, each over a file named `loop-N.img`."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    devices: list[Path] = []

    def make(size: int) -> Path:
        image = tmp_path / f"loop-{len(devices)}.img"
        create_raw_file(image, size)
        devices.append(attach_loop(image))
        return devices[-1]

    try:
        yield make
    finally:
        for device in devices:
            detach_loop(device)


KINDS = [
    pytest.param("raw-direct", id="raw-direct"),
    pytest.param("raw-buffered", id="raw-buffered"),
    pytest.param("block-device", id="block-device", marks=pytest.mark.root),
    pytest.param("faulty", id="faulty-without-faults"),
]


@pytest.fixture(params=KINDS)
def open_new(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenDisk]:
    """Opens the kind of disk under test."""
    kind: str = request.param
    opened: list[Disk] = []
    made: list[Path] = []

    def open_one(size: int = 8 * MiB, *, writable: bool = True, again: bool = False) -> Disk:
        if not again:
            if kind == "block-device":
                made.append(request.getfixturevalue("loop_device")(size))
            else:
                made.append(tmp_path / f"disk-{len(made)}.img")
                create_raw_file(made[-1], size)
        opened.append(_open(kind, made[-1], writable=writable))
        return opened[-1]

    try:
        yield open_one
    finally:
        for disk in opened:
            disk.close()


def _open(kind: str, path: Path, *, writable: bool) -> Disk:
    if kind == "block-device":
        return BlockDevice(path, writable=writable)
    if kind == "raw-buffered":
        return RawFile(path, writable=writable, direct=False)
    disk = RawFile(path, writable=writable)
    if kind == "faulty":
        return FaultyDisk(disk)
    if not disk.direct and disk.size % 4096 == 0:
        disk.close()
        pytest.skip("the file system below tmp_path has no O_DIRECT")
    return disk
