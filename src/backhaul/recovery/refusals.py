"""Why an operation is not possible right now, for every state and every operation.

Invariant: for each item and each event either `TABLE` has a row and no guard objects, or `refusal` gives a reason
with a code and what to do. Called by `states.step` before it moves, and by every view that shows an operation which
cannot be used.
"""

from __future__ import annotations

import enum
from typing import Final

from backhaul.recovery.errors import Reason
from backhaul.recovery.item import ENDED, Action, Event, Integrity, ItemState, Operation, Report, State
from backhaul.recovery.table import TABLE


class Phase(enum.Enum):
    """States that refuse for the same reasons."""

    NEW = enum.auto()
    COPYING = enum.auto()
    PROTECTED = enum.auto()
    VERIFYING = enum.auto()
    STANDBY = enum.auto()
    MOVING = enum.auto()
    HELD = enum.auto()
    UNCOMMITTED = enum.auto()
    COMMITTING = enum.auto()
    COMMITTED = enum.auto()
    CANCELING = enum.auto()
    ENDED = enum.auto()


_S = State
PHASES: Final[dict[State, Phase]] = {
    state: phase
    for phase, states in {
        Phase.NEW: (_S.DISCOVERED, _S.ENABLING),
        Phase.COPYING: (_S.INITIAL_REPLICATION, _S.REPROTECTING, _S.REPROTECTING_TO_CLOUD),
        Phase.PROTECTED: (_S.PROTECTED, _S.PROTECTED_TO_HOME),
        Phase.VERIFYING: (_S.VERIFYING, _S.VERIFYING_TO_HOME),
        Phase.STANDBY: (_S.STANDBY, _S.STANDBY_TO_HOME),
        Phase.MOVING: (
            _S.FINAL_DELTA, _S.FENCING, _S.FAILING_OVER, _S.CHANGING_POINT,
            _S.FAILBACK_FINAL_DELTA, _S.FAILBACK_FENCING, _S.FAILING_BACK, _S.FAILBACK_CHANGING_POINT,
        ),
        Phase.HELD: (_S.HELD, _S.FAILBACK_HELD),
        Phase.UNCOMMITTED: (_S.FAILED_OVER, _S.FAILED_BACK),
        Phase.COMMITTING: (_S.COMMITTING_FAILOVER, _S.COMMITTING_FAILBACK),
        Phase.COMMITTED: (_S.FAILED_OVER_COMMITTED, _S.FAILED_BACK_COMMITTED),
        Phase.CANCELING: (
            _S.CANCELING_FAILOVER, _S.CANCELING_FAILBACK, _S.CANCELING_REPROTECT, _S.CANCELING_REPROTECT_TO_CLOUD,
        ),
        Phase.ENDED: tuple(ENDED),
    }.items()
    for state in states
}  # fmt: skip

REASONS: Final[dict[str, Reason]] = {}


def _reason(code: str, text: str, fix: str) -> Reason:
    reason = REASONS[code] = Reason(code, text, fix)
    return reason


