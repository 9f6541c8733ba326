"""Items, fences, a settable clock and counted randomness for the tests of the process server."""

from __future__ import annotations

from pathlib import Path

from backhaul.process_server.spool import Spool
from backhaul.replication.ports import Files
from backhaul.replication.values import Fence, ItemId

ITEM = ItemId("a" * 32)
OTHER = ItemId("b" * 32)
THIRD = ItemId("c" * 32)
AGENT = "agent-1"
FENCE = Fence(1, 1, 1)
NEXT = Fence(1, 1, 2)
FOLDER = Path("/spool")


class SetClock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000_000

    def wall_ns(self) -> int:
        return self.now_ns

    def monotonic_ns(self) -> int:
        return self.now_ns


class CountedRandomness:
    """Different bytes at each call, the same in each run."""

    def __init__(self) -> None:
        self._count = 0

    def token(self, size: int) -> bytes:
        self._count += 1
        return self._count.to_bytes(8, "big").rjust(size, b"\1")


def make_spool(files: Files, bound: int = 1 << 30, folder: Path = FOLDER) -> Spool:
    """A spool that has not recovered yet."""
    return Spool(files, folder, bound, SetClock(), CountedRandomness())


def payload(item: ItemId, number: int, size: int = 1000) -> bytes:
    """What frame `number` of the item holds: different for each."""
    return (f"{item} {number} ".encode() * (size // 34 + 1))[:size]
