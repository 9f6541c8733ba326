"""A server that waits to be registered: what it answers on its port, and what its registration tool is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import pytest

from backhaul.links.certificates import Expect, key_hash
from backhaul.links.dialer import Address, DialledStream, dial_data, dial_enrolment
from backhaul.links.enrolment import AskBody, Desk, Issued, KnownSecret, SecretBook, serve_enrolment
from backhaul.links.enrolment_limits import Limiter, MemoryFailures
from backhaul.links.errors import KeyHashWrong, LinkError, PassphraseWrong, TokenSpent
from backhaul.links.listener import Caller, close_stream, stream_route
from backhaul.links.passphrase import Passphrase, SecretKind, make_passphrase
from backhaul.links.tls import ALPN_ENROL
from backhaul.process_server.errors import RegisterFailed, RegisterUnavailable
from backhaul.process_server.register_socket import MAX_MESSAGE, SOCKET, RegisterRequest, ask_register, ask_status
from backhaul.process_server.unregistered import (
    MAX_WAITING,
    Registered,
    Unregistered,
    WaitingConfig,
    console_line,
    read_key_hash,
)
from backhaul.replication.errors import BackhaulError
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness
from backhaul.replication.values import Role
from links.world import Vault, listening, make_authority

CLOCK, FILES, RANDOM = RealClock(), RealFiles(), RealRandomness()


@dataclass
class Desks:
    """A vault's desk, as home has it."""

    vault: Vault
    passphrase: Passphrase
    secrets: SecretBook
    desk: Desk

    def request(self, **changes: object) -> RegisterRequest:
        plain = RegisterRequest("cs.home", 443, self.passphrase.text(), "ps1", "PS 1", direct=False, limit_s=20.0)
        return msgspec.structs.replace(plain, **changes)


@pytest.fixture
def desks(tmp_path: Path) -> Desks:
    vault = Vault(make_authority(tmp_path / "authority"))
    passphrase = make_passphrase(vault.authority.issuing.certificate, RANDOM)
    secrets = SecretBook(passphrase)
    identity = vault.authority.own_identity(Role.CONFIGURATION_SERVER, "cs1", dns=("cs.home",), addresses=("10.0.0.9",))

    async def issue(ask: AskBody, known: KnownSecret) -> Issued:
        chain = vault.authority.issue(ask.csr, ask.role, ask.id)
        return Issued(chain, vault.authority.trust, {"vault": "v1"})

    return Desks(
        vault,
        passphrase,
        secrets,
        Desk(lambda: identity, secrets, Limiter(MemoryFailures(), CLOCK), issue, CLOCK, RANDOM),
    )


@dataclass
class Waiting:
    """A server that waits."""

    address: Address
    key: bytes
    folder: Path
    saved: list[Registered]
    task: asyncio.Task[Registered]
    desks: list[asyncio.Task[AskBody]] = field(default_factory=list)

    async def home_dials(self, desk: Desk) -> asyncio.Task[AskBody]:
        """Home's connection, served."""
        dialled = await dial_enrolment(self.address, self.key)

        async def serve() -> AskBody:
            try:
                return await serve_enrolment(dialled.reader, dialled.writer, desk, address="ps1")
            finally:
                await close_stream(dialled.writer)

        self.desks.append(asyncio.create_task(serve()))
        return self.desks[-1]


@contextlib.asynccontextmanager
async def waiting(folder: Path, *, port: int = 0) -> AsyncIterator[Waiting]:
    saved: list[Registered] = []
    ready: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
    server = Unregistered(WaitingConfig(folder, "127.0.0.1", port), saved.append, FILES, CLOCK, RANDOM)
    task = asyncio.create_task(server.run(lambda port, key: ready.set_result((port, key))))
    made = None
    try:
        port, key = await ready
        made = Waiting(Address("127.0.0.1", port), key, folder, saved, task)
        yield made
    finally:
        tasks = [task, *(made.desks if made else [])]
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_registering_over_the_connection_that_home_dialled(tmp_path: Path, desks: Desks) -> None:
    async with waiting(tmp_path / "ps") as server:
        served = await server.home_dials(desks.desk)
        assert await ask_register(server.folder, desks.request()) == ""
        registered = await server.task
        assert (await served).id == "ps1"
        assert registered.enrolled.identity.peer.name == "process-server/ps1"
        assert server.saved == [registered]
        assert registered.request.host == "cs.home"
        assert desks.passphrase.text() not in repr(registered)
        assert registered.request.passphrase == ""
        with pytest.raises(LinkError):
            await dial_enrolment(server.address)  # the port is free for the service
    assert not list((tmp_path / "ps" / "first-key").iterdir()), "the first key is worth nothing any more"
    assert not (tmp_path / "ps" / SOCKET).exists()


async def test_the_tool_may_come_before_home(tmp_path: Path, desks: Desks) -> None:
    async with waiting(tmp_path / "ps") as server:
        asking = asyncio.create_task(ask_register(server.folder, desks.request()))
        await asyncio.sleep(0)
        await server.home_dials(desks.desk)
        await asking
        assert server.saved


