"""A database that is no prefix, too old, or half is caught."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from backhaul.demo.oracle import Barrier, ViolationKind, check_transactions
from backhaul.demo.oracle.acklog import AckLog, Origin
from backhaul.demo.oracle.errors import DatabaseUnreadable
from backhaul.demo.oracle.simulated_writer import TickingClock
from backhaul.demo.oracle.stamps import machine_tag
from backhaul.demo.oracle.transactions import SCHEMA


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Ten transactions were acknowledged and an eleventh begun."""
    made = AckLog.begin(tmp_path / "log", Origin(machine_tag("db"), [], {}), TickingClock())
    for number in range(1, 12):
        made.issued(number, 0, 0)
        if number <= 10:
            made.acknowledged(number, 0, 0)
    made.close()
    return tmp_path / "log"


def database(folder: Path, numbers: list[int], *statements: str) -> Path:
    path = folder / "base.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(SCHEMA)
        connection.executemany("INSERT INTO entry VALUES (?, 1, 5, x'00')", [(number,) for number in numbers])
        connection.execute("UPDATE ledger SET entries = ?, total = ?", (len(numbers), sum(numbers)))
        for statement in statements:
            connection.execute(statement)
    return path


@pytest.mark.parametrize(
    ("numbers", "statement", "expected"),
    [
        pytest.param([*range(1, 11)], "SELECT 1", set(), id="complete"),
        pytest.param([*range(1, 12)], "SELECT 1", set(), id="with the one in flight"),
        pytest.param([*range(1, 10)], "SELECT 1", {ViolationKind.BEHIND}, id="too old"),
        pytest.param([], "SELECT 1", {ViolationKind.BEHIND}, id="empty"),
        pytest.param([1, 2, *range(4, 11)], "SELECT 1", {ViolationKind.LOST}, id="a hole"),
        pytest.param([*range(1, 13)], "SELECT 1", {ViolationKind.UNKNOWN}, id="never issued"),
        pytest.param([*range(1, 11)], "UPDATE ledger SET total = 1", {ViolationKind.UNSOUND}, id="half"),
        pytest.param(
            [*range(1, 11)], "UPDATE entry SET incarnation = 7 WHERE number = 3", {ViolationKind.FOREIGN}, id="foreign"
        ),
    ],
)
def test_final(log: Path, tmp_path: Path, numbers: list[int], statement: str, expected: set[ViolationKind]) -> None:
    report = check_transactions(log, database(tmp_path, numbers, statement), Barrier.final())
    assert set(report.counts) == expected, report.text()


def test_an_older_prefix_without_a_barrier(log: Path, tmp_path: Path) -> None:
    report = check_transactions(log, database(tmp_path, [1, 2, 3]))
    assert report.ok
    assert (report.contained, report.missing, report.in_flight) == (3, 7, 1)


def test_a_corrupt_database_is_a_violation(log: Path, tmp_path: Path) -> None:
    path = database(tmp_path, [1, 2, 3])
    path.write_bytes(path.read_bytes()[:4096] + b"?" * 8192)
    assert ViolationKind.UNSOUND in check_transactions(log, path).counts


def test_no_database(log: Path, tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnreadable):
        check_transactions(log, tmp_path / "none.db")
