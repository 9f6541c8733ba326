"""Frozen disks as still images: which file systems that takes, and what ends the stillness."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from backhaul.mobility.errors import FreezeHeld, ImageNotStill, NotFreezable
from backhaul.mobility.freezer_client import Freezer, thaw_held
from backhaul.mobility.frozen import FrozenDisks, freezable_mounts
from backhaul.replication.values import Consistency, StillKind
from mobility.conftest import SHORT_S, Volumes, eventually

pytestmark = pytest.mark.root


@pytest.fixture
def freezer(volumes: Volumes) -> Iterator[Freezer]:
    with Freezer(state_folder=volumes.state) as found:
        yield found


def _digest(image: Path) -> bytes:
    return hashlib.sha256(image.read_bytes()).digest()


@pytest.mark.parametrize("by", ["image", "device"])
def test_disks_do_not_change_while_somebody_writes(volumes: Volumes, freezer: Freezer, by: str) -> None:
    disks = volumes.images if by == "image" else [Path(loop) for loop in volumes.loops]
    ended, counts = threading.Event(), [0]

    def write() -> None:
        while not ended.is_set():
            for point in volumes.points:
                descriptor = os.open(point / "busy", os.O_WRONLY | os.O_CREAT | os.O_SYNC)
                os.pwrite(descriptor, os.urandom(4096), counts[0] % 64 * 4096)
                os.close(descriptor)
            counts[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        eventually(lambda: counts[0] > 3, "the writer writes")
        with FrozenDisks(freezer, disks, 30.0).hold() as still:
            assert (still.kind, still.consistency) == (StillKind.FROZEN, Consistency.FILE_SYSTEM)
            before = [_digest(image) for image in volumes.images]
            while_frozen = counts[0]
            assert [_digest(image) for image in volumes.images] == before
            assert counts[0] - while_frozen <= 1
            still.confirm()
            assert still.frozen_us > 0
        count = counts[0]
        eventually(lambda: counts[0] > count + 3, "the writer goes on")
    finally:
        ended.set()
        writer.join()
    assert [_digest(image) for image in volumes.images] != before


def test_the_limit_ends_it(volumes: Volumes, freezer: Freezer) -> None:
    with FrozenDisks(freezer, volumes.images, SHORT_S).hold() as still:
        volumes.accept_writes()
        with pytest.raises(ImageNotStill):
            still.confirm()
        with pytest.raises(ImageNotStill, match="ended before"):
            still.confirm()


def test_leaving_thaws_whatever_was_raised(volumes: Volumes, freezer: Freezer) -> None:
    def read() -> None:
        assert volumes.frozen() == [True, True]
        raise OSError("bad sector")

    with pytest.raises(OSError, match="bad sector"), FrozenDisks(freezer, volumes.images, 30.0).hold():
        read()
    assert volumes.frozen() == [False, False]


def test_a_write_past_the_file_system_is_noticed(volumes: Volumes, freezer: Freezer) -> None:
    """Somebody rewrites the last sectors of the device, raw, while its file system is frozen."""
    device = Path(volumes.loops[1])
    with FrozenDisks(freezer, volumes.images, 30.0).hold() as still:
        descriptor = os.open(device, os.O_RDWR | os.O_SYNC)
        last = os.lseek(descriptor, 0, os.SEEK_END) - 4096
        os.pwrite(descriptor, os.pread(descriptor, 4096, last), last)
        os.close(descriptor)
        with pytest.raises(ImageNotStill, match="past the frozen"):
            still.confirm()
    assert volumes.frozen() == [False, False]


def test_disarmed_it_stays_frozen_after_everything_has_ended(volumes: Volumes, freezer: Freezer) -> None:
    with FrozenDisks(freezer, volumes.images, 30.0).hold() as still:
        still.disarm()
        assert still.limit_s is None
    freezer.close()
    assert volumes.frozen() == [True, True]
    with pytest.raises(FreezeHeld):
        freezer.start()
    thaw_held(volumes.state)
    volumes.accept_writes()


def test_disarmed_too_late_nothing_is_held(volumes: Volumes, freezer: Freezer) -> None:
    with FrozenDisks(freezer, volumes.images, SHORT_S).hold() as still:
        volumes.accept_writes()
        with pytest.raises(ImageNotStill):
            still.disarm()
    volumes.accept_writes()
    freezer.start()


def test_every_file_system_of_the_disks_takes_part(volumes: Volumes) -> None:
    assert [mount.point for mount in freezable_mounts(volumes.images)] == volumes.points
    assert [mount.point for mount in freezable_mounts([Path(loop) for loop in volumes.loops])] == volumes.points


def test_a_disk_without_a_mounted_file_system(volumes: Volumes) -> None:
    subprocess.run(["umount", str(volumes.points.pop())], check=True)
    with pytest.raises(NotFreezable, match=r"second\.img.*no file system"):
        freezable_mounts(volumes.images)


def test_a_loop_device_upon_the_disk_that_somebody_claims(volumes: Volumes) -> None:
    """Beside the file system there is another user of the same image, which freezing does not reach."""
    made = subprocess.run(
        ["losetup", "-f", "--show", str(volumes.images[0])], check=True, capture_output=True, text=True
    )
    volumes.loops.append(made.stdout.strip())
    descriptor = os.open(volumes.loops[-1], os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(NotFreezable, match=volumes.loops[-1]):
            freezable_mounts(volumes.images)
    finally:
        os.close(descriptor)
    freezable_mounts(volumes.images)
