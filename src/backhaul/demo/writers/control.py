"""The control channel of a writer: lines in, lines out, on a UNIX socket or on stdin and stdout.

| command | answer |
|---|---|
| `quiesce` | `quiesced SEQUENCE` once every write up to it is acknowledged; `busy` if that took longer than the limit |
| `resume` | `resumed`; `expired` if the limit had ended it before, or it was not quiesced |
| `status` | `status {JSON}` |
| `hang` | none, and none to anything after it: what an application script must survive |
| `stop` | `stopping` |

Threads: one per connection, at most MAX_CONNECTIONS; `Commands` is thread-safe. As a program, `python -m
backhaul.demo.writers.control SOCKET COMMAND` asks once: what an application script runs.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol

from backhaul.demo.writers.errors import WriterSpecInvalid, WriterUnreachable

MAX_CONNECTIONS: Final = 8
"""A script and a person at once, with room; more are turned away."""

_MAX_LINE: Final = 1024  # commands are one word


class Controlled(Protocol):
    """What the commands act on: a writer."""

    def quiesce(self) -> int | None:
        """The newest sequence, once everything up to it is acknowledged; None if it could not."""
        ...

    def resume(self) -> bool: ...
    def status(self) -> dict[str, int | float]: ...
    def request_stop(self) -> None: ...


class Commands:
    """Executes the commands of all connections of one writer."""

    def __init__(self, writer: Controlled) -> None:
        self._writer = writer
        self._hanging = threading.Event()

    def answer(self, command: str) -> str | None:
        """Execute one command; None: there is no answer."""
        if command == "hang":
            self._hanging.set()
        if self._hanging.is_set():
            return None
        if command == "quiesce":
            sequence = self._writer.quiesce()
            return "busy" if sequence is None else f"quiesced {sequence}"
        if command == "resume":
            return "resumed" if self._writer.resume() else "expired"
        if command == "status":
            return f"status {json.dumps(self._writer.status())}"
        if command == "stop":
            self._writer.request_stop()
            return "stopping"
        return f"unknown {command[:40]!r}"


class ControlSocket:
    """Listens on a UNIX socket and serves its connections."""

    def __init__(self, path: Path, commands: Commands) -> None:
        """Listen on `path`, replacing a socket left by a killed writer. Raises WriterSpecInvalid."""
        self._path = path
        self._commands = commands
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)
            self._listener.bind(str(path))
            path.chmod(0o600)
            self._listener.listen(MAX_CONNECTIONS)
        except OSError as failure:
            self._listener.close()
            raise WriterSpecInvalid(reason=f"cannot listen on {path}: {failure.strerror or failure}") from failure
        self._acceptor = threading.Thread(target=self._accept, name="control", daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Listen no longer. Connections end with the process or with their peer."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            if self._room.acquire(blocking=False):
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
            else:
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                serve(lambda: connection.recv(_MAX_LINE), connection.sendall, self._commands)
        except OSError:  # the peer went away; there is nobody to tell
            pass
        finally:
            self._room.release()


def serve(read: Callable[[], bytes], write: Callable[[bytes], object], commands: Commands) -> None:
    """Answer the lines that `read` delivers until it delivers nothing more, or a line is too long."""
    for line in _lines(read):
        answer = commands.answer(line)
        if answer is not None:
            write(answer.encode() + b"\n")


def serve_stdin(commands: Commands, write: Callable[[bytes], object]) -> None:
    """Answer the lines on stdin until its end. Reads the descriptor itself: a thread that waits inside of
    `sys.stdin` would abort the interpreter when it ends.
    """
    serve(lambda: os.read(0, _MAX_LINE), write, commands)


def ask(path: Path, command: str, timeout_s: float = 5.0) -> str:
    """Send one command to a writer's socket and return its answer. Raises WriterUnreachable."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            connection.sendall(command.encode() + b"\n")
            for line in _lines(lambda: connection.recv(_MAX_LINE)):
                return line
    except TimeoutError as failure:
        raise WriterUnreachable(path=path, command=command, reason=f"no answer in {timeout_s:g} s") from failure
    except OSError as failure:
        raise WriterUnreachable(path=path, command=command, reason=failure.strerror or str(failure)) from failure
    raise WriterUnreachable(path=path, command=command, reason="it closed the connection")


def _lines(read: Callable[[], bytes]) -> Iterator[str]:
    pending = b""
    while part := read():
        pending += part
        *lines, pending = pending.split(b"\n")
        for line in lines:
            yield line.decode(errors="replace").strip()
        if len(pending) > _MAX_LINE:
            return


def main(arguments: list[str]) -> int:
    """Ask once; 0 if the answer means success. The answer goes to stdout, errors to stderr."""
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m backhaul.demo.writers.control SOCKET COMMAND\n")
        return 2
    try:
        answer = ask(Path(arguments[0]), arguments[1])
    except WriterUnreachable as failure:
        sys.stderr.write(f"{failure}\n")
        return 1
    sys.stdout.write(f"{answer}\n")
    return 0 if answer.split(" ")[0] in {"quiesced", "resumed", "status", "stopping"} else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
