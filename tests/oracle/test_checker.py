"""Every kind of damage to an image is caught and called by its name, with real stamps and a real log."""

from __future__ import annotations

from pathlib import Path

import pytest

from backhaul.demo.oracle import Barrier, ViolationKind, check, check_command, true_rpo_s
from backhaul.demo.oracle.errors import DiskMissing, ImageUnreadable, LogUnusable
from backhaul.demo.oracle.history import load_history
from backhaul.demo.oracle.images import FileImage
from backhaul.demo.oracle.report import LISTED
from backhaul.demo.oracle.simulated_writer import SimulatedWriter, TickingClock
from backhaul.replication.units import BLOCK, SECTOR

DISKS, BLOCKS = 2, 16


class Case:
    """A machine with two disks and a writer that made 20 writes, each of another block, then is checked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = TickingClock()
        self.images = [bytearray(BLOCKS * BLOCK) for _ in range(DISKS)]
        self.writer = SimulatedWriter(folder, self.images, self.clock)
        self.sequences = [self.writer.write(number % DISKS, number // DISKS) for number in range(20)]

    def put(self, disk: int, block: int, data: bytes) -> None:
        self.images[disk][block * BLOCK : (block + 1) * BLOCK] = data

    def kinds(self, barrier: Barrier | None = None) -> set[ViolationKind]:
        report = check(self.folder, [bytes(image) for image in self.images], barrier)
        assert bool(report.violations) == (not report.ok)
        return set(report.counts)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path / "log")


def test_a_good_image_passes(case: Case) -> None:
    report = check(case.folder, [bytes(image) for image in case.images], Barrier.final())
    assert report.ok
    assert (report.contained, report.missing, report.checked) == (20, 0, DISKS * BLOCKS)
    assert "OK" in report.text()


def test_a_lost_write(case: Case) -> None:
    case.put(0, 3, bytes(BLOCK))
    assert case.kinds() == {ViolationKind.LOST}


def test_a_lost_overwrite(case: Case) -> None:
    newer = case.writer.write(0, 3)
    for block in range(4):
        case.writer.write(1, block)
    case.put(0, 3, case.writer.stamp(7))
    report = check(case.folder, [bytes(image) for image in case.images])
    assert [(found.kind, found.sequence) for found in report.violations] == [(ViolationKind.LOST, newer)]


def test_a_reordered_write(case: Case) -> None:
    """The last but one is missing though the last is there: either was put in the wrong order."""
    case.put(0, 9, bytes(BLOCK))
    assert case.kinds() == {ViolationKind.REORDERED}


def test_a_too_late_write(case: Case) -> None:
    """A cut after 10 writes, with the last one of all in it as well."""
    for number in range(10, 19):
        case.put(number % DISKS, number // DISKS, bytes(BLOCK))
    report = check(case.folder, [bytes(image) for image in case.images])
    assert [(found.kind, found.sequence) for found in report.violations] == [(ViolationKind.TOO_LATE, 20)]


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_a_torn_write(case: Case, cut: int) -> None:
    older, newer = case.writer.stamp(7), case.writer.stamp(case.writer.write(0, 3))
    case.put(0, 3, newer[: cut * SECTOR] + older[cut * SECTOR :])
    assert case.kinds() == {ViolationKind.TORN}


def test_a_duplicated_write(case: Case) -> None:
    case.put(0, 12, case.writer.stamp(5))
    assert case.kinds() == {ViolationKind.MISPLACED}


def test_a_write_of_the_other_disk(case: Case) -> None:
    case.put(1, 2, case.writer.stamp(5))
    assert case.kinds() == {ViolationKind.MISPLACED}


def test_foreign_bytes(case: Case) -> None:
    case.put(0, 12, b"x" * BLOCK)
    assert case.kinds() == {ViolationKind.FOREIGN}


@pytest.mark.parametrize("writes", [pytest.param(30, id="never"), pytest.param(5, id="elsewhere")])
def test_a_write_that_is_not_in_the_log(case: Case, tmp_path: Path, writes: int) -> None:
    other = SimulatedWriter(tmp_path / "other", [bytearray(image) for image in [bytes(BLOCKS * BLOCK)] * 2], case.clock)
    for _ in range(writes):
        sequence = other.write(0, 14)
    case.put(0, 14, other.stamp(sequence))
    assert case.kinds() == {ViolationKind.UNKNOWN}


def test_an_older_prefix_is_one_but_not_behind_a_later_barrier(case: Case) -> None:
    for number in range(15, 20):
        case.put(number % DISKS, number // DISKS, bytes(BLOCK))
    history = load_history(case.folder)
    acked = history.newest.acked_ns
    assert case.kinds() == set()
    assert case.kinds(Barrier.at_ns(acked[14] + 1)) == set()
    assert case.kinds(Barrier.at_ns(acked[15] + 1)) == {ViolationKind.BEHIND}
    assert case.kinds(Barrier.at_sequence(15)) == set()
    assert case.kinds(Barrier.at_sequence(16)) == {ViolationKind.BEHIND}
    assert case.kinds(Barrier.final()) == {ViolationKind.BEHIND}


def test_what_is_lost_and_the_true_rpo(case: Case) -> None:
    for number in range(15, 20):
        case.put(number % DISKS, number // DISKS, bytes(BLOCK))
    report = check(case.folder, [bytes(image) for image in case.images])
    acked = load_history(case.folder).newest.acked_ns
    assert report.missing == 5
    assert report.data_loss_s == pytest.approx((acked[19] - acked[15]) / 1e9)
    assert report.newest is not None
    assert report.newest.sequence == 15
    assert true_rpo_s(report, report.newest.wall_ns + 2_500_000_000) == pytest.approx(2.5)
    assert true_rpo_s(None, 1) == float("inf")


@pytest.mark.parametrize("landed", [(), (0,), (1,), (0, 1)])
def test_writes_in_flight_may_be_in_or_out(case: Case, landed: tuple[int, ...]) -> None:
    flying = [case.writer.issue(0, 1), case.writer.issue(1, 1)]
    for number in landed:
        case.writer.land(flying[number])
    assert case.kinds(Barrier.final()) == set()


def test_many_violations_are_counted_and_some_listed(tmp_path: Path) -> None:
    images = [bytearray(200 * BLOCK)]
    writer = SimulatedWriter(tmp_path, images, TickingClock())
    for block in range(200):
        writer.write(0, block)
    images[0][: 80 * BLOCK] = bytes(80 * BLOCK)
    report = check(tmp_path, [bytes(images[0])])
    assert report.counts == {ViolationKind.LOST: 80}
    assert len(report.violations) == LISTED
    assert "and 30 more" in report.text()


def test_a_shorter_image(case: Case) -> None:
    del case.images[1][12 * BLOCK :]
    assert case.kinds() == {ViolationKind.SHORT}


def test_the_command_reads_files(case: Case, tmp_path: Path) -> None:
    paths = [tmp_path / f"disk{number}" for number in range(DISKS)]
    for path, image in zip(paths, case.images, strict=True):
        path.write_bytes(image)
    assert check_command(case.folder, paths, None, final=True).ok
    paths[0].write_bytes(bytes(BLOCKS * BLOCK))
    assert not check_command(case.folder, paths, None, final=False).ok
    first_ack = load_history(case.folder).newest.acked_ns[0]
    for path in paths:
        path.write_bytes(bytes(BLOCKS * BLOCK))
    assert check_command(case.folder, paths, None, final=False).ok
    assert not check_command(case.folder, paths, first_ack + 1, final=False).ok


def test_what_keeps_it_from_judging(case: Case, tmp_path: Path) -> None:
    with pytest.raises(DiskMissing, match="disk 1"):
        check(case.folder, [bytes(case.images[0])])
    with pytest.raises(ImageUnreadable, match="nowhere"):
        check(case.folder, [tmp_path / "nowhere", bytes(1)])
    with pytest.raises(LogUnusable):
        check(tmp_path / "no-log", [])


@pytest.mark.parametrize("size", [0, 100, BLOCK, 3 * BLOCK + 17])
def test_a_file_is_read_to_its_very_end(tmp_path: Path, size: int) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(number % 251 for number in range(size)))
    image = FileImage(path)
    try:
        assert image.read_at(0, 8 * BLOCK) == path.read_bytes()
        assert image.read_at(BLOCK, BLOCK) == path.read_bytes()[BLOCK : 2 * BLOCK]
    finally:
        image.close()
