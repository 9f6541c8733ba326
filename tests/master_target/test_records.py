"""Bytes of records, segments and the index."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backhaul.master_target import records as r
from backhaul.master_target.index import ZEROS, EpochIndex, Piece, resolve
from backhaul.replication.units import BLOCK

KEY = bytes(32)
RUN = st.builds(
    lambda disk, first, count, new, before: r.Run(
        disk,
        first,
        count,
        new,
        before,
        b"h" * 16 * count if new is r.New.DATA else b"",
        b"b" * 16 * count if before is r.Before.STORED else b"",
    ),
    st.integers(0, 63),
    st.integers(0, 1 << 33),
    st.integers(1, 9),
    st.sampled_from(list(r.New)),
    st.sampled_from(list(r.Before)),
)


@given(st.lists(RUN, max_size=20))
def test_runs_come_back(runs: list[r.Run]) -> None:
    assert [run for run, _, _ in r.unpack_runs(r.pack_runs(runs))] == runs


@given(st.integers(0, r.HEAD - 1), st.integers(1, 255))
def test_no_bit_of_a_head_may_change(at: int, mask: int) -> None:
    record = r.Record(r.RecordType.CHANGES, 3, 9, b"meta", 8192, 1, 2, 4096, 4096, True)
    head = r.encode_head(KEY, record)
    assert len(head) == r.HEAD == 100
    read, length, check = r.decode_head(KEY, 4096, head)
    assert (read.type, read.epoch, read.batch, read.applied, read.last) == (record.type, 3, 9, 2, True)
    assert (length, check) == (4, r.digest(KEY, b"meta"))
    broken = head[:at] + bytes([head[at] ^ mask]) + head[at + 1 :]
    with pytest.raises(r.BadRecord):
        r.decode_head(KEY, 4096, broken)
    with pytest.raises(r.BadRecord):
        r.decode_head(KEY, 8192, head)
    with pytest.raises(r.BadRecord):
        r.decode_head(bytes(31) + b"1", 4096, head)


def test_records_are_bounded() -> None:
    runs = [
        r.Run(0, n * 256, 256, r.New.ZERO, r.Before.STORED, b"", bytes(16 * 256), [bytes(1 << 20)]) for n in range(20)
    ]
    made = list(r.changes(runs, 1, 1, 1, 1))
    assert [record.payload_length for record in made] == [8 << 20, 8 << 20, 4 << 20]
    many = [r.Run(0, n, 1, r.New.ZERO, r.Before.ZERO) for n in range(r.MAX_RUNS + 1)]
    assert len(list(r.changes(many, 1, 1, 1, 1))) == 2
    assert list(r.changes([], 1, 1, 1, 1)) == []


def test_the_index_finds_what_was_added_and_only_that() -> None:
    chance = random.Random(5)
    free, known = set(range(3000)), {}
    index = EpochIndex()
    at = 0
    for _ in range(120):
        pieces = []
        for _ in range(chance.randrange(1, 8)):
            first, count = chance.randrange(3000), chance.randrange(1, 20)
            blocks = [block for block in range(first, min(first + count, 3000)) if block in free]
            for block in blocks:
                segment = chance.choice([ZEROS, 7])
                at += BLOCK
                pieces.append(Piece(block, 1, segment, at if segment else 0, 0))
                known[block] = pieces[-1]
            free -= set(blocks)
        index.add(0, pieces)
    for first in range(0, 3000, 37):
        end = first + chance.randrange(1, 200)
        found: dict[int, Piece] = {}
        for piece in index.find(0, first, end):
            found |= {block: piece.part(block, block + 1) for block in range(piece.first, piece.end)}
        assert found == {block: piece for block, piece in known.items() if first <= block < end}
        missing = {block for low, high in index.missing(0, first, end) for block in range(low, high)}
        assert missing == set(range(first, end)) - set(known)
    assert index.blocks() == len(known)
    assert {block for low, high in index.runs(0) for block in range(low, high)} == set(known)
    assert index.find(1, 0, 10) == []


def test_neighbouring_zeros_take_one_entry() -> None:
    index = EpochIndex()
    for block in range(0, 4096, 16):
        index.add(0, [Piece(block, 16, ZEROS)])
    assert sum(len(level) for level in index._levels[0]) < 12
    assert index.find(0, 0, 9999)[0].first == 0
    assert index.blocks() == 4096


def test_the_oldest_before_image_wins() -> None:
    older, newer = EpochIndex(), EpochIndex()
    older.add(0, [Piece(2, 2, 1, 100 * BLOCK, 0)])
    newer.add(0, [Piece(0, 8, 2, 200 * BLOCK, 0)])
    found = resolve([older, newer], 0, 0, 6)
    assert [(piece.first, piece.count, piece.segment) for piece in found] == [(0, 2, 2), (2, 2, 1), (4, 2, 2)]
    assert [piece.at // BLOCK for piece in found] == [200, 100, 204]
