"""Home keeps a tunnel to each process server; the API, and newcomers, come home through it and by no other way."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backhaul.configuration_server.http_channel import HttpChannel
from backhaul.configuration_server.member import register
from backhaul.links.certificates import Expect
from backhaul.links.dialer import Address, DialledStream, dial_enrolment, dial_stream
from backhaul.links.enrolment import MAX_ENROLMENT, enrol
from backhaul.links.errors import EnrolmentError, EnrolmentLimited, LinkError, LinkLost, PassphraseWrong, RoleRefused
from backhaul.links.listener import Caller, Route, close_stream
from backhaul.links.passphrase import make_passphrase
from backhaul.links.reaching import API, ENROL, DirectWay, FirstWay, HomeTunnelWay, Reach, RelayWay, Way, make_way
from backhaul.links.tls import ALPN_HTTP, ALPN_TUNNEL
from backhaul.links.tunnel import Tunnel, TunnelStream
from backhaul.process_server.enrol_relay import CONVERSATION_BYTES, PER_MINUTE
from backhaul.replication.errors import BackhaulError
from backhaul.replication.ports import RealRandomness
from backhaul.replication.values import Role
from configuration_server.homeward import CLOCK, CloudServer, Home, home_at, process_server, running, until
from links.faultproxy import Fault, FaultProxy
from links.world import listening


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    async with home_at(tmp_path / "home") as made:
        yield made


@contextlib.asynccontextmanager
async def linked(home: Home, folder: Path) -> AsyncIterator[CloudServer]:
    """A process server with home's tunnel to it up."""
    async with process_server(home, folder / "ps1") as server:
        tunnels = home.tunnels({"ps1": [server.address]})
        async with running(tunnels.run()):
            await until(lambda: server.api.home)
            yield server


async def ask(way: Way, path: str = "/members/self/orders") -> bytes:
    dialled = await way.connect()
    channel = HttpChannel(dialled.reader, dialled.writer, "home")
    try:
        status, body = await channel.exchange("GET", path, b"")
    finally:
        await close_stream(dialled.writer)
    assert status == 200
    return body


def relay_way(home: Home, server: CloudServer, name: str = "a1") -> RelayWay:
    return RelayWay(lambda: [server.address], home.member(Role.AGENT, name), CLOCK)


async def test_an_agent_and_the_process_server_itself_reach_the_api_and_nobody_dials_home(
    home: Home, tmp_path: Path
) -> None:
    async with linked(home, tmp_path) as server:
        agent = relay_way(home, server)
        own = HomeTunnelWay(lambda: server.api.home, home.member(Role.PROCESS_SERVER, "ps1"))
        assert await ask(agent, "/agent") == b'"heard"'
        assert await ask(own, "/server") == b'"heard"'
        await agent.close()
    assert [entry[:3] for entry in home.heard] == [
        ("agent/a1", "GET", "/agent"),
        ("process-server/ps1", "GET", "/server"),
    ]
    assert home.door.connections == 0


async def test_an_agent_of_another_vault_gets_no_tunnel(home: Home, tmp_path: Path) -> None:
    async with home_at(tmp_path / "other") as other, linked(home, tmp_path) as server:
        stranger = RelayWay(lambda: [server.address], other.member(Role.AGENT, "a1"), CLOCK)
        with pytest.raises(LinkError):
            await ask(stranger)
    assert home.heard == []


async def test_who_answers_for_home_without_its_certificate_is_refused(home: Home, tmp_path: Path) -> None:
    """A process server cannot be the configuration server, whatever it does with the stream."""
    own = home.member(Role.PROCESS_SERVER, "ps1")
    async with process_server(home, tmp_path / "ps1") as server, listening(own, {ALPN_HTTP: Route(_nobody)}) as inner:
        impostor = dataclasses.replace(home, listener=inner)
        async with running(impostor.tunnels({"ps1": [server.address]}).run()):
            await until(lambda: server.api.home)
            with pytest.raises(RoleRefused):
                await ask(relay_way(home, server))


def _nobody(_: Caller) -> asyncio.BaseProtocol:
    return asyncio.Protocol()


