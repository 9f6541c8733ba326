"""Failover and failback: the machine changes its side. One set of steps for both directions.

Order of a planned move: the source is off and read back off; its agent makes the final point; the generation rises;
the target promotes; layers; start; integrity. Where only the agent inside can read: it makes the final point frozen and
holds; then the source is powered off hard and read back off; then the generation rises. Unplanned: the target promotes
at once, the old machine is powered off where its site can. Rules: design sections 7 and 8. Called from the jobs'
threads.
"""

from __future__ import annotations

from typing import Final

import msgspec
import structlog

from backhaul.configuration_server.lifecycle.errors import SourceHeld, SourceThawed, WaitedTooLong
from backhaul.configuration_server.lifecycle.ports import Ports
from backhaul.configuration_server.lifecycle.steps import advance, assign, begin, detail, edit, host, stand_by
from backhaul.configuration_server.lifecycle.targets import Replica, descriptor_of
from backhaul.configuration_server.lifecycle.values import BEFORE_MOVE, Ids, Item, new_machine_id
from backhaul.recovery.item import Operation, Report, State
from backhaul.recovery.states import is_repeat
from backhaul.recovery.truth import truth
from backhaul.replication.control import AgentMode
from backhaul.sites.errors import PowerNotConfirmed, SiteUnreachable
from backhaul.sites.values import PowerState

FINAL_LIMIT_S: Final = 600.0
"""The last changes of a stopped machine: copied ahead every minute, so this is far above what is left."""

HOLD_LIMIT_S: Final = 90.0
"""A freeze that is not held ends after 60 s by itself, and agents report every second: later nothing is held."""

FREEZES: Final = 3
"""Final points from inside that may thaw before they are held; each costs the machine a minute's freeze at most."""

_FINAL_PHASE: Final = frozenset({State.FINAL_DELTA, State.FAILBACK_FINAL_DELTA})
_FENCING: Final = frozenset({State.FENCING, State.FAILBACK_FENCING})
_MOVING: Final = frozenset({State.FAILING_OVER, State.FAILING_BACK})

_log = structlog.get_logger(__name__)


def begin_planned(ports: Ports, ids: Ids) -> str:
    """The item is being moved with a final delta; or tried again after nobody confirmed that the source is off."""
    item = ports.items.load(ids.item)
    begin(ports, ids, Operation.PLANNED_FAILOVER)
    return detail(source=item.active.machine)


def begin_unplanned(ports: Ports, ids: Ids) -> str:
    """The item is moved without its source. Says what is lost: the newest point, and its age."""
    item = ports.items.load(ids.item)
    begun = ids.token("begin") in item.done or is_repeat(item.state, Operation.UNPLANNED_FAILOVER)
    lost = "" if begun else what_is_lost(ports, item)
    begin(ports, ids, Operation.UNPLANNED_FAILOVER, _name_machine)
    return detail(lost=lost)


def what_is_lost(ports: Ports, item: Item) -> str:
    """What an unplanned move would lose now, in words; empty when it is not possible."""
    newest = Replica(ports, item, item.passive).status().newest_point
    found = truth(item.state, newest.barrier_ns if newest else None, ports.clock.wall_ns())
    return next((loss.text for loss in found.losses if loss.operation is Operation.UNPLANNED_FAILOVER), "")


def _name_machine(item: Item) -> Item:
    """Who may send from now on: the machine of the side that is active now."""
    if item.active.machine:
        return item
    return item.placed(item.state.active_side, machine=new_machine_id(item.id, item.state.generation))


# --- the source ends --------------------------------------------------------------------------------------------------


def stop_source(ports: Ports, ids: Ids) -> str:
    """The source is off, read back, so that its disks are still; unless the agent that reads them runs on it."""
    item = ports.items.load(ids.item)
    if item.read_from_inside:
        return detail(read="from inside, frozen; the machine is powered off after its final point")
    if item.state.state in _FINAL_PHASE:
        host(ports, ids, "stop-source", item.active).off()
    return ""


def final_point(ports: Ports, ids: Ids) -> str:
    """The agent makes the final point; the target stores it and closes the stream. From inside it holds the machine
    frozen then. Raises WaitedTooLong, SourceThawed.
    """
    item = ports.items.load(ids.item)
    if item.state.state not in _FINAL_PHASE:
        return ""
    if item.read_from_inside:
        _freeze_and_hold(ports, ids, item)
    else:
        _store_final(ports, ids, item)
    advance(ports, ids, "final-stored", Report.FINAL_STORED)
    return ""


