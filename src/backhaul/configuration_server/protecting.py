"""The job that protects a machine: preflight, descriptor, replica, key, assignment. What follows lasts hours and is no
step: the agent keeps replicating because it was told to, and the reconciler notes what comes of it.

Each step asks what is before it acts: the records for what this server decides, the target for what it holds.
"""

from __future__ import annotations

from typing import Final

from backhaul.configuration_server.errors import ServerRefused
from backhaul.configuration_server.heartbeats import convert
from backhaul.configuration_server.items import disks_of, target_of
from backhaul.configuration_server.jobs import PROTECT, Step
from backhaul.configuration_server.lifecycle.core import lifecycle_of
from backhaul.configuration_server.lifecycle.workflows import findings_before_protect
from backhaul.configuration_server.plane import ControlPlane
from backhaul.master_target.errors import ItemUnknown
from backhaul.recovery.findings import require
from backhaul.recovery.item import State
from backhaul.replication.control import ItemStatus, Method
from backhaul.replication.opening import read_target_key
from backhaul.replication.values import ItemId


def check(plane: ControlPlane, item: str) -> None:
    """What speaks against it, whole, before anything is made. Raises ChecksFailed.

    One whose enabling did not end goes on where it stopped: what it made itself would be found.
    """
    ports = lifecycle_of(plane).ports
    found = ports.items.load(ItemId(item))
    if found.state.state is State.DISCOVERED:
        ports.servers.settle()
        require(findings_before_protect(ports, found), PROTECT)


def sign(plane: ControlPlane, item: str) -> None:
    """The signed descriptor, generation 1."""
    plane.items.sign_descriptor(item)


def make_replica(plane: ControlPlane, item: str) -> None:
    """The replica at the master target. Raises ServerSilent, ServerRefused."""
    record = plane.items.get(item)
    target = target_of(record)
    try:
        plane.ask(target, Method.ITEM_STATUS, {"item": item})
        return
    except ServerRefused as refused:
        if refused.params["reason_code"] != ItemUnknown.code:
            raise
    paths = [None for _ in disks_of(record)]
    answer = plane.ask(target, Method.ITEM_CREATE, {"descriptor": record.descriptor, "paths": paths})
    plane.target_said(convert(answer, ItemStatus, target))


def fetch_key(plane: ControlPlane, item: str) -> None:
    """The target's sealing key, checked to be its own. Raises ServerSilent, OpeningForged."""
    target = target_of(plane.items.get(item))
    key: bytes = plane.ask(target, Method.TARGET_KEY)["key"]
    read_target_key(plane.verifier, key)
    plane.items.keep_target_key(item, key)


def assign(plane: ControlPlane, item: str) -> None:
    """The agent is told."""
    plane.items.assign(item)


PROTECT_STEPS: Final = (
    Step("preflight", "Check what the job needs", check),
    Step("descriptor", "Sign the item's descriptor", sign),
    Step("replica", "Create the replica at the master target", make_replica),
    Step("key", "Get the master target's key", fetch_key),
    Step("assign", "Tell the agent", assign),
)

KINDS: Final = {PROTECT: PROTECT_STEPS}
