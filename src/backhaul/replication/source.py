"""The agent's end of a stream, without I/O: events in, messages out.

Invariant: a sealed frame is kept until the process server says it is durable there; a frame number is sealed once.
What was spooled but not applied is not kept: if it is lost on the way, the blocks are sent again in a new stream.
One session per item, called by its replicator from the event loop's thread only (sealing a chunk takes a fraction of
a millisecond; compressing it, which takes longer, happens before and elsewhere).
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass
from typing import Final

import msgspec

from backhaul.replication import messages as m
from backhaul.replication import opening as o
from backhaul.replication.errors import OpeningForged, SpoolLost, StreamClosed, VersionUnsupported
from backhaul.replication.ports import Clock, Randomness
from backhaul.replication.records import Reply, decode_replies
from backhaul.replication.sealing import (
    NONCE_LENGTH,
    SECRET_LENGTH,
    FrameSeal,
    ReplyOpener,
    SealingKey,
    Signer,
    StreamKeys,
    Verifier,
    header_hash,
    seal_to,
)
from backhaul.replication.units import MAX_DISKS, MiB
from backhaul.replication.values import CompletePoint, Fence, Hash, ItemId, Role

WINDOW_BYTES: Final = 64 * MiB
"""Sealed frames not yet spooled; the sender waits when they are more. It bounds the agent's memory."""

BURST: Final = 64
"""Frames handed to the link at once: enough to fill it, few enough to notice a throttle soon."""

HEADER_NUMBER: Final = 0
"""The stream's header takes the place of frame 0 in everything that counts frames."""

NOTHING_SPOOLED: Final = -1
"""Position of a stream that was granted but whose header has not been spooled."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What the target told when it permitted the stream."""

    fence: Fence
    complete: CompletePoint | None
    interrupted: tuple[Hash, ...]
    granule_key: bytes
    disk_bytes: tuple[int, ...]


