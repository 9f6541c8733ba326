"""What the demo shows: a line that moves on a terminal, plain lines elsewhere, and one line per finished stage.

Thread-safe as far as `say` goes: stages call it from several threads. Prints to standard output only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.status import Status

_PLAIN_EVERY_S: Final = 5.0
"""A log that nobody watches live needs no line per second."""


class Display:
    """The demo's output."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._status: Status | None = None
        self._stage = ""
        self._said_at = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """While a stage runs."""
        self._stage = name
        if not self._console.is_terminal:
            self.line(f"{name}: {title} ...")
            yield
            return
        with self._console.status(f"[bold]{name}[/bold]  {title}") as self._status:
            yield
        self._status = None

    def say(self, text: str) -> None:
        """What is happening now; replaces what was said before."""
        with self._lock:
            if self._status is not None:
                self._status.update(f"[bold]{self._stage}[/bold]  {text}")
            elif time.monotonic() - self._said_at >= _PLAIN_EVERY_S:
                self._said_at = time.monotonic()
                self.line(f"  {text}")

    def done(self, name: str, seconds: float, line: str) -> None:
        """The one line of a finished stage."""
        self.line(f"{name:<16} {seconds:6.1f} s  {line}")

    def line(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False)


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
