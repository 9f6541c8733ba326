"""Where each spooled record lies: in memory, rebuilt from the segments at start.

Invariant: of an item, the records held are `first .. last` without a gap, all of the granted fence, and
`applied < first`. Arrays, 20 bytes a record, because a spool of small frames holds millions. One thread only.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from backhaul.process_server.records import RECORD_HEADER
from backhaul.replication.values import Fence, ItemId

_TRIM = 65536
"""Freed entries kept at the front of the arrays before they are moved: makes freeing constant time on average."""


class Backlog:
    """Sizes in bytes (payloads) of the unapplied records of one stream, numbered without a gap."""

    def __init__(self, first: int = 0) -> None:
        self.first = first
        self.bytes = 0
        self._sizes = array("I")
        self._freed = 0

    def __len__(self) -> int:
        return len(self._sizes) - self._freed

    @property
    def last(self) -> int:
        """Number of the last record; `first - 1` when there is none."""
        return self.first + len(self) - 1

    def append(self, size: int) -> None:
        """One more record behind the last."""
        self._sizes.append(size)
        self.bytes += size

    def size(self, number: int) -> int:
        """Payload bytes of a record that is held."""
        return self._sizes[self._freed + number - self.first]

    def free(self, number: int) -> None:
        """Forget all records up to `number`."""
        while self.first <= number and self._freed < len(self._sizes):
            self.bytes -= self._sizes[self._freed]
            self._freed += 1
            self.first += 1
        self.first = max(self.first, number + 1)
        if self._freed >= _TRIM:
            del self._sizes[: self._freed]
            self._freed = 0

    def cut(self, last: int) -> None:
        """Forget all records behind `last`."""
        while len(self) and self.last > last:
            self.bytes -= self._sizes.pop()


class Locations:
    """Segment, offset and payload length of the records of one item."""

    def __init__(self, first: int) -> None:
        self.first = first
        self._segments = array("Q")
        self._offsets = array("Q")
        self._lengths = array("I")
        self._freed = 0

    def __len__(self) -> int:
        return len(self._lengths) - self._freed

    @property
    def last(self) -> int:
        """Number of the last record; `first - 1` when there is none."""
        return self.first + len(self) - 1

    def append(self, segment: int, offset: int, length: int) -> None:
        """One more record behind the last."""
        self._segments.append(segment)
        self._offsets.append(offset)
        self._lengths.append(length)

    def at(self, number: int) -> tuple[int, int, int]:
        """Segment, offset and payload length of a record that is held."""
        place = self._freed + number - self.first
        return self._segments[place], self._offsets[place], self._lengths[place]

    def move(self, number: int, segment: int, offset: int) -> None:
        """The record was copied to another place."""
        place = self._freed + number - self.first
        self._segments[place] = segment
        self._offsets[place] = offset

    def free_first(self) -> tuple[int, int]:
        """Forget the first record; its segment and payload length."""
        freed = self._segments[self._freed], self._lengths[self._freed]
        self._freed += 1
        self.first += 1
        if self._freed >= _TRIM:
            del self._segments[: self._freed], self._offsets[: self._freed], self._lengths[: self._freed]
            self._freed = 0
        return freed

    def touches(self, segment: int) -> bool:
        """Whether a record held lies in `segment`."""
        return segment in self._segments[self._freed :]

    def lengths(self) -> array[int]:
        """Payload lengths of all records held, in order."""
        return self._lengths[self._freed :]


@dataclass(slots=True)
class ItemIndex:
    """What the spool holds of one item. `agent` empty: nobody may send. `applied` -1: not even the header."""

    fence: Fence
    agent: str
    applied: int = -1
    records: Locations = field(default_factory=lambda: Locations(0))
    bytes: int = 0
    """Record bytes held, headers included."""
    oldest_ns: int = 0
    """Wall clock at which the oldest record of a recovered item was stored; 0 when it holds none."""

    @property
    def position(self) -> int:
        """Everything up to this number is applied or held."""
        return max(self.applied, self.records.last)


class SpoolIndex:
    """All items, and how many live bytes each segment holds."""

    def __init__(self) -> None:
        self.items: dict[ItemId, ItemIndex] = {}
        self.live: dict[int, int] = {}
        self.records = 0

    def add(self, item: ItemIndex, segment: int, offset: int, length: int) -> None:
        """One more record behind the item's last."""
        item.records.append(segment, offset, length)
        size = RECORD_HEADER + length
        item.bytes += size
        self.live[segment] = self.live.get(segment, 0) + size
        self.records += 1

    def grant(self, name: ItemId, fence: Fence, agent: str, applied: int) -> None:
        """The item's stream is `fence` from now on; what is held of others is forgotten."""
        known = self.items.get(name)
        if known is not None and known.fence == fence:
            known.agent = agent
            self.free(known, applied)
            return
        if known is not None:
            self.forget(known)
        self.items[name] = ItemIndex(fence, agent, applied, Locations(applied + 1))

    def free(self, item: ItemIndex, applied: int) -> None:
        """Forget the item's records up to `applied`."""
        while len(item.records) and item.records.first <= applied:
            self._free_first(item)
        item.applied = max(item.applied, applied)
        if not len(item.records):
            item.records.first = max(item.records.first, item.applied + 1)

    def forget(self, item: ItemIndex) -> None:
        """Forget all of the item's records: its position goes back to what is applied."""
        while len(item.records):
            self._free_first(item)
        item.records = Locations(item.applied + 1)

    def move(self, item: ItemIndex, number: int, segment: int, offset: int) -> None:
        """A record was copied to `segment`."""
        old, _, length = item.records.at(number)
        self.live[old] -= RECORD_HEADER + length
        self.live[segment] = self.live.get(segment, 0) + RECORD_HEADER + length
        item.records.move(number, segment, offset)

    def dead(self) -> Iterator[int]:
        """Segments that hold nothing any more."""
        return (segment for segment, size in self.live.items() if size == 0)

    def largest(self) -> ItemId | None:
        """The item that holds most bytes."""
        held = [(entry.bytes, name) for name, entry in self.items.items() if entry.bytes]
        return max(held)[1] if held else None

    def _free_first(self, item: ItemIndex) -> None:
        segment, length = item.records.free_first()
        size = RECORD_HEADER + length
        item.bytes -= size
        self.live[segment] -= size
        self.records -= 1
