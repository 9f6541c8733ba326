"""Commit: the only step that throws something away, and it says what.

The replica is handed out and forgotten, its disks are taken from the master target, the layers become the disks
under the machine that runs on them. After a failback the cloud machine is removed; its disks stay as the base of the
next protection, as the old home disks do after a failover. Called from the jobs' threads.
"""

from __future__ import annotations

import msgspec

from backhaul.configuration_server.lifecycle.ports import Ports
from backhaul.configuration_server.lifecycle.steps import advance, begin, detail, edit, host
from backhaul.configuration_server.lifecycle.targets import Replica
from backhaul.configuration_server.lifecycle.values import Ids, Item
from backhaul.recovery.item import Action, Integrity, Operation, Report, Side
from backhaul.recovery.truth import truth


def accept_integrity(ports: Ports, ids: Ids) -> str:
    """The operator said by name that commit need not wait for the integrity report."""
    item = ports.items.load(ids.item)
    before = item.state.integrity
    if item.wish.accept_integrity and before in (Integrity.PENDING, Integrity.FAILED):
        advance(ports, ids, "accepted", Action.ACCEPT_INTEGRITY)
        return detail(accepted=before)
    return detail(integrity=before, signed=item.report.hex() if before is Integrity.PASSED else "")


def begin_commit(ports: Ports, ids: Ids) -> str:
    """The old side is not kept from here on. Raises OperationRefused while the integrity report forbids it."""
    thrown = thrown_away(ports, ports.items.load(ids.item))
    begin(ports, ids, Operation.COMMIT)
    return detail(thrown_away=thrown)


def thrown_away(ports: Ports, item: Item) -> str:
    """What a commit now would throw away, in words; empty when it is not possible."""
    found = truth(item.state, None, ports.clock.wall_ns())
    return next((loss.text for loss in found.losses if loss.operation is Operation.COMMIT), "")


def hand_out(ports: Ports, ids: Ids) -> str:
    """The target gives up points and pins, then the replica; its disks go back to the site."""
    item = ports.items.load(ids.item)
    replica = Replica(ports, item, item.active)
    replica.hand_out()
    replica.forget()
    host(ports, ids, "hand-out", item.active).take_back()
    return ""


def merge_layers(ports: Ports, ids: Ids) -> str:
    """The layers become the machine's own disks."""
    item = ports.items.load(ids.item)
    host(ports, ids, "merge", item.active).merge_layers()
    side = item.state.active_side
    edit(ports, ids, "merged", lambda item: item.placed(side, layers=()))
    return ""


def remove_old_machine(ports: Ports, ids: Ids) -> str:
    """After a failback: the cloud machine goes, and costs nothing any more. The old home machine stays, off."""
    item = ports.items.load(ids.item)
    if item.state.active_side is Side.HOME:
        place = host(ports, ids, "remove-old", item.cloud)
        place.off()
        place.undefine()
        edit(ports, ids, "old-removed", lambda item: item.placed(Side.CLOUD, machine=""))
    return ""


def committed(ports: Ports, ids: Ids) -> str:
    """The move is over."""
    advance(ports, ids, "committed", Report.COMMITTED, lambda item: msgspec.structs.replace(item, moved_ns=0))
    return ""
