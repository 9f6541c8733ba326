"""The doctor's ladder: everything is well but one thing, and the walk ends at exactly the rung of that, with its code.

Servers answer from values here; what needs real ones (service, TCP, certificate, links, heartbeat) is broken for real
in `test_doctor_served`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from backhaul.configuration_server import doctor
from backhaul.configuration_server.doctor import Doctor
from backhaul.configuration_server.errors import ServerSilent
from backhaul.configuration_server.live import Live
from backhaul.configuration_server.records import ItemRecord, ServerRecord
from backhaul.configuration_server.settings import Settings
from backhaul.links.errors import RoleRefused
from backhaul.mobility.errors import QuiesceFailed
from backhaul.process_server.health import Health, ItemHealth, PeerHealth
from backhaul.recovery.item import ItemState, State
from backhaul.replication.control import AgentReport, ItemReport, ItemStatus, Method, PointStatus, ServerStatus
from backhaul.replication.ports import RealClock, RealFiles
from backhaul.replication.values import (
    Consistency,
    Fence,
    Hash,
    ItemDescriptor,
    ItemId,
    ItemPolicy,
    Role,
    StillKind,
)

change = msgspec.structs.replace
ITEM, AGENT, RELAY, TARGET = ItemId("0" * 31 + "1"), "agent-1", "ps-1", "mt-1"
GiB = 1 << 30


def relay_health() -> Health:
    held = ItemHealth(ITEM, 0, 0, 0.0, 0.0, False, False, AGENT, True, True, 9, 9)
    return Health(
        name="ps", version="1", started_ns=1, sampled_ns=time.time_ns(), cpu_percent=1, machine_cpu_percent=1,
        memory_bytes=1, machine_memory_used_bytes=1, machine_memory_total_bytes=GiB, spool_used_bytes=0,
        spool_bound_bytes=GiB, volume_free_bytes=GiB, volume_total_bytes=GiB, free_share=1.0, backlog_bytes=0,
        oldest_age_s=0.0, stalled_items=0, throttled_items=0, blocked="", damages=(), in_rate={}, out_rate={},
        items=(held,), peers=(PeerHealth(AGENT, "agent", 0, 1), PeerHealth(TARGET, "master-target", 0, 1)),
    )  # fmt: skip


def target_status() -> ServerStatus:
    return ServerStatus(
        role="master-target", id=TARGET, name="mt", version="1", started_ns=1, now_ns=time.time_ns(), cpu_percent=1,
        memory_total=GiB, memory_available=GiB, space_total=GiB, space_free=GiB, backlog_bytes=0, backlog_oldest_s=0,
        in_bytes_per_s=0, out_bytes_per_s=0, items=(ITEM,), peers=(f"process-server/{RELAY}",),
        certificate_not_after_ns=0,
    )  # fmt: skip


def item_status() -> ItemStatus:
    descriptor = ItemDescriptor(
        item=ITEM, term=1, term_key=Hash(bytes(32)), generation=1, target=TARGET, agent=AGENT, active_machine="m",
        disks=(), policy=ItemPolicy(),
    )  # fmt: skip
    point = PointStatus(1, time.time_ns(), StillKind.STOPPED, Consistency.FILE_SYSTEM, "", False, 0, 1, 1)
    return ItemStatus(
        item=ITEM, descriptor=descriptor, fence=Fence(1, 1, 1), stream_open=True, applied=9, complete=None,
        newest_point=point, points=1, pins={}, promoted=False, final=False, started_epoch=False, journal_bytes=0,
        journal_limit_bytes=GiB, waiting="", findings=(), disks=(),
    )  # fmt: skip


def item_report(**fields: Any) -> ItemReport:
    well = ItemReport(ITEM, Fence(1, 1, 1), "replicating", "scan", (), 1, 1, 1, 0, 0, "", {})
    return change(well, **fields)


class World:
    """A control plane in which all is well, until a test says otherwise."""

    def __init__(self, folder: Path, port: int) -> None:
        self.clock = RealClock()
        self.servers = {
            server.id: server
            for server in (
                ServerRecord(id=AGENT, role=Role.AGENT, name="web", state="registered", built_in=False),
                ServerRecord(id=RELAY, role=Role.PROCESS_SERVER, name="ps", state="registered", built_in=False),
                ServerRecord(id=TARGET, role=Role.MASTER_TARGET, name="mt", state="registered", built_in=False),
            )
        }
        for server in self.servers.values():
            server.addresses_json = "[]" if server.id == AGENT else f'["127.0.0.1:{port}"]'
        self.record = ItemRecord(
            id=ITEM, name="web", agent=AGENT, machine="m", process_server=RELAY, assigned=True,
            state_json=msgspec.json.encode(ItemState(state=State.PROTECTED)).decode(), home_json='{"site":"home"}',
            cloud_json=f'{{"site":"cloud","target":"{TARGET}"}}',
        )  # fmt: skip
        self.relay, self.target = relay_health(), target_status()
        self.status: ItemStatus | None = item_status()
        self.greets: dict[str, Exception] = {}
        self.silent: dict[str, Exception] = {}
        self.live = Live(self.clock, Settings().thresholds)
        for known in (RELAY, TARGET):
            self.live.heard(known, self.target)
        self.report(item_report())
        self.tunnel: Any = None
        tunnels = SimpleNamespace(state=lambda server: self.tunnel if server == RELAY else None)
        self.home = SimpleNamespace(check_awaited=lambda server: None, tunnels=tunnels)
        self.vault = SimpleNamespace(
            settings=Settings(), clock=self.clock, credentials=None, files=RealFiles(), data_dir=folder
        )
        self.registry = SimpleNamespace(get=lambda name, role=None: self.servers[name])
        self.items = SimpleNamespace(get=lambda name: self.record)
        self.links = SimpleNamespace(request=self.request)

    def report(self, report: ItemReport) -> None:
        """The agent reports."""
        heard = AgentReport(AGENT, "m", "1", 0, 1, (report,))
        self.live.reported(heard, frozenset({ITEM}))

    def next_command(self, server: ServerRecord) -> str:
        return f"backhaul {server.role} run"

    async def request(self, server: str, method: Method, params: Any = None, *, limit_s: float = 0) -> Any:
        if server in self.silent:
            raise self.silent[server]
        return msgspec.to_builtins({RELAY: self.relay, TARGET: self.target}[server])

    async def target_status(self, record: ItemRecord) -> ItemStatus | None:
        return self.status

    async def greet(self, address: object, credentials: object, expect: Any, *, clock: object) -> Any:
        if expect.id in self.greets:
            raise self.greets[expect.id]
        return SimpleNamespace(abort=lambda: None)


Break = Callable[[World], None]
FAILED = QuiesceFailed(stage="pre", script="quiesce", status=1, output="no")


def relay(**fields: Any) -> Break:
    return lambda world: setattr(world, "relay", change(world.relay, **fields))


def held(**fields: Any) -> Break:
    return lambda world: setattr(world, "relay", change(world.relay, items=(change(world.relay.items[0], **fields),)))


def status(**fields: Any) -> Break:
    def do(world: World) -> None:
        assert world.status is not None
        world.status = change(world.status, **fields)

    return do


def server(id: str, **fields: Any) -> Break:
    def do(world: World) -> None:
        for name, value in fields.items():
            setattr(world.servers[id], name, value)

    return do


def old_heartbeat(world: World) -> None:
    world.live.server(RELAY).at_ns -= 61 * 10**9


def old_report(world: World) -> None:
    report, at_ns = world.live.agents[AGENT]
    world.live.agents[AGENT] = (report, at_ns - 31 * 10**9)


def tunnel_is_down(world: World) -> None:
    def check() -> None:
        raise ServerSilent(server=RELAY, reason="the tunnel is down")

    world.tunnel = SimpleNamespace(check=check)


def only_agent_is_peer(world: World) -> None:
    world.relay = change(world.relay, peers=world.relay.peers[:1])


def only_target_is_peer(world: World) -> None:
    world.relay = change(world.relay, peers=world.relay.peers[1:])


NOBODY = "127.0.0.1:1"
RUNGS: dict[str, tuple[Break, str, str]] = {
    "agent unregistered": (server(AGENT, state="unregistered"), "registered", "BH-RUNG-UNREGISTERED"),
    "agent is silent": (old_report, "reports", "BH-RUNG-AGENT"),
    "agent never reported": (lambda world: world.live.agents.clear(), "reports", "BH-RUNG-AGENT"),
    "server unregistered": (server(RELAY, state="unregistered"), "registered", "BH-RUNG-UNREGISTERED"),
    "server never started": (server(RELAY, addresses_json="[]"), "address", "BH-RUNG-UNSTARTED"),
    "service": (server(RELAY, built_in=True), "service", "BH-RUNG-SERVICE"),
    "nobody listens": (server(RELAY, addresses_json=f'["{NOBODY}"]'), "tcp", "BH-LINK-UNREACHABLE"),
    "certificate": (
        lambda world: world.greets.update({RELAY: RoleRefused(peer="x", expected="process-server/ps-1")}), "tls",
        RoleRefused.code,
    ),
    "no answer": (
        lambda world: world.silent.update({RELAY: ServerSilent(server=RELAY, reason="it hangs")}), "answers",
        "BH-SERVER-SILENT",
    ),
    "heartbeat": (old_heartbeat, "heartbeat", "BH-RUNG-HEARTBEAT"),
    "tunnel": (tunnel_is_down, "tunnel", "BH-SERVER-SILENT"),
    "clock ahead": (lambda w: relay(sampled_ns=w.relay.sampled_ns + 6 * 10**9)(w), "clock", "BH-RUNG-CLOCK"),
    "clock behind": (
        lambda w: setattr(w, "target", change(w.target, now_ns=w.target.now_ns - 9 * 10**9)), "clock", "BH-RUNG-CLOCK",
    ),
    "space": (relay(free_share=0.24), "space", "BH-RUNG-SPACE"),
    "blocked": (relay(blocked="the disk failed"), "space", "BH-RUNG-BLOCKED"),
    "agent's link": (only_target_is_peer, "agent-link", "BH-RUNG-AGENT-LINK"),
    "target's link, by its process server": (only_agent_is_peer, "target-link", "BH-RUNG-TARGET-LINK"),
    "target's link, by itself": (
        lambda w: setattr(w, "target", change(w.target, peers=("process-server/ps-10",))), "target-link",
        "BH-RUNG-TARGET-LINK",
    ),
    "replica": (lambda world: setattr(world, "status", None), "replica", "BH-RUNG-REPLICA"),
    "target waits": (status(waiting="BH-JOURNAL-FULL"), "applies", "BH-RUNG-WAITING"),
    "uploader stalls": (held(backlog_bytes=4096, idle_s=61.0), "uploader", "BH-RUNG-STALLED"),
    "throttled": (held(throttled=True), "throttle", "BH-RUNG-THROTTLED"),
    "agent's own reason": (
        lambda w: w.report(item_report(code=QuiesceFailed.code, params=dict(FAILED.params))), "replicates",
        QuiesceFailed.code,
    ),
    "a newer agent's reason": (
        lambda w: w.report(item_report(code="BH-OF-TOMORROW", params={"what": 1})), "replicates", "BH-RUNG-REPLICATION",
    ),
    "not reported": (lambda world: world.live.items.clear(), "replicates", "BH-RUNG-REPLICATION"),
    "no point": (status(newest_point=None), "point", "BH-RUNG-NO-POINT"),
}  # fmt: skip
"""What is broken, the rung at which the walk ends, and its code."""


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Break], Awaitable[list[dict[str, Any]]]]:
    """The rungs of the item's ladder, in a world with one thing broken. Servers listen, and greet as they are told."""

    async def walked(broken: Break) -> list[dict[str, Any]]:
        listener = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        async with listener:
            world = World(tmp_path, listener.sockets[0].getsockname()[1])
            monkeypatch.setattr(doctor, "dial_data", world.greet)
            broken(world)
            found = await Doctor(world).item("web")  # type: ignore[arg-type]
        assert found["ok"] == all(rung["ok"] for rung in found["rungs"])
        return list(found["rungs"])

    return walked


