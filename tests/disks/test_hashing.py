"""Refreshing a map from its disk: every stale granule, no hole, nothing that was written meanwhile."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from backhaul.disks import Disk, RawFile, create_raw_file
from backhaul.disks.errors import DiskReadFailed, OutOfBounds
from backhaul.disks.faulty import Fault, FaultyDisk, Operation
from backhaul.disks.hashing import Refreshed, _runs, refresh
from backhaul.replication.maps import GranuleMap, MapRangeInvalid
from backhaul.replication.units import GRANULE, MiB, TiB

KEY = b"k" * 32
SIZE = 40 * MiB


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[int], RawFile]]:
    opened: list[RawFile] = []

    def make_one(size: int = SIZE) -> RawFile:
        path = tmp_path / f"disk-{len(opened)}.img"
        create_raw_file(path, size)
        opened.append(RawFile(path, writable=True))
        return opened[-1]

    yield make_one
    for disk in opened:
        disk.close()


def hashes_of(disk: Disk, granule_map: GranuleMap) -> list[bytes | None]:
    """Every granule read and hashed by itself."""
    result: list[bytes | None] = []
    for index in range(granule_map.count):
        buffer = bytearray(min(GRANULE, disk.size - index * GRANULE))
        disk.read_into(index * GRANULE, buffer)
        result.append(granule_map.hash_granule(buffer))
    return result


def scatter(disk: Disk, seed: int = 3) -> None:
    numbers = random.Random(seed)
    for _ in range(30):
        length = numbers.choice([4096, 8192, GRANULE, MiB + 4096])
        disk.write(numbers.randrange((disk.size - length) // 4096) * 4096, numbers.randbytes(length))


@pytest.mark.parametrize("size", [SIZE, SIZE + 4096, SIZE + GRANULE - 512, 4096, 512])
def test_map_becomes_that_of_the_disk(make: Callable[[int], RawFile], size: int) -> None:
    disk = make(size)
    if size > MiB:
        scatter(disk)
    disk.write(size - 512 if disk.alignment == 512 else size - 4096, b"x" * disk.alignment)
    granule_map = GranuleMap.unknown(size, KEY)
    done = refresh(disk, granule_map)
    assert granule_map.stale_count == 0
    assert granule_map.hashes(0, granule_map.count) == hashes_of(disk, granule_map)
    assert done.hashed + done.zeros == granule_map.count
    assert done.refused == 0


def test_holes_are_not_read(make: Callable[[int], RawFile]) -> None:
    inner = make(2 * TiB)
    inner.write(TiB + 4096, b"x" * 4096)
    disk = FaultyDisk(inner)
    granule_map = GranuleMap.unknown(2 * TiB, KEY)
    done = refresh(disk, granule_map)
    assert done == Refreshed(hashed=1, zeros=2 * TiB // GRANULE - 1)
    assert disk.counts[Operation.READ] == 1
    assert granule_map.stale_count == 0
    assert granule_map.get(TiB // GRANULE) == granule_map.hash_granule(
        bytes(4096) + b"x" * 4096 + bytes(GRANULE - 8192)
    )


def test_only_stale_granules_are_read(make: Callable[[int], RawFile]) -> None:
    inner = make(SIZE)
    inner.write(0, b"x" * SIZE)
    granule_map = GranuleMap.unknown(SIZE, KEY)
    refresh(inner, granule_map)
    inner.write(5 * GRANULE, b"y" * 4096)
    inner.write(7 * MiB, b"z" * 3 * MiB)
    granule_map.mark_stale(5 * GRANULE, 4096)
    granule_map.mark_stale(7 * MiB, 3 * MiB)
    disk = FaultyDisk(inner)
    assert refresh(disk, granule_map) == Refreshed(hashed=1 + 3 * MiB // GRANULE)
    assert disk.counts[Operation.READ] == 1 + 3
    assert granule_map.hashes(0, granule_map.count) == hashes_of(inner, granule_map)


def test_given_granules_are_read_stale_or_not(make: Callable[[int], RawFile]) -> None:
    disk = make(SIZE)
    granule_map = GranuleMap.all_zero(SIZE, KEY)
    disk.write(0, b"x" * GRANULE)  # behind the map's back: a scrub finds it
    disk.write(2 * GRANULE, b"y" * GRANULE)
    assert refresh(disk, granule_map, [0, 1]) == Refreshed(hashed=1, zeros=1)
    assert granule_map.get(0) == granule_map.hash_granule(b"x" * GRANULE)
    assert granule_map.get(2) == granule_map.zero_hash(2)


def test_granule_written_while_it_is_read_stays_stale(make: Callable[[int], RawFile]) -> None:
    inner = make(SIZE)
    inner.write(0, b"x" * SIZE)
    granule_map = GranuleMap.unknown(SIZE, KEY)
    fault = Fault(Operation.READ, 3, errno=None, before=lambda: granule_map.mark_stale(2 * MiB + GRANULE, 4096))
    disk = FaultyDisk(inner, [fault])
    done = refresh(disk, granule_map)
    assert disk.fired == [fault]
    assert done.refused == 1
    assert list(granule_map.stale_granules()) == [2 * MiB // GRANULE + 1]
    assert refresh(disk, granule_map) == Refreshed(hashed=1)
    assert granule_map.stale_count == 0


def test_hole_written_while_it_is_looked_up_stays_stale(make: Callable[[int], RawFile]) -> None:
    class WrittenDuringLookUp(FaultyDisk):
        def data_ranges(self, offset: int = 0, length: int | None = None) -> Iterator[tuple[int, int]]:
            found = list(super().data_ranges(offset, length))
            granule_map.mark_stale(MiB, 4096)
            return iter(found)

    granule_map = GranuleMap.unknown(SIZE, KEY)
    done = refresh(WrittenDuringLookUp(make(SIZE)), granule_map)
    assert done == Refreshed(zeros=SIZE // GRANULE, refused=1)
    assert list(granule_map.stale_granules()) == [MiB // GRANULE]


def test_failed_read_leaves_its_granules_stale(make: Callable[[int], RawFile]) -> None:
    inner = make(SIZE)
    inner.write(0, b"x" * SIZE)
    granule_map = GranuleMap.unknown(SIZE, KEY)
    disk = FaultyDisk(inner, [Fault(Operation.READ, 4, kept=GRANULE)])
    with pytest.raises(DiskReadFailed):
        refresh(disk, granule_map)
    assert len(disk.fired) == 1
    assert min(granule_map.stale_granules()) == 3 * MiB // GRANULE
    refresh(disk, granule_map)
    assert granule_map.hashes(0, granule_map.count) == hashes_of(inner, granule_map)


def test_progress_adds_up_and_may_stop_the_work(make: Callable[[int], RawFile]) -> None:
    disk = make(SIZE + 4096)
    scatter(disk)
    told: list[int] = []
    refresh(disk, GranuleMap.unknown(disk.size, KEY), progress=told.append)
    assert sum(told) == disk.size

    class Enough(Exception):
        pass

    def stop(done: int) -> None:
        raise Enough

    granule_map = GranuleMap.unknown(disk.size, KEY)
    with pytest.raises(Enough):
        refresh(disk, granule_map, progress=stop)
    assert 0 < granule_map.stale_count < granule_map.count


def test_map_of_another_size_and_granules_behind_the_end_are_refused(make: Callable[[int], RawFile]) -> None:
    disk = make(SIZE)
    with pytest.raises(OutOfBounds):
        refresh(disk, GranuleMap.unknown(SIZE - 512, KEY))
    with pytest.raises(MapRangeInvalid):
        refresh(disk, GranuleMap.unknown(SIZE, KEY), [0, SIZE // GRANULE])


@given(st.sets(st.integers(0, 60)))
@settings(deadline=None)
def test_runs_are_maximal_and_cover_the_set(granules: set[int]) -> None:
    runs = list(_runs(BitMap(granules)))
    assert [index for first, last in runs for index in range(first, last)] == sorted(granules)
    assert all(before[1] < after[0] for before, after in pairwise(runs))
