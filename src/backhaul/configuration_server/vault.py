"""The vault: its identity, authority, master key, passphrase and records, in one data folder.

    secrets/master.key   0600; seals what follows
    authority/           the certificate authority
    identity/            this server's certificate and key
    backhaul.db          records, and the jobs' workflows
    ca.pem               the roots, for clients

Invariant: opening a folder makes what is missing in this order, each durable before the next, so a kill at any point
of the first start is mended by the next one. Calls block: worker threads.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import psutil
import structlog
from cryptography import x509
from sqlalchemy import select
from sqlalchemy.orm import Session

from backhaul.configuration_server.database import Database
from backhaul.configuration_server.passwords import hash_password, make_one_time_password
from backhaul.configuration_server.records import AccountRecord, EventRecord, PolicyRecord, SealedRecord, VaultRecord
from backhaul.configuration_server.sealing import MasterKey
from backhaul.configuration_server.settings import Settings
from backhaul.links.authority import AUTHORITY_FILE, Authority, AuthorityStore
from backhaul.links.certificates import Trust, key_hash, load_certificate
from backhaul.links.dialer import Redial
from backhaul.links.identity import IDENTITY_FILE, Identity
from backhaul.links.passphrase import Passphrase, make_passphrase, parse_passphrase
from backhaul.links.tls import Credentials
from backhaul.recovery.policies import ReplicationPolicy
from backhaul.replication.ports import Clock, Files
from backhaul.replication.values import Role

ADMIN: Final = "admin"
DEFAULT_POLICY: Final = "24-hours"
PASSPHRASE: Final = "connection-passphrase"  # noqa: S105 - the name it is sealed under
RESOURCE_GROUP: Final = "backhaul"
VAULT_NAME: Final = "vault"
CA_FILE: Final = "ca.pem"
WILDCARDS: Final = ("", "0.0.0.0", "::")  # noqa: S104 - compared with
MAX_ADDRESSES: Final = 16
"""A certificate holds 32 names in all."""

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")

_log = structlog.get_logger(__name__)


class Vault:
    """An open vault. `world` holds clock and randomness."""

    def __init__(self, data_dir: Path, settings: Settings, files: Files, world: Redial) -> None:
        files.make_folder(data_dir)
        self.data_dir, self.settings, self.files, self.world = data_dir, settings, files, world
        self.master = MasterKey.open_or_make(files, data_dir, world.randomness)
        self.authority = self._open_authority()
        self.credentials = Credentials(self._open_identity(), world.clock)
        self.database = Database(data_dir / "backhaul.db")
        self.record = self._open_record()
        self.publish_roots()

    @property
    def clock(self) -> Clock:
        """The server's clock."""
        return self.world.clock

    @property
    def identity(self) -> Identity:
        """This server's identity of the moment."""
        return self.credentials.identity

    @property
    def path(self) -> str:
        """The vault's resource id, below which the API lies."""
        record = self.record
        group = f"/subscriptions/{record.subscription}/resourceGroups/{record.resource_group}"
        return f"{group}/providers/Microsoft.RecoveryServices/vaults/{record.name}"

    # --- opening ------------------------------------------------------------------------------------------------

    def _store(self) -> AuthorityStore:
        folder, seal = self.data_dir / "authority", self.master.key_seal("authority")
        return AuthorityStore(self.files, folder, self.world.clock, self.world.randomness, seal)

    def _open_authority(self) -> Authority:
        store = self._store()
        self.files.make_folder(store.folder)
        if AUTHORITY_FILE in self.files.names(store.folder):
            return Authority.load(store)
        return Authority.create(f"vault-{self.world.randomness.token(8).hex()}", store)

    def _open_identity(self) -> Identity:
        folder = self.data_dir / "identity"
        self.files.make_folder(folder)
        if IDENTITY_FILE in self.files.names(folder):
            return Identity.load(self.files, folder, self.master.key_seal("identity"))
        identity = self.make_identity(f"cs-{self.world.randomness.token(4).hex()}")
        self.save_identity(identity)
        return identity

    def make_identity(self, server_id: str, listen_host: str = "127.0.0.1") -> Identity:
        """A fresh certificate and key for this server, with every name that clients may use."""
        names, addresses = reachable_names(self.settings, listen_host)
        return self.authority.own_identity(Role.CONFIGURATION_SERVER, server_id, dns=names, addresses=addresses)

    def refresh_identity(self, listen_host: str) -> None:
        """Before serving: a certificate that holds and bears every name; the authority's trust, newest revocations
        included, also where a kill came between them and this server's own files.
        """
        identity = self.identity.with_trust(self.authority.trust)
        if identity.peer.expires_ns <= self.clock.wall_ns() or not _bears(identity, self.settings, listen_host):
            identity = self.make_identity(identity.peer.id, listen_host)
        if identity != self.identity:
            self.save_identity(identity)
            self.credentials.replace(identity)

    def save_identity(self, identity: Identity) -> None:
        """Durably; `credentials` go on with the one they have."""
        identity.save(self.files, self.data_dir / "identity", self.master.key_seal("identity"))

    def _open_record(self) -> VaultRecord:
        with self.database.write() as session:
            record = session.scalars(select(VaultRecord)).one_or_none()
            if record is None:
                record = self._make_record(session)
        return record

    def _make_record(self, session: Session) -> VaultRecord:
        now = self.clock.wall_ns()
        record = VaultRecord(
            id=self.authority.vault,
            name=VAULT_NAME,
            subscription=str(uuid.UUID(bytes=self.world.randomness.token(16), version=4)),
            resource_group=RESOURCE_GROUP,
            server_id=self.identity.peer.id,
            term=1,
            term_key=key_hash(self.identity.certificate),
            created_ns=now,
        )
        policy = ReplicationPolicy(DEFAULT_POLICY)
        session.add(record)
        session.add(
            PolicyRecord(name=policy.name, definition_json=msgspec.json.encode(policy).decode(), created_ns=now)
        )
        self._store_passphrase(session, make_passphrase(self.authority.issuing.certificate, self.world.randomness))
        note(session, now, "vault", "vault.created", record.id, "The vault was created.")
        return record

    def publish_roots(self) -> None:
        """Write the roots that clients are to trust; they are public."""
        pem = "".join(ssl.DER_cert_to_PEM_cert(root) for root in self.authority.trust.bundle)
        self.files.replace(self.data_dir / CA_FILE, pem.encode())

    # --- the first account --------------------------------------------------------------------------------------

    def ensure_admin(self, show: Callable[[str, str], None]) -> None:
        """Make the admin account at the first start. `show` gets its name and one-time password before they count."""
        with self.database.write() as session:
            if session.get(AccountRecord, ADMIN) is not None:
                return
            password = make_one_time_password(self.world.randomness)
            show(ADMIN, password)
            now = self.clock.wall_ns()
            hashed = hash_password(password)
            session.add(AccountRecord(name=ADMIN, role="admin", password_hash=hashed, must_change=True, created_ns=now))

    # --- sealed secrets -----------------------------------------------------------------------------------------

    def passphrase(self) -> Passphrase:
        """The present connection passphrase."""
        with self.database.read() as session:
            sealed = session.get_one(SealedRecord, PASSPHRASE).content
        return parse_passphrase(self.master.open(PASSPHRASE, sealed).decode())

    def rotate_passphrase(self) -> Passphrase:
        """A new passphrase; the one before is wrong from now on."""
        made = make_passphrase(self.authority.issuing.certificate, self.world.randomness)
        with self.database.write() as session:
            self._store_passphrase(session, made)
            note(session, self.clock.wall_ns(), "vault", "passphrase.rotated", "vault", "The passphrase was changed.")
        return made

    def _store_passphrase(self, session: Session, passphrase: Passphrase) -> None:
        sealed = self.master.seal(PASSPHRASE, passphrase.text().encode())
        session.merge(SealedRecord(name=PASSPHRASE, content=sealed))

    # --- trust --------------------------------------------------------------------------------------------------

    async def take_trust(self, trust: Trust) -> None:
        """After a revocation or rollover: this server believes it too, durably, and cuts links. Event loop only."""
        await asyncio.to_thread(self.save_identity, self.identity.with_trust(trust))
        self.credentials.replace(self.identity.with_trust(trust))

    def expires_days(self) -> int:
        """Whole days until this server's certificate ends."""
        end = load_certificate(self.identity.certificate).not_valid_after_utc.timestamp()
        return int(end - self.clock.wall_ns() / 1e9) // 86400

    def close(self) -> None:
        """Close the records."""
        self.database.close()


