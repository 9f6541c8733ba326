"""Gathering what preflight needs of an item, from sites, targets, agents and servers, just before a job.

What does not answer is a fact too: a silent site or target yields findings, never an error. Of an item that was
protected without its sites nothing is asked of any, and nothing of them is missing. Blocking.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from backhaul.configuration_server.errors import ResourceUnknown, ServerRefused, ServerSilent
from backhaul.configuration_server.lifecycle.estimating import journal_free
from backhaul.configuration_server.lifecycle.ports import Ports
from backhaul.configuration_server.lifecycle.steps import choose_process_server
from backhaul.configuration_server.lifecycle.targets import Replica
from backhaul.configuration_server.lifecycle.values import BEFORE_MOVE, BEFORE_REPROTECT, Item, Place
from backhaul.recovery.estimates import Range
from backhaul.recovery.item import Action, Integrity, Operation, State
from backhaul.recovery.policies import LEAST_JOURNAL
from backhaul.recovery.preflight_facts import DiskFacts, ItemFacts, MachineFacts, ServerFacts, SideFacts
from backhaul.replication.control import ItemStatus, PointStatus
from backhaul.sites.contract import Site
from backhaul.sites.errors import SiteError
from backhaul.sites.values import Disk, Machine, PowerState, SiteRole

NOTHING: Final = Range(0, 0, 0)

_STARTED: Final = frozenset(
    {State.FAILED_OVER, State.CHANGING_POINT, State.FAILED_BACK, State.FAILBACK_CHANGING_POINT}
)  # fmt: skip
_MOVED: Final = _STARTED | {
    State.FAILING_OVER, State.FAILING_BACK, State.COMMITTING_FAILOVER, State.COMMITTING_FAILBACK,
}  # fmt: skip
"""From a move to its commit the replica is the active side's; otherwise it is the other's."""
_REPROTECTED: Final = frozenset(
    {
        State.REPROTECTING, State.PROTECTED_TO_HOME, State.VERIFYING_TO_HOME, State.STANDBY_TO_HOME,
        State.REPROTECTING_TO_CLOUD,
    }
)  # fmt: skip
"""What a cancel undoes in these states are the old disks; the active side's site has no part in it."""

_KEEPS_SERVER: Final = frozenset(
    {
        Action.PROTECT, Operation.PLANNED_FAILOVER, Operation.FAILBACK, Operation.REPAIR_REPLICATION, Action.REBIND,
    }
)  # fmt: skip
"""The item goes on through the process server that it has."""


def gather(ports: Ports, item: Item, operation: Operation | Action, needed: Range = NOTHING) -> ItemFacts:
    """All facts about the item before `operation`. `needed`: bytes the operation puts into the undo journal."""
    replica_at = item.active if item.state.state in _MOVED else item.passive
    # A cancel starts, drops or gives back something at the passive side, whatever it undoes.
    there = item.passive if operation is Operation.CANCEL_FAILOVER else replica_at
    target = _Target.look(ports, item, replica_at)
    source, other = _Seen.look(ports, item.active), _Seen.look(ports, item.passive)
    kept = item.process_server if operation in _KEEPS_SERVER else ""
    chosen = item.wish.process_server or kept
    server = chosen or choose_process_server(ports, item)
    newest = target.status.newest_point if target.status else None
    undo_kept, replica_kept = _pins(item, target.status)
    named = item.wish.machine
    return ItemFacts(
        item=item.state,
        operation=operation,
        network=item.active.network,
        machine=_machine(ports, item, source, operation),
        other_side=_side(ports, there, operation),
        other_side_off=other.known and (other.machine is None or other.power is PowerState.OFF),
        process_servers=ports.servers.process_servers(item.active),
        process_server=chosen,
        master_target=target.facts,
        configuration_server_version=ports.servers.version(),
        broken_rung=ports.servers.broken_rung(item.id, server, replica_at.target) if server else "",
        disks=_disks(ports, item, replica_at, source),
        replica_free_bytes=_account_free(ports, replica_at),
        journal_free_bytes=_journal_free(ports, item, replica_at, target, needed),
        journal_needed_bytes=int(needed.high),
        cancel_given_up=item.wish.cancel_given_up,
        points=tuple(point.number for point in target.points),
        point=item.wish.point,
        newest_age_s=max(0.0, (ports.clock.wall_ns() - newest.barrier_ns) / 1e9) if newest else None,
        rpo_threshold_s=item.rpo_threshold_s,
        integrity_proved=item.state.integrity is Integrity.PASSED,
        undo_kept=undo_kept,
        replica_kept=replica_kept,
        named_machine_known=not (named and source.known and source.asked) or named in source.ids,
    )


# --- the target -------------------------------------------------------------------------------------------------------


class _Target(NamedTuple):
    """A target with what it says of the item now."""

    facts: ServerFacts | None
    status: ItemStatus | None = None
    points: tuple[PointStatus, ...] = ()

    @classmethod
    def look(cls, ports: Ports, item: Item, place: Place) -> _Target:
        """Its own answer counts for more than its last heartbeat."""
        facts = ports.servers.master_target(place.target)
        replica = Replica(ports, item, place)
        try:
            status = replica.find()
            return cls(facts, status, tuple(replica.points()) if status else ())
        except (ServerSilent, ServerRefused, ResourceUnknown):
            return cls(facts and msgspec.structs.replace(facts, answers=False))


def _pins(item: Item, status: ItemStatus | None) -> tuple[bool, bool]:
    """Whether a reprotect can be undone, and a move at the replica, as far as either is to be undone now."""
    if status is None:
        return True, True
    if item.state.state in _REPROTECTED:
        untouched = status.complete is None and not status.started_epoch
        return untouched or BEFORE_REPROTECT in status.pins, True
    return True, item.state.state not in _STARTED or BEFORE_MOVE in status.pins


