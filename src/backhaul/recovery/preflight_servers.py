"""Checks on an item's state, servers, way and disks, and the room for them. See `preflight`, which lists them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from backhaul.recovery.findings import Problem, Severity, check
from backhaul.recovery.item import Side
from backhaul.recovery.policies import LEAST_JOURNAL
from backhaul.recovery.preflight_facts import USABLE, ItemFacts, ServerFacts, text_of
from backhaul.recovery.refusals import refusal

_WARN: Final = Severity.WARN


def _usable(server: ServerFacts) -> bool:
    return server.answers and server.health in USABLE


def _chosen(facts: ItemFacts) -> list[ServerFacts]:
    return [server for server in facts.process_servers if facts.process_server in ("", server.name)]


@check("BH-ITEM-STATE", field="item", fix="See the reason: it says what to do first.")
def state_allows(facts: ItemFacts) -> Iterator[Problem]:
    """The item's state allows the operation."""
    reason = refusal(facts.item, facts.operation)
    if reason is not None:
        yield f"{facts.operation} is not possible while the item is {facts.item.state}: {reason.text}", reason.fix


@check("BH-PROCESS-SERVER-NONE", field="process_server", fix="Deploy one: `backhaul process-server deploy`.")
def process_server_exists(facts: ItemFacts) -> Iterator[Problem]:
    """The network of the machine has a process server."""
    if facts.process_servers:
        return
    if facts.item.active_side is Side.HOME:
        yield "there is no process server at home", "Register one there: `backhaul process-server register`."
        return
    command = f"Deploy one: `backhaul process-server deploy --network {facts.network}`."
    yield f"virtual network {facts.network} has no process server", command


@check(
    "BH-PROCESS-SERVER-UNHEALTHY", field="process_server", needs=(process_server_exists,),
    fix="See its alerts with `backhaul process-server show`; start it again or deploy another one.",
)  # fmt: skip
def process_server_is_healthy(facts: ItemFacts) -> Iterator[str]:
    """A process server of the network is healthy."""
    if not any(_usable(server) for server in facts.process_servers):
        states = ", ".join(f"{server.name} is {server.health}" for server in facts.process_servers)
        yield f"no process server of virtual network {facts.network} can be used: {states}"


@check(
    "BH-PROCESS-SERVER-CHOICE", field="process_server", needs=(process_server_is_healthy,),
    fix="Choose a healthy process server of the machine's network.",
)  # fmt: skip
def process_server_can_be_chosen(facts: ItemFacts) -> Iterator[str]:
    """The chosen process server serves the machine's network and is healthy."""
    if facts.process_server and not any(_usable(server) for server in _chosen(facts)):
        yield f"process server {facts.process_server} is not a healthy one of virtual network {facts.network}"


@check(
    "BH-PROCESS-SERVER-VERSION", field="process_server", needs=(process_server_can_be_chosen,),
    fix="Upgrade the configuration server first, then process servers, then agents.",
)  # fmt: skip
def process_server_version_fits(facts: ItemFacts) -> Iterator[str]:
    """The process server is not newer than its configuration server."""
    for server in _chosen(facts):
        if server.version > facts.configuration_server_version:
            ours = text_of(facts.configuration_server_version)
            yield f"process server {server.name} has version {text_of(server.version)}, the configuration server {ours}"


@check("BH-MASTER-TARGET-NONE", field="master_target", fix="Register one: `backhaul master-target register`.")
def master_target_exists(facts: ItemFacts) -> Iterator[str]:
    """There is a master target."""
    if facts.master_target is None:
        yield "no master target is registered at the other side"


@check("BH-MASTER-TARGET-SILENT", field="master_target", needs=(master_target_exists,),
       fix="Start it again and see `backhaul doctor` for the way to it.")  # fmt: skip
def master_target_answers(facts: ItemFacts) -> Iterator[str]:
    """The master target answers."""
    if facts.master_target is not None and not facts.master_target.answers:
        yield f"master target {facts.master_target.name} does not answer"


@check("BH-MASTER-TARGET-VERSION", field="master_target", needs=(master_target_exists,),
       fix="Upgrade the configuration server and process server first, then the master target.")  # fmt: skip
