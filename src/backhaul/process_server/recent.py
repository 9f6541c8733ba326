"""Payloads that were just stored and not yet forwarded: while targets keep up, nothing is read back from the disk.

Invariant: at most `limit_bytes` are held. What is not here is in the spool, so losing an entry costs one read.
Event loop only.
"""

from __future__ import annotations

from collections.abc import Mapping

from backhaul.process_server.events import Forward
from backhaul.process_server.items import Item
from backhaul.process_server.spool import Entry
from backhaul.replication.values import ItemId

Payload = tuple[bytes | bytearray | memoryview, int]
"""Payload and flags."""


class RecentPayloads:
    """Payloads by item and number, for the item's present turn."""

    def __init__(self, items: Mapping[ItemId, Item], limit_bytes: int) -> None:
        self._items = items
        self._limit = limit_bytes
        self._held: dict[ItemId, tuple[int, dict[int, Payload]]] = {}
        self.bytes = 0

    def add(self, entry: Entry) -> None:
        """Keep a frame that is durable now, if there is room and a target that it goes to."""
        item = self._items.get(entry.item)
        if item is None or item.target is None or item.fence != entry.fence:
            return
        if self.bytes + len(entry.payload) > self._limit:
            self._sweep()
            if self.bytes + len(entry.payload) > self._limit:
                return
        turn, payloads = self._held.get(entry.item, (item.turn, {}))
        if turn != item.turn:
            self._forget(entry.item)
            payloads = {}
        self._held[entry.item] = (item.turn, payloads)
        payloads[entry.number] = (entry.payload, entry.flags)
        self.bytes += len(entry.payload)

    def take(self, forward: Forward) -> list[Payload]:
        """The payloads of the forward's first records, as far as they are here; none of it is held afterwards."""
        held = self._held.get(forward.item)
        if held is None or held[0] != forward.turn:
            self._forget(forward.item)
            return []
        found: list[Payload] = []
        for number in range(forward.first, forward.first + forward.count):
            payload = held[1].pop(number, None)
            if payload is None:
                continue
            self.bytes -= len(payload[0])
            if number == forward.first + len(found):
                found.append(payload)
        return found

    def _sweep(self) -> None:
        for name, (turn, _) in list(self._held.items()):
            item = self._items.get(name)
            if item is None or item.target is None or item.turn != turn:
                self._forget(name)

    def _forget(self, name: ItemId) -> None:
        _, payloads = self._held.pop(name, (0, {}))
        self.bytes -= sum(len(payload) for payload, _ in payloads.values())
