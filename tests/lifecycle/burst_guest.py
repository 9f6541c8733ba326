"""What a machine runs whose disks are compared byte for byte: at each start it overwrites some blocks of every disk,
lets go of the disks, adds a line to a file outside of them, and rests. So it writes, and is still a moment later.

python burst_guest.py LINES
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

BLOCK = 4096
BLOCKS = 100


def main(lines: Path) -> None:
    """Write, say so, and rest until the plug is pulled."""
    chance = random.SystemRandom()
    for disk in json.loads(os.environ["BACKHAUL_DISKS"]):
        path = Path(disk["path"])
        with path.open("r+b") as file:
            for _ in range(BLOCKS):
                file.seek(chance.randrange(path.stat().st_size // BLOCK) * BLOCK)
                file.write(os.urandom(BLOCK))
            file.flush()
            os.fsync(file.fileno())
    with lines.open("a") as file:
        file.write("written\n")
    while True:
        time.sleep(1000)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