async def test_what_passes_the_process_server_is_ciphertext(home: Home, tmp_path: Path) -> None:
    """The bytes inside the tunnel's TLS hold nothing of the request: the stream itself is recorded."""
    seen = bytearray()
    async with linked(home, tmp_path) as server:
        tunnel = server.api.home
        assert tunnel is not None
        put = tunnel.put

        def recorded(kind: object, number: int, payload: bytes = b"") -> None:
            seen.extend(payload)
            put(kind, number, payload)  # type: ignore[arg-type]

        tunnel.put = recorded  # type: ignore[method-assign]
        await ask(relay_way(home, server), "/a-path-to-be-looked-for")
    assert len(seen) > 100
    assert b"a-path-to-be-looked-for" not in seen


async def test_without_home_the_way_says_so_and_works_once_home_has_dialled(home: Home, tmp_path: Path) -> None:
    async with process_server(home, tmp_path / "ps1") as server:
        agent = relay_way(home, server)
        own = HomeTunnelWay(lambda: server.api.home, home.member(Role.PROCESS_SERVER, "ps1"))
        with pytest.raises(BackhaulError, match="no tunnel to it is up"):
            await ask(agent)
        with pytest.raises(LinkLost, match="home has not dialled"):
            await ask(own)
        async with running(home.tunnels({"ps1": [server.address]}).run()):
            await until(lambda: server.api.home)
            assert await ask(agent) == await ask(own) == b'"heard"'
    assert home.door.connections == 0


async def test_a_cut_tunnel_is_reported_and_comes_back_at_the_other_address(home: Home, tmp_path: Path) -> None:
    async with process_server(home, tmp_path / "ps1") as server, contextlib.AsyncExitStack() as cut:
        way = await cut.enter_async_context(FaultProxy(server.address.port))
        wanted = {"ps1": [Address("127.0.0.1", way.port), Address("127.0.0.1", 1)]}
        tunnels = home.tunnels(wanted)
        async with running(tunnels.run()):
            await until(lambda: server.api.home)
            up = tunnels.states()["ps1"]
            assert (up.up, up.address, up.error) == (True, f"127.0.0.1:{way.port}", None)
            assert up.since_ns
            up.check()
            await cut.aclose()
            down = await until(lambda: (s := tunnels.state("ps1")) and not s.up and s)
            with pytest.raises(LinkError):
                down.check()
            assert down.since_ns >= up.since_ns
            wanted["ps1"] = [Address("127.0.0.1", 1), server.address]
            tunnels.wake()
            again = await until(lambda: (s := tunnels.state("ps1")) and s.up and s)
            assert again.address == str(server.address)
            await until(lambda: server.api.home)
            assert await ask(relay_way(home, server)) == b'"heard"'
            wanted.clear()
            tunnels.wake()
            await until(lambda: not tunnels.states() and server.api.home is None)


async def test_a_tunnel_that_breaks_within_is_dialled_again(home: Home, tmp_path: Path) -> None:
    async with (
        process_server(home, tmp_path / "ps1") as server,
        FaultProxy(server.address.port, [Fault("up", 6000, "reset")]) as way,
        running(home.tunnels({"ps1": [Address("127.0.0.1", way.port)]}).run()),
    ):
        await until(lambda: server.api.home)
        agent = relay_way(home, server)
        failures = 0
        for _ in range(30):
            try:
                await ask(agent)
            except (BackhaulError, OSError, EOFError):
                failures += 1
                await until(lambda: server.api.home)
        assert await ask(agent) == b'"heard"'
        assert way.connections > 1
        assert failures <= 3


async def test_another_server_at_the_address_is_refused(home: Home, tmp_path: Path) -> None:
    async with process_server(home, tmp_path / "ps2", "ps2") as other:
        tunnels = home.tunnels({"ps1": [other.address]})
        async with running(tunnels.run()):
            state = await until(lambda: (s := tunnels.state("ps1")) and s.error and s)
            assert state.error.code == "BH-ROLE-REFUSED"
            assert other.api.home is None