def _journal_free(ports: Ports, item: Item, place: Place, target: _Target, needed: Range) -> int:
    """Room of the undo journal; of one that is not made yet, that of its target's volume. Where that is not known,
    nothing is missing.
    """
    if target.status is None:
        answers = target.facts is not None and target.facts.answers
        free = journal_free(ports, item, place.target) if answers else None
    else:
        limit = target.status.journal_limit_bytes
        free = max(0, limit - target.status.journal_bytes) if limit else None
    return max(int(needed.high), LEAST_JOURNAL) if free is None else free


# --- machines ---------------------------------------------------------------------------------------------------------


class _Seen:
    """A side's machine as its site shows it. `known` false: the site does not answer; `asked` false: there is none."""

    def __init__(self, machines: tuple[Machine, ...] = (), *, known: bool = True, asked: bool = True) -> None:
        self.known, self.asked, self.machines = known, asked, machines
        self.machine: Machine | None = None
        self.power = PowerState.OFF

    @property
    def ids(self) -> set[str]:
        """Of every machine of the site."""
        return {machine.id for machine in self.machines}

    @classmethod
    def look(cls, ports: Ports, place: Place) -> _Seen:
        """The machine, and its power read back."""
        if not place.site:
            return cls(asked=False)
        try:
            site = ports.sites.site(place.site)
            seen = cls(site.machines())
            seen.machine = next((machine for machine in seen.machines if machine.id == place.machine), None)
            if seen.machine is not None:
                seen.power = site.power_state(seen.machine.id)
        except (SiteError, ResourceUnknown):
            return cls(known=False)
        return seen


def _machine(ports: Ports, item: Item, seen: _Seen, operation: Operation | Action) -> MachineFacts:
    agent = ports.agents.known(item.active.agent)
    idle = operation is Operation.CANCEL_FAILOVER and item.state.state in _REPROTECTED
    return MachineFacts(
        site_answers=seen.known or idle,
        running=seen.power is not PowerState.OFF,
        answers=seen.power is PowerState.RUNNING,
        # Ids are the site's: the machine that was found under the item's id is the active one.
        is_active_machine=seen.machine is not None or not seen.known or not seen.asked,
        agent_registered=agent.registered,
        agent_answers=agent.answers,
        agent_version=agent.version,
        can_be_still=item.still.stopped or item.still.freeze,
    )


# --- sides ------------------------------------------------------------------------------------------------------------


def _side(ports: Ports, place: Place, operation: Operation | Action) -> SideFacts:
    if not place.site:
        return SideFacts(reachable=True, may_start=True, machine_exists=True, layer_bytes=0, free_bytes=0)
    try:
        site = ports.sites.site(place.site)
        role = site.whoami().roles.get(place.subscription)
        layer = sum(plan.copy_bytes for plan in (site.layer_plan(disk) for disk in place.disks) if plan.kind == "copy")
        disks = site.disks()
        dropped = operation is Operation.CHANGE_PIT  # its layers go before new ones are made
        free = _layer_free(site, place, disks, layer, dropped=dropped)
        exists = any(machine.id == place.machine for machine in site.machines())
    except (SiteError, ResourceUnknown):
        return SideFacts(reachable=False, may_start=False, machine_exists=False, layer_bytes=0, free_bytes=0)
    return SideFacts(
        reachable=True,
        may_start=role is not None and role.rank >= SiteRole.OPERATOR.rank,
        machine_exists=exists,
        layer_bytes=layer,
        free_bytes=free,
    )


def _layer_free(site: Site, place: Place, disks: tuple[Disk, ...], layer: int, *, dropped: bool) -> int:
    """Room for layers: what their account has. Outside of accounts the site keeps no count, so nothing is missing."""
    accounts = {disk.account for disk in disks if disk.id in place.disks and disk.account}
    free = [account.capacity - account.used for account in site.accounts() if account.name in accounts]
    back = sum(disk.size for disk in disks if disk.base in place.disks) if dropped else 0
    return min(free) + back if free else layer


def _account_free(ports: Ports, place: Place) -> int | None:
    """Room in the account in which disks are made for the replica; None: there is none, or it is not known."""
    if not place.site or not place.account:
        return None
    try:
        accounts = ports.sites.site(place.site).accounts()
    except (SiteError, ResourceUnknown):
        return None
    return next((one.capacity - one.used for one in accounts if one.name == place.account), None)


# --- disks ------------------------------------------------------------------------------------------------------------


def _disks(ports: Ports, item: Item, there: Place, source: _Seen) -> tuple[DiskFacts, ...]:
    """Each disk with its replica, and whether another machine of its site is defined on it, too."""
    sizes: dict[str, int] = {}
    if there.site:
        try:
            sizes = {disk.id: disk.size for disk in ports.sites.site(there.site).disks()}
        except (SiteError, ResourceUnknown):
            sizes = {}  # told by BH-SITE-SILENT where it matters
    others = {part.disk for one in source.machines if one.id != item.active.machine for part in one.disks}
    replicas = there.disks + ("",) * (len(item.disks) - len(there.disks))
    own = item.active.own_disks + ("",) * (len(item.disks) - len(item.active.own_disks))
    return tuple(
        DiskFacts(name=disk.name, source_bytes=disk.size, replica_bytes=sizes.get(replica), shared=mine in others)
        for disk, replica, mine in zip(item.disks, replicas, own, strict=False)
    )
