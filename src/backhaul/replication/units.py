"""Sizes of the data plane, in bytes.

Every limit of the wire and of the journal is here, each with the reason for its value. Called from everywhere;
imports nothing.
"""

from __future__ import annotations

from typing import Final

KiB: Final = 1024
MiB: Final = 1024 * KiB
GiB: Final = 1024 * MiB
TiB: Final = 1024 * GiB

SECTOR: Final = 512
"""Smallest unit a disk's size may be a multiple of."""

BLOCK: Final = 4 * KiB
"""Unit of tracking and of the undo journal: the smallest page a file system writes."""

GRANULE: Final = 64 * KiB
"""Unit of hashing: 16 bytes of hash per granule are 256 MiB of map per TiB."""

RANGE_GRANULES: Final = 256
RANGE: Final = RANGE_GRANULES * GRANULE
"""16 MiB. Maps are compared range by range before they are compared granule by granule."""

CHUNK: Final = 1 * MiB
"""Data of one frame before compression: large enough that the interpreter costs little per byte."""

MAX_FRAME: Final = 2 * MiB
"""Largest sealed frame. A chunk, its extents' heads and what zstd may add fit with room to spare."""

MAX_HEAD: Final = 16 * KiB
"""Largest head of a message on a link. Opening messages are payload, not head."""

MAX_REPLY: Final = 1 * MiB
"""Largest sealed reply: 4,096 hashes of 16 bytes are 64 KiB."""

MAX_OPENING: Final = 64 * KiB
"""Largest of the three opening messages: certificates and one HPKE ciphertext."""

MAX_MAP_HASHES: Final = 4096
"""Most hashes asked for, and answered, at once."""

MAX_DISKS: Final = 64
"""Disks of one machine, as Site Recovery's limit for data disks."""

MAX_DISK_BYTES: Final = 32 * TiB
"""Site Recovery's limit per disk; also keeps block numbers of 4 KiB below 2**33."""

BATCH_BYTES: Final = 64 * MiB
BATCH_SECONDS: Final = 0.2
"""A target's batch ends at whichever comes first; it bounds memory and the wait for an acknowledgement."""
