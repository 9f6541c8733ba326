"""The lifecycle's ports on a running configuration server, and its workflows as the core's jobs.

The core's assignment follows an item's record: whose agent, which machine, which disks, which key. So telling an
agent means changing the record and raising the agent's revision; what it is to do follows from the item's state.
Called from the jobs' threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

import msgspec

from backhaul import __version__
from backhaul.configuration_server import jobs
from backhaul.configuration_server.errors import JobRunning, ResourceUnknown
from backhaul.configuration_server.item_way import broken_link
from backhaul.configuration_server.items import NewItem, disks_of
from backhaul.configuration_server.lifecycle import batches
from backhaul.configuration_server.lifecycle.errors import WaitedTooLong
from backhaul.configuration_server.lifecycle.integrity import sign_report
from backhaul.configuration_server.lifecycle.ports import AgentFacts, Ports
from backhaul.configuration_server.lifecycle.site_book import SiteBook
from backhaul.configuration_server.lifecycle.store import StoredItems, set_wish
from backhaul.configuration_server.lifecycle.values import Ids, Place, Wish
from backhaul.configuration_server.lifecycle.workflows import (
    PROTECT,
    WITHOUT_SITES,
    WORKFLOWS,
    Step,
    require_sites,
)
from backhaul.configuration_server.plane import ControlPlane
from backhaul.configuration_server.records import ItemRecord, ServerRecord
from backhaul.configuration_server.registry import REGISTERED, addresses_of
from backhaul.configuration_server.revisions import Revisions
from backhaul.recovery.item import Side
from backhaul.recovery.preflight_facts import Health, ServerFacts, Version
from backhaul.replication.control import AgentMode, Answer, ItemAssignment, Method, Question, SourceDisk
from backhaul.replication.maps import KEY_BYTES
from backhaul.replication.opening import make_descriptor
from backhaul.replication.values import ItemDescriptor, ItemId, Role
from backhaul.sites.local.definition import SiteKind

SETTLE_NS: Final = 15 * 1_000_000_000
"""Heartbeats come every few seconds, and so do agents that found this server gone."""

LOOK_S: Final = 0.5
"""How often something is looked at that others bring about; each look is one request to a target."""

_ABOUT_TO_HOLD: Final = frozenset({"final", "held"})
"""States of an agent's report while it makes the final point; `held` comes a moment before the freeze is disarmed."""

T = TypeVar("T")


