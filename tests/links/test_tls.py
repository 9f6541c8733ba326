"""Who gets through a handshake, in both directions, and who is refused before a byte is parsed."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path

import pytest

from backhaul.links.certificates import Expect, Trust, key_hash
from backhaul.links.connection import Connection, accept_data, open_data
from backhaul.links.dialer import Address, Backoff, Redial, dial_data, dial_enrolment, dial_stream, reconnecting
from backhaul.links.errors import (
    CertificateRevoked,
    CertificateUntrusted,
    HandshakeFailed,
    KeyHashWrong,
    LinkEnded,
    LinkLost,
    LinkUnreachable,
    ProtocolRefused,
    RoleRefused,
)
from backhaul.links.identity import Identity
from backhaul.links.listener import Caller, Route, data_route, listen, stream_route
from backhaul.links.tls import ALPN_DATA, ALPN_ENROL, ALPN_HTTP, ALPN_TUNNEL, Credentials, unverified_context
from backhaul.replication.ports import RealClock, RealRandomness
from backhaul.replication.values import Role
from links.world import DAY_NS, PROCESS_SERVER, HandClock, Vault, listening, make_authority, turns, until_lost


class Server:
    """A process server that notes what reached its handlers."""

    def __init__(self, credentials: Credentials, roles: frozenset[Role] | None = None) -> None:
        self.credentials = credentials
        self.seen: list[str] = []
        self.bytes_parsed: list[bytes] = []
        self.routes: dict[str, Route] = {
            ALPN_DATA: data_route(self.on_data, clock=RealClock(), roles=roles),
            ALPN_TUNNEL: stream_route(self.on_stream, roles=roles),
            ALPN_ENROL: stream_route(self.on_stream),
            ALPN_HTTP: stream_route(self.on_stream),
        }

    async def on_data(self, connection: Connection) -> None:
        self.seen.append(connection.peer.name)
        await accept_data(connection, "ps1")
        await until_lost(connection)

    async def on_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller) -> None:
        self.seen.append(caller.peer.name if caller.peer else "nobody")
        self.bytes_parsed.append(await reader.readexactly(1))
        writer.write(b"ok")


@pytest.fixture
def server(vault: Vault) -> Server:
    return Server(vault.credentials(Role.PROCESS_SERVER, "ps1"))


def local(port: int) -> Address:
    return Address("127.0.0.1", port)


async def greet(port: int, credentials: Credentials, expect: Expect = PROCESS_SERVER) -> None:
    """Dial and greet: with TLS 1.3 the server's refusal shows only after the dialler's own handshake."""
    connection = await dial_data(local(port), credentials, expect, clock=RealClock())
    try:
        await open_data(connection, "a1")
    finally:
        await connection.close()


async def read_or_reset(reader: asyncio.StreamReader) -> bytes:
    """What came until the end; nothing when it ended with a reset."""
    try:
        return await reader.read()
    except OSError:
        return b""


async def test_both_certificates_of_one_authority_are_admitted(vault: Vault, server: Server) -> None:
    async with listening(server.credentials, server.routes) as listener:
        await greet(listener.port, vault.credentials(Role.AGENT, "a1"))
        dialled = await dial_stream(
            local(listener.port), vault.credentials(Role.AGENT, "a2"), ALPN_TUNNEL, PROCESS_SERVER
        )
        dialled.writer.write(b"x")
        assert await dialled.reader.read() == b"ok"
        dialled.writer.close()
    assert server.seen == ["agent/a1", "agent/a2"]


async def test_a_client_of_another_authority_is_refused_before_anything_is_parsed(
    vault: Vault, other_vault: Vault, server: Server
) -> None:
    foreign = other_vault.identity(Role.AGENT, "a1")
    mixed = Credentials(foreign.with_trust(vault.authority.trust), RealClock())
    async with listening(server.credentials, server.routes) as listener:
        with pytest.raises(LinkLost):
            await greet(listener.port, mixed)
        for protocol in (ALPN_TUNNEL, ALPN_HTTP, ALPN_ENROL):
            dialled = await dial_stream(local(listener.port), mixed, protocol, PROCESS_SERVER)
            dialled.writer.write(b"x")
            assert await read_or_reset(dialled.reader) == b""
            dialled.writer.close()
    assert not server.seen
    assert not server.bytes_parsed


async def test_a_server_of_another_authority_is_refused_before_anything_is_sent(
    vault: Vault, other_vault: Vault
) -> None:
    impostor = Server(other_vault.credentials(Role.PROCESS_SERVER, "ps1"))
    async with listening(impostor.credentials, impostor.routes) as listener:
        with pytest.raises(HandshakeFailed):
            await greet(listener.port, vault.credentials(Role.AGENT, "a1"))
    assert impostor.seen == []


@pytest.mark.parametrize("protocol", [ALPN_DATA, ALPN_TUNNEL])
async def test_without_a_certificate_only_enrolment_and_the_api_are_open(
    vault: Vault, server: Server, protocol: str
) -> None:
    async with listening(server.credentials, server.routes) as listener:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", listener.port, ssl=unverified_context(protocol), server_hostname=""
        )
        writer.write(b"x")
        answer = await read_or_reset(reader)
        assert b"BH-CERTIFICATE-MISSING" in answer if protocol == ALPN_DATA else answer == b""
        writer.transport.abort()
        assert not server.seen
        assert not server.bytes_parsed
        for open_to_all in (ALPN_ENROL, ALPN_HTTP):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", listener.port, ssl=unverified_context(open_to_all), server_hostname=""
            )
            writer.write(b"x")
            assert await reader.read() == b"ok"
            writer.close()
    assert server.seen == ["nobody", "nobody"]


async def test_a_client_that_names_no_protocol_speaks_http(server: Server) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with listening(server.credentials, server.routes) as listener:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port, ssl=context)
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
        writer.write(b"x")
        assert await reader.read() == b"ok"
        writer.close()


async def test_tls_1_2_is_refused_on_both_ends(vault: Vault, server: Server) -> None:
    old = ssl.create_default_context()
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with listening(server.credentials, server.routes) as listener:
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", listener.port, ssl=old)
    assert vault.credentials(Role.AGENT, "a").client_context(ALPN_DATA).minimum_version is ssl.TLSVersion.TLSv1_3


async def test_a_protocol_without_route_is_refused(vault: Vault, server: Server) -> None:
    del server.routes[ALPN_TUNNEL]
    async with listening(server.credentials, server.routes) as listener:
        with pytest.raises(ProtocolRefused):
            await dial_stream(local(listener.port), vault.credentials(Role.AGENT, "a"), ALPN_TUNNEL, PROCESS_SERVER)


async def test_the_dialler_refuses_another_role_and_another_id(vault: Vault, server: Server) -> None:
    async with listening(server.credentials, server.routes) as listener:
        agent = vault.credentials(Role.AGENT, "a1")
        for wrong in (Expect(Role.MASTER_TARGET), Expect(Role.PROCESS_SERVER, "ps2")):
            with pytest.raises(RoleRefused):
                await greet(listener.port, agent, wrong)
        await greet(listener.port, agent, Expect(Role.PROCESS_SERVER))


async def test_the_listener_refuses_a_role_its_route_does_not_admit(vault: Vault) -> None:
    server = Server(vault.credentials(Role.PROCESS_SERVER, "ps1"), frozenset({Role.MASTER_TARGET}))
    async with listening(server.credentials, server.routes) as listener:
        with pytest.raises(LinkEnded) as caught:
            await greet(listener.port, vault.credentials(Role.AGENT, "a1"))
        assert caught.value.params["reason"] == "BH-ROLE-REFUSED"
        await greet(listener.port, vault.credentials(Role.MASTER_TARGET, "t1"))
    assert server.seen == ["master-target/t1"]


def expired_identity(tmp_path: Path, role: Role, peer_id: str) -> tuple[Vault, Identity]:
    """An authority of a year ago whose first certificate has expired, and which issues today."""
    clock = HandClock(time.time_ns() - 365 * DAY_NS)
    vault = Vault(make_authority(tmp_path / "old-authority", clock=clock))
    old = vault.identity(role, peer_id)
    clock.advance(365 * DAY_NS)
    return vault, old


async def test_an_expired_client_is_refused(tmp_path: Path) -> None:
    vault, old = expired_identity(tmp_path, Role.AGENT, "a1")
    server = Server(vault.credentials(Role.PROCESS_SERVER, "ps1"))
    async with listening(server.credentials, server.routes) as listener:
        with pytest.raises(LinkLost):
            await greet(listener.port, Credentials(old, RealClock()))
        await greet(listener.port, vault.credentials(Role.AGENT, "a1"))
    assert server.seen == ["agent/a1"]


async def test_an_expired_server_is_refused(tmp_path: Path) -> None:
    vault, old = expired_identity(tmp_path, Role.PROCESS_SERVER, "ps1")
    server = Server(Credentials(old, RealClock()))
    async with listening(server.credentials, server.routes) as listener:
        with pytest.raises(HandshakeFailed):
            await greet(listener.port, vault.credentials(Role.AGENT, "a1"))
    assert server.seen == []


async def test_a_denied_client_and_a_denied_server_are_refused(vault: Vault, server: Server) -> None:
    agent = vault.credentials(Role.AGENT, "a1")
    trust = vault.authority.revoke(name="agent/a1")
    async with listening(server.credentials, server.routes) as listener:
        await greet(listener.port, agent)  # the deny list was not pushed yet
        server.credentials.replace(server.credentials.identity.with_trust(trust))
        with pytest.raises(LinkEnded) as caught:
            await greet(listener.port, agent)
        assert caught.value.params["reason"] == "BH-CERTIFICATE-REVOKED"
        assert server.seen == ["agent/a1"]
        other = vault.credentials(Role.AGENT, "a2")
        other.replace(other.identity.with_trust(vault.authority.revoke(name="process-server/ps1")))
        with pytest.raises(CertificateRevoked):
            await greet(listener.port, other)


async def test_a_pushed_deny_list_cuts_the_links_that_are_up_and_no_others(vault: Vault, server: Server) -> None:
    async with listening(server.credentials, server.routes) as listener:
        links = []
        for name in ("a1", "a2"):
            credentials = vault.credentials(Role.AGENT, name)
            links.append(await dial_data(local(listener.port), credentials, PROCESS_SERVER, clock=RealClock()))
            await open_data(links[-1], name)
        trust = vault.authority.revoke(name="agent/a1")
        server.credentials.replace(server.credentials.identity.with_trust(trust))
        assert isinstance(await until_lost(links[0]), LinkLost)
        await turns()
        assert links[1].lost is None
        for link in links:
            await link.close()


async def test_a_link_ends_with_its_certificate(vault: Vault) -> None:
    clock = HandClock()
    server = Server(Credentials(vault.identity(Role.PROCESS_SERVER, "ps1"), clock))
    async with listening(server.credentials, server.routes) as listener:
        link = await dial_data(
            local(listener.port), vault.credentials(Role.AGENT, "a1"), PROCESS_SERVER, clock=RealClock()
        )
        await open_data(link, "a1")
        server.credentials.sweep()
        await turns()
        assert link.lost is None
        clock.advance(91 * DAY_NS)
        server.credentials.sweep()
        assert isinstance(await until_lost(link), LinkLost)
        await link.close()


async def test_renewed_credentials_serve_the_next_handshake(tmp_path: Path) -> None:
    """The root changes; a peer that knows only the new root is served by the same listener, without a restart."""
    clock = HandClock(time.time_ns() - 40 * DAY_NS)
    vault = Vault(make_authority(tmp_path / "rolling", clock=clock))
    server = Server(vault.credentials(Role.PROCESS_SERVER, "ps1"))
    agent_of_old = vault.credentials(Role.AGENT, "a-old")
    vault.authority.roll_over()
    clock.advance(40 * DAY_NS)
    agent = vault.identity(Role.AGENT, "a-new")
    only_new = Credentials(agent.with_trust(Trust((vault.authority.issuing.certificate,))), RealClock())
    async with listening(server.credentials, server.routes) as listener:
        with pytest.raises((HandshakeFailed, CertificateUntrusted)):
            await greet(listener.port, only_new)
        server.credentials.replace(vault.identity(Role.PROCESS_SERVER, "ps1"))
        await greet(listener.port, only_new)
        agent_of_old.replace(agent_of_old.identity.with_trust(vault.authority.trust))
        await greet(listener.port, agent_of_old)
    assert server.seen == ["agent/a-new", "agent/a-old"]


async def test_who_dials_is_a_setting(vault: Vault) -> None:
    """The process server dials the agent: same certificates, same protocol."""
    server = Server(vault.credentials(Role.AGENT, "a1"))
    async with listening(server.credentials, server.routes) as listener:
        await greet(listener.port, vault.credentials(Role.PROCESS_SERVER, "ps1"), Expect(Role.AGENT, "a1"))
    assert server.seen == ["process-server/ps1"]


async def test_a_server_that_is_not_registered_is_known_by_its_keys_hash(vault: Vault, server: Server) -> None:
    async with listening(server.credentials, server.routes) as listener:
        right = key_hash(server.credentials.identity.certificate)
        dialled = await dial_enrolment(local(listener.port), right)
        dialled.writer.write(b"x")
        assert await dialled.reader.read() == b"ok"
        dialled.writer.close()
        with pytest.raises(KeyHashWrong):
            await dial_enrolment(local(listener.port), bytes(32))


async def test_garbage_instead_of_a_handshake_harms_nobody(vault: Vault, server: Server) -> None:
    async with listening(server.credentials, server.routes) as listener:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n" * 100)
        assert await read_or_reset(reader) == b""
        writer.close()
        await greet(listener.port, vault.credentials(Role.AGENT, "a1"))


async def test_connections_are_bounded(vault: Vault, server: Server) -> None:
    listener = await listen("127.0.0.1", 0, server.credentials, server.routes, max_connections=2)
    links = []
    for name in ("a1", "a2"):
        credentials = vault.credentials(Role.AGENT, name)
        links.append(await dial_data(local(listener.port), credentials, PROCESS_SERVER, clock=RealClock()))
        await open_data(links[-1], name)
    with pytest.raises(LinkEnded):
        await greet(listener.port, vault.credentials(Role.AGENT, "a3"))
    await links[0].close()
    while server.seen.count("agent/a4") == 0:  # the listener learns of the end a moment later
        try:
            await greet(listener.port, vault.credentials(Role.AGENT, "a4"))
        except LinkLost:
            continue
    await links[1].close()
    await listener.close()


async def test_a_port_that_is_taken_and_one_where_nobody_listens(vault: Vault, server: Server) -> None:
    async with listening(server.credentials, server.routes) as listener:
        with pytest.raises(LinkUnreachable):
            await listen("127.0.0.1", listener.port, server.credentials, server.routes)
        port = listener.port
    with pytest.raises(LinkUnreachable):
        await greet(port, vault.credentials(Role.AGENT, "a1"))


# dialling for ever


class Zero:
    def token(self, size: int) -> bytes:
        return bytes(size)


class Full:
    def token(self, size: int) -> bytes:
        return b"\xff" * size


def test_backoff_doubles_between_its_bounds_with_jitter() -> None:
    backoff = Backoff(first_s=1.0, most_s=8.0)
    assert [backoff.wait_s(n, Zero()) for n in range(1, 6)] == [0.5, 1.0, 2.0, 4.0, 4.0]
    assert [round(backoff.wait_s(n, Full()), 6) for n in range(1, 6)] == [1.0, 2.0, 4.0, 8.0, 8.0]
    assert backoff.wait_s(10**6, RealRandomness()) <= 8.0


class Script:
    """Plays dialling: which addresses answer, and how long each link holds."""

    def __init__(self, answers: dict[str, float], rounds: int) -> None:
        self.answers = answers
        self.dialled: list[str] = []
        self.waits: list[float] = []
        self.clock = HandClock()
        self._rounds = rounds

    async def connect(self, address: Address) -> Address:
        self.dialled.append(address.host)
        if address.host not in self.answers:
            raise LinkUnreachable(peer=str(address), reason="test")
        return address

    async def serve(self, address: Address) -> None:
        self.clock.advance(int(self.answers[address.host] * 1e9))
        raise LinkLost(peer=str(address), reason="test")

    async def pause(self, seconds: float) -> None:
        self.waits.append(seconds)
        if len(self.waits) == self._rounds:
            raise asyncio.CancelledError

    async def run(self, *hosts: str) -> None:
        world = Redial(self.clock, Zero(), Backoff(first_s=1.0, most_s=8.0), self.pause)
        with pytest.raises(asyncio.CancelledError):
            await reconnecting(lambda: [Address(host, 1) for host in hosts], self.connect, self.serve, world)


async def test_every_address_is_tried_before_waiting() -> None:
    script = Script({}, rounds=3)
    await script.run("a", "b", "c")
    assert script.dialled == ["a", "b", "c"] * 3
    assert script.waits == [0.5, 1.0, 2.0]


async def test_a_link_that_held_starts_the_count_again() -> None:
    script = Script({"b": 60.0}, rounds=3)
    await script.run("a", "b", "c")
    assert script.dialled == ["a", "b"] * 3
    assert script.waits == [0.5] * 3


async def test_an_address_that_answers_and_ends_at_once_does_not_hide_the_next() -> None:
    script = Script({"a": 0.1, "b": 60.0}, rounds=2)
    await script.run("a", "b")
    assert script.dialled == ["a", "b"] * 2


async def test_addresses_are_asked_for_each_round() -> None:
    script, known = Script({}, rounds=2), [Address("a", 1)]
    world = Redial(script.clock, Zero(), Backoff(), script.pause)

    def addresses() -> list[Address]:
        return list(known)

    async def connect(address: Address) -> Address:
        known.append(Address("b", 1))
        return await script.connect(address)

    with pytest.raises(asyncio.CancelledError):
        await reconnecting(addresses, connect, script.serve, world)
    assert script.dialled == ["a", "a", "b"]


async def test_a_defect_is_not_dialled_again() -> None:
    async def connect(address: Address) -> Address:
        raise ZeroDivisionError

    world = Redial(HandClock(), Zero(), Backoff())
    with pytest.raises(ZeroDivisionError):
        await reconnecting(lambda: [Address("a", 1)], connect, Script({}, 1).serve, world)


def test_a_link_that_was_closed_already_is_cut_like_any_other(vault: Vault) -> None:
    class ClosedTwice(asyncio.Transport):
        """As a TLS transport of Python 3.11.2 is by then."""

        _ssl_protocol: None = None

        def abort(self) -> None:
            raise AttributeError("'NoneType' object has no attribute '_abort'")

    class Open(asyncio.Transport):
        was_cut = False

        def abort(self) -> None:
            self.was_cut = True

    own, agent = vault.credentials(Role.PROCESS_SERVER, "ps1"), vault.credentials(Role.AGENT, "a1")
    closed, still_up = ClosedTwice(), Open()
    peer = agent.identity.peer
    own.guard(closed, peer)
    own.guard(still_up, peer)
    own.replace(own.identity.with_trust(vault.authority.revoke(name="agent/a1")))
    assert still_up.was_cut, "the first one did not end the sweep"
