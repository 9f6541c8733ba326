"""What can go wrong on a protected machine.

BackhaulError
└── MobilityError
    ├── StillError
    │   ├── FreezeUnavailable   ├── FreezeFailed    ├── FreezerLost   ├── FreezeHeld   ├── ThawRefused
    │   ├── NotStopped          ├── StopUnproven    ├── NotFreezable
    │   ├── QuiesceFailed       ├── QuiesceTimedOut
    │   └── ImageNotStill
    ├── TrackerError
    │   ├── DiskChangedSize     ├── DiskReplaced    ├── TooMuchToStage   ├── FreezeTooLong
    │   └── TrackerStopped
    ├── MachineIdError
    │   ├── MachineIdUnknown    ├── MachineIdContradiction
    │   └── MetadataUnreadable
    └── QuestionError
        └── GranuleKeyUnknown   └── QuestionUnknown
"""

from __future__ import annotations

from backhaul.replication.errors import BackhaulError


class MobilityError(BackhaulError):
    """The agent on this machine failed."""

    code = "BH-AGENT"
    fix = "See the agent's log; replication goes on from the newest complete point."


class StillError(MobilityError):
    """No still image could be had, so there is no recovery point this time."""

    code = "BH-STILL"
    fix = "The agent tries again at the next interval; until then the RPO grows."


class FreezeUnavailable(StillError):
    """File systems cannot be frozen here: {reason}."""

    code = "BH-FREEZE-UNAVAILABLE"
    fix = "Let the freezer run as root on a file system that can be frozen, or use another kind of still image."


class FreezeFailed(StillError):
    """Freezing {mount} failed: {reason}. Nothing is left frozen."""

    code = "BH-FREEZE-FAILED"
    fix = "If it was frozen already, find out by whom (`fsfreeze --unfreeze` thaws it); else see the kernel's log."


class FreezerLost(StillError):
    """The freezer ended or does not answer ({reason}), so the image was not still; what was frozen was thawed."""

    code = "BH-FREEZER-LOST"
    fix = "The agent starts it again at the next point. If it happens again, see what kills it (memory, a supervisor)."


class ThawRefused(StillError):
    """Thawing {mount} was refused: {reason}. It may be frozen still, and its writers wait."""

    code = "BH-THAW-REFUSED"
    fix = (
        "Run `fsfreeze --unfreeze` on it as root; if that fails as well, see the kernel's log and restart the machine."
    )


class FreezeHeld(StillError):
    """An earlier agent of this machine holds {mounts} frozen for a failback, so this one does not start freezing."""

    code = "BH-FREEZE-HELD"
    fix = "Finish the failback, or cancel it, which thaws; `fsfreeze --unfreeze` only if the other side never started."


class NotFreezable(StillError):
    """Disk {disk} holds no still image by freezing: {reason}."""

    code = "BH-NOT-FREEZABLE"
    fix = "Stop its writer, give the application a quiesce script, or put the data on a file system or snapshots."


class NotStopped(StillError):
    """{disk} is open for writing by {writers}, so it is not stopped."""

    code = "BH-NOT-STOPPED"
    fix = "Stop what has the disk open, unmount its file systems, and try again."


class StopUnproven(StillError):
    """That nobody has {disk} open for writing could not be proved: {reason}."""

    code = "BH-STOP-UNPROVEN"
    fix = "Run the agent as root in the machine's own process namespace, or as the owner of the disk's file."


class QuiesceFailed(StillError):
    """The application's {stage} script {script} ended with {status}: {output}"""

    code = "BH-QUIESCE-FAILED"
    fix = "Run the script by hand and mend it; no point is made from an application that was not quiesced."


class QuiesceTimedOut(StillError):
    """The application's {stage} script {script} was still running after {limit_s} s and was ended: {output}"""

    code = "BH-QUIESCE-TIMEOUT"
    fix = "Find out what the script waits for, or give it a longer limit that the application can bear."


class ImageNotStill(StillError):
    """The image did not stay still: {reason}. What was read is no recovery point."""

    code = "BH-IMAGE-NOT-STILL"
    fix = "Tried again by itself. If it happens often, less must be left to read: points more often, or a longer limit."


