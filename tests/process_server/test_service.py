"""A real process server over TLS on loopback: relaying, restart, both directions of dialling, faults, control."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest

from backhaul.links.connection import Connection, accept_data
from backhaul.links.errors import LinkEnded
from backhaul.links.listener import data_route, listen
from backhaul.links.tls import ALPN_DATA
from backhaul.process_server import service
from backhaul.process_server.errors import FolderInUse, SpoolSyncFailed
from backhaul.process_server.health import Health
from backhaul.replication import messages as m
from backhaul.replication.errors import BackhaulError
from backhaul.replication.messages import MessageType
from backhaul.replication.ports import OpenFile, RealFiles
from backhaul.replication.units import MiB
from backhaul.replication.values import Role
from process_server.ends import (
    CLOCK,
    TARGET,
    AgentEnd,
    TargetEnd,
    Vault,
    connect,
    make_vault,
    receive,
    serving,
    target_dials,
)
from process_server.world import AGENT, ITEM


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return make_vault(tmp_path / "ca")


@pytest.fixture
async def port(vault: Vault, tmp_path: Path) -> AsyncIterator[int]:
    async with serving(vault, tmp_path / "ps") as (number, _):
        yield number


async def agent_of(vault: Vault, port: int, size: int = 1000) -> AgentEnd:
    return AgentEnd(await connect(vault, port, Role.AGENT, AGENT), size=size)


async def ask(vault: Vault, port: int, method: str, params: dict[str, object]) -> tuple[m.Response, bytes]:
    connection = await connect(vault, port, Role.CONFIGURATION_SERVER, "cs")
    await connection.send(m.message(m.Request(1, method, params)))
    received = await receive(connection, MessageType.RESPONSE)
    await connection.close()
    return m.read_head(received, m.Response), bytes(received.payload)


@pytest.mark.parametrize("size", [10, 4096, MiB], ids=["10B", "4KiB", "1MiB"])
async def test_frames_arrive_whole_and_in_order(vault: Vault, port: int, size: int) -> None:
    target, agent = TargetEnd(), await agent_of(vault, port, size)
    async with target_dials(vault, port, target):
        await agent.open()
        await agent.send(range(1, 41))
        await agent.spooled(40)
        await target.until(lambda: len(target.frames) == 41)
    assert target.frames == [agent.content(number) for number in range(41)]
    await agent.connection.close()


async def test_spooling_needs_no_target_and_a_restart_goes_on(vault: Vault, tmp_path: Path) -> None:
    target = TargetEnd()
    async with serving(vault, tmp_path / "ps") as (port, _):
        agent = await agent_of(vault, port, 100_000)
        async with target_dials(vault, port, target):
            await agent.open()
            await agent.spooled(0)
            await target.until(lambda: len(target.frames) == 1)
        await agent.send(range(1, 51))
        await agent.spooled(50)
        fence = agent.fence
    async with serving(vault, tmp_path / "ps") as (port, _):
        agent = await agent_of(vault, port, 100_000)
        position = await agent.attach()
        assert (position.fence, position.number) == (fence, 50)
        agent.fence = fence
        await agent.send(range(51, 61))
        async with target_dials(vault, port, target):
            await target.until(lambda: len(target.frames) == 61)
        assert not target.gaps
    assert target.frames == [agent.content(number) for number in range(61)]


async def test_a_target_that_lost_its_connection_gets_the_rest(vault: Vault, port: int) -> None:
    target, agent = TargetEnd(), await agent_of(vault, port)
    async with target_dials(vault, port, target) as connection:
        await agent.open()
        await agent.send(range(1, 101))
        await target.until(lambda: len(target.frames) >= 10)
        connection.abort()
    await agent.spooled(100)
    async with target_dials(vault, port, target):
        await target.until(lambda: len(target.frames) == 101)
    assert not target.gaps
    assert target.frames == [agent.content(number) for number in range(101)]


async def test_the_target_may_be_dialled_instead(vault: Vault, tmp_path: Path, port: int) -> None:
    target, agent = TargetEnd(), await agent_of(vault, port)

    async def accepted(connection: Connection) -> None:
        await accept_data(connection, TARGET)
        await target.serve(connection)

    listener = await listen(
        "127.0.0.1", 0, vault.credentials(Role.MASTER_TARGET, TARGET), {ALPN_DATA: data_route(accepted, clock=CLOCK)}
    )
    try:
        answer, _ = await ask(vault, port, "configure", {"dial": [f"127.0.0.1:{listener.port}"]})
        assert answer.code == ""
        await agent.open()
        await agent.send(range(1, 11))
        await target.until(lambda: len(target.frames) == 11)
        await ask(vault, port, "configure", {"dial": []})
        position = await agent.attach()
        while position.target_connected:
            position = await agent.attach()
    finally:
        await listener.close()


async def test_replies_reach_the_agent_and_attaching_has_them_repeated(vault: Vault, port: int) -> None:
    target, agent = TargetEnd(), await agent_of(vault, port)
    async with target_dials(vault, port, target):
        await agent.open()
        await agent.spooled(0)
        again = await agent_of(vault, port)
        await again.attach()
        reply = await receive(again.connection, MessageType.REPLY)
        assert bytes(reply.payload) == b"newest state"
        with pytest.raises(LinkEnded, match="BH-CONNECTION-REPLACED"):
            await receive(agent.connection, MessageType.BYE)


class SwitchedFiles(RealFiles):
    """The machine's files; writes or syncs fail while switched so."""

    def __init__(self) -> None:
        self.full = False
        self.broken = False
        self.failures = 0

    def open(self, path: Path, *, create: bool = False, writable: bool = True) -> OpenFile:
        return _SwitchedFile(super().open(path, create=create, writable=writable), self)


