"""The scan tracker: finds exactly what changed, hands over what it hashed, and never invents a byte."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backhaul.disks import RawFile, create_raw_file
from backhaul.disks.errors import DiskReadFailed
from backhaul.mobility.errors import DiskChangedSize, DiskReplaced, FreezeTooLong, TooMuchToStage, TrackerStopped
from backhaul.mobility.trackers.contract import Piece, TrackedDisk
from backhaul.mobility.trackers.scan import ScanFigures, ScanTracker, check_fits, measure
from backhaul.replication.maps import GranuleMap
from backhaul.replication.ports import RealClock, RealRandomness
from backhaul.replication.units import CHUNK, GRANULE, KiB, MiB
from backhaul.replication.values import DiskIdentity, Extent, ExtentKind

KEY = bytes(range(32))
SIZE = 3 * MiB + 20 * KiB
"""The last granule is not whole, and neither is the last chunk."""

GOES_ON = threading.Event()


class CountingDisk(RawFile):
    """Counts what is read; a read that touches `broken` fails as a bad sector does."""

    reads: list[tuple[int, int]]
    broken = -1

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        self.reads.append((offset, len(buffer)))
        if offset <= self.broken < offset + len(buffer):
            raise DiskReadFailed(disk=self.name, offset=self.broken, reason="Input/output error")
        super().read_into(offset, buffer)


class Machine:
    """Two disks with a tracker and the maps of what was captured."""

    def __init__(self, folder: Path, sizes: tuple[int, ...] = (SIZE, MiB)) -> None:
        self.paths = [folder / f"{index}.img" for index in range(len(sizes))]
        self.maps: dict[int, GranuleMap] = {}
        self.disks: list[CountingDisk] = []
        for index, (path, size) in enumerate(zip(self.paths, sizes, strict=True)):
            path.unlink(missing_ok=True)
            create_raw_file(path, size)
            disk = CountingDisk(path, writable=False)
            disk.reads = []
            self.disks.append(disk)
            self.maps[index] = GranuleMap.all_zero(size, KEY)
        self.tracker = ScanTracker(RealClock(), RealRandomness())
        self.tracker.attach(self.tracked())

    def tracked(self) -> list[TrackedDisk]:
        return [
            TrackedDisk(DiskIdentity(index, f"disk{index}", disk.size), path, disk)
            for index, (path, disk) in enumerate(zip(self.paths, self.disks, strict=True))
        ]

    def write(self, index: int, offset: int, data: bytes) -> None:
        with self.paths[index].open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def scan(self, stage_bytes: int | None = None) -> Iterator[Piece]:
        return self.tracker.collect(self.maps, stop=GOES_ON, stage_bytes=stage_bytes)

    def capture(self) -> list[Extent]:
        found = []
        for piece in self.scan():
            piece.captured()
            found.append(piece.extent)
        return found

    def close(self) -> None:
        for disk in self.disks:
            disk.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    found = Machine(tmp_path)
    yield found
    found.close()


def test_nothing_changed_and_holes_are_not_read(machine: Machine) -> None:
    assert machine.capture() == []
    assert machine.disks[0].reads == machine.disks[1].reads == []


def test_changed_granules_come_with_the_bytes_that_were_hashed(machine: Machine) -> None:
    machine.write(0, 5 * GRANULE + 100, b"one")
    machine.write(0, SIZE - 1, b"2")
    machine.write(1, 0, b"three")
    pieces = list(machine.scan())
    assert [piece.extent for piece in pieces] == [
        Extent(0, 5 * GRANULE, GRANULE),
        Extent(0, 48 * GRANULE, 20 * KiB),
        Extent(1, 0, GRANULE),
    ]
    for piece in pieces:
        with machine.paths[piece.extent.disk].open("rb") as file:
            file.seek(piece.extent.offset)
            assert file.read(piece.extent.length) == piece.data
        assert piece.hashes == (machine.maps[0].hash_granule(piece.data),)


def test_what_is_not_captured_is_found_again(machine: Machine) -> None:
    machine.write(0, 0, b"x")
    assert len(list(machine.scan())) == 1
    assert len(machine.capture()) == 1
    assert machine.capture() == []


def test_what_was_sent_is_what_was_hashed_even_if_it_is_written_meanwhile(machine: Machine) -> None:
    machine.write(0, 0, b"first")
    (piece,) = machine.scan()
    machine.write(0, 0, b"again")
    assert piece.data[:5] == b"first"
    piece.captured()
    assert machine.maps[0].get(0) == machine.maps[0].hash_granule(piece.data)
    (piece,) = machine.scan()
    assert piece.data[:5] == b"again"


def test_a_mark_made_since_the_read_is_kept(machine: Machine) -> None:
    machine.write(0, 0, b"first")
    (piece,) = machine.scan()
    machine.maps[0].mark_stale(0, 4096)
    piece.captured()
    assert machine.maps[0].get(0) is None
    assert machine.capture() == [Extent(0, 0, GRANULE)]


def test_zeros_are_zero_extents_written_or_punched(machine: Machine) -> None:
    machine.write(0, 0, b"x" * 4 * GRANULE)
    assert machine.capture() == [Extent(0, 0, 4 * GRANULE)]
    machine.write(0, 0, bytes(GRANULE))
    os.truncate(machine.paths[0], 2 * GRANULE)
    os.truncate(machine.paths[0], SIZE)
    pieces = list(machine.scan())
    assert [piece.extent for piece in pieces] == [
        Extent(0, 0, GRANULE, ExtentKind.ZERO),
        Extent(0, 2 * GRANULE, 2 * GRANULE, ExtentKind.ZERO),
    ]
    assert [piece.data for piece in pieces] == [b"", b""]
    for piece in pieces:
        piece.captured()
    assert machine.capture() == []


def test_of_an_unknown_disk_everything_is_yielded(machine: Machine) -> None:
    machine.maps = {0: GranuleMap.unknown(SIZE, KEY), 1: GranuleMap.unknown(MiB, KEY)}
    machine.write(0, 70 * KiB, b"x")
    extents = machine.capture()
    assert extents[1] == Extent(0, GRANULE, GRANULE)
    assert [sum(e.length for e in extents if e.disk == disk) for disk in (0, 1)] == [SIZE, MiB]
    assert machine.capture() == []
    assert machine.maps[0].stale_count == machine.maps[1].stale_count == 0


def test_no_piece_is_longer_than_a_chunk_of_data(machine: Machine) -> None:
    machine.write(0, 0, os.urandom(SIZE))
    extents = machine.capture()
    assert extents == [
        Extent(0, 0, CHUNK), Extent(0, CHUNK, CHUNK), Extent(0, 2 * CHUNK, CHUNK), Extent(0, 3 * CHUNK, 20 * KiB)
    ]  # fmt: skip


writes = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, MiB - 1), st.integers(1, 200_000), st.booleans()), max_size=8
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=st.lists(writes, min_size=1, max_size=3))
def test_a_replica_fed_by_pieces_equals_the_disks(
    tmp_path: Path, rounds: list[list[tuple[int, int, int, bool]]]
) -> None:
    machine = Machine(tmp_path)
    replicas = [bytearray(SIZE), bytearray(MiB)]
    for number, each in enumerate(rounds, 1):
        for disk, offset, length, zeros in each:
            length = min(length, len(replicas[disk]) - offset)
            machine.write(disk, offset, bytes(length) if zeros else bytes([number]) * length)
        for piece in machine.scan():
            extent = piece.extent
            data = bytes(extent.length) if extent.kind is ExtentKind.ZERO else piece.data
            assert len(data) == extent.length
            replicas[extent.disk][extent.offset : extent.end] = data
            piece.captured()
        assert [path.read_bytes() for path in machine.paths] == replicas
    machine.close()


# ---- errors


def test_a_read_error_names_disk_and_offset_and_nothing_of_the_chunk_is_yielded(machine: Machine) -> None:
    machine.write(0, 0, os.urandom(SIZE))
    machine.disks[0].broken = CHUNK + 5 * GRANULE
    scan = machine.scan()
    assert next(scan).extent == Extent(0, 0, CHUNK)
    with pytest.raises(DiskReadFailed) as caught:
        next(scan)
    assert caught.value.params["offset"] == CHUNK + 5 * GRANULE
    assert caught.value.params["disk"] == str(machine.paths[0])
    assert (CHUNK, CHUNK) in machine.disks[0].reads


@pytest.mark.parametrize("size", [SIZE - MiB, SIZE + MiB], ids=["shrank", "grew"])
def test_a_disk_that_changed_its_size(machine: Machine, size: int) -> None:
    machine.write(0, 0, os.urandom(SIZE))
    os.truncate(machine.paths[0], size)
    with pytest.raises(DiskChangedSize, match=str(size)):
        machine.capture()
    with pytest.raises(DiskChangedSize):
        machine.tracker.attach(machine.tracked())


def test_a_disk_that_shrinks_while_it_is_scanned(machine: Machine) -> None:
    machine.write(0, 0, os.urandom(SIZE))
    scan = machine.scan()
    next(scan)
    os.truncate(machine.paths[0], CHUNK)
    with pytest.raises(DiskChangedSize):
        list(scan)


def test_a_disk_that_was_replaced(machine: Machine, tmp_path: Path) -> None:
    create_raw_file(tmp_path / "other", SIZE)
    (tmp_path / "other").rename(machine.paths[0])
    with pytest.raises(DiskReplaced):
        machine.capture()


def test_staging_is_bounded(machine: Machine) -> None:
    machine.write(0, 0, os.urandom(2 * MiB))
    scan = machine.scan(stage_bytes=MiB)
    assert len(next(scan).data) == MiB
    with pytest.raises(TooMuchToStage, match=str(MiB)):
        next(scan)
    machine.capture()
    machine.write(0, 0, b"little")
    assert len(list(machine.scan(stage_bytes=MiB))) == 1


def test_zeros_need_no_staging(machine: Machine) -> None:
    machine.maps[0].mark_all_stale()
    assert sum(piece.extent.length for piece in machine.scan(stage_bytes=1)) == SIZE


def test_it_stops_when_told(machine: Machine) -> None:
    machine.write(0, 0, os.urandom(SIZE))
    stop = threading.Event()
    scan = machine.tracker.collect(machine.maps, stop=stop)
    next(scan)
    stop.set()
    with pytest.raises(TrackerStopped):
        list(scan)


def test_a_scan_that_is_given_up_leaves_no_thread_and_reads_no_further(tmp_path: Path) -> None:
    machine = Machine(tmp_path, (16 * MiB,))
    machine.write(0, 0, os.urandom(16 * MiB))
    scan = machine.scan()
    next(scan)
    scan.close()  # type: ignore[attr-defined]
    assert len(machine.disks[0].reads) <= 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("scan")]
    machine.close()


# ---- truth and figures


def test_truth_is_new_at_each_attach(machine: Machine) -> None:
    first = machine.tracker.truth
    assert first is not None
    assert first.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert [disk.identity.size for disk in first.disks] == [SIZE, MiB]
    second = machine.tracker.attach(machine.tracked())
    assert second.attach_id != first.attach_id
    assert second.disks == first.disks
    assert machine.tracker.kind == first.tracker == "scan"


class TickingClock:
    """Each look takes a second."""

    now_ns = 0

    def wall_ns(self) -> int:
        return self.monotonic_ns()

    def monotonic_ns(self) -> int:
        TickingClock.now_ns += 1_000_000_000
        return TickingClock.now_ns


def test_figures_of_a_scan_count_what_was_read(machine: Machine) -> None:
    machine.write(0, 0, os.urandom(2 * MiB))
    machine.tracker._clock = TickingClock()
    assert machine.tracker.last is None
    machine.capture()
    assert machine.tracker.last == ScanFigures(2 * MiB, 2 * MiB)


def test_measure_samples_evenly_and_counts_data_only(tmp_path: Path) -> None:
    machine = Machine(tmp_path, (64 * MiB, MiB))
    machine.write(0, 0, os.urandom(16 * MiB))
    machine.write(1, 0, os.urandom(MiB))
    figures = measure(machine.disks, TickingClock(), sample_bytes=4 * MiB)
    assert figures.bytes_to_read == 17 * MiB
    read = sorted(machine.disks[0].reads)
    assert [offset for offset, _ in read] == [0, 4 * MiB, 8 * MiB, 12 * MiB]
    assert figures.bytes_per_s == 5 * MiB
    assert figures.seconds == 17 / 5
    machine.close()


def test_measure_of_empty_disks(machine: Machine) -> None:
    assert measure(machine.disks, RealClock()).bytes_to_read == 0
    check_fits(measure(machine.disks, RealClock()), 2.0)


def test_a_scan_that_does_not_fit_the_freeze_is_said_before() -> None:
    check_fits(ScanFigures(1_300_000_000, 1e9), 2.0)
    with pytest.raises(FreezeTooLong, match=r"1\.4 s at 1000 MB/s.*limit of 2\.0 s"):
        check_fits(ScanFigures(1_400_000_000, 1e9), 2.0)
