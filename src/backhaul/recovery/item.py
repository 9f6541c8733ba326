"""What is known of a replicated item, in words and as one value.

Invariant: an `ItemState` is changed by `states.step` only. Plain immutable values, used from every thread and task.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec


class Side(enum.StrEnum):
    """Where a copy of the machine is. Site Recovery calls them Primary and Recovery."""

    HOME = "home"
    CLOUD = "cloud"

    @property
    def other(self) -> Side:
        """The opposite side."""
        return Side.CLOUD if self is Side.HOME else Side.HOME


class State(enum.StrEnum):
    """Where a replicated item is on its way round: home -> cloud -> home."""

    DISCOVERED = "discovered"
    ENABLING = "enabling"
    INITIAL_REPLICATION = "initial-replication"
    PROTECTED = "protected"
    VERIFYING = "verifying"
    STANDBY = "standby"
    FINAL_DELTA = "final-delta"
    FENCING = "fencing"
    HELD = "held"
    FAILING_OVER = "failing-over"
    FAILED_OVER = "failed-over"
    CHANGING_POINT = "changing-point"
    CANCELING_FAILOVER = "canceling-failover"
    COMMITTING_FAILOVER = "committing-failover"
    FAILED_OVER_COMMITTED = "failed-over-committed"
    REPROTECTING = "reprotecting"
    CANCELING_REPROTECT = "canceling-reprotect"
    PROTECTED_TO_HOME = "protected-to-home"
    VERIFYING_TO_HOME = "verifying-to-home"
    STANDBY_TO_HOME = "standby-to-home"
    FAILBACK_FINAL_DELTA = "failback-final-delta"
    FAILBACK_FENCING = "failback-fencing"
    FAILBACK_HELD = "failback-held"
    FAILING_BACK = "failing-back"
    FAILED_BACK = "failed-back"
    FAILBACK_CHANGING_POINT = "failback-changing-point"
    CANCELING_FAILBACK = "canceling-failback"
    COMMITTING_FAILBACK = "committing-failback"
    FAILED_BACK_COMMITTED = "failed-back-committed"
    REPROTECTING_TO_CLOUD = "reprotecting-to-cloud"
    CANCELING_REPROTECT_TO_CLOUD = "canceling-reprotect-to-cloud"
    DISABLING = "disabling"
    DISABLED = "disabled"


class Operation(enum.StrEnum):
    """What Site Recovery's API may allow: the values of `allowedOperations`."""

    REVERSE_REPLICATE = "ReverseReplicate"
    COMMIT = "Commit"
    PLANNED_FAILOVER = "PlannedFailover"
    UNPLANNED_FAILOVER = "UnplannedFailover"
    DISABLE_PROTECTION = "DisableProtection"
    TEST_FAILOVER = "TestFailover"
    TEST_FAILOVER_CLEANUP = "TestFailoverCleanup"
    FAILBACK = "Failback"
    FINALIZE_FAILBACK = "FinalizeFailback"
    CHANGE_PIT = "ChangePit"
    REPAIR_REPLICATION = "RepairReplication"
    SWITCH_PROTECTION = "SwitchProtection"
    COMPLETE_MIGRATION = "CompleteMigration"
    CANCEL_FAILOVER = "CancelFailover"


class Action(enum.StrEnum):
    """Our own actions, which Site Recovery's enumeration cannot say; the last three are given by name."""

    PROTECT = "protect"
    REPROTECT_WITHOUT_CANCEL = "reprotect-without-cancel"
    ACCEPT_INTEGRITY = "accept-integrity"
    REBIND = "rebind"


class Report(enum.StrEnum):
    """What jobs, agents, targets and sites report."""

    AGENT_READY = "agent-ready"
    FIRST_POINT = "first-point"
    CONTINUITY_LOST = "continuity-lost"
    COMPARED = "compared"
    POINTS_VOID = "points-void"
    COPY_FOUND = "copy-found"
    ACTIVE_RETURNED = "active-returned"
    RESYNC_NEEDED = "resync-needed"
    THAWED = "thawed"
    FINAL_STORED = "final-stored"
    OFF_CONFIRMED = "off-confirmed"
    OFF_UNCONFIRMED = "off-unconfirmed"
    STARTED = "started"
    POINT_REACHED = "point-reached"
    INTEGRITY_PASSED = "integrity-passed"
    INTEGRITY_FAILED = "integrity-failed"
    COMMITTED = "committed"
    CANCELED = "canceled"
    PROTECTION_ENDED = "protection-ended"


Event = Operation | Action | Report


class Integrity(enum.StrEnum):
    """Integrity report of the last planned move; commit waits for it."""

    NONE = "none"
    PENDING = "pending"
    PASSED = "passed"
    FAILED = "failed"
    ACCEPTED = "accepted"
    """The operator said by name that commit need not wait for it."""


NOBODY_RUNS: Final = frozenset(
    {
        State.FENCING, State.HELD, State.CHANGING_POINT, State.CANCELING_FAILOVER,
        State.FAILBACK_FENCING, State.FAILBACK_HELD, State.FAILBACK_CHANGING_POINT, State.CANCELING_FAILBACK,
    }
)  # fmt: skip
"""The source is held or being stopped, or a layer is being dropped: starting anything now would fork the machine."""