# --- ways -----------------------------------------------------------------------------------------------------------


class Counted:
    """A way that works or not, and counts."""

    def __init__(self, way: Way | None) -> None:
        self.way, self.tries = way, 0

    async def connect(self) -> DialledStream:
        self.tries += 1
        if self.way is None:
            raise LinkLost(peer="home", reason="it is down")
        return await self.way.connect()

    async def close(self) -> None:
        """Nothing is kept."""


async def test_a_way_that_failed_has_its_turn_last(home: Home) -> None:
    good = Counted(DirectWay(lambda: [home.address], home.member(Role.AGENT, "a1")))
    bad = Counted(None)
    way = FirstWay([bad, good], CLOCK)
    for _ in range(3):
        await ask(way)
    assert (bad.tries, good.tries) == (1, 3)
    good.way = None
    with pytest.raises(LinkLost):
        await ask(way)
    assert (bad.tries, good.tries) == (2, 4)


@pytest.mark.parametrize(("reach", "doors"), [(Reach.DIRECT, 1), (Reach.PROCESS_SERVER, 0)])
async def test_the_setting_says_whether_home_is_dialled(home: Home, tmp_path: Path, reach: Reach, doors: int) -> None:
    async with linked(home, tmp_path) as server:
        way = make_way(
            reach,
            home.member(Role.AGENT, "a1"),
            CLOCK,
            direct=lambda: [home.address],
            process_servers=lambda: [server.address],
        )
        await ask(way)
        await way.close()
    assert home.door.connections == doors


async def test_direct_first_falls_back_to_the_process_server(home: Home, tmp_path: Path) -> None:
    async with linked(home, tmp_path) as server:
        way = make_way(
            Reach.DIRECT,
            home.member(Role.AGENT, "a1"),
            CLOCK,
            direct=lambda: [Address("127.0.0.1", 1)],
            process_servers=lambda: [Address("127.0.0.1", 1), server.address],
        )
        assert await ask(way) == b'"heard"'
        await way.close()


# --- newcomers ------------------------------------------------------------------------------------------------------


async def test_a_newcomer_registers_through_the_process_server(home: Home, tmp_path: Path) -> None:
    async with linked(home, tmp_path) as server:
        registration, identity = await register(server.address, home.passphrase, Role.AGENT, "a7", "new", clock=CLOCK)
        assert identity.peer.name == "agent/a7"
        assert registration.vault == home.authority.vault
        assert [body.id for body in home.enrolled] == ["a7"]
    assert home.door.connections == 0


async def test_wrong_passphrases_are_told_counted_and_limited_per_newcomer(home: Home, tmp_path: Path) -> None:
    wrong = make_passphrase(home.authority.issuing.certificate, RealRandomness())
    async with linked(home, tmp_path) as server:
        for _ in range(home.limiter.per_address):
            with pytest.raises(PassphraseWrong):
                await register(server.address, wrong, Role.AGENT, "a7", "new", clock=CLOCK)
        with pytest.raises(EnrolmentLimited) as limited:
            await register(server.address, home.passphrase, Role.AGENT, "a7", "new", clock=CLOCK)
    assert limited.value.params["peer"] == "127.0.0.1 through ps1"
    assert home.enrolled == []


async def test_a_newcomer_that_knocks_too_often_is_not_passed_on(home: Home, tmp_path: Path) -> None:
    async with linked(home, tmp_path) as server:
        passed = 0
        for _ in range(PER_MINUTE + 3):
            dialled = await dial_enrolment(server.address)
            passed += bool(await dialled.reader.read(1))
            dialled.writer.transport.abort()
        assert passed == PER_MINUTE


