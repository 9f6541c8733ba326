"""What a machine of the real-sites test runs: the oracle's block writer over the disks that its site gives it.

python guest.py MACHINE LOG CONTROL BLOCKS SEED
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from backhaul.demo.writers.blocks import run_block_writer
from backhaul.demo.writers.spec import BlockWriterSpec, RegionSpec


def main(machine: str, log: str, control: str, blocks: str, seed: str) -> int:
    """Write until the plug is pulled."""
    disks = tuple(Path(disk["path"]) for disk in json.loads(os.environ["BACKHAUL_DISKS"]))
    spec = BlockWriterSpec(
        machine=machine,
        log=Path(log),
        control=Path(control),
        quiesce_limit_s=10.0,
        writes_per_s=300.0,
        progress_s=0,
        seed=int(seed),
        disks=disks,
        regions=tuple(RegionSpec(index, 0, int(blocks)) for index in range(len(disks))),
    )
    return run_block_writer(spec)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
