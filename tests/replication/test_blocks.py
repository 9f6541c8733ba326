"""Block sets against plain sets of block numbers, and their serialised form against damage."""

from __future__ import annotations

import random

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pyroaring import BitMap64

import backhaul.replication.blocks as blocks_module
from backhaul.replication.blocks import BlockRangeInvalid, BlockSet, BlockSetUnusable
from backhaul.replication.units import BLOCK, CHUNK, MAX_DISK_BYTES, MAX_DISKS, GiB, MiB, TiB
from backhaul.replication.values import Extent, ExtentKind

Model = set[tuple[int, int]]
DISK_BLOCKS = 700
SIZES = {0: DISK_BLOCKS * BLOCK, 1: DISK_BLOCKS * BLOCK - 1024}

ranges = st.tuples(
    st.integers(0, 1),
    st.integers(0, DISK_BLOCKS * BLOCK),
    st.one_of(st.integers(0, 3 * BLOCK), st.integers(0, 3 * MiB)),
).map(lambda r: (r[0], r[1], min(r[2], SIZES[r[0]] - r[1])))
valid_ranges = ranges.filter(lambda r: r[2] >= 0)


def touched(disk: int, offset: int, length: int) -> Model:
    return {(disk, block) for block in range(offset // BLOCK, -(-(offset + length) // BLOCK))} if length else set()


def covered(disk: int, offset: int, length: int, size: int | None = None) -> Model:
    """Blocks wholly in the range, block by block."""
    return {
        (disk, block)
        for block in range(DISK_BLOCKS)
        if offset <= block * BLOCK
        and min((block + 1) * BLOCK, size or MAX_DISK_BYTES) <= offset + length
        and (size is None or block * BLOCK < size)
    }


def blocks_of(found: BlockSet) -> Model:
    return {
        (extent.disk, block)
        for extent in found.extents()
        for block in range(extent.offset // BLOCK, extent.end // BLOCK)
    }


class BlockSetMachine(RuleBasedStateMachine):
    """A set and a second one, each beside a model."""

    @initialize()
    def start(self) -> None:
        self.real, self.other = BlockSet(), BlockSet()
        self.model: Model = set()
        self.other_model: Model = set()

    @rule(where=valid_ranges)
    def add(self, where: tuple[int, int, int]) -> None:
        self.real.add_range(*where)
        self.model |= touched(*where)

    @rule(where=valid_ranges)
    def add_to_other(self, where: tuple[int, int, int]) -> None:
        self.other.add_range(*where)
        self.other_model |= touched(*where)

    @rule(where=valid_ranges, sized=st.booleans())
    def discard(self, where: tuple[int, int, int], sized: bool) -> None:
        size = SIZES[where[0]] if sized else None
        self.real.discard_range(*where, size=size)
        self.model -= covered(*where, size=size)

    @rule()
    def unite(self) -> None:
        self.real.update(self.other)
        self.model |= self.other_model

    @rule()
    def subtract(self) -> None:
        self.real.difference_update(self.other)
        self.model -= self.other_model

    @rule()
    def swap_with_copy(self) -> None:
        self.real, self.other = self.other.copy(), self.real
        self.model, self.other_model = set(self.other_model), self.model

    @rule()
    def store_and_load(self) -> None:
        self.real = BlockSet.deserialise(self.real.serialise())

    @rule(where=valid_ranges)
    def ask(self, where: tuple[int, int, int]) -> None:
        assert self.real.contains(*where) == (touched(*where) <= self.model)

    @rule(most=st.sampled_from([1, 2, 3, 7, 256, 1000]))
    def extents_are_as_long_as_can_be(self, most: int) -> None:
        previous = None
        for extent in self.real.extents(max_length=most * BLOCK):
            assert extent.kind is ExtentKind.DATA
            assert 0 < extent.length <= most * BLOCK
            if previous is not None and previous.disk == extent.disk and previous.end == extent.offset:
                assert previous.length == most * BLOCK
            assert previous is None or (previous.disk, previous.end) <= (extent.disk, extent.offset)
            previous = extent

    @rule()
    def extents_end_with_their_disk(self) -> None:
        found: Model = set()
        for extent in self.real.extents(sizes=SIZES):
            assert extent.end <= SIZES[extent.disk]
            found |= touched(extent.disk, extent.offset, extent.length)
        assert found == self.model

    @invariant()
    def same(self) -> None:
        assert blocks_of(self.real) == self.model
        assert self.real.cardinality() == len(self.model) * BLOCK
        assert self.real.disks() == sorted({disk for disk, _ in self.model})
        assert bool(self.real) == bool(self.model)
        assert (self.real == self.other) == (self.model == self.other_model)
        for disk in (0, 1):
            assert self.real.cardinality(disk) == BLOCK * sum(1 for where, _ in self.model if where == disk)


BlockSetMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestBlockSet = BlockSetMachine.TestCase


def test_rounding_never_loses_a_mark() -> None:
    blocks = BlockSet()
    blocks.add_range(0, 4095, 2)
    assert list(blocks.extents()) == [Extent(0, 0, 8192)]
    blocks.discard_range(0, 1, 8191)
    assert list(blocks.extents()) == [Extent(0, 0, 4096)]


def test_last_block_of_an_odd_disk_can_be_dropped() -> None:
    blocks = BlockSet()
    blocks.add_range(0, 0, 8192 + 512)
    (extent,) = blocks.extents(sizes={0: 8192 + 512})
    blocks.discard_range(0, extent.offset, extent.length)
    assert blocks.cardinality() == BLOCK
    blocks.discard_range(0, extent.offset, extent.length, size=8192 + 512)
    assert not blocks


def test_blocks_behind_a_disk_are_left_out() -> None:
    blocks = BlockSet()
    blocks.add_range(0, 0, 10 * BLOCK)
    assert list(blocks.extents(sizes={0: 4 * BLOCK})) == [Extent(0, 0, 4 * BLOCK)]
    assert list(blocks.extents(max_length=4 * BLOCK, sizes={0: 4 * BLOCK})) == [Extent(0, 0, 4 * BLOCK)]


def test_largest_disk() -> None:
    blocks = BlockSet()
    blocks.add_range(MAX_DISKS - 1, 0, MAX_DISK_BYTES)
    assert blocks.cardinality() == MAX_DISK_BYTES
    data = blocks.serialise()
    assert len(data) < 4 * MiB
    assert BlockSet.deserialise(data) == blocks
    assert next(blocks.extents(max_length=MAX_DISK_BYTES)).length == MAX_DISK_BYTES
    assert next(blocks.extents()).length == CHUNK


def test_set_may_change_while_it_is_walked() -> None:
    blocks = BlockSet()
    blocks.add_range(0, 0, 4 * CHUNK)
    seen: list[Extent] = []
    for extent in blocks.extents():
        seen.append(extent)
        blocks.discard_range(0, extent.offset, extent.length)
        if extent.offset == CHUNK:
            blocks.discard_range(0, 2 * CHUNK, CHUNK)
            blocks.add_range(0, 0, BLOCK)
            blocks.add_range(0, 8 * CHUNK, BLOCK)
    assert [extent.offset for extent in seen] == [0, CHUNK, 3 * CHUNK, 8 * CHUNK]
    assert list(blocks.extents()) == [Extent(0, 0, BLOCK)]
    for _ in blocks.extents():
        blocks.clear()
    assert not blocks


@pytest.mark.parametrize(
    ("disk", "offset", "length"),
    [(-1, 0, 1), (MAX_DISKS, 0, 1), (0, -1, 1), (0, 0, -1), (0, 31 * TiB, 2 * TiB)],
    ids=["disk-below", "disk-above", "offset", "length", "end"],
)
def test_ranges_that_are_none(disk: int, offset: int, length: int) -> None:
    blocks = BlockSet()
    for call in (blocks.add_range, blocks.discard_range, blocks.contains):
        with pytest.raises(BlockRangeInvalid) as caught:
            call(disk, offset, length)
        assert caught.value.code == "BH-BLOCKS-RANGE"
    assert not blocks


@pytest.mark.parametrize("length", [0, 100, BLOCK + 1, -BLOCK])
def test_extents_of_no_whole_block(length: int) -> None:
    with pytest.raises(BlockRangeInvalid):
        BlockSet().extents(max_length=length)


def scattered() -> BlockSet:
    blocks = BlockSet()
    numbers = random.Random(7)
    for _ in range(2000):
        blocks.add_range(numbers.randrange(3), numbers.randrange(GiB), 1)
    return blocks


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damage_is_found(data: st.DataObject) -> None:
    good = bytearray(scattered().serialise())
    if data.draw(st.booleans(), label="torn"):
        bad = good[: data.draw(st.integers(0, len(good) - 1))]
    else:
        bad = good
        bad[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BlockSetUnusable):
        BlockSet.deserialise(bytes(bad))


def sealed(body: bytes) -> bytes:
    return body + blake3(body).digest(length=16)


def one_disk(disk: int, bitmap: bytes, length: int | None = None) -> bytes:
    return disk.to_bytes(4, "big") + (len(bitmap) if length is None else length).to_bytes(8, "big") + bitmap


def bitmap_of(*numbers: int) -> bytes:
    return BitMap64(numbers).serialize()


@pytest.mark.parametrize(
    "body",
    [
        b"BHBX\0\x01\0\0",
        b"BHBS\0\x02\0\0",
        b"BHBS\0\x01\0\x41",
        b"BHBS\0\x01\0\x01",
        b"BHBS\0\x01\0\0left over",
        b"BHBS\0\x01\0\x01" + one_disk(0, b"no bitmap at all"),
        b"BHBS\0\x01\0\x01" + one_disk(0, bitmap_of(1), length=2**40),
        b"BHBS\0\x01\0\x01" + one_disk(MAX_DISKS, bitmap_of(1)),
        b"BHBS\0\x01\0\x01" + one_disk(0, bitmap_of()),
        b"BHBS\0\x01\0\x01" + one_disk(0, bitmap_of(MAX_DISK_BYTES // BLOCK)),
        b"BHBS\0\x01\0\x02" + one_disk(0, bitmap_of(1)) * 2,
    ],
    ids=[
        "magic", "version", "too-many-disks", "no-disk", "left-over", "bitmap", "length", "disk-number", "empty",
        "behind-the-end", "twice",
    ],
)  # fmt: skip
def test_well_sealed_nonsense_is_refused(body: bytes) -> None:
    with pytest.raises(BlockSetUnusable) as caught:
        BlockSet.deserialise(sealed(body))
    assert "hashes" in caught.value.advice


def test_bound_of_the_serialised_form(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = scattered()
    data = blocks.serialise()
    monkeypatch.setattr(blocks_module, "MAX_SERIALISED", len(data))
    assert BlockSet.deserialise(blocks.serialise()) == blocks
    monkeypatch.setattr(blocks_module, "MAX_SERIALISED", len(data) - 1)
    with pytest.raises(BlockSetUnusable):
        blocks.serialise()
    with pytest.raises(BlockSetUnusable):
        BlockSet.deserialise(data)
