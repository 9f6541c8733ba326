"""The processes of a site: started by the launcher in sessions of their own, adopted after a restart, surely killed.

A process is known by its run file (pid, start time, nonce) and by the lock that it and nobody else holds. What it
started is found by session and by the nonce in the environment, so that a daemon it made dies with it. Called from
worker threads under the lock of the machine or server.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from backhaul.sites.errors import AddressTaken, PowerNotConfirmed, StartFailed
from backhaul.sites.local import launcher
from backhaul.sites.local.world import World
from backhaul.sites.values import PowerState

CONSOLE_BYTES = 64 * 1024
_START_LIMIT_S = 30.0
_GONE_LIMIT_S = 15.0
_WHOLE_FILE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock, fcntl_locking(2)
_STARTING_S = 0.02
_KILL_ROUNDS = 50
"""A process may fork while it is killed; each round kills what the last one missed. A fork bomb ends in an error."""


class ProcessSpec(msgspec.Struct, frozen=True):
    """A process to start. `name` is `machine:ID`, `server:NAME` or `service:NAME`; `address` is claimed for its
    lifetime. `privileged`: it stays the provider's user, and sees all mounts.
    """

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    folder: Path
    network: str
    namespace: str = ""
    address: str = ""
    privileged: bool = False


class RunFile(msgspec.Struct, frozen=True):
    """What the launcher wrote of a started process."""

    pid: int
    start: int
    boot: str
    nonce: str


class Processes:
    """All processes of one site."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._folder = world.private / "run"
        world.files.make_folder(self._folder)

    def start(self, spec: ProcessSpec) -> None:
        """Start it, unless it runs already. Raises AddressTaken or StartFailed; then nothing was started."""
        lock = _take_lock(self._paths(spec.name)["lock"])
        if lock is None:
            return
        try:
            self._start(spec, lock)
        finally:
            os.close(lock)

    def _start(self, spec: ProcessSpec, lock: int) -> None:
        paths = self._paths(spec.name)
        nonce = self._world.randomness.token(16).hex()
        document = {
            "command": spec.command,
            "environment": {**spec.environment, "BACKHAUL_RUN": nonce},
            "folder": str(spec.folder),
            "namespace": spec.namespace,
            "address": spec.address,
            "uid": None if spec.privileged else self._world.user,
            "readable": [] if spec.privileged else self._readable(),
            "run": str(paths["run"]),
            "log": str(paths["log"]),
            "nonce": nonce,
        }
        self._world.files.replace(paths["spec"], msgspec.json.encode(document))
        self._world.step("before start")
        answer = self._launch(paths["spec"], spec, lock)
        self._world.step("after start")
        if "failed" in answer:
            self._refuse(answer, spec)

    def _launch(self, path: Path, spec: ProcessSpec, lock: int) -> dict[str, object]:
        command = [sys.executable, "-I", "-S", launcher.__file__, str(path)]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_START_LIMIT_S,
                check=False,
                pass_fds=(lock,),
            )
        except subprocess.TimeoutExpired as error:
            raise StartFailed(what=spec.name, reason="the launcher did not answer in time") from error
        lines = done.stdout.splitlines()
        if not lines:
            raise StartFailed(
                what=spec.name, reason=f"the launcher ended: {done.stderr.decode(errors='replace')[-500:]}"
            )
        answer: dict[str, object] = json.loads(lines[-1])
        return answer

    def _readable(self) -> list[str]:
        if not self._world.namespaces:
            return []
        paths = (*self._world.definition.readable, str(self._world.volume))
        return [str(Path(path).resolve()) for path in paths]

    def _refuse(self, answer: dict[str, object], spec: ProcessSpec) -> None:
        if answer["failed"] == "address":
            raise AddressTaken(address=spec.address, network=spec.network, reason=str(answer["reason"]))
        raise StartFailed(what=spec.name, reason=f"{answer['failed']}: {answer['reason']}")

    def state(self, name: str) -> PowerState:
        """Read back from the kernel: off only if neither the process nor anything it started is left."""
        if not self._members(name):
            return PowerState.RUNNING if self._lock_held(name) else PowerState.OFF
        run = self._run(name)
        return PowerState.HUNG if run and _condition(run.pid) in "tT" else PowerState.RUNNING

    def leads(self, name: str) -> bool:
        """Whether its first process lives; what that one started may outlive it."""
        run = self._run(name)
        return run is not None and _alive(run)

    def signal_kill(self, name: str) -> None:
        """Send SIGKILL to all of it, without waiting: what sleeps in a frozen file system dies only once that thaws."""
        killed: set[int] = set()
        for _ in range(_KILL_ROUNDS):
            fresh = set(self._members(name)) - killed
            if not fresh and (killed or not self._lock_held(name)):
                return
            for pid in fresh:
                _send(pid, signal.SIGKILL)
            if not fresh:
                time.sleep(_STARTING_S)  # the launcher has the lock but has not written its run file yet
            killed |= fresh
        raise PowerNotConfirmed(machine=name, reason="it keeps starting processes")

    def await_gone(self, name: str, limit_s: float = _GONE_LIMIT_S) -> bool:
        """Wait until nothing of it is left; whether that came about."""
        deadline = time.monotonic() + limit_s
        while (pids := self._members(name)) or self._lock_held(name):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            if pids:
                _await_end(pids[0], remaining)
            else:
                time.sleep(_STARTING_S)
        return True

    def kill(self, name: str) -> None:
        """Kill all of it and see it gone. Raises PowerNotConfirmed."""
        self.signal_kill(name)
        if not self.await_gone(name):
            raise PowerNotConfirmed(machine=name, reason=f"processes {self._members(name)} do not die")

    def terminate(self, name: str, grace_s: float) -> bool:
        """Ask its first process to end (SIGTERM) and wait for that; whether it did. What it left behind still runs."""
        run = self._run(name)
        if run and _alive(run):
            _send(run.pid, signal.SIGTERM)
            _await_end(run.pid, grace_s)
        return run is None or not _alive(run)

    def hang(self, name: str) -> None:
        """Stop all of it (SIGSTOP)."""
        for pid in self._members(name):
            _send(pid, signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        """Let all of it run again (SIGCONT)."""
        for pid in self._members(name):
            _send(pid, signal.SIGCONT)

    def console(self, name: str) -> str:
        """The end of what it printed."""
        with contextlib.suppress(FileNotFoundError), open(self._paths(name)["log"], "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - CONSOLE_BYTES))
            return log.read(CONSOLE_BYTES).decode(errors="replace")
        return ""

    def forget(self, name: str) -> None:
        """Remove what is kept of a process that has ended."""
        for path in self._paths(name).values():
            self._world.files.remove(path)

    def _paths(self, name: str) -> dict[str, Path]:
        stem = name.replace(":", "-")
        return {part: self._folder / f"{stem}.{part}" for part in ("spec", "run", "log", "lock")}

    def _run(self, name: str) -> RunFile | None:
        try:
            return msgspec.json.decode(self._paths(name)["run"].read_bytes(), type=RunFile)
        except FileNotFoundError:
            return None

    def _members(self, name: str) -> list[int]:
        """Processes of it that are alive: the process itself, its session, and all that carry its nonce."""
        run = self._run(name)
        if run is None or run.boot != launcher.boot():
            return []
        leader = _stat(run.pid)
        session = run.pid if not leader or int(leader[19]) == run.start else -1  # -1: the number went to a stranger
        mark = f"BACKHAUL_RUN={run.nonce}".encode()
        return [
            pid
            for pid in _all_pids()
            if _condition(pid) not in "ZX" and (_session(pid) == session or _environment_holds(pid, mark))
        ]

    def _lock_held(self, name: str) -> bool:
        path = self._paths(name)["lock"]
        if not path.exists():
            return False
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            # Only asks: a reader that took the lock, however briefly, would look like a running process to others.
            answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _WHOLE_FILE)
        finally:
            os.close(descriptor)
        return bool(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)


def _take_lock(path: Path) -> int | None:
    """The open lock, or None if a process of it holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # The open file description holds it, so it lives as long as any process that inherited the descriptor.
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WHOLE_FILE)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _all_pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid()]


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third (state) on; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _condition(pid: int) -> str:
    return (_stat(pid) or ["X"])[0]


def _session(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[3]) if fields else -1


def _alive(run: RunFile) -> bool:
    fields = _stat(run.pid) if run.boot == launcher.boot() else []
    return bool(fields) and fields[0] not in "ZX" and int(fields[19]) == run.start


def _environment_holds(pid: int, mark: bytes) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False  # a process of somebody else, or gone: not one of ours


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _await_end(pid: int, limit_s: float) -> None:
    """Wait until the process ends or the limit is over."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll(limit_s * 1000)
    finally:
        os.close(descriptor)
