"""Servers and agents: enrolled, announced, renewed, revoked.

Invariant: an id that was registered once is not given to another key, unless its certificate has run out: whoever
knows the passphrase can add a server, never become one that exists. Calls block: worker threads; what touches the
authority runs under one lock.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Final

import msgspec
import structlog
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backhaul.configuration_server.errors import BodyWrong, InUse, ResourceUnknown
from backhaul.configuration_server.records import CertificateRecord, ItemRecord, ServerRecord, TokenRecord
from backhaul.configuration_server.revisions import Revisions
from backhaul.configuration_server.settings import parse_address
from backhaul.configuration_server.vault import Vault, note
from backhaul.links.certificates import Trust, parse_identity
from backhaul.links.enrolment import AskBody, Issued, KnownSecret
from backhaul.links.errors import EnrolmentRefused
from backhaul.links.identity import Identity, make_csr, new_key
from backhaul.links.passphrase import Passphrase, SecretKind, make_passphrase, parse_passphrase
from backhaul.replication.control import StillImagePlan
from backhaul.replication.values import Role

MEMBER_ROLES: Final = frozenset({Role.PROCESS_SERVER, Role.MASTER_TARGET, Role.AGENT})
TOKEN_LIFE_NS: Final = 3600 * 1_000_000_000
"""A deployment takes minutes; a token that is not used within an hour never will be."""

MAX_ADDRESSES: Final = 16
UNREGISTERED, REGISTERED, REVOKED = "unregistered", "registered", "revoked"

_MADE_UNIQUE: Final = re.compile(r"-[0-9a-f]{8}$")
"""What `registering` puts behind a name to make an id of it; the name itself comes with the first announcement."""

_log = structlog.get_logger(__name__)


class OfferedDisk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A disk an agent could protect; `size` in bytes."""

    name: str
    path: str
    size: int


class Offer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an agent could protect, and how points can be made on its machine."""

    disks: tuple[OfferedDisk, ...]
    still: StillImagePlan = StillImagePlan()


class Announcement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a server says of itself when it starts. `addresses`: `host:port` of its data port; none for agents."""

    name: str
    version: str
    addresses: tuple[str, ...] = ()
    network: str = ""
    machine: str = ""
    offer: Offer | None = None


