"""Looks for secrets where they might have been written down: files, database values, processes as they come and go."""

from __future__ import annotations

import base64
import binascii
import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType


def forms(secret: bytes) -> set[bytes]:
    """How a secret might be written down."""
    return {secret, secret.hex().encode(), base64.b64encode(secret), base64.urlsafe_b64encode(secret).rstrip(b"=")}


def in_files(folder: Path, secret: set[bytes]) -> set[Path]:
    """Files below that hold it in any form."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {path for path in files if any(form in path.read_bytes() for form in secret)}


def in_tables(database: Path, secret: set[bytes]) -> set[tuple[str, str]]:
    """Tables and columns that hold it in any form; what is encoded as base64, as job arguments are, is decoded."""
    found = set()
    for table, column, value in _values(database):
        if any(form in seen for seen in _readings(value) for form in secret):
            found.add((table, column))
    return found


def _values(database: Path) -> Iterator[tuple[str, str, bytes]]:
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as records:
        tables = [row[0] for row in records.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            rows = records.execute(f'SELECT * FROM "{table}"')  # noqa: S608 - the database's own names
            columns = [column[0] for column in rows.description]
            for row in rows:
                for column, value in zip(columns, row, strict=True):
                    if isinstance(value, (str, bytes)):
                        yield table, column, value.encode() if isinstance(value, str) else value


def _readings(value: bytes) -> Iterator[bytes]:
    yield value
    with contextlib.suppress(binascii.Error, ValueError):
        yield base64.b64decode(value, validate=True)


class ProcessWatch:
    """Arguments and environments of every process that has to do with a folder, as long as `with` lasts; also of those
    that live a moment. `seen`: by process id, everything it ever showed.
    """

    def __init__(self, folder: Path) -> None:
        self._mark = str(folder).encode()
        self.seen: dict[int, set[bytes]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="process watch", daemon=True)

    def __enter__(self) -> ProcessWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.look()

    def look(self) -> None:
        """All processes of this moment."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                shown = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
                if any(self._mark in one for one in shown):
                    self.seen.setdefault(int(process.name), set()).update(shown)

    def holding(self, secret: set[bytes]) -> list[int]:
        """Processes that showed it."""
        return [pid for pid, shown in self.seen.items() if any(form in one for one in shown for form in secret)]

    def showing(self, words: str) -> list[int]:
        """Processes with these words among their arguments."""
        told = words.replace(" ", "\0").encode()
        return [pid for pid, shown in self.seen.items() if any(told in one for one in shown)]

    def wait_for(self, words: str) -> None:
        """Until such a process was seen."""
        while not self.showing(words):
            time.sleep(0.02)