NOT_PROTECTED = _reason(
    "BH-REFUSED-NOT-PROTECTED",
    "the machine is not protected yet, so there is nothing of it on the other side",
    "Protect it with `backhaul item protect` and wait for its first recovery point.",
)
NO_POINT = _reason(
    "BH-REFUSED-NO-POINT",
    "the disks are still being compared and copied, so there is no recovery point yet",
    "Wait for the first recovery point; `backhaul item show` gives the bytes and the time left.",
)
VERIFYING = _reason(
    "BH-REFUSED-VERIFYING",
    "all disks are being compared because the changes since the newest recovery point are not known",
    "Wait until comparing has ended; an unplanned failover to an older point is possible now.",
)
ONLY_A_COPY = _reason(
    "BH-REFUSED-ONLY-A-COPY",
    "the machine that asks to replicate is a copy: its id is not that of the active machine, so it stands by",
    "Start the active machine again; if its id rightly changed, confirm it with `backhaul item rebind`.",
)
RUNNING = _reason(
    "BH-REFUSED-RUNNING",
    "a failover or failback of this item is running",
    "Wait for its job to end (`backhaul job watch`), or cancel it with `backhaul item cancel`.",
)
HELD = _reason(
    "BH-REFUSED-HELD",
    "the source is held and nobody has confirmed that it is off, so neither side may run",
    "Try the same move again, cancel it, or declare the source gone by name (unplanned failover).",
)
CANCELING = _reason(
    "BH-REFUSED-CANCELING",
    "the item is being brought back to the state before",
    "Wait for the cancel to end (`backhaul job watch`).",
)
COMMITTING = _reason(
    "BH-REFUSED-COMMITTING",
    "a commit is running; the old side is not kept any longer",
    "Wait for the commit to end, then reprotect the item.",
)
COMMIT_FIRST = _reason(
    "BH-REFUSED-COMMIT-FIRST",
    "the last move is not committed, and this would destroy the side that cancel returns to",
    "Commit it with `backhaul item commit`, or cancel it with `backhaul item cancel`.",
)
REPROTECT_FIRST = _reason(
    "BH-REFUSED-REPROTECT-FIRST",
    "the item is not replicated: the other side has no recovery point to start from",
    "Reprotect it with `backhaul item reprotect` and wait for its first recovery point.",
)
NOT_FAILED_OVER = _reason(
    "BH-REFUSED-NOT-FAILED-OVER",
    "the machine runs on its own side: it was not failed over",
    "Fail it over first with `backhaul item failover`.",
)
NOTHING_TO_COMMIT = _reason(
    "BH-REFUSED-NOTHING-TO-COMMIT",
    "no failover or failback waits for a commit",
    "Nothing to do; fail over or fail back first.",
)
NOTHING_TO_CANCEL = _reason(
    "BH-REFUSED-NOTHING-TO-CANCEL",
    "no failover, failback or reprotect is under way",
    "Nothing to do; to stop replicating, use `backhaul item unprotect`.",
)
COMMITTED = _reason(
    "BH-REFUSED-COMMITTED",
    "the last move is committed: the old side is not kept any longer",
    "Go the other way round: reprotect the item, then fail it back.",
)
CANCEL_GIVEN_UP = _reason(
    "BH-REFUSED-CANCEL-GIVEN-UP",
    "there is nothing to return to: cancel was given up by name, or the point it needs was lost",
    "Let the reprotect end, or end the protection with `backhaul item unprotect`.",
)
POINT_FIXED = _reason(
    "BH-REFUSED-POINT-FIXED",
    "a recovery point is chosen or changed between failover and commit only",
    "Choose the point when the item is failed over; until the commit it can be changed.",
)
COMPARING = _reason(
    "BH-REFUSED-COMPARING",
    "the disks are being compared already",
    "Wait until comparing has ended; `backhaul item show` gives the bytes and the time left.",
)
RESYNC_FIRST = _reason(
    "BH-REFUSED-RESYNC-FIRST",
    "a resync is required: a final delta would not hold every change",
    "Run `backhaul item resync` first; an unplanned failover to an existing point is possible now.",
)
NOT_IN_THIS_VERSION = _reason(
    "BH-REFUSED-NOT-IN-THIS-VERSION",
    "test failovers need a view of a recovery point, which this version does not make",
    "Nothing to do. What a real failover would need is shown by `backhaul item failover --dry-run`.",
)
INTEGRITY_PENDING = _reason(
    "BH-REFUSED-INTEGRITY-PENDING",
    "the integrity report of the move is not complete, and commit would remove what it is compared with",
    "Commit it again when the agent beside the stopped machine answers; or say by name that commit need not wait.",
)
INTEGRITY_FAILED = _reason(
    "BH-REFUSED-INTEGRITY-FAILED",
    "the integrity report found blocks that differ between the two sides",
    "Cancel the move, resync and try again; or accept the difference by name.",
)
USE_COMMIT = _reason(
    "BH-REFUSED-USE-COMMIT",
    "a failback of this kind of item is finished by committing it",
    "Use Commit.",
)
USE_REPROTECT = _reason(
    "BH-REFUSED-USE-REPROTECT",
    "this kind of item changes its direction by reprotecting it",
    "Use ReverseReplicate; to move it to another process server, use `backhaul process-server switch`.",
)
ENDED_REASON = _reason(
    "BH-REFUSED-ENDED",
    "the protection of this item has ended",
    "Protect the machine anew; it becomes a new item.",
)
ALREADY = _reason(
    "BH-REFUSED-ALREADY",
    "the item is protected already",
    "Nothing to do.",
)
REPROTECTED = _reason(
    "BH-REFUSED-REPROTECTED",
    "the machine is being protected towards home again, so it has not migrated",
    "Cancel the reprotect first with `backhaul item cancel`, or use `backhaul item unprotect`.",
)
NOTHING_TO_CONFIRM = _reason(
    "BH-REFUSED-NOTHING-TO-CONFIRM",
    "nothing of this item waits for such a confirmation",
    "Nothing to do; see `backhaul item show`.",
)
STALE_REPORT = _reason(
    "BH-REFUSED-STALE-REPORT",
    "this report belongs to an earlier step of the item and changes nothing now",
    "Nothing to do. If it happens again, an old job, agent or server is still running: see `backhaul doctor`.",
)

