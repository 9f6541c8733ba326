"""The vault's own certificate authority: issues, renews, revokes, and changes its root while both are trusted.

Invariant: every change is durable before it is returned, so a revocation that was pushed is never forgotten.
One authority exists per vault, in the configuration server; calls block on the disk and come from one thread at
a time.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from backhaul.links.certificates import (
    ID_PATTERN,
    MAX_CERTIFICATE,
    VAULT_PATTERN,
    DenyList,
    Trust,
    load_certificate,
    parse_identity,
    require_p256,
    utc,
    verify_certificate,
)
from backhaul.links.errors import (
    AuthorityError,
    AuthorityExists,
    CertificateProblem,
    IdentityDamaged,
    RenewalRefused,
    RequestRefused,
    RolloverPending,
)
from backhaul.links.identity import UNSEALED, Identity, KeySeal, key_from_bytes, key_to_bytes, make_csr, new_key
from backhaul.replication.errors import UNDECODABLE
from backhaul.replication.ports import Clock, Files, Randomness
from backhaul.replication.values import Role

AUTHORITY_FILE: Final = "authority"
DAY_NS: Final = 24 * 3600 * 1_000_000_000
LEAF_NS: Final = 90 * DAY_NS
ROOT_NS: Final = 3650 * DAY_NS
BACKDATE_NS: Final = 3600 * 1_000_000_000
"""Certificates begin an hour early: a peer whose clock is a little behind must not refuse a fresh one."""

CROSS_OVER_NS: Final = 14 * DAY_NS
"""For this long a new root is trusted before it issues: every peer that is seen once in it learns the root."""

MAX_NAMES: Final = 32
"""Most DNS names and addresses in one certificate."""


class _RootRecord(msgspec.Struct, frozen=True):
    certificate: bytes
    sealed_key: bytes
    issues_from_ns: int
    retires_ns: int


class _AuthorityRecord(msgspec.Struct, frozen=True):
    vault: str
    roots: tuple[_RootRecord, ...]
    deny: DenyList


@dataclass(frozen=True, slots=True)
class Root:
    """A root and when (wall-clock nanoseconds) it begins to issue and stops being trusted."""

    certificate: bytes
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    issues_from_ns: int
    retires_ns: int

    @property
    def digest(self) -> bytes:
        """SHA-256 of the certificate: what a connection passphrase pins."""
        return hashlib.sha256(self.certificate).digest()


@dataclass(frozen=True, slots=True)
class AuthorityStore:
    """Where the authority lives and what it needs of the world."""

    files: Files
    folder: Path
    clock: Clock
    randomness: Randomness
    seal: KeySeal = UNSEALED


class Authority:
    """A vault's certificate authority."""

    def __init__(self, vault: str, roots: Sequence[Root], deny: DenyList, store: AuthorityStore) -> None:
        self.vault = vault
        self._roots = tuple(roots)
        self._deny = deny
        self._store = store

    @classmethod
    def create(cls, vault: str, store: AuthorityStore) -> Authority:
        """A new authority with its first root. Raises AuthorityExists, AuthorityError (name not allowed)."""
        if not VAULT_PATTERN.fullmatch(vault):
            raise AuthorityError(reason=f"{vault!r:.100} is no vault id (lower-case letters, digits and dashes)")
        store.files.make_folder(store.folder)
        if AUTHORITY_FILE in store.files.names(store.folder):
            raise AuthorityExists(folder=store.folder)
        now = store.clock.wall_ns()
        authority = cls(vault, [_make_root(vault, now, now, store.randomness)], DenyList(), store)
        authority._save()
        return authority

    @classmethod
    def load(cls, store: AuthorityStore) -> Authority:
        """The authority in the store's folder. Raises IdentityDamaged; FileNotFoundError where there is none."""
        content = store.files.read(store.folder / AUTHORITY_FILE)
        try:
            record = msgspec.msgpack.decode(content, type=_AuthorityRecord)
            roots = [
                Root(
                    root.certificate,
                    key_from_bytes(store.seal.open(root.sealed_key)),
                    root.issues_from_ns,
                    root.retires_ns,
                )
                for root in record.roots
            ]
            for root in roots:
                if load_certificate(root.certificate).public_key() != root.key.public_key():
                    raise ValueError("a root's key does not belong to its certificate")
            if not roots:
                raise ValueError("it has no root")
        except (*UNDECODABLE, ValueError) as error:
            raise IdentityDamaged(folder=store.folder, reason=str(error)) from error
        return cls(record.vault, roots, record.deny, store)

    @property
    def trust(self) -> Trust:
        """What every peer is told: the roots trusted now, newest last, and the deny list."""
        now = self._store.clock.wall_ns()
        return Trust(tuple(root.certificate for root in self._roots if now < root.retires_ns), self._deny)

    @property
    def issuing(self) -> Root:
        """The root that issues now: the newest whose cross-over is over."""
        now = self._store.clock.wall_ns()
        return [root for root in self._roots if root.issues_from_ns <= now][-1]

    def issue(
        self, csr: bytes, role: Role, peer_id: str, *, dns: Iterable[str] = (), addresses: Iterable[str] = ()
    ) -> tuple[bytes, ...]:
        """Certificate chain (DER, leaf first) of 90 days for the request's key.

        Raises RequestRefused: malformed request, name not allowed, name revoked.
        """
        name = f"{role}/{peer_id}"
        key = _request_key(csr, name)
        if not ID_PATTERN.fullmatch(peer_id):
            raise RequestRefused(peer=name[:200], reason="the id may hold letters, digits, dots, dashes, underscores")
        if name in self._deny.names:
            raise RequestRefused(peer=name, reason="this name was revoked")
        names = _alternative_names(f"backhaul://{self.vault}/{role}/{peer_id}", dns, addresses, name)
        return (self._sign_leaf(key, name, names),)

    def renew(self, certificate: bytes, csr: bytes) -> tuple[bytes, ...]:
        """A new certificate with all names of the old one; the key may be a new one.

        Raises RenewalRefused unless the old one is ours, still valid and not revoked.
        """
        try:
            peer = verify_certificate(certificate, self.trust, self._store.clock.wall_ns())
        except CertificateProblem as error:
            raise RenewalRefused(peer=error.params.get("peer", "unknown"), reason=error.message) from error
        names = load_certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return (self._sign_leaf(_request_key(csr, peer.name), peer.name, names),)

    def revoke(self, *, certificate: bytes | None = None, name: str | None = None) -> Trust:
        """Deny one certificate (DER), or every one of `role/id`; returns the trust to push.

        Serials of certificates that have expired by now leave the list. Raises CertificateMalformed.
        """
        now = self._store.clock.wall_ns()
        serials = {serial: end for serial, end in self._deny.serials.items() if end >= now}
        names = self._deny.names
        if certificate is not None:
            peer = parse_identity(certificate)
            serials[peer.serial] = peer.expires_ns
        if name is not None:
            names = names | {name}
        self._deny = DenyList(self._deny.revision + 1, serials, names)
        self._save()
        return self.trust

    def roll_over(self, cross_over_ns: int = CROSS_OVER_NS) -> Trust:
        """Make a new root, trusted at once, issuing after the cross-over; returns the trust to push.

        The old root leaves the bundle when the last certificate it can have issued has expired. Raises
        RolloverPending while an earlier change is not over.
        """
        now = self._store.clock.wall_ns()
        newest = self._roots[-1]
        if newest.issues_from_ns > now:
            raise RolloverPending(
                begin=load_certificate(newest.certificate).not_valid_before_utc, end=utc(newest.issues_from_ns)
            )
        made = _make_root(self.vault, now, now + cross_over_ns, self._store.randomness)
        retires = made.issues_from_ns + LEAF_NS + DAY_NS
        kept = [
            Root(root.certificate, root.key, root.issues_from_ns, min(root.retires_ns, retires))
            for root in self._roots
            if now < root.retires_ns
        ]
        self._roots = (*kept, made)
        self._save()
        return self.trust

    def own_identity(
        self, role: Role, peer_id: str, *, dns: Iterable[str] = (), addresses: Iterable[str] = ()
    ) -> Identity:
        """An identity with a fresh key, for the server the authority lives in."""
        key = new_key()
        return Identity(self.issue(make_csr(key), role, peer_id, dns=dns, addresses=addresses), key, self.trust)

    def _sign_leaf(self, key: ec.EllipticCurvePublicKey, name: str, names: x509.SubjectAlternativeName) -> bytes:
        now, root = self._store.clock.wall_ns(), self.issuing
        issuer = load_certificate(root.certificate)
        until = min(utc(now + LEAF_NS), issuer.not_valid_after_utc)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[-64:])])
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = _builder(subject, issuer.subject, key, utc(now - BACKDATE_NS), until, self._store.randomness)
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(names, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.key.public_key()), critical=False)
            .sign(root.key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.DER)

    def _save(self) -> None:
        seal = self._store.seal.seal
        roots = tuple(
            _RootRecord(root.certificate, seal(key_to_bytes(root.key)), root.issues_from_ns, root.retires_ns)
            for root in self._roots
        )
        record = _AuthorityRecord(self.vault, roots, self._deny)
        self._store.files.replace(self._store.folder / AUTHORITY_FILE, msgspec.msgpack.encode(record))


