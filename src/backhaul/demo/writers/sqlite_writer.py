"""The SQLite writer: numbered transactions (WAL, synchronous=FULL), one after the other, each logged outside.

Run as `python -m backhaul.demo.writers.sqlite_writer SPEC.json`, or by `run_sqlite_writer`. COMMIT returns once the
transaction is durable, so its acknowledgement is that of an application. `oracle.check_transactions` judges.
"""

from __future__ import annotations

import random
import sqlite3
import sys
from typing import Final

from backhaul.demo.oracle.acklog import AckLog, Origin
from backhaul.demo.oracle.stamps import machine_tag
from backhaul.demo.oracle.transactions import SCHEMA
from backhaul.demo.writers.errors import WriterDiskFailed, WriterSpecInvalid
from backhaul.demo.writers.process import run_program, run_workload
from backhaul.demo.writers.spec import SqliteWriterSpec
from backhaul.demo.writers.workload import Workload
from backhaul.replication.ports import Clock, RealClock

_BUSY_TIMEOUT_S: Final = 5.0  # a reader of the demo may hold the database for a moment


class SqliteWriter(Workload):
    """Commits transactions 1, 2, 3, ... and goes on behind the last one it finds."""

    def __init__(self, spec: SqliteWriterSpec, clock: Clock) -> None:
        if spec.payload_bytes < 1:
            raise WriterSpecInvalid(reason=f"{spec.payload_bytes} bytes of payload; at least 1 is needed")
        super().__init__(spec, clock, threads=1)
        self._spec = spec
        self._connection: sqlite3.Connection | None = None

    def _open(self) -> AckLog:
        try:
            self._connection = connection = sqlite3.connect(
                self._spec.database, isolation_level=None, check_same_thread=False, timeout=_BUSY_TIMEOUT_S
            )
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.executescript(SCHEMA)
            last = connection.execute("SELECT incarnation, number FROM entry ORDER BY number DESC LIMIT 1").fetchone()
        except sqlite3.Error as failure:
            raise self._failed("Opening the database", failure) from failure
        origin = Origin(machine_tag(self._spec.machine), [], {})
        return AckLog.begin(self._spec.log, origin, self._clock, parent=last or (0, 0))

    def _write(self, randomness: random.Random) -> int:
        payload = randomness.randbytes(randomness.randint(1, self._spec.payload_bytes))
        with self._lock:
            self._newest += 1
            number = self._newest
            wall_ns = self.log.issued(number, 0, 0)
        began = self._clock.monotonic_ns()
        try:
            self._commit(number, wall_ns, payload)
        except sqlite3.Error as failure:
            raise self._failed(f"Committing transaction {number}", failure) from failure
        latency_ns = self._clock.monotonic_ns() - began
        with self._lock:
            self.log.acknowledged(number, 0, 0)
        return latency_ns

    def _commit(self, number: int, wall_ns: int, payload: bytes) -> None:
        connection = self._connection
        assert connection is not None
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO entry VALUES (?, ?, ?, ?)", (number, self.log.incarnation, wall_ns, payload))
        connection.execute("UPDATE ledger SET entries = entries + 1, total = total + ?", (number,))
        connection.execute("COMMIT")

    def _failed(self, what: str, failure: sqlite3.Error) -> WriterDiskFailed:
        return WriterDiskFailed(what=what, path=self._spec.database, reason=str(failure))

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def run_sqlite_writer(spec: SqliteWriterSpec) -> int:
    """Commit until told to stop; for the main thread of a process. Answers the exit code."""
    return run_workload(SqliteWriter(spec, RealClock()), spec)


if __name__ == "__main__":
    sys.exit(run_program(sys.argv[1:], SqliteWriterSpec, run_sqlite_writer))
