"""What the process server tells of itself: machine, spool, backlog, peers, throughput.

Silence is not health: an item whose target applies nothing although there is something to apply is *stalled*, and
says for how long; a peer that is gone is missing from the list. Sampled once a second by the service's ticker, so
that nothing is measured on the way of a frame. Event loop only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import msgspec
import psutil

from backhaul.process_server.items import Item
from backhaul.process_server.relay import Relay
from backhaul.process_server.spool import Space, SpooledItem
from backhaul.replication.ports import Clock
from backhaul.replication.values import ItemId, Role

WINDOWS_S: Final = (10, 60, 300)
"""Throughput is averaged over each of these."""

STALLED_S: Final = 60.0
"""A target that applies nothing of a backlog for so long is stalled: many times a batch and a slow disk's sync."""

_MARKS: Final = 4096
"""Marks per item: beyond, every second one is dropped, and old ages become coarser."""


class ItemHealth(msgspec.Struct, frozen=True):
    """One item. Ages in seconds; `oldest_age_s` is that of the oldest unapplied frame, 0 when there is none."""

    item: ItemId
    backlog_bytes: int
    backlog_frames: int
    oldest_age_s: float
    idle_s: float
    stalled: bool
    throttled: bool
    agent: str
    agent_connected: bool
    target_connected: bool
    spooled: int
    applied: int


class PeerHealth(msgspec.Struct, frozen=True):
    """A connected agent or target. `replaced`: how often it came back before its old connection had ended."""

    id: str
    role: str
    replaced: int
    items: int


class Health(msgspec.Struct, frozen=True):
    """The whole sample. Sizes in bytes, rates in bytes a second, `free_share` 0 to 1, times wall-clock nanoseconds."""

    name: str
    version: str
    started_ns: int
    sampled_ns: int
    cpu_percent: float
    machine_cpu_percent: float
    memory_bytes: int
    machine_memory_used_bytes: int
    machine_memory_total_bytes: int
    spool_used_bytes: int
    spool_bound_bytes: int
    volume_free_bytes: int
    volume_total_bytes: int
    free_share: float
    backlog_bytes: int
    oldest_age_s: float
    stalled_items: int
    throttled_items: int
    blocked: str
    damages: tuple[str, ...]
    in_rate: dict[int, float]
    out_rate: dict[int, float]
    items: tuple[ItemHealth, ...] = ()
    peers: tuple[PeerHealth, ...] = ()


class _Progress:
    """When which numbers of an item came, and when it last moved.

    A mark (number, time) says that this frame and later ones came after the time; at most one a second.
    """

    def __init__(self) -> None:
        self.marks: deque[tuple[int, int]] = deque()
        self.applied = -1
        self.moved_ns = 0

    def tick(self, item: Item, now_ns: int) -> None:
        following = item.accepted + 1
        if not len(item.backlog) or (self.marks and self.marks[-1][0] > following):
            self.marks.clear()
        if not self.marks:
            self.marks.append((item.applied + 1, now_ns))
        if self.marks[-1][0] == following:
            self.marks.pop()  # nothing came since: what comes is younger than that
        self.marks.append((following, now_ns))
        while len(self.marks) > 1 and self.marks[1][0] <= item.applied + 1:
            self.marks.popleft()
        if len(self.marks) > _MARKS:
            self.marks = deque(mark for place, mark in enumerate(self.marks) if place % 2 == 0)
        if item.applied != self.applied or not len(item.backlog) or not self.moved_ns:
            self.applied, self.moved_ns = item.applied, now_ns


class Monitor:
    """Keeps what a sample needs of the past."""

    def __init__(self, relay: Relay, clock: Clock, recovered: Iterable[SpooledItem], damages: Iterable[str]) -> None:
        self._relay = relay
        self._clock = clock
        self._damages = tuple(damages)
        self._started_ns = clock.wall_ns()
        self._process = psutil.Process()
        self._progress: dict[ItemId, _Progress] = {}
        self._traffic: deque[tuple[int, int, int]] = deque([(clock.monotonic_ns(), 0, 0)], maxlen=WINDOWS_S[-1] + 1)
        self.in_bytes = 0
        self.out_bytes = 0
        now, wall = clock.monotonic_ns(), clock.wall_ns()
        for one in recovered:
            progress = self._progress[one.item] = _Progress()
            progress.applied, progress.moved_ns = one.applied, now
            if one.oldest_ns:
                progress.marks.append((one.applied + 1, now - max(0, wall - one.oldest_ns)))

    def tick(self) -> None:
        """Once a second."""
        now = self._clock.monotonic_ns()
        self._traffic.append((now, self.in_bytes, self.out_bytes))
        for name in self._progress.keys() - self._relay.items.keys():
            del self._progress[name]
        for name, item in self._relay.items.items():
            self._progress.setdefault(name, _Progress()).tick(item, now)

    def sample(self, space: Space) -> Health:
        """The state at this moment."""
        relay, memory = self._relay, psutil.virtual_memory()
        items = tuple(self._item(item) for item in relay.items.values())
        peers = (peer for peer in relay.peers.values() if peer.role is not Role.CONFIGURATION_SERVER)
        return Health(
            name=relay.name,
            version=_version(),
            started_ns=self._started_ns,
            sampled_ns=self._clock.wall_ns(),
            cpu_percent=self._process.cpu_percent(),
            machine_cpu_percent=psutil.cpu_percent(),
            memory_bytes=self._process.memory_info().rss,
            machine_memory_used_bytes=memory.total - memory.available,
            machine_memory_total_bytes=memory.total,
            spool_used_bytes=space.used,
            spool_bound_bytes=space.bound,
            volume_free_bytes=space.volume_free,
            volume_total_bytes=space.volume_total,
            free_share=space.free_share,
            backlog_bytes=sum(item.backlog_bytes for item in items),
            oldest_age_s=max((item.oldest_age_s for item in items), default=0.0),
            stalled_items=sum(item.stalled for item in items),
            throttled_items=sum(item.throttled for item in items),
            blocked=relay.blocked.message if relay.blocked is not None else "",
            damages=self._damages,
            in_rate=self._rates(1),
            out_rate=self._rates(2),
            items=items,
            peers=tuple(PeerHealth(peer.id, str(peer.role), peer.replaced, len(peer.items)) for peer in peers),
        )

    def _item(self, item: Item) -> ItemHealth:
        now = self._clock.monotonic_ns()
        progress = self._progress.get(item.name)
        held = len(item.backlog) > 0
        oldest = (now - progress.marks[0][1]) / 1e9 if held and progress and progress.marks else 0.0
        idle = (now - progress.moved_ns) / 1e9 if held and progress and progress.moved_ns else 0.0
        return ItemHealth(
            item=item.name,
            backlog_bytes=item.backlog.bytes,
            backlog_frames=len(item.backlog),
            oldest_age_s=oldest,
            idle_s=idle,
            stalled=idle >= STALLED_S,
            throttled=item.throttled,
            agent=item.agent,
            agent_connected=item.source is not None,
            target_connected=item.target is not None,
            spooled=item.spooled,
            applied=item.applied,
        )

    def _rates(self, column: int) -> dict[int, float]:
        now = self._clock.monotonic_ns()
        total = (now, self.in_bytes, self.out_bytes)[column]
        rates = {}
        for window in WINDOWS_S:
            since = next((mark for mark in self._traffic if now - mark[0] <= window * 1e9), self._traffic[-1])
            rates[window] = (total - since[column]) / max(1.0, (now - since[0]) / 1e9)
        return rates


def _version() -> str:
    try:
        return version("backhaul")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
