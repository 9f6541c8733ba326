"""Who serves a data folder: a lock that ends with its process, and a note of which process that is.

Invariant: at most one process holds a folder, and `running_in` never names a process that only has the same number:
its start time is compared too. Used by every service at its start and by the configuration server that adopts them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from backhaul.configuration_server.errors import FolderTaken
from backhaul.replication.errors import UNDECODABLE
from backhaul.replication.ports import Files

LOCK: Final = "service.lock"
NOTE: Final = "running.json"
_START_FIELD: Final = 19
"""Field 22 of /proc/PID/stat, counted behind the name in parentheses: start in ticks since boot."""


class Running(msgspec.Struct, frozen=True):
    """A process. `started`: boot id and ticks, which no other process of this number has. `port`: its data port."""

    pid: int
    started: str
    port: int = 0


def started_at(pid: int) -> str:
    """When the process started; empty when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else f"{boot}/{fields[_START_FIELD]}"


@contextlib.contextmanager
def occupy(files: Files, folder: Path) -> Iterator[None]:
    """Serve the folder alone until the block ends, or the process does. Raises FolderTaken."""
    files.make_folder(folder)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FolderTaken(folder=folder, reason="it is locked") from error
        write_note(files, folder, 0)
        yield
    finally:
        os.close(descriptor)


def write_note(files: Files, folder: Path, port: int) -> None:
    """Note this process as the folder's; again once it knows its port."""
    pid = os.getpid()
    files.replace(folder / NOTE, msgspec.json.encode(Running(pid, started_at(pid), port)))


def running_in(files: Files, folder: Path) -> Running | None:
    """The process that serves the folder; None when there is none any more."""
    try:
        noted = msgspec.json.decode(files.read(folder / NOTE), type=Running)
    except (FileNotFoundError, *UNDECODABLE):
        return None
    return noted if noted.started and started_at(noted.pid) == noted.started else None


def stop(files: Files, folder: Path, how: signal.Signals = signal.SIGTERM) -> bool:
    """Signal the process that serves the folder; whether there was one."""
    running = running_in(files, folder)
    if running is None:
        return False
    try:
        os.kill(running.pid, how)
    except ProcessLookupError:
        return False
    return True
