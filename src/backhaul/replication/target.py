"""The target's end of a stream, without I/O: the authority over an item's fence.

Invariant: whatever decides who may write (`TargetState`) is stored durably by the caller before any message that
follows from it is sent; a frame is accepted only if term, generation and stream equal the stored ones. A lower
term or generation is always refused; stream numbers rise and never start again. One session per item, called by
the item's worker, one call at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from backhaul.replication import messages as m
from backhaul.replication import opening as o
from backhaul.replication.epochs import EpochOrder
from backhaul.replication.errors import (
    DescriptorRefused,
    FenceStale,
    FrameGap,
    NotActiveMachine,
    OpeningForged,
    OpeningRefused,
    StreamClosed,
    VersionUnsupported,
)
from backhaul.replication.records import Frame, Reply, decode_frame, encode_replies
from backhaul.replication.sealing import (
    FrameOpener,
    ReplySeal,
    SealingKey,
    Signer,
    StreamKeys,
    Verifier,
    header_hash,
)
from backhaul.replication.values import Fence, Hash, ItemDescriptor, ItemId, Role

NO_ANSWER: Final = Hash(b"")

OFFERED_KEYS: Final = 2
"""Newest sealing keys to which streams are opened: an agent may still have the one before. Older ones only keep the
streams going that were made to them, so none that is erased as unused can come into use meanwhile."""


class TargetState(msgspec.Struct, frozen=True):
    """What a target must never forget of an item.

    descriptor  the highest signed ItemDescriptor seen
    stream      newest stream number given out
    answer      hash of the newest OPEN-ANSWER: only a header that names it opens the stream
    opening     the open stream's STREAM payload, so that the stream survives a restart; empty when none is open
    sealing     number of the sealing key the opening was made to
    promoted    the machine runs from this replica: no stream opens until the generation rises
    final       the source was stopped or held after its last epoch: the stream is closed
    """

    descriptor: bytes
    stream: int = 0
    answer: Hash = NO_ANSWER
    opening: bytes = b""
    sealing: int = 0
    promoted: bool = False
    final: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """What one target has for all its items: who it is and its keys.

    sealing_keys  the keys as they are at each call, by number, newest last; what it returns never changes
    """

    id: str
    signer: Signer
    verifier: Verifier
    sealing_keys: Callable[[], Mapping[int, SealingKey]]
    incarnation: bytes


@dataclass(frozen=True, slots=True)
class Accepted:
    """A frame to be applied, as number `number`."""

    number: int
    frame: Frame


class TargetSession:
    """Fence, opening and order of the frames of one item."""

    def __init__(self, target: Target, state: TargetState, epochs: EpochOrder, applied: int) -> None:
        """`applied` is the newest frame of the open stream that is durable in the replica.

        Raises OpeningForged when the stored state does not open: it is damaged or another target's.
        """
        self._target = target
        self.state = state
        self.epochs = epochs
        self.descriptor = o.stored_descriptor(state.descriptor)
        self.received = applied
        self._opener: FrameOpener | None = None
        self._replies: ReplySeal | None = None
        if state.opening:
            self._take_keys(state.opening, state.sealing)

    @property
    def item(self) -> ItemId:
        """The item."""
        return self.descriptor.item

    @property
    def fence(self) -> Fence:
        """What a frame must carry."""
        return Fence(self.descriptor.term, self.descriptor.generation, self.state.stream)

    @property
    def is_open(self) -> bool:
        """Whether a stream's header has been accepted and frames are taken."""
        return self._opener is not None and not self.state.final

    def raised(self, blob: bytes) -> TargetState:
        """The state after a new descriptor: to be stored, then passed to `adopt`.

        Raises DescriptorRefused for a lower term, another key of the same term, a lower generation, another item
        or another target; OpeningForged for one that no configuration server signed.
        """
        new, old = o.read_descriptor(self._target.verifier, blob), self.descriptor
        check_descriptor(self._target.id, old, new)
        if new.generation > old.generation:
            return TargetState(descriptor=blob, stream=self.state.stream)
        kept = msgspec.structs.replace(self.state, descriptor=blob)
        if (new.term, new.agent, new.active_machine) != (old.term, old.agent, old.active_machine):
            kept = msgspec.structs.replace(kept, opening=b"", answer=NO_ANSWER)  # its machine is not the active one now
        return kept

    def adopt(self, state: TargetState) -> None:
        """Go on with a state that has been stored."""
        self.descriptor = o.stored_descriptor(state.descriptor)
        if state.stream != self.state.stream or not state.opening:
            self._opener = self._replies = None
            self.epochs.reopened()
        if state.opening and self._opener is None:
            self.received = 0
            self._take_keys(state.opening, state.sealing)
        self.state = state

    def answer(
        self, received: m.Message, granule_key: bytes, order: EpochOrder | None = None
    ) -> tuple[TargetState, m.Message]:
        """New state and OPEN-ANSWER for an OPEN-REQUEST: store the state, `adopt` it, then send the answer.

        Raises OpeningRefused (or its kind) with the reason; nothing changes then.
        """
        request, signer = self._open_request(received)
        self._permit(request, signer)
        version = max(set(request.versions) & set(m.VERSIONS), default=0)
        if not version:
            raise VersionUnsupported(peer=signer, theirs=request.versions, ours=m.VERSIONS)
        fence = Fence(self.descriptor.term, self.descriptor.generation, self.state.stream + 1)
        body = o.AnswerBody(
            o.opening_hash(received.payload),
            fence,
            (order or self.epochs).complete,
            (order or self.epochs).interrupted,
            granule_key,
            tuple(disk.size for disk in self.descriptor.disks),
            version,
        )
        info = o.ANSWER_CONTEXT + request.nonce
        sealed = o.seal_body(self._target.signer, o.ANSWER_CONTEXT, body, request.answer_key, info)
        state = msgspec.structs.replace(
            self.state, stream=fence.stream, answer=o.opening_hash(sealed), opening=b"", sealing=0
        )
        return state, m.message(m.OpenAnswer(self.item, fence, self.descriptor.agent), sealed)

    def _open_request(self, received: m.Message) -> tuple[o.RequestBody, str]:
        failure: OpeningForged | None = None
        for _, key in self._offered_keys():
            try:
                return o.open_body(
                    key,
                    self._target.verifier,
                    o.REQUEST_CONTEXT,
                    received.payload,
                    o.REQUEST_CONTEXT,
                    Role.AGENT,
                    o.RequestBody,
                )
            except OpeningForged as error:
                failure = error
        raise failure or OpeningForged(what="open-request", reason="this target has no sealing key")

    def _offered_keys(self) -> list[tuple[int, SealingKey]]:
        """Newest first."""
        return list(self._target.sealing_keys().items())[: -OFFERED_KEYS - 1 : -1]

    def _permit(self, request: o.RequestBody, signer: str) -> None:
        descriptor = self.descriptor
        if request.item != descriptor.item or request.target != self._target.id:
            raise OpeningRefused(item=descriptor.item, reason="the request is for another item or target")
        if signer != descriptor.agent:
            raise OpeningRefused(item=descriptor.item, reason=f"agent {signer} is not this item's agent")
        if request.machine != descriptor.active_machine:
            raise NotActiveMachine(
                item=descriptor.item, machine=request.machine, active=descriptor.active_machine, reason="a copy"
            )
        if self.state.promoted:
            raise OpeningRefused(item=descriptor.item, reason="the machine was failed over to this replica")
        if self.state.final:
            raise OpeningRefused(item=descriptor.item, reason="its final delta was received; it is held")

    def header(self, received: m.Message) -> TargetState | None:
        """The state after a STREAM message: store and `adopt` it. None for the header that is already open.

        Raises FenceStale, StreamClosed (a header for an answer that is not the newest) or OpeningForged.
        """
        head = m.read_head(received, m.StreamHead)
        self._check_fence(head.fence)
        payload = bytes(received.payload)
        if payload == self.state.opening:
            return None
        state = self.state
        if self._opener is not None or not state.answer or state.promoted or state.final:
            raise StreamClosed(item=self.item)
        opening = o.decode(payload, o.StreamOpening, "a stream header")
        header = o.decode(opening.header, o.StreamHeader, "a stream header")
        role, signer = self._target.verifier.verify(
            opening.certificate, o.STREAM_CONTEXT, opening.header + opening.sealed_secret, opening.signature
        )
        if role is not Role.AGENT or signer != self.descriptor.agent:
            raise OpeningForged(what="a stream header", reason=f"{role} {signer} signed it, not the item's agent")
        expected = (self.item, self._target.id, self.descriptor.active_machine, self.fence, self.state.answer)
        if (header.item, header.target, header.machine, header.fence, header.answer) != expected:
            raise OpeningForged(what="a stream header", reason="it does not belong to the newest answer")
        number = self._key_number(opening)
        return msgspec.structs.replace(self.state, opening=payload, sealing=number)

    def _key_number(self, opening: o.StreamOpening) -> int:
        digest = header_hash(opening.header)
        for number, key in self._offered_keys():
            try:
                key.open(opening.sealed_secret, digest, "a stream's secret")
            except OpeningForged:
                continue
            return number
        raise OpeningForged(what="a stream's secret", reason="it opens with none of this target's keys")

    def _take_keys(self, payload: bytes, number: int) -> None:
        opening = o.decode(payload, o.StreamOpening, "a stream header")
        digest = header_hash(opening.header)
        key = self._target.sealing_keys().get(number)
        if key is None:
            raise OpeningForged(what="a stream's secret", reason=f"sealing key {number} was erased")
        keys = StreamKeys(self.item, digest, key.open(opening.sealed_secret, digest, "a stream's secret"))
        self._opener = FrameOpener(keys)
        self._replies = ReplySeal(keys, self._target.incarnation)

    def _check_fence(self, fence: Fence) -> None:
        if fence != self.fence:
            raise FenceStale(item=self.item, fence=str(fence), accepted=str(self.fence))

    def frame(self, head: m.FrameHead, sealed: bytes | bytearray | memoryview) -> Accepted | None:
        """The frame to apply next; None for one received before (acknowledge it again).

        Raises FenceStale, StreamClosed, FrameGap, FrameForged, FrameMalformed, EpochViolation: nothing of the frame
        may be used, and the stream takes no further frame until it is opened anew (except after FenceStale).
        """
        self._check_fence(head.fence)
        if self._opener is None:
            raise StreamClosed(item=self.item)
        if head.number <= self.received:
            return None
        if self.state.final:
            raise StreamClosed(item=self.item)
        if head.number != self.received + 1:
            raise FrameGap(item=self.item, expected=self.received + 1, number=head.number)
        frame = decode_frame(self._opener.open(head.number, head.flags, sealed))
        self.epochs.check(self.descriptor, frame, self.state.stream)
        self.received = head.number
        return Accepted(head.number, frame)

    def reply(self, replies: list[Reply]) -> m.Message | None:
        """A sealed REPLY; None when no stream is open (the agent then learns it all from the next answer)."""
        if self._replies is None:
            return None
        number, sealed = self._replies.seal(encode_replies(replies))
        head = m.ReplyHead(self.item, self.state.stream, self._replies.incarnation, number)
        return m.message(head, sealed)

    def closed(self) -> TargetState:
        """The state in which no stream is open, and none opens without a new answer: to be stored, then adopted."""
        return msgspec.structs.replace(self.state, opening=b"", answer=NO_ANSWER)

    def ended(self) -> TargetState:
        """The state after the final epoch: no frame is taken, but the agent can still be told, also after a restart."""
        return msgspec.structs.replace(self.state, final=True)


def check_descriptor(target: str, old: ItemDescriptor | None, new: ItemDescriptor) -> None:
    """Raises DescriptorRefused unless `new` may follow `old` at this target."""
    reason = ""
    if new.target != target:
        reason = f"it is for target {new.target}"
    elif old is None:
        return
    elif new.item != old.item:
        reason = f"it is for item {new.item}"
    elif new.term < old.term:
        reason = f"its term {new.term} is below {old.term}"
    elif new.term == old.term and new.term_key != old.term_key:
        reason = f"another vault key was seen for term {new.term} first"
    elif new.generation < old.generation:
        reason = f"its generation {new.generation} is below {old.generation}"
    if reason:
        raise DescriptorRefused(item=new.item, reason=reason)
