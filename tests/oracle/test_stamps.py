"""A stamped block says what it is; anything else in its place is seen for what it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backhaul.demo.oracle.stamps import (
    NOISE_BYTES,
    ContentKind,
    Stamp,
    disk_and_block,
    machine_tag,
    observe,
    place,
    stamped_block,
)
from backhaul.replication.units import BLOCK, SECTOR

MACHINE = machine_tag("web")


def block(sequence: int = 7, disk: int = 1, number: int = 5, machine: bytes = MACHINE) -> bytes:
    return stamped_block(Stamp(machine, 2, disk, number, sequence, 99), bytes(range(256)) * (NOISE_BYTES // 256 + 1))


def test_a_stamp_is_read_back() -> None:
    content = observe(block(), MACHINE, 1, 5)
    assert content is not None
    assert (content.kind, content.incarnation, content.sequence, content.wall_ns) == (ContentKind.STAMP, 2, 7, 99)


def test_zeros_are_nothing() -> None:
    assert observe(bytes(BLOCK), MACHINE, 1, 5) is None


@given(cut=st.integers(1, 7), older=st.booleans())
def test_a_block_of_two_writes_is_torn(cut: int, older: bool) -> None:
    before = block(6) if older else bytes(BLOCK)
    content = observe(block(7)[: cut * SECTOR] + before[cut * SECTOR :], MACHINE, 1, 5)
    assert content is not None
    assert content.kind is ContentKind.TORN


@given(at=st.integers(0, BLOCK - 1), bit=st.integers(0, 7))
def test_any_changed_bit_shows(at: int, bit: int) -> None:
    data = bytearray(block())
    data[at] ^= 1 << bit
    content = observe(bytes(data), MACHINE, 1, 5)
    assert content is not None
    assert content.kind is ContentKind.TORN


def test_swapped_sectors_are_torn() -> None:
    data = block()
    content = observe(data[SECTOR : 2 * SECTOR] + data[:SECTOR] + data[2 * SECTOR :], MACHINE, 1, 5)
    assert content is not None
    assert content.kind is ContentKind.TORN


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(block(number=6), "disk 1 block 6", id="other block"),
        pytest.param(block(disk=0), "disk 0 block 5", id="other disk"),
        pytest.param(block(machine=machine_tag("db")), "another machine", id="other machine"),
    ],
)
def test_a_stamp_of_another_place_is_misplaced(data: bytes, words: str) -> None:
    content = observe(data, MACHINE, 1, 5)
    assert content is not None
    assert content.kind is ContentKind.MISPLACED
    assert words in content.detail


def test_what_was_there_before_is_known_by_its_digest() -> None:
    first, same, other = (observe(data, MACHINE, 1, 5) for data in (b"a" * BLOCK, b"a" * BLOCK, b"b" * BLOCK))
    assert first is not None
    assert first.kind is ContentKind.OTHER
    assert first.same_as(same)
    assert not first.same_as(other)
    assert not first.same_as(None)


@given(disk=st.integers(0, 63), number=st.integers(0, 2**33))
def test_places_are_reversible(disk: int, number: int) -> None:
    assert disk_and_block(place(disk, number)) == (disk, number)
