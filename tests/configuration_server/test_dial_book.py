"""Who dials whom, and every address that was ever told, durable; and a member's own file of the same kind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from backhaul.configuration_server.database import Database
from backhaul.configuration_server.dial_book import MAX_ADDRESSES, DialBook, Dialling, home_dials
from backhaul.configuration_server.errors import AddressWrong, BodyWrong, ResourceUnknown, SettingsWrong
from backhaul.configuration_server.home_links import with_home_link
from backhaul.configuration_server.kept_links import LinkState
from backhaul.configuration_server.member_way import FILE, PROCESS_SERVERS_TAG, ReachBook, keep_asking
from backhaul.configuration_server.member_way import MAX_ADDRESSES as MAX_KEPT
from backhaul.configuration_server.records import ServerRecord
from backhaul.configuration_server.registry import REGISTERED, REVOKED, UNREGISTERED
from backhaul.links.dialer import Address
from backhaul.links.errors import LinkStalled
from backhaul.links.reaching import Reach
from backhaul.mobility.errors import MetadataUnreadable
from backhaul.recovery.health import Assessment
from backhaul.recovery.preflight_facts import Health
from backhaul.replication.ports import RealFiles
from backhaul.replication.values import Role

KEY = bytes(range(32))
PS = Role.PROCESS_SERVER


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "db")
    yield made
    made.close()


@pytest.fixture
def book(database: Database) -> DialBook:
    return DialBook(database)


class Servers:
    """The registry's list, over the same records."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, server: str, *addresses: str, state: str = REGISTERED, network: str = "v", own: bool = False) -> None:
        record = ServerRecord(
            id=server, role=PS, name=server, built_in=own, state=state, network=network,
            addresses_json=msgspec.json.encode(addresses).decode(),
        )  # fmt: skip
        with self._database.write() as session:
            session.merge(record)

    def list(self, role: Role) -> list[ServerRecord]:
        with self._database.read() as session:
            return [server for server in session.query(ServerRecord) if server.role == role]


def test_a_deployed_server_is_awaited_until_it_is_registered(book: DialBook, database: Database) -> None:
    book.expect("ps1", PS, ["10.0.0.5:9443"], KEY)
    entry = book.awaited()["ps1"]
    assert (entry.key_hash, entry.addresses) == (KEY, (Address("10.0.0.5", 9443),))
    with database.read() as session:
        assert session.get_one(ServerRecord, "ps1").state == UNREGISTERED
    book.registered("ps1")
    assert book.awaited() == {}
    assert book.get("ps1").addresses == (Address("10.0.0.5", 9443),), "where it was is still known"


def test_a_server_that_dials_by_itself_is_not_awaited(book: DialBook) -> None:
    book.expect("ps1", PS, ["10.0.0.5:9443"], KEY, Dialling.SERVER)
    assert book.awaited() == {}
    book.set_dialling("ps1", PS, Dialling.HOME)
    assert list(book.awaited()) == ["ps1"]


def test_every_address_ever_told_is_kept_the_newest_first_within_a_bound(book: DialBook) -> None:
    for number in range(MAX_ADDRESSES + 4):
        book.tell("ps1", PS, [f"10.0.0.{number}:9443"])
    book.tell("ps1", PS, ["10.0.0.9:9443"])
    hosts = [address.host for address in book.get("ps1").addresses]
    assert hosts[:3] == ["10.0.0.9", "10.0.0.19", "10.0.0.18"]
    assert len(hosts) == len(set(hosts)) == MAX_ADDRESSES


def test_it_outlives_a_restart_and_is_forgotten_when_told(book: DialBook, database: Database, tmp_path: Path) -> None:
    book.expect("ps1", PS, ["[fd00::5]:9443"], KEY)
    again = Database(tmp_path / "db")
    assert DialBook(again).get("ps1") == book.get("ps1")
    again.close()
    book.forget("ps1")
    book.forget("ps1")
    with pytest.raises(ResourceUnknown):
        book.get("ps1")


def test_what_makes_no_sense_is_refused(book: DialBook) -> None:
    with pytest.raises(BodyWrong):
        book.expect("ps1", PS, ["10.0.0.5:9443"], KEY[:31])
    with pytest.raises(AddressWrong):
        book.tell("ps1", PS, ["10.0.0.5"])
    assert book.entries() == {}


