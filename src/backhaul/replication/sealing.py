"""Seals of the stream: signatures, HPKE for the three opening messages, AES-256-GCM for frames and replies.

Invariant: a frame number is sealed once per stream secret, and a reply number once per incarnation of the target,
so no nonce is used twice under one key. The process server in between has none of these keys. Called from both
ends' sessions; not thread-safe, one session's calls come one after the other. Specification: docs/spec/wire.md.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from backhaul.replication.errors import UNDECODABLE, FrameForged, FrameMalformed, OpeningForged
from backhaul.replication.ports import Randomness
from backhaul.replication.values import Hash, ItemId, Role

SECRET_LENGTH: Final = 32
NONCE_LENGTH: Final = 32
INCARNATION_LENGTH: Final = 16
TAG_LENGTH: Final = 16

_SUITE: Final = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
_MLKEM_PUBLIC: Final = 1184
_MLKEM_SEED: Final = 64
_ASSOCIATED: Final = struct.Struct("!32sQIH")
_REPLY_ASSOCIATED: Final = struct.Struct("!32s16sQI")


class Signer(Protocol):
    """Signs as one server or agent, under its certificate (DER)."""

    @property
    def certificate(self) -> bytes: ...

    def sign(self, context: bytes, body: bytes) -> bytes: ...


class Verifier(Protocol):
    """Checks a signature and the certificate's chain, validity and revocation.

    Raises a BackhaulError when any of it does not hold; returns role and id of the signer.
    """

    def verify(self, certificate: bytes, context: bytes, body: bytes, signature: bytes) -> tuple[Role, str]: ...


class Signed(msgspec.Struct, frozen=True, array_like=True):
    """A body with the certificate of who signed it and the signature over context and body."""

    body: bytes
    certificate: bytes
    signature: bytes


def sign(signer: Signer, context: bytes, body: bytes) -> bytes:
    """The encoded `Signed` of `body`."""
    return msgspec.msgpack.encode(Signed(body, signer.certificate, signer.sign(context, body)))


def verify(verifier: Verifier, context: bytes, blob: bytes, role: Role, what: str) -> tuple[bytes, str]:
    """Body and signer's id. Raises OpeningForged when the blob is malformed or its signer has another role."""
    try:
        signed = msgspec.msgpack.decode(blob, type=Signed)
    except UNDECODABLE as error:
        raise OpeningForged(what=what, reason=str(error)) from error
    signer_role, signer_id = verifier.verify(signed.certificate, context, signed.body, signed.signature)
    if signer_role is not role:
        raise OpeningForged(what=what, reason=f"it is signed by a {signer_role}, not by a {role}")
    return signed.body, signer_id


class SealingKey:
    """A private HPKE key (ML-KEM-768 with X25519) of a target, or of one opening."""

    def __init__(self, seed: bytes) -> None:
        """`seed` is the 96 bytes of `SealingKey.seed`."""
        if len(seed) != _MLKEM_SEED + 32:
            raise OpeningForged(what="a sealing key", reason=f"it has {len(seed)} bytes")
        self.seed = seed
        mlkem = MLKEM768PrivateKey.from_seed_bytes(seed[:_MLKEM_SEED])
        x25519 = X25519PrivateKey.from_private_bytes(seed[_MLKEM_SEED:])
        self._private = hpke.MLKEM768X25519PrivateKey(mlkem, x25519)
        self.public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()

    @classmethod
    def make(cls, randomness: Randomness) -> SealingKey:
        """A new key."""
        return cls(randomness.token(_MLKEM_SEED + 32))

    def open(self, sealed: bytes, info: bytes, what: str) -> bytes:
        """Raises OpeningForged when `sealed` was not made for this key and `info`, or was altered."""
        try:
            return _SUITE.decrypt(sealed, self._private, info)
        except Exception as error:  # the library raises several types for hostile ciphertexts
            raise OpeningForged(what=what, reason="it does not open with this side's key") from error


def seal_to(public: bytes, plaintext: bytes, info: bytes) -> bytes:
    """HPKE of `plaintext` to a public key as in `SealingKey.public`. Raises OpeningForged for a bad key."""
    try:
        key = hpke.MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_PUBLIC]),
            X25519PublicKey.from_public_bytes(public[_MLKEM_PUBLIC:]),
        )
    except ValueError as error:
        raise OpeningForged(what="a public sealing key", reason=str(error)) from error
    return _SUITE.encrypt(plaintext, key, info)


