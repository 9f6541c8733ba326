"""Runs the freezer, the guard, or an agent that freezes, and kills or stops it before its n-th call to the system.

    doomed.py ROLE FAKE SIGNAL STEP ARGUMENTS...    (STEP 0: never; FAKE 1: file systems that only seem to freeze)

A file system that only seems to freeze is a folder: frozen while it holds a file `.frozen`. It serves where the
tests do not run as root; the processes, links, limits and kills are real in both.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from backhaul.mobility import freezer, freezer_client, freezing, guard


class Doomed(freezing.System):
    """Counts the calls that matter to the protocol and ends or stops this process before the fatal one."""

    fake = False
    fatal = 0
    signal = signal.SIGKILL
    steps = 0

    def step(self) -> None:
        Doomed.steps += 1
        if Doomed.steps == Doomed.fatal:
            os.kill(os.getpid(), Doomed.signal)

    def freeze(self, descriptor: int) -> None:
        self.step()
        if not self.fake:
            super().freeze(descriptor)
            return
        try:
            os.close(os.open(".frozen", os.O_CREAT | os.O_EXCL | os.O_WRONLY, dir_fd=descriptor))
        except FileExistsError as error:
            raise OSError(errno.EBUSY, "frozen already") from error

    def thaw(self, descriptor: int) -> bool:
        self.step()
        if not self.fake:
            return super().thaw(descriptor)
        try:
            os.unlink(".frozen", dir_fd=descriptor)
        except FileNotFoundError:
            return False
        return True

    def send(self, link: socket.socket, message: str, descriptors: Sequence[int] = ()) -> bool:
        self.step()
        return super().send(link, message, descriptors)

    def receive(self, link: socket.socket) -> tuple[list[str], list[int]]:
        self.step()
        return super().receive(link)

    def lock_memory(self) -> None:
        if not self.fake:
            super().lock_memory()


def command(role: str, *, fake: bool, fatal: int = 0, by: int = signal.SIGKILL) -> tuple[str, ...]:
    """The command that starts a doomed `role`."""
    return (sys.executable, str(Path(__file__)), role, str(int(fake)), str(int(by)), str(fatal))


def agent(arguments: list[str]) -> None:
    """ACTS (`freeze`, `hold`, `thaw`), folder of state, mount points: does them, then says so, then waits for ever."""
    vars(freezer_client)["System"] = Doomed
    acts, folder, points = arguments[0].split(","), Path(arguments[1]), [Path(point) for point in arguments[2:]]
    plain = {role: command(role, fake=Doomed.fake) for role in ("freezer", "guard")}
    client = freezer_client.Freezer(
        state_folder=folder,
        freezer_command=plain["freezer"],
        guard_command=plain["guard"],
    )
    for act in acts:
        if act == "freeze":
            client.freeze(points, 1.0)
        elif act == "hold":
            assert client.hold().lost == ""
        else:
            client.thaw()
    print("done", flush=True)
    signal.pause()


if __name__ == "__main__":
    role = sys.argv[1]
    Doomed.fake, Doomed.signal, Doomed.fatal = sys.argv[2] == "1", signal.Signals(int(sys.argv[3])), int(sys.argv[4])
    {"freezer": lambda a: freezer.main(Doomed(), a), "guard": lambda a: guard.main(Doomed(), a), "agent": agent}[role](
        sys.argv[5:]
    )
