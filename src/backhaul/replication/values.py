"""The currency of the data plane: extents, fences, epochs, descriptors.

Plain immutable values, encoded as MessagePack by `msgspec`. Nothing here does I/O or knows a peer. The bytes of
`EpochBegin` and `EpochEnd` are hashed into the lineage, so a field may be appended with a default but never
changed or moved (docs/spec/wire.md).
"""

from __future__ import annotations

import enum
import hashlib
from typing import Final, NewType

import msgspec

ItemId = NewType("ItemId", str)
"""A replicated item: 32 lower-case hexadecimal digits (a UUID without dashes)."""

Hash = NewType("Hash", bytes)
"""SHA-256, 32 bytes."""


class ExtentKind(enum.IntEnum):
    """What an extent says of its bytes."""

    DATA = 0
    ZERO = 1
    DISCARDED = 2
    """A hint only: what the device then reads is hashed and, unless it is zero, sent as DATA."""


class Extent(msgspec.Struct, frozen=True, array_like=True):
    """A run of bytes of one disk. `offset` and `length` in bytes, multiples of the sector (512)."""

    disk: int
    offset: int
    length: int
    kind: ExtentKind = ExtentKind.DATA

    @property
    def end(self) -> int:
        """First byte behind the extent."""
        return self.offset + self.length


class Fence(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Who may write: all three must equal what the target has stored (design: term, generation, stream)."""

    term: int
    generation: int
    stream: int

    def __str__(self) -> str:
        return f"{self.term}.{self.generation}.{self.stream}"


class StillKind(enum.StrEnum):
    """How the image of a recovery point was still."""

    STOPPED = "stopped"
    FROZEN = "frozen"
    SNAPSHOT = "snapshot"
    CUT = "cut"


class Consistency(enum.StrEnum):
    """What a recovery point promises to what runs on the disks."""

    CRASH = "crash"
    FILE_SYSTEM = "file-system"
    APPLICATION = "application"


class EpochReason(enum.StrEnum):
    """Why the epoch's blocks travel."""

    COMPARE = "compare"
    """Initial replication, resync, reprotect, restart: found by comparing maps."""
    DELTA = "delta"
    """The tracker named them."""
    UNDO = "undo"
    """The target itself went to an older point; never on the wire."""


class EpochBegin(msgspec.Struct, frozen=True, array_like=True):
    """Header of an epoch.

    number       counts epochs of the item at this target, from 1, no holes
    previous     `lineage` of the newest COMPLETE epoch; 32 zero bytes before the first
    interrupted  hash of the begin of the try of this number before this one; empty for the first try
    stream       the stream that sends it
    begun_ns     wall clock of the source, nanoseconds since 1970 UTC
    compares     disks that are being compared; the epoch's end must say that each compare ended
    """

    number: int
    previous: Hash
    interrupted: tuple[Hash, ...]
    stream: int
    begun_ns: int
    reason: EpochReason
    tracker: str
    compares: tuple[int, ...] = ()

    def digest(self) -> Hash:
        """Hash under which later tries of the same number name this one."""
        return Hash(hashlib.sha256(b"backhaul/1 epoch begin\0" + msgspec.msgpack.encode(self)).digest())


class EpochEnd(msgspec.Struct, frozen=True, array_like=True):
    """End of an epoch: with it the replica is a recovery point.

    barrier_ns   wall clock of the source at the barrier: everything acknowledged before it is in the point
    final        the machine was stopped or is held: no write can follow (planned failover, failback)
    label        the operator's or policy's word for it; empty for none
    frozen_us    microseconds for which writers were held, 0 when nothing was frozen
    compared     disks whose compare ended in this stream's try; the target refuses the end unless these are the
                 `compares` of the try's begin: no point before every compare has ended
    """

    number: int
    begin: Hash
    barrier_ns: int
    kind: StillKind
    consistency: Consistency
    final: bool = False
    label: str = ""
    frozen_us: int = 0
    compared: tuple[int, ...] = ()

    def lineage(self) -> Hash:
        """The chain's link: what the next epoch's `previous` must be. `begin` ties it to all before."""
        return Hash(hashlib.sha256(b"backhaul/1 epoch end\0" + msgspec.msgpack.encode(self)).digest())


NO_LINEAGE = Hash(bytes(32))


class CompletePoint(msgspec.Struct, frozen=True, array_like=True):
    """Newest COMPLETE epoch, as the target names it when a stream opens."""

    number: int
    lineage: Hash


class DiskIdentity(msgspec.Struct, frozen=True):
    """A disk by what it is, never by path. `index` is its number in the stream; `size` in bytes."""

    index: int
    name: str
    size: int


class RetentionTier(msgspec.Struct, frozen=True):
    """Points up to `until_age_s` seconds old are thinned to one per `every_s` seconds; 0 keeps all of them."""

    until_age_s: float
    every_s: float


DEFAULT_TIERS: Final = (
    RetentionTier(2 * 3600.0, 0),
    RetentionTier(24 * 3600.0, 3600.0),
    RetentionTier(7 * 24 * 3600.0, 2 * 3600.0),
    RetentionTier(15 * 24 * 3600.0, 4 * 3600.0),
)
"""Site Recovery's pruning: all for 2 h, hourly for a day, two-hourly for a week, then four-hourly."""


class ItemPolicy(msgspec.Struct, frozen=True):
    """Policy of a replicated item, as far as the data plane needs it."""

    point_interval_s: float = 60.0
    retention_s: float = 24 * 3600.0
    retention_points: int = 2000
    retention_tiers: tuple[RetentionTier, ...] = DEFAULT_TIERS
    freeze_limit_s: float = 2.0
    journal_bytes: int = 0
    """Bound of the undo journal in bytes; 0: bounded only by its volume."""


class Role(enum.StrEnum):
    """Role of a server or agent; part of its certificate's name."""

    CONFIGURATION_SERVER = "configuration-server"
    PROCESS_SERVER = "process-server"
    MASTER_TARGET = "master-target"
    AGENT = "agent"


class ItemDescriptor(msgspec.Struct, frozen=True):
    """What an item is, signed by the configuration server; the target keeps the highest, durably.

    target          id of the target that holds the replica
    agent           id in the certificate of the agent that may send
    active_machine  id, as hypervisor or cloud reports it, of the one machine that may send
    """

    item: ItemId
    term: int
    term_key: Hash
    generation: int
    target: str
    agent: str
    active_machine: str
    disks: tuple[DiskIdentity, ...]
    policy: ItemPolicy = ItemPolicy()