_O, _A, _P = Operation, Action, Phase
_BUSY: Final = {
    _P.MOVING: RUNNING, _P.HELD: HELD, _P.CANCELING: CANCELING, _P.COMMITTING: COMMITTING, _P.ENDED: ENDED_REASON,
}  # fmt: skip
_TO_POINT: Final = {
    _P.NEW: NOT_PROTECTED, _P.COPYING: NO_POINT, _P.VERIFYING: VERIFYING, _P.STANDBY: ONLY_A_COPY,
    _P.PROTECTED: NOT_FAILED_OVER, _P.UNCOMMITTED: COMMIT_FIRST, _P.COMMITTED: REPROTECT_FIRST,
}  # fmt: skip
_REPLICATING: Final = (_P.COPYING, _P.PROTECTED, _P.VERIFYING, _P.STANDBY)
_NOT_AWAY: Final = {_P.NEW: NOT_PROTECTED} | dict.fromkeys((*_REPLICATING, _P.COMMITTED), NOT_FAILED_OVER)
_NO_COMMIT: Final = dict.fromkeys((_P.NEW, *_REPLICATING, _P.COMMITTED), NOTHING_TO_COMMIT)

_REFUSED: Final[dict[Event, dict[Phase, Reason]]] = {
    _O.REVERSE_REPLICATE: _BUSY | _NOT_AWAY | {_P.UNCOMMITTED: COMMIT_FIRST},
    _O.COMMIT: _BUSY | _NO_COMMIT,
    _O.PLANNED_FAILOVER: _BUSY | _TO_POINT,
    _O.UNPLANNED_FAILOVER: _BUSY | _TO_POINT,
    _O.FAILBACK: _BUSY | _TO_POINT,
    _O.TEST_FAILOVER: dict.fromkeys(Phase, NOT_IN_THIS_VERSION),
    _O.TEST_FAILOVER_CLEANUP: dict.fromkeys(Phase, NOT_IN_THIS_VERSION),
    _O.DISABLE_PROTECTION: _BUSY | {_P.UNCOMMITTED: COMMIT_FIRST},
    _O.FINALIZE_FAILBACK: dict.fromkeys(Phase, USE_COMMIT) | {_P.ENDED: ENDED_REASON},
    _O.SWITCH_PROTECTION: dict.fromkeys(Phase, USE_REPROTECT) | {_P.ENDED: ENDED_REASON},
    _O.CHANGE_PIT: _BUSY | dict.fromkeys((_P.NEW, *_REPLICATING, _P.COMMITTED), POINT_FIXED),
    _O.REPAIR_REPLICATION: _BUSY
    | {_P.NEW: NOT_PROTECTED, _P.COPYING: COMPARING, _P.STANDBY: ONLY_A_COPY}
    | {_P.UNCOMMITTED: COMMIT_FIRST, _P.COMMITTED: REPROTECT_FIRST},
    _O.COMPLETE_MIGRATION: _BUSY | _NOT_AWAY | {_P.UNCOMMITTED: COMMIT_FIRST},
    _O.CANCEL_FAILOVER: _BUSY
    | dict.fromkeys((_P.NEW, *_REPLICATING), NOTHING_TO_CANCEL)
    | {_P.COMMITTED: COMMITTED, _P.COMMITTING: COMMITTED},
    _A.PROTECT: dict.fromkeys(Phase, ALREADY) | {_P.ENDED: ENDED_REASON},
    _A.REPROTECT_WITHOUT_CANCEL: _BUSY | _NOT_AWAY | {_P.UNCOMMITTED: COMMIT_FIRST},
    _A.ACCEPT_INTEGRITY: dict.fromkeys(Phase, NOTHING_TO_CONFIRM),
    _A.REBIND: dict.fromkeys(Phase, NOTHING_TO_CONFIRM),
}

