"""Agents reach the configuration server's API through the process server, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backhaul.links.certificates import Expect
from backhaul.links.dialer import Address, dial_stream
from backhaul.links.errors import LinkLost, TunnelFull
from backhaul.links.listener import listen
from backhaul.links.reaching import API
from backhaul.links.tls import ALPN_TUNNEL, Credentials
from backhaul.links.tunnel import Destination, Tunnel, TunnelStream
from backhaul.process_server.api_relay import MAX_STREAMS, MAX_TUNNELS, ApiRelay
from backhaul.replication.errors import BackhaulError
from backhaul.replication.ports import RealClock
from backhaul.replication.values import Role
from links.world import Vault, make_authority, until

RELAY = Expect(Role.PROCESS_SERVER, "ps1")


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(make_authority(tmp_path / "authority"))


@contextlib.asynccontextmanager
async def relay(vault: Vault) -> AsyncIterator[Address]:
    credentials = Credentials(vault.identity(Role.PROCESS_SERVER, "ps1"), RealClock())
    listener = await listen("127.0.0.1", 0, credentials, {ALPN_TUNNEL: ApiRelay(RealClock()).route()})
    try:
        yield Address("127.0.0.1", listener.port)
    finally:
        await listener.close()


@contextlib.asynccontextmanager
async def tunnel(
    vault: Vault, address: Address, role: Role, id: str, destinations: dict[str, Destination]
) -> AsyncIterator[Tunnel]:
    dialled = await dial_stream(address, Credentials(vault.identity(role, id), RealClock()), ALPN_TUNNEL, RELAY)
    end = Tunnel(dialled.reader, dialled.writer, "relay", destinations, dialled=True, clock=RealClock())
    running = asyncio.create_task(end.run())
    try:
        yield end
    finally:
        await end.close()
        with contextlib.suppress(BackhaulError):
            await running


async def echo(stream: TunnelStream) -> None:
    while data := await stream.read():
        await stream.write(data.upper())
    await stream.end()


async def ask(end: Tunnel, word: str) -> bytes:
    stream = await end.open(word)
    await stream.write(b"hello")
    await stream.end()
    answer = b""
    while data := await stream.read():
        answer += data
    return answer


async def test_an_agent_reaches_the_api_through_the_tunnel_that_home_dialled(vault: Vault) -> None:
    async with (
        relay(vault) as address,
        tunnel(vault, address, Role.CONFIGURATION_SERVER, "cs1", {API: echo}),
        tunnel(vault, address, Role.AGENT, "a1", {}) as agent,
    ):
        assert await ask(agent, API) == b"HELLO"


async def test_without_a_tunnel_from_home_the_agent_is_told(vault: Vault) -> None:
    async with relay(vault) as address, tunnel(vault, address, Role.AGENT, "a1", {}) as agent:
        with pytest.raises(BackhaulError):
            await ask(agent, API)


@pytest.mark.parametrize("word", ["data", "other"])
async def test_an_agent_reaches_nothing_else(vault: Vault, word: str) -> None:
    async with (
        relay(vault) as address,
        tunnel(vault, address, Role.CONFIGURATION_SERVER, "cs1", {API: echo, "data": echo}),
        tunnel(vault, address, Role.AGENT, "a1", {}) as agent,
    ):
        with pytest.raises(BackhaulError):
            await ask(agent, word)


async def test_home_reaches_no_agent_through_it(vault: Vault) -> None:
    async with (
        relay(vault) as address,
        tunnel(vault, address, Role.AGENT, "a1", {API: echo}),
        tunnel(vault, address, Role.CONFIGURATION_SERVER, "cs1", {}) as home,
    ):
        with pytest.raises(BackhaulError):
            await ask(home, API)


async def test_another_process_server_may_not_open_a_tunnel(vault: Vault) -> None:
    async with relay(vault) as address:
        with pytest.raises((LinkLost, BackhaulError)):
            async with tunnel(vault, address, Role.PROCESS_SERVER, "ps2", {}) as other:
                await ask(other, API)


async def test_the_newest_tunnel_from_home_is_used_and_an_older_one_after_its_end(vault: Vault) -> None:
    async def reverse(stream: TunnelStream) -> None:
        await stream.read()
        await stream.write(b"new")
        await stream.end()

    async with (
        relay(vault) as address,
        tunnel(vault, address, Role.CONFIGURATION_SERVER, "cs1", {API: echo}),
        tunnel(vault, address, Role.AGENT, "a1", {}) as agent,
    ):
        async with tunnel(vault, address, Role.CONFIGURATION_SERVER, "cs1", {API: reverse}):
            assert await ask(agent, API) == b"new"
        assert await ask(agent, API) == b"HELLO"


async def test_an_agent_has_its_share_of_streams_and_no_more(vault: Vault) -> None:
    async with (
        relay(vault) as address,
        tunnel(vault, address, Role.CONFIGURATION_SERVER, "cs1", {API: echo}),
        tunnel(vault, address, Role.AGENT, "a1", {}) as greedy,
        tunnel(vault, address, Role.AGENT, "a2", {}) as other,
    ):
        held = [await greedy.open(API) for _ in range(MAX_STREAMS)]
        for stream in held:
            await stream.write(b"held")
            assert await stream.read() == b"HELD"
        one_more = await greedy.open(API)
        with pytest.raises(TunnelFull):
            await one_more.read()
        assert await ask(other, API) == b"HELLO"


async def test_a_further_tunnel_of_an_agent_ends_its_oldest(vault: Vault) -> None:
    async with relay(vault) as address, contextlib.AsyncExitStack() as held:
        await held.enter_async_context(tunnel(vault, address, Role.CONFIGURATION_SERVER, "cs1", {API: echo}))
        other = await held.enter_async_context(tunnel(vault, address, Role.AGENT, "a2", {}))
        assert await ask(other, API) == b"HELLO"
        mine = []
        for _ in range(MAX_TUNNELS + 1):
            mine.append(await held.enter_async_context(tunnel(vault, address, Role.AGENT, "a1", {})))
            assert await ask(mine[-1], API) == b"HELLO"
        await until(lambda: mine[0].lost)
        for end in (*mine[1:], other):
            assert await ask(end, API) == b"HELLO"
