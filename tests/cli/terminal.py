"""A command at a real terminal: a pseudo-terminal that it controls, with prompts to be answered and echo as it is."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Final

LIMIT_S: Final = 90.0


class Terminal:
    """One run. `seen`: everything that the screen showed."""

    def __init__(self, *command: str, cwd: Path, **environment: str) -> None:
        self._main, theirs = pty.openpty()
        self.seen, self._read_to = "", 0
        self.answered = 0
        """For who answers whatever is asked: up to where it has."""
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=os.environ | {"COLUMNS": "200", "TERM": "dumb"} | environment,
            preexec_fn=lambda: os.login_tty(theirs),
        )
        os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._main)

    @property
    def echoes(self) -> bool:
        """Whether what is typed now would be shown."""
        return bool(termios.tcgetattr(self._main)[3] & termios.ECHO)

    def expect(self, text: str) -> None:
        """Wait until the screen shows this, behind what was expected before."""
        end = time.monotonic() + LIMIT_S
        while (found := self.seen.find(text, self._read_to)) < 0:
            assert time.monotonic() < end, f"no {text!r} in {self.seen[self._read_to :]!r}"
            assert self.take(), f"it ended without {text!r}: {self.seen[self._read_to :]!r}"
        self._read_to = found + len(text)

    def answer(self, text: str) -> None:
        """Type a line, where what is typed is shown."""
        assert self.echoes
        os.write(self._main, text.encode() + b"\n")

    def answer_hidden(self, text: str) -> None:
        """Type a line once what is typed is not shown any more; it must come to that."""
        end = time.monotonic() + LIMIT_S
        while self.echoes:
            assert time.monotonic() < end, "what is typed would be shown"
            time.sleep(0.01)
        os.write(self._main, text.encode() + b"\n")

    def end(self) -> int:
        """Read to the end; the exit status."""
        while self.take():
            pass
        return self.process.wait()

    def take(self) -> bool:
        """What came within a second; False once the other end is closed."""
        ready, _, _ = select.select([self._main], [], [], 1.0)
        if not ready:
            return True
        try:
            came = os.read(self._main, 65536)
        except OSError:  # the kernel's way to say that nobody has the other end open
            return False
        self.seen += came.decode(errors="replace").replace("\r\n", "\n")
        return bool(came)