class CorePorts:
    """Every port over one control plane."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self.book = SiteBook(plane.vault)
        self.items = StoredItems(plane.vault, plane.revisions)

    @cached_property
    def ports(self) -> Ports:
        """As the steps are given them."""
        return Ports(self.book, self, self, self, self.items, _Seals(self._plane), self, self._plane.vault.clock)

    # --- Targets, Waiting -----------------------------------------------------------------------------------------

    def ask(self, target: str, method: Method, params: dict[str, Any]) -> Any:
        """See the port."""
        return self._plane.ask(target, method, params)

    def until(self, look: Callable[[], T | None], *, item: ItemId, what: str, limit_s: float) -> T:
        """See the port."""
        clock = self._plane.vault.clock
        end_ns = clock.monotonic_ns() + int(limit_s * 1e9)
        while (found := look()) is None:
            if clock.monotonic_ns() > end_ns:
                raise WaitedTooLong(item=item, what=what, limit_s=limit_s)
            time.sleep(LOOK_S)
        return found

    # --- Agents ---------------------------------------------------------------------------------------------------

    def assign(self, agent: str, machine: str, assignment: ItemAssignment) -> None:
        """See the port. Standing by follows from the item's state, or from another agent being the item's."""
        if assignment.mode is AgentMode.STANDBY:
            self._bump(agent)
            return
        with self._plane.vault.database.write() as session:
            record = session.get_one(ItemRecord, assignment.item)
            before = record.agent
            record.agent, record.machine, record.assigned = agent, machine, True
            record.process_server, record.target_key = assignment.process_server, assignment.target_key
            record.disks_json = msgspec.json.encode(assignment.disks).decode()
            record.off_generation = assignment.generation if assignment.source_off else 0
            Revisions.bump(session, {before, agent})
        self._plane.revisions.wake()

    def _bump(self, agent: str) -> None:
        with self._plane.vault.database.write() as session:
            if session.get(ServerRecord, agent) is not None:
                Revisions.bump(session, [agent])
        self._plane.revisions.wake()

    def known(self, agent: str) -> AgentFacts:
        """See the port."""
        try:
            server = self._plane.registry.get(agent, Role.AGENT)
        except ResourceUnknown:
            return AgentFacts(registered=False, answers=False, version=(0, 0, 0))
        answers = self._plane.server_health(server).health is Health.HEALTHY
        return AgentFacts(server.state == REGISTERED, answers, version_of(server.version))

    def question(self, agent: str, question: Question) -> Answer:
        """See the port."""
        named = msgspec.structs.replace(question, id=self._plane.vault.world.randomness.token(16).hex())
        return self._plane.live.questions.ask(agent, named, lambda: self._bump(agent))

    def holds(self, item: ItemId, generation: int, since_ns: int) -> bool | None:
        """See the port."""
        live = self._plane.live.items.get(item)
        report = live.report if live is not None and live.reported_ns > since_ns else None
        if report is None or report.fence is None or report.fence.generation != generation:
            return None
        return report.held_frozen or (None if report.state in _ABOUT_TO_HOLD else False)

    def reads(self, agent: str, item: ItemId) -> tuple[SourceDisk, ...]:
        """See the port."""
        with self._plane.vault.database.read() as session:
            record = session.get(ItemRecord, item)
        return disks_of(record) if record is not None and record.agent == agent else ()

    # --- Servers --------------------------------------------------------------------------------------------------

    def process_servers(self, place: Place) -> tuple[ServerFacts, ...]:
        """See the port. Servers at home are registered without a network."""
        network = "" if self.book.names().get(place.site) is SiteKind.HOME else place.network
        servers = self._plane.registry.list(Role.PROCESS_SERVER)
        return tuple(
            self._facts(server) for server in servers if server.network == network and server.state == REGISTERED
        )

    def master_target(self, target: str) -> ServerFacts | None:
        """See the port."""
        try:
            return self._facts(self._plane.registry.get(target, Role.MASTER_TARGET))
        except ResourceUnknown:
            return None

    def _facts(self, server: ServerRecord) -> ServerFacts:
        health = self._plane.server_health(server).health
        live = self._plane.live.server(server.id)
        is_target = server.kind is Role.MASTER_TARGET
        return ServerFacts(
            name=server.id,
            network=server.network,
            health=health,
            answers=live.status is not None and not live.error,
            version=version_of(server.version),
            disks_attached=self._disks_of(live.status.items if live.status else ()) if is_target else 0,
        )

    def _disks_of(self, items: Iterable[str]) -> int:
        """As their target said last."""
        known = (self._plane.live.items.get(item) for item in items)
        return sum(len(live.status.disks) for live in known if live is not None and live.status is not None)

    def addresses(self, server: str) -> tuple[str, ...]:
        """See the port."""
        return addresses_of(self._plane.registry.get(server, Role.PROCESS_SERVER))

    def version(self) -> Version:
        """See the port."""
        return version_of(__version__)

    def settle(self) -> None:
        """See the port."""
        clock, live = self._plane.vault.clock, self._plane.live
        while clock.monotonic_ns() < live.started_ns + SETTLE_NS:
            servers = dict(live.servers)  # the event loop adds to it
            heard = {server for server, known in servers.items() if known.status or known.error} | set(live.agents)
            if all(one.id in heard for one in self._plane.registry.list() if one.state == REGISTERED):
                return
            time.sleep(LOOK_S)

    def broken_rung(self, item: ItemId, process_server: str, target: str) -> str:
        """See the port. The agent's own link is told of by the checks on the machine and its agent."""
        return broken_link(self._plane, process_server, target)


class _Seals:
    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    def descriptor(self, descriptor: ItemDescriptor) -> bytes:
        return make_descriptor(self._plane.vault.identity, descriptor)

    def report(self, body: bytes) -> bytes:
        return sign_report(self._plane.vault.identity, body)

    def one_time_key(self) -> bytes:
        return self._plane.vault.world.randomness.token(KEY_BYTES)


