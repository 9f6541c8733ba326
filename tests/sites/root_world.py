"""A home and a cloud in namespaces, for tests that run as root; nothing of them is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from backhaul.configuration_server.occupancy import started_at
from backhaul.replication.units import MiB
from backhaul.sites.local.definition import (
    Mode,
    NetworkDefinition,
    SiteDefinition,
    SiteKind,
    SubnetDefinition,
)
from sites.site_world import Caller, definition, running_site

FABRIC = f"t{os.getpid()}"
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
HOME_UID, CLOUD_UID = 61101 + 2 * _WORKER, 61102 + 2 * _WORKER
"""Users of this worker's sites alone, not the demo's: by them their processes are told from others'."""

HOME_NET, CLOUD_NET, OTHER_NET = "home", "vnet", "vnet2"
_PREFIXES = {HOME_NET: "10.77.0.0/24", CLOUD_NET: "10.78.1.0/24", OTHER_NET: "10.78.2.0/24"}


def _network(name: str, public: str) -> NetworkDefinition:
    subnet = SubnetDefinition("default", _PREFIXES[name])
    return NetworkDefinition(name, "prod", "rg", "here", _PREFIXES[name], (subnet,), public=name == public)


def root_definition(kind: SiteKind, public: str = "") -> SiteDefinition:
    """A site of the fabric: home with one network, or a cloud with two."""
    names = (HOME_NET,) if kind is SiteKind.HOME else (CLOUD_NET, OTHER_NET)
    return definition(
        name=str(kind),
        kind=kind,
        mode=Mode.NAMESPACES,
        fabric=FABRIC,
        uid=HOME_UID if kind is SiteKind.HOME else CLOUD_UID,
        volume_bytes=400 * MiB,
        networks=tuple(_network(name, public) for name in names),
        readable=(sys.prefix, sys.base_prefix),
    )


@contextmanager
def pair(folder: Path, public: str = "") -> Iterator[tuple[Caller, Caller]]:
    """Home and cloud; afterwards the machine is as it was before."""
    before = traces()
    with (
        running_site(folder / "home", root_definition(SiteKind.HOME)) as home,
        running_site(folder / "cloud", root_definition(SiteKind.CLOUD, public)) as cloud,
    ):
        yield home, cloud
    assert_as_before(before)


def traces() -> dict[str, list[str]]:
    """What a site could leave behind on this machine (its own, not that of other tests running now)."""
    spaces = [name for name in output("ip", "netns", "list").splitlines() if FABRIC in name]
    columns = "NAME,BACK-FILE,AUTOCLEAR"
    loops = json.loads(output("losetup", "--json", "--list", "--output", columns) or '{"loopdevices": []}')
    # One that is to be cleared was given back (or goes with its mount, which is looked for below): it lasts as long as
    # another test's network namespace has a copy of the mount.
    kept = [str(loop["back-file"]) for loop in loops["loopdevices"] if not loop["autoclear"]]
    mine = [file for file in kept if f"{_session()}/" in file]
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if f"{_session()}/" in line]
    users = [pid for pid in os.listdir("/proc") if pid.isdigit() and _user(pid) in (HOME_UID, CLOUD_UID)]
    return {"namespaces": spaces, "loops": mine, "mounts": mounts, "processes": users}


def assert_as_before(before: dict[str, list[str]]) -> None:
    """Nothing more is left than `traces` found before. The kernel takes its time with the last of it: a loop device is
    let go of when whoever looks at it just then (every `blkid` looks at all) has closed it.
    """
    end = time.monotonic() + LET_GO_S
    while (left := traces()) != before and time.monotonic() < end:
        time.sleep(0.05)
    assert left == before, f"left behind: {left}"


LET_GO_S = 30.0

_session_name = ""


def remember_session(folder: Path) -> None:
    """Note where this worker's tests have their folders, by which its mounts and loops are told from others'."""
    global _session_name
    _session_name = str(folder.parent)


def _session() -> str:
    return _session_name


def _user(pid: str) -> int:
    """The process's user; -1 for one that has ended and waits for init to take note."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid if started_at(int(pid)) else -1
    except FileNotFoundError:
        return -1


def output(*command: str) -> str:
    """What a program of the host prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def listener(port: int) -> tuple[str, ...]:
    """A guest or server that listens on its own address."""
    listen = f"s = socket.create_server((os.environ['BACKHAUL_ADDRESS'], {port}))"
    source = f"import os, socket, time; {listen}; print('up'); time.sleep(9999)"
    return (sys.executable, "-I", "-S", "-u", "-c", source)


def as_json(text: bytes) -> dict[str, object]:
    """Decoded JSON."""
    return dict(msgspec.json.decode(text))