def reachable_names(settings: Settings, listen_host: str) -> tuple[list[str], list[str]]:
    """DNS names and IP addresses under which clients may call a server that listens on `listen_host`."""
    names = {"localhost", socket.gethostname(), socket.getfqdn(), *settings.names}
    addresses = {"127.0.0.1", "::1", *settings.addresses}
    if listen_host in WILDCARDS:
        mine = (entry.address for entries in psutil.net_if_addrs().values() for entry in entries)
        addresses |= {address.partition("%")[0] for address in mine if _is_ip(address.partition("%")[0])}
    elif _is_ip(listen_host):
        addresses.add(listen_host)
    else:
        names.add(listen_host)
    return sorted(name for name in names if _HOST_NAME.fullmatch(name)), sorted(addresses)[:MAX_ADDRESSES]


def advertised_addresses(listen_host: str) -> tuple[str, ...]:
    """Addresses under which other machines reach what listens on `listen_host`; loopback only where nothing else is."""
    _, addresses = reachable_names(Settings(), listen_host)
    if listen_host not in WILDCARDS:
        return (listen_host,)
    outside = [one for one in addresses if not ipaddress.ip_address(one).is_loopback]
    routed = [one for one in outside if not ipaddress.ip_address(one).is_link_local]
    return tuple(routed or ["127.0.0.1"])


def _bears(identity: Identity, settings: Settings, listen_host: str) -> bool:
    """Whether the certificate has every name that is wanted now."""
    certificate = load_certificate(identity.certificate)
    borne = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    names, addresses = reachable_names(settings, listen_host)
    ips = {str(address) for address in borne.get_values_for_type(x509.IPAddress)}
    return set(names) <= set(borne.get_values_for_type(x509.DNSName)) and set(addresses) <= ips


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def note(session: Session, at_ns: int, kind: str, code: str, subject: str, text: str, severity: str = "OK") -> None:
    """Record an event, with the transaction that it belongs to."""
    session.add(EventRecord(at_ns=at_ns, kind=kind, code=code, subject=subject, text=text, severity=severity))