def version_of(text: str) -> Version:
    """A version as numbers; what is no number counts as 0."""
    parts = [int(part) if part.isdigit() else 0 for part in text.split(".")[:3]]
    first, second, third = (*parts, 0, 0, 0)[:3]
    return first, second, third


# --- jobs -------------------------------------------------------------------------------------------------------------

PortsOf = Callable[[ControlPlane], Ports]


def job_steps(ports_of: PortsOf) -> dict[str, tuple[jobs.Step, ...]]:
    """The workflows as kinds of the core's jobs."""
    return {kind: tuple(_job_step(step, ports_of) for step in steps) for kind, steps in WORKFLOWS.items()}


def _job_step(step: Step, ports_of: PortsOf) -> jobs.Step:
    def run(plane: ControlPlane, subject: str) -> str:
        return step.run(ports_of(plane), Ids(running_job(plane, subject), ItemId(subject)))

    return jobs.Step(step.name, step.title, run)


def running_job(plane: ControlPlane, subject: str) -> str:
    """As `jobs.running_of`. Raises ResourceUnknown."""
    with plane.vault.database.read() as session:
        found = jobs.running_of(session, subject)
    if found is None:
        raise ResourceUnknown(kind="running job of", name=subject)
    return found


def begin_job(plane: ControlPlane, item: str, kind: str, wish: Wish, account: str) -> str:
    """Begin a job of an item, by id or name; the job's id. Raises JobRunning, LifecycleUnknown, ResourceUnknown.

    What speaks against the job is found by its first step, and changes nothing.
    """
    record = plane.items.get(item)
    with plane.vault.database.write() as session:
        job = plane.jobs.add(session, kind, record.id, record.name, account)
        set_wish(session, record.id, wish, without_sites=kind in WITHOUT_SITES)
    plane.runner.start(job, kind)
    return job


def begin_protect(plane: ControlPlane, wanted: NewItem, home: Place, cloud: Place, account: str) -> tuple[str, str]:
    """Begin to protect a machine whose sides are known; item and job. Raises as `ControlPlane.protect`.

    The agent of a side that names none is the wanted one, as its key travels with the disks; so says `set_agent` later.
    """
    agent = plane.registry.get(wanted.agent, Role.AGENT)
    home, cloud = (msgspec.structs.replace(place, agent=place.agent or agent.id) for place in (home, cloud))
    named = msgspec.structs.replace(wanted, target=cloud.target)
    chosen = plane.choose(named, agent)
    items = lifecycle_of(plane).items
    with plane.vault.database.write() as session:
        record = plane.items.prepare(session, chosen, agent)
        items.plan(session, record.id, home, cloud)
        job = plane.jobs.add(session, PROTECT, record.id, record.name, account)
    plane.runner.start(job, PROTECT)
    return record.id, job


def set_agent(plane: ControlPlane, item: str, side: Side, agent: str) -> None:
    """Another agent, by id or name, sends when this side is active.

    Raises ResourceUnknown, LifecycleUnknown, JobRunning.
    """
    record, found = plane.items.get(item), plane.registry.get(agent, Role.AGENT)
    with plane.vault.database.read() as session:
        if jobs.running_of(session, record.id) is not None:
            raise JobRunning(name=record.name)  # it may have told the present one already
    items = lifecycle_of(plane).items
    require_sites(items.load(ItemId(record.id)))
    token = f"agent-{side}-{found.id}-{plane.vault.world.randomness.token(8).hex()}"
    items.change(ItemId(record.id), token, lambda item: item.placed(side, agent=found.id))


_LIFECYCLES: WeakKeyDictionary[ControlPlane, CorePorts] = WeakKeyDictionary()
_LOCK: Final = threading.Lock()


def lifecycle_of(plane: ControlPlane) -> CorePorts:
    """The lifecycle's ports of a control plane; made at the first call."""
    with _LOCK:
        if plane not in _LIFECYCLES:
            _LIFECYCLES[plane] = CorePorts(plane)
        return _LIFECYCLES[plane]


KINDS: Final = job_steps(lambda plane: lifecycle_of(plane).ports) | batches.STEPS
"""All kinds of jobs of this package, for the composition root to add to the core's."""
