"""What can go wrong below the network at a master target.

    MasterTargetError
    ├── ReplicaTooSmall      ├── DisksChanged        ├── ExtentOutside
    ├── ReplicaPoisoned      ├── JournalFull         ├── JournalUnreadable    ├── JournalWriteFailed
    ├── JournalDamaged       ├── DiskPutBack         ├── BeforeImageDamaged   ├── ReplicaFileDamaged
    ├── PointUnknown         ├── PinRefused          ├── UndoImpossible
    ├── EpochUnfinished      ├── ItemUnknown         ├── RequestMalformed
    └── ItemNotMade          └── StateNotStored      └── ProcessServerTooSlow

`JournalDamaged` and `DiskPutBack` are also *findings*: reported by `Replica.findings` after an opening that went on.
"""

from __future__ import annotations

from backhaul.replication.errors import BackhaulError


class MasterTargetError(BackhaulError):
    """The replica of item {item} failed."""

    code = "BH-MASTER-TARGET"
    fix = "See the log of the master target; nothing that was acknowledged is lost."


class ReplicaTooSmall(MasterTargetError):
    """Disk {disk} of item {item} has {needed} bytes at the source but its replica only {size}."""

    code = "BH-REPLICA-TOO-SMALL"
    fix = "Give a disk at least as large as the source's; nothing was written."


class DisksChanged(MasterTargetError):
    """The disks of item {item} cannot become the ones of the new descriptor: {reason}."""

    code = "BH-DISKS-CHANGED"
    fix = "Grown disks are continued; for any other change protect the item again with the new disks."


class ExtentOutside(MasterTargetError):
    """{length} bytes at {offset} of disk {disk} of item {item} cannot be applied: {reason}."""

    code = "BH-EXTENT-OUTSIDE"
    fix = "Source and target disagree on the disks' sizes: grow the replica, then open a new stream."


class ReplicaPoisoned(MasterTargetError):
    """A sync of item {item} failed ({cause}), so what is durable is unknown until the replica is opened again."""

    code = "BH-REPLICA-POISONED"
    fix = "The service ends and recovers from the journal by itself. If it happens again, replace the disk."


class JournalFull(MasterTargetError):
    """The undo journal of item {item} needs {needed} bytes and has {free}; applying has stopped, nothing is lost."""

    code = "BH-JOURNAL-FULL"
    fix = "Give it a bigger volume, release a pin, or allow by name: no points until this epoch completes."


class JournalUnreadable(MasterTargetError):
    """The undo journal of item {item} cannot be read at {place}: {cause}."""

    code = "BH-JOURNAL-UNREADABLE"
    fix = "Check the journal's volume, then start the master target again; nothing was changed."


class JournalWriteFailed(MasterTargetError):
    """The undo journal of item {item} could not be written: {cause}. Applying has stopped, nothing is lost."""

    code = "BH-JOURNAL-WRITE-FAILED"
    fix = "Check the journal's volume; the same changes are tried again."


class JournalDamaged(MasterTargetError):
    """The undo journal of item {item} is damaged in epoch {epoch} ({place}): points before {floor} are withdrawn."""

    code = "BH-JOURNAL-DAMAGED"
    fix = "Newer points are good. Check the journal's volume: it returned something else than was written."


class DiskPutBack(MasterTargetError):
    """Disk {disk} of item {item} does not hold at block {block} what was written last: it was changed from outside."""

    code = "BH-DISK-PUT-BACK"
    fix = "All points are void and all disks are compared anew. Only the master target may write a replica."


class BeforeImageDamaged(MasterTargetError):
    """A before-image of disk {disk}, block {block} of item {item} is damaged: point {point} cannot be reached."""

    code = "BH-BEFORE-IMAGE-DAMAGED"
    fix = "Choose a newer point, and check the journal's volume."


class ReplicaFileDamaged(MasterTargetError):
    """File {name} of a replica is damaged: {reason}."""

    code = "BH-REPLICA-FILE-DAMAGED"
    fix = "Restore the file, or protect the item again: the disks themselves are not touched."


class PointUnknown(MasterTargetError):
    """Item {item} has no point {point} that can be reached."""

    code = "BH-POINT-UNKNOWN"
    fix = "List the recovery points and choose one of them."


class PinRefused(MasterTargetError):
    """Pin {name} of item {item} was refused: {reason}."""

    code = "BH-PIN-REFUSED"
    fix = "Release a pin, or choose another name."


class UndoImpossible(MasterTargetError):
    """Item {item} cannot do that now: {reason}."""

    code = "BH-UNDO-IMPOSSIBLE"
    fix = "See the reason; `backhaul item show` names what is kept."


class EpochUnfinished(MasterTargetError):
    """Epoch {epoch} of item {item} cannot be completed: {blocks} blocks of a lapsed batch were not sent again."""

    code = "BH-EPOCH-UNFINISHED"
    fix = "The agent opens a new stream and sends or compares them; the point is made then."


class ItemUnknown(MasterTargetError):
    """This master target holds no item {item}."""

    code = "BH-ITEM-UNKNOWN"
    fix = "List its items; the item may be held by another target, or was deleted."


class RequestMalformed(MasterTargetError):
    """Control request {method} is not well formed: {reason}."""

    code = "BH-REQUEST-MALFORMED"
    fix = "Compare the versions of the configuration server and this server."


class StateNotStored(MasterTargetError):
    """File {name} in {folder} could not be stored: {cause}. What it decides stays as it was."""

    code = "BH-STATE-NOT-STORED"
    fix = "Make room on the target's volume. A stream is opened again by itself; any other request may be repeated."


class ItemNotMade(MasterTargetError):
    """The replica of item {item} could not be made: {cause}. Nothing is left of it."""

    code = "BH-ITEM-NOT-MADE"
    fix = "Make room on the target's volume, or mend it; the request may be repeated."


class ProcessServerTooSlow(MasterTargetError):
    """Process server {peer} does not read: {waiting} messages wait for it, so the link was cut."""

    code = "BH-PROCESS-SERVER-TOO-SLOW"
    fix = "It connects again by itself. If it happens often, look at the process server's disk, processor and network."
