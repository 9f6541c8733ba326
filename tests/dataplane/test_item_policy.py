"""What an item's policy changes at its master target: which points are kept, and how large the journal may become."""

from __future__ import annotations

from pathlib import Path

from backhaul.master_target.errors import JournalFull
from backhaul.recovery.policies import ReplicationPolicy
from backhaul.replication.units import MiB
from backhaul.replication.values import ItemPolicy, RetentionTier
from dataplane.replica_item import ReplicaItem
from replication.ends import FixedClock, data_extent, end

SECOND = 1_000_000_000


def point_every_second(held: ReplicaItem, clock: FixedClock, count: int) -> None:
    for number in range(count):
        clock.now_ns += SECOND
        begun = held.begin()
        held.send(held.block(bytes([number + 1]), begin=begun), held.frame(end=end(begun, barrier_ns=clock.now_ns)))


def kept(folder: Path, policy: ReplicationPolicy) -> list[int]:
    clock = FixedClock()
    clock.now_ns -= clock.now_ns % (10 * SECOND)
    held = ReplicaItem(folder, policy=policy.for_data_plane(), clock=clock)
    held.open()
    point_every_second(held, clock, 30)
    return [point.barrier_ns // SECOND % 100 for point in held.item.replica.points()]


def test_points_are_thinned_by_age_count_and_the_tiers_of_the_policy(tmp_path: Path) -> None:
    all_kept = kept(tmp_path / "all", ReplicationPolicy("all"))
    assert len(all_kept) == 30
    assert kept(tmp_path / "count", ReplicationPolicy("count", retention_points=4)) == all_kept[-4:]
    assert kept(tmp_path / "age", ReplicationPolicy("age", retention_s=5)) == all_kept[-6:]
    tiers = (RetentionTier(5, 0), RetentionTier(3600, 10))
    thinned = kept(tmp_path / "tiers", ReplicationPolicy("tiers", tiers=tiers))
    assert thinned == [1, 10, 20, *range(25, 31)]  # all of the last five seconds, then the first of each ten


def test_the_journal_is_bounded_as_the_policy_says(tmp_path: Path) -> None:
    policy = ReplicationPolicy("small", journal_bytes=256 * 1024)  # smaller than a person may choose
    held = ReplicaItem(tmp_path / "item", size=MiB, policy=policy.for_data_plane())
    held.fill(1)
    held.open()
    held.epoch()  # a point that the next epoch must be able to return to
    begun = held.begin()
    whole = held.frame(data_extent(0, MiB), data=bytes(range(256)) * (MiB // 256), begin=begun)
    held.send(whole)
    assert held.item.waiting is not None
    assert held.item.waiting.code == JournalFull.code
    assert ReplicationPolicy("small").for_data_plane() == ItemPolicy()
