"""The guard: thaws when the freezer ends or when the limit is over. Run by `python -m backhaul.mobility.guard LINK`.

Invariant: from `arm` until `idle` it thaws at the deadline, and goes on thawing until the freezer says `idle`, since a
freezer that was stopped between its look at the clock and FIFREEZE may freeze late. After `held` it never thaws.
A process of one thread; started by `freezer_client`, speaks only with the freezer (messages: `freezing`).
"""

from __future__ import annotations

import os
import socket
import sys

from backhaul.mobility.cgroups import join_own_group
from backhaul.mobility.freezing import RETRY_MS, System, milliseconds_until


class Guard:
    """The guard's state: what it would have to thaw, and when."""

    def __init__(self, system: System, freezer: socket.socket) -> None:
        self._system = system
        self._freezer = freezer
        self._number = 0
        self._deadline_ns = 0
        self._descriptors: list[int] = []
        self._armed = False
        self._expired = False
        self._held = False

    def run(self) -> None:
        """Until the freezer ends, and then until everything is thawed (or at once if it is held)."""
        while True:
            ready = self._system.wait([self._freezer], self._timeout_ms())
            self._thaw_if_over()  # before the next message: a hold that is read after the deadline comes too late
            if not ready:
                continue
            words, descriptors = self._system.receive(self._freezer)
            if not words:
                break
            self._obey(words, descriptors)
        while self._armed and not self._held and not self._thaw():
            self._system.wait([], RETRY_MS)

    def _timeout_ms(self) -> int | None:
        if not self._armed or self._held:
            return None
        if self._expired:
            return RETRY_MS
        return milliseconds_until(self._deadline_ns, self._system.monotonic_ns())

    def _thaw_if_over(self) -> None:
        if not self._armed or self._held or self._system.monotonic_ns() < self._deadline_ns:
            return
        self._thaw()
        if not self._expired:
            self._expired = True
            self._system.send(self._freezer, f"expired {self._number}")

    def _thaw(self) -> bool:
        """Thaw all; False when the kernel refused one, which is then tried again."""
        done = True
        for descriptor in self._descriptors:
            try:
                self._system.thaw(descriptor)
            except OSError:
                done = False  # nobody could be told now; the file system is tried again after RETRY_MS
        return done

    def _obey(self, words: list[str], descriptors: list[int]) -> None:
        if words[0] == "arm":
            self._disarm()
            self._number, self._deadline_ns = int(words[1]), int(words[2])
            self._descriptors, self._armed = descriptors, True
            self._system.send(self._freezer, f"armed {self._number}")
        elif int(words[1]) != self._number:
            return
        elif words[0] == "idle":
            self._disarm()
        elif words[0] == "hold" and self._armed and not self._expired:
            self._held = True
            self._system.send(self._freezer, f"held {self._number}")

    def _disarm(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []
        self._armed = self._expired = self._held = False


def main(system: System, arguments: list[str]) -> None:
    """Run the guard on the link whose descriptor is the only argument."""
    freezer = socket.socket(fileno=int(arguments[0]))
    places = join_own_group("guard")
    try:
        system.lock_memory()
    except OSError as error:
        system.send(freezer, f"refused memory-lock:{error.errno}")
        return
    system.send(freezer, " ".join(["ready", str(os.getpid()), *places]))
    Guard(system, freezer).run()


if __name__ == "__main__":
    main(System(), sys.argv[1:])