class SourceSession:
    """Opens streams of one item to one target and seals what is sent through them."""

    def __init__(
        self,
        item: ItemId,
        machine: str,
        target_key: bytes,
        signer: Signer,
        verifier: Verifier,
        randomness: Randomness,
        clock: Clock,
    ) -> None:
        """`target_key` is the target's signed key (`opening.make_target_key`). Raises OpeningForged for a wrong one."""
        self.item = item
        self._machine = machine
        self._target = o.read_target_key(verifier, target_key)
        self._signer, self._verifier = signer, verifier
        self._randomness, self._clock = randomness, clock
        self._answer_key: SealingKey | None = None
        self._request = Hash(b"")
        self._nonce = b""
        self._close()

    def _close(self) -> None:
        self.opened: Opened | None = None
        self._seal: FrameSeal | None = None
        self._replies: ReplyOpener | None = None
        self._unspooled: deque[tuple[int, m.Message]] = deque()
        self.unspooled_bytes = 0
        self.spooled_number = NOTHING_SPOOLED

    @property
    def is_open(self) -> bool:
        """Whether frames can be sealed."""
        return self._seal is not None

    @property
    def sealed_number(self) -> int:
        """Number of the newest sealed frame."""
        return self._seal.number if self._seal else HEADER_NUMBER

    def request(self, tracker: str) -> m.Message:
        """Begin an opening: the OPEN-REQUEST. Any stream of this session ends here."""
        self._close()
        self._answer_key = SealingKey.make(self._randomness)
        self._nonce = self._randomness.token(NONCE_LENGTH)
        body = o.RequestBody(
            self.item, self._target.target, self._machine, self._nonce, self._answer_key.public, m.VERSIONS, tracker
        )
        sealed = o.seal_body(self._signer, o.REQUEST_CONTEXT, body, self._target.public, o.REQUEST_CONTEXT)
        self._request = o.opening_hash(sealed)
        return m.message(m.OpenRequest(self.item), sealed)

    def answered(self, received: m.Message) -> m.Message:
        """The STREAM message for an OPEN-ANSWER; the session is open afterwards and `opened` says what was granted.

        Raises OpeningForged when the answer is not the target's, or not to the newest request; the request stands.
        """
        if self._answer_key is None:
            raise OpeningForged(what="an answer", reason="no request is waiting for one")
        answer, signer = o.open_body(
            self._answer_key,
            self._verifier,
            o.ANSWER_CONTEXT,
            received.payload,
            o.ANSWER_CONTEXT + self._nonce,
            Role.MASTER_TARGET,
            o.AnswerBody,
        )
        self._check_answer(answer, signer)
        self._answer_key = None
        stream = self._make_stream(answer, o.opening_hash(received.payload))
        self.opened = Opened(answer.fence, answer.complete, answer.interrupted, answer.granule_key, answer.disk_bytes)
        self._keep(HEADER_NUMBER, stream)
        return stream

    def _check_answer(self, answer: o.AnswerBody, signer: str) -> None:
        if signer != self._target.target:
            raise OpeningForged(what="an answer", reason=f"{signer} signed it, not the target {self._target.target}")
        if answer.request != self._request:
            raise OpeningForged(what="an answer", reason="it answers another request")
        if answer.version not in m.VERSIONS:
            raise VersionUnsupported(peer=signer, theirs=answer.version, ours=m.VERSIONS)
        if len(answer.disk_bytes) > MAX_DISKS:
            raise OpeningForged(what="an answer", reason=f"it names {len(answer.disk_bytes)} disks")

    def _make_stream(self, answer: o.AnswerBody, answer_hash: Hash) -> m.Message:
        header = msgspec.msgpack.encode(
            o.StreamHeader(
                self.item,
                self._target.target,
                self._machine,
                answer.fence,
                answer.version,
                answer_hash,
                self._clock.wall_ns(),
            )
        )
        digest = header_hash(header)
        secret = self._randomness.token(SECRET_LENGTH)
        sealed_secret = seal_to(self._target.public, secret, digest)
        signature = self._signer.sign(o.STREAM_CONTEXT, header + sealed_secret)
        opening = o.StreamOpening(header, sealed_secret, self._signer.certificate, signature)
        keys = StreamKeys(self.item, digest, secret)
        self._seal, self._replies = FrameSeal(keys), ReplyOpener(keys)
        return m.message(m.StreamHead(self.item, answer.fence), msgspec.msgpack.encode(opening))

    def seal(self, plaintext: bytes | bytearray | memoryview) -> m.Message:
        """The next frame. Raises StreamClosed before the stream is open."""
        if self._seal is None or self.opened is None:
            raise StreamClosed(item=self.item)
        number, sealed = self._seal.seal(plaintext)
        frame = m.Message(m.MessageType.FRAME, m.FrameHead(self.item, self.opened.fence, number).encode(), sealed)
        self._keep(number, frame)
        return frame

    def _keep(self, number: int, frame: m.Message) -> None:
        self._unspooled.append((number, frame))
        self.unspooled_bytes += len(frame.payload)

    @property
    def has_room(self) -> bool:
        """Whether the window takes another frame; otherwise wait for `spooled`."""
        return self.unspooled_bytes < WINDOW_BYTES

    def spooled(self, head: m.SpooledHead) -> None:
        """The process server holds everything up to `head.number` durably: the sealed buffers are let go."""
        if self.opened is None or head.stream != self.opened.fence.stream or head.number > self.sealed_number:
            return  # of an earlier stream, or a claim about frames that do not exist: nothing follows from it
        self.spooled_number = max(self.spooled_number, head.number)
        while self._unspooled and self._unspooled[0][0] <= head.number:
            _, frame = self._unspooled.popleft()
            self.unspooled_bytes -= len(frame.payload)

    def resume(self, position: m.Position) -> None:
        """Go on after a reconnect: `pending(position.number)` is to be sent again.

        Raises SpoolLost when frames that had been spooled are gone, or another stream is known there: open anew.
        """
        if (
            self.opened is None
            or position.fence != self.opened.fence
            or not self.spooled_number <= position.number <= self.sealed_number
        ):
            raise SpoolLost(item=self.item, held=position.number, spooled=self.spooled_number)
        self.spooled(m.SpooledHead(self.item, self.opened.fence.stream, position.number))

    def pending(self, after: int) -> list[m.Message]:
        """Header and frames above number `after` that are not spooled, in order, at most BURST."""
        if not self._unspooled:
            return []
        skip = max(0, after - self._unspooled[0][0] + 1)
        return [frame for _, frame in itertools.islice(self._unspooled, skip, skip + BURST)]

    def replies(self, received: m.Message) -> list[Reply]:
        """What the target says. Replies of an earlier stream are none. Raises FrameForged, FrameMalformed."""
        head = m.read_head(received, m.ReplyHead)
        if self._replies is None or self.opened is None or head.stream != self.opened.fence.stream:
            return []
        return decode_replies(self._replies.open(head.incarnation, head.number, received.payload))
