"""The state machine of a replicated item: the step, and the front door to its table.

Invariants, tested over random walks: at most one side may run; the generation never falls and rises with every
change of side, cancel included; commit is the only step after which the old side is not kept; cancel reaches the
exact state before. `step` is called by the jobs of the configuration server, in the transaction that stores the
result; it does no I/O and may be called from any thread. Rules: design sections 7, 8 and 10; the names of the
operations are Azure Site Recovery's.
"""

from __future__ import annotations

from typing import Final

import msgspec

from backhaul.recovery.errors import OperationRefused, Reason
from backhaul.recovery.item import Action, Event, Integrity, ItemState, Operation, Report, Side, State
from backhaul.recovery.refusals import (
    PHASES,
    Phase,
    allowed_actions,
    allowed_operations,
    refusal,
    refused_operations,
)
from backhaul.recovery.table import TABLE, Effect, Goes

__all__ = [
    "TABLE",
    "Action",
    "Effect",
    "Event",
    "Goes",
    "Integrity",
    "ItemState",
    "Operation",
    "OperationRefused",
    "Reason",
    "Report",
    "Side",
    "State",
    "allowed_actions",
    "allowed_operations",
    "is_repeat",
    "refusal",
    "refused_operations",
    "step",
]


_MIDWAY: Final = frozenset({Phase.MOVING, Phase.COMMITTING, Phase.CANCELING})
"""A job is moving the item, or has failed while it did."""


def is_repeat(item: ItemState, event: Event) -> bool:
    """Whether this is what the item is in the middle of: asked for again, as the job that began it did not end."""
    return PHASES[item.state] in _MIDWAY and TABLE.get((item.state, event)) == Goes(item.state, ())


def step(item: ItemState, event: Event) -> ItemState:
    """The item after the event. Raises `OperationRefused` with the reason where it is not possible."""
    reason = refusal(item, event)
    if reason is not None:
        raise OperationRefused(reason, event=event.value, state=item.state.value)
    row = TABLE[item.state, event]
    for effect in row.effects:
        item = _apply(item, effect)
    return item if row.to is None else msgspec.structs.replace(item, state=row.to)


_FLAGS: Final[dict[Effect, dict[str, object]]] = {
    Effect.MOVE: {"old_side_kept": True, "integrity": Integrity.NONE},
    Effect.COMMIT: {"old_side_kept": False, "before": None, "integrity": Integrity.NONE, "resync_required": False},
    Effect.FORGET: {"before": None},
    Effect.AWAIT_INTEGRITY: {"integrity": Integrity.PENDING},
    Effect.NO_INTEGRITY: {"integrity": Integrity.NONE},
    Effect.INTEGRITY_PASSED: {"integrity": Integrity.PASSED},
    Effect.INTEGRITY_FAILED: {"integrity": Integrity.FAILED},
    Effect.INTEGRITY_ACCEPTED: {"integrity": Integrity.ACCEPTED},
    Effect.RESYNC_ON: {"resync_required": True},
    Effect.RESYNC_OFF: {"resync_required": False},
}


def _apply(item: ItemState, effect: Effect) -> ItemState:
    changes: dict[str, object] = dict(_FLAGS.get(effect, {}))
    if effect is Effect.REMEMBER:
        changes["before"] = item
    elif effect is Effect.MOVE:
        changes |= {"generation": item.generation + 1, "active_side": item.active_side.other}
    elif effect is Effect.CANCEL:
        assert item.before is not None  # refusals guard it: without it there is nothing to return to
        changes |= {"generation": item.generation + 1, "active_side": item.before.active_side}
    elif effect is Effect.RESTORE:
        assert item.before is not None
        # The generation never falls, and the overlay is a fact of the world now: what differs still differs.
        return msgspec.structs.replace(item.before, generation=item.generation, resync_required=item.resync_required)
    return msgspec.structs.replace(item, **changes)
