"""The gate through which every write goes: pace, quiescing with a limit, stopping.

Invariant: while `quiesce` has answered True and neither `resume` was called nor the limit is over, no write is in
flight and none begins. Nothing is needed to end it: whoever waits at the gate finds the limit over by itself.
Thread-safe; `enter` and `leave` are called by the writing threads, the rest by control threads and the main one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from backhaul.replication.ports import Clock

_SECOND: Final = 1_000_000_000
_CATCH_UP_NS: Final = _SECOND // 20  # a writer that was held up makes good at most this much of its pace


class Gate:
    """Lets writes pass one by one, at a pace; holds them back while quiesced."""

    def __init__(self, clock: Clock, limit_s: float, per_s: float) -> None:
        self._clock = clock
        self._limit_ns = round(limit_s * _SECOND)
        self._interval_ns = round(_SECOND / per_s) if per_s else 0
        self._next_slot = clock.monotonic_ns()
        self._changed = threading.Condition()
        self._in_flight = 0
        self._held_until: int | None = None
        self._stopping = False
        self._quiesced = 0
        self._expired = 0

    @property
    def quiesced(self) -> int:
        """How often writing was held back."""
        return self._quiesced

    @property
    def expired(self) -> int:
        """How often the limit ended it, not the caller."""
        return self._expired

    @contextmanager
    def passing(self) -> Iterator[bool]:
        """Around one write; yields False if there is to be none, since the writer stops."""
        entered = self._enter()
        try:
            yield entered
        finally:
            if entered:
                self._leave()

    def quiesce(self) -> bool:
        """Hold writes back and wait until none is in flight. False if that took longer than the limit, or if the
        writer stops: then writes go on. Held already: the limit begins again.
        """
        with self._changed:
            if self._stopping:
                return False
            self._quiesced += 1
            self._held_until = deadline = self._clock.monotonic_ns() + self._limit_ns
            while self._in_flight and not self._stopping:
                left_ns = deadline - self._clock.monotonic_ns()
                if left_ns <= 0:
                    self._expire()
                    return False
                self._changed.wait(left_ns / _SECOND)
            return not self._stopping

    def resume(self) -> bool:
        """Let writes pass again. False if they did already, because the limit was over: then whatever the caller did
        meanwhile was not done on a quiet machine.
        """
        with self._changed:
            self._expire_if_over()
            if self._held_until is None:
                return False
            self._held_until = None
            self._changed.notify_all()
            return True

    def stop(self) -> None:
        """Let no further write begin, ever."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def _enter(self) -> bool:
        with self._changed:
            slot = self._take_slot()
            while not self._stopping:
                self._expire_if_over()
                now = self._clock.monotonic_ns()
                until = slot if self._held_until is None else max(slot, self._held_until)
                if until <= now:
                    self._in_flight += 1
                    return True
                self._changed.wait((until - now) / _SECOND)
            return False

    def _leave(self) -> None:
        with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()

    def _take_slot(self) -> int:
        slot = max(self._next_slot, self._clock.monotonic_ns() - _CATCH_UP_NS)
        self._next_slot = slot + self._interval_ns
        return slot

    def _expire_if_over(self) -> None:
        if self._held_until is not None and self._held_until <= self._clock.monotonic_ns():
            self._expire()

    def _expire(self) -> None:
        self._held_until = None
        self._expired += 1
        self._changed.notify_all()