def test_home_keeps_tunnels_to_registered_servers_elsewhere(book: DialBook, database: Database) -> None:
    servers = Servers(database)
    servers.add("elsewhere", "10.0.0.1:9443")
    servers.add("at-home", "10.0.0.2:9443", network="")
    servers.add("own", "127.0.0.1:9443", own=True)
    servers.add("waiting", "10.0.0.3:9443", state=UNREGISTERED)
    servers.add("deleted", "10.0.0.4:9443", state=REVOKED)
    servers.add("silent")
    servers.add("vpn", "10.0.0.6:9443")
    book.set_dialling("vpn", PS, Dialling.SERVER)
    servers.add("told", network="")
    book.tell("told", PS, ["10.0.0.7:9443"])
    servers.add("moved", "10.0.0.8:9443")
    book.tell("moved", PS, ["10.0.0.9:9443", "10.0.0.8:9443"])
    assert home_dials(servers, book) == {  # type: ignore[arg-type]
        "elsewhere": (Address("10.0.0.1", 9443),),
        "told": (Address("10.0.0.7", 9443),),
        "moved": (Address("10.0.0.8", 9443), Address("10.0.0.9", 9443)),
    }


# --- a member's file ------------------------------------------------------------------------------------------------


def test_a_member_keeps_every_process_server_it_was_told_of(tmp_path: Path) -> None:
    book = ReachBook(RealFiles(), tmp_path)
    assert (book.reach, book.process_servers) == (Reach.DIRECT, ())
    assert book.tell(["10.0.0.1:9443"])
    assert book.tell(["10.0.0.2:9443", "10.0.0.1:9443"])
    assert not book.tell(["10.0.0.2:9443"])
    book.set_reach(Reach.PROCESS_SERVER)
    again = ReachBook(RealFiles(), tmp_path)
    assert again.reach is Reach.PROCESS_SERVER
    assert [address.host for address in again.process_servers] == ["10.0.0.2", "10.0.0.1"]
    for number in range(2 * MAX_KEPT):
        again.tell([f"10.1.0.{number}:1"])
    assert len(again.process_servers) == MAX_KEPT
    with pytest.raises(AddressWrong):
        again.tell(["nowhere"])


@pytest.mark.parametrize("content", [b"{", b'{"reach": "flying"}', b'{"process_servers": ["x"]}', b'{"else": 1}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(SettingsWrong):
        ReachBook(RealFiles(), tmp_path)


async def test_the_site_is_asked_again_and_again(tmp_path: Path) -> None:
    """Until a process server exists the machine waits; then it is told, and told again after a move."""
    book = ReachBook(RealFiles(), tmp_path)
    answers: list[dict[str, str] | None] = [
        {},
        None,
        {PROCESS_SERVERS_TAG: "10.0.0.1:9443, 10.0.0.2:9443"},
        {PROCESS_SERVERS_TAG: "no address"},
        {PROCESS_SERVERS_TAG: "10.0.0.3:9443"},
    ]
    seen: list[list[str]] = []

    def read_tags() -> dict[str, str]:
        answer = answers.pop(0)
        if answer is None:
            raise MetadataUnreadable(source="the site", reason="it is away")
        return answer

    async def pause(seconds: float) -> None:
        seen.append([address.host for address in book.process_servers])
        assert seconds == 60
        if not answers:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await keep_asking(book, read_tags, pause=pause)
    two = ["10.0.0.1", "10.0.0.2"]
    assert seen == [[], [], two, two, ["10.0.0.3", *two]]


# --- health ---------------------------------------------------------------------------------------------------------

DOWN = LinkState("ps1", False, 1, "10.0.0.1:9443", LinkStalled(peer="ps1", idle_s=20))


@pytest.mark.parametrize(
    ("found", "state", "health", "codes"),
    [
        pytest.param(Health.HEALTHY, None, Health.HEALTHY, [], id="home keeps none"),
        pytest.param(Health.HEALTHY, LinkState("ps1"), Health.HEALTHY, [], id="not tried yet"),
        pytest.param(Health.HEALTHY, LinkState("ps1", True, 1), Health.HEALTHY, [], id="up"),
        pytest.param(Health.HEALTHY, DOWN, Health.WARNING, ["BH-LINK-STALLED"], id="down"),
        pytest.param(Health.CRITICAL, DOWN, Health.CRITICAL, ["BH-LINK-STALLED"], id="down, and worse"),
        pytest.param(Health.UNKNOWN, DOWN, Health.UNKNOWN, ["BH-LINK-STALLED"], id="down, and nothing is known"),
    ],
)
def test_a_tunnel_that_is_down_shows_in_the_servers_health(
    found: Health, state: LinkState | None, health: Health, codes: list[str]
) -> None:
    assessed = with_home_link(Assessment(found, ()), state)
    assert (assessed.health, [alert.code for alert in assessed.alerts]) == (health, codes)
