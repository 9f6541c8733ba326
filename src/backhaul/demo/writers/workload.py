"""What all writers have in common: threads that write through the gate, counts, and an orderly end.

Invariant: a write is in the log before it goes to the disk, and its acknowledgement before its thread goes on. The
first failure ends the writer: what may or may not have reached a disk is left *issued, never acknowledged*.

Threads: `start`, `wait` and `finish` are called by one thread (the main one); `quiesce`, `resume`, `status` and
`request_stop` by any; `request_stop` also by a signal handler.
"""

from __future__ import annotations

import math
import queue
import random
import threading
from abc import ABC, abstractmethod
from typing import Final

from backhaul.demo.oracle.acklog import AckLog
from backhaul.demo.writers.gate import Gate
from backhaul.demo.writers.latency import Latencies
from backhaul.demo.writers.spec import WriterSpec
from backhaul.replication.ports import Clock

LOOK_S: Final = 1.0
"""After so long the main thread stops waiting for a moment. Only there does Python run the handler of a signal, and one
that another thread received, or that came just before the wait began, does not end a wait."""

_MILLISECOND: Final = 1e6


class Workload(ABC):
    """A writer; subclasses say what one write is."""

    def __init__(self, spec: WriterSpec, clock: Clock, threads: int) -> None:
        self._clock = clock
        self._seed = spec.seed or None
        self._gate = Gate(clock, spec.quiesce_limit_s, spec.writes_per_s)
        self._lock = threading.Lock()
        self._latencies = Latencies()
        self._ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._failure: Exception | None = None
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"writer-{number}") for number in range(threads)
        ]
        self._log: AckLog | None = None
        self._newest = 0

    @property
    def log(self) -> AckLog:
        """The log of this incarnation, once started."""
        assert self._log is not None
        return self._log

    @abstractmethod
    def _open(self) -> AckLog:
        """Open the disks for writing, find out what is on them and begin the log."""

    @abstractmethod
    def _write(self, randomness: random.Random) -> int:
        """One write: log, write durably, log. Answers how long the disk took, in ns. Called while in the gate."""

    @abstractmethod
    def _close(self) -> None:
        """Let go of what `_open` opened, as far as it got; no write is in flight."""

    def start(self) -> None:
        """Open everything and begin to write. Raises what `_open` raises; then nothing is left open."""
        try:
            self._log = self._open()
        except BaseException:
            self._close()
            raise
        self._newest = self._log.first_sequence - 1
        for thread in self._threads:
            thread.start()

    def wait(self, timeout_s: float | None) -> bool:
        """Whether the writer is to end: someone asked for it, or a write failed. False after the time."""
        left_s = math.inf if timeout_s is None else timeout_s
        while left_s > 0:
            try:
                self._ended.get(timeout=min(left_s, LOOK_S))
            except queue.Empty:
                left_s -= LOOK_S
            else:
                return True
        return False

    def finish(self) -> None:
        """Let what is in flight end, close everything, and raise the first failure if there was one."""
        self._gate.stop()
        for thread in self._threads:
            thread.join()
        try:
            if self._failure is not None:
                raise self._failure
            self.log.stopped(self._newest)
        finally:
            self._close()
            self.log.close()

    def request_stop(self) -> None:
        """Ask for the end; reentrant, so that a signal handler may."""
        self._ended.put(None)

    def quiesce(self) -> int | None:
        """Hold writes back for at most the limit; the newest sequence, once everything up to it is acknowledged."""
        if not self._gate.quiesce():
            return None
        with self._lock:
            return self._newest

    def resume(self) -> bool:
        """Go on; False if the limit had ended it already."""
        return self._gate.resume()

    def status(self) -> dict[str, int | float]:
        """Figures since the start: writes acknowledged, latencies in ms, how often quiesced and expired."""
        with self._lock:
            latencies = self._latencies
            return {
                "incarnation": self.log.incarnation,
                "newest": self._newest,
                "acknowledged": latencies.count,
                "p50_ms": round(latencies.quantile_ns(0.5) / _MILLISECOND, 3),
                "p99_ms": round(latencies.quantile_ns(0.99) / _MILLISECOND, 3),
                "longest_ms": round(latencies.longest_ns / _MILLISECOND, 3),
                "quiesced": self._gate.quiesced,
                "expired": self._gate.expired,
            }

    def _work(self, number: int) -> None:
        randomness = random.Random(None if self._seed is None else self._seed * 1000 + number)
        try:
            while self._write_once(randomness):
                pass
        except Exception as failure:  # raised again by `finish`, in the thread that can end the process
            with self._lock:
                self._failure = self._failure or failure
            self._gate.stop()
            self._ended.put(None)

    def _write_once(self, randomness: random.Random) -> bool:
        with self._gate.passing() as allowed:
            if allowed:
                latency_ns = self._write(randomness)
                with self._lock:
                    self._latencies.add(latency_ns)
            return allowed
