"""The freezer: freezes file systems, all or none, and thaws them. Run by `python -m backhaul.mobility.freezer`.

Invariant: nothing is frozen before the guard is armed, and what is frozen is thawed when the agent asks, when the
agent or the guard ends, or when the limit is over, whichever comes first; after `hold` only when the agent asks.
Whether an image was still is the kernel's word: a thaw that finds nothing frozen means that it was lost before.
A process of one thread; started by `freezer_client` (messages: `freezing`). Writes to tmpfs only, and logs nothing.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import Final

from backhaul.mobility.cgroups import join_own_group
from backhaul.mobility.freezing import (
    PHASE_FREEZING,
    PHASE_HELD,
    RETRY_MS,
    StateFile,
    System,
    milliseconds_until,
)

IDLE: Final = "idle"
FROZEN: Final = "frozen"
HELD: Final = "held"
THAWING: Final = "thawing"
"""The kernel refused to thaw; tried again every RETRY_MS for as long as it takes."""


class FreezerProcess:
    """The freezer's state: what it has frozen, since when, until when, and whether that was lost."""

    def __init__(
        self, system: System, agent: socket.socket, guard: socket.socket, state: StateFile, uid: int | None = None
    ) -> None:
        """`uid`: the one user whose devices may be frozen; None: everybody's."""
        self._system = system
        self._uid = uid
        self._agent = agent
        self._guard = guard
        self._guard_gone = False
        self._state = state
        self._phase = IDLE
        self._number = 0
        self._descriptors: list[int] = []
        self._frozen: list[int] = []
        self._began_ns = 0
        self._deadline_ns = 0
        self._lost = "nothing-frozen"
        self._frozen_us = 0

    def run(self) -> None:
        """Until the agent ends, and then until everything is thawed (or at once if it is held)."""
        while True:
            links = [self._agent] if self._guard_gone else [self._guard, self._agent]
            ready = self._system.wait(links, self._timeout_ms())
            self._check_deadline()  # before the messages: a thaw or hold after the limit must hear that it is lost
            if self._guard in ready:
                self._hear_guard()
            if self._agent in ready:
                words, descriptors = self._system.receive(self._agent)
                if not words:
                    break
                self._obey(words, descriptors)
        if self._phase != HELD:
            while self._frozen and not self._release():
                self._system.wait([], RETRY_MS)

    def _timeout_ms(self) -> int | None:
        if self._phase == THAWING:
            return RETRY_MS
        if self._phase == FROZEN:
            return milliseconds_until(self._deadline_ns, self._system.monotonic_ns())
        return None

    def _check_deadline(self) -> None:
        if self._phase == THAWING:
            self._release()
        elif self._phase == FROZEN and self._over():
            self._lose("limit")

    def _over(self) -> bool:
        return self._system.monotonic_ns() >= self._deadline_ns

    def _hear_guard(self) -> None:
        words, _ = self._system.receive(self._guard)
        self._guard_gone = not words
        if self._phase == FROZEN and (self._guard_gone or words == ["expired", str(self._number)]):
            self._lose("guard-ended" if self._guard_gone else "limit")

    def _obey(self, words: list[str], descriptors: list[int]) -> None:
        if words[0] == "freeze":
            self._freeze(int(words[1]), descriptors)
        elif words[0] == "thaw":
            self._thaw()
        elif words[0] == "hold":
            self._hold()
        else:
            left_ms = milliseconds_until(self._deadline_ns, self._system.monotonic_ns())
            self._answer(f"status {self._phase} {left_ms if self._phase == FROZEN else 0}")

    def _answer(self, message: str) -> None:
        self._system.send(self._agent, message)  # an agent that has ended is noticed by its closed link

    # ---- freeze

    def _freeze(self, limit_ms: int, descriptors: list[int]) -> None:
        if self._phase != IDLE:
            for descriptor in descriptors:
                os.close(descriptor)
            self._answer(f"refused busy:{self._phase}")
            return
        if self._uid is not None and (foreign := self._foreign(descriptors)):
            for descriptor in descriptors:
                os.close(descriptor)
            self._answer(foreign)
            return
        self._number += 1
        self._descriptors, self._frozen, self._lost = descriptors, [], ""
        self._began_ns = self._system.monotonic_ns()
        self._deadline_ns = self._began_ns + limit_ms * 1_000_000
        if not self._arm_guard():
            self._release()
            self._answer("refused guard-ended" if self._guard_gone else "refused guard-silent")
            return
        try:
            self._state.write(PHASE_FREEZING, descriptors)
        except OSError as error:
            self._release()
            self._answer(f"refused state-file:{error.errno}")
            return
        self._freeze_each()

    def _foreign(self, descriptors: list[int]) -> str:
        """The answer to who wants to freeze what is not its own; empty where all of it is."""
        for index, descriptor in enumerate(descriptors):
            try:
                if self._system.owner(descriptor) != self._uid:
                    return f"failed {index} {errno.EPERM}"
            except OSError as error:
                return f"failed {index} {error.errno}"
        return ""

    def _freeze_each(self) -> None:
        for index, descriptor in enumerate(self._descriptors):
            if self._over():
                break
            try:
                self._system.freeze(descriptor)
            except OSError as error:
                self._release()
                self._answer(f"failed {index} {error.errno}")
                return
            self._frozen.append(descriptor)
        if self._over():
            self._lose("limit")
            self._answer(f"lost {self._lost} {self._frozen_us}")
            return
        self._phase = FROZEN
        self._answer(f"frozen {self._system.wall_ns()}")

    def _arm_guard(self) -> bool:
        message = f"arm {self._number} {self._deadline_ns}"
        if self._guard_gone or not self._system.send(self._guard, message, self._descriptors):
            return False
        return self._guard_says("armed")

    def _guard_says(self, word: str) -> bool:
        """Wait until the deadline for the guard's `word` about this freeze; older answers are passed over."""
        while not self._guard_gone:
            left_ms = milliseconds_until(self._deadline_ns, self._system.monotonic_ns())
            if not left_ms or not self._system.wait([self._guard], left_ms):
                return False
            words, _ = self._system.receive(self._guard)
            self._guard_gone = not words
            if words[1:] == [str(self._number)]:
                return words[0] == word
        return False

    # ---- thaw and hold

    def _thaw(self) -> None:
        if self._phase in (FROZEN, HELD):
            still = self._release()
            self._answer(f"thawed {self._frozen_us}" if still else f"lost {self._lost} {self._frozen_us}")
        else:
            self._answer(f"lost {self._lost} {self._frozen_us}")

    def _hold(self) -> None:
        if self._phase == FROZEN and (why := self._disarm_guard()):
            self._lose(why)
        if self._phase in (FROZEN, HELD):
            self._phase = HELD
            self._answer(f"held {(self._system.monotonic_ns() - self._began_ns) // 1000}")
        else:
            self._answer(f"lost {self._lost} {self._frozen_us}")

    def _disarm_guard(self) -> str:
        """The guard will not thaw any more, and the kernel says that all are frozen still; else why not.

        The kernel is asked first, while the guard is armed: the question may freeze for a moment what was thawed.
        """
        try:
            if not all(self._system.still_frozen(each) for each in self._frozen):
                return "thawed-by-another"
            if self._over() or not self._system.send(self._guard, f"hold {self._number}"):
                return "limit"
            if not self._guard_says("held"):
                return "guard-ended" if self._guard_gone else "limit"
            self._state.write(PHASE_HELD, self._descriptors)
        except OSError as error:
            return f"hold-refused:{error.errno}"
        return ""

    def _lose(self, why: str) -> None:
        self._release()
        self._lost = why

    def _release(self) -> bool:
        """Thaw what is frozen. True if all of it was frozen until now, which `_lost` and `_frozen_us` then tell."""
        still, refused = True, []
        for descriptor in self._frozen:
            try:
                still = self._system.thaw(descriptor) and still
            except OSError as error:
                refused.append(descriptor)
                self._lost = f"thaw-refused:{error.errno}"
        self._frozen_us = (self._system.monotonic_ns() - self._began_ns) // 1000
        self._frozen = refused
        if refused:
            self._phase = THAWING
            return False
        if not self._lost:
            self._lost = "nothing-frozen" if still else "thawed-by-another"
        self._forget()
        return still

    def _forget(self) -> None:
        self._phase = IDLE
        self._state.remove()
        if not self._guard_gone:
            self._guard_gone = not self._system.send(self._guard, f"idle {self._number}")
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []


def main(system: System, arguments: list[str]) -> None:
    """Run the freezer; arguments: descriptor of the agent's link, of the guard's link, path of the file of state, and
    the user whose devices alone may be frozen (absent: everybody's).
    """
    agent, guard = (socket.socket(fileno=int(argument)) for argument in arguments[:2])
    places = join_own_group("freezer")
    try:
        system.lock_memory()
    except OSError as error:
        system.send(agent, f"refused memory-lock:{error.errno}")
        return
    words, _ = system.receive(guard)
    if words[:1] != ["ready"]:
        system.send(agent, " ".join(["refused", *(words[1:] or ["guard-ended"])]))
        return
    system.send(agent, " ".join(["ready", str(os.getpid()), words[1], *places, *words[2:]]))
    uid = int(arguments[3]) if len(arguments) > 3 else None
    FreezerProcess(system, agent, guard, StateFile(arguments[2]), uid).run()


if __name__ == "__main__":
    main(System(), sys.argv[1:])
