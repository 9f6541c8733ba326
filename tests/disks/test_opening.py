"""Opening a path that may be anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backhaul.disks import RawFile, create_raw_file, open_disk
from backhaul.disks.errors import DiskError, DiskMissing, DiskOpenFailed, DiskUnsupported
from backhaul.replication.errors import every_error
from backhaul.replication.units import MiB


def test_regular_file_is_a_raw_file(tmp_path: Path) -> None:
    create_raw_file(tmp_path / "disk.img", MiB)
    disk = open_disk(str(tmp_path / "disk.img"), writable=True, direct=False)
    assert isinstance(disk, RawFile)
    assert disk.writable
    assert not disk.direct
    disk.close()


@pytest.mark.parametrize("name", ["nothing", "file/below"], ids=["no-file", "below-a-file"])
def test_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskMissing) as caught:
        open_disk(tmp_path / name, writable=False)
    assert caught.value.code == "BH-DISK-MISSING"
    assert name in caught.value.message


def test_folder_and_pipe_are_no_disks(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(DiskUnsupported):
            open_disk(path, writable=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_forbidden(tmp_path: Path) -> None:
    create_raw_file(tmp_path / "disk.img", MiB)
    (tmp_path / "disk.img").chmod(0)
    with pytest.raises(DiskOpenFailed):
        open_disk(tmp_path / "disk.img", writable=False)


def test_a_disk_that_fails_to_open_leaks_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "odd.img").write_bytes(bytes(100))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(DiskError):
            open_disk(tmp_path / "odd.img", writable=True)
    assert len(os.listdir("/proc/self/fd")) == before


def test_codes_are_unique_and_every_message_names_the_disk() -> None:
    errors = list(every_error(DiskError))
    assert len({error.code for error in errors}) == len(errors)
    for error in errors:
        assert "vda" in error(disk="vda").message
        assert error.fix
