"""What lies on which disk, read from the kernel's tables (here: made by hand), and the control groups' hierarchies."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from backhaul.mobility.cgroups import clear_empty_groups, hierarchies, join_own_group
from backhaul.mobility.mounts import (
    devices_of,
    is_in_memory,
    is_leaf,
    loop_backing,
    mount_of,
    mounts,
    mounts_on,
    sectors_written,
)

MOUNTINFO = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:25 / /run rw - tmpfs tmpfs rw
40 22 7:5 / /mnt/with\040space rw - ext4 /dev/loop5 rw
41 22 7:5 /sub /mnt/again rw - ext4 /dev/loop5 rw
42 22 253:0 / /mnt/lvm rw master:2 - xfs /dev/mapper/a rw
43 22 7:6 / /mnt/cd rw - iso9660 /dev/loop6 ro
"""


@pytest.fixture
def mountinfo(tmp_path: Path) -> Path:
    (tmp_path / "mountinfo").write_text(MOUNTINFO)
    return tmp_path / "mountinfo"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "disk.img").touch()
    return tmp_path / "disk.img"


@pytest.fixture
def sys(tmp_path: Path, image: Path) -> Path:
    """loop5 lies over the image; it has a partition 259:1, on which the device mapper built 253:0."""
    root = tmp_path / "sys"

    def device(number: str, name: str) -> Path:
        folder = root / "dev" / "block" / number
        folder.mkdir(parents=True)
        (folder / "dev").write_text(number + "\n")
        (folder / "uevent").write_text(f"MAJOR=1\nDEVNAME=no-such/{name}\n")
        (folder / "stat").write_text("1 2 3 4 5 6 70 8 0 10 11 12 13 500 15 16 17\n")
        return folder

    loop, partition, mapped = device("7:5", "loop5"), device("259:1", "loop5p1"), device("253:0", "dm-0")
    (loop / "loop").mkdir()
    (loop / "loop" / "backing_file").write_text(f"{image}\n")
    (root / "block").mkdir()
    (root / "block" / "loop5").symlink_to(loop)
    (loop / "loop5p1").symlink_to(partition)
    (partition / "partition").write_text("1\n")
    (partition / "holders").mkdir()
    (partition / "holders" / "dm-0").symlink_to(mapped)
    return root


def test_lines_of_mountinfo(mountinfo: Path) -> None:
    found = mounts(mountinfo)
    assert [str(mount.point) for mount in found][2] == "/mnt/with space"
    assert [mount.device for mount in found] == ["8:1", "0:25", "7:5", "7:5", "253:0", "7:6"]
    assert [mount.writable for mount in found] == [True] * 5 + [False]


def test_partitions_and_what_is_stacked_upon_them_belong_to_the_disk(image: Path, sys: Path, mountinfo: Path) -> None:
    assert devices_of(image, sys) == ["7:5", "259:1", "253:0"]
    assert [str(mount.point) for mount in mounts_on([image], sys, mountinfo)] == ["/mnt/with space", "/mnt/lvm"]
    assert [is_leaf(device, sys) for device in ("7:5", "259:1", "253:0")] == [False, False, True]


def test_another_image_has_nothing(tmp_path: Path, sys: Path, mountinfo: Path) -> None:
    (tmp_path / "other.img").touch()
    assert devices_of(tmp_path / "other.img", sys) == []
    assert mounts_on([tmp_path / "other.img"], sys, mountinfo) == []


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENODEV])
def test_loop_devices_that_others_detach_meanwhile_are_passed_over(
    image: Path, sys: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is there when it is listed, and its file is gone when it is opened, or read."""
    for name in ("loop1", "loop9"):
        (sys / "block" / name / "loop").mkdir(parents=True)
        (sys / "block" / name / "loop" / "backing_file").write_text("/some/file\n")
    read, refused = Path.read_bytes, []

    def read_bytes(path: Path) -> bytes:
        if path.parts[-3] in ("loop1", "loop9"):
            refused.append(path)
            raise OSError(code, os.strerror(code), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert devices_of(image, sys) == ["7:5", "259:1", "253:0"]
    assert len(refused) >= 2


def test_backing_and_counts(image: Path, sys: Path) -> None:
    assert loop_backing("7:5", sys) == image
    assert loop_backing("253:0", sys) is None
    assert sectors_written("7:5", sys) == 570


def test_the_mount_of_an_open_folder() -> None:
    descriptor = os.open("/proc", os.O_RDONLY)
    try:
        mount = mount_of(descriptor)
    finally:
        os.close(descriptor)
    assert mount is not None
    assert mount.kind == "proc"
    assert not is_in_memory(Path("/proc"))


def test_hierarchies_that_stop_groups(tmp_path: Path) -> None:
    lines = [
        "31 1 0:30 / {0}/v2 rw - cgroup2 cgroup2 rw",
        "32 1 0:31 / {0}/cpu rw - cgroup cgroup rw,cpu,cpuacct",
        "33 1 0:32 / {0}/freezer rw - cgroup cgroup rw,freezer",
        "34 1 0:33 / {0}/systemd rw - cgroup cgroup rw,xattr,name=systemd",
    ]
    table = tmp_path / "mountinfo"
    table.write_text("".join(line.format(tmp_path) + "\n" for line in lines))
    assert hierarchies(str(table)) == [f"{tmp_path}/{name}" for name in ("v2", "freezer", "systemd")]
    (tmp_path / "v2").mkdir()
    assert join_own_group("guard", str(table)) == [f"{tmp_path}/v2/backhaul-guard.{os.getpid()}"]
    assert (tmp_path / "v2" / f"backhaul-guard.{os.getpid()}" / "cgroup.procs").read_text() == str(os.getpid())


def test_only_our_own_groups_that_nobody_is_about_to_join_are_cleared_away(tmp_path: Path) -> None:
    """Another agent's guard may have made its group this moment: taken away, it could not start."""
    joining = f"backhaul-guard.{os.getpid()}"
    for name in ("backhaul-freezer.99999999", "backhaul-guard.99999998", joining, "backhaul-other", "user.slice"):
        (tmp_path / name).mkdir()
    table = tmp_path / "mountinfo"
    table.write_text(f"31 1 0:30 / {tmp_path} rw - cgroup2 cgroup2 rw\n")
    clear_empty_groups(str(table))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [joining, "backhaul-other", "mountinfo", "user.slice"]
    )
