"""The agent's end of the freezer: starts freezer and guard, asks them to freeze, thaw and hold.

Invariant: whenever a call raises, nothing that this client froze is frozen any more (except after a `hold` that was
confirmed). All calls block (a freeze as long as the file systems take to come to rest) and are made from worker
threads, one at a time; a lock keeps to that.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from backhaul.mobility.cgroups import clear_empty_groups
from backhaul.mobility.errors import FreezeFailed, FreezeHeld, FreezerLost, FreezeUnavailable, ThawRefused
from backhaul.mobility.freezing import (
    MAX_FILE_SYSTEMS,
    MAX_LIMIT_MS,
    PHASE_HELD,
    StateFile,
    System,
)
from backhaul.mobility.mounts import is_in_memory, mount_of

START_LIMIT_S: Final = 30.0
"""Two interpreters start in 0.1 s; a machine that swaps needs longer."""

ANSWER_LIMIT_S: Final = 10.0
"""Beyond the freeze's own limit: how long the kernel may take to bring file systems to rest, which cannot be ended."""

END_LIMIT_S: Final = 5.0
"""How long freezer and guard may take to thaw and end when their links are closed, before they are killed."""

_REASONS: Final = {
    "memory-lock": "the freezer may not lock its memory (errno {}), which needs root",
    "state-file": "the file of state cannot be written (errno {})",
    "guard-ended": "the guard ended",
    "guard-silent": "the guard did not answer within the limit",
    "busy": "the freezer is busy: {}",
    "held": "{} file systems are held frozen by an earlier agent, until their machine is powered off",
}

FREEZER_COMMAND: Final = (sys.executable, "-m", "backhaul.mobility.freezer")
GUARD_COMMAND: Final = (sys.executable, "-m", "backhaul.mobility.guard")


@dataclass(frozen=True)
class Released:
    """How a freeze ended. `frozen_us`: microseconds frozen. `lost`: why the image was NOT still; "" if it was."""

    frozen_us: int
    lost: str


@dataclass(frozen=True)
class FreezerStatus:
    """What the freezer is doing: `phase` idle, frozen, held or thawing; `places`: control groups of both processes."""

    phase: str
    left_s: float
    freezer_pid: int
    guard_pid: int
    places: tuple[str, ...]


def default_state_folder() -> Path:
    """A folder in tmpfs for the file of state. Raises FreezeUnavailable where the machine has none."""
    for folder in (Path("/run"), Path("/dev/shm")):  # noqa: S108 -- owner-only file; tmpfs is the point
        if folder.is_dir() and is_in_memory(folder) and os.access(folder, os.W_OK):
            return folder
    raise FreezeUnavailable(reason="neither /run nor /dev/shm is a writable tmpfs")


