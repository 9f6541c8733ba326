"""A program of the product kept running, as an init system would, and registered when the operator says so.

The operator puts a folder `enrol` beside it: `command.json`, the arguments of `backhaul`, and the files these name. It
is run once and removed: a refused one is not repeated, as its token may be used up; the operator sees it on the console
and asks again. Used by `service`; one thread calls `tick` twice a second.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

TICK_S: Final = 0.5
ENROL: Final = Path("enrol")
COMMAND: Final = "command.json"

_MOST_PAUSE_TICKS: Final = 20
"""A program that ends at once is started again after one tick, two, four, ... and at most ten seconds."""

_ENDS_S: Final = 10.0


class Kept:
    """See the module."""

    def __init__(
        self,
        arguments: tuple[str, ...],
        is_ready: Callable[[], bool],
        known: Mapping[str, str],
    ) -> None:
        """`arguments` of `backhaul`: it runs once `is_ready`. `known`: what stands for `{names}` in all arguments, the
        operator's included, who does not know this place.
        """
        self._arguments = tuple(argument.format_map(known) for argument in arguments)
        self._is_ready, self._known = is_ready, known
        self._process: subprocess.Popen[bytes] | None = None
        self._pause, self._wait = 1, 0

    def tick(self) -> None:
        """Enrol if the operator has asked for it; start the program if it may run and does not."""
        if (ENROL / COMMAND).exists():
            self._enrol()
        if self._process is not None and self._process.poll() is not None:
            say(f"{self._arguments[0]} ended with status {self._process.returncode}")
            self._process = None
            self._wait, self._pause = self._pause, min(2 * self._pause, _MOST_PAUSE_TICKS)
        self._wait = max(0, self._wait - 1)
        if self._process is None and not self._wait and self._is_ready():
            self._process = backhaul(*self._arguments)
            say(f"{self._arguments[0]} started as {self._process.pid}")

    def stop(self) -> None:
        """End it and wait for that."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_ENDS_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _enrol(self) -> None:
        arguments = msgspec.json.decode((ENROL / COMMAND).read_bytes(), type=list[str])
        self.stop()
        status = backhaul(*(argument.format_map(self._known) for argument in arguments)).wait()
        say(f"enrolment ended with status {status}")
        if status == 0:
            self._wait, self._pause = 0, 1
        shutil.rmtree(ENROL)


def ask_to_enrol(work: Path, arguments: list[str], files: dict[str, str], owner: int | None) -> None:
    """The operator's side: all or nothing, into the working folder of a guest or service, as its user."""
    partial = work / "enrol.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    for name, content in {**files, COMMAND: msgspec.json.encode(arguments).decode()}.items():
        descriptor = os.open(partial / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
    if owner is not None:
        for path in (partial, *partial.iterdir()):
            os.chown(path, owner, owner)
    partial.rename(work / ENROL)


def backhaul(*arguments: str) -> subprocess.Popen[bytes]:
    """Start the product's command line, printing to the console."""
    return subprocess.Popen([sys.executable, "-m", "backhaul", *arguments], stdin=subprocess.DEVNULL, umask=0o077)


def say(line: str) -> None:
    """One line on the console."""
    os.write(1, line.encode() + b"\n")
