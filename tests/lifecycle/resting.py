"""A real world whose machine writes at each start and is still then: its disks can be compared byte for byte."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path
from typing import Final

from blake3 import blake3

from backhaul.recovery.item import Side
from backhaul.replication.control import StillImagePlan
from backhaul.sites.values import PowerState
from lifecycle.real_world import LOOK_S, RealWorld

GUEST: Final = Path(__file__).with_name("burst_guest.py")


class RestingWorld(RealWorld):
    """A world whose machine rests between its starts."""

    def _command(self) -> tuple[str, ...]:
        return (sys.executable, str(GUEST), str(self.folder / "bursts"))

    def _plan(self) -> StillImagePlan:
        return StillImagePlan(stopped=True)

    @property
    def bursts(self) -> int:
        """How often a machine has written its blocks."""
        path = self.folder / "bursts"
        return len(path.read_text().splitlines()) if path.exists() else 0

    async def burst(self, count: int) -> None:
        """Wait until so many have been."""
        async with asyncio.timeout(60):
            while self.bursts < count:  # noqa: ASYNC110
                await asyncio.sleep(LOOK_S)  # polls another process

    def digest(self, side: Side, *, base: bool = False) -> list[str]:
        """Of each whole disk of a side: of its machine's, or of the replica below them."""
        return [blake3().update_mmap(image).hexdigest() for image in self.images(side, base=base)]

    def write(self, side: Side) -> None:
        """The machine of this side writes something more."""
        for image in self.images(side):
            with image.open("r+b") as file:
                file.seek(random.randrange(256) * 4096)
                file.write(os.urandom(4096))

    def on(self) -> list[str]:
        """Sites with a machine that runs."""
        sites = [site for site in ("home", "cloud") if self.site(site).machines()]
        return [site for site in sites if any(m.power is PowerState.RUNNING for m in self.site(site).machines())]
