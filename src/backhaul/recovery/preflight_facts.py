"""Plain facts about an item and a process server, as preflight needs them.

Every fact must be given: a default would let a forgotten one pass. Gathered by the configuration server from sites,
targets and heartbeats just before a job, and once an hour for the way home, from the first day of protection.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from backhaul.recovery.item import Action, ItemState, Operation

Version = tuple[int, int, int]


def text_of(version: Version) -> str:
    """As people write it."""
    return ".".join(map(str, version))


class Health(enum.StrEnum):
    """Health of a server or an item, as Site Recovery names it."""

    HEALTHY = "Healthy"
    WARNING = "Warning"
    CRITICAL = "Critical"
    UNKNOWN = "Unknown"


USABLE: Final = frozenset({Health.HEALTHY, Health.WARNING})
"""A server in this health may be chosen."""


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A process server or master target. `disks_attached`: master targets only, 0 otherwise."""

    name: str
    network: str
    health: Health
    answers: bool
    version: Version
    disks_attached: int = 0
    disks_most: int = 64


class DiskFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A protected disk and its replica. `replica_bytes` None: there is none yet."""

    name: str
    source_bytes: int
    replica_bytes: int | None
    shared: bool = False


class MachineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The active machine and its agent.

    site_answers       so does its site's management API; also where the operation wants nothing of that site
    is_active_machine  its id, as hypervisor or cloud reports it, is the descriptor's; also when nothing runs
    can_be_still       it can be stopped and read from outside, or frozen and held
    """

    site_answers: bool
    running: bool
    answers: bool
    is_active_machine: bool
    agent_registered: bool
    agent_answers: bool
    agent_version: Version
    can_be_still: bool


class SideFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The side on which the machine shall run, and its writable layer.

    machine_exists  the machine is known there; otherwise it is made anew
    layer_bytes     what the layer takes at once: 0 for a reflink or snapshot, the disks' size for a copy
    """

    reachable: bool
    may_start: bool
    machine_exists: bool
    layer_bytes: int
    free_bytes: int


class ItemFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one item before one operation.

    network            virtual network of the active machine; empty at home
    process_servers    all that serve this network
    process_server     the one that is chosen, or in use and stays so; empty: any healthy one
    broken_rung        first rung of the way source -> process server -> target that is broken; empty: it is whole
    other_side_off     the site has read back that the machine of the other side is off
    replica_free_bytes space for disks that are made for the replica; None: nobody keeps a count of it
    journal_*          the target's undo journal, and the upper estimate of what the operation puts into it
    points             numbers of the points that could be failed over to
    point              the chosen one; None: the newest
    newest_age_s       RPO; None: there is no point
    integrity_proved   the last planned move has a passed integrity report
    undo_kept          a reprotect can be undone: what the old disks held is pinned, or was not changed yet
    replica_kept       a move can be undone at the replica, too: what it held before is pinned, or was not changed yet
    named_machine_known  the machine that a rebind names is one of the site's; also when none is named
    """

    item: ItemState
    operation: Operation | Action
    network: str
    machine: MachineFacts
    other_side: SideFacts
    other_side_off: bool
    process_servers: tuple[ServerFacts, ...]
    process_server: str
    master_target: ServerFacts | None
    configuration_server_version: Version
    broken_rung: str
    disks: tuple[DiskFacts, ...]
    replica_free_bytes: int | None
    journal_free_bytes: int
    journal_needed_bytes: int
    cancel_given_up: bool
    points: tuple[int, ...]
    point: int | None
    newest_age_s: float | None
    rpo_threshold_s: float
    integrity_proved: bool
    undo_kept: bool
    replica_kept: bool
    named_machine_known: bool


class DeleteFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A process server before it is deleted.

    items           that replicate through it, or have no other way home
    spool_bytes     not forwarded yet
    built_in        came with a configuration server
    other_servers   process servers that stay in its network
    failed_over     machines in its network that were failed over and are not committed home
    """

    name: str
    network: str
    items: tuple[str, ...]
    spool_bytes: int
    built_in: bool
    caller_may_delete: bool
    other_servers: int
    failed_over: int
