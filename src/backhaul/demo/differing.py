"""What a reprotect of a demo's machine will have to send, found out by reading the disks of both sides side by side.

No part of the product could do that, as nobody there sees both; the demo owns both sites. It tells where the middle of
a reprotect's bytes is before the first of them was sent. Reads 112 MiB twice; called by the demo's main thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from backhaul.demo.machines import find
from backhaul.demo.operator import Operator, await_that
from backhaul.demo.plan import CLOUD, HOME, MachinePlan
from backhaul.replication.records import ChunkCodec
from backhaul.replication.units import GRANULE


def differing_bytes(operator: Operator, plan: MachinePlan) -> int:
    """Bytes of all granules that differ between the machine's disks in the cloud and at home, compressed."""
    pairs = zip(_disks(operator, HOME, plan), _disks(operator, CLOUD, plan), strict=True)
    return sum(compressed(old, new) for old, new in pairs)


def compressed(old: Path, new: Path) -> int:
    """Bytes of those granules of `new` that differ from `old`, as the product compresses them."""
    codec = ChunkCodec()
    pairs = zip(_granules(old), _granules(new), strict=True)
    return sum(len(codec.compress(now)[1]) for before, now in pairs if before != now)


def _granules(disk: Path) -> Iterator[bytes]:
    with disk.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # a device's cache knows nothing of its mount's
        while granule := file.read(GRANULE):
            yield granule


def _disks(operator: Operator, side: str, plan: MachinePlan) -> list[Path]:
    """Where the machine's own disks are on a side, in its order: handed to whom they belong to already."""
    machine = await_that(lambda: find(operator, side, plan.name), f"{plan.name} ({side})")
    holder, site = f"machine:{machine.id}", operator.site(side)
    return [Path(site.attach_disk(part.disk, holder, token=f"demo/look/{part.disk}").path) for part in machine.disks]
