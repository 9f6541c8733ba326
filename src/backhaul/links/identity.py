"""The identity of this server or agent: certificate, private key, and whom it trusts; loaded and saved.

Invariant: what `load` returns has a key that belongs to its certificate. Two files, each replaced whole:
`trust` (bundle and deny list) is written before `identity` (certificate and key), so that a certificate of a new
root never stands beside a bundle without that root. Used by every service; saving blocks, so services call it
in a thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from backhaul.links.certificates import (
    MAX_BUNDLE,
    DenyList,
    PeerIdentity,
    Trust,
    load_certificate,
    parse_identity,
    require_p256,
    signed_bytes,
    utc,
    verify,
)
from backhaul.links.errors import IdentityDamaged
from backhaul.replication.errors import UNDECODABLE
from backhaul.replication.ports import Clock, Files, Randomness
from backhaul.replication.values import Role

IDENTITY_FILE: Final = "identity"
TRUST_FILE: Final = "trust"
RENEW_BEFORE_NS: Final = 30 * 24 * 3600 * 1_000_000_000
"""A certificate of 90 days is renewed in its last 30: a month's outage of the authority does no harm."""

SELF_MADE_NS: Final = 3650 * 24 * 3600 * 1_000_000_000
"""A server not registered yet is known by its key's hash; its clock may be wrong either way, and times mean nothing."""


class KeySeal(NamedTuple):
    """How private keys lie in files: `open(seal(x)) == x`. `open` raises BackhaulError when it cannot."""

    seal: Callable[[bytes], bytes]
    open: Callable[[bytes], bytes]


UNSEALED: Final = KeySeal(seal=bytes, open=bytes)
"""The file's mode (0600) is all that protects the key: for machines without a `secrets/master.key`."""


class _IdentityRecord(msgspec.Struct, frozen=True):
    chain: tuple[bytes, ...]
    sealed_key: bytes


class _TrustRecord(msgspec.Struct, frozen=True):
    bundle: tuple[bytes, ...]
    deny: DenyList


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh key on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as PKCS #8 DER, unencrypted: to be sealed."""
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def key_from_bytes(der: bytes) -> ec.EllipticCurvePrivateKey:
    """Raises ValueError for everything but a P-256 key."""
    key = serialization.load_der_private_key(der, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the private key is not an ECDSA key")
    require_p256(key.public_key())
    return key


def make_csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A certificate request (DER). It carries only the key: the authority alone decides about names."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


@dataclass(frozen=True, slots=True)
class Identity:
    """Certificate chain (DER, own first), private key, and trust. Also the `Signer` of the replication messages."""

    chain: tuple[bytes, ...]
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    trust: Trust

    @property
    def certificate(self) -> bytes:
        """Own certificate, DER."""
        return self.chain[0]

    @property
    def peer(self) -> PeerIdentity:
        """Who we are, as others see it."""
        return parse_identity(self.certificate)

    def sign(self, context: bytes, body: bytes) -> bytes:
        """ECDSA-P256-SHA256 over context and body (`certificates.signed_bytes`)."""
        return self.key.sign(signed_bytes(context, body), ec.ECDSA(hashes.SHA256()))

    def renewal_due(self, now_ns: int) -> bool:
        """Whether the certificate is in the last third of its life."""
        return now_ns >= self.peer.expires_ns - RENEW_BEFORE_NS

    def with_trust(self, trust: Trust) -> Identity:
        """This identity with a pushed bundle and deny list; an older deny list than ours is kept out."""
        deny = trust.deny if trust.deny.revision >= self.trust.deny.revision else self.trust.deny
        return replace(self, trust=Trust(trust.bundle[:MAX_BUNDLE], deny))

    def with_certificate(self, chain: tuple[bytes, ...], key: ec.EllipticCurvePrivateKey) -> Identity:
        """This identity after a renewal."""
        return replace(self, chain=chain, key=key)

    def save(self, files: Files, folder: Path, seal: KeySeal = UNSEALED) -> None:
        """Durable in `folder` when this returns; blocks."""
        files.make_folder(folder)
        trust = _TrustRecord(self.trust.bundle, self.trust.deny)
        files.replace(folder / TRUST_FILE, msgspec.msgpack.encode(trust))
        record = _IdentityRecord(self.chain, seal.seal(key_to_bytes(self.key)))
        files.replace(folder / IDENTITY_FILE, msgspec.msgpack.encode(record))

    @classmethod
    def load(cls, files: Files, folder: Path, seal: KeySeal = UNSEALED) -> Identity:
        """What `save` left. Raises IdentityDamaged; FileNotFoundError where there is none."""
        own, others = files.read(folder / IDENTITY_FILE), files.read(folder / TRUST_FILE)
        try:
            record = msgspec.msgpack.decode(own, type=_IdentityRecord)
            trust = msgspec.msgpack.decode(others, type=_TrustRecord)
            key = key_from_bytes(seal.open(record.sealed_key))
            if not record.chain or load_certificate(record.chain[0]).public_key() != key.public_key():
                raise ValueError("the key does not belong to the certificate")
        except (*UNDECODABLE, ValueError) as error:
            raise IdentityDamaged(folder=folder, reason=str(error)) from error
        return cls(record.chain, key, Trust(trust.bundle, trust.deny))


@dataclass(frozen=True, slots=True)
class TrustVerifier:
    """The `Verifier` of the replication messages: asks for the trust anew each time, as it may be replaced."""

    trust: Callable[[], Trust]
    clock: Clock

    def verify(self, certificate: bytes, context: bytes, body: bytes, signature: bytes) -> tuple[Role, str]:
        """Role and id of who signed. Raises as `certificates.verify` does."""
        peer = verify(certificate, context, body, signature, trust=self.trust(), now_ns=self.clock.wall_ns())
        return peer.role, peer.id


def make_self_made(clock: Clock, randomness: Randomness) -> Identity:
    """The identity of a server that is not registered yet: a key of its own, believed only by the key's hash.

    `certificates.key_hash(identity.certificate)` is what the deployment reads back. It trusts nobody.
    """
    key, now = new_key(), clock.wall_ns()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "backhaul, not registered yet")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(randomness.token(16), "big") + 1)
        .not_valid_before(utc(now - SELF_MADE_NS))
        .not_valid_after(utc(now + SELF_MADE_NS))
        .sign(key, hashes.SHA256())
    )
    return Identity((certificate.public_bytes(serialization.Encoding.DER),), key, Trust(()))