CLOUD_ACTIVE: Final = frozenset(
    {
        State.FAILING_OVER, State.FAILED_OVER, State.CHANGING_POINT, State.COMMITTING_FAILOVER,
        State.FAILED_OVER_COMMITTED, State.REPROTECTING, State.CANCELING_REPROTECT, State.PROTECTED_TO_HOME,
        State.VERIFYING_TO_HOME, State.STANDBY_TO_HOME, State.FAILBACK_FINAL_DELTA, State.FAILBACK_FENCING,
        State.FAILBACK_HELD, State.CANCELING_FAILBACK,
    }
)  # fmt: skip
"""States in which the cloud is authoritative; home is in all others, but those of `ENDED`, which may be either."""

ENDED: Final = frozenset({State.DISABLING, State.DISABLED})

AT_HOME_ALONE: Final = frozenset({State.FAILED_BACK_COMMITTED, State.DISABLED})
"""Home runs, nothing is replicated, and there is nothing to go back to: no process server is needed any more."""

MEANING: Final[dict[State, str]] = {
    State.DISCOVERED: "The machine is known and could be protected.",
    State.ENABLING: "The agent is being enrolled and the target prepared.",
    State.INITIAL_REPLICATION: "Disks are compared with the cloud and copied; there is no recovery point yet.",
    State.PROTECTED: "Home runs and replicates to the cloud.",
    State.VERIFYING: "As protected, but all disks are compared; older points exist, new ones when it has ended.",
    State.STANDBY: "Only a copy of the machine asks to replicate; it sends nothing until the active one returns.",
    State.FINAL_DELTA: "Planned failover: the last changes are sent while home is stopped or frozen.",
    State.FENCING: "The final point is stored; home is powered off, and that is read back.",
    State.HELD: "Nobody confirmed home is off. Try again, cancel, or declare it gone by name (UnplannedFailover).",
    State.FAILING_OVER: "The machine is being started in the cloud.",
    State.FAILED_OVER: "The cloud runs; home is kept as it was until the commit.",
    State.CHANGING_POINT: "The cloud machine goes to another recovery point.",
    State.CANCELING_FAILOVER: "The cloud's layer is dropped; home goes on from exactly the state it had.",
    State.COMMITTING_FAILOVER: "The cloud's layer becomes the machine's own disks; the old side is not kept.",
    State.FAILED_OVER_COMMITTED: "The cloud runs; nothing is replicated.",
    State.REPROTECTING: "Home's old disks are compared with the cloud and updated; home before reprotect is pinned.",
    State.CANCELING_REPROTECT: "Home's disks go back to what they were before the reprotect.",
    State.PROTECTED_TO_HOME: "The cloud runs and replicates home.",
    State.VERIFYING_TO_HOME: "As protected to home, but all disks are compared.",
    State.STANDBY_TO_HOME: "As standby, towards home.",
    State.FAILBACK_FINAL_DELTA: "Failback: the last changes are sent while the cloud machine is stopped or frozen.",
    State.FAILBACK_FENCING: "The final point is stored; the cloud machine is powered off, and that is read back.",
    State.FAILBACK_HELD: "Nobody confirmed that the cloud machine is off. Try again, cancel, or declare it gone.",
    State.FAILING_BACK: "The machine is being started at home.",
    State.FAILED_BACK: "Home runs; the cloud machine is kept as it was until the commit.",
    State.FAILBACK_CHANGING_POINT: "The home machine goes to another recovery point.",
    State.CANCELING_FAILBACK: "Home's layer is dropped; the cloud goes on from exactly the state it had.",
    State.COMMITTING_FAILBACK: "Home's layer becomes the machine's own disks; the cloud machine is removed.",
    State.FAILED_BACK_COMMITTED: "Home runs; nothing is replicated.",
    State.REPROTECTING_TO_CLOUD: "The cloud's old disks are compared with home and updated.",
    State.CANCELING_REPROTECT_TO_CLOUD: "The cloud's disks go back to what they were before.",
    State.DISABLING: "Replica and recovery points are being removed.",
    State.DISABLED: "The protection has ended; nothing is kept of it.",
}
"""What each state is, for views and documents."""


class ItemState(msgspec.Struct, frozen=True):
    """All that the rules know of an item; stored as one value.

    generation        rises with every change of side, cancel included; part of the fence
    active_side       the side that is authoritative
    old_side_kept     a change of side is open: the old side still starts from exactly the state it had
    before            what cancel returns to; at most two deep (failback over reprotect)
    resync_required   overlay: the replica may differ where no block set says so
    """

    state: State = State.DISCOVERED
    generation: int = 1
    active_side: Side = Side.HOME
    old_side_kept: bool = False
    integrity: Integrity = Integrity.NONE
    before: ItemState | None = None
    resync_required: bool = False

    @property
    def may_run(self) -> Side | None:
        """The only side whose machine may be started or thawed now; None: neither, until the job in hand ends."""
        return None if self.state in NOBODY_RUNS else self.active_side
