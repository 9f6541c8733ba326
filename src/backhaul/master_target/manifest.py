"""The two small files of a replica that are replaced as a whole. Specification: docs/spec/journal.md.

Pure: bytes in, values out. Invariant: a file that decodes is whole and of a known version.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec
from blake3 import blake3

from backhaul.master_target.errors import ReplicaFileDamaged
from backhaul.replication.errors import UNDECODABLE
from backhaul.replication.values import ItemDescriptor

VERSION: Final = 1
MAX_PINS: Final = 256
"""Pins of one item: each keeps a state for good, so a runaway caller is stopped before the journal is full of them."""

_CHECK: Final = 16


class ItemFile(msgspec.Struct, frozen=True):
    """What the replica is. `key` is the item's key of all its hashes, 32 bytes."""

    descriptor: ItemDescriptor
    key: bytes


class SegmentEntry(msgspec.Struct, frozen=True, array_like=True):
    """A segment by number; `sealed` is its length once it is not written any more, 0 before."""

    id: int
    sealed: int = 0


class Manifest(msgspec.Struct, frozen=True):
    """The journal's state.

    segments      in the order of their epochs
    next_segment  numbers are never used twice, so that an old file's bytes cannot pass for a new one's
    batch         newest batch when the manifest was written: batch numbers rise for ever
    floor         oldest state that can be reached
    pins          states kept, by name
    held          no thinning (between failover and commit or cancel)
    must_compare  nothing is known of the disks: until an epoch is complete, each must compare them all
    """

    segments: tuple[SegmentEntry, ...] = ()
    next_segment: int = 1
    batch: int = 0
    floor: int = 0
    pins: dict[str, int] = {}
    held: bool = False
    must_compare: bool = False


FileT = TypeVar("FileT", ItemFile, Manifest)
_MAGIC: Final[dict[type, bytes]] = {ItemFile: b"BHRI", Manifest: b"BHJM"}


def encode(value: ItemFile | Manifest) -> bytes:
    """The file's bytes."""
    content = msgspec.msgpack.encode(value)
    head = _MAGIC[type(value)] + VERSION.to_bytes(2, "big")
    return head + blake3(head + content).digest(length=_CHECK) + content


def decode(name: str, kind: type[FileT], data: bytes) -> FileT:
    """The value. Raises ReplicaFileDamaged."""
    head, check, content = data[:6], data[6 : 6 + _CHECK], data[6 + _CHECK :]
    if head[:4] != _MAGIC[kind] or blake3(head + content).digest(length=_CHECK) != check:
        raise ReplicaFileDamaged(name=name, reason="it is torn, or of another kind")
    if head[4:] != VERSION.to_bytes(2, "big"):
        raise ReplicaFileDamaged(name=name, reason=f"version {int.from_bytes(head[4:], 'big')} is not {VERSION}")
    try:
        return msgspec.msgpack.decode(content, type=kind)
    except UNDECODABLE as error:
        raise ReplicaFileDamaged(name=name, reason=str(error)) from error
