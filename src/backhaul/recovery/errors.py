"""Errors of the recovery rules. Raised by pure functions; shown by API, command line and portal as they are."""

from __future__ import annotations

from typing import Any

import msgspec

from backhaul.replication.errors import BackhaulError


class Reason(msgspec.Struct, frozen=True):
    """Why an operation is not possible right now: a stable code, the reason itself, and what to do about it."""

    code: str
    text: str
    fix: str


class RecoveryError(BackhaulError):
    """The item's state does not allow this."""

    code = "BH-RECOVERY"
    fix = "See the reason; `backhaul item show` lists what is possible now."


class OperationRefused(RecoveryError):
    """{event} is not possible while the item is {state}: {text} ({reason_code})."""

    code = "BH-OPERATION-REFUSED"
    fix = "{what_to_do}"

    def __init__(self, reason: Reason, **params: Any) -> None:
        self.reason = reason
        super().__init__(reason_code=reason.code, text=reason.text, what_to_do=reason.fix, **params)


class ChecksFailed(RecoveryError):
    """The checks before {action} failed: {codes}."""

    code = "BH-CHECKS-FAILED"
    fix = "Each finding says what to do; nothing was changed. Run the same with --dry-run to see the findings only."


class EstimateImpossible(RecoveryError):
    """An estimate cannot be made: {reason}."""

    code = "BH-ESTIMATE-IMPOSSIBLE"
    fix = "Take the samples and the link test again once agent, process server and target answer."
