"""Granule maps against a plain list, what clears a stale mark, and the encoded form against damage."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pyroaring import BitMap

import backhaul.replication.maps as maps_module
from backhaul.replication.maps import (
    KEPT_GENERATIONS,
    GranuleMap,
    MapRangeInvalid,
    MapSizeInvalid,
    MapUnusable,
)
from backhaul.replication.units import GRANULE, MAX_DISK_BYTES, RANGE, RANGE_GRANULES, GiB, TiB

KEY = bytes(range(32))
OTHER = b"o" * 16
SIZE = 3 * RANGE + 5 * GRANULE + 512


def hash_of(data: bytes) -> bytes:
    return blake3(data, key=KEY).digest(length=16)


class MapMachine(RuleBasedStateMachine):
    """A map beside a list of hashes, a set of stale granules, and the time of each granule's newest mark."""

    @initialize(size=st.integers(1, SIZE // 512).map(lambda n: n * 512), known=st.booleans())
    def start(self, size: int, known: bool) -> None:
        self.size = size
        self.real = GranuleMap.all_zero(size, KEY) if known else GranuleMap.unknown(size, KEY)
        self.now = 1
        self.hashes: list[bytes | None] = [self.zero(index) for index in range(self.count)]
        self.stale = set() if known else set(range(self.count))
        self.marked = dict.fromkeys(range(self.count), 0)
        self.reads: list[tuple[int, int]] = [(self.real.generation(), self.now)]

    @property
    def count(self) -> int:
        return -(-self.size // GRANULE)

    def zero(self, index: int) -> bytes:
        return hash_of(bytes(min(GRANULE, self.size - index * GRANULE)))

    def granule(self, data: st.DataObject) -> int:
        edges = [0, self.count - 1, min(RANGE_GRANULES, self.count) - 1]
        return data.draw(st.one_of(st.sampled_from(edges), st.integers(0, self.count - 1)), label="granule")

    def mark(self, granules: set[int]) -> None:
        self.now += 1
        self.stale |= granules
        self.marked.update(dict.fromkeys(granules, self.now))

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        offset = data.draw(st.integers(0, self.size))
        length = min(self.size - offset, data.draw(st.sampled_from([0, 1, 4096, GRANULE, RANGE + 1])))
        self.real.mark_stale(offset, length)
        self.mark(set(range(offset // GRANULE, -(-(offset + length) // GRANULE))) if length else set())

    @rule()
    def lose_all(self) -> None:
        self.real.mark_all_stale()
        self.mark(set(range(self.count)))

    @rule()
    def begin_read(self) -> None:
        self.now += 1
        self.reads.append((self.real.generation(), self.now))

    @rule(data=st.data(), zeros=st.booleans())
    def end_read(self, data: st.DataObject, zeros: bool) -> None:
        seen, at = data.draw(st.sampled_from(self.reads[-4:]), label="read")
        index = self.granule(data)
        digest = self.zero(index) if zeros else data.draw(st.integers(0, 3)).to_bytes(16, "big")
        taken = self.real.put(index, digest, seen)
        assert taken == (self.marked[index] <= at)
        if taken:
            self.hashes[index] = digest
            self.stale.discard(index)

    @rule(data=st.data())
    def end_read_of_hole(self, data: st.DataObject) -> None:
        seen, at = data.draw(st.sampled_from(self.reads[-4:]), label="read")
        first = self.granule(data)
        count = data.draw(st.integers(0, self.count - first))
        taken = [index for index in range(first, first + count) if self.marked[index] <= at]
        assert self.real.put_zeros(first, count, seen) == len(taken)
        for index in taken:
            self.hashes[index] = self.zero(index)
            self.stale.discard(index)

    @rule(data=st.data(), zeros=st.booleans())
    def grow(self, data: st.DataObject, zeros: bool) -> None:
        size = self.size + 512 * data.draw(st.sampled_from([0, 1, 127, 128, 130, 40_000]))
        if size > 2 * SIZE:
            return
        before, tail = self.size, self.count - 1
        tail_zero = tail not in self.stale and self.hashes[tail] == self.zero(tail)
        self.real.grow(size, zeros=zeros)
        self.size = size
        self.now += 1
        if before % GRANULE and size > before:
            self.marked[tail] = self.now
            self.hashes[tail] = self.zero(tail)
            if not (zeros and tail_zero):
                self.stale.add(tail)
        for index in range(tail + 1, self.count):
            self.hashes.append(self.zero(index))
            self.marked[index] = 0 if zeros else self.now
            if not zeros:
                self.stale.add(index)

    @rule()
    def store_and_load(self) -> None:
        self.real.covers = self.now
        self.real = GranuleMap.decode(self.real.encode(), KEY)
        assert self.real.covers == self.now
        self.now += 1
        self.marked = dict.fromkeys(self.marked, 0)
        self.reads = [(self.real.generation(), self.now)]

    @invariant()
    def same(self) -> None:
        real = self.real
        assert (real.size, real.count) == (self.size, self.count)
        assert set(real.stale_granules()) == self.stale
        assert real.stale_count == len(self.stale)
        expected = [None if index in self.stale else value for index, value in enumerate(self.hashes)]
        assert real.hashes(0, self.count) == expected
        for index in {0, self.count // 2, self.count - 1}:
            assert real.get(index) == expected[index]
            assert real.zero_hash(index) == self.zero(index)
        for number in range(real.range_count):
            part = expected[number * RANGE_GRANULES : (number + 1) * RANGE_GRANULES]
            known = [value for value in part if value is not None]
            digest = blake3(b"".join(known)).digest(length=16) if len(known) == len(part) else None
            assert real.range_digest(number) == digest


MapMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestGranuleMap = MapMachine.TestCase


def test_new_map_knows_nothing() -> None:
    granule_map = GranuleMap(SIZE, KEY)
    assert granule_map.stale_count == granule_map.count == 3 * RANGE_GRANULES + 6
    assert granule_map.get(0) is None


def test_hash_is_keyed_blake3_of_what_is_there() -> None:
    granule_map = GranuleMap.all_zero(SIZE, KEY)
    assert granule_map.hash_granule(b"some data") == hash_of(b"some data")
    assert granule_map.get(granule_map.count - 1) == hash_of(bytes(512))
    assert granule_map.get(0) == hash_of(bytes(GRANULE))
    assert GranuleMap.all_zero(SIZE, bytes(32)).get(0) != granule_map.get(0)


def test_write_during_a_read_keeps_the_mark() -> None:
    granule_map = GranuleMap(SIZE, KEY)
    seen = granule_map.generation()
    granule_map.mark_stale(GRANULE, 512)
    assert granule_map.put(0, OTHER, seen)
    assert not granule_map.put(1, OTHER, seen)
    assert granule_map.get(1) is None
    assert granule_map.put(1, OTHER, granule_map.generation())
    assert granule_map.get(1) == OTHER


def test_slow_reader_does_not_undo_a_quick_one() -> None:
    """A read from before the write ends after one from behind it: what it saw is old and changes nothing."""
    granule_map = GranuleMap(SIZE, KEY)
    slow = granule_map.generation()
    granule_map.mark_stale(0, GRANULE)
    assert granule_map.put(0, OTHER, granule_map.generation())
    assert not granule_map.put(0, b"x" * 16, slow)
    assert granule_map.put_zeros(0, 1, slow) == 0
    assert granule_map.get(0) == OTHER


def test_reader_that_took_too_long_is_refused_and_memory_is_bounded() -> None:
    granule_map = GranuleMap(SIZE, KEY)
    seen = granule_map.generation()
    for _ in range(KEPT_GENERATIONS - 1):
        granule_map.mark_stale(0, 1)
        granule_map.generation()
    assert granule_map.put(5, OTHER, seen)
    granule_map.mark_stale(0, 1)
    granule_map.generation()
    assert not granule_map.put(6, OTHER, seen)
    assert granule_map.put_zeros(6, 1, seen) == 0
    for _ in range(1000):
        granule_map.mark_stale(0, 1)
        granule_map.generation()
    assert len(granule_map._marks) == KEPT_GENERATIONS
    assert granule_map.put(6, OTHER, granule_map.generation())


def memory_of(granule_map: GranuleMap) -> int:
    ranges = granule_map._ranges
    return sys.getsizeof(ranges) + sum(sys.getsizeof(value) + 32 for value in ranges.values())


def test_two_tebibytes_with_one_gibibyte_of_data_take_a_few_mebibytes() -> None:
    granule_map = GranuleMap.unknown(2 * TiB, KEY)
    seen = granule_map.generation()
    assert granule_map.put_zeros(0, granule_map.count, seen) == granule_map.count
    for index in range(GiB // GRANULE):
        granule_map.put(index, OTHER, seen)
    assert granule_map.stale_count == 0
    assert memory_of(granule_map) < 1024 * 1024
    assert len(granule_map.encode()) < 1024 * 1024
    assert granule_map.put_zeros(0, granule_map.count, seen) == granule_map.count
    assert granule_map._ranges == {}


def test_digest_of_ranges_of_zeros_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    granule_map = GranuleMap.all_zero(2 * TiB + 512, KEY)
    made: list[Any] = []
    monkeypatch.setattr(maps_module, "blake3", lambda *data, **options: made.append(data))
    digests = {granule_map.range_digest(number) for number in range(granule_map.range_count)}
    assert granule_map.range_count == 131073
    assert digests == {
        blake3(hash_of(bytes(GRANULE)) * RANGE_GRANULES).digest(length=16),
        blake3(hash_of(bytes(512))).digest(length=16),
    }
    assert made == []


@pytest.mark.parametrize("size", [0, -512, 100, MAX_DISK_BYTES + 512])
def test_sizes_that_are_no_disk(size: int) -> None:
    with pytest.raises(MapSizeInvalid):
        GranuleMap(size, KEY)


def test_never_shrinks() -> None:
    granule_map = GranuleMap(SIZE, KEY)
    with pytest.raises(MapSizeInvalid):
        granule_map.grow(SIZE - 512)
    assert granule_map.size == SIZE


def test_key_has_32_bytes() -> None:
    with pytest.raises(MapUnusable):
        GranuleMap(SIZE, b"short")


def test_out_of_bounds() -> None:
    granule_map = GranuleMap(SIZE, KEY)
    count, seen = granule_map.count, granule_map.generation()
    for call in (
        lambda: granule_map.get(count),
        lambda: granule_map.get(-1),
        lambda: granule_map.zero_hash(count),
        lambda: granule_map.put(count, OTHER, seen),
        lambda: granule_map.put_zeros(count - 1, 2, seen),
        lambda: granule_map.hashes(count - 1, 2),
        lambda: granule_map.hashes(0, -1),
        lambda: granule_map.range_digest(4),
        lambda: granule_map.range_digest(-1),
        lambda: granule_map.mark_stale(SIZE - 1, 2),
        lambda: granule_map.mark_stale(-1, 1),
    ):
        with pytest.raises(MapRangeInvalid) as caught:
            call()
        assert caught.value.code == "BH-MAP-RANGE"
    with pytest.raises(MapUnusable):
        granule_map.put(0, b"short", seen)
    with pytest.raises(MapRangeInvalid):
        GranuleMap.all_zero(GiB, KEY).hashes(0, 4097)


def filled() -> GranuleMap:
    granule_map = GranuleMap.all_zero(SIZE, KEY)
    seen = granule_map.generation()
    for index in range(0, granule_map.count, 100):
        granule_map.put(index, OTHER, seen)
    granule_map.mark_stale(RANGE, 10 * GRANULE)
    return granule_map


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damage_is_found(data: st.DataObject) -> None:
    good = bytearray(filled().encode())
    if data.draw(st.booleans(), label="torn"):
        bad = good[: data.draw(st.integers(0, len(good) - 1))]
    else:
        bad = good
        bad[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(MapUnusable):
        GranuleMap.decode(bytes(bad), KEY)


def test_map_of_another_item_is_refused() -> None:
    with pytest.raises(MapUnusable) as caught:
        GranuleMap.decode(filled().encode(), bytes(32))
    assert "another key" in caught.value.message
    assert caught.value.code == "BH-MAP-UNUSABLE"


def encoded(**changes: Any) -> bytes:
    """A map of one range, well sealed, with `changes` to its fields."""
    fields: dict[str, Any] = {
        "magic": b"BHGM", "version": 1, "size": RANGE, "stale": BitMap([3]).serialize(), "ranges": [0],
        **changes,
    }  # fmt: skip
    ranges: list[int] = fields["ranges"]
    zero = hash_of(bytes(GRANULE))
    head = (fields["magic"], fields["version"], 0, fields["size"], 0, zero, len(fields["stale"]), len(ranges))
    body: bytes = maps_module._HEAD.pack(*head) + fields["stale"]
    body += b"".join(number.to_bytes(4, "big") + bytes(4096) for number in ranges) + fields.get("extra", b"")
    return body + blake3(body).digest()


def test_what_is_well_made_is_taken() -> None:
    granule_map = GranuleMap.decode(encoded(), KEY)
    assert (granule_map.get(3), granule_map.get(4)) == (None, bytes(16))


@pytest.mark.parametrize(
    "changes",
    [
        {"magic": b"BHGX"},
        {"version": 2},
        {"size": 100},
        {"size": 64 * TiB},
        {"stale": b"no bitmap"},
        {"stale": BitMap([256]).serialize()},
        {"ranges": [1]},
        {"ranges": [0, 0]},
        {"extra": b"x"},
    ],
    ids=["magic", "version", "part", "too-large", "bitmap", "stale-behind", "range-behind", "range-twice", "left-over"],
)
def test_well_sealed_nonsense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MapUnusable):
        GranuleMap.decode(encoded(**changes), KEY)


def test_range_that_becomes_zeros_again_gives_its_memory_back() -> None:
    granule_map = GranuleMap.all_zero(SIZE, KEY)
    seen = granule_map.generation()
    for index in (5, granule_map.count - 1):
        granule_map.put(index, OTHER, seen)
        granule_map.put(index, granule_map.zero_hash(index), seen)
    assert granule_map._ranges == {}
