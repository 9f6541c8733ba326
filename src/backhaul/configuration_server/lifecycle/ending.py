"""The end of a protection: the agent sends nothing any more, the replica goes, the record goes.

It says first what it throws away. Disks that the replica's site made for it are deleted; a machine's own old disks
never are: they are given back to it as they are. A completed migration, and a purge, touch neither target nor site of
the other side. Every step may be repeated, and so may the job: `DISABLING` takes the same operation again. Called from
the jobs' threads.
"""

from __future__ import annotations

from typing import Final

from backhaul.configuration_server.errors import ServerRefused, ServerSilent
from backhaul.configuration_server.lifecycle.ports import Ports
from backhaul.configuration_server.lifecycle.steps import advance, begin, detail, host, require_allowed, stand_by
from backhaul.configuration_server.lifecycle.targets import Replica, descriptor_of
from backhaul.configuration_server.lifecycle.values import Ids, Item
from backhaul.recovery.item import Operation, Report, Side, State
from backhaul.replication.control import ItemStatus

DISABLE: Final = "DisableProtection"
MIGRATED: Final = "CompleteMigration"
PURGE: Final = "PurgeProtection"
"""Kinds of jobs. PURGE is Site Recovery's name for disabling what cannot be reached any more."""

ENDING: Final = frozenset({DISABLE, MIGRATED, PURGE})


def operation_of(kind: str, item: Item) -> Operation:
    """The operation that a job of this kind is of this item; repeated half-way it is the same for all kinds."""
    again = item.state.state is State.DISABLING
    return Operation.COMPLETE_MIGRATION if kind == MIGRATED and not again else Operation.DISABLE_PROTECTION


def check(ports: Ports, ids: Ids, kind: str) -> str:
    """Raises OperationRefused with the reason."""
    item = ports.items.load(ids.item)
    if ids.token("begin") not in item.done:
        require_allowed(item, operation_of(kind, item))
    return ""


def begin_ending(ports: Ports, ids: Ids, kind: str) -> str:
    """Nothing replicates any more, under a new generation: whatever was sent before it is refused from then on."""
    item = ports.items.load(ids.item)
    if ids.token("begin") in item.done:
        return ""
    lost = losses(ports, item, kind)
    begin(ports, ids, operation_of(kind, item), Item.risen)
    return detail(thrown_away=lost)


def stop_agent(ports: Ports, ids: Ids) -> str:
    """The active machine's agent sends nothing of this item."""
    item = ports.items.load(ids.item)
    stand_by(ports, item, item.active)
    return ""


def fence_replica(ports: Ports, ids: Ids) -> str:
    """The target takes the new generation, and process servers drop what they hold of earlier ones. A started epoch is
    undone, so that disks that are given back hold no half of one.
    """
    item = ports.items.load(ids.item)
    replica = Replica(ports, item, item.passive)
    if replica.find() is not None:
        replica.promote(descriptor_of(ports, item, item.passive.target))
    return ""


def forget_replica(ports: Ports, ids: Ids) -> str:
    """The target forgets the item: points, pins, journal; its disks too where it made them itself."""
    item = ports.items.load(ids.item)
    Replica(ports, item, item.passive).forget(keep_disks=bool(item.passive.site))
    return ""


def clear_disks(ports: Ports, ids: Ids) -> str:
    """Disks made for the replica are deleted; others are given back to the machine of that side, which is off."""
    item = ports.items.load(ids.item)
    place = item.passive
    if not place.site:
        return ""
    there = host(ports, ids, "disks", place)
    there.take_back()
    if item.state.active_side is Side.CLOUD:
        if place.machine:
            there.define(place.disks)
        return ""
    there.delete_disks(place.made)
    return detail(deleted=place.made)


def ended(ports: Ports, ids: Ids) -> str:
    """Noted, with its event, before the record goes."""
    advance(ports, ids, "ended", Report.PROTECTION_ENDED)
    return ""


def forget_item(ports: Ports, ids: Ids) -> str:
    """The record goes, and with it the agent's assignment; events and jobs stay, and the name is free."""
    ports.items.forget(ids.item)
    return ""


# --- what it throws away ----------------------------------------------------------------------------------------------


def losses(ports: Ports, item: Item, kind: str) -> list[str]:
    """What a job of this kind would throw away or leave behind now, a sentence each. Changes nothing."""
    place, side = item.passive, "at home" if item.state.active_side is Side.CLOUD else "in the cloud"
    if kind == MIGRATED:
        return [
            f"The machine stays in the cloud, and cannot be brought home by this item any more; the old disks {side} "
            "stay as they are."
        ]
    first = "Replication ends; the machine itself is not touched."
    disks = ", ".join(place.disks)
    if kind == PURGE:
        told = f"{disks} of site {place.site}" if place.site and disks else "its disks"
        return [first, f"Nothing is cleaned up: the replica at {place.target} and {told} are left behind."]
    lost = [first, _replica(ports, item, side)]
    if place.site and item.state.active_side is Side.CLOUD:
        lost.append(f"Its old disks {side} ({disks}) are kept and given back to it, as they are now.")
    elif place.made:
        lost.append(f"The disks made for the replica are deleted at site {place.site}: {', '.join(place.made)}.")
    return [text for text in lost if text]


def _replica(ports: Ports, item: Item, side: str) -> str:
    try:
        found: ItemStatus | None = Replica(ports, item, item.passive).find()
    except (ServerSilent, ServerRefused) as error:
        return f"The replica {side} and its recovery points are thrown away; how many is not known ({error.code})."
    if found is None:
        return ""
    return f"The replica {side} and its {found.points} recovery points are thrown away."
