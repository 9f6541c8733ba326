"""Probes name the rung that is broken: each test breaks exactly one and gets exactly that."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from backhaul.links.certificates import Expect
from backhaul.links.connection import Connection, accept_data
from backhaul.links.dialer import Address
from backhaul.links.enrolment import Desk, Issued, SecretBook, serve_enrolment
from backhaul.links.enrolment_limits import Limiter, MemoryFailures
from backhaul.links.listener import Caller, data_route, stream_route
from backhaul.links.names import host_names
from backhaul.links.passphrase import Passphrase, make_passphrase
from backhaul.links.rungs import Climbed, Rung, probe_data_port, probe_enrolment, probe_server
from backhaul.links.tls import ALPN_DATA, ALPN_ENROL
from backhaul.replication.ports import RealClock, RealRandomness
from backhaul.replication.values import Role
from links.world import Vault, listening

CLOCK = RealClock()
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Caller], Awaitable[None]]


def passphrase(vault: Vault) -> Passphrase:
    return make_passphrase(vault.authority.issuing.certificate, RealRandomness())


def desk(vault: Vault) -> Desk:
    identity = vault.identity(Role.CONFIGURATION_SERVER, "cs1")

    async def issue(ask: object, known: object) -> Issued:
        raise AssertionError("a probe asks for nothing")

    limiter = Limiter(MemoryFailures(), CLOCK)
    return Desk(lambda: identity, SecretBook(passphrase(vault)), limiter, issue, CLOCK, RealRandomness())


@contextlib.asynccontextmanager
async def configuration_server(vault: Vault, serve: Serve | None = None) -> AsyncIterator[Address]:
    async def offers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller) -> None:
        await serve_enrolment(reader, writer, desk(vault), address=caller.host)

    routes = {ALPN_ENROL: stream_route(serve or offers)}
    async with listening(vault.credentials(Role.CONFIGURATION_SERVER, "cs1"), routes) as listener:
        yield Address("127.0.0.1", listener.port)


def broken(climbed: Climbed) -> tuple[Rung | None, str]:
    return climbed.broken, climbed.error.code if climbed.error else ""


async def test_every_rung_of_a_registration_holds(vault: Vault) -> None:
    async with configuration_server(vault) as address:
        climbed = await probe_enrolment(address, CLOCK, passphrase(vault))
    climbed.check()
    assert climbed.held == (Rung.NAME, Rung.TCP, Rung.TLS, Rung.ENROLMENT)


async def test_a_name_without_an_address() -> None:
    climbed = await probe_enrolment(Address("nowhere.invalid", 443), CLOCK)
    assert broken(climbed) == (Rung.NAME, "BH-NAME-UNRESOLVED")
    assert climbed.held == ()
    assert climbed.error is not None
    assert "IP address" in climbed.error.advice


async def test_a_port_where_nobody_listens() -> None:
    climbed = await probe_enrolment(Address("127.0.0.1", 1), CLOCK)
    assert broken(climbed) == (Rung.TCP, "BH-LINK-UNREACHABLE")
    assert climbed.held == (Rung.NAME,)


async def test_a_server_without_tls() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH\r\n")
        await writer.drain()
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        climbed = await probe_enrolment(Address("127.0.0.1", server.sockets[0].getsockname()[1]), CLOCK)
    assert broken(climbed) == (Rung.TLS, "BH-HANDSHAKE-FAILED")


async def test_a_server_that_speaks_something_else(vault: Vault) -> None:
    async def handler(connection: Connection) -> None:
        await accept_data(connection, "ps1")

    routes = {ALPN_DATA: data_route(handler, clock=CLOCK)}
    async with listening(vault.credentials(Role.PROCESS_SERVER, "ps1"), routes) as listener:
        climbed = await probe_enrolment(Address("127.0.0.1", listener.port), CLOCK)
    assert climbed.broken is Rung.TLS


async def test_a_server_that_offers_nothing(vault: Vault) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller) -> None:
        """Closes at once."""

    async with configuration_server(vault, silent) as address:
        assert broken(await probe_enrolment(address, CLOCK)) == (Rung.ENROLMENT, "BH-ENROLMENT")


async def test_nonsense_instead_of_an_offer(vault: Vault) -> None:
    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller) -> None:
        writer.write(b"\xff" * 100)
        await writer.drain()

    async with configuration_server(vault, nonsense) as address:
        assert broken(await probe_enrolment(address, CLOCK)) == (Rung.ENROLMENT, "BH-ENROLMENT-MALFORMED")


async def test_another_vaults_passphrase(vault: Vault, other_vault: Vault) -> None:
    async with configuration_server(vault) as address:
        climbed = await probe_enrolment(address, CLOCK, passphrase(other_vault))
    assert broken(climbed) == (Rung.ENROLMENT, "BH-AUTHORITY-MISMATCH")


# --- a registered server --------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def process_server(vault: Vault) -> AsyncIterator[Address]:
    async def handler(connection: Connection) -> None:
        await accept_data(connection, "ps1")

    routes = {ALPN_DATA: data_route(handler, clock=CLOCK)}
    async with listening(vault.credentials(Role.PROCESS_SERVER, "ps1"), routes) as listener:
        yield Address("127.0.0.1", listener.port)


async def test_every_rung_of_a_registered_server_holds(vault: Vault) -> None:
    async with process_server(vault) as address:
        credentials = vault.credentials(Role.CONFIGURATION_SERVER, "cs1")
        climbed = await probe_server(address, credentials, Expect(Role.PROCESS_SERVER, "ps1"), CLOCK)
    assert (climbed.broken, climbed.held[-1]) == (None, Rung.SERVER)


async def test_another_server_at_its_address(vault: Vault) -> None:
    async with process_server(vault) as address:
        credentials = vault.credentials(Role.CONFIGURATION_SERVER, "cs1")
        climbed = await probe_server(address, credentials, Expect(Role.PROCESS_SERVER, "ps2"), CLOCK)
    assert broken(climbed) == (Rung.TLS, "BH-ROLE-REFUSED")


async def test_a_server_that_does_not_accept_us(vault: Vault) -> None:
    """With TLS 1.3 the handshake is over for us before the other side has looked at our certificate."""
    revoked = vault.credentials(Role.CONFIGURATION_SERVER, "cs1")
    vault.authority.revoke(name="configuration-server/cs1")
    async with process_server(vault) as address:
        climbed = await probe_server(address, revoked, Expect(Role.PROCESS_SERVER, "ps1"), CLOCK)
    assert climbed.broken is Rung.SERVER


# --- the data port --------------------------------------------------------------------------------------------------


async def test_a_free_data_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    assert (await probe_data_port("127.0.0.1", port)).broken is None


async def test_a_taken_data_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        climbed = await probe_data_port("127.0.0.1", sock.getsockname()[1])
    assert broken(climbed) == (Rung.DATA_PORT, "BH-DATA-PORT")


@pytest.mark.parametrize("port", [443, 0, -1, 65536])
async def test_a_port_that_is_not_for_data(port: int) -> None:
    assert broken(await probe_data_port("127.0.0.1", port)) == (Rung.DATA_PORT, "BH-DATA-PORT")


async def test_an_address_of_another_machine() -> None:
    assert broken(await probe_data_port("192.0.2.1", 9443)) == (Rung.DATA_PORT, "BH-DATA-PORT")


def test_names_in_a_certificate(vault: Vault) -> None:
    identity = vault.authority.own_identity(Role.CONFIGURATION_SERVER, "cs1", dns=("CS.Home",), addresses=("10.0.0.9",))
    assert host_names(identity.certificate) == {"cs.home", "10.0.0.9"}
    assert host_names(vault.authority.issuing.certificate) == frozenset()