def _make_root(vault: str, now_ns: int, issues_from_ns: int, randomness: Randomness) -> Root:
    key = new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, vault), _since(now_ns)])
    builder = _builder(subject, subject, key.public_key(), utc(now_ns - BACKDATE_NS), utc(now_ns + ROOT_NS), randomness)
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Root(certificate.public_bytes(serialization.Encoding.DER), key, issues_from_ns, now_ns + ROOT_NS)


def _since(now_ns: int) -> x509.NameAttribute[str]:
    # Two roots of a vault need two names: OpenSSL finds the issuer by name first.
    return x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, f"Backhaul root {now_ns}")


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    begin: datetime.datetime,
    end: datetime.datetime,
    randomness: Randomness,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(int.from_bytes(randomness.token(16), "big") + 1)
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _request_key(csr: bytes, name: str) -> ec.EllipticCurvePublicKey:
    if len(csr) > MAX_CERTIFICATE:
        raise RequestRefused(peer=name[:200], reason=f"the request has {len(csr)} bytes")
    try:
        request = x509.load_der_x509_csr(csr)
        if not request.is_signature_valid:
            raise ValueError("its signature is not valid")
        return require_p256(request.public_key())
    except (ValueError, InvalidSignature) as error:
        raise RequestRefused(peer=name[:200], reason=f"the request is not well formed: {error}") from error


def _alternative_names(
    uri: str, dns: Iterable[str], addresses: Iterable[str], name: str
) -> x509.SubjectAlternativeName:
    try:
        general: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
        general += [x509.DNSName(host) for host in dns]
        general += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    except ValueError as error:
        raise RequestRefused(peer=name, reason=str(error)) from error
    if len(general) > MAX_NAMES:
        raise RequestRefused(peer=name, reason=f"it asks for more than {MAX_NAMES} names")
    return x509.SubjectAlternativeName(general)
