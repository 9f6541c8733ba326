"""Both ends of a stream without any I/O, for playbooks: an agent and a target that trust the same two keys."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ed25519

from backhaul.replication import messages as m
from backhaul.replication.epochs import EpochOrder
from backhaul.replication.errors import OpeningForged
from backhaul.replication.opening import make_descriptor, make_target_key
from backhaul.replication.records import ChunkCodec, encode_frame
from backhaul.replication.sealing import SealingKey
from backhaul.replication.source import SourceSession
from backhaul.replication.target import Target, TargetSession, TargetState
from backhaul.replication.values import (
    Consistency,
    DiskIdentity,
    EpochBegin,
    EpochEnd,
    EpochReason,
    Extent,
    ExtentKind,
    Hash,
    ItemDescriptor,
    ItemId,
    Role,
    StillKind,
)

ITEM = ItemId("0123456789abcdef0123456789abcdef")
DISK_BYTES = 1 << 20


class CountingRandomness:
    """Reproducible bytes, no two alike."""

    def __init__(self) -> None:
        self._count = itertools.count(1)

    def token(self, size: int) -> bytes:
        return next(self._count).to_bytes(8, "big") * (size // 8)


class FixedClock:
    """A clock that is moved by hand."""

    now_ns = 1_800_000_000_000_000_000

    def wall_ns(self) -> int:
        return self.now_ns

    def monotonic_ns(self) -> int:
        return self.now_ns


class Key:
    """Signs with a bare key; the 'certificate' is role, id and public key. Trust is a list of them."""

    def __init__(self, role: Role, id: str) -> None:
        self._key = ed25519.Ed25519PrivateKey.generate()
        self.certificate = f"{role}/{id}/".encode() + self._key.public_key().public_bytes_raw()

    def sign(self, context: bytes, body: bytes) -> bytes:
        return self._key.sign(context + b"\0" + body)


class Trust:
    """Verifies what the given keys sign."""

    def __init__(self, *keys: Key) -> None:
        self._known = {key.certificate for key in keys}

    def verify(self, certificate: bytes, context: bytes, body: bytes, signature: bytes) -> tuple[Role, str]:
        if certificate not in self._known:
            raise OpeningForged(what="a certificate", reason="it is unknown")
        role, id, public = certificate.split(b"/", 2)
        try:
            ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signature, context + b"\0" + body)
        except Exception as error:
            raise OpeningForged(what="a signature", reason="it does not fit") from error
        return Role(role.decode()), id.decode()


@dataclass
class Ends:
    """An agent, a target and a configuration server's key."""

    agent: Key = field(default_factory=lambda: Key(Role.AGENT, "agent-1"))
    other_agent: Key = field(default_factory=lambda: Key(Role.AGENT, "agent-2"))
    target_key: Key = field(default_factory=lambda: Key(Role.MASTER_TARGET, "target-1"))
    authority: Key = field(default_factory=lambda: Key(Role.CONFIGURATION_SERVER, "cs-1"))

    def __post_init__(self) -> None:
        self.trust = Trust(self.agent, self.other_agent, self.target_key, self.authority)
        self.randomness = CountingRandomness()
        self.sealing = SealingKey.make(self.randomness)
        self.public = make_target_key(self.target_key, "target-1", self.sealing)
        self.stored: TargetState | None = None

    def descriptor(self, term: int = 1, generation: int = 1, **changes: object) -> ItemDescriptor:
        values: dict[str, object] = {
            "item": ITEM,
            "term": term,
            "term_key": Hash(bytes(31) + bytes([term])),
            "generation": generation,
            "target": "target-1",
            "agent": "agent-1",
            "active_machine": "machine-1",
            "disks": (DiskIdentity(0, "a", DISK_BYTES), DiskIdentity(1, "b", DISK_BYTES)),
        }
        return ItemDescriptor(**(values | changes))  # type: ignore[arg-type]

    def signed(self, descriptor: ItemDescriptor) -> bytes:
        return make_descriptor(self.authority, descriptor)

    def target(
        self, state: TargetState | None = None, *, applied: int = 0, epochs: EpochOrder | None = None
    ) -> TargetSession:
        state = state or TargetState(self.signed(self.descriptor()))
        end = Target("target-1", self.target_key, self.trust, lambda: {1: self.sealing}, self.randomness.token(16))
        return TargetSession(end, state, epochs or EpochOrder(), applied)

    def source(self, *, agent: Key | None = None, machine: str = "machine-1") -> SourceSession:
        signer = agent or self.agent
        return SourceSession(ITEM, machine, self.public, signer, self.trust, self.randomness, FixedClock())

    def open(self, source: SourceSession, target: TargetSession) -> m.Message:
        """The whole opening; the STREAM message, which the target has taken."""
        state, answer = target.answer(source.request("scan"), bytes(32))
        target.adopt(state)
        stream = source.answered(answer)
        opened = target.header(stream)
        assert opened is not None
        target.adopt(opened)
        return stream


def begin(target: TargetSession, **changes: object) -> EpochBegin:
    """The begin that is due at `target`."""
    order = target.epochs
    values: dict[str, object] = {
        "number": order.next_number,
        "previous": order.next_previous,
        "interrupted": order.interrupted,
        "stream": target.state.stream,
        "begun_ns": 1,
        "reason": EpochReason.DELTA,
        "tracker": "scan",
    }
    return EpochBegin(**(values | changes))  # type: ignore[arg-type]


def end(begun: EpochBegin, **changes: object) -> EpochEnd:
    """The end of an epoch."""
    values: dict[str, object] = {
        "number": begun.number,
        "begin": begun.digest(),
        "barrier_ns": 2,
        "kind": StillKind.STOPPED,
        "consistency": Consistency.CRASH,
        "compared": begun.compares,
    }
    return EpochEnd(**(values | changes))  # type: ignore[arg-type]


def data_extent(offset: int = 0, length: int = 4096, disk: int = 0) -> Extent:
    return Extent(disk, offset, length, ExtentKind.DATA)


def frame(
    source: SourceSession,
    *extents: Extent,
    data: bytes = b"",
    begun: EpochBegin | None = None,
    ended: EpochEnd | None = None,
) -> m.Message:
    """Seal one frame."""
    return source.seal(encode_frame(ChunkCodec(), extents, data, begin=begun, end=ended))


def take(target: TargetSession, message: m.Message) -> object:
    """Give a frame to the target."""
    return target.frame(m.FrameHead.decode(message.head), message.payload)
