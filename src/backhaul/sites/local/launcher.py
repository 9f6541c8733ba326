"""Starts one process of a site so that exactly one runs and outlives the provider.

A program, not a module: `python -I -S launcher.py SPEC`, standard library only, so that it starts in milliseconds. It
inherits the lock that its provider took (and hands it on, so that the kernel says whether what it started still runs),
enters the network namespace, claims the address, becomes the user, and becomes the command, in a session of its own. It
answers on stdout with one JSON object a line: `{"pid": …, "start": …}`, then, or instead, `{"failed": …, "reason": …}`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any

CLAIM_PORT = 65530
"""A port above the ephemeral range, bound (never listened on) for as long as the process lives: the kernel then refuses
the same address to everybody else who claims it."""

_CLONE_NEWNET, _CLONE_NEWNS = 0x40000000, 0x00020000
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x80000
_OPEN_FILES = 4096
_libc = ctypes.CDLL(None, use_errno=True)


class Failed(Exception):
    """A step of the start failed."""

    def __init__(self, step: str, error: OSError) -> None:
        self.step, self.error = step, error
        super().__init__(step)


def start_ticks(pid: int) -> int:
    """When the process began, in clock ticks since boot: with the pid it names a process for ever."""
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return int(stat.read().rsplit(b")", 1)[1].split()[19])


def boot() -> str:
    """Id of the running kernel's boot: pids of another boot mean nothing."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def main() -> None:
    with open(sys.argv[1], "rb") as file:
        spec: dict[str, Any] = json.load(file)
    answer = os.dup(1)
    os.set_inheritable(answer, False)
    if os.fork():
        os._exit(0)  # what is started belongs to init, so it outlives the provider and is reaped
    os.setsid()
    try:
        become(spec, answer)
    except Failed as failed:
        reason = {
            "failed": failed.step,
            "errno": failed.error.errno,
            "reason": failed.error.strerror or str(failed.error),
        }
        os.write(answer, json.dumps(reason).encode())
        os._exit(1)


def become(spec: dict[str, Any], answer: int) -> None:
    """Turn this process into the command. Returns never; raises Failed."""
    if spec["namespace"]:
        attempt("namespace", lambda: enter_namespace(spec["namespace"]))
    if spec["address"]:
        claim = attempt("address", lambda: claim_address(spec["address"]))
        os.set_inheritable(claim.detach(), True)
    attempt("output", lambda: redirect(spec["log"]))
    pid, start = os.getpid(), start_ticks(os.getpid())
    run = {"pid": pid, "start": start, "boot": boot(), "nonce": spec["nonce"]}
    attempt("run file", lambda: write_durably(spec["run"], run))
    if spec["readable"]:
        attempt("mounts", lambda: open_ways(spec["readable"]))
    with contextlib.suppress(OSError, ValueError):  # a lower hard limit is the machine's owner's wish
        resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    if spec["uid"] is not None:
        attempt("user", lambda: become_user(spec["uid"]))
    attempt("folder", lambda: os.chdir(spec["folder"]))
    os.umask(0o077)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and exec would hand that on
    # The answer goes out last, before the exec that closes its pipe: a failing exec adds its own.
    try:
        os.write(answer, json.dumps({"pid": pid, "start": start}).encode() + b"\n")
        os.execvpe(spec["command"][0], spec["command"], spec["environment"])  # noqa: S606 - a command of the definition, as a list
    except OSError as error:
        raise Failed("command", error) from error


def attempt(step: str, act: Any) -> Any:
    """Run a step, naming it if it fails."""
    try:
        return act()
    except OSError as error:
        raise Failed(step, error) from error


def enter_namespace(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(descriptor)


def claim_address(address: str) -> socket.socket:
    claim = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    claim.bind((address, CLAIM_PORT))
    return claim


def redirect(log: str) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(output)
    os.close(null)


def open_ways(readable: list[str]) -> None:
    """In a mount namespace of our own, lay an empty folder over each closed parent and show only what is listed.

    Mounts stay slaves of the host's, so that what the host unmounts is gone here too.
    """
    if _libc.unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    mount("none", "/", _MS_REC | _MS_SLAVE)
    closed: dict[str, list[str]] = {}
    for path in readable:
        parent = first_closed_parent(path)
        if parent:
            closed.setdefault(parent, []).append(path)
    for parent, paths in closed.items():
        kept = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in sorted(paths)]
        mount("tmpfs", parent, 0, "tmpfs", "mode=755,size=1m")
        for path, descriptor in kept:
            Path(path).mkdir(mode=0o755, parents=True, exist_ok=True)
            mount(f"/proc/self/fd/{descriptor}", path, _MS_BIND | _MS_REC)
            os.close(descriptor)


def first_closed_parent(path: str) -> str:
    """The topmost folder above `path` that others may not pass; empty if the way is open."""
    parts = path.strip("/").split("/")
    for count in range(1, len(parts)):
        parent = "/" + "/".join(parts[:count])
        if not Path(parent).stat().st_mode & 0o001:
            return parent
    return ""


def mount(source: str, target: str, flags: int, kind: str = "none", options: str = "") -> None:
    if _libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), f"mount {target}")


def become_user(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def write_durably(path: str, content: dict[str, Any]) -> None:
    beside = path + ".new"
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(descriptor, json.dumps(content).encode())
    os.fsync(descriptor)
    os.close(descriptor)
    Path(beside).rename(path)
    folder = os.open(Path(path).parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


if __name__ == "__main__":
    main()
