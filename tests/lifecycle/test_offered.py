"""What the state machine offers can be run: each operation is a job, and each job of an item has its operation."""

from __future__ import annotations

from backhaul.configuration_server import jobs
from backhaul.configuration_server.lifecycle import ending
from backhaul.configuration_server.lifecycle import workflows as w
from backhaul.configuration_server.lifecycle.values import Wish
from backhaul.recovery.item import Action, Operation
from backhaul.recovery.states import TABLE

ANOTHER_NAME = {Operation.FAILBACK: w.PLANNED, Action.PROTECT: w.PROTECT, Action.REBIND: w.REBIND}
"""A failback is a planned failover of an item that is in the cloud."""

WISHES = {Action.REPROTECT_WITHOUT_CANCEL: "cancel_given_up", Action.ACCEPT_INTEGRITY: "accept_integrity"}
"""Said by name with the job that they belong to."""

BESIDE = {ending.PURGE}
"""Kinds that are the operation of another one: purge ends a protection as DisableProtection does."""


def test_every_operation_that_a_state_offers_is_a_job() -> None:
    offered = {event for _, event in TABLE if isinstance(event, Operation | Action)}
    assert offered >= set(ANOTHER_NAME) | set(WISHES)
    runnable = {ANOTHER_NAME.get(event, str(event)) for event in offered - set(WISHES)}
    assert runnable | BESIDE == set(w.WORKFLOWS)
    assert set(WISHES.values()) <= set(Wish.__struct_fields__)


def test_what_is_cancelled_for_its_item_is_a_kind_of_job() -> None:
    assert set(w.WORKFLOWS) > jobs.MOVES