async def test_where_all_is_well_every_rung_holds_in_order(walk: Callable[[Break], Any]) -> None:
    rungs = await walk(lambda world: None)
    assert all(rung["ok"] for rung in rungs), rungs[-1]
    figures = ["registered", "address", "tcp", "tls", "answers", "heartbeat", "clock", "space"]
    assert [rung["id"] for rung in rungs] == [
        "registered", "reports", *figures, *figures, "agent-link", "target-link", "replica", "applies", "uploader",
        "throttle", "replicates", "point",
    ]  # fmt: skip


@pytest.mark.parametrize("what", RUNGS)
async def test_the_walk_ends_at_the_broken_rung(walk: Callable[[Break], Any], what: str) -> None:
    broken, id, code = RUNGS[what]
    *held, last = await walk(broken)
    assert (last["id"], last["ok"], last["code"]) == (id, False, code), last
    assert all(rung["ok"] for rung in held)
    assert last["reason"]
    assert last["fix"]
    assert "{" not in last["reason"] + last["fix"]


async def test_an_item_that_stands_by_has_no_links_to_look_at(walk: Callable[[Break], Any]) -> None:
    def standby(world: World) -> None:
        world.record.state_json = msgspec.json.encode(ItemState(state=State.STANDBY)).decode()
        world.relay = change(world.relay, peers=())

    rungs = await walk(standby)
    assert rungs[-1]["ok"], rungs[-1]
    assert "agent-link" not in [rung["id"] for rung in rungs]
