"""Messages on a data link (ALPN `bh-data/1`): their types, heads and framing. Specification: docs/spec/wire.md.

A message is a fixed prefix, a small MessagePack head and an opaque payload. Pure: connections in `links` read
and write the bytes. What a head says in clear is a hint for the process server; what decides is sealed.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from backhaul.replication.errors import UNDECODABLE, FrameMalformed
from backhaul.replication.units import MAX_FRAME, MAX_HEAD
from backhaul.replication.values import Fence, ItemId

VERSION: Final = 1
VERSIONS: Final = (1,)
"""Protocol versions this side speaks; from the second version on, the current and the previous one."""

PREFIX: Final = struct.Struct("!BBHI")
PREFIX_LENGTH: Final = PREFIX.size
MAX_PAYLOAD: Final = MAX_FRAME + 16
"""A sealed frame and its authentication tag."""


class MessageType(enum.IntEnum):
    """Kind of a message; the comment says who sends it."""

    HELLO = 1  # whoever opened the stream
    WELCOME = 2  # the other end
    ATTACH = 3  # agent -> process server: I am the source of this item
    POSITION = 4  # process server -> agent: this is what I hold of the item
    OPEN_REQUEST = 5  # agent -> target
    OPEN_ANSWER = 6  # target -> agent
    OPEN_REFUSED = 7  # target or process server -> agent
    STREAM = 8  # agent -> target: the stream's header
    FRAME = 9  # agent -> target
    SPOOLED = 10  # process server -> agent: durable here, cumulative
    REPLY = 11  # target -> agent, sealed
    SERVES = 12  # target -> process server: the items it holds, their fences and positions
    APPLIED = 13  # target -> process server: durable there, cumulative; what it may forget
    DISCARD = 14  # target -> process server: forget every stream of the item below this fence
    THROTTLE = 15  # process server -> agent: stop or go on sending
    REQUEST = 16  # configuration server -> any: control
    RESPONSE = 17  # the answer to it
    PING = 18
    PONG = 19
    BYE = 20  # either: why the connection is being closed


@dataclass(frozen=True, slots=True)
class Message:
    """One message: `head` is MessagePack, `payload` opaque bytes (empty for most types)."""

    type: MessageType
    head: bytes
    payload: bytes | bytearray | memoryview = b""


def encode_prefix(message: Message) -> bytes:
    """The 8 bytes that go before head and payload.

    Raises FrameMalformed when the message is over the bounds, before anything of it is sent.
    """
    if len(message.head) > MAX_HEAD or len(message.payload) > MAX_PAYLOAD:
        raise FrameMalformed(peer="this side", reason=f"{message.type.name} is over the bounds")
    return PREFIX.pack(message.type, VERSION, len(message.head), len(message.payload))


def decode_prefix(prefix: bytes | bytearray | memoryview) -> tuple[MessageType, int, int]:
    """Type, head length and payload length in bytes. Raises FrameMalformed."""
    kind, version, head_length, payload_length = PREFIX.unpack(prefix)
    if version != VERSION:
        raise FrameMalformed(peer="the peer", reason=f"message version {version} is not {VERSION}")
    if head_length > MAX_HEAD or payload_length > MAX_PAYLOAD:
        raise FrameMalformed(peer="the peer", reason=f"a message of {payload_length} bytes is over the bounds")
    try:
        return MessageType(kind), head_length, payload_length
    except ValueError:
        raise FrameMalformed(peer="the peer", reason=f"message type {kind} is unknown") from None


class Head(msgspec.Struct, frozen=True, array_like=True):
    """Base of all heads."""


class Hello(Head, frozen=True):
    """First message of whoever opened the stream. `name` is for people; who it is, the certificate says."""

    versions: tuple[int, ...]
    name: str


class Welcome(Head, frozen=True):
    """Answer to HELLO: the version both speak."""

    version: int
    name: str


class Attach(Head, frozen=True):
    """The agent asks what the process server holds of `item`."""

    item: ItemId


class Position(Head, frozen=True):
    """What the process server holds: spooled up to `number` of the stream; `fence` None when it knows no stream."""

    item: ItemId
    fence: Fence | None
    number: int
    target_connected: bool


class OpenRequest(Head, frozen=True):
    """Payload: the sealed request."""

    item: ItemId


class OpenAnswer(Head, frozen=True):
    """Payload: the sealed answer. `fence` and `agent` tell the process server whose frames to spool."""

    item: ItemId
    fence: Fence
    agent: str


class OpenRefused(Head, frozen=True):
    """Why no stream was opened; in clear, so it is shown but never acted upon beyond waiting."""

    item: ItemId
    code: str
    params: dict[str, Any]


class StreamHead(Head, frozen=True):
    """Payload: the signed stream header with the sealed secret."""

    item: ItemId
    fence: Fence


class SpooledHead(Head, frozen=True):
    """Durable on the process server up to frame `number` (0: the header), cumulative."""

    item: ItemId
    stream: int
    number: int


class ReplyHead(Head, frozen=True):
    """Payload: the sealed reply. `number` counts from 1 per stream and incarnation of the target."""

    item: ItemId
    stream: int
    incarnation: bytes
    number: int


class Served(Head, frozen=True):
    """One item of SERVES. `fence` is the open stream's (or the last); `applied` its newest applied frame."""

    item: ItemId
    fence: Fence
    applied: int
    agent: str