class _SwitchedFile:
    def __init__(self, file: OpenFile, switch: SwitchedFiles) -> None:
        self._file = file
        self._switch = switch
        self.read_at = file.read_at
        self.truncate = file.truncate
        self.size = file.size
        self.close = file.close

    def write_at(self, offset: int, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        if self._switch.full:
            self._switch.failures += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        self._file.write_at(offset, buffers)

    def sync(self) -> None:
        if self._switch.broken:
            self._switch.failures += 1
            raise OSError(errno.EIO, "Input/output error")
        self._file.sync()


async def test_a_full_volume_stops_the_agent_and_goes_on_when_space_returns(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "RETRY_S", 0.02)
    files, target = SwitchedFiles(), TargetEnd()
    async with serving(vault, tmp_path / "ps", files) as (port, _), target_dials(vault, port, target):
        agent = await agent_of(vault, port)
        await agent.open()
        await agent.send(range(1, 11))
        await agent.spooled(10)
        files.full = True
        await agent.send(range(11, 21))
        throttle = m.read_head(await receive(agent.connection, MessageType.THROTTLE), m.Throttle)
        assert throttle.on
        assert "No space left" in throttle.reason
        position = m.read_head(await receive(agent.connection, MessageType.POSITION), m.Position)
        assert position.number == 10
        _, status = await ask(vault, port, "status", {})
        assert "No space left" in msgspec.msgpack.decode(status, type=Health).blocked
        files.full = False
        throttle = m.read_head(await receive(agent.connection, MessageType.THROTTLE), m.Throttle)
        assert not throttle.on
        position = m.read_head(await receive(agent.connection, MessageType.POSITION), m.Position)
        await agent.send(range(position.number + 1, 21))
        await target.until(lambda: len(target.frames) == 21)
    assert files.failures
    assert target.frames == [agent.content(number) for number in range(21)]


async def test_a_failed_sync_ends_the_process_and_acknowledges_nothing(vault: Vault, tmp_path: Path) -> None:
    files, target = SwitchedFiles(), TargetEnd()
    async with serving(vault, tmp_path / "ps", files) as (port, task):
        async with target_dials(vault, port, target):
            agent = await agent_of(vault, port)
            await agent.open()
            await agent.spooled(0)
            files.broken = True
            await agent.send(range(1, 2))
            with pytest.raises(SpoolSyncFailed):
                await task
        assert files.failures == 1, "it is never tried again"
    assert len(target.frames) == 1


async def test_status_shows_backlog_and_who_is_there(vault: Vault, port: int) -> None:
    target, agent = TargetEnd(), await agent_of(vault, port)
    target.hold = True
    async with target_dials(vault, port, target):
        await agent.open()
        await agent.send(range(1, 11))
        await agent.spooled(10)
        await target.until(lambda: len(target.frames) == 11)
        answer, payload = await ask(vault, port, "status", {})
    health = msgspec.msgpack.decode(payload, type=Health)
    assert answer.code == ""
    assert health.backlog_bytes == 500 + 10 * 1000
    (item,) = health.items
    assert (item.item, item.agent_connected, item.target_connected, item.backlog_frames) == (ITEM, True, True, 11)
    assert {(peer.id, peer.role) for peer in health.peers} == {(AGENT, "agent"), (TARGET, "master-target")}
    assert health.spool_bound_bytes == 256 * MiB
    assert health.volume_total_bytes > 0
    assert health.in_rate[10] > 0


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"dial": ["nowhere"]}, "BH-SETTING-REFUSED"),
        ({"dial": "x"}, "BH-SETTING-REFUSED"),
        ({"throttle": {"throttle_below": 0.5, "resume_above": 0.4}}, "BH-SETTING-REFUSED"),
    ],
    ids=["address", "type", "order"],
)
async def test_wrong_settings_are_refused(vault: Vault, port: int, params: dict[str, object], code: str) -> None:
    answer, _ = await ask(vault, port, "configure", params)
    assert answer.code == code
    answer, _ = await ask(vault, port, "nonsense", {})
    assert answer.code == "BH-METHOD-UNKNOWN"


async def test_settings_survive_a_restart(vault: Vault, tmp_path: Path) -> None:
    throttle = {"throttle_below": 0.9, "resume_above": 0.95, "critical_below": 0.1}
    async with serving(vault, tmp_path / "ps") as (port, _):
        await ask(vault, port, "configure", {"throttle": throttle})
    stored = RealFiles().read(tmp_path / "ps" / "settings")
    assert msgspec.msgpack.decode(stored)["throttle"] == throttle
    async with serving(vault, tmp_path / "ps") as (port, _):
        _, answer = await ask(vault, port, "configure", {"throttle": throttle})
        assert msgspec.msgpack.decode(answer)["throttle"] == throttle


async def test_a_folder_has_one_process_server(vault: Vault, tmp_path: Path, port: int) -> None:
    with pytest.raises(FolderInUse):
        async with serving(vault, tmp_path / "ps"):
            pass


async def test_a_peer_of_another_vault_is_not_heard(vault: Vault, tmp_path: Path, port: int) -> None:
    stranger = make_vault(tmp_path / "other-ca")
    with pytest.raises(BackhaulError):
        await asyncio.wait_for(connect(stranger, port, Role.AGENT, AGENT), 10)
