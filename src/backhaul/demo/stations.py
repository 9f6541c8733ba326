"""The oracle at the demo's stations: what a life of a machine found on its disks, judged by what was acknowledged.

A guest reads all its blocks before it writes, and logs what it found: that is the image which the product gave it,
seen by nobody of the product. A *station* is the first boot after a move, with what the move promised: everything
acknowledged before (planned), or everything before a point's barrier. Logs are gathered in the demo's folder, since a
site removes a machine's folder with the machine:

    acknowledged/MACHINE/trunk/           lives of the machine that count, on both sides
    acknowledged/MACHINE/STATION/         the trunk as it was then, the boot that is judged, and what that found

A life that is abandoned (another point is gone to, a move is cancelled) never enters the trunk, as none of it may be
found later. Reads only. Called by stages and by `backhaul demo check`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from backhaul.demo.errors import PromiseBroken
from backhaul.demo.guest import ACKNOWLEDGED, BLOCKS_LOG, ENTRIES_LOG, FOUND, Boot, read_boots
from backhaul.demo.guest_disks import DATABASE
from backhaul.demo.oracle import Barrier, CheckReport, History, check_transactions, load_history
from backhaul.demo.oracle.acklog import log_files
from backhaul.demo.oracle.checker import judge
from backhaul.demo.progress import Progress

GATHERED: Final = "acknowledged"
TRUNK: Final = "trunk"
STATIONS: Final = "stations"

_KINDS: Final = ("blocks", "database")


class Station(msgspec.Struct, frozen=True):
    """A boot of a machine and what it promised to find.

    name        of its folder; letters, digits, hyphens
    where       for people: which move, which point
    barrier_ns  everything acknowledged before it must be there; 0: everything that was acknowledged at all
    """

    machine: str
    name: str
    where: str
    boot: Boot
    barrier_ns: int = 0


def gather(folder: Path, machine: str, work: Path, name: str = TRUNK) -> list[Boot]:
    """Copy the logs in a machine's working folder into the demo's folder; its boots so far, oldest first."""
    logs = folder / GATHERED / machine / name
    for kind in (BLOCKS_LOG, ENTRIES_LOG):
        source = work / ACKNOWLEDGED / kind
        for log in log_files(source) if source.exists() else []:
            _copy(log, logs / kind / log.name)
    return read_boots(work)


def begin_station(folder: Path, station: Station, work: Path) -> None:
    """Keep what the station is judged by: the trunk of now, the logs of the boot and its evidence; again changes
    nothing.
    """
    logs = folder / GATHERED / station.machine / station.name
    if logs.exists():
        return
    partial = logs.with_name(f"{logs.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(logs.with_name(TRUNK), partial)
    gather(folder, station.machine, work, partial.name)
    if station.boot.found:
        shutil.copytree(work / FOUND / station.boot.found, partial / FOUND)
    partial.rename(logs)


def check_station(folder: Path, station: Station) -> list[CheckReport]:
    """Judge what a boot found. Raises PromiseBroken, OracleError's kinds."""
    reports = list(_judgements(folder, station))
    for report in reports:
        if not report.ok:
            raise PromiseBroken(machine=station.machine, where=station.where, findings=report.text())
    return reports


def _judgements(folder: Path, station: Station) -> Iterator[CheckReport]:
    logs = folder / GATHERED / station.machine / station.name
    blocks = load_history(logs / BLOCKS_LOG)
    life = blocks.incarnations[station.boot.blocks]
    yield judge(blocks, life.base, _barrier(station, _before(blocks, life.number)))
    if station.boot.entries:
        before = _before(load_history(logs / ENTRIES_LOG), station.boot.entries)
        yield check_transactions(before, logs / FOUND / DATABASE, _barrier(station, before))


def _barrier(station: Station, before: History) -> Barrier:
    """`before`: lives before the boot. The newest must be there whole, or until the barrier the one that wrote then."""
    if not station.barrier_ns:
        return Barrier.final(before.newest.number)
    started = [life for life in before.incarnations.values() if life.started_ns < station.barrier_ns]
    return Barrier.at_ns(station.barrier_ns, max(life.number for life in started))


def _before(history: History, incarnation: int) -> History:
    """Without this life and later ones."""
    earlier = {number: life for number, life in history.incarnations.items() if number < incarnation}
    return History(history.machine, earlier)


def _copy(source: Path, target: Path) -> None:
    """A log only grows, so a copy of the same length is the same; all or nothing."""
    if target.exists() and target.stat().st_size == source.stat().st_size:
        return
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    shutil.copyfile(source, partial)
    partial.rename(target)


def stations(progress: Progress) -> list[Station]:
    """Those that were noted, in their order."""
    return msgspec.convert(progress.fact(STATIONS, []), list[Station])


def check_all(folder: Path) -> dict[str, CheckReport]:
    """Judge every station of the demo in this folder again. Raises ProgressDamaged, OracleError's kinds."""
    progress = Progress(folder, as_root=False)
    progress.load()
    reports: dict[str, CheckReport] = {}
    for number, station in enumerate(stations(progress), 1):
        for kind, report in zip(_KINDS, _judgements(folder, station), strict=False):
            reports[f"{number}. {station.machine} {station.where}, {kind}"] = report
    return reports
