"""A compare reads a disk only where its replica holds something, and finds exactly what differs."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from backhaul.disks.contract import Disk
from backhaul.disks.hashing import refresh
from backhaul.disks.opening import open_disk
from backhaul.disks.raw_file import create_raw_file
from backhaul.mobility.compare import Comparison
from backhaul.mobility.stream import Stream
from backhaul.replication.maps import GranuleMap
from backhaul.replication.records import MapAsk, MapLevel, MapPart
from backhaul.replication.units import GRANULE, RANGE, RANGE_GRANULES

KEY = bytes(range(32))
SIZE = 3 * RANGE + 5 * GRANULE + 512


class AnsweringStream:
    """Answers from a map as the target does."""

    def __init__(self, replica: GranuleMap) -> None:
        self._replica = replica
        self.asked: list[MapAsk] = []

    async def ask(self, question: MapAsk) -> MapPart:
        self.asked.append(question)
        numbers = range(question.first, question.first + question.count)
        one = self._replica.range_digest if question.level is MapLevel.RANGE else self._replica.get
        hashes = b"".join(one(number) or bytes(16) for number in numbers)
        return MapPart(1, question.disk, question.level, question.first, hashes)


def image(path: Path, **content: bytes) -> Disk:
    """A disk with `at_OFFSET` written."""
    create_raw_file(path, SIZE)
    with path.open("r+b") as file:
        for name, written in content.items():
            file.seek(int(name.removeprefix("at_")))
            file.write(written)
    return open_disk(path, writable=False)


def map_of(disk: Disk) -> GranuleMap:
    known = GranuleMap.unknown(disk.size, KEY)
    refresh(disk, known)
    return known


async def compare(disk: Disk, replica: GranuleMap) -> tuple[GranuleMap, AnsweringStream, tuple[int, int]]:
    stream, told = AnsweringStream(replica), [(0, 0)]
    comparison = Comparison(cast(Stream, stream), 0, disk, KEY, lambda done, found: told.append((done, found)))
    return await comparison.run(), stream, told[-1]


async def test_against_a_fresh_replica_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = image(tmp_path / "disk", at_0=b"a" * GRANULE, at_50331648=b"b")
    monkeypatch.setattr(type(disk), "read_into", None)
    found, stream, progress = await compare(disk, GranuleMap.all_zero(SIZE, KEY))
    assert found.encode() == GranuleMap.all_zero(SIZE, KEY).encode()
    assert {question.level for question in stream.asked} == {MapLevel.RANGE}
    assert progress == (SIZE, 2 * GRANULE)
    disk.close()


async def test_only_ranges_that_differ_are_asked_for_in_granules(tmp_path: Path) -> None:
    second = {f"at_{RANGE}": b"same", f"at_{2 * RANGE}": b"old"}
    replica = image(tmp_path / "replica", **second)
    disk = image(tmp_path / "disk", **(second | {f"at_{2 * RANGE}": b"new", f"at_{3 * RANGE + 5 * GRANULE}": b"tail"}))
    found, stream, progress = await compare(disk, map_of(replica))
    assert found.encode() == map_of(replica).encode()
    granules = [question for question in stream.asked if question.level is MapLevel.GRANULE]
    assert granules == [MapAsk(0, MapLevel.GRANULE, 2 * RANGE_GRANULES, RANGE_GRANULES)]
    assert progress == (SIZE, 2 * GRANULE), "one granule by its hash, one that the replica does not hold at all"
    disk.close()
    replica.close()


async def test_what_the_target_does_not_vouch_for_stays_unknown(tmp_path: Path) -> None:
    disk = image(tmp_path / "disk", at_0=b"a")
    replica = map_of(disk)
    replica.mark_stale(0, GRANULE)
    found, _, _ = await compare(disk, replica)
    assert found.get(0) != map_of(disk).get(0)
    disk.close()