class Serves(Head, frozen=True):
    """Items a target holds; sent after WELCOME and again whenever an item is added."""

    items: tuple[Served, ...]


class AppliedHead(Head, frozen=True):
    """Durable at the target up to frame `number`, cumulative: the spool may forget them."""

    item: ItemId
    stream: int
    number: int


class Discard(Head, frozen=True):
    """Every stream of `item` below `fence` is closed: delete its frames wherever they lie."""

    item: ItemId
    fence: Fence


class Throttle(Head, frozen=True):
    """Stop (`on`) or go on sending frames of `item`."""

    item: ItemId
    on: bool
    reason: str


class Request(Head, frozen=True):
    """Control: `method` with `params`; `id` comes back in the response."""

    id: int
    method: str
    params: dict[str, Any]


class Response(Head, frozen=True):
    """Answer to a Request. On success `code` is empty and the payload holds the result, MessagePack; otherwise `result`
    holds the error's parameters.
    """

    id: int
    code: str
    result: Any = None


class Ping(Head, frozen=True):
    """Asks for a PONG; a link that answers nothing is stalled, and silence is not health."""

    sent_ns: int


class Bye(Head, frozen=True):
    """Why the connection is closed, with an error's code."""

    code: str
    params: dict[str, Any]


FRAME_HEAD: Final = struct.Struct("!16sIIQQH")
"""Head of FRAME: item, term, generation, stream, number, flags. Fixed, as it is on the hot path."""


@dataclass(frozen=True, slots=True)
class FrameHead:
    """Clear head of a frame. The fence and number are authenticated through the frame's associated data."""

    item: ItemId
    fence: Fence
    number: int
    flags: int = 0

    def encode(self) -> bytes:
        """The fixed 42 bytes."""
        fence = self.fence
        return FRAME_HEAD.pack(
            bytes.fromhex(self.item), fence.term, fence.generation, fence.stream, self.number, self.flags
        )

    @staticmethod
    def decode(head: bytes | memoryview) -> FrameHead:
        """Raises FrameMalformed."""
        try:
            item, term, generation, stream, number, flags = FRAME_HEAD.unpack(head)
        except struct.error as error:
            raise FrameMalformed(peer="the peer", reason=f"frame head: {error}") from error
        return FrameHead(ItemId(item.hex()), Fence(term, generation, stream), number, flags)


_HEADS: Final[dict[MessageType, type[Head]]] = {
    MessageType.HELLO: Hello,
    MessageType.WELCOME: Welcome,
    MessageType.ATTACH: Attach,
    MessageType.POSITION: Position,
    MessageType.OPEN_REQUEST: OpenRequest,
    MessageType.OPEN_ANSWER: OpenAnswer,
    MessageType.OPEN_REFUSED: OpenRefused,
    MessageType.STREAM: StreamHead,
    MessageType.SPOOLED: SpooledHead,
    MessageType.REPLY: ReplyHead,
    MessageType.SERVES: Serves,
    MessageType.APPLIED: AppliedHead,
    MessageType.DISCARD: Discard,
    MessageType.THROTTLE: Throttle,
    MessageType.REQUEST: Request,
    MessageType.RESPONSE: Response,
    MessageType.PING: Ping,
    MessageType.PONG: Ping,
    MessageType.BYE: Bye,
}
_TYPES: Final = {head: kind for kind, head in _HEADS.items() if kind is not MessageType.PONG}

HeadT = TypeVar("HeadT", bound=Head)


def message(head: Head, payload: bytes | bytearray | memoryview = b"") -> Message:
    """A message whose type follows from its head (for PONG and FRAME build `Message` directly)."""
    return Message(_TYPES[type(head)], msgspec.msgpack.encode(head), payload)


def read_head(received: Message, kind: type[HeadT]) -> HeadT:
    """The head of `received`, checked to be a `kind`. Raises FrameMalformed."""
    if _HEADS.get(received.type) is not kind:
        raise FrameMalformed(peer="the peer", reason=f"{received.type.name} where {kind.__name__} was due")
    try:
        return msgspec.msgpack.decode(received.head, type=kind)
    except UNDECODABLE as error:
        raise FrameMalformed(peer="the peer", reason=f"head of {received.type.name}: {error}") from error
