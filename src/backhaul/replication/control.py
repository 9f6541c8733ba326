"""What the control plane and the data plane say to each other: desired state one way, reports the other.

Control decides who replicates what through whom under which fence; the data plane moves blocks, reports, and goes
on when control is away. Servers are asked with REQUEST messages over a data link (`messages.Request`, method names
in `Method`); agents fetch their `Assignment` and post `AgentReport`s over HTTPS with their certificate. Pure values,
JSON or MessagePack by `msgspec`.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from backhaul.replication.values import (
    CompletePoint,
    Consistency,
    DiskIdentity,
    Fence,
    ItemDescriptor,
    ItemId,
    ItemPolicy,
    StillKind,
)


class Method(enum.StrEnum):
    """Control requests; the comment names parameters and result.

    A target's `item.*` requests are idempotent: asked again they answer what is, and change nothing twice.
    """

    STATUS = "status"  # {} -> ServerStatus
    TARGET_KEY = "target.key"  # {} -> {"key": bytes}: the signed sealing key (opening.TargetKey)
    ITEM_CREATE = "item.create"  # CreateItem -> ItemStatus
    ITEM_RAISE = "item.raise"  # {"descriptor": bytes} -> ItemStatus; also new policy, sizes, active machine
    ITEM_STATUS = "item.status"  # {"item"} -> ItemStatus
    ITEM_LIST = "item.list"  # {} -> [ItemStatus]
    ITEM_POINTS = "item.points"  # {"item"} -> [PointStatus], oldest first
    ITEM_PROMOTE = "item.promote"  # {"descriptor": bytes (generation + 1)} -> ItemStatus; undoes the started epoch
    ITEM_GO_TO = "item.go_to"  # {"item", "point"} -> ItemStatus
    ITEM_PIN = "item.pin"  # {"item", "name", "point" or None} -> ItemStatus
    ITEM_RELEASE = "item.release"  # {"item", "name"} -> ItemStatus
    ITEM_HAND_OUT = "item.hand_out"  # {"item"} -> ItemStatus: its disks will be written by somebody else
    ITEM_VERIFY = "item.verify"  # {"descriptor": bytes (generation + 1)} -> ItemStatus: its maps are read back anew
    ITEM_DELETE = "item.delete"  # {"item", "keep_disks": bool} -> {}
    ITEM_DIGESTS = "item.digests"
    # {"item", "disk", "first", "count", "reread": bool} -> {"digests": [bytes], "lineage": bytes}; the first of those
    # that were asked for, one at least: a request reads so much and no more


class CreateItem(msgspec.Struct, frozen=True):
    """A replica to be made. `paths` names an existing disk per index, or None for a new sparse file."""

    descriptor: bytes
    paths: tuple[str | None, ...]


class PointStatus(msgspec.Struct, frozen=True):
    """A recovery point, as a target reports it. Times in nanoseconds since 1970 UTC."""

    number: int
    barrier_ns: int
    kind: StillKind
    consistency: Consistency
    label: str
    final: bool
    frozen_us: int
    completed_ns: int
    bytes: int


class DiskPath(msgspec.Struct, frozen=True):
    """Where a replica disk lies at its target."""

    index: int
    path: str
    size: int


class ItemStatus(msgspec.Struct, frozen=True):
    """What a target knows of an item: it is the authority over all of it."""

    item: ItemId
    descriptor: ItemDescriptor
    fence: Fence
    stream_open: bool
    applied: int
    complete: CompletePoint | None
    newest_point: PointStatus | None
    points: int
    pins: dict[str, int]
    promoted: bool
    final: bool
    started_epoch: bool
    journal_bytes: int
    journal_limit_bytes: int
    waiting: str
    """Code of the reason for which nothing is applied at the moment; empty when all is well."""
    findings: tuple[dict[str, Any], ...]
    disks: tuple[DiskPath, ...]


class ServerStatus(msgspec.Struct, frozen=True):
    """Health of a process server or master target; sizes in bytes, loads in percent."""

    role: str
    id: str
    name: str
    version: str
    started_ns: int
    now_ns: int
    cpu_percent: float
    memory_total: int
    memory_available: int
    space_total: int
    space_free: int
    backlog_bytes: int
    backlog_oldest_s: float
    in_bytes_per_s: float
    out_bytes_per_s: float
    items: tuple[str, ...]
    peers: tuple[str, ...]
    certificate_not_after_ns: int
    details: dict[str, Any] = {}


class AgentMode(enum.StrEnum):
    """What an agent is to do for an item."""

    REPLICATE = "replicate"
    FINAL = "final"
    """Make a final point: still image with the limit of the final delta, EpochEnd.final, then hold."""
    STANDBY = "standby"
    """Send nothing: another machine is active, or the item is paused."""


class SourceDisk(msgspec.Struct, frozen=True):
    """A disk to be replicated: what it is, and where the agent finds it on this machine."""

    identity: DiskIdentity
    path: str


class StillImagePlan(msgspec.Struct, frozen=True):
    """How points are made on this machine; the first that is possible at the time is used.

    stopped    nobody has the disks open for writing
    pre, post  the application's quiesce script, a command with its arguments each; empty: none
    freeze     every file system on the disks is frozen (within the script, if there is one)
    script_limit_s, quiesce_limit_s
               how long a script may run; after how long the application resumes by itself
    """

    stopped: bool = True
    pre: tuple[str, ...] = ()
    post: tuple[str, ...] = ()
    freeze: bool = False
    script_limit_s: float = 10.0
    quiesce_limit_s: float = 30.0


class ItemAssignment(msgspec.Struct, frozen=True):
    """One item an agent replicates. `process_servers`: addresses `host:port` of the one it uses, all to be tried.

    compare     what was known of the replica before this generation does not count: all disks are compared
    source_off  with FINAL: the machine's site was told to power it off and has read back that it is, before this
    """

    item: ItemId
    term: int
    generation: int
    mode: AgentMode
    target_key: bytes
    process_server: str
    process_server_addresses: tuple[str, ...]
    disks: tuple[SourceDisk, ...]
    still: StillImagePlan
    policy: ItemPolicy
    compare: bool = False
    source_off: bool = False


class QuestionKind(enum.StrEnum):
    """What an agent is asked about disks. A kind it does not know it answers with a code, like any other failure."""

    DIGESTS = "digests"
    """Digests of ranges of 16 MiB of disks that nobody writes, under the item's granule key: of the first of those that
    are asked for, one at least, as a question reads so much and no more."""
    EXTENTS = "extents"
    """Where disks hold data, in granules: what an estimate draws its sample from."""
    SAMPLE = "sample"
    """Hashes of single granules under the question's own key, and how fast they were read."""
    LINK = "link"
    """How fast bytes reach the configuration server, on the way that replication's go too."""


