"""What a machine of a local site is, as its guest sees it: the environment that the site starts it with.

Read once at the guest's start. The site owns the form (`sites/local/power.py`); whatever is missing or malformed
means that somebody else started the guest. Pure but for nothing: the caller hands in the environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from backhaul.demo.errors import GuestMisplaced
from backhaul.replication.errors import UNDECODABLE


class GuestDisk(msgspec.Struct, frozen=True):
    """A disk of the machine. `path`: what the guest opens; `mount`: where its ext4 is mounted, empty for a raw disk."""

    index: int
    id: str
    name: str
    size: int
    path: str
    mount: str = ""


@dataclass(frozen=True)
class GuestMachine:
    """The machine: its id, its address, the file with its metadata, its disks in order."""

    id: str
    address: str
    metadata: Path
    disks: tuple[GuestDisk, ...]

    @property
    def is_mounted(self) -> bool:
        """Whether the disks carry file systems, which the site has mounted."""
        return all(disk.mount for disk in self.disks)

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> GuestMachine:
        """The machine that this environment describes. Raises GuestMisplaced."""
        try:
            disks = msgspec.json.decode(environment["BACKHAUL_DISKS"], type=tuple[GuestDisk, ...])
            machine = cls(
                environment["BACKHAUL_MACHINE_ID"],
                environment["BACKHAUL_ADDRESS"],
                Path(environment["BACKHAUL_METADATA"]),
                tuple(sorted(disks, key=lambda disk: disk.index)),
            )
        except KeyError as missing:
            raise GuestMisplaced(reason=f"the environment has no {missing.args[0]}") from missing
        except UNDECODABLE as error:
            raise GuestMisplaced(reason=f"BACKHAUL_DISKS makes no sense: {error}") from error
        if not machine.disks:
            raise GuestMisplaced(reason="the machine has no disk")
        if machine.is_mounted != any(disk.mount for disk in machine.disks):
            raise GuestMisplaced(reason="some disks are mounted and some are not")
        return machine
