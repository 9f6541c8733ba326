"""Opening a stream: the three messages, the same for agent start, another process server, a lost spool, key
rotation and another target. Specification: docs/spec/wire.md.

OPEN-REQUEST  signed by the agent, sealed to the target's key; holds a one-time answer key and a nonce
OPEN-ANSWER   signed by the target, sealed to that key: stream number, permission, newest COMPLETE epoch
STREAM        signed by the agent: a header, and the stream's secret sealed to the target with the header's hash

Pure values and their encoding; `source` and `target` are the two ends that use them.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, TypeVar

import msgspec

from backhaul.replication.errors import UNDECODABLE, OpeningForged
from backhaul.replication.sealing import SealingKey, Signed, Signer, Verifier, seal_to, sign, verify
from backhaul.replication.units import MAX_OPENING
from backhaul.replication.values import CompletePoint, Fence, Hash, ItemDescriptor, ItemId, Role

REQUEST_CONTEXT: Final = b"open-request"
ANSWER_CONTEXT: Final = b"open-answer"
STREAM_CONTEXT: Final = b"stream-header"
TARGET_KEY_CONTEXT: Final = b"target-key"
DESCRIPTOR_CONTEXT: Final = b"item-descriptor"


class TargetKey(msgspec.Struct, frozen=True, array_like=True):
    """A target's public sealing key, signed under its certificate and changed with it."""

    target: str
    public: bytes


class RequestBody(msgspec.Struct, frozen=True, array_like=True):
    """What the agent says of itself. `machine` is the id that hypervisor or cloud reports, not the disk."""

    item: ItemId
    target: str
    machine: str
    nonce: bytes
    answer_key: bytes
    versions: tuple[int, ...]
    tracker: str


class AnswerBody(msgspec.Struct, frozen=True, array_like=True):
    """The target's permission to send.

    request      hash of the request's sealed form: ties the answer to this one request
    complete     newest COMPLETE epoch, None if there is none or a disk was handed out since
    interrupted  hash of the begin of the newest try of the started epoch; empty when none is started
    granule_key  key of the item's granule maps at this target, 32 bytes
    disk_bytes   size of each replica disk
    """

    request: Hash
    fence: Fence
    complete: CompletePoint | None
    interrupted: tuple[Hash, ...]
    granule_key: bytes
    disk_bytes: tuple[int, ...]
    version: int


class StreamHeader(msgspec.Struct, frozen=True, array_like=True):
    """Header of a stream; its hash is part of every key and of all associated data."""

    item: ItemId
    target: str
    machine: str
    fence: Fence
    version: int
    answer: Hash
    opened_ns: int


class StreamOpening(msgspec.Struct, frozen=True, array_like=True):
    """Payload of STREAM. The signature is over header and sealed secret, so neither can be exchanged alone."""

    header: bytes
    sealed_secret: bytes
    certificate: bytes
    signature: bytes


BodyT = TypeVar("BodyT")


def decode(body: bytes, kind: type[BodyT], what: str) -> BodyT:
    """Raises OpeningForged for what is not a `kind`."""
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except UNDECODABLE as error:
        raise OpeningForged(what=what, reason=str(error)) from error


def opening_hash(sealed: bytes | bytearray | memoryview) -> Hash:
    """Hash of a sealed request or answer, by which the next message names it."""
    return Hash(hashlib.sha256(b"backhaul/1 opening\0" + bytes(sealed)).digest())


def seal_body(signer: Signer, context: bytes, body: Any, public: bytes, info: bytes) -> bytes:
    """Sign a body, then seal it to `public`; the body itself names who it is for."""
    return seal_to(public, sign(signer, context, msgspec.msgpack.encode(body)), info)


def open_body(
    key: SealingKey,
    verifier: Verifier,
    context: bytes,
    sealed: bytes | bytearray | memoryview,
    info: bytes,
    role: Role,
    kind: type[BodyT],
) -> tuple[BodyT, str]:
    """The body and its signer's id. Raises OpeningForged (malformed, not for this key) or what the verifier raises."""
    what = context.decode()
    if len(sealed) > MAX_OPENING:
        raise OpeningForged(what=what, reason=f"it has {len(sealed)} bytes")
    body, signer = verify(verifier, context, key.open(bytes(sealed), info, what), role, what)
    return decode(body, kind, what), signer


def make_target_key(signer: Signer, target: str, key: SealingKey) -> bytes:
    """The target's public key under its certificate, for the configuration server to hand to agents."""
    return sign(signer, TARGET_KEY_CONTEXT, msgspec.msgpack.encode(TargetKey(target, key.public)))


def read_target_key(verifier: Verifier, blob: bytes) -> TargetKey:
    """Raises OpeningForged unless a master target signed it for itself."""
    body, signer = verify(verifier, TARGET_KEY_CONTEXT, blob, Role.MASTER_TARGET, "the target's key")
    key = decode(body, TargetKey, "the target's key")
    if key.target != signer:
        raise OpeningForged(what="the target's key", reason=f"{signer} signed it for {key.target}")
    return key


def make_descriptor(signer: Signer, descriptor: ItemDescriptor) -> bytes:
    """The descriptor, signed by the configuration server."""
    return sign(signer, DESCRIPTOR_CONTEXT, msgspec.msgpack.encode(descriptor))


def stored_descriptor(blob: bytes) -> ItemDescriptor:
    """A descriptor that was verified when it was taken: its signer's certificate may have ended since."""
    return decode(decode(blob, Signed, "the stored descriptor").body, ItemDescriptor, "the stored descriptor")


def read_descriptor(verifier: Verifier, blob: bytes) -> ItemDescriptor:
    """Raises OpeningForged unless a configuration server signed it."""
    body, _ = verify(verifier, DESCRIPTOR_CONTEXT, blob, Role.CONFIGURATION_SERVER, "the item's descriptor")
    return decode(body, ItemDescriptor, "the item's descriptor")
