"""Home dials servers that wait to be registered: only the right ones, and it knows why one does not register."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from backhaul.configuration_server.dial_book import DialEntry, Dialling
from backhaul.configuration_server.enrolment_dialling import EnrolmentDialling
from backhaul.configuration_server.kept_links import KeptLinks
from backhaul.links.dialer import Address
from backhaul.links.passphrase import make_passphrase
from backhaul.links.tls import Credentials
from backhaul.process_server.errors import RegisterFailed
from backhaul.process_server.register_socket import RegisterRequest, ask_register, ask_status
from backhaul.process_server.unregistered import Registered, Unregistered, WaitingConfig
from backhaul.replication.ports import RealFiles, RealRandomness
from backhaul.replication.values import Role
from configuration_server.homeward import CLOCK, WORLD, Home, home_at, process_server, running, until

PS = Role.PROCESS_SERVER


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    async with home_at(tmp_path / "home") as made:
        yield made


@dataclass
class Waiting:
    """A server that waits."""

    address: Address
    key: bytes
    folder: Path
    task: asyncio.Task[Registered]

    def entry(self, server: str = "ps1", *, key: bytes = b"", others: tuple[Address, ...] = ()) -> DialEntry:
        return DialEntry(server, PS, Dialling.HOME, (*others, self.address), key or self.key)

    async def register(self, home: Home, passphrase: str = "", server: str = "", port: int = 443) -> str:
        request = RegisterRequest("cs.home", port, passphrase or home.passphrase.text(), server, "PS", direct=False)
        return await ask_register(self.folder, request)


@contextlib.asynccontextmanager
async def waiting(folder: Path) -> AsyncIterator[Waiting]:
    ready: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
    config = WaitingConfig(folder, "127.0.0.1", 0, id="ps1")
    server = Unregistered(config, lambda registered: None, RealFiles(), CLOCK, RealRandomness())
    async with running(server.run(lambda port, key: ready.set_result((port, key)))) as task:
        port, key = await ready
        yield Waiting(Address("127.0.0.1", port), key, folder, task)


class Awaited:
    """What the book says, and what it is told."""

    def __init__(self, **entries: DialEntry) -> None:
        self.entries = entries
        self.registered: list[tuple[str, str]] = []

    def __call__(self) -> dict[str, DialEntry]:
        return dict(self.entries)

    def enrolled(self, entry: DialEntry, address: Address) -> None:
        self.registered.append((entry.server, str(address)))
        del self.entries[entry.server]


def dialling(home: Home, book: Awaited) -> EnrolmentDialling:
    return EnrolmentDialling(book, home.desk, book.enrolled, WORLD, look_s=0.05)


async def test_a_server_registers_and_is_awaited_no_more(home: Home, tmp_path: Path) -> None:
    async with waiting(tmp_path / "ps") as server:
        book = Awaited(ps1=server.entry(others=(Address("127.0.0.1", 1),)))
        dials = dialling(home, book)
        async with running(dials.run()):
            await until(lambda: dials.states()["ps1"].up if "ps1" in dials.states() else None)
            await server.register(home)
            assert (await server.task).enrolled.identity.peer.id == "ps1"
            await until(lambda: not dials.states())
            assert book.registered == [("ps1", str(server.address))]
    assert home.door.connections == 0


async def test_a_wrong_key_is_named_and_nothing_is_said_to_it(home: Home, tmp_path: Path) -> None:
    async with waiting(tmp_path / "ps") as server:
        book = Awaited(ps1=server.entry(key=bytes(32)))
        dials = dialling(home, book)
        async with running(dials.run()):
            state = await until(lambda: (known := dials.states().get("ps1")) and known.error and known)
            assert state.error.code == "BH-KEY-HASH-WRONG"
            assert (await ask_status(server.folder)).dialled_by == ()
            book.entries["ps1"] = server.entry()
            dials.wake()
            await until(lambda: dials.states()["ps1"].up)
            await server.register(home)


async def test_a_wrong_passphrase_is_known_at_home_until_the_right_one_comes(home: Home, tmp_path: Path) -> None:
    wrong = make_passphrase(home.authority.issuing.certificate, RealRandomness())
    async with waiting(tmp_path / "ps") as server:
        book = Awaited(ps1=server.entry())
        dials = dialling(home, book)
        async with running(dials.run()):
            with pytest.raises(RegisterFailed):
                await server.register(home, wrong.text())
            refusal = await until(lambda: dials.refusal("ps1"))
            assert refusal.code == "BH-PASSPHRASE-WRONG"
            await server.register(home)
            await until(lambda: not dials.states())
            assert dials.refusal("ps1") is None


async def test_through_its_connection_no_other_server_registers(home: Home, tmp_path: Path) -> None:
    """Whoever holds that server and the passphrase gets the place of that server, not of another."""
    async with waiting(tmp_path / "ps") as server:
        book = Awaited(ps1=server.entry())
        async with running(dialling(home, book).run()):
            with pytest.raises(RegisterFailed) as failed:
                await server.register(home, server="ps2")
            assert failed.value.params["reason_code"] == "BH-ENROLMENT-REFUSED"
            assert home.enrolled == []
            await server.register(home)
            assert [ask.id for ask in home.enrolled] == ["ps1"]


async def test_a_registered_server_is_tunnelled_on_the_same_port(home: Home, tmp_path: Path) -> None:
    async with waiting(tmp_path / "ps") as server:
        async with running(dialling(home, Awaited(ps1=server.entry())).run()):
            await server.register(home)
            registered = await server.task
        credentials = Credentials(registered.enrolled.identity, CLOCK)
        async with (
            process_server(home, tmp_path / "relay", port=server.address.port, credentials=credentials) as service,
            running(home.tunnels({"ps1": [server.address]}).run()),
        ):
            await until(lambda: service.api.home)


async def test_a_defect_ends_the_dialling_instead_of_hiding() -> None:
    async def connect(server: str, address: Address) -> None:
        raise ZeroDivisionError

    async def serve(server: str, address: Address, link: None) -> None: ...

    links: KeptLinks[None] = KeptLinks(lambda: {"ps1": [Address("127.0.0.1", 1)]}, connect, serve, WORLD, 0.05)
    with pytest.raises(ZeroDivisionError):
        await links.run()
