"""The control plane as one value: what endpoints, jobs and tasks share. Made once, by `serving`.

Invariant: whatever waits for servers runs on the event loop; jobs' threads reach it through `ask` only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from backhaul.configuration_server.accounts import Accounts
from backhaul.configuration_server.control_links import ControlLinks
from backhaul.configuration_server.doctor import Doctor
from backhaul.configuration_server.errors import NoServer, ServerSilent
from backhaul.configuration_server.heartbeats import convert
from backhaul.configuration_server.home_links import HomeLinks, with_home_link
from backhaul.configuration_server.item_way import broken_way, why_it_grows
from backhaul.configuration_server.items import Items, NewItem, state_of, target_of
from backhaul.configuration_server.jobs import PROTECT, JobRunner, Jobs, Kinds
from backhaul.configuration_server.live import Live
from backhaul.configuration_server.policies import Policies
from backhaul.configuration_server.records import ItemRecord, ServerRecord
from backhaul.configuration_server.registry import REGISTERED, UNREGISTERED, Registry, addresses_of
from backhaul.configuration_server.revisions import Revisions
from backhaul.configuration_server.vault import Vault
from backhaul.links.identity import TrustVerifier
from backhaul.recovery.health import Assessment, ItemSample, assess_item
from backhaul.recovery.item import State
from backhaul.recovery.preflight_facts import USABLE, Health
from backhaul.recovery.rpo import PointAge, Rpo, rpo
from backhaul.replication.control import AgentReport, ItemStatus, Method, PointStatus
from backhaul.replication.errors import BackhaulError
from backhaul.replication.values import Role

if TYPE_CHECKING:
    from backhaul.configuration_server.reconciler import Reconciler

T = TypeVar("T")

VIEW_S: Final = 3.0
"""How long a view waits for a target before it shows it as silent."""

HEARD_NS: Final = 10 * 1_000_000_000
"""Reports come every second; the record of the last heartbeat need not."""

EXPECTS_POINTS: Final = frozenset(
    {
        State.PROTECTED, State.VERIFYING, State.STANDBY, State.PROTECTED_TO_HOME, State.VERIFYING_TO_HOME,
        State.STANDBY_TO_HOME,
    }
)  # fmt: skip


class ControlPlane:
    """See the module."""

    runner: JobRunner
    reconciler: Reconciler
    home: HomeLinks

    def __init__(self, vault: Vault, kinds: Kinds) -> None:
        """On the running event loop, which `ask` uses from then on."""
        self._loop = asyncio.get_running_loop()
        self.vault = vault
        self.accounts = Accounts(vault)
        self.revisions = Revisions(vault.database)
        self.registry = Registry(vault, self.revisions)
        self.live = Live(vault.clock, vault.settings.thresholds)
        self.links = ControlLinks(vault.credentials, vault.clock, self._place)
        self.policies = Policies(vault)
        self.items = Items(vault, self.revisions)
        self.jobs = Jobs(vault, kinds)
        self.doctor = Doctor(self)
        self.verifier = TrustVerifier(lambda: vault.identity.trust, vault.clock)
        self._heard: dict[str, int] = {}

    def _place(self, server_id: str) -> tuple[Role, tuple[str, ...]]:
        server = self.registry.get(server_id)
        return server.kind, addresses_of(server)

    # --- servers ------------------------------------------------------------------------------------------------

    def ask(self, server: str, method: Method, params: dict[str, Any] | None = None) -> Any:
        """`ControlLinks.request` for threads that are not the event loop's."""
        return asyncio.run_coroutine_threadsafe(self.links.request(server, method, params), self._loop).result()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something on the event loop, for threads that are not the event loop's; what it answers or raises."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def target_said(self, status: ItemStatus) -> None:
        """Note a target's status; any thread."""
        self._loop.call_soon_threadsafe(self.live.target_said, status)

    def server_health(self, server: ServerRecord) -> Assessment:
        """Health of this moment; what is not registered has none. Agents: whether they report."""
        if server.state == UNREGISTERED:
            return Assessment(Health.UNKNOWN, ())
        if server.kind is Role.AGENT:
            known = self.live.agents.get(server.id)
            age_s = self.live.age_s(known[1]) if known else None
            silent = age_s is None or age_s > self.vault.settings.thresholds.unknown_after_s
            return Assessment(Health.UNKNOWN if silent else Health.HEALTHY, ())
        return with_home_link(self.live.assess(server.id), self.home.tunnels.state(server.id))

    def next_command(self, server: ServerRecord) -> str:
        """What the operator does next with a server; empty for nothing."""
        if server.state == UNREGISTERED:
            return f"backhaul {server.role} register --configuration-server HOST:PORT"
        if not addresses_of(server) and server.kind is not Role.AGENT:
            return f"backhaul {server.role} run --data-dir DIR"
        return ""

    def dialled_by(self, server_id: str) -> dict[str, tuple[str, ...]]:
        """Process servers that a server keeps links to: a master target dials them all."""
        if self.registry.get(server_id).kind is not Role.MASTER_TARGET:
            return {}
        relays = self.registry.list(Role.PROCESS_SERVER)
        return {relay.id: addresses_of(relay) for relay in relays if relay.state == REGISTERED and addresses_of(relay)}

    async def reported(self, report: AgentReport) -> None:
        """An agent's heartbeat."""
        self.live.reported(report, await asyncio.to_thread(self.items.of_agent, report.agent))
        now = self.vault.clock.monotonic_ns()
        if now - self._heard.get(report.agent, -HEARD_NS) >= HEARD_NS:
            self._heard[report.agent] = now
            await asyncio.to_thread(self.registry.heard, report.agent, report.machine)

    # --- items --------------------------------------------------------------------------------------------------

    async def target_status(self, record: ItemRecord) -> ItemStatus | None:
        """What the item's target says now; None when it does not answer or holds no such item."""
        target = target_of(record)
        if not target:
            return None
        try:
            answer = await self.links.request(target, Method.ITEM_STATUS, {"item": record.id}, limit_s=VIEW_S)
            status: ItemStatus = convert(answer, ItemStatus, target)
        except BackhaulError:
            return None
        self.live.target_said(status)
        return status

    async def points(self, record: ItemRecord) -> list[PointStatus]:
        """The item's recovery points, oldest first. Raises ServerSilent, ServerRefused."""
        target = target_of(record)
        if not target:
            raise ServerSilent(server="the master target", reason="none is chosen yet")
        answer = await self.links.request(target, Method.ITEM_POINTS, {"item": record.id})
        points: list[PointStatus] = convert(answer, list[PointStatus], target)
        return points

    def shown_rpo(self, record: ItemRecord, status: ItemStatus | None) -> Rpo:
        """RPO of this moment, with why it grows where that is known."""
        found = self.rpo(status)
        reasons = (found.why, why_it_grows(self, record, self.stalled_s(record)))
        return msgspec.structs.replace(found, why="; ".join(reason for reason in reasons if reason))

    def rpo(self, status: ItemStatus | None) -> Rpo:
        """RPO of this moment."""
        newest = status.newest_point if status else None
        known = [PointAge(newest.number, newest.barrier_ns)] if newest else []
        return rpo(known, self.vault.clock.wall_ns(), target_answers=status is not None)

    def item_health(self, record: ItemRecord, found: Rpo) -> Assessment:
        """Health of an item, given its RPO."""
        live, thresholds = self.live.items.get(record.id), self.vault.settings.thresholds
        sample = ItemSample(
            rpo=found,
            rpo_threshold_s=self.items.policy(record.policy).rpo_threshold_s,
            expects_points=state_of(record).state in EXPECTS_POINTS,
            agent_age_s=self.live.age_s(live.reported_ns) if live else None,
            target_age_s=self.live.age_s(live.asked_ns) if live else None,
            stalled_s=self.stalled_s(record),
            broken_link=broken_way(self, record),
            broken_s=self.live.age_s(self.reconciler.broken_since(record.id)) or 0.0,
        )
        return assess_item(sample, thresholds, shown={})

    def stalled_s(self, record: ItemRecord) -> float:
        """For how long nothing was applied while something waits, at the agent or spooled; 0 when nothing waits."""
        live = self.live.items.get(record.id)
        held = self.live.server(record.process_server).relayed.get(record.id)
        at_agent = live is not None and live.report is not None and live.report.unspooled_bytes > 0
        if not at_agent and (held is None or not held.backlog_bytes):
            return 0.0
        return self.live.age_s(self.reconciler.unmoved_since(record.id)) or 0.0

    def choose(self, wanted: NewItem, agent: ServerRecord) -> NewItem:
        """The wish with its servers filled in: ids of the named ones, or of healthy ones. Raises NoServer, ..."""
        target = self._choose(Role.MASTER_TARGET, wanted.target, "")
        relay = self._choose(Role.PROCESS_SERVER, wanted.process_server, agent.network)
        return NewItem(wanted.agent, wanted.policy, wanted.name, target, relay, wanted.disks)

    def _choose(self, role: Role, name: str, network: str) -> str:
        if name:
            return self.registry.get(name.rpartition("/")[2], role).id
        for server in self.registry.list(role):
            healthy = self.live.assess(server.id).health in USABLE
            if server.state == REGISTERED and healthy and server.network == network:
                return server.id
        raise NoServer(role=role)

    def protect(self, wanted: NewItem, account: str) -> tuple[ItemRecord, str]:
        """Begin to protect a machine; the item and its job. Raises ProtectRefused, NoServer, JobRunning, ..."""
        agent = self.registry.get(wanted.agent, Role.AGENT)
        chosen = self.choose(wanted, agent)
        with self.vault.database.write() as session:
            record = self.items.prepare(session, chosen, agent)
            job = self.jobs.add(session, PROTECT, record.id, record.name, account)
        self.runner.start(job, PROTECT)
        return record, job
