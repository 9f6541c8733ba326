"""What a local site runs as a service in the demo: a program of the product, kept running, registered when told to.

`python -m backhaul.demo.service KIND [ARGUMENT...]`, in the service's own folder, which outlives it. KIND is `server`
(the configuration server), `process-server`, `master-target` or `agent`; the arguments are added to `backhaul KIND
run`, with `{address}` standing for the service's address. Its output goes to `console`. SIGTERM ends both in order.

An agent stands beside its machine, as on a hypervisor's host, so that it reads the disks also when the machine is off.
Which machine that is, the operator says in `machine.json`: `machine_id` and `tags` (what agents read), `disks` (paths,
in order) and `guest` (the machine's working folder); `disk0`, `disk1`, ... and `guest` are links to them.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Final

import msgspec

from backhaul.demo.kept import TICK_S, Kept

DATA: Final = Path("server")
CONSOLE: Final = "console"
REGISTRATION: Final = DATA / "registration.json"
MACHINE: Final = Path("machine.json")
GUEST: Final = Path("guest")
SETTINGS: Final = {"built_in": False, "heartbeat_s": 1.0}
"""The demo's home has its process server and master target as services with addresses that the cloud reaches."""


class MachineWord(msgspec.Struct, frozen=True):
    """The content of `machine.json`."""

    machine_id: str
    disks: tuple[str, ...]
    guest: str
    tags: dict[str, str] = {}


class Beside:
    """Follows `machine.json`; says whether the agent's machine is known and its disks are there."""

    def __init__(self) -> None:
        self._seen = -1
        self._links: list[Path] = []

    def changed(self) -> bool:
        """Look; whether the links were set anew, so that the agent must start again."""
        if not MACHINE.exists() or MACHINE.stat().st_mtime_ns == self._seen:
            return False
        self._seen = MACHINE.stat().st_mtime_ns
        word = msgspec.json.decode(MACHINE.read_bytes(), type=MachineWord)
        self._links = [_link(Path(f"disk{index}"), path) for index, path in enumerate(word.disks)]
        _link(GUEST, word.guest)
        return True

    @property
    def is_there(self) -> bool:
        """Whether every disk can be found."""
        return bool(self._links) and all(link.exists() for link in self._links)


def _link(link: Path, target: str) -> Path:
    beside = link.with_name(f"{link.name}.new")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    return beside.rename(link)


def main(arguments: list[str]) -> int:
    """Keep it running until told to end."""
    if not arguments:
        sys.stderr.write("usage: python -m backhaul.demo.service KIND [ARGUMENT...]\n")
        return 2
    kind, *more = arguments
    _print_to(Path(CONSOLE))
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: ended.set())
    beside = Beside()
    kept = Kept(
        (kind, "run", "--data-dir", str(DATA), *more),
        is_ready=lambda: kind == "server" or (REGISTRATION.exists() and (kind != "agent" or beside.is_there)),
        known={"address": os.environ.get("BACKHAUL_ADDRESS", "")},
    )
    if kind == "server":
        _settle()
    try:
        while not ended.wait(TICK_S):
            if beside.changed():
                kept.stop()
            kept.tick()
    finally:
        kept.stop()
    return 0


def _settle() -> None:
    DATA.mkdir(mode=0o700, exist_ok=True)
    settings = DATA / "settings.json"
    if not settings.exists():
        address = os.environ.get("BACKHAUL_ADDRESS", "")
        settings.write_bytes(msgspec.json.encode({**SETTINGS, "addresses": [address]}))


def _print_to(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
