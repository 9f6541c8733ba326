"""Which copy is true: the first thing every view of an item says.

Invariant: exactly one side is authoritative in every state. Pure; called by every view, with the newest recovery
point and the time of the caller.
"""

from __future__ import annotations

from typing import Final

import msgspec

from backhaul.recovery.item import ItemState, Operation, Side, State
from backhaul.recovery.refusals import allowed_operations


class Loss(msgspec.Struct, frozen=True):
    """What an operation, done now, would throw away. `seconds` of writes; None: not known."""

    operation: Operation
    seconds: float | None
    text: str


class Truth(msgspec.Struct, frozen=True):
    """Which side is authoritative, what must not start, what acting now would lose.

    data_loss_s   seconds of writes that an unplanned move now would lose; 0.0 when the source is held or stopped;
                  None when it is not possible or its newest point is not known
    """

    authoritative: Side
    may_run: Side | None
    must_not_start: tuple[Side, ...]
    data_loss_s: float | None
    losses: tuple[Loss, ...]
    text: str


_NO_OTHER_COPY: Final = frozenset({State.DISCOVERED, State.ENABLING})
_FINAL_IS_STORED: Final = frozenset({State.FENCING, State.HELD, State.FAILBACK_FENCING, State.FAILBACK_HELD})
_MOVED: Final = frozenset(
    {
        State.FAILING_OVER, State.FAILED_OVER, State.CHANGING_POINT,
        State.FAILING_BACK, State.FAILED_BACK, State.FAILBACK_CHANGING_POINT,
    }
)  # fmt: skip


def truth(item: ItemState, newest_point_ns: int | None, now_ns: int, moved_ns: int | None = None) -> Truth:
    """What is true of the item at `now_ns`.

    newest_point_ns  barrier of the newest point that could be failed over to, wall clock; None: there is none, or
                     the target that would know is silent
    moved_ns         when the other side was started, wall clock; None: not known
    """
    considered = (_loss(item, operation, newest_point_ns, now_ns, moved_ns) for operation in allowed_operations(item))
    losses = tuple(loss for loss in considered if loss is not None)
    failover = next((loss for loss in losses if loss.operation is Operation.UNPLANNED_FAILOVER), None)
    forbidden = _must_not_start(item)
    return Truth(
        authoritative=item.active_side,
        may_run=item.may_run,
        must_not_start=forbidden,
        data_loss_s=failover.seconds if failover else None,
        losses=losses,
        text=_text(item, forbidden),
    )


def _must_not_start(item: ItemState) -> tuple[Side, ...]:
    if item.state in _NO_OTHER_COPY:
        return ()
    return tuple(side for side in Side if side is not item.may_run)


def _loss(
    item: ItemState, operation: Operation, newest_ns: int | None, now_ns: int, moved_ns: int | None
) -> Loss | None:
    """What `operation` would lose; None for operations that lose nothing."""
    if operation is Operation.UNPLANNED_FAILOVER:
        if item.state in _FINAL_IS_STORED:
            return Loss(operation, 0.0, "nothing: the final delta is stored")
        age_s = _age_s(newest_ns, now_ns)
        return Loss(operation, age_s, f"fail over now: loses {_words(age_s)}")
    if operation in (Operation.CANCEL_FAILOVER, Operation.CHANGE_PIT) and item.state in _MOVED:
        age_s = _age_s(moved_ns, now_ns)
        where = _place(item.active_side)
        return Loss(operation, age_s, f"loses what was written {where} since the move: {_words(age_s)}")
    if operation is Operation.COMMIT:
        old = item.active_side.other
        return Loss(operation, 0.0, f"throws away the state kept {_place(old)} and every other recovery point")
    if operation in (Operation.DISABLE_PROTECTION, Operation.COMPLETE_MIGRATION):
        return Loss(operation, 0.0, _ending(item))
    return None


def _ending(item: ItemState) -> str:
    if item.state in _NO_OTHER_COPY:
        return "throws away nothing: there is no other copy yet"
    other = _place(item.active_side.other)
    if item.state is State.FAILED_OVER_COMMITTED:
        return f"gives up the way back: the old disks {other} can no longer be brought up to date"
    if item.state is State.FAILED_BACK_COMMITTED:
        return f"throws away the old disks {other}, which the next protection would only have to bring up to date"
    if item.active_side is Side.CLOUD:
        return f"throws away the recovery points {other}; the disks there are given back as they are"
    return f"throws away the replica {other} and its recovery points"


def _age_s(then_ns: int | None, now_ns: int) -> float | None:
    """Seconds since; a clock that steps back gives 0, never a negative age."""
    return None if then_ns is None else max(0, now_ns - then_ns) / 1e9


def _words(seconds: float | None) -> str:
    return "an unknown amount" if seconds is None else f"{seconds:.0f} s"


def _place(side: Side) -> str:
    return "at home" if side is Side.HOME else "in the cloud"


def _text(item: ItemState, forbidden: tuple[Side, ...]) -> str:
    first = f"The copy {_place(item.active_side)} is authoritative."
    if not forbidden:
        return f"{first} There is no other copy."
    if len(forbidden) == 1:
        return f"{first} The copy {_place(forbidden[0])} must not start."
    return f"{first} Neither copy may be started until the job in hand has ended or the source is declared gone."
