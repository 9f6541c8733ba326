"""Protect, reprotect, protect again: the active side replicates to the other one. One set of steps for all.

The other side's old disks, taken from the machine that is off there, become the replica: only differing granules
travel. Without old disks new ones are made. Their state before is pinned, so that cancel returns to it.
Called from the jobs' threads.
"""

from __future__ import annotations

from typing import Final

import msgspec

from backhaul.configuration_server.lifecycle.ports import Ports
from backhaul.configuration_server.lifecycle.steps import advance, assign, begin, choose_process_server, edit, host
from backhaul.configuration_server.lifecycle.targets import Replica, descriptor_of
from backhaul.configuration_server.lifecycle.values import BEFORE_REPROTECT, Ids, Item
from backhaul.recovery.item import Action, Operation, Report, State
from backhaul.replication.control import AgentMode

_BACK_HOME: Final = frozenset({State.REPROTECTING, State.REPROTECTING_TO_CLOUD})


def begin_protect(ports: Ports, ids: Ids) -> str:
    """The machine is being protected for the first time."""
    item = ports.items.load(ids.item)
    server = item.process_server or choose_process_server(ports, item)
    begin(ports, ids, Action.PROTECT, lambda item: msgspec.structs.replace(item, process_server=server))
    return ""


def begin_reprotect(ports: Ports, ids: Ids) -> str:
    """The item replicates the other way from now on, through a process server of the machine's network."""
    item = ports.items.load(ids.item)
    server = choose_process_server(ports, item)
    again = item.state.state in _BACK_HOME
    given_up = item.wish.cancel_given_up and not again
    event = Action.REPROTECT_WITHOUT_CANCEL if given_up else Operation.REVERSE_REPLICATE

    def change(item: Item) -> Item:
        # Another target numbers its streams from one, so what process servers remember of the old target's fence
        # would outrank it under the same generation.
        return msgspec.structs.replace(item if again else item.risen(), process_server=server)

    begin(ports, ids, event, change)
    return ""


def attach_disks(ports: Ports, ids: Ids) -> str:
    """The other side's disks are in the hands of its master target."""
    item = ports.items.load(ids.item)
    side = item.state.active_side.other
    disks = host(ports, ids, "attach", item.passive).make_disks(item)
    made = item.passive.made if item.passive.disks else disks
    item = edit(ports, ids, "disks-made", lambda item: item.placed(side, disks=disks, made=made))
    host(ports, ids, "attach", item.passive).lend()
    return ""


def create_replica(ports: Ports, ids: Ids) -> str:
    """The target holds the replica over these disks, under the item's generation."""
    item = ports.items.load(ids.item)
    paths = host(ports, ids, "attach", item.passive).lend()
    replica = Replica(ports, item, item.passive)
    descriptor = descriptor_of(ports, item, item.passive.target)
    if replica.find() is None:
        replica.create(descriptor, paths)
    else:
        replica.follow(descriptor)
    return ""


def pin_before(ports: Ports, ids: Ids) -> str:
    """What the disks held before is kept, unless cancel was given up by name."""
    item = ports.items.load(ids.item)
    if item.state.state in _BACK_HOME and item.state.before is not None:
        Replica(ports, item, item.passive).keep(BEFORE_REPROTECT)
    return ""


def assign_agent(ports: Ports, ids: Ids) -> str:
    """The active machine's agent sends through the process server to the target, from now on."""
    item: Item = ports.items.load(ids.item)
    assign(ports, ids, "assign", item, AgentMode.REPLICATE)
    if item.state.state is State.ENABLING:
        advance(ports, ids, "agent-ready", Report.AGENT_READY)
    return ""
