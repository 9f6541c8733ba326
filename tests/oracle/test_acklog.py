"""The log: a torn tail is cut, damage is refused, incarnations never collide."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backhaul.demo.oracle.acklog import AckLog, Origin, Region, merged
from backhaul.demo.oracle.errors import LogDamaged, LogUnusable, LogWriteFailed
from backhaul.demo.oracle.history import load_history
from backhaul.demo.oracle.records import RECORD
from backhaul.demo.oracle.simulated_writer import SimulatedWriter, TickingClock
from backhaul.demo.oracle.stamps import machine_tag
from backhaul.replication.units import BLOCK


@pytest.fixture
def log(tmp_path: Path) -> Path:
    writer = SimulatedWriter(tmp_path, [bytearray(8 * BLOCK)], TickingClock())
    for block in range(5):
        writer.write(0, block)
    return writer.log.path


def test_the_order_is_known(tmp_path: Path) -> None:
    writer = SimulatedWriter(tmp_path, [bytearray(8 * BLOCK)], TickingClock())
    first, second = writer.issue(0, 1), writer.issue(0, 2)
    writer.acknowledge(second)
    third = writer.issue(0, 3)
    writer.acknowledge(first)
    found = load_history(tmp_path).newest
    assert (first, second, third) == (1, 2, 3)
    assert found.acked_at[1] < found.issued_at[2] < found.acked_at[0]
    assert found.acked_at[2] == -1


@pytest.mark.parametrize("cut", [1, RECORD - 1, RECORD])
def test_a_torn_tail_is_cut(log: Path, cut: int) -> None:
    log.write_bytes(log.read_bytes()[:-cut])
    found = load_history(log).newest
    assert len(found.places) == 5
    assert found.newest_acknowledged == 4


def test_a_bad_last_record_is_a_torn_tail(log: Path) -> None:
    log.write_bytes(log.read_bytes()[:-1] + b"?")
    assert load_history(log).newest.newest_acknowledged == 4


def test_a_bad_record_within_is_damage(log: Path) -> None:
    data = bytearray(log.read_bytes())
    data[-3 * RECORD + 9] ^= 1
    log.write_bytes(data)
    with pytest.raises(LogDamaged, match="good records follow"):
        load_history(log)


def test_records_out_of_turn_are_damage(log: Path) -> None:
    data = log.read_bytes()
    log.write_bytes(data + data[-RECORD:])
    with pytest.raises(LogDamaged, match="twice"):
        load_history(log)


def test_another_file_is_no_log(tmp_path: Path) -> None:
    (tmp_path / "incarnation-00000001.acks").write_bytes(b"no log at all" * 100)
    with pytest.raises(LogUnusable):
        load_history(tmp_path)


def test_logs_of_two_machines_are_not_mixed(tmp_path: Path) -> None:
    for machine in ("web", "db"):
        SimulatedWriter(tmp_path, [bytearray(BLOCK)], TickingClock(), machine=machine)
    with pytest.raises(LogUnusable, match="several machines"):
        load_history(tmp_path)


def test_incarnations_rise_over_folders_and_disks(tmp_path: Path) -> None:
    images, clock = [bytearray(8 * BLOCK)], TickingClock()
    numbers = []
    for folder in ("a", "a", "b"):
        writer = SimulatedWriter(tmp_path / folder, images, clock)
        writer.write(0, 0)
        numbers.append((writer.log.incarnation, writer.newest))
    assert numbers == [(1, 1), (2, 2), (3, 3)]


def test_a_full_disk_under_the_log_is_an_error_before_the_write(tmp_path: Path) -> None:
    full = AckLog(tmp_path / "full", _open_full(), 1, 1, TickingClock())
    with pytest.raises(LogWriteFailed, match="No space"):
        full.issued(1, 0, 0)
    full.close()
    full.close()


def _open_full() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LogWriteFailed):
        AckLog.begin(tmp_path / "file" / "log", Origin(machine_tag("m"), [], {}), TickingClock())


def test_regions_are_merged() -> None:
    regions = [Region(1, 0, 4), Region(0, 8, 4), Region(0, 0, 4), Region(0, 2, 6), Region(0, 20, 1)]
    assert merged(regions) == [Region(0, 0, 12), Region(0, 20, 1), Region(1, 0, 4)]