_RESTING: Final = frozenset({_S.PROTECTED, _S.PROTECTED_TO_HOME})
_AFTER_FAILOVER: Final = frozenset({_S.REPROTECTING, _S.PROTECTED_TO_HOME, _S.VERIFYING_TO_HOME, _S.STANDBY_TO_HOME})


def refusal(item: ItemState, event: Event) -> Reason | None:
    """Why `event` is not possible for the item now; None when it is."""
    if (item.state, event) in TABLE:
        return _guard(item, event)
    if isinstance(event, Report):
        return STALE_REPORT
    if event is Operation.COMPLETE_MIGRATION and item.state in _AFTER_FAILOVER:
        return REPROTECTED
    return _REFUSED[event][PHASES[item.state]]


def _guard(item: ItemState, event: Event) -> Reason | None:
    """What speaks against a row of the table: overlays, the integrity report, nothing to return to."""
    match event:
        case Operation.COMMIT:
            return _integrity_guard(item)
        case Operation.PLANNED_FAILOVER | Operation.FAILBACK if item.resync_required and item.state in _RESTING:
            return RESYNC_FIRST
        case Operation.CANCEL_FAILOVER if item.before is None:
            return CANCEL_GIVEN_UP
        case Action.ACCEPT_INTEGRITY if item.integrity not in (Integrity.PENDING, Integrity.FAILED):
            return NOTHING_TO_CONFIRM
        case Report.INTEGRITY_PASSED | Report.INTEGRITY_FAILED if item.integrity is not Integrity.PENDING:
            return STALE_REPORT
        case _:
            return None


def _integrity_guard(item: ItemState) -> Reason | None:
    return {Integrity.PENDING: INTEGRITY_PENDING, Integrity.FAILED: INTEGRITY_FAILED}.get(item.integrity)


def allowed_operations(item: ItemState) -> tuple[Operation, ...]:
    """Site Recovery's `allowedOperations`, in the order of its enumeration."""
    return tuple(operation for operation in Operation if refusal(item, operation) is None)


def allowed_actions(item: ItemState) -> tuple[Action, ...]:
    """Our own actions that are possible now."""
    return tuple(action for action in Action if refusal(item, action) is None)


def refused_operations(item: ItemState) -> dict[Operation, Reason]:
    """Every operation that is not possible now, with its reason."""
    reasons = {operation: refusal(item, operation) for operation in Operation}
    return {operation: reason for operation, reason in reasons.items() if reason is not None}