@dataclass(frozen=True, slots=True)
class StreamKeys:
    """What both ends derive from a stream's secret. `header` is the SHA-256 of the stream's header."""

    item: ItemId
    header: Hash
    secret: bytes

    def derive(self, purpose: bytes) -> bytes:
        """A key of 32 bytes for one purpose."""
        return HKDF(SHA256(), 32, salt=self.header, info=b"backhaul/1 " + purpose).derive(self.secret)


def header_hash(header: bytes) -> Hash:
    """Hash of an encoded stream header: HPKE's info and the first part of all associated data."""
    return Hash(hashlib.sha256(b"backhaul/1 stream\0" + header).digest())


class FrameSeal:
    """Seals the frames of one stream at the agent: next number only."""

    def __init__(self, keys: StreamKeys) -> None:
        self._keys = keys
        self._cipher = AESGCM(keys.derive(b"frames"))
        self.number = 0

    def seal(self, plaintext: bytes | bytearray | memoryview, flags: int = 0) -> tuple[int, bytes]:
        """The number given to the frame and its ciphertext."""
        self.number += 1
        associated = _ASSOCIATED.pack(self._keys.header, self.number, len(plaintext) + TAG_LENGTH, flags)
        return self.number, self._cipher.encrypt(self.number.to_bytes(12, "big"), plaintext, associated)


class FrameOpener:
    """Opens the frames of one stream at the target; the session checks the order of numbers."""

    def __init__(self, keys: StreamKeys) -> None:
        self._keys = keys
        self._cipher = AESGCM(keys.derive(b"frames"))

    def open(self, number: int, flags: int, sealed: bytes | bytearray | memoryview) -> bytes:
        """The plaintext. Raises FrameForged."""
        associated = _ASSOCIATED.pack(self._keys.header, number, len(sealed), flags)
        try:
            return self._cipher.decrypt(number.to_bytes(12, "big"), sealed, associated)
        except InvalidTag as error:
            raise FrameForged(item=self._keys.item, number=number) from error


class ReplySeal:
    """Seals a target's replies under one incarnation: a random value made at each start of the target."""

    def __init__(self, keys: StreamKeys, incarnation: bytes) -> None:
        self._keys = keys
        self._cipher = AESGCM(keys.derive(b"reply" + incarnation))
        self.incarnation = incarnation
        self.number = 0

    def seal(self, plaintext: bytes) -> tuple[int, bytes]:
        """The number given to the reply and its ciphertext."""
        self.number += 1
        associated = _REPLY_ASSOCIATED.pack(
            self._keys.header, self.incarnation, self.number, len(plaintext) + TAG_LENGTH
        )
        return self.number, self._cipher.encrypt(self.number.to_bytes(12, "big"), plaintext, associated)


class ReplyOpener:
    """Opens replies at the agent, of the newest incarnation only and each number at most once.

    Replies may be lost on the way (they are cumulative) but never come back: a process server that replays an
    old one, or one of an incarnation that ended, is refused.
    """

    MAX_INCARNATIONS: Final = 4096
    """Starts of a target within one stream; more than that is a fault or an attack, and the stream is opened anew."""

    def __init__(self, keys: StreamKeys) -> None:
        self._keys = keys
        self._ended: set[bytes] = set()
        self._current = b""
        self._cipher: AESGCM | None = None
        self._number = 0

    def open(self, incarnation: bytes, number: int, sealed: bytes | bytearray | memoryview) -> bytes:
        """The plaintext. Raises FrameForged for what is altered, replayed or of an ended incarnation."""
        if len(incarnation) != INCARNATION_LENGTH or len(sealed) < TAG_LENGTH:
            raise FrameMalformed(peer="the target", reason="a reply is too short")
        fresh = incarnation != self._current
        if incarnation in self._ended or (not fresh and number <= self._number):
            raise FrameForged(item=self._keys.item, number=number)
        if len(self._ended) >= self.MAX_INCARNATIONS:
            raise FrameMalformed(peer="the target", reason="too many incarnations in one stream")
        cipher = self._cipher if not fresh and self._cipher else AESGCM(self._keys.derive(b"reply" + incarnation))
        associated = _REPLY_ASSOCIATED.pack(self._keys.header, incarnation, number, len(sealed))
        try:
            plaintext = cipher.decrypt(number.to_bytes(12, "big"), sealed, associated)
        except InvalidTag as error:
            raise FrameForged(item=self._keys.item, number=number) from error
        if fresh:
            if self._current:
                self._ended.add(self._current)
            self._current, self._cipher = incarnation, cipher
        self._number = number
        return plaintext