async def test_registering_by_dialling(tmp_path: Path, desks: Desks) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller) -> None:
        await serve_enrolment(reader, writer, desks.desk, address=caller.host)

    credentials = desks.vault.credentials(Role.CONFIGURATION_SERVER, "cs1")
    async with (
        listening(credentials, {ALPN_ENROL: stream_route(handle)}) as home,
        waiting(tmp_path / "ps") as server,
    ):
        request = desks.request(host="127.0.0.1", port=home.port, direct=True)
        assert "cs.home" in await ask_register(server.folder, request)
        assert (await server.task).enrolled.identity.peer.id == "ps1"


async def test_the_direct_way_names_the_broken_link(tmp_path: Path, desks: Desks) -> None:
    async with waiting(tmp_path / "ps") as server:
        with pytest.raises(RegisterFailed) as failed:
            await ask_register(server.folder, desks.request(host="127.0.0.1", port=1, direct=True))
        assert failed.value.params["reason_code"] == "BH-LINK-UNREACHABLE"
        assert not server.task.done()


@pytest.mark.parametrize(("host", "warned"), [("cs.home", False), ("CS.Home", False), ("10.0.0.9", False), ("x", True)])
async def test_a_name_that_the_certificate_lacks_is_warned_of(
    tmp_path: Path, desks: Desks, host: str, warned: bool
) -> None:
    async with waiting(tmp_path / "ps") as server:
        await server.home_dials(desks.desk)
        warning = await ask_register(server.folder, desks.request(host=host))
        assert bool(warning) is warned


async def test_a_wrong_passphrase_is_said_and_another_try_succeeds(tmp_path: Path, desks: Desks) -> None:
    wrong = make_passphrase(desks.vault.authority.issuing.certificate, RANDOM)
    async with waiting(tmp_path / "ps") as server:
        served = await server.home_dials(desks.desk)
        with pytest.raises(RegisterFailed) as failed:
            await ask_register(server.folder, desks.request(passphrase=wrong.text()))
        assert failed.value.params["reason_code"] == PassphraseWrong.code
        assert "server passphrase" in failed.value.advice
        with pytest.raises(PassphraseWrong):
            await served
        assert desks.desk.limiter.store.since("ps1", 0)[0] == 1
        await server.home_dials(desks.desk)
        await ask_register(server.folder, desks.request())


async def test_a_token_registers_once(tmp_path: Path, desks: Desks) -> None:
    token = make_passphrase(desks.vault.authority.issuing.certificate, RANDOM, SecretKind.TOKEN)
    desks.secrets.add_token(KnownSecret(token, None, Role.PROCESS_SERVER, "ps1"))
    async with waiting(tmp_path / "ps") as server:
        await server.home_dials(desks.desk)
        await ask_register(server.folder, desks.request(passphrase=token.text()))
    async with waiting(tmp_path / "ps2") as server:
        await server.home_dials(desks.desk)
        with pytest.raises(RegisterFailed) as failed:
            await ask_register(server.folder, desks.request(passphrase=token.text(), id="ps2"))
        assert failed.value.params["reason_code"] in (PassphraseWrong.code, TokenSpent.code)


async def test_home_refuses_another_key(tmp_path: Path, desks: Desks) -> None:
    async with waiting(tmp_path / "ps") as server:
        with pytest.raises(KeyHashWrong):
            await dial_enrolment(server.address, bytes(32))


async def test_nothing_but_enrolment_is_spoken(tmp_path: Path, desks: Desks) -> None:
    async with waiting(tmp_path / "ps") as server:
        with pytest.raises(LinkError):
            await dial_data(
                server.address,
                desks.vault.credentials(Role.CONFIGURATION_SERVER, "cs1"),
                Expect(Role.PROCESS_SERVER, "ps1"),
                clock=CLOCK,
            )


async def test_the_key_outlives_a_restart_and_is_read_from_the_console(tmp_path: Path) -> None:
    async with waiting(tmp_path / "ps") as first:
        key = first.key
        console = f"booting\n{console_line(bytes(32))}\n{console_line(key)}\n"
        assert read_key_hash(console) == key
        assert read_key_hash("booting") is None
        assert (await ask_status(first.folder)).key_hash == key.hex()
    async with waiting(tmp_path / "ps") as again:
        assert again.key == key
        dialled = await dial_enrolment(again.address, key)
        tls = dialled.writer.get_extra_info("ssl_object")
        assert key_hash(tls.getpeercert(binary_form=True)) == key
        await close_stream(dialled.writer)


async def test_a_strangers_connection_is_passed_over(tmp_path: Path, desks: Desks) -> None:
    """Somebody else may dial first and last; the passphrase tells them from home, and they are sent nothing."""
    other = make_authority(tmp_path / "other")
    evil = other.own_identity(Role.CONFIGURATION_SERVER, "cs1")
    async with waiting(tmp_path / "ps") as server:
        await server.home_dials(desks.desk)
        while not (await ask_status(server.folder)).dialled_by:
            pass
        stranger = await server.home_dials(replace(desks.desk, identity=lambda: evil))
        while len((await ask_status(server.folder)).dialled_by) < 2:
            pass
        assert await ask_register(server.folder, desks.request()) == ""
        with pytest.raises(BackhaulError, match="the connection broke"):
            await stranger


