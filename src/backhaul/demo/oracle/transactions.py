"""The oracle over SQLite: every acknowledged transaction before the barrier is there, and the numbers form a prefix.

The transactions of `writers.sqlite_writer` are numbered; the log has ISSUE and ACK of each. The database is copied
to a scratch folder first, since opening one with a write-ahead log writes to it. Blocking.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backhaul.demo.oracle.barrier import Barrier
from backhaul.demo.oracle.errors import DatabaseUnreadable
from backhaul.demo.oracle.history import History, Incarnation, load_history
from backhaul.demo.oracle.report import NANOSECONDS, CheckReport, Findings, Newest, Violation, ViolationKind

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS entry (
    number INTEGER PRIMARY KEY, incarnation INTEGER NOT NULL, wall_ns INTEGER NOT NULL, payload BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS ledger (
    one INTEGER PRIMARY KEY CHECK (one = 1), entries INTEGER NOT NULL, total INTEGER NOT NULL
) STRICT;
INSERT OR IGNORE INTO ledger VALUES (1, 0, 0);
"""
"""Each transaction adds an entry and counts it in the ledger: one without the other is half a transaction."""


@dataclass(frozen=True)
class _Stored:
    """What the database holds: rows (number, incarnation, wall ns) ascending, and what SQLite says of it."""

    rows: Sequence[tuple[int, int, int]]
    complaints: Sequence[str]


def check_transactions(log: Path | History, database: Path, barrier: Barrier | None = None) -> CheckReport:
    """Prove that the database holds a prefix of the transactions in `log`, everything before `barrier` included.

    Raises LogUnusable, LogDamaged, DatabaseUnreadable; a corrupt database is a violation.
    """
    history = log if isinstance(log, History) else load_history(log)
    barrier = barrier or Barrier.none()
    findings = Findings()
    stored = _read(database)
    for complaint in stored.complaints:
        findings.add(Violation(ViolationKind.UNSOUND, complaint))
    demanded = barrier.chosen(history)
    number = max([demanded.number if demanded else 0, *(row[1] for row in stored.rows[-1:])])
    target = history.incarnations.get(number) or history.incarnations[min(history.incarnations)]
    line = history.line(target.number)
    if demanded is not None and demanded not in line:
        text = f"the database goes on from incarnation {target.number}, not from {demanded.number}"
        findings.add(Violation(ViolationKind.WRONG_LINE, text))
    _check_numbers(line, stored.rows, findings)
    for incarnation in line:
        if incarnation is demanded:
            _check_barrier(incarnation, barrier, stored.rows[-1][0] if stored.rows else 0, findings)
    return _report(target, stored, findings)


def _check_numbers(line: Sequence[Incarnation], rows: Sequence[tuple[int, int, int]], findings: Findings) -> None:
    """The rows must be 1, 2, 3, ... and each of the incarnation of the line that had that number."""
    expected = 1
    for number, incarnation, _wall in rows:
        if number > expected:
            text = f"transactions {expected} to {number - 1} are missing, later ones are there"
            findings.add(Violation(ViolationKind.LOST, text, incarnation=incarnation, sequence=expected))
        owner = next((found for found in line if number >= found.first_sequence), None)
        if owner is None or owner.number != incarnation:
            text = f"transaction {incarnation}.{number} is not of this line"
            findings.add(Violation(ViolationKind.FOREIGN, text, incarnation=incarnation, sequence=number))
        elif number >= owner.first_sequence + len(owner.places):
            text = f"transaction {incarnation}.{number} is not in the log"
            findings.add(Violation(ViolationKind.UNKNOWN, text, incarnation=incarnation, sequence=number))
        expected = number + 1


def _check_barrier(incarnation: Incarnation, barrier: Barrier, newest: int, findings: Findings) -> None:
    for index, position in enumerate(incarnation.acked_at):
        number = incarnation.first_sequence + index
        if number > newest and position >= 0 and barrier.demands(incarnation, index):
            text = f"transaction {incarnation.number}.{number} is missing: acknowledged before the barrier"
            findings.add(
                Violation(ViolationKind.BEHIND, text, incarnation=incarnation.number, sequence=number),
            )


def _report(target: Incarnation, stored: _Stored, findings: Findings) -> CheckReport:
    newest = stored.rows[-1] if stored.rows else None
    first_missing = max(0, (newest[0] if newest else 0) + 1 - target.first_sequence)
    behind = range(first_missing, len(target.places))
    missing = [index for index in behind if target.acked_at[index] >= 0]
    loss_ns = target.acked_ns[missing[-1]] - target.acked_ns[missing[0]] if missing else 0
    return CheckReport(
        checked=len(stored.rows),
        incarnation=target.number,
        contained=sum(row[0] >= target.first_sequence for row in stored.rows),
        missing=len(missing),
        in_flight=len(behind) - len(missing),
        data_loss_s=loss_ns / NANOSECONDS,
        newest=Newest(newest[1], newest[0], newest[2]) if newest else None,
        counts=dict(findings.counts),
        violations=tuple(findings.listed),
    )


def _read(database: Path) -> _Stored:
    with tempfile.TemporaryDirectory(prefix="backhaul-oracle-") as scratch:
        copy = Path(scratch) / database.name
        try:
            shutil.copyfile(database, copy)
            log = database.with_name(database.name + "-wal")
            if log.exists():
                shutil.copyfile(log, copy.with_name(log.name))
        except OSError as failure:
            raise DatabaseUnreadable(path=database, reason=failure.strerror) from failure
        with closing(sqlite3.connect(copy)) as connection:
            return _read_rows(connection)


def _read_rows(connection: sqlite3.Connection) -> _Stored:
    try:
        complaints = [str(row[0]) for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
        tables = connection.execute("SELECT count(*) FROM sqlite_master WHERE name IN ('entry', 'ledger')").fetchone()
        if tables[0] == 0 and not complaints:
            return _Stored([], [])  # a point from before the first transaction
        rows = connection.execute("SELECT number, incarnation, wall_ns FROM entry ORDER BY number").fetchall()
        entries, total = connection.execute("SELECT entries, total FROM ledger").fetchone()
    except (sqlite3.DatabaseError, TypeError) as failure:
        return _Stored([], [f"the database cannot be read: {failure}"])
    if (entries, total) != (len(rows), sum(row[0] for row in rows)):
        complaints.append(f"the ledger counts {entries} entries, {len(rows)} are there: half a transaction")
    return _Stored(rows, complaints)
