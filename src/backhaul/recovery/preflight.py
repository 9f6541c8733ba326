"""Which checks come before which job of an item: one list per kind.

Invariants: an unplanned failover is never refused for anything that a disaster takes away (source, agent, process
server, way); those are only told. What an ending leaves alone (a purge, a completed migration) is not asked either.
Every check that is listed can fire: its fact is gathered from the world, and a test breaks the world for each. Pure:
facts in, all findings out. Called by API and command line before a job, by the job itself before its first effect, and
regularly for the way home. Sources: reference/azure-site-recovery.md 3.2.
"""

from __future__ import annotations

from typing import Final

from backhaul.recovery.findings import Checklist, Finding
from backhaul.recovery.item import Operation
from backhaul.recovery.preflight_facts import ItemFacts
from backhaul.recovery.preflight_machine import (
    agent_answers,
    agent_is_registered,
    agent_version_fits,
    machine_answers,
    machine_is_the_active_one,
    machine_runs,
    named_machine_is_known,
    point_exists,
    point_is_kept,
    point_is_young,
    source_can_be_still,
    source_is_lost,
    source_site_answers,
)
from backhaul.recovery.preflight_servers import (
    disks_are_not_shared,
    disks_have_a_size,
    journal_can_begin,
    journal_has_room,
    master_target_answers,
    master_target_exists,
    master_target_has_slots,
    master_target_version_fits,
    path_is_whole,
    process_server_can_be_chosen,
    process_server_exists,
    process_server_is_healthy,
    process_server_version_fits,
    replicas_are_large_enough,
    replicas_exist,
    replicas_have_space,
    state_allows,
)
from backhaul.recovery.preflight_sides import (
    layer_has_space,
    layer_is_instant,
    move_is_proved,
    old_disks_can_return,
    other_side_is_off,
    replica_can_return,
    site_answers,
    site_knows_machine,
    site_lets_start,
)

_RELAY: Final = (
    process_server_exists, process_server_is_healthy, process_server_can_be_chosen, process_server_version_fits,
)  # fmt: skip
_TARGET: Final = (master_target_exists, master_target_answers)
_AGENT: Final = (agent_is_registered, agent_answers, agent_version_fits)
_MACHINE: Final = (source_site_answers, machine_is_the_active_one, *_AGENT)
"""A machine that is off already may be moved, when its agent reads the disks from outside."""
_START: Final = (site_answers, site_lets_start, layer_has_space, layer_is_instant)

PROTECT: Final = Checklist(
    "protect",
    "Protecting a machine",
    (
        state_allows, *_RELAY, *_TARGET, master_target_version_fits, master_target_has_slots, disks_have_a_size,
        disks_are_not_shared, replicas_are_large_enough, replicas_have_space, journal_can_begin, *_MACHINE,
        site_answers, site_lets_start,
    ),
)  # fmt: skip
REPROTECT: Final = Checklist(
    "reprotect",
    "Reprotecting an item",
    (
        state_allows, *_RELAY, *_TARGET, master_target_version_fits, master_target_has_slots, replicas_are_large_enough,
        replicas_exist, replicas_have_space, disks_are_not_shared, journal_has_room, path_is_whole, source_site_answers,
        machine_runs, machine_answers, machine_is_the_active_one, *_AGENT, site_answers, other_side_is_off,
    ),
)  # fmt: skip
UNPLANNED_FAILOVER: Final = Checklist(
    "unplanned-failover",
    "Failing over without the source",
    (state_allows, *_TARGET, point_exists, point_is_kept, point_is_young, source_is_lost, *_START),
)
PLANNED_FAILOVER: Final = Checklist(
    "planned-failover",
    "Failing over with a final delta",
    (
        state_allows, *_TARGET, replicas_are_large_enough, path_is_whole, *_MACHINE, source_can_be_still, point_exists,
        *_START,
    ),
)  # fmt: skip
FAILBACK: Final = Checklist(
    "failback",
    "Failing back with a final delta",
    (
        state_allows, *_RELAY, *_TARGET, replicas_are_large_enough, path_is_whole, *_MACHINE, source_can_be_still,
        point_exists, *_START, other_side_is_off, site_knows_machine,
    ),
)  # fmt: skip
CHANGE_POINT: Final = Checklist(
    "change-point",
    "Changing the recovery point of a move",
    (state_allows, *_TARGET, point_exists, point_is_kept, *_START),
)
COMMIT: Final = Checklist("commit", "Committing a move", (state_allows, *_TARGET, site_answers, move_is_proved))
CANCEL: Final = Checklist(
    "cancel",
    "Cancelling a move or a reprotect",
    (
        state_allows, *_TARGET, source_site_answers, site_answers, site_lets_start, old_disks_can_return,
        replica_can_return,
    ),
)  # fmt: skip
RESYNC: Final = Checklist(
    "resync", "Resynchronising an item", (state_allows, *_RELAY, *_TARGET, path_is_whole, *_MACHINE)
)
REBIND: Final = Checklist(
    "rebind",
    "Binding an item to another machine",
    (state_allows, *_TARGET, source_site_answers, named_machine_is_known, *_AGENT),
)
DISABLE: Final = Checklist("disable", "Ending a protection", (state_allows, *_TARGET, site_answers))
FORGET: Final = Checklist("forget", "Completing a migration, or forgetting an item", (state_allows,))

ITEM_LISTS: Final = (
    PROTECT, REPROTECT, PLANNED_FAILOVER, UNPLANNED_FAILOVER, FAILBACK, CHANGE_POINT, COMMIT, CANCEL, RESYNC, REBIND,
    DISABLE, FORGET,
)  # fmt: skip
"""Every list about one item, in the order of the documents."""


def before_reprotect(facts: ItemFacts) -> list[Finding]:
    """All findings before a reprotect, passes included; so for each function below."""
    return REPROTECT.run(facts)


def before_failover(facts: ItemFacts) -> list[Finding]:
    """Before a failover: planned or not, as `facts.operation` says."""
    planned = facts.operation is Operation.PLANNED_FAILOVER
    return (PLANNED_FAILOVER if planned else UNPLANNED_FAILOVER).run(facts)


def before_failback(facts: ItemFacts) -> list[Finding]:
    """Before a failback with its final delta."""
    return FAILBACK.run(facts)


def before_commit(facts: ItemFacts) -> list[Finding]:
    """Before a commit; that the integrity report is complete is part of the state."""
    return COMMIT.run(facts)
