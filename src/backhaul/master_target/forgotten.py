"""What a target never forgets of an item that it gave up: who may write it next, and which streams are closed.

The replica goes at a commit, its disks come back with the next reprotect, under the same item. An old agent, an old
spool or an old configuration server may come back as well, so the highest descriptor and the newest stream number stay
in a small file each, for good: about a kilobyte per item that was ever given up here.

Invariant: the file is durable before anything of the item is removed, and it only rises. Called in threads, while the
target lets no item come or go.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from backhaul.master_target.errors import ReplicaFileDamaged
from backhaul.master_target.stored import replace_or_refuse
from backhaul.replication.errors import UNDECODABLE
from backhaul.replication.opening import stored_descriptor
from backhaul.replication.ports import Files
from backhaul.replication.target import TargetState, check_descriptor
from backhaul.replication.values import ItemDescriptor, ItemId

FOLDER: Final = "forgotten"


class Forgotten(msgspec.Struct, frozen=True):
    """The highest signed descriptor, and the newest stream number that was given out."""

    descriptor: bytes
    stream: int


def remember(files: Files, target: Path, item: ItemId, state: TargetState) -> None:
    """Before the item is removed. Raises StateNotStored (nothing has changed), OSError."""
    files.make_folder(target / FOLDER)
    forgotten = Forgotten(state.descriptor, state.stream)
    replace_or_refuse(files, target / FOLDER / item, msgspec.msgpack.encode(forgotten))


def recall(files: Files, target: Path, item: ItemId) -> Forgotten | None:
    """None for an item that was never given up here. Raises ReplicaFileDamaged, OSError."""
    path = target / FOLDER / item
    try:
        return msgspec.msgpack.decode(files.read(path), type=Forgotten)
    except FileNotFoundError:
        return None
    except UNDECODABLE as error:
        raise ReplicaFileDamaged(name=str(path), reason=str(error)) from error


def first_state(files: Files, target: Path, target_id: str, descriptor: ItemDescriptor, blob: bytes) -> TargetState:
    """The state of an item that is made anew: it goes on above what was given up.

    Raises DescriptorRefused for a lower term or generation, as if it had never been away; ReplicaFileDamaged, OSError.
    """
    forgotten = recall(files, target, descriptor.item)
    if forgotten is None:
        return TargetState(blob)
    check_descriptor(target_id, stored_descriptor(forgotten.descriptor), descriptor)
    return TargetState(blob, stream=forgotten.stream)
