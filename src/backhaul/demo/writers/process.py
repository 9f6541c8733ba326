"""The life of a writer's process: signals, control channel, progress, exit code.

Prints to stdout, one per line: `ready INCARNATION` once it writes, `progress {JSON}` as often as the specification
says, answers to commands if those come on stdin, `ended {JSON}` at the end. Errors go to stderr. Ends by SIGTERM,
SIGINT, the command `stop`, or a failed write. Called by the main thread.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from backhaul.demo.writers.control import Commands, ControlSocket, serve_stdin
from backhaul.demo.writers.spec import Spec, WriterSpec, read_spec
from backhaul.demo.writers.workload import Workload
from backhaul.replication.errors import BackhaulError

EXIT_FAILED: Final = 3
"""A write, or the log, failed: the machine was fenced, powered off, or its disk is bad."""

_STDOUT: Final = 1


def run_workload(workload: Workload, spec: WriterSpec) -> int:
    """Run the writer until it is told to stop; 0, or EXIT_FAILED with the reason on stderr."""
    try:
        workload.start()
        try:
            with _signals(workload), _control(workload, spec.control):
                _say(f"ready {workload.log.incarnation}")
                while not workload.wait(spec.progress_s or None):
                    _say(f"progress {json.dumps(workload.status())}")
        finally:
            workload.finish()
    except BackhaulError as failure:
        sys.stderr.write(f"{failure}\n")
        return EXIT_FAILED
    _say(f"ended {json.dumps(workload.status())}")
    return 0


def run_program(arguments: list[str], kind: type[Spec], run: Callable[[Spec], int]) -> int:
    """A writer's program: its one argument is the specification's file. Answers the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m backhaul.demo.writers.… SPEC.json\n")
        return 2
    try:
        return run(read_spec(Path(arguments[0]), kind))
    except BackhaulError as failure:
        sys.stderr.write(f"{failure}\n")
        return 2


@contextmanager
def _signals(workload: Workload) -> Iterator[None]:
    ends = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda _number, _frame: workload.request_stop()) for number in ends]
    try:
        yield
    finally:
        for number, handler in zip(ends, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def _control(workload: Workload, path: Path | None) -> Iterator[None]:
    commands = Commands(workload)
    if path is None:
        threading.Thread(target=_serve_stdin, args=(workload, commands), name="stdin", daemon=True).start()
        yield
        return
    control = ControlSocket(path, commands)
    try:
        yield
    finally:
        control.close()


def _serve_stdin(workload: Workload, commands: Commands) -> None:
    serve_stdin(commands, _put)
    workload.request_stop()  # whoever started us is gone


def _say(line: str) -> None:
    _put(line.encode() + b"\n")


def _put(data: bytes) -> None:
    """One call per line, so that the lines of several threads never mix (they are shorter than PIPE_BUF)."""
    try:
        os.write(_STDOUT, data)
    except BrokenPipeError:  # nobody reads our progress any more; the work goes on
        pass
