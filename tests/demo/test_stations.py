"""Stations: what a boot found is judged by what was acknowledged, on both sides' logs together."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import msgspec
import pytest

from backhaul.demo.errors import PromiseBroken
from backhaul.demo.guest import read_boots
from backhaul.demo.progress import Progress
from backhaul.demo.stations import STATIONS, Station, begin_station, check_all, check_station, gather
from demo.guests import Guest, raw_disks


def copied(disks: list[Path], folder: Path) -> list[Path]:
    """What a perfect product would have replicated, at this moment."""
    folder.mkdir()
    return [Path(shutil.copyfile(disk, folder / disk.name)) for disk in disks]


def moved(tmp_path: Path, spoil: str = "") -> Station:
    """A machine that wrote at home, was copied, and went on in the cloud; `spoil` says what the copy lacks."""
    disks = raw_disks(tmp_path)
    home = Guest(tmp_path / "home", "alpha", disks)
    home.start()
    home.read_until("progress")
    if spoil == "old":
        early = copied(disks, tmp_path / "early")
        home.read_until("progress")
    home.end(signal.SIGTERM)
    replica = copied(disks, tmp_path / "replica")
    if spoil == "old":
        shutil.copyfile(early[0], replica[0])
    cloud = Guest(tmp_path / "cloud", "alpha", replica)
    cloud.start()
    cloud.end(signal.SIGTERM)
    demo = tmp_path / "demo"
    gather(demo, "alpha", home.work)
    station = Station("alpha", "cloud", "after a planned failover", read_boots(cloud.work)[-1])
    begin_station(demo, station, cloud.work)
    return station


def test_a_whole_copy_holds_everything_that_was_acknowledged(tmp_path: Path) -> None:
    station = moved(tmp_path)
    (report,) = check_station(tmp_path / "demo", station)
    assert report.contained > 0
    assert report.missing == 0


def test_a_disk_that_is_older_than_the_other_is_found(tmp_path: Path) -> None:
    station = moved(tmp_path, spoil="old")
    with pytest.raises(PromiseBroken, match="alpha after a planned failover"):
        check_station(tmp_path / "demo", station)


def test_gathering_again_takes_what_was_added(tmp_path: Path) -> None:
    guest = Guest(tmp_path / "home", "alpha", raw_disks(tmp_path))
    guest.start()
    assert len(gather(tmp_path / "demo", "alpha", guest.work)) == 1
    guest.end(signal.SIGKILL)
    guest.start()
    guest.end(signal.SIGTERM)
    boots = gather(tmp_path / "demo", "alpha", guest.work)
    assert [boot.blocks for boot in boots] == [1, 2]
    station = Station("alpha", "home", "after a power cut", boots[1])
    begin_station(tmp_path / "demo", station, guest.work)
    check_station(tmp_path / "demo", station)


def test_all_stations_of_a_demo_are_judged_again(tmp_path: Path) -> None:
    station = moved(tmp_path)
    progress = Progress(tmp_path / "demo", as_root=False)
    progress.note(**{STATIONS: [msgspec.to_builtins(station)]})
    reports = check_all(tmp_path / "demo")
    assert list(reports) == ["1. alpha after a planned failover, blocks"]
    assert all(report.ok for report in reports.values())