class Registry:
    """The servers of a vault."""

    def __init__(self, vault: Vault, revisions: Revisions) -> None:
        self._vault, self._revisions = vault, revisions
        self._authority_lock = threading.Lock()

    # --- enrolment ----------------------------------------------------------------------------------------------

    def enrol(self, ask: AskBody, known: KnownSecret) -> Issued:
        """Register who proved to know `known`. Raises EnrolmentRefused, RequestRefused."""
        if ask.role not in MEMBER_ROLES:
            raise EnrolmentRefused(peer=f"{ask.role}/{ask.id}", reason="only servers and agents register")
        now = self._vault.clock.wall_ns()
        with self._authority_lock, self._vault.database.write() as session:
            server = session.get(ServerRecord, ask.id)
            if server is not None:
                self._check_free(session, server, ask, now)
            else:
                server = ServerRecord(id=ask.id, role=ask.role, name=_MADE_UNIQUE.sub("", ask.id), built_in=False)
                session.add(server)
            server.state, server.registered_ns = REGISTERED, now
            session.flush()
            chain = self._vault.authority.issue(ask.csr, ask.role, ask.id, dns=ask.dns, addresses=ask.addresses)
            self._note_certificate(session, chain[0])
            how = "a one-time token" if known.passphrase.kind is SecretKind.TOKEN else "the passphrase"
            note(session, now, "server", "server.registered", ask.id, f"The {ask.role} registered with {how}.")
        return Issued(chain, self._vault.authority.trust, {"vault": self._vault.authority.vault})

    @staticmethod
    def _check_free(session: Session, server: ServerRecord, ask: AskBody, now: int) -> None:
        peer = f"{ask.role}/{ask.id}"
        if server.role != ask.role or server.state == REVOKED:
            raise EnrolmentRefused(peer=peer, reason="the name belongs to another server, or was deleted")
        newest = session.scalar(
            select(func.max(CertificateRecord.expires_ns)).where(CertificateRecord.server == ask.id)
        )
        if newest is not None and newest > now:
            raise EnrolmentRefused(peer=peer, reason="a server of this name is registered already")

    def _note_certificate(self, session: Session, der: bytes) -> None:
        peer = parse_identity(der)
        session.add(
            CertificateRecord(serial=peer.serial, server=peer.id, issued_ns=peer.begins_ns, expires_ns=peer.expires_ns)
        )

    def own_member(self, role: Role, server_id: str, name: str) -> Identity:
        """An identity for a server of this machine that needs no passphrase; its record is made or renewed."""
        key, now = new_key(), self._vault.clock.wall_ns()
        with self._authority_lock, self._vault.database.write() as session:
            server = session.get(ServerRecord, server_id)
            if server is None:
                server = ServerRecord(id=server_id, role=role, name=name, built_in=True)
                session.add(server)
            server.state, server.registered_ns = REGISTERED, now
            session.flush()
            chain = self._vault.authority.issue(make_csr(key), role, server_id, addresses=("127.0.0.1",))
            self._note_certificate(session, chain[0])
            note(session, now, "server", "server.registered", server_id, f"The built-in {role} was registered.")
        return Identity(chain, key, self._vault.authority.trust)

    def make_token(self, role: Role, server_id: str) -> Passphrase:
        """A one-time token for one server, durable before it is returned; a record shows it as unregistered."""
        token = make_passphrase(
            self._vault.authority.issuing.certificate, self._vault.world.randomness, SecretKind.TOKEN
        )
        now = self._vault.clock.wall_ns()
        with self._vault.database.write() as session:
            if session.get(ServerRecord, server_id) is None:
                session.add(ServerRecord(id=server_id, role=role, name=server_id, built_in=False, state=UNREGISTERED))
            sealed = self._vault.master.seal(_token_name(token.key_id), token.text().encode())
            session.add(
                TokenRecord(
                    key_id=token.key_id, sealed=sealed, role=role, server=server_id, expires_ns=now + TOKEN_LIFE_NS
                )
            )
        return token

    # --- the desk's secrets (links.enrolment.Secrets) -----------------------------------------------------------

    def find(self, key_id: bytes) -> KnownSecret | None:
        """The passphrase or an unspent token; quick enough for the event loop, which calls it."""
        passphrase = self._vault.passphrase()
        if passphrase.key_id == key_id:
            return KnownSecret(passphrase)
        with self._vault.database.read() as session:
            token = session.get(TokenRecord, key_id)
        if token is None or token.spent_ns:
            return None
        text = self._vault.master.open(_token_name(key_id), token.sealed).decode()
        return KnownSecret(parse_passphrase(text), token.expires_ns, Role(token.role), token.server)

    def spend(self, key_id: bytes) -> bool:
        """Use a token up; true once."""
        with self._vault.database.write() as session:
            token = session.get(TokenRecord, key_id)
            if token is None or token.spent_ns:
                return False
            token.spent_ns = self._vault.clock.wall_ns()
            return True

    # --- members ------------------------------------------------------------------------------------------------

    def announce(self, server_id: str, said: Announcement) -> None:
        """Take what a server says of itself. Raises BodyWrong, ResourceUnknown."""
        if len(said.addresses) > MAX_ADDRESSES or max(len(said.name), len(said.version), len(said.machine)) > 128:
            raise BodyWrong(reason="the announcement is over the bounds")
        for address in said.addresses:
            parse_address(address)
        with self._vault.database.write() as session:
            server = _get(session, server_id)
            before = server.addresses_json
            server.name, server.version, server.machine = said.name, said.version, said.machine or server.machine
            server.network = said.network
            if said.offer is not None:
                server.offer_json = msgspec.json.encode(said.offer).decode()
            server.addresses_json = msgspec.json.encode(said.addresses).decode()
            server.heartbeat_ns = self._vault.clock.wall_ns()
            if server.addresses_json != before:
                Revisions.bump_all(session)  # whoever dials it must learn where it is now
        self._revisions.wake()

    def heard(self, server_id: str, machine: str = "") -> None:
        """Note a heartbeat. Raises ResourceUnknown."""
        with self._vault.database.write() as session:
            server = _get(session, server_id)
            server.heartbeat_ns = self._vault.clock.wall_ns()
            server.machine = machine or server.machine

    def renew(self, server_id: str, certificate: bytes, csr: bytes) -> tuple[tuple[bytes, ...], Trust]:
        """A new certificate for its owner, and the trust of now. Raises RenewalRefused, RequestRefused."""
        with self._authority_lock, self._vault.database.write() as session:
            _get(session, server_id)
            chain = self._vault.authority.renew(certificate, csr)
            self._note_certificate(session, chain[0])
        return chain, self._vault.authority.trust

    def revoke(self, server_id: str) -> Trust:
        """Refuse every certificate of the server, past and future. Raises ResourceUnknown, InUse.

        The caller makes this server believe it (`Vault.take_trust`); the others are told by their next poll.
        """
        with self._authority_lock, self._vault.database.write() as session:
            server = _get(session, server_id)
            self._check_unused(session, server)
            trust = self._vault.authority.revoke(name=f"{server.role}/{server.id}")
            server.state = REVOKED
            now = self._vault.clock.wall_ns()
            note(session, now, "server", "server.revoked", server_id, "Its certificate is refused.", "Warning")
            Revisions.bump_all(session)
        self._revisions.wake()
        return trust

    @staticmethod
    def _check_unused(session: Session, server: ServerRecord) -> None:
        users = [
            item.name
            for item in session.scalars(select(ItemRecord))
            if (server.id == item.process_server and item.uses_process_server)
            or server.id == item.agent
            or server.id in item.home_json + item.cloud_json
        ]
        if users or server.built_in:
            users = users or ["this configuration server, which came with it"]
            raise InUse(kind=server.role, name=server.name, users=", ".join(sorted(users)))

    def get(self, server_id: str, role: Role | None = None) -> ServerRecord:
        """By id or, for people, by name. Raises ResourceUnknown."""
        wanted = server_id.lower()
        found = [server for server in self.list(role) if server.id.lower() == wanted]
        found = found or [server for server in self.list(role) if server.name.lower() == wanted]
        if len(found) != 1:
            raise ResourceUnknown(kind=role or "server", name=server_id)
        return found[0]

    def list(self, role: Role | None = None) -> Sequence[ServerRecord]:
        """Every server of a role (None: all) that was not revoked."""
        query = select(ServerRecord).where(ServerRecord.state != REVOKED).order_by(ServerRecord.id)
        with self._vault.database.read() as session:
            return session.scalars(query if role is None else query.where(ServerRecord.role == role)).all()


def addresses_of(server: ServerRecord) -> tuple[str, ...]:
    """Where the server's data port is."""
    return msgspec.json.decode(server.addresses_json, type=tuple[str, ...])


def offer_of(server: ServerRecord) -> Offer | None:
    """What an agent could protect; None before it said so."""
    return msgspec.json.decode(server.offer_json, type=Offer) if server.offer_json else None


def _get(session: Session, server_id: str) -> ServerRecord:
    server = session.get(ServerRecord, server_id)
    if server is None:
        raise ResourceUnknown(kind="server", name=server_id)
    return server


def _token_name(key_id: bytes) -> str:
    return f"token-{key_id.hex()}"
