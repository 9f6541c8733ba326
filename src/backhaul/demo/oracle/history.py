"""Reading acknowledgement logs: which writes there were, and their order.

A log may be read while its writer goes on, or after a SIGKILL: a torn tail is cut. A bad record with a good one
behind it is damage and is refused. Pure but for reading files; called by the checker.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from backhaul.demo.oracle.acklog import Region, log_files
from backhaul.demo.oracle.errors import LogDamaged, LogUnusable
from backhaul.demo.oracle.records import RECORD, Record, RecordKind, decode
from backhaul.demo.oracle.stamps import Content, ContentKind, disk_and_block, place

_PIECE: Final = RECORD * 32768  # 1 MiB read at once


@dataclass
class Incarnation:
    """One life of a writer. The arrays are indexed by sequence minus `first_sequence`.

    places       where each write went (`stamps.place`)
    issued_at    position of the ISSUE in the log; rises
    acked_at     position of the ACK, -1 while there is none
    acked_ns     wall clock of the ACK, 0 while there is none
    base         what the regions held when it started; zeros are left out
    """

    number: int
    first_sequence: int
    started_ns: int
    machine: bytes = b""
    parent: int = 0
    regions: list[Region] = field(default_factory=list)
    base: dict[int, Content] = field(default_factory=dict)
    ready: bool = False
    stopped: bool = False
    places: array[int] = field(default_factory=lambda: array("Q"))
    issued_at: array[int] = field(default_factory=lambda: array("q"))
    acked_at: array[int] = field(default_factory=lambda: array("q"))
    acked_ns: array[int] = field(default_factory=lambda: array("Q"))

    @property
    def newest_acknowledged(self) -> int:
        """The highest sequence with an ACK; `first_sequence - 1` if there is none."""
        for index in range(len(self.acked_at) - 1, -1, -1):
            if self.acked_at[index] >= 0:
                return self.first_sequence + index
        return self.first_sequence - 1

    def covers(self, where: int) -> bool:
        """Whether the place lies in a region of this incarnation."""
        disk, block = disk_and_block(where)
        return any(
            region.disk == disk and region.first <= block < region.first + region.blocks for region in self.regions
        )


@dataclass(frozen=True)
class History:
    """All incarnations of the writers of one machine, by number."""

    machine: bytes
    incarnations: dict[int, Incarnation]

    @property
    def newest(self) -> Incarnation:
        """The incarnation with the highest number."""
        return self.incarnations[max(self.incarnations)]

    def line(self, number: int) -> list[Incarnation]:
        """The incarnation and its ancestors as far as their logs are here, youngest first."""
        found: list[Incarnation] = []
        while (incarnation := self.incarnations.get(number)) is not None:
            found.append(incarnation)
            number = incarnation.parent
        return found


def load_history(path: Path) -> History:
    """The history in a folder of logs, or in one log file. Raises LogUnusable, LogDamaged."""
    files = log_files(path) if path.is_dir() else [path]
    incarnations: dict[int, Incarnation] = {}
    for file in files:
        incarnation = _load(file)
        if incarnation is not None and incarnation.ready:  # one that never got ready never wrote
            incarnations[incarnation.number] = incarnation
    machines = {incarnation.machine for incarnation in incarnations.values()}
    if len(machines) != 1:
        reason = "it holds logs of several machines" if machines else "no writer got as far as writing"
        raise LogUnusable(path=path, reason=reason)
    return History(machines.pop(), incarnations)


def _load(path: Path) -> Incarnation | None:
    records = enumerate(_records(path))
    _, start = next(records, (0, None))
    if start is None:
        return None
    if start.kind is not RecordKind.START:
        raise LogUnusable(path=path, reason="it does not begin as an acknowledgement log does")
    incarnation = Incarnation(number=start.a, first_sequence=start.b, started_ns=start.c)
    for position, record in records:
        reason = _take(incarnation, position, record)
        if reason:
            raise LogDamaged(path=path, record=position, reason=reason)
    if any(incarnation.number <= found.incarnation for found in incarnation.base.values()):
        raise LogDamaged(path=path, record=0, reason="the incarnation is not higher than what it started from")
    if incarnation.parent >= incarnation.number:
        raise LogDamaged(path=path, record=1, reason="the incarnation is not higher than its parent")
    return incarnation


def _take(incarnation: Incarnation, position: int, record: Record) -> str:
    """Add one record; answers what is wrong with it, if anything. ISSUE and ACK first: they are nearly all."""
    if record.kind is RecordKind.ACK:
        index = record.a - incarnation.first_sequence
        if not 0 <= index < len(incarnation.places) or incarnation.acked_at[index] >= 0:
            return f"write {record.a} was acknowledged without having been issued, or twice"
        if incarnation.places[index] != place(record.disk, record.b):
            return f"write {record.a} was acknowledged at another place than it was issued for"
        incarnation.acked_at[index] = position
        incarnation.acked_ns[index] = record.c
    elif record.kind is RecordKind.ISSUE:
        if not incarnation.ready or record.a != incarnation.first_sequence + len(incarnation.places):
            return f"write {record.a} is out of turn"
        incarnation.places.append(place(record.disk, record.b))
        incarnation.issued_at.append(position)
        incarnation.acked_at.append(-1)
        incarnation.acked_ns.append(0)
    else:
        return _take_beginning(incarnation, record)
    return ""


def _take_beginning(incarnation: Incarnation, record: Record) -> str:
    if record.kind is RecordKind.STOP:
        incarnation.stopped = True
    elif record.kind is RecordKind.START or incarnation.ready:
        return "a record of the beginning lies behind the beginning"
    elif record.kind is RecordKind.MACHINE:
        incarnation.machine = record.a.to_bytes(8, "big") + record.b.to_bytes(8, "big")
        incarnation.parent = record.c
    elif record.kind is RecordKind.REGION:
        incarnation.regions.append(Region(record.disk, record.a, record.b))
    elif record.kind is RecordKind.BASE_STAMP:
        stamp = Content(ContentKind.STAMP, incarnation=record.c, sequence=record.a)
        incarnation.base[place(record.disk, record.b)] = stamp
    elif record.kind is RecordKind.BASE_OTHER:
        incarnation.base[place(record.disk, record.b)] = Content(ContentKind.OTHER, digest=record.a)
    else:
        incarnation.ready = True
        if record.a != len(incarnation.base):
            return f"{record.a} base records were announced, {len(incarnation.base)} are there"
    return ""


def _records(path: Path) -> Iterator[Record]:
    """The good records up to the first bad one; raises LogDamaged if a good one follows it."""
    bad = -1
    number = 0
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                for start in range(0, len(piece) - RECORD + 1, RECORD):
                    record = decode(piece[start : start + RECORD])
                    if record is None:
                        bad = number if bad < 0 else bad
                    elif bad >= 0:
                        raise LogDamaged(path=path, record=bad, reason="its check fails and good records follow")
                    else:
                        yield record
                    number += 1
    except OSError as failure:
        raise LogUnusable(path=path, reason=failure.strerror) from failure