async def test_only_strangers_are_told_apart_from_silence(tmp_path: Path, desks: Desks) -> None:
    evil = make_authority(tmp_path / "other").own_identity(Role.CONFIGURATION_SERVER, "cs1")
    async with waiting(tmp_path / "ps") as server:
        with pytest.raises(RegisterFailed) as silent:
            await ask_register(server.folder, desks.request(limit_s=0.05))
        assert silent.value.params["reason_code"] == "BH-HOME-SILENT"
        await server.home_dials(replace(desks.desk, identity=lambda: evil))
        with pytest.raises(RegisterFailed) as mismatch:
            await ask_register(server.folder, desks.request())
        assert mismatch.value.params["reason_code"] == "BH-AUTHORITY-MISMATCH"


async def test_a_connection_that_broke_is_passed_over(tmp_path: Path, desks: Desks) -> None:
    async with waiting(tmp_path / "ps") as server:
        broken = await dial_enrolment(server.address)
        while not (await ask_status(server.folder)).dialled_by:
            pass
        broken.writer.transport.abort()
        while (await ask_status(server.folder)).dialled_by:
            pass
        asking = asyncio.create_task(ask_register(server.folder, desks.request()))
        await server.home_dials(desks.desk)
        await asking


async def test_strangers_who_fill_the_waiting_room_end_the_oldest_only(tmp_path: Path, desks: Desks) -> None:
    strangers: list[DialledStream] = []
    async with waiting(tmp_path / "ps") as server:
        for _ in range(MAX_WAITING + 3):
            strangers.append(await dial_enrolment(server.address))
        ended = [await strangers[number].reader.read(1) for number in range(3)]
        assert ended == [b"", b"", b""]
        assert len((await ask_status(server.folder)).dialled_by) <= MAX_WAITING
        for each in strangers:
            each.writer.transport.abort()
        await server.home_dials(desks.desk)
        await ask_register(server.folder, desks.request())


# --- the local socket -----------------------------------------------------------------------------------------------


async def test_only_its_owner_reaches_the_socket(tmp_path: Path) -> None:
    async with waiting(tmp_path / "ps") as server:
        assert stat.S_IMODE((server.folder / SOCKET).stat().st_mode) == 0o600


async def test_without_a_server_that_waits_the_tool_says_so(tmp_path: Path, desks: Desks) -> None:
    with pytest.raises(RegisterUnavailable):
        await ask_register(tmp_path, desks.request())


async def test_a_folder_deeper_than_a_sockets_path(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    async with waiting(deep) as server:
        assert (await ask_status(server.folder)).key_hash == server.key.hex()


async def connected(folder: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """By way of a descriptor, as tests' folders lie deep."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        return await asyncio.open_unix_connection(f"/proc/self/fd/{descriptor}/{SOCKET}")
    finally:
        os.close(descriptor)


async def test_a_request_over_the_bound_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with waiting(tmp_path / "ps") as server:
        reader, writer = await connected(server.folder)
        writer.write(struct.pack("!I", MAX_MESSAGE + 1))
        assert b"BH-REGISTER-MALFORMED" in await reader.read()
        writer.transport.abort()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(struct.pack("!I", 3) + b"abc", id="no MessagePack"),
        pytest.param(struct.pack("!I", 9) + b"abc", id="cut"),
        pytest.param(b"", id="nothing"),
    ],
)
async def test_a_malformed_request_costs_its_connection_only(tmp_path: Path, desks: Desks, content: bytes) -> None:
    async with waiting(tmp_path / "ps") as server:
        reader, writer = await connected(server.folder)
        writer.write(content)
        writer.write_eof()
        await reader.read()
        writer.transport.abort()
        assert (await ask_status(server.folder)).key_hash == server.key.hex()


@pytest.mark.parametrize(
    "changes",
    [{"port": 0}, {"port": 65536}, {"id": ""}, {"host": ""}, {"limit_s": 0.0}, {"limit_s": 1e9}],
    ids=str,
)
async def test_a_request_that_makes_no_sense_is_refused(
    tmp_path: Path, desks: Desks, changes: dict[str, object]
) -> None:
    async with waiting(tmp_path / "ps") as server:
        with pytest.raises(RegisterFailed) as failed:
            await ask_register(server.folder, desks.request(**changes))
        assert failed.value.params["reason_code"] == "BH-REGISTER-MALFORMED"


async def test_a_passphrase_with_a_typing_error_is_found_before_home_is_asked(tmp_path: Path, desks: Desks) -> None:
    async with waiting(tmp_path / "ps") as server:
        with pytest.raises(RegisterFailed) as failed:
            await ask_register(server.folder, desks.request(passphrase=desks.passphrase.text()[:-1] + "?"))
        assert failed.value.params["reason_code"] == "BH-PASSPHRASE-MALFORMED"