def _store_final(ports: Ports, ids: Ids, item: Item) -> None:
    replica = Replica(ports, item, item.passive)
    if replica.status().descriptor.generation < item.state.generation:
        replica.follow(descriptor_of(ports, item, item.passive.target))
    if not replica.status().final:
        assign(ports, ids, "final", item, AgentMode.FINAL)
        ports.waiting.until(
            lambda: True if replica.status().final else None,
            item=item.id, what="the final recovery point", limit_s=FINAL_LIMIT_S,
        )  # fmt: skip


def _freeze_and_hold(ports: Ports, ids: Ids, item: Item) -> None:
    """A final point that the agent does not hold is none: the machine may have written since. It is made again, under
    a new generation, which opens the stream that the target closed.
    """
    for _ in range(FREEZES):
        _store_final(ports, ids, item)
        if _is_held(ports, item):
            return
        item = advance(ports, ids, f"thawed-{item.state.generation}", Report.THAWED, Item.risen)
    raise SourceThawed(item=item.name, machine=item.active.machine, tries=FREEZES)


def _is_held(ports: Ports, item: Item) -> bool:
    """By the agent's own word since the target has the point; silence is no word."""
    generation, since_ns = item.state.generation, ports.clock.monotonic_ns()
    try:
        return ports.waiting.until(
            lambda: ports.agents.holds(item.id, generation, since_ns),
            item=item.id, what="the hold of the frozen machine", limit_s=HOLD_LIMIT_S,
        )  # fmt: skip
    except WaitedTooLong:
        return False


def fence_source(ports: Ports, ids: Ids) -> str:
    """Power the source off where it was read from inside, read back that it is off, then raise the generation.

    Raises SourceHeld: neither side may run then.
    """
    item = ports.items.load(ids.item)
    if item.state.state not in _FENCING:
        return ""
    source = host(ports, ids, "fence", item.active)
    try:
        source.off()  # read from outside: a machine that was started again since its final point would fork
        state = source.power()
    except PowerNotConfirmed:
        state = source.power()
    if state is not PowerState.OFF:
        advance(ports, ids, "held", Report.OFF_UNCONFIRMED)
        raise SourceHeld(item=item.name, machine=item.active.machine, power=state)
    advance(ports, ids, "off-confirmed", Report.OFF_CONFIRMED, _name_machine)
    return ""


def stop_old_if_possible(ports: Ports, ids: Ids) -> str:
    """After an unplanned move: the old machine is powered off where its site can; where not, that is said."""
    item = ports.items.load(ids.item)
    try:
        host(ports, ids, "stop-old", item.passive).off()
    except (SiteUnreachable, PowerNotConfirmed) as error:
        _log.warning("old_machine.not_stopped", item=item.id, code=error.code, reason=error.message)
        return detail(old_machine="not confirmed off", code=error.code)
    return detail(old_machine="off")


# --- the replica becomes the machine ----------------------------------------------------------------------------------


def promote(ports: Ports, ids: Ids) -> str:
    """The target stores the new generation: no stream any more, nothing thinned, the started epoch undone."""
    item = ports.items.load(ids.item)
    replica = Replica(ports, item, item.active)
    replica.promote(descriptor_of(ports, item, item.active.target))
    replica.keep(BEFORE_MOVE)
    stand_by(ports, item, item.passive)
    return ""


def go_to_point(ports: Ports, ids: Ids) -> str:
    """To the chosen recovery point, if one was chosen."""
    item = ports.items.load(ids.item)
    if item.wish.point is not None:
        Replica(ports, item, item.active).go_to(item.wish.point, BEFORE_MOVE)
    return detail(point=item.wish.point)


def make_layers(ports: Ports, ids: Ids) -> str:
    """Writable layers over the replica's disks: only the master target writes a replica."""
    item = ports.items.load(ids.item)
    layers = host(ports, ids, "layers", item.active).make_layers()
    side = item.state.active_side
    edit(ports, ids, "layers-made", lambda item: item.placed(side, layers=layers))
    return detail(layers=layers)


def start_machine(ports: Ports, ids: Ids) -> str:
    """The machine is defined on its layers, powered on, and read back running."""
    item = ports.items.load(ids.item)
    place = host(ports, ids, "start", item.active)
    place.define(item.active.layers)
    place.on(item)
    now = ports.clock.wall_ns()
    if item.state.state in _MOVING:
        advance(ports, ids, "started", Report.STARTED, lambda item: msgspec.structs.replace(item, moved_ns=now))
    return detail(machine=item.active.machine, side=item.state.active_side.value)
