"""Failovers: each incarnation is judged from the state it started from, and that state against its parent."""

from __future__ import annotations

from pathlib import Path

from backhaul.demo.oracle import Barrier, CheckReport, ViolationKind, check
from backhaul.demo.oracle.simulated_writer import SimulatedWriter, TickingClock
from backhaul.replication.units import BLOCK

CLOCK = TickingClock()


def disks() -> list[bytearray]:
    return [bytearray(8 * BLOCK), bytearray(8 * BLOCK)]


def copy(images: list[bytearray]) -> list[bytearray]:
    return [bytearray(image) for image in images]


def judged(log: Path, images: list[bytearray], barrier: Barrier | None = None) -> CheckReport:
    return check(log, [bytes(image) for image in images], barrier)


def writes(writer: SimulatedWriter, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        writer.write(number % 2, number * 3 % 8)


def test_an_unplanned_failover_loses_legitimately_what_came_after_the_point(tmp_path: Path) -> None:
    home = disks()
    first = SimulatedWriter(tmp_path, home, CLOCK)
    writes(first, 10)
    cloud = copy(home)
    writes(first, 5)  # isolated, goes on for a while
    second = SimulatedWriter(tmp_path, cloud, CLOCK)
    assert second.log.incarnation == 2
    assert second.log.first_sequence == 11
    writes(second, 6)
    assert judged(tmp_path, cloud, Barrier.final()).ok
    assert judged(tmp_path, home).ok  # the old side is a prefix of its own line
    assert set(judged(tmp_path, home, Barrier.final()).counts) >= {ViolationKind.FOREIGN}


def test_failing_back_without_bringing_the_data_is_caught(tmp_path: Path) -> None:
    home = disks()
    writes(SimulatedWriter(tmp_path, home, CLOCK), 10)
    cloud = copy(home)
    writes(SimulatedWriter(tmp_path, cloud, CLOCK), 4)
    assert set(judged(tmp_path, home, Barrier.final()).counts) == {ViolationKind.BEHIND}
    assert judged(tmp_path, cloud, Barrier.final()).ok


def test_a_block_of_the_abandoned_side_is_caught(tmp_path: Path) -> None:
    home = disks()
    first = SimulatedWriter(tmp_path, home, CLOCK)
    writes(first, 10)
    cloud = copy(home)
    lost = first.write(0, 7)
    second = SimulatedWriter(tmp_path, cloud, CLOCK)
    writes(second, 3)
    cloud[0][7 * BLOCK :] = first.stamp(lost)
    assert set(judged(tmp_path, cloud).counts) == {ViolationKind.FOREIGN}


def test_a_failover_to_no_prefix_is_caught_though_the_new_line_is_clean(tmp_path: Path) -> None:
    home = disks()
    writes(SimulatedWriter(tmp_path, home, CLOCK), 16)
    cloud = copy(home)
    cloud[0][:BLOCK] = bytes(BLOCK)
    writes(SimulatedWriter(tmp_path, cloud, CLOCK), 2, start=1)
    report = judged(tmp_path, cloud, Barrier.final())
    assert not report.ok
    assert {found.incarnation for found in report.violations} == {1}


def test_a_block_that_fell_back_behind_the_start_is_caught(tmp_path: Path) -> None:
    home = disks()
    first = SimulatedWriter(tmp_path, home, CLOCK)
    older = first.write(0, 5)
    first.write(0, 5)
    writes(first, 4)
    second = SimulatedWriter(tmp_path, home, CLOCK)
    second.write(1, 0)
    home[0][5 * BLOCK : 6 * BLOCK] = first.stamp(older)
    assert set(judged(tmp_path, home).counts) == {ViolationKind.LOST}


def test_a_barrier_belongs_to_the_line_that_wrote_at_its_time(tmp_path: Path) -> None:
    home = disks()
    first = SimulatedWriter(tmp_path, home, CLOCK)
    writes(first, 10)
    barrier = CLOCK.wall_ns()
    point = copy(home)
    writes(SimulatedWriter(tmp_path, home, CLOCK), 4)
    assert judged(tmp_path, point, Barrier.at_ns(barrier)).ok
    assert not judged(tmp_path, disks(), Barrier.at_ns(barrier)).ok
    assert judged(tmp_path, home, Barrier.final(incarnation=1)).ok


def test_images_of_a_side_line_are_not_taken_for_the_main_one(tmp_path: Path) -> None:
    home = disks()
    first = SimulatedWriter(tmp_path, home, CLOCK)
    writes(first, 6)
    test_copy = copy(home)
    writes(SimulatedWriter(tmp_path, test_copy, CLOCK), 3)
    third = SimulatedWriter(tmp_path, home, CLOCK)
    writes(third, 3, start=1)
    assert judged(tmp_path, home, Barrier.final()).ok
    assert ViolationKind.WRONG_LINE in judged(tmp_path, home, Barrier.final(incarnation=2)).counts


def test_what_was_on_the_disk_before_must_stay(tmp_path: Path) -> None:
    home = disks()
    home[0][:BLOCK] = b"installed" * 455 + b"." * (BLOCK - 9 * 455)
    writer = SimulatedWriter(tmp_path, home, CLOCK)
    writer.write(1, 1)
    assert judged(tmp_path, home, Barrier.final()).ok
    home[0][10] ^= 1
    assert set(judged(tmp_path, home).counts) == {ViolationKind.FOREIGN}
    home[0][:BLOCK] = bytes(BLOCK)
    assert set(judged(tmp_path, home).counts) == {ViolationKind.LOST}
