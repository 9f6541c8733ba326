"""Cuts received bytes into messages; writes messages as bytes. Pure; `connection` drives it from its event loop.

Invariant: a payload that does not lie whole in the staging buffer is received straight into a buffer of its own,
so each byte of it is copied at most once after decryption. At most one staging buffer and one unfinished payload
exist per reader.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from backhaul.replication.messages import PREFIX_LENGTH, Message, MessageType, decode_prefix, encode_prefix
from backhaul.replication.units import MAX_HEAD, KiB

STAGING: Final = 128 * KiB
"""Received at once while no large payload is under way: many small messages, and never less than a whole head."""

JOINED: Final = 16 * KiB
"""Payloads up to one TLS record are joined with their head: one record instead of two."""

_LARGEST_START: Final = PREFIX_LENGTH + MAX_HEAD
_NO_PAYLOAD: Final = memoryview(b"")

Buffer = bytes | bytearray | memoryview


def encode(messages: Iterable[Message]) -> tuple[list[Buffer], int]:
    """The messages as buffers to write in order, and their length in bytes. Raises FrameMalformed (over the bounds)."""
    buffers: list[Buffer] = []
    joined = bytearray()
    length = 0
    for message in messages:
        payload = message.payload
        if isinstance(payload, memoryview) and payload.format != "B":
            payload = payload.cast("B")
            message = Message(message.type, message.head, payload)
        joined += encode_prefix(message)
        joined += message.head
        length += PREFIX_LENGTH + len(message.head) + len(payload)
        if len(payload) <= JOINED:
            joined += payload
            continue
        buffers += [joined, payload]
        joined = bytearray()
    if joined:
        buffers.append(joined)
    return buffers, length


class MessageReader:
    """Receives into `buffer()`, then `received(n)` gives the messages that are whole."""

    def __init__(self) -> None:
        self._staging = memoryview(bytearray(STAGING))
        self._start = 0
        self._end = 0
        self._type = MessageType.BYE
        self._head = b""
        self._payload = _NO_PAYLOAD
        self._filled = 0

    @property
    def between_messages(self) -> bool:
        """Whether everything received so far belonged to whole messages."""
        return self._start == self._end and not len(self._payload)

    def buffer(self) -> memoryview:
        """Where the next bytes go; never empty."""
        if len(self._payload):
            return self._payload[self._filled :]
        if self._start == self._end:
            self._start = self._end = 0
        elif STAGING - self._start < _LARGEST_START:
            rest = bytes(self._staging[self._start : self._end])
            self._staging[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        return self._staging[self._end :]

    def received(self, count: int) -> list[Message]:
        """`count` bytes were put into `buffer()`. Raises FrameMalformed, after which the reader must not be used."""
        messages: list[Message] = []
        if len(self._payload):
            self._filled += count
            if self._filled == len(self._payload):
                messages.append(self._finish())
            return messages
        self._end += count
        while not len(self._payload) and (message := self._next()) is not None:
            messages.append(message)
        return messages

    def _next(self) -> Message | None:
        """The next whole message in the staging buffer; begins a payload of its own when only that is missing."""
        start, available = self._start, self._end - self._start
        if available < PREFIX_LENGTH:
            return None
        kind, head_length, payload_length = decode_prefix(self._staging[start : start + PREFIX_LENGTH])
        body = start + PREFIX_LENGTH + head_length
        if body > self._end:
            return None
        head = bytes(self._staging[start + PREFIX_LENGTH : body])
        if body + payload_length <= self._end:
            self._start = body + payload_length
            return Message(kind, head, bytes(self._staging[body : self._start]))
        self._type, self._head = kind, head
        self._payload = memoryview(bytearray(payload_length))
        self._filled = self._end - body
        self._payload[: self._filled] = self._staging[body : self._end]
        self._start = self._end = 0
        return None

    def _finish(self) -> Message:
        message = Message(self._type, self._head, self._payload)
        self._payload, self._filled = _NO_PAYLOAD, 0
        return message
