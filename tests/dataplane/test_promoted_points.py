"""Between failover and commit or cancel nothing is thinned: every point stays reachable, whatever the policy keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from backhaul.master_target.errors import JournalFull
from backhaul.replication.units import KiB
from backhaul.replication.values import ItemPolicy
from dataplane.replica_item import BLOCK, ReplicaItem
from replication.ends import data_extent, end

KEPT = 3


def block_of(held: ReplicaItem) -> bytes:
    return held.image.read_bytes()[:BLOCK]


def numbers(held: ReplicaItem) -> list[int]:
    return [point.number for point in held.item.replica.points()]


@pytest.fixture
def held(tmp_path: Path) -> ReplicaItem:
    """Five points, of which the policy keeps three."""
    held = ReplicaItem(tmp_path / "item", policy=ItemPolicy(retention_points=KEPT))
    held.open()
    for content in (b"1", b"2", b"3", b"4", b"5"):
        held.epoch(content)
    assert numbers(held) == [3, 4, 5]
    return held


def test_changes_of_point_drop_none_until_the_next_generation(held: ReplicaItem) -> None:
    held.item.promote(held.signed(generation=2))
    for point, content in ((3, b"3"), (4, b"4"), (3, b"3"), (5, b"5")):
        held.item.go_to(point)
        assert block_of(held) == content * BLOCK
        held.item.thin()
    assert numbers(held) == [3, 4, 5, 6, 7, 8, 9]
    held.start()  # it is so after a restart, too
    held.item.thin()
    held.item.replica.thin_to_floor()
    assert numbers(held) == [3, 4, 5, 6, 7, 8, 9]
    held.item.raise_descriptor(held.signed(generation=3))
    held.open()
    held.epoch(b"6")
    assert numbers(held) == [8, 9, 10]


def test_a_journal_without_room_drops_no_point_for_a_change_of_point(tmp_path: Path) -> None:
    """Thinning to the floor is the first way out while replicating; for a machine that failed over it would be a
    loss: the other points are what it may still go to.
    """
    size = 512 * KiB
    held = ReplicaItem(tmp_path / "item", size=size, policy=ItemPolicy(journal_bytes=768 * KiB))
    held.fill(1)
    held.open()
    for fill in (b"1", b"2"):
        begun = held.begin()
        held.send(
            held.frame(data_extent(0, size), data=held.ends.randomness.token(size), begin=begun),
            held.frame(end=end(begun)),
        )
        assert held.item.waiting is None, fill
    before = held.image.read_bytes()
    held.item.promote(held.signed(generation=2))
    points = numbers(held)
    with pytest.raises(JournalFull):
        held.item.go_to(points[0])
    assert numbers(held) == points
    assert held.image.read_bytes() == before
