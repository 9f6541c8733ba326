"""The provider's durable memory: records, answered requests, and the append-only log of effects, in one SQLite file.

Invariant: a change of records, the answer to the request that caused it and its effect become durable in one
transaction, so that a kill at any instruction leaves either all three or none. Called from the provider's worker
threads; one transaction at a time. A write that fails ends the process (`fatal`): what is durable is unknown then.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from backhaul.replication.ports import Clock
from backhaul.sites.errors import NotAllowed, TokenReused
from backhaul.sites.values import Effect, Principal, SiteRole

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (kind TEXT NOT NULL, key TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (kind, key));
CREATE TABLE IF NOT EXISTS requests (
  principal TEXT NOT NULL, token TEXT NOT NULL, digest TEXT NOT NULL, answer BLOB, PRIMARY KEY (principal, token));
CREATE TABLE IF NOT EXISTS effects (
  number INTEGER PRIMARY KEY AUTOINCREMENT, at_ns INTEGER NOT NULL, principal TEXT NOT NULL, operation TEXT NOT NULL,
  resource TEXT NOT NULL, token TEXT NOT NULL);
CREATE TRIGGER IF NOT EXISTS effects_stay BEFORE DELETE ON effects BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS effects_still BEFORE UPDATE ON effects BEGIN SELECT RAISE(ABORT, 'append only'); END;
"""


class Record(Protocol):
    """A value with a key that is unique among its kind."""

    @property
    def key(self) -> str: ...


R = TypeVar("R", bound=Record)


class Call(msgspec.Struct, frozen=True):
    """A call: who asked for what, under which token (empty: it reads). `digest`: hash of operation and arguments."""

    caller: Principal
    operation: str
    token: str = ""
    digest: str = ""

    @property
    def principal(self) -> str:
        """Name of the caller."""
        return self.caller.name

    def require(self, role: SiteRole, subscription: str) -> None:
        """Raises NotAllowed unless the caller has the role, or a higher one, in the subscription."""
        has = self.caller.roles.get(subscription)
        if has is None or has.rank < role.rank:
            raise NotAllowed(
                principal=self.principal,
                operation=self.operation,
                subscription=subscription,
                needed=str(role),
                role=str(has or "none"),
            )

    def sees(self, subscription: str) -> bool:
        """Whether the caller may read what is in the subscription."""
        return subscription in self.caller.roles


class Transaction:
    """Reads and writes that become durable together. Made by `Ledger.transaction` only."""

    def __init__(self, database: sqlite3.Connection, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def get(self, kind: type[R], key: str) -> R | None:
        """The record of this kind and key, if there is one."""
        row = self._database.execute("SELECT body FROM records WHERE kind=? AND key=?", (kind.__name__, key)).fetchone()
        return None if row is None else msgspec.json.decode(row[0], type=kind)

    def all(self, kind: type[R]) -> list[R]:
        """All records of this kind, by key."""
        rows = self._database.execute("SELECT body FROM records WHERE kind=? ORDER BY key", (kind.__name__,))
        return [msgspec.json.decode(row[0], type=kind) for row in rows]

    def put(self, record: Record) -> None:
        """Store the record, in place of one with the same key."""
        row = (type(record).__name__, record.key, msgspec.json.encode(record))
        self._database.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", row)

    def remove(self, kind: type[Record], key: str) -> None:
        """Remove the record; one that is not there is no error."""
        self._database.execute("DELETE FROM records WHERE kind=? AND key=?", (kind.__name__, key))

    def answer(self, call: Call) -> bytes | None:
        """The stored answer of a call that was made before. Raises TokenReused if it was another call."""
        row = self._database.execute(
            "SELECT digest, answer FROM requests WHERE principal=? AND token=?", (call.principal, call.token)
        ).fetchone()
        if row is None:
            return None
        if row[0] != call.digest:
            raise TokenReused(token=call.token)
        return None if row[1] is None else bytes(row[1])

    def begin(self, call: Call) -> None:
        """Note that the call was begun; its answer comes in a later transaction. Beginning again is no error."""
        row = (call.principal, call.token, call.digest)
        self._database.execute("INSERT OR IGNORE INTO requests VALUES (?, ?, ?, NULL)", row)

    def begun(self, call: Call) -> bool:
        """Whether the call was begun before, perhaps by a provider that was killed, and not answered yet."""
        row = self._database.execute(
            "SELECT 1 FROM requests WHERE principal=? AND token=? AND answer IS NULL", (call.principal, call.token)
        ).fetchone()
        return row is not None

    def abandon(self, call: Call) -> None:
        """The call came to nothing and left nothing: the same token may try again, with other arguments too."""
        self._database.execute(
            "DELETE FROM requests WHERE principal=? AND token=? AND answer IS NULL", (call.principal, call.token)
        )

    def finish(self, call: Call, resource: str, answer: bytes, *, effect: bool) -> None:
        """Store the answer and, if the call changed something, the one entry in the log of effects."""
        row = (call.principal, call.token, call.digest, answer)
        self._database.execute("INSERT OR REPLACE INTO requests VALUES (?, ?, ?, ?)", row)
        if effect:
            entry = (self._clock.wall_ns(), call.principal, call.operation, resource, call.token)
            self._database.execute(
                "INSERT INTO effects (at_ns, principal, operation, resource, token) VALUES (?, ?, ?, ?, ?)", entry
            )

    def effects(self, after: int, limit: int) -> list[Effect]:
        """Entries of the log above `after`, ascending."""
        rows = self._database.execute(
            "SELECT number, at_ns, principal, operation, resource, token FROM effects WHERE number>? ORDER BY number"
            " LIMIT ?",
            (after, limit),
        )
        return [Effect(*row) for row in rows]


class Ledger:
    """The open ledger of a site. `fatal` is called when a write failed, and must not return in service."""

    def __init__(self, path: Path, clock: Clock, fatal: Callable[[BaseException], None]) -> None:
        self._clock = clock
        self._fatal = fatal
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.executescript(_SCHEMA)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """All or nothing; rolled back when the block raises. Blocks must be short: all other callers wait."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield Transaction(self._database, self._clock)
                self._commit()
            except BaseException as error:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    self._fatal(error)
                raise

    def _commit(self) -> None:
        self._database.execute("COMMIT")

    def close(self) -> None:
        """Close the file; the last transaction is durable already."""
        with self._lock:
            self._database.close()