class StartedChild:
    """A started process with what it wrote to standard error, which lies in memory."""

    def __init__(self, command: Sequence[str], links: Sequence[socket.socket], *arguments: str) -> None:
        self._errors = os.memfd_create("backhaul-stderr")
        descriptors = [link.fileno() for link in links]
        self.process = subprocess.Popen(
            [*command, *map(str, descriptors), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            pass_fds=descriptors,
            start_new_session=True,  # neither a terminal's signal nor a kill of the agent's group reaches it
        )

    def end(self, limit_s: float) -> str:
        """Wait for the end, kill after `limit_s`; how it ended."""
        try:
            status = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        size = os.fstat(self._errors).st_size
        last = os.pread(self._errors, 300, max(0, size - 300)).decode("utf-8", "replace").strip()
        os.close(self._errors)
        return f"exit status {status}" + (f", {last}" if last else "")


class Freezer:
    """Freezer and guard of this machine. Starts them at the first `freeze`, and again after they were lost."""

    def __init__(
        self,
        *,
        state_folder: Path | None = None,
        freezer_command: Sequence[str] = FREEZER_COMMAND,
        guard_command: Sequence[str] = GUARD_COMMAND,
        door: Path | None = None,
    ) -> None:
        """`state_folder`: in tmpfs, the same at each start of the agent. Commands: how the two processes start.
        `door`: socket of the door that gives both to an agent that is not root (`freezer_door`), instead.
        """
        self._door = door
        self._folder = state_folder
        self._freezer_command = freezer_command
        self._guard_command = guard_command
        self._lock = threading.Lock()
        self._link: socket.socket | None = None
        self._children: list[StartedChild] = []
        self._mounts: list[int] = []
        self._held = False
        self._limit_s = 0.0
        self._freezer_pid = self._guard_pid = 0
        self._places: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- life

    def start(self) -> None:
        """Start both processes unless they run. Raises FreezeUnavailable, or FreezeHeld after an agent that ended so.

        What an agent left frozen that was killed together with its freezer and guard is thawed here.
        """
        with self._lock:
            self._start()

    def _start(self) -> None:
        if self._link is not None:
            return
        if self._door is not None:
            self._link = _through(self._door)
        else:
            self._launch(self._cleared())
        words = self._receive(START_LIMIT_S)
        if words[0] != "ready":
            self._end()
            raise FreezeUnavailable(reason=_reason(words[1]))
        self._freezer_pid, self._guard_pid, self._places = int(words[1]), int(words[2]), tuple(words[3:])

    def _cleared(self) -> StateFile:
        """The file of state, once what an earlier agent left frozen is thawed. Raises FreezeHeld."""
        state = self._state_file()
        if held := thaw_left(state):
            raise FreezeHeld(mounts=", ".join(held))
        return state

    def _state_file(self) -> StateFile:
        folder = self._folder or default_state_folder()
        if not is_in_memory(folder):
            raise FreezeUnavailable(reason=f"{folder} is not in memory (tmpfs)")
        return StateFile(str(folder / "backhaul-freezer.state"))

    def _launch(self, state: StateFile) -> None:
        agent, freezer_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        freezer, guard = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with freezer_end, freezer, guard:  # only the children keep these ends: a closed end is how they learn of an end
            self._link = agent
            self._children = [StartedChild(self._freezer_command, [freezer_end, freezer], state.path)]
            self._children.append(StartedChild(self._guard_command, [guard]))

    def close(self) -> None:
        """Thaw (unless held) and end both processes; calling it twice is no error."""
        with self._lock:
            self._end()

    def _end(self) -> str:
        """Close the link and wait; then what the two could not thaw is thawed here. How the freezer ended."""
        if self._link is None:
            return "not started"
        self._link.close()
        self._link = None
        ends = [child.end(END_LIMIT_S) for child in self._children]
        self._children = []
        if self._door is not None:
            ends = [self._end_behind(self._door)]
        elif not self._held:
            self._thaw_here()
        self._forget_mounts()
        clear_empty_groups()
        return ends[0]

    def _end_behind(self, door: Path) -> str:
        """Wait for the word of the door: it takes the next one only once everything of this one is thawed."""
        if self._held or not self._mounts:
            return "its link was closed"
        try:
            with _through(door) as next_one:
                thawed = bool(System().wait([next_one], round(START_LIMIT_S * 1000)))
        except FreezeUnavailable as error:
            return error.message
        return "thawed" if thawed else "the door did not answer; freezer and guard thaw by themselves"

    def _thaw_here(self) -> None:
        """The last resort, when both processes are gone: the agent thaws by itself if it may."""
        if not self._mounts:
            return
        state = self._state_file()
        if state.read()[0]:  # else the freezer thawed and said so
            for descriptor in self._mounts:
                _thaw(descriptor)
            state.remove()

    def _forget_mounts(self) -> None:
        for descriptor in self._mounts:
            os.close(descriptor)
        self._mounts = []
        self._held = False

    # ---- what it does

    def freeze(self, points: Sequence[Path], limit_s: float = 2.0) -> int:
        """Freeze the file systems mounted at `points`, all or none, for at most `limit_s`; the barrier (wall, ns).

        Raises FreezeUnavailable, FreezeFailed (names the mount), FreezerLost, FreezeHeld.
        """
        limit_ms = round(limit_s * 1000)
        if not 0 < limit_ms <= MAX_LIMIT_MS:
            raise FreezeUnavailable(reason=f"a limit of {limit_s} s is not between 0 and {MAX_LIMIT_MS // 1000} s")
        with self._lock:
            if self._held or self._mounts:
                raise FreezeUnavailable(reason="file systems are frozen already; thaw first")
            self._start()
            opened = self._open(points)
            self._mounts = [descriptor for descriptor, _ in opened]
            try:
                for descriptor in self._mounts:
                    _sync_file_system(descriptor)  # outside the freeze: what is dirty now need not be written in it
            except FreezeFailed:  # such as of a machine whose plug was pulled: who unmounts it must find nobody there
                self._forget_mounts()
                raise
            self._limit_s = limit_s
            words = self._ask(f"freeze {limit_ms}", limit_s + ANSWER_LIMIT_S, self._mounts)
            if words[0] == "frozen":
                return int(words[1])
            if words[0] == "refused" and words[1].startswith("guard-"):
                self._lost(_reason(words[1]))  # a freezer without its guard freezes nothing any more: both start anew
            self._forget_mounts()
            raise _not_frozen(words, [point for _, point in opened], limit_s)

    def thaw(self) -> Released:
        """Thaw; whether the image had been still until now. Raises FreezerLost (then it was not, and is thawed)."""
        return self._release("thaw", "thawed")

    def hold(self) -> Released:
        """Disarm thawing, for the final delta: what is frozen stays so until `thaw`, whatever ends.

        `lost` says that it had thawed before: nothing is held then, and the point is an ordinary one at best.
        Raises FreezerLost (then nothing is held, and it is thawed).
        """
        return self._release("hold", "held")

    def _release(self, request: str, wanted: str) -> Released:
        with self._lock:
            if self._link is None and not self._mounts:
                return Released(0, "nothing-frozen")
            words = self._ask(request, self._limit_s + ANSWER_LIMIT_S)
            if words[0] == "held":
                self._held = True
                return Released(int(words[1]), "")
            self._forget_mounts()
            return Released(int(words[-1]), "" if words[0] == wanted else words[1])

    def status(self) -> FreezerStatus:
        """What the freezer is doing now. Starts it if it does not run; raises what `start` does, and FreezerLost."""
        with self._lock:
            self._start()
            words = self._ask("status", ANSWER_LIMIT_S)
            pids = self._freezer_pid, self._guard_pid
            return FreezerStatus(words[1], int(words[2]) / 1000, *pids, self._places)

    # ---- link

    def _ask(self, message: str, limit_s: float, descriptors: Sequence[int] = ()) -> list[str]:
        if self._link is None or not System().send(self._link, message, descriptors):
            self._lost("it had ended")
        return self._receive(limit_s)

    def _receive(self, limit_s: float) -> list[str]:
        system = System()
        assert self._link is not None
        if not system.wait([self._link], round(limit_s * 1000)):
            self._lost(f"no answer within {limit_s} s")
        words, _ = system.receive(self._link)
        if not words:
            self._lost("it ended before it answered")
        return words

    def _lost(self, how: str) -> None:
        self._held = False  # unconfirmed or broken: better thawed and no final point than two running copies
        raise FreezerLost(reason=f"{how}: {self._end()}")

    def _open(self, points: Sequence[Path]) -> list[tuple[int, Path]]:
        """Descriptors of the mount points, one for each file system, whichever of its mounts was named."""
        opened: list[tuple[int, Path]] = []
        seen: set[str] = set()
        with contextlib.ExitStack() as undo:
            for point in points:
                try:
                    descriptor = os.open(point, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise FreezeFailed(mount=point, reason=error.strerror) from error
                undo.callback(os.close, descriptor)
                device = _file_system_of(descriptor)
                if device not in seen:
                    seen.add(device)
                    opened.append((os.dup(descriptor), point))
        if not 0 < len(opened) <= MAX_FILE_SYSTEMS:
            for descriptor, _ in opened:
                os.close(descriptor)
            raise FreezeUnavailable(reason=f"{len(opened)} file systems, not 1 to {MAX_FILE_SYSTEMS}")
        return opened


def thaw_held(state_folder: Path | None = None) -> list[str]:
    """Thaw what an earlier agent of this machine held (cancel of a failback); the mount points. Needs root.

    Raises ThawRefused: then it is frozen still.
    """
    state = Freezer(state_folder=state_folder)._state_file()
    _, points = state.read()
    _thaw_points(points)
    state.remove()
    return points


def _through(door: Path) -> socket.socket:
    """A link given by the door. Raises FreezeUnavailable."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        link.connect(str(door))
    except OSError as error:
        link.close()
        raise FreezeUnavailable(reason=f"the freezer's door {door} does not open: {error.strerror}") from error
    return link


def thaw_left(state: StateFile) -> list[str]:
    """Thaw what processes that have ended left frozen; the mount points of what they held, which stays so.

    Raises ThawRefused.
    """
    clear_empty_groups()
    phase, points = state.read()
    if phase == PHASE_HELD:
        return points
    if phase:
        _thaw_points(points)
        state.remove()
    return []


def _thaw_points(points: Sequence[str]) -> None:
    for descriptor in _each_open(points):
        _thaw(descriptor)


def _thaw(descriptor: int) -> None:
    try:
        System().thaw(descriptor)
    except OSError as error:
        raise ThawRefused(mount=Path(f"/proc/self/fd/{descriptor}").readlink(), reason=error.strerror) from error


def _each_open(points: Sequence[str]) -> Iterator[int]:
    for point in points:
        try:
            descriptor = os.open(point, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # unmounted and removed meanwhile: nothing is frozen there
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _file_system_of(descriptor: int) -> str:
    """What two mounts of one file system have in common."""
    mount = mount_of(descriptor)
    return mount.device if mount else str(os.fstat(descriptor).st_dev)


def _sync_file_system(descriptor: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise FreezeFailed(mount=Path(f"/proc/self/fd/{descriptor}").readlink(), reason=os.strerror(number))


def _reason(word: str) -> str:
    name, _, detail = word.partition(":")
    return _REASONS.get(name, name).format(detail)


def _not_frozen(words: list[str], points: Sequence[Path], limit_s: float) -> Exception:
    if words[0] == "failed":
        number, mount = int(words[2]), points[int(words[1])]
        if number in (1, 13, 25, 95):  # EPERM, EACCES, ENOTTY, EOPNOTSUPP
            return FreezeUnavailable(reason=f"{mount}: {os.strerror(number)}")
        return FreezeFailed(mount=mount, reason=os.strerror(number))
    if words[0] == "lost":
        return FreezeFailed(mount=points[0], reason=f"the file systems did not come to rest within {limit_s} s")
    return FreezeUnavailable(reason=_reason(words[1]))
