"""Counts wrong passphrases, per address and in all, and refuses further tries for a while.

Invariant: a try is counted before it is judged and taken back when it was right, so any number of tries at once
passes no more than the bound. The store holds at most the global bound of tries per window. Called from one event
loop; a store that blocks must be quick.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

from backhaul.links.errors import EnrolmentLimited
from backhaul.replication.ports import Clock


class FailureStore(Protocol):
    """Tries that were not right, with the wall-clock time of each in nanoseconds. May be durable."""

    def add(self, address: str, at_ns: int) -> None:
        """Note one try."""
        ...

    def take_back(self, address: str, at_ns: int) -> None:
        """Forget one noted try; one that is not there is no error."""
        ...

    def since(self, address: str | None, from_ns: int) -> tuple[int, int]:
        """How many since `from_ns` (of all addresses for None), and when the first of them was; may forget older."""
        ...


class MemoryFailures:
    """Forgets with the process: enough against guessing 160 bits."""

    def __init__(self) -> None:
        self._tries: deque[tuple[int, str]] = deque()

    def add(self, address: str, at_ns: int) -> None:
        self._tries.append((at_ns, address))

    def take_back(self, address: str, at_ns: int) -> None:
        if (at_ns, address) in self._tries:
            self._tries.remove((at_ns, address))

    def since(self, address: str | None, from_ns: int) -> tuple[int, int]:
        while self._tries and self._tries[0][0] < from_ns:
            self._tries.popleft()
        times = [at for at, who in self._tries if address is None or who == address]
        return len(times), times[0] if times else from_ns


@dataclass(frozen=True, slots=True)
class Try:
    """A try that was let through and is counted as wrong until it is taken back."""

    address: str
    at_ns: int


@dataclass(frozen=True, slots=True)
class Limiter:
    """At most `per_address` wrong tries from one address and `in_all` from everywhere, per `window_s` seconds."""

    store: FailureStore
    clock: Clock
    per_address: int = 5
    in_all: int = 500
    window_s: float = 600.0

    def begin(self, address: str) -> Try:
        """Counts a try. Raises EnrolmentLimited."""
        now, window_ns = self.clock.wall_ns(), int(self.window_s * 1e9)
        for scope, bound in ((address, self.per_address), (None, self.in_all)):
            count, first_ns = self.store.since(scope, now - window_ns)
            if count >= bound:
                wait_s = max(1, -(-(first_ns + window_ns - now) // 1_000_000_000))
                raise EnrolmentLimited(peer=address, wait_s=wait_s)
        self.store.add(address, now)
        return Try(address, now)

    def was_right(self, attempt: Try) -> None:
        """Takes the try back."""
        self.store.take_back(attempt.address, attempt.at_ns)