def master_target_version_fits(facts: ItemFacts) -> Iterator[str]:
    """The master target is not newer than configuration server and process server."""
    target = facts.master_target
    servers = [server.version for server in _chosen(facts)]
    oldest = min([facts.configuration_server_version, *servers])
    if target is not None and target.version > oldest:
        theirs = text_of(target.version)
        yield f"master target {target.name} has version {theirs}, but a server before it {text_of(oldest)}"


@check("BH-MASTER-TARGET-DISKS", field="master_target", needs=(master_target_exists,),
       fix="Register another master target, or take disks off this one.")  # fmt: skip
def master_target_has_slots(facts: ItemFacts) -> Iterator[str]:
    """The master target can take the item's disks."""
    target = facts.master_target
    new = sum(disk.replica_bytes is None for disk in facts.disks)
    if target is not None and target.disks_attached + new > target.disks_most:
        yield f"master target {target.name} has {target.disks_attached} of {target.disks_most} disks; {new} are to come"


@check("BH-PATH-BROKEN", field="path", fix="`backhaul doctor` walks the way rung by rung and says how to mend it.")
def path_is_whole(facts: ItemFacts) -> Iterator[str]:
    """The way from the machine through the process server to the target is whole."""
    if facts.broken_rung:
        yield f"the way is broken at: {facts.broken_rung}"


@check("BH-DISK-SMALLER", field="disks", fix="Grow the replica's disk to at least the size of the source.")
def replicas_are_large_enough(facts: ItemFacts) -> Iterator[str]:
    """No replica is smaller than its source."""
    for disk in facts.disks:
        if disk.replica_bytes is not None and disk.replica_bytes < disk.source_bytes:
            yield f"the replica of {disk.name} has {disk.replica_bytes:,} bytes, the source {disk.source_bytes:,}"


@check("BH-DISK-NEW", field="disks", severity=_WARN, fix="Nothing has to be done; all of its blocks will travel.")
def replicas_exist(facts: ItemFacts) -> Iterator[str]:
    """Every disk has its old disk at the other side, so only differing blocks travel."""
    for disk in facts.disks:
        if disk.replica_bytes is None:
            yield f"{disk.name} has no disk at the other side: {disk.source_bytes:,} bytes are copied whole"


@check("BH-DISK-SHARED", field="disks", fix="Exclude the disk, or give each machine a disk of its own.")
def disks_are_not_shared(facts: ItemFacts) -> Iterator[str]:
    """No disk is shared with another machine."""
    for disk in facts.disks:
        if disk.shared:
            yield f"{disk.name} is shared with another machine: no one machine could say when it is still"


@check(
    "BH-JOURNAL-ROOM", field="journal",
    fix="Enlarge the journal's volume, release a pin, choose another volume, or give up cancel by name.",
)  # fmt: skip
def journal_has_room(facts: ItemFacts) -> Iterator[str]:
    """The undo journal has room for the estimate, so that cancel stays possible."""
    needed, free = facts.journal_needed_bytes, facts.journal_free_bytes
    if needed > free and not facts.cancel_given_up:
        yield f"cancel needs up to {needed:,} bytes of journal and {free:,} are free"


@check("BH-DISK-EMPTY", field="disks", fix="Give the disk a size, or leave it out of what is protected.")
def disks_have_a_size(facts: ItemFacts) -> Iterator[str]:
    """Every disk has a size."""
    for disk in facts.disks:
        if disk.source_bytes <= 0:
            yield f"{disk.name} has no bytes: there is nothing of it that could be replicated"


@check("BH-REPLICA-SPACE", field="disks", fix="Free space in the storage account, or choose another account.")
def replicas_have_space(facts: ItemFacts) -> Iterator[str]:
    """There is space for the disks that are made for the replica."""
    new = sum(disk.source_bytes for disk in facts.disks if disk.replica_bytes is None)
    if facts.replica_free_bytes is not None and new > facts.replica_free_bytes:
        yield f"the replica's disks take {new:,} bytes and {facts.replica_free_bytes:,} are free"


@check("BH-JOURNAL-SPACE", field="journal", needs=(master_target_answers,),
       fix="Free space on the volume of the master target's data folder, or choose another master target.")  # fmt: skip
def journal_can_begin(facts: ItemFacts) -> Iterator[str]:
    """The master target has space for an undo journal."""
    if facts.journal_free_bytes < LEAST_JOURNAL:
        yield f"a journal needs {LEAST_JOURNAL:,} bytes at least and {facts.journal_free_bytes:,} are free"
