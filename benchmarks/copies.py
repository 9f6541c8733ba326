"""What every way to copy an image has in common: a name, what it needs, one call; and processes that it starts.

Blocking; ways run one after the other, never two at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from benchmarks.measure import Cost

END_S: Final = 30.0
"""A service that takes longer to end is killed, and the run fails."""


class CopyFailed(Exception):
    """A way to copy did not work; says why."""


class Way(Protocol):
    """A way to copy an image durably through two hops of TLS."""

    @property
    def name(self) -> str: ...

    def missing(self) -> list[str]:
        """Programs that it needs and that are not there."""
        ...

    def copy(self, image: Path, folder: Path) -> tuple[Cost, Path]:
        """Copy `image` to somewhere in `folder`, which is new; what it cost, and the copy. Raises CopyFailed."""
        ...


@contextlib.contextmanager
def process(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended on leaving; its stdout is a pipe, its stderr goes to `log`. Raises CopyFailed."""
    with log.open("ab") as errors:
        started = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
    try:
        yield started
    finally:
        started.terminate()
        try:
            code = started.wait(END_S)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
            raise CopyFailed(f"{command[0]} does not end{tail(log)}") from None
        finally:
            if started.stdout is not None:
                started.stdout.close()
    if code not in (0, -signal.SIGTERM):
        raise CopyFailed(f"{command[0]} ended with {code}{tail(log)}")


def run(command: Sequence[str], log: Path) -> float:
    """Run a program to its end; its CPU seconds and those of its children. Raises CopyFailed."""
    with log.open("ab") as errors:
        started = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
    _, status, usage = os.wait4(started.pid, 0)
    started.returncode = os.waitstatus_to_exitcode(status)
    if started.returncode:
        raise CopyFailed(f"{command[0]} ended with {started.returncode}{tail(log)}")
    return usage.ru_utime + usage.ru_stime


def tail(log: Path) -> str:
    """The end of a log, for a message."""
    return ":\n" + log.read_text(errors="replace")[-2000:]
