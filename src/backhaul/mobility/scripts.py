"""Runs an operator's script with a time limit. Blocking; called from worker threads.

Invariant: when `run_script` returns or raises, the script's own process has ended; after the limit it and all of its
process group are killed.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

OUTPUT_BYTES: Final = 2048
"""The last part of what a script printed, which is what an error message has room for."""


@dataclass(frozen=True)
class ScriptResult:
    """How a script ended: `status` as in `subprocess` (negative: by a signal), None: killed after the limit."""

    status: int | None
    output: str


def run_script(command: Sequence[str], limit_s: float) -> ScriptResult:
    """Run `command` with nothing to read for at most `limit_s`. Raises OSError where it cannot be started."""
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout as pipe:
        os.set_blocking(pipe.fileno(), False)
        output, ended = _follow(process.pid, pipe.fileno(), time.monotonic() + limit_s)
        if not ended:
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    return ScriptResult(status if ended else None, output.decode("utf-8", "replace").strip())


def _follow(pid: int, pipe: int, deadline_s: float) -> tuple[bytes, bool]:
    """What it printed last, and whether it ended by itself. A child of it that lives on keeps nobody waiting."""
    output, end = b"", os.pidfd_open(pid)
    poll = select.poll()
    poll.register(end, select.POLLIN)
    poll.register(pipe, select.POLLIN)
    try:
        while (left_s := deadline_s - time.monotonic()) > 0:
            ready = {descriptor for descriptor, _ in poll.poll(left_s * 1000)}
            if pipe in ready:
                part = _read(pipe)
                output = (output + part)[-OUTPUT_BYTES:]
                if not part:
                    poll.unregister(pipe)
            elif end in ready:  # and the pipe is empty
                return output, True
        return output, False
    finally:
        os.close(end)


def _read(pipe: int) -> bytes:
    try:
        return os.read(pipe, 65536)
    except BlockingIOError:
        return b""
