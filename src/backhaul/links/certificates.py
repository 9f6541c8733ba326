"""Who a certificate is of, and whether it is to be believed: pure checks, the same for TLS and for signatures.

Invariant: a `PeerIdentity` that `verify_certificate` returned was issued directly by a root of the bundle, is
valid at the given time, is not denied, and bears exactly one name `backhaul://<vault>/<role>/<id>`. There are no
intermediate authorities, so the chain has one step and is checked in the open. Called from any thread.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from backhaul.links.errors import (
    CertificateExpired,
    CertificateMalformed,
    CertificateRevoked,
    CertificateUntrusted,
    RoleRefused,
    SignatureInvalid,
)
from backhaul.replication.values import Role

MAX_CERTIFICATE: Final = 8 * 1024
"""Largest certificate or request looked at, in bytes; ours are below 1 KiB."""

MAX_BUNDLE: Final = 8
"""Most roots trusted at once: two during a rollover, with room for a vault that was opened again."""

SIGNATURE_PREFIX: Final = b"backhaul/1 "
VAULT_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
ID_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NAME_PATTERN: Final = re.compile(f"backhaul://({VAULT_PATTERN.pattern})/([a-z-]{{1,32}})/({ID_PATTERN.pattern})")


def utc(ns: int) -> datetime.datetime:
    """`ns` nanoseconds since 1970 as a time of whole seconds."""
    return datetime.datetime.fromtimestamp(ns // 1_000_000_000, datetime.UTC)


def to_ns(moment: datetime.datetime) -> int:
    """Nanoseconds since 1970 of a time of whole seconds."""
    return int(moment.timestamp()) * 1_000_000_000


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who holds a certificate. `serial` is hexadecimal; `begins_ns` and `expires_ns` are wall-clock nanoseconds."""

    vault: str
    role: Role
    id: str
    certificate_der: bytes = field(repr=False)
    serial: str
    begins_ns: int
    expires_ns: int

    @property
    def name(self) -> str:
        """Role and id, as the deny list and messages name it."""
        return f"{self.role}/{self.id}"

    @property
    def uri(self) -> str:
        """The name in the certificate."""
        return f"backhaul://{self.vault}/{self.role}/{self.id}"

    def __str__(self) -> str:
        return self.name


class Expect(NamedTuple):
    """Whom the other end of a link must be; `id` None accepts every id of the role."""

    role: Role
    id: str | None = None

    def check(self, peer: PeerIdentity) -> None:
        """Raises RoleRefused."""
        if peer.role is not self.role or (self.id is not None and peer.id != self.id):
            raise RoleRefused(peer=peer.name, expected=str(self))

    def __str__(self) -> str:
        return f"{self.role}/{self.id or 'any'}"


class DenyList(msgspec.Struct, frozen=True):
    """What the authority has revoked; pushed to every peer.

    revision  rises with each change; a lower one never replaces a higher one
    serials   hexadecimal serial -> wall-clock nanoseconds after which the certificate has expired anyway
    names     `role/id` of which every certificate, past and future, is refused
    """

    revision: int = 0
    serials: dict[str, int] = {}
    names: frozenset[str] = frozenset()

    def denies(self, peer: PeerIdentity) -> bool:
        """Whether `peer` was revoked."""
        return peer.serial in self.serials or peer.name in self.names


@dataclass(frozen=True, slots=True)
class Trust:
    """Which authorities are believed (self-signed roots, DER) and who is not any more."""

    bundle: tuple[bytes, ...]
    deny: DenyList = field(default_factory=DenyList)


def key_hash(certificate: bytes) -> bytes:
    """SHA-256 of the public key (SubjectPublicKeyInfo) of a DER certificate. Raises CertificateMalformed."""
    public = load_certificate(certificate).public_key()
    info = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(info).digest()


