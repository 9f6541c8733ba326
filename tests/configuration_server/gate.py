"""A TCP way to a server that lets one process through no more: how a link between two servers is cut for a test.

    with Gate() as gate:             # a server listens on 127.0.0.1:gate.port, and says that it is at gate.host
        gate.cut(pid)                # what it has is ended, what it opens is refused
        gate.stall(pid)              # its connections stay, and nothing passes
        gate.mend(pid)

Who a connection belongs to is read from the kernel's tables, so the server behind it is the same for all. On an
address of 127.0.0.0/8; threads, so that it works beside any event loop.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import psutil

READ = 64 * 1024


@dataclass
class _Passage:
    """One connection: both sockets, and whose it is."""

    pid: int
    near: socket.socket
    far: socket.socket
    open: threading.Event = field(default_factory=threading.Event)

    def end(self) -> None:
        self.open.set()
        for end in (self.near, self.far):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Gate:
    """See the module. `refused`: connections turned away; `held`: bytes that wait for a stalled process."""

    def __init__(self) -> None:
        self.host = f"127.{64 + os.getpid() % 128}.9.{os.getpid() % 250 + 1}"
        self._listener = socket.create_server((self.host, 0))
        self.port = int(self._listener.getsockname()[1])
        self._cut: set[int] = set()
        self._stalled: set[int] = set()
        self._passages: list[_Passage] = []
        self._lock = threading.Lock()
        self.refused = 0
        self.held = 0
        self._threads: list[threading.Thread] = []

    def cut(self, pid: int) -> None:
        """Nothing of this process passes: its connections are reset, new ones too."""
        with self._lock:
            self._cut.add(pid)
            for passage in self._of(pid):
                passage.end()

    def stall(self, pid: int) -> None:
        """Nothing of this process passes, and nobody tells it."""
        with self._lock:
            self._stalled.add(pid)
            for passage in self._of(pid):
                passage.open.clear()

    def mend(self, pid: int) -> None:
        """As before."""
        with self._lock:
            self._cut.discard(pid)
            self._stalled.discard(pid)
            for passage in self._of(pid):
                passage.open.set()

    def _of(self, pid: int) -> list[_Passage]:
        return [passage for passage in self._passages if passage.pid == pid]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for passage in self._passages:
                passage.end()
        for thread in tuple(self._threads):
            thread.join()

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, address = self._listener.accept()
            except OSError:
                return
            self._start(self._pass, near, address)

    def _pass(self, near: socket.socket, address: tuple[str, int]) -> None:
        pid = _owner(address)
        with contextlib.ExitStack() as ends:
            ends.enter_context(near)
            with self._lock:
                if pid in self._cut:
                    self.refused += 1
                    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
            try:
                far = ends.enter_context(socket.create_connection(("127.0.0.1", self.port)))
            except OSError:
                return
            passage = _Passage(pid, near, far)
            with self._lock:
                if pid not in self._stalled:
                    passage.open.set()
                self._passages.append(passage)
            other = threading.Thread(target=self._pump, args=(passage, far, near), daemon=True)
            other.start()
            self._pump(passage, near, far)
            other.join()
            with self._lock:
                self._passages.remove(passage)

    def _pump(self, passage: _Passage, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(READ):
                if not passage.open.is_set():
                    self.held += len(data)
                    passage.open.wait()
                sink.sendall(data)
            passage.open.wait()
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            passage.end()


def _owner(address: tuple[str, int]) -> int:
    """The process that connected from this address; 0 for one that is gone."""
    for connection in psutil.net_connections("tcp4"):
        if connection.laddr and tuple(connection.laddr) == address and connection.pid:
            return int(connection.pid)
    return 0
