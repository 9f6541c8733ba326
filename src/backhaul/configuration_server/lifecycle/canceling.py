"""Cancel: back to the side before, which has exactly the state it had. The generation rises first.

Failover and failback: the new side's machine and layers go, its replica returns to where it was, the old machine runs
and replicates again. Reprotect: the replica is undone, its disks are the old machine's again.
Called from the jobs' threads.
"""

from __future__ import annotations

from typing import Final

import msgspec

from backhaul.configuration_server.lifecycle.ports import Ports
from backhaul.configuration_server.lifecycle.steps import advance, assign, begin, edit, host, stand_by
from backhaul.configuration_server.lifecycle.targets import Replica, descriptor_of, mark_of
from backhaul.configuration_server.lifecycle.values import BEFORE_MOVE, BEFORE_REPROTECT, Ids, Item
from backhaul.recovery.item import Operation, Report, State
from backhaul.replication.control import AgentMode

OF_MOVES: Final = frozenset({State.CANCELING_FAILOVER, State.CANCELING_FAILBACK})


def begin_cancel(ports: Ports, ids: Ids) -> str:
    """The side before is authoritative again, under a new generation."""
    begin(ports, ids, Operation.CANCEL_FAILOVER)
    return ""


def _is_move(item: Item) -> bool:
    return item.state.state in OF_MOVES


def fence_target(ports: Ports, ids: Ids) -> str:
    """The target takes the new generation: whatever was sent under the old one is refused."""
    item = ports.items.load(ids.item)
    replica = Replica(ports, item, item.passive)
    if replica.find() is None:
        return ""
    descriptor = descriptor_of(ports, item, item.passive.target)
    if _is_move(item):
        replica.follow(descriptor)
    else:
        stand_by(ports, item, item.active)
        replica.promote(descriptor)  # nobody sends any more, and the started epoch is undone
    return ""


def drop_machine(ports: Ports, ids: Ids) -> str:
    """Cancel of a move: the new side's machine and its layers are gone."""
    item = ports.items.load(ids.item)
    if not _is_move(item):
        return ""
    side, place = item.state.active_side.other, host(ports, ids, "drop", item.passive)
    place.off()
    place.undefine()
    place.drop_layers()
    # A machine of the cloud is defined anew by the next failover; the home machine keeps its id for good.
    gone = {"machine": ""} if side.value == "cloud" else {}
    edit(ports, ids, "dropped", lambda item: item.placed(side, layers=(), **gone))
    return ""


def mark(ports: Ports, ids: Ids) -> str:
    """Note where the replica is, so that returning is done once."""
    item = ports.items.load(ids.item)
    replica = Replica(ports, item, item.passive)
    found = replica.find()
    if found is not None and found.complete is not None and _pin(item) in found.pins:
        replica.keep(mark_of(ids))
    return ""


def go_back(ports: Ports, ids: Ids) -> str:
    """The replica is what it was before the move, or the old disks before the reprotect."""
    item = ports.items.load(ids.item)
    replica = Replica(ports, item, item.passive)
    found = replica.find()
    if found is not None and mark_of(ids) in found.pins:
        replica.go_to(found.pins[_pin(item)], mark_of(ids))
    return ""


def release(ports: Ports, ids: Ids) -> str:
    """The pins are not needed any more."""
    item = ports.items.load(ids.item)
    replica = Replica(ports, item, item.passive)
    replica.let_go(mark_of(ids))
    replica.let_go(_pin(item))
    return ""


def _pin(item: Item) -> str:
    return BEFORE_MOVE if _is_move(item) else BEFORE_REPROTECT


def give_disks_back(ports: Ports, ids: Ids) -> str:
    """Cancel of a reprotect: the replica is forgotten, and its disks are the old machine's again."""
    item = ports.items.load(ids.item)
    if _is_move(item):
        return ""
    Replica(ports, item, item.passive).forget()
    place = host(ports, ids, "give-back", item.passive)
    place.take_back()
    if item.passive.machine:
        place.define(item.passive.disks)
    return ""


def resume_source(ports: Ports, ids: Ids) -> str:
    """Cancel of a move: the machine before runs, and replicates under the new generation."""
    item = ports.items.load(ids.item)
    if _is_move(item):
        host(ports, ids, "resume", item.active).on(item)
        assign(ports, ids, "resume", item, AgentMode.REPLICATE)
    return ""


def canceled(ports: Ports, ids: Ids) -> str:
    """The item is as it was."""
    advance(ports, ids, "canceled", Report.CANCELED, lambda item: msgspec.structs.replace(item, moved_ns=0))
    return ""