def load_certificate(der: bytes) -> x509.Certificate:
    """Parse a certificate of bounded size with a P-256 key. Raises CertificateMalformed."""
    if len(der) > MAX_CERTIFICATE:
        raise CertificateMalformed(peer="unknown", reason=f"it has {len(der)} bytes")
    try:
        certificate = x509.load_der_x509_certificate(der)
        require_p256(certificate.public_key())
    except ValueError as error:
        raise CertificateMalformed(peer="unknown", reason=str(error)) from error
    return certificate


def require_p256(key: object) -> ec.EllipticCurvePublicKey:
    """The key as a P-256 key. Raises ValueError for every other kind."""
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("its key is not an ECDSA key on P-256")
    return key


def parse_identity(der: bytes) -> PeerIdentity:
    """Who the certificate names; says nothing about whether it is to be believed. Raises CertificateMalformed."""
    certificate = load_certificate(der)
    try:
        _check_purpose(certificate)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise CertificateMalformed(peer="unknown", reason=str(error)) from error
    match = _NAME_PATTERN.fullmatch(uris[0]) if len(uris) == 1 else None
    if match is None or match[2] not in set(Role):
        raise CertificateMalformed(peer="unknown", reason=f"its names are {uris!r:.200}")
    return PeerIdentity(
        vault=match[1],
        role=Role(match[2]),
        id=match[3],
        certificate_der=bytes(der),
        serial=f"{certificate.serial_number:x}",
        begins_ns=to_ns(certificate.not_valid_before_utc),
        expires_ns=to_ns(certificate.not_valid_after_utc),
    )


def _check_purpose(certificate: x509.Certificate) -> None:
    extensions = certificate.extensions
    if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        raise ValueError("it is an authority's")
    if not extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
        raise ValueError("it may not sign")
    uses = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    if not {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH} <= uses:
        raise ValueError("it is not for both ends of a link")


def verify_certificate(der: bytes, trust: Trust, now_ns: int) -> PeerIdentity:
    """Who holds the certificate, proved up to a root of the bundle at wall-clock time `now_ns`.

    Raises CertificateMalformed, CertificateUntrusted, CertificateExpired or CertificateRevoked.
    """
    certificate = load_certificate(der)
    if not any(_issued_by(certificate, root, now_ns) for root in trust.bundle[:MAX_BUNDLE]):
        raise CertificateUntrusted(peer=certificate.subject.rfc4514_string()[:200] or "unknown")
    peer = parse_identity(der)
    if not peer.begins_ns <= now_ns <= peer.expires_ns:
        raise CertificateExpired(peer=peer.name, begin=utc(peer.begins_ns), end=utc(peer.expires_ns), now=utc(now_ns))
    if trust.deny.denies(peer):
        raise CertificateRevoked(peer=peer.name)
    return peer


def _issued_by(certificate: x509.Certificate, root_der: bytes, now_ns: int) -> bool:
    root = load_certificate(root_der)
    if not to_ns(root.not_valid_before_utc) <= now_ns <= to_ns(root.not_valid_after_utc):
        return False
    try:
        if not root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
        certificate.verify_directly_issued_by(root)
    except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
        return False
    return True


def signed_bytes(context: bytes, body: bytes) -> bytes:
    """What is signed: the context keeps a signature of one kind from serving as one of another kind."""
    return SIGNATURE_PREFIX + context + b"\0" + body


def verify(
    certificate: bytes,
    context: bytes,
    body: bytes,
    signature: bytes,
    *,
    trust: Trust,
    now_ns: int,
    expect_role: Role | None = None,
) -> PeerIdentity:
    """Who signed `body` for `context`, with a certificate that is good at `now_ns`.

    Raises as `verify_certificate` does, RoleRefused, or SignatureInvalid.
    """
    peer = verify_certificate(certificate, trust, now_ns)
    if expect_role is not None:
        Expect(expect_role).check(peer)
    key = require_p256(load_certificate(certificate).public_key())
    try:
        key.verify(signature, signed_bytes(context, body), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise SignatureInvalid(context=context.decode(errors="replace"), signer=peer.name) from error
    return peer