class DiskQuestion(msgspec.Struct, frozen=True):
    """One disk of a question, and where the agent finds it: `count` ranges from `first` on, or single granules."""

    index: int
    path: str
    first: int = 0
    count: int = 0
    granules: tuple[int, ...] = ()


class Question(msgspec.Struct, frozen=True):
    """What the configuration server wants to know of an agent now; it is gone from the assignment once answered.

    kind     a QuestionKind; a string, so that a newer server's questions do not break an older agent's assignment
    machine  the one machine that may answer: copies of it have other disks
    lineage  of the granule key that both sides' digests are made with; empty: unknown
    reread   the disks themselves, whatever the agent's maps say
    machine_off  the machine's site read back that it is off, just before
    key      SAMPLE: a key of the server's own, used once
    """

    id: str
    item: ItemId
    kind: str
    machine: str
    disks: tuple[DiskQuestion, ...] = ()
    lineage: bytes = b""
    reread: bool = True
    key: bytes = b""
    machine_off: bool = False


class DiskAnswer(msgspec.Struct, frozen=True):
    """Of one disk: its size, digests or hashes in the order asked for, or runs of granules (first, count)."""

    index: int
    size: int = 0
    digests: tuple[bytes, ...] = ()
    runs: tuple[tuple[int, int], ...] = ()
    wire_ratio: float = 1.0


class Answer(msgspec.Struct, frozen=True):
    """To one question. `code`, `params`: why there is none; empty for an answer. `rates`: bytes/s as measured."""

    id: str
    code: str = ""
    params: dict[str, Any] = {}
    disks: tuple[DiskAnswer, ...] = ()
    rates: tuple[float, ...] = ()


class Assignment(msgspec.Struct, frozen=True):
    """Desired state of one agent. `revision` rises with every change; a fetch may wait for the next one."""

    revision: int
    machine: str
    items: tuple[ItemAssignment, ...]
    questions: tuple[Question, ...] = ()


class DiskProgress(msgspec.Struct, frozen=True):
    """Comparing or sending one disk, in bytes."""

    index: int
    compared: int
    differing: int
    sent: int
    total: int


class ItemReport(msgspec.Struct, frozen=True):
    """What an agent knows of an item.

    state          waiting, opening, verifying, replicating, final, held, standby, failed
    newest_point   barrier of the newest epoch the target reported COMPLETE, nanoseconds; 0: none
    sent_bytes     sealed bytes given to the link since the agent started
    code, params   error that stops the item's points; code empty for none
    held_frozen    the target has the final point, and the disks stay frozen until the machine is off, or a cancel
    """

    item: ItemId
    fence: Fence | None
    state: str
    tracker: str
    disks: tuple[DiskProgress, ...]
    newest_point_ns: int
    newest_epoch: int
    sent_bytes: int
    unspooled_bytes: int
    frozen_us: int
    code: str
    params: dict[str, Any]
    held_frozen: bool = False


class AgentReport(msgspec.Struct, frozen=True):
    """Heartbeat of an agent. `answers_questions`: false for agents of before there were any."""

    agent: str
    machine: str
    version: str
    now_ns: int
    revision: int
    items: tuple[ItemReport, ...]
    answers: tuple[Answer, ...] = ()
    answers_questions: bool = False
