"""The nameplate of a machine: its own name, in the first block of its first disk, as a host name is on a real one.

It says at boot that the disks hold an installed system, on whichever side, under whatever name the site knows the
machine. On a raw disk it lies before what the writers overwrite, on a file system it is a file. Blocking; called by
the guest's main thread before its writers start.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from backhaul.demo.guest_machine import GuestMachine
from backhaul.replication.units import BLOCK, GRANULE

AREA_BYTES: Final = GRANULE
"""Kept free of writers on the first raw disk, so that its granule never changes."""

FILE: Final = "nameplate"
_MAGIC: Final = b"BHGUEST1"


class Nameplate:
    """The nameplate of one machine."""

    def __init__(self, machine: GuestMachine) -> None:
        disk = machine.disks[0]
        self._path = Path(disk.mount) / FILE if machine.is_mounted else Path(disk.path)

    def read(self) -> str:
        """The name; empty on disks on which nothing was installed."""
        try:
            with self._path.open("rb") as file:
                block = file.read(BLOCK)
        except FileNotFoundError:
            return ""
        return block[len(_MAGIC) :].rstrip(b"\0").decode(errors="replace") if block.startswith(_MAGIC) else ""

    def write(self, name: str) -> None:
        """Durably; the last act of an installation."""
        block = (_MAGIC + name.encode()).ljust(BLOCK, b"\0")
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            os.pwrite(descriptor, block, 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