class TrackerError(MobilityError):
    """Which blocks changed could not be found."""

    code = "BH-TRACKER"
    fix = "The disks are compared by hashes; nothing that is not known is assumed unchanged."


class DiskChangedSize(TrackerError):
    """Disk {disk} has {now} bytes, but had {before} when it was attached."""

    code = "BH-DISK-CHANGED-SIZE"
    fix = "A grown disk is enlarged at the target and compared; a smaller one is a different disk: protect it anew."


class DiskReplaced(TrackerError):
    """Disk {disk} is now {now}, but was {before} when it was attached."""

    code = "BH-DISK-REPLACED"
    fix = "The agent attaches the disks anew and compares them; check that the path names the disk that is meant."


class TooMuchToStage(TrackerError):
    """More than {bound} bytes changed; they do not fit the memory set aside for reading a still image."""

    code = "BH-TOO-MUCH-TO-STAGE"
    fix = "The agent copies more ahead of time and tries again; if it never gets there, raise the bound or the limit."


class FreezeTooLong(TrackerError):
    """Hashing all disks takes {seconds} s at {rate_mb_s} MB/s, which does not fit the freeze limit of {limit_s} s."""

    code = "BH-FREEZE-TOO-LONG"
    fix = (
        "Use a tracker that knows the changed blocks, snapshots, or a stopped machine; `scan` cannot make points here."
    )


class TrackerStopped(TrackerError):
    """The search for changed blocks was stopped after {bytes_read} bytes."""

    code = "BH-TRACKER-STOPPED"
    fix = "Nothing to do: the agent is closing, or another job took over."


class MachineIdError(MobilityError):
    """Which machine this is could not be read."""

    code = "BH-MACHINE-ID"
    fix = "Replication waits: only the active machine may send."


class MachineIdUnknown(MachineIdError):
    """No source knows this machine's id; asked: {sources}."""

    code = "BH-MACHINE-ID-UNKNOWN"
    fix = "Let the agent read the hypervisor's UUID (as root), or set a metadata file or address for this site."


class MachineIdContradiction(MachineIdError):
    """The sources disagree about this machine's id: {claims}."""

    code = "BH-MACHINE-ID-CONTRADICTION"
    fix = "Remove the source that is wrong (an old metadata file on a copied disk?); until then nothing is sent."


class MetadataUnreadable(MachineIdError):
    """The metadata of {source} could not be read: {reason}."""

    code = "BH-METADATA-UNREADABLE"
    fix = "Check the file or address; the agent asks again by itself."


class OpeningUnanswered(MobilityError):
    """The target did not answer the opening of item {item}: {reason}."""

    code = "BH-OPENING-UNANSWERED"
    fix = "The agent asks again by itself; `backhaul doctor` finds where the way to the target is broken."


class TargetRefused(MobilityError):
    """The target refused item {item} at frame {number}: {reason_code} {params}."""

    code = "BH-TARGET-REFUSED"
    fix = "See the target's code; the agent opens a new stream by itself where that helps."


class DisksDiffer(MobilityError):
    """The disks of item {item} do not fit the target's: {reason}."""

    code = "BH-DISKS-DIFFER"
    fix = "Give the item's disks their new sizes at the target; then the agent opens a new stream."


class NoWayToStill(StillError):
    """Nothing in the item's plan makes its disks still, so it has no recovery points."""

    code = "BH-NO-WAY-TO-STILL"
    fix = "Allow freezing, give the application a quiesce script, or stop the machine."


class QuestionError(MobilityError):
    """A question of the configuration server about this machine's disks cannot be answered."""

    code = "BH-QUESTION"
    fix = "See the agent's log; what was asked for can be asked for again."


class GranuleKeyUnknown(QuestionError):
    """This agent does not have the key with which the replica of item {item} is hashed."""

    code = "BH-GRANULE-KEY-UNKNOWN"
    fix = "It learns the key when it replicates. Commit with --accept-integrity, by name, or cancel the move."


class QuestionUnknown(QuestionError):
    """This agent cannot be asked for {kind}."""

    code = "BH-QUESTION-UNKNOWN"
    fix = "Update the agent to the version of the configuration server."
