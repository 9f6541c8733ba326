"""Reading and writing disks: one contract (`contract.Disk`), one implementation per kind, one suite over all.

Imports `replication` only. What is here knows nothing of streams, journals or machines.
"""

from __future__ import annotations

from backhaul.disks.aligned import aligned_buffer
from backhaul.disks.block_device import BlockDevice
from backhaul.disks.contract import Buffer, Disk
from backhaul.disks.opening import open_disk
from backhaul.disks.raw_file import RawFile, create_raw_file

__all__ = ["BlockDevice", "Buffer", "Disk", "RawFile", "aligned_buffer", "create_raw_file", "open_disk"]
