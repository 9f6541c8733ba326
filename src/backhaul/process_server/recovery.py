"""Rebuilding the spool's index from its segments, at start.

Invariant: what was acknowledged and not applied is found again, or the item is named as having lost it; nothing of
a torn tail is taken for acknowledged by anyone. Nothing is written here: old segments are only read, and the spool
goes on in a new one. Called once, before any connection is accepted.

A stream whose first records are gone was freed before them, or lost them: which of the two, the target knows, and
it refuses a gap. Only where damage was seen is such a stream given up at once. A gap in its middle always ends it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from backhaul.process_server.errors import SpoolDamaged
from backhaul.process_server.index import ItemIndex, Locations, SpoolIndex
from backhaul.process_server.records import SEGMENT_HEADER, RecordKind, Scanned, SegmentHeader, SegmentReader
from backhaul.replication.ports import Files
from backhaul.replication.values import Fence, ItemId

_NAME: Final = re.compile(r"([0-9a-f]{16})\.spool")


def segment_name(number: int) -> str:
    """File name of a segment."""
    return f"{number:016x}.spool"


@dataclass(slots=True)
class Recovered:
    """What was found. `lost`: item -> first number that was acknowledged and is gone."""

    index: SpoolIndex
    sizes: dict[int, int]
    """Segment number -> size of its file in bytes."""
    salts: dict[int, bytes]
    newest: tuple[int, int]
    """Number and good length of the newest segment; zeros when there is none."""
    damages: list[SpoolDamaged]
    lost: dict[ItemId, int]


@dataclass(slots=True)
class _Item:
    fence: Fence
    agent: str
    applied: int
    records: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)


class _Rebuild:
    """Folds the segments, in their order, into items."""

    def __init__(self, files: Files, folder: Path) -> None:
        self._files = files
        self._folder = folder
        self._items: dict[ItemId, _Item] = {}
        self.sizes: dict[int, int] = {}
        self.headers: dict[int, SegmentHeader] = {}
        self.damages: list[SpoolDamaged] = []
        self.lost: dict[ItemId, int] = {}
        self.newest = (0, 0)

    def read_headers(self) -> None:
        """Sizes and headers of all segments there are."""
        matches = (_NAME.fullmatch(name) for name in self._files.names(self._folder))
        for number in sorted(int(match[1], 16) for match in matches if match):
            file = self._files.open(self._folder / segment_name(number), writable=False)
            try:
                self.sizes[number] = file.size()
                header = SegmentHeader.decode(file.read_at(0, SEGMENT_HEADER))
            finally:
                file.close()
            if header is not None and header.number == number:
                self.headers[number] = header
        self.newest = (max(self.headers, default=0), 0)

    def fold_all(self) -> None:
        """Read every segment. One without a header that a successor vouches for is damage; else a torn beginning."""
        good = {header.previous: header.previous_length for header in self.headers.values() if header.previous}
        for number in self.sizes:
            if number in self.headers:
                self._fold(number, good.get(number))
            elif number in good:
                self._damage(number, 0, "its header is not valid")

    def _fold(self, number: int, good: int | None) -> None:
        file = self._files.open(self._folder / segment_name(number), writable=False)
        try:
            limit = self.sizes[number] if good is None else good
            reader = SegmentReader(file, self.headers[number].salt, limit)
            found = list(reader.records(verify=good is None))
        finally:
            file.close()
        durable = good if good is not None else max((one.header.durable for one in found), default=0)
        for offset in reader.bad:
            if offset < durable:
                self._damage(number, offset, "a record there is not valid")
        torn = min((offset for offset in reader.bad if offset >= durable), default=limit)
        for one in found:
            if one.offset < torn:
                self._take(number, one)
        if number == self.newest[0]:
            self.newest = (number, torn)

    def _damage(self, segment: int, offset: int, reason: str) -> None:
        self.damages.append(SpoolDamaged(folder=self._folder, segment=segment, offset=offset, reason=reason))

    def _take(self, segment: int, one: Scanned) -> None:
        header = one.header
        item = self._items.get(header.item)
        if header.kind is RecordKind.GRANT:
            agent = (one.payload or b"").decode(errors="replace")
            if item is None or header.fence > item.fence:
                self._items[header.item] = _Item(header.fence, agent, header.number)
            elif header.fence == item.fence:
                item.agent, item.applied = agent, max(item.applied, header.number)
        elif item is not None and header.fence == item.fence:
            if header.kind is RecordKind.DROP:
                item.records.clear()
            else:
                item.records[header.number] = (segment, one.offset, header.length, header.stored_ns)

    def index(self) -> SpoolIndex:
        """The items, each with the run of records that has no gap."""
        index = SpoolIndex()
        index.live = dict.fromkeys(self.sizes, 0)
        for name, item in self._items.items():
            numbers = sorted(number for number in item.records if number > item.applied)
            if numbers and self.damages and numbers[0] != item.applied + 1:
                self.lost[name] = item.applied + 1
                numbers = []
            first = numbers[0] if numbers else item.applied + 1
            entry = ItemIndex(item.fence, item.agent, item.applied, Locations(first))
            index.items[name] = entry
            for due, number in enumerate(numbers, first):
                if number != due:
                    self.lost[name] = due
                    break
                segment, offset, length, stored_ns = item.records[number]
                index.add(entry, segment, offset, length)
                entry.oldest_ns = entry.oldest_ns or stored_ns
        return index


def recover(files: Files, folder: Path) -> Recovered:
    """The index of the spool in `folder`, with all damage found. Raises OSError where the disk cannot be read."""
    rebuild = _Rebuild(files, folder)
    rebuild.read_headers()
    rebuild.fold_all()
    index = rebuild.index()
    salts = {number: header.salt for number, header in rebuild.headers.items()}
    return Recovered(index, rebuild.sizes, salts, rebuild.newest, rebuild.damages, rebuild.lost)