async def test_without_home_a_newcomer_is_let_go(home: Home, tmp_path: Path) -> None:
    async with process_server(home, tmp_path / "ps1") as server:
        with pytest.raises(EnrolmentError):
            await register(server.address, home.passphrase, Role.AGENT, "a7", "new", clock=CLOCK)


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"\xff" * 8, id="nonsense"),
        pytest.param(b"\x7f\xff\xff\xff", id="a length of 2 GiB"),
        pytest.param(b"\0\0\1\0" + b"x" * 256, id="no MessagePack"),
        pytest.param(b"\0\0\xff\xff" + b"x" * 4 * MAX_ENROLMENT, id="more than a registration has"),
    ],
)
async def test_a_hostile_newcomer_harms_nobody(home: Home, tmp_path: Path, said: bytes) -> None:
    async with linked(home, tmp_path) as server:
        dialled = await dial_enrolment(server.address)
        with contextlib.suppress(OSError):
            dialled.writer.write(said)
            await dialled.writer.drain()
            async with asyncio.timeout(10):
                while await dialled.reader.read(65536):
                    pass
        dialled.writer.transport.abort()
        _, identity = await register(server.address, home.passphrase, Role.AGENT, "a7", "new", clock=CLOCK)
        assert identity.peer.id == "a7"
        assert await ask(relay_way(home, server)) == b'"heard"'


async def test_no_newcomer_passes_more_bytes_than_a_registration_has(home: Home, tmp_path: Path) -> None:
    """The process server bounds it itself: a home that would take everything is sent no more than that."""
    taken = bytearray()
    over = asyncio.Event()

    async def takes_all(stream: TunnelStream) -> None:
        try:
            while data := await stream.read():
                taken.extend(data)
        finally:
            over.set()

    async with process_server(home, tmp_path / "ps1") as server:
        dialled = await dial_stream(server.address, home.credentials, ALPN_TUNNEL, Expect(Role.PROCESS_SERVER))
        end = Tunnel(dialled.reader, dialled.writer, "ps1", {ENROL: takes_all}, dialled=True, clock=CLOCK)
        async with running(end.run()):
            await until(lambda: server.api.home)
            newcomer = await dial_enrolment(server.address)
            with contextlib.suppress(OSError):
                for _ in range(100):
                    newcomer.writer.write(bytes(CONVERSATION_BYTES // 10))
                    await newcomer.writer.drain()
            await over.wait()
            newcomer.writer.transport.abort()
    assert CONVERSATION_BYTES // 2 < len(taken) <= CONVERSATION_BYTES + 64


async def _drain(stream: TunnelStream) -> None:
    while await stream.read():
        pass


@pytest.mark.parametrize("header", [b"", b"\x05ab", b"\0", b"\2\xff\xff", b"\2\n\n"])
async def test_a_hostile_process_server_reaches_the_two_words_and_nothing_else(
    home: Home, tmp_path: Path, header: bytes
) -> None:
    async with linked(home, tmp_path) as server:
        tunnel = server.api.home
        assert tunnel is not None
        stream = await tunnel.open(ENROL)
        await stream.write(header)
        await stream.end()
        with pytest.raises(BackhaulError):
            await _drain(stream)
        for word in ("data", "ssh"):
            other = await tunnel.open(word)
            with pytest.raises(BackhaulError, match="offers no destination"):
                await other.read()
        plain = await tunnel.open(API)
        await plain.write(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(BackhaulError):
            while await plain.read():
                pass
        assert await ask(relay_way(home, server)) == b'"heard"'
    assert [entry[0] for entry in home.heard] == ["agent/a1"]


async def test_the_passphrase_never_passes_the_process_server(home: Home, tmp_path: Path) -> None:
    async with process_server(home, tmp_path / "ps1") as server, FaultProxy(server.address.port) as front:
        tunnels = home.tunnels({"ps1": [server.address]})
        async with running(tunnels.run()):
            await until(lambda: server.api.home)
            seen = bytearray()
            dialled = await dial_enrolment(Address("127.0.0.1", front.port))
            write = dialled.writer.write

            def recorded(data: bytes) -> None:
                seen.extend(data)
                write(data)

            dialled.writer.write = recorded  # type: ignore[method-assign, assignment]
            await enrol(dialled.reader, dialled.writer, home.passphrase, Role.AGENT, "a7", clock=CLOCK, peer="home")
            await close_stream(dialled.writer)
    assert seen
    assert home.passphrase.secret not in seen
    assert home.passphrase.text().encode() not in seen
