"""A demo in which somebody flips bits of alpha's replica, after its home has hung and before it is failed over.

`python -m demo.tampered [ARGUMENT...]`, the arguments are the demo's. As a medium that rots: neither the product nor
the demo is told.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from backhaul.demo import going_over
from backhaul.demo.command import app
from backhaul.demo.operator import Operator
from backhaul.demo.plan import CLOUD, MachinePlan
from backhaul.demo.stages import Run
from backhaul.replication.units import GRANULE


def replicas(operator: Operator, machine: str) -> list[Path]:
    """Images of a machine's disks in the cloud: its master target has them."""
    site = operator.site(CLOUD)
    disks = [disk for disk in site.disks() if machine in disk.name and disk.holder.startswith("master-target:")]
    return [Path(site.attach_disk(disk.id, disk.holder, token=f"test/{disk.id}").path) for disk in disks]


def flip_bits(image: Path) -> int:
    """One bit in the middle of each granule that holds something; how many."""
    flipped = 0
    with image.open("r+b") as file:
        for start in range(0, image.stat().st_size, GRANULE):
            if any(os.pread(file.fileno(), GRANULE, start)):
                (byte,) = os.pread(file.fileno(), 1, start + GRANULE // 2)
                flipped += os.pwrite(file.fileno(), bytes([byte ^ 1]), start + GRANULE // 2)
    return flipped


def main(*arguments: str) -> None:
    """Run it."""
    real = going_over.strike

    def struck(run: Run, plan: MachinePlan) -> str:
        how = real(run, plan)
        flipped = sum(flip_bits(image) for image in replicas(run.operator, plan.name))
        run.display.line(f"  flipped {flipped} bits")
        return how

    going_over.strike = struck
    app(list(arguments), prog_name="backhaul demo")


if __name__ == "__main__":
    main(*sys.argv[1:])
