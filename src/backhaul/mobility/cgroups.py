"""A control group of its own for each of freezer and guard, so that stopping the agent's group stops neither.

Invariant: a process is moved only in hierarchies by which groups are stopped or killed (the unified one, and of the
old ones `freezer` and `name=systemd`); where these are not writable it stays where it is and says so by an empty
list. Called by the freezer and the guard at their start, and by their client to clear away empty groups.
"""

from __future__ import annotations

import errno
import os
from typing import Final

PREFIX: Final = "backhaul-"
_STOPPING: Final = {"freezer", "name=systemd"}
_REFUSED: Final = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EOPNOTSUPP, errno.EBUSY, errno.ENOSPC, errno.ENODEV,
}  # fmt: skip


def hierarchies(mountinfo: str = "/proc/self/mountinfo") -> list[str]:
    """Mount points of the hierarchies that can stop or kill a group."""
    found: list[str] = []
    with open(mountinfo, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            before, _, after = line.rstrip("\n").partition(" - ")
            kind, _, options = after.split(" ", 2)
            if kind == "cgroup2" or (kind == "cgroup" and _STOPPING & set(options.split(","))):
                found.append(before.split(" ")[4])
    return found


def join_own_group(role: str, mountinfo: str = "/proc/self/mountinfo") -> list[str]:
    """Move this process into a new group `backhaul-ROLE.PID` of each hierarchy; the groups it is now in."""
    joined: list[str] = []
    for root in hierarchies(mountinfo):
        group = f"{root}/{PREFIX}{role}.{os.getpid()}"
        try:
            os.mkdir(group, 0o755)  # noqa: PTH102 -- the freezer imports no pathlib
            with open(f"{group}/cgroup.procs", "w", encoding="ascii") as members:
                members.write(str(os.getpid()))
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            continue
        joined.append(group)
    return joined


def clear_empty_groups(mountinfo: str = "/proc/self/mountinfo") -> None:
    """Remove what ended processes left behind. The kernel refuses to remove a group that has members."""
    for root in hierarchies(mountinfo):
        try:
            names = os.listdir(root)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            continue
        for name in names:
            if name.startswith((PREFIX + "freezer.", PREFIX + "guard.")) and not _lives(name):
                _remove_if_empty(f"{root}/{name}")


def _lives(name: str) -> bool:
    """Whether the group's process is there: one that has just made it is not in it yet."""
    return os.path.exists(f"/proc/{name.rpartition('.')[2]}")  # noqa: PTH110 -- as above


def _remove_if_empty(group: str) -> None:
    try:
        os.rmdir(group)  # noqa: PTH106 -- as above
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
