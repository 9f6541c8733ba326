"""Who dials a server, and every address it was ever said to be at.

A server's own announcement replaces its addresses in the registry; here the older ones stay, as one of them may be the
only one that answers after a disaster. Invariant: an entry holds at most `MAX_ADDRESSES`, the newest first; a key hash
is there exactly while the server is deployed and not registered. Calls block: worker threads.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from backhaul.configuration_server.database import Database
from backhaul.configuration_server.errors import BodyWrong, ResourceUnknown
from backhaul.configuration_server.records import DialRecord, ServerRecord
from backhaul.configuration_server.registry import REGISTERED, UNREGISTERED, Registry, addresses_of
from backhaul.configuration_server.settings import parse_address
from backhaul.links.dialer import Address
from backhaul.replication.values import Role

MAX_ADDRESSES: Final = 16
"""Each is tried in turn, at up to 15 s for a packet that is dropped."""

KEY_HASH_BYTES: Final = 32


class Dialling(enum.StrEnum):
    """The setting: who opens the connections between home and a server elsewhere."""

    HOME = "home"
    """Home dials out, also for the API: nothing needs a way into home."""

    SERVER = "server"
    """Through a VPN the server reaches the configuration server itself, as in the classic product."""


@dataclass(frozen=True, slots=True)
class DialEntry:
    """How one server is dialled."""

    server: str
    role: Role
    dialling: Dialling
    addresses: tuple[Address, ...]
    key_hash: bytes


class DialBook:
    """The entries of a vault."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def set_dialling(self, server: str, role: Role, dialling: Dialling) -> None:
        """Who dials from now on."""
        with self._database.write() as session:
            _entry(session, server, role).dialling = dialling

    def tell(self, server: str, role: Role, addresses: Iterable[str]) -> None:
        """Addresses it is said to be at now. Raises AddressWrong."""
        with self._database.write() as session:
            _add(_entry(session, server, role), addresses)

    def expect(
        self, server: str, role: Role, addresses: Iterable[str], key_hash: bytes, dialling: Dialling = Dialling.HOME
    ) -> None:
        """A server was deployed there and waits to be registered; told again, the newer word counts.

        Raises AddressWrong, BodyWrong (no SHA-256).
        """
        if len(key_hash) != KEY_HASH_BYTES:
            raise BodyWrong(reason=f"a key hash has {2 * KEY_HASH_BYTES} hexadecimal digits")
        with self._database.write() as session:
            entry = _entry(session, server, role)
            _add(entry, addresses)
            entry.key_hash, entry.dialling = key_hash, dialling
            if session.get(ServerRecord, server) is None:
                session.add(ServerRecord(id=server, role=role, name=server, built_in=False, state=UNREGISTERED))

    def registered(self, server: str) -> None:
        """It has its certificate: its first key is worth nothing from now on."""
        with self._database.write() as session:
            entry = session.get(DialRecord, server)
            if entry is not None:
                entry.key_hash = b""

    def forget(self, server: str) -> None:
        """It was deleted; one that is unknown is no error."""
        with self._database.write() as session:
            entry = session.get(DialRecord, server)
            if entry is not None:
                session.delete(entry)

    def get(self, server: str) -> DialEntry:
        """Raises ResourceUnknown."""
        with self._database.read() as session:
            entry = session.get(DialRecord, server)
        if entry is None:
            raise ResourceUnknown(kind="dialling of", name=server)
        return _value(entry)

    def entries(self) -> dict[str, DialEntry]:
        """All, by server."""
        with self._database.read() as session:
            return {entry.server: _value(entry) for entry in session.scalars(select(DialRecord))}

    def awaited(self) -> dict[str, DialEntry]:
        """Servers that are deployed, not registered, and to be dialled from home."""
        return {
            server: entry
            for server, entry in self.entries().items()
            if entry.key_hash and entry.dialling is Dialling.HOME and entry.addresses
        }


def home_dials(registry: Registry, book: DialBook) -> dict[str, tuple[Address, ...]]:
    """Registered process servers to which home keeps a tunnel, with every address: what they announced, then the rest.

    Without an entry of its own a server at home (no network) or of this machine needs none, one elsewhere does.
    """
    entries, found = book.entries(), {}
    for server in registry.list(Role.PROCESS_SERVER):
        entry = entries.get(server.id)
        home = entry.dialling is Dialling.HOME if entry else bool(server.network)
        if server.state != REGISTERED or server.built_in or not home:
            continue
        announced = tuple(parse_address(text) for text in addresses_of(server))
        every = tuple(dict.fromkeys((*announced, *(entry.addresses if entry else ()))))
        if every:
            found[server.id] = every
    return found


def _entry(session: Session, server: str, role: Role) -> DialRecord:
    entry = session.get(DialRecord, server)
    if entry is None:
        entry = DialRecord(server=server, role=role, dialling=Dialling.HOME, addresses_json="[]", key_hash=b"")
        session.add(entry)
    return entry


def _add(entry: DialRecord, addresses: Iterable[str]) -> None:
    fresh = [str(parse_address(text)) for text in addresses]
    known = msgspec.json.decode(entry.addresses_json, type=list[str])
    entry.addresses_json = msgspec.json.encode([*dict.fromkeys((*fresh, *known))][:MAX_ADDRESSES]).decode()


def _value(entry: DialRecord) -> DialEntry:
    addresses = tuple(parse_address(text) for text in msgspec.json.decode(entry.addresses_json, type=list[str]))
    return DialEntry(entry.server, Role(entry.role), Dialling(entry.dialling), addresses, entry.key_hash)
