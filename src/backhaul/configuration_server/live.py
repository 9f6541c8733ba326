"""What was heard last: of servers, of agents, of items. Lives in memory only, as the data plane knows it better.

After a restart everything is unknown until the first heartbeat says otherwise: silence is not health. Event loop
writes; any thread reads (each value is replaced whole).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from backhaul.configuration_server.questions import Questions
from backhaul.process_server.health import ItemHealth
from backhaul.recovery.health import Assessment, ServerSample, Thresholds, assess_server
from backhaul.recovery.preflight_facts import Health
from backhaul.replication.control import AgentReport, ItemReport, ItemStatus, ServerStatus
from backhaul.replication.ports import Clock

MAX_SAMPLES: Final = 1024
"""A window of 900 s at a heartbeat a second; more are not needed to judge."""

MAX_DRAIN_S: Final = 1e6
MAX_MACHINES: Final = 8
"""Machines that are remembered of one agent: itself, and some copies of it."""


@dataclass
class LiveServer:
    """One server. Times on the monotonic clock. `skew_s`: how far its clock is ahead of ours. `relayed`: a process
    server's items.
    """

    known_since_ns: int
    status: ServerStatus | None = None
    at_ns: int = 0
    error: str = ""
    skew_s: float = 0.0
    relayed: dict[str, ItemHealth] = field(default_factory=dict)
    samples: deque[ServerSample] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    shown: dict[str, Health] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LiveItem:
    """An agent's newest report of an item, and the target's newest status. Times on the monotonic clock."""

    report: ItemReport | None = None
    reported_ns: int = 0
    status: ItemStatus | None = None
    asked_ns: int = 0


class Live:
    """Everything heard since the start."""

    def __init__(self, clock: Clock, thresholds: Thresholds) -> None:
        self._clock, self._thresholds = clock, thresholds
        self.started_ns = clock.monotonic_ns()
        self.servers: dict[str, LiveServer] = {}
        self.items: dict[str, LiveItem] = {}
        self.agents: dict[str, tuple[AgentReport, int]] = {}
        self.questions = Questions(clock)
        self.machines: dict[str, dict[str, int]] = {}
        """When each machine was heard last that reports as an agent: more than one where its disks were copied."""

    def server(self, server_id: str) -> LiveServer:
        """What is known of a server; made when nothing is."""
        return self.servers.setdefault(server_id, LiveServer(self.started_ns))

    def heard(self, server_id: str, status: ServerStatus, relayed: Iterable[ItemHealth] = ()) -> None:
        """A server answered."""
        known, now = self.server(server_id), self._clock.monotonic_ns()
        known.relayed = {item.item: item for item in relayed}
        known.status, known.at_ns, known.error = status, now, ""
        known.skew_s = (status.now_ns - self._clock.wall_ns()) / 1e9
        known.samples.append(_sample(status, now))
        known.shown = self.assess(server_id).levels

    def silent(self, server_id: str, reason: str) -> None:
        """A server did not answer."""
        known = self.server(server_id)
        known.error, known.shown = reason, self.assess(server_id).levels

    def assess(self, server_id: str) -> Assessment:
        """Health of a server at this moment."""
        known = self.server(server_id)
        return assess_server(
            tuple(known.samples),
            self._clock.monotonic_ns(),
            self._thresholds,
            known_since_ns=known.known_since_ns,
            shown=known.shown,
        )

    def reported(self, report: AgentReport, items: frozenset[str]) -> None:
        """An agent reported; only what it says of `items`, its own, counts."""
        now = self._clock.monotonic_ns()
        self.agents[report.agent] = (report, now)
        self.questions.reported(report)
        heard = self.machines.get(report.agent, {})
        others = [(machine, at) for machine, at in heard.items() if machine != report.machine]
        # The order is that of the reports, so those that are dropped were silent for longest.
        self.machines[report.agent] = {**dict(others[-MAX_MACHINES + 1 :]), report.machine: now}
        for item in (item for item in report.items if item.item in items):
            before = self.items.get(item.item, LiveItem())
            self.items[item.item] = LiveItem(item, now, before.status, before.asked_ns)

    def target_said(self, status: ItemStatus) -> None:
        """A target told of an item."""
        known = self.items.get(status.item, LiveItem())
        self.items[status.item] = LiveItem(known.report, known.reported_ns, status, self._clock.monotonic_ns())

    def only_copies(self, agent: str, machine: str, absent_s: float) -> bool | None:
        """Whether other machines than `machine` report as the agent and it does not; None while that is not known."""
        now, heard = self._clock.monotonic_ns(), self.machines.get(agent, {})
        recent = {name for name, at in heard.items() if now - at < absent_s * 1e9}
        if machine in recent:
            return False
        waited = now - self.started_ns >= absent_s * 1e9
        return True if recent and waited else None

    def age_s(self, at_ns: int) -> float | None:
        """Seconds since a moment of the monotonic clock; None for never."""
        return (self._clock.monotonic_ns() - at_ns) / 1e9 if at_ns else None


def _sample(status: ServerStatus, now_ns: int) -> ServerSample:
    used = 1 - status.memory_available / max(1, status.memory_total)
    rate = status.out_bytes_per_s
    drain = 0.0 if not status.backlog_bytes else status.backlog_bytes / rate if rate > 0 else MAX_DRAIN_S
    return ServerSample(
        at_ns=now_ns,
        cpu_percent=status.cpu_percent,
        memory_percent=100 * used,
        cache_free_percent=100 * status.space_free / max(1, status.space_total),
        drain_s=min(drain, MAX_DRAIN_S),
    )
