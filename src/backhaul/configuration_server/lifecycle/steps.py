"""What the steps of all jobs share: changing the record once, telling agents, choosing a process server.

Called from the jobs' threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from backhaul.configuration_server.items import COMPARING
from backhaul.configuration_server.lifecycle.machines import Host
from backhaul.configuration_server.lifecycle.ports import Ports
from backhaul.configuration_server.lifecycle.values import Ids, Item, Place
from backhaul.recovery.errors import OperationRefused
from backhaul.recovery.item import Event
from backhaul.recovery.preflight_facts import USABLE, ServerFacts
from backhaul.recovery.states import refusal, step
from backhaul.replication.control import AgentMode, ItemAssignment, Method, SourceDisk

Change = Callable[[Item], Item]


def same(item: Item) -> Item:
    """No change besides the event's."""
    return item


def advance(ports: Ports, ids: Ids, name: str, event: Event, change: Change = same) -> Item:
    """Take an event of the item, once, and what belongs to it in the same transaction. Raises OperationRefused."""

    def make(item: Item) -> Item:
        return change(msgspec.structs.replace(item, state=step(item.state, event)))

    return ports.items.change(ids.item, ids.token(name), make)


def begin(ports: Ports, ids: Ids, event: Event, change: Change = same) -> Item:
    """`advance` as a job's first change: what earlier jobs did is forgotten."""

    def fresh(item: Item) -> Item:
        mine = tuple(token for token in item.done if token.startswith(f"{ids.job}/"))
        return change(msgspec.structs.replace(item, done=mine))

    return advance(ports, ids, "begin", event, fresh)


def edit(ports: Ports, ids: Ids, name: str, change: Change) -> Item:
    """Change the record once, without an event."""
    return ports.items.change(ids.item, ids.token(name), change)


def require_allowed(item: Item, event: Event) -> None:
    """Raises OperationRefused with the reason."""
    reason = refusal(item.state, event)
    if reason is not None:
        raise OperationRefused(reason, event=event.value, state=item.state.state.value)


def host(ports: Ports, ids: Ids, name: str, place: Place) -> Host:
    """The place on its site, for the step `name`."""
    return Host(ports, ids, name, place)


# --- agents -----------------------------------------------------------------------------------------------------------


def assign(ports: Ports, ids: Ids, name: str, item: Item, mode: AgentMode) -> None:
    """Have the active side's agent replicate to the other side's target, through the item's process server."""
    source, target = item.active, item.passive.target
    disks = _read_inside(ports, item)
    if not disks:
        paths = host(ports, ids, name, source).paths() if source.site else source.disks
        disks = tuple(SourceDisk(disk, path) for disk, path in zip(item.disks, paths, strict=True))
    key = bytes(ports.targets.ask(target, Method.TARGET_KEY, {})["key"])
    addresses = ports.servers.addresses(item.process_server)
    ports.agents.assign(source.agent, source.machine, _assignment(item, mode, key, addresses, disks))


def _read_inside(ports: Ports, item: Item) -> tuple[SourceDisk, ...]:
    """The disks as an agent on the machine itself finds them, which its site does not know; empty: it is beside it."""
    return ports.agents.reads(item.active.agent, item.id) if item.read_from_inside else ()


def stand_by(ports: Ports, item: Item, place: Place) -> None:
    """Have a side's agent send nothing: another machine is active, or nothing is replicated."""
    if place.machine:
        assignment = _assignment(item, AgentMode.STANDBY, b"", (), ())
        ports.agents.assign(place.agent, place.machine, assignment)


def _assignment(
    item: Item, mode: AgentMode, key: bytes, addresses: tuple[str, ...], disks: tuple[SourceDisk, ...]
) -> ItemAssignment:
    return ItemAssignment(
        item=item.id,
        term=item.term,
        generation=item.state.generation,
        mode=mode,
        target_key=key,
        process_server=item.process_server,
        process_server_addresses=addresses,
        disks=disks,
        still=item.still,
        policy=item.policy,
        compare=item.state.state in COMPARING,
        # Read from outside, a final point comes after `Host.off`.
        source_off=mode is AgentMode.FINAL and bool(item.active.site) and not item.read_from_inside,
    )


def choose_process_server(ports: Ports, item: Item) -> str:
    """The wanted process server, or the first healthy one of the active machine's network; empty: there is none."""
    servers = ports.servers.process_servers(item.active)
    usable = [server.name for server in servers if _usable(server) and item.wish.process_server in ("", server.name)]
    return usable[0] if usable else ""


def _usable(server: ServerFacts) -> bool:
    return server.answers and server.health in USABLE


def detail(**values: Any) -> str:
    """What a step did, for the job's record: no secrets, JSON."""
    return msgspec.json.encode(values).decode()
