"""Resync and rebind: everything is compared anew, under a new generation.

Resync: what the target's maps say does not count, so blocks that anybody changed behind its back are found and sent;
older points stay. Rebind: the active machine has another id, rightly, so the operator says; only the one that is named
may send. Comparing and sending are the agent's, long after the job has ended. Called from the jobs' threads.
"""

from __future__ import annotations

from backhaul.configuration_server.lifecycle.errors import MachineUnnamed
from backhaul.configuration_server.lifecycle.ports import Ports
from backhaul.configuration_server.lifecycle.steps import assign, begin
from backhaul.configuration_server.lifecycle.targets import Replica, descriptor_of
from backhaul.configuration_server.lifecycle.values import Ids, Item
from backhaul.recovery.item import Action, Operation
from backhaul.replication.control import AgentMode


def begin_resync(ports: Ports, ids: Ids) -> str:
    """All disks are being compared from here on, under a new generation: without one, what the agent reported before
    would say that comparing has ended. Raises OperationRefused."""
    begin(ports, ids, Operation.REPAIR_REPLICATION, Item.risen)
    return ""


def begin_rebind(ports: Ports, ids: Ids) -> str:
    """Another machine is the active one from here on. Raises MachineUnnamed, OperationRefused."""
    item = ports.items.load(ids.item)
    machine = item.wish.machine
    if not machine:
        raise MachineUnnamed(item=item.name, reason="no machine is named")
    side = item.state.active_side
    begin(ports, ids, Action.REBIND, lambda item: item.placed(side, machine=machine).risen())
    return ""


def doubt_replica(ports: Ports, ids: Ids) -> str:
    """The target reads its disks back, whatever its maps say, and takes the new generation and active machine."""
    item = ports.items.load(ids.item)
    Replica(ports, item, item.passive).verify(descriptor_of(ports, item, item.passive.target))
    return ""


def assign_agent(ports: Ports, ids: Ids) -> str:
    """The active machine's agent compares all disks and goes on."""
    item = ports.items.load(ids.item)
    assign(ports, ids, "assign", item, AgentMode.REPLICATE)
    return ""
