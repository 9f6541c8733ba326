"""`backhaul demo check`, run as a command: on a recorded demo, and on images with their logs."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from backhaul.demo.guest import ACKNOWLEDGED, BLOCKS_LOG, read_boots
from backhaul.demo.progress import Progress
from backhaul.demo.stations import STATIONS, Station, begin_station, gather
from demo.guests import Guest, raw_disks


def check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "backhaul", "demo", "check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


class Recorded:
    """A machine that wrote at home and was copied; a demo folder in which its first boot in the cloud is noted."""

    def __init__(self, folder: Path, *, spoiled: bool) -> None:
        self.disks = raw_disks(folder)
        home = Guest(folder / "home", "alpha", self.disks)
        home.start()
        home.read_until("progress")
        (folder / "early").mkdir()
        early = [Path(shutil.copyfile(disk, folder / "early" / disk.name)) for disk in self.disks]
        home.read_until("progress")
        home.end(signal.SIGTERM)
        self.log = home.work / ACKNOWLEDGED / BLOCKS_LOG
        (folder / "replica").mkdir()
        replica = [Path(shutil.copyfile(disk, folder / "replica" / disk.name)) for disk in self.disks]
        if spoiled:
            shutil.copyfile(early[0], replica[0])
        self.replica = [Path(shutil.copyfile(disk, disk.with_suffix(".kept"))) for disk in replica]
        cloud = Guest(folder / "cloud", "alpha", replica)
        cloud.start()
        cloud.end(signal.SIGTERM)
        self.demo = folder / "demo"
        gather(self.demo, "alpha", home.work)
        station = Station("alpha", "cloud", "after a planned failover", read_boots(cloud.work)[-1])
        begin_station(self.demo, station, cloud.work)
        Progress(self.demo, as_root=False).note(**{STATIONS: [msgspec.to_builtins(station)]})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded(tmp_path_factory.mktemp("whole"), spoiled=False)


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded(tmp_path_factory.mktemp("spoiled"), spoiled=True)


def test_a_demo_whose_promises_hold(whole: Recorded) -> None:
    done = check("--data-dir", whole.demo)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("1. alpha after a planned failover, blocks\n")


def test_a_demo_in_which_one_disk_is_older(spoiled: Recorded) -> None:
    done = check("--data-dir", spoiled.demo)
    assert done.returncode == 1
    assert done.stdout.startswith("1. alpha after a planned failover, blocks\n")


def test_images_are_judged_by_their_log(whole: Recorded, spoiled: Recorded) -> None:
    right = [part for disk in whole.replica for part in ("--disk", disk)]
    assert check("--log", whole.log, *right, "--final").returncode == 0
    wrong = [part for disk in spoiled.replica for part in ("--disk", disk)]
    assert check("--log", spoiled.log, *wrong, "--final").returncode == 1
    neither = check("--log", whole.log)
    assert (neither.returncode, neither.stderr.startswith("BH-")) == (1, True)


def test_a_folder_without_a_demo_is_said_to_be_none(tmp_path: Path) -> None:
    done = check("--data-dir", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("BH-")
    assert "Traceback" not in done.stderr
