"""Bytes into messages: any split gives the same messages; bytes that are none give FrameMalformed only."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backhaul.links.framing import STAGING, MessageReader, encode
from backhaul.replication.errors import FrameMalformed
from backhaul.replication.messages import MAX_PAYLOAD, PREFIX, VERSION, Message, MessageType
from backhaul.replication.units import MAX_HEAD

Plain = tuple[MessageType, bytes, bytes]


def plain(messages: list[Message]) -> list[Plain]:
    return [(message.type, bytes(message.head), bytes(message.payload)) for message in messages]


def wire(messages: list[Message]) -> bytes:
    buffers, length = encode(messages)
    whole = b"".join(buffers)
    assert len(whole) == length
    return whole


def feed(reader: MessageReader, data: bytes, most: int) -> list[Message]:
    """Puts `data` into the reader, at most `most` bytes at a time."""
    got: list[Message] = []
    while data:
        buffer = reader.buffer()
        assert len(buffer), "the reader must always have room"
        size = min(most, len(buffer), len(data))
        buffer[:size] = data[:size]
        got += reader.received(size)
        data = data[size:]
    return got


messages = st.builds(Message, st.sampled_from(list(MessageType)), st.binary(max_size=300), st.binary(max_size=300))
sizes = st.one_of(st.integers(0, 300), st.integers(STAGING - 400, STAGING + 400), st.just(3 * STAGING))


@settings(deadline=None)
@given(st.lists(sizes, max_size=6), st.lists(st.integers(1, 2 * STAGING), max_size=20))
def test_any_split_gives_the_same_messages(payloads: list[int], splits: list[int]) -> None:
    sent = [Message(MessageType.FRAME, b"h" * (size % 50), bytes([size % 251]) * size) for size in payloads]
    data, reader, got = wire(sent), MessageReader(), list[Message]()
    for size in itertools.cycle([*splits, STAGING]):
        got += feed(reader, data[:size], size)
        data = data[size:]
        if not data:
            break
    assert plain(got) == plain(sent)
    assert reader.between_messages


def test_split_at_each_byte() -> None:
    sent = [
        Message(MessageType.HELLO, b"head"),
        Message(MessageType.FRAME, b"h" * 42, b"payload"),
        Message(MessageType.PING, b"", b""),
        Message(MessageType.FRAME, b"x" * 42, b"second"),
    ]
    data = wire(sent)
    for cut in range(len(data) + 1):
        reader = MessageReader()
        got = feed(reader, data[:cut], len(data)) + feed(reader, data[cut:], len(data))
        assert plain(got) == plain(sent)
    assert plain(feed(MessageReader(), data, 1)) == plain(sent)


@settings(max_examples=300)
@given(st.binary(max_size=4000), st.integers(1, 4000))
def test_random_bytes_are_messages_or_malformed(data: bytes, most: int) -> None:
    try:
        feed(MessageReader(), data, most)
    except FrameMalformed:
        pass


@given(messages, st.data())
def test_one_changed_byte_of_the_prefix(sent: Message, data: st.DataObject) -> None:
    whole = bytearray(wire([sent]))
    whole[data.draw(st.integers(0, PREFIX.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        feed(MessageReader(), bytes(whole), len(whole))
    except FrameMalformed:
        pass


@pytest.mark.parametrize(
    "prefix",
    [
        pytest.param(PREFIX.pack(99, VERSION, 0, 0), id="unknown-type"),
        pytest.param(PREFIX.pack(0, VERSION, 0, 0), id="type-zero"),
        pytest.param(PREFIX.pack(MessageType.FRAME, VERSION + 1, 0, 0), id="other-version"),
        pytest.param(PREFIX.pack(MessageType.FRAME, VERSION, MAX_HEAD + 1, 0), id="head-too-long"),
        pytest.param(PREFIX.pack(MessageType.FRAME, VERSION, 0, MAX_PAYLOAD + 1), id="payload-too-long"),
    ],
)
def test_refused_by_its_prefix_alone(prefix: bytes) -> None:
    with pytest.raises(FrameMalformed):
        feed(MessageReader(), prefix, len(prefix))


def test_largest_message_passes() -> None:
    sent = [Message(MessageType.FRAME, b"h" * MAX_HEAD, b"p" * MAX_PAYLOAD)] * 2
    assert plain(feed(MessageReader(), wire(sent), 10**9)) == plain(sent)


def test_largest_head_one_byte_at_a_time_over_the_end_of_the_buffer() -> None:
    sent = [Message(MessageType.FRAME, b"h" * MAX_HEAD)] * (STAGING // MAX_HEAD + 2)
    assert plain(feed(MessageReader(), wire(sent), 997)) == plain(sent)


@pytest.mark.parametrize(("head", "payload"), [(MAX_HEAD + 1, 0), (0, MAX_PAYLOAD + 1)], ids=["head", "payload"])
def test_over_the_bounds_is_refused_before_sending(head: int, payload: int) -> None:
    with pytest.raises(FrameMalformed):
        encode([Message(MessageType.FRAME, b"h" * head, b"p" * payload)])


def test_a_large_payload_is_received_in_place() -> None:
    """Beyond what lay in the staging buffer, nothing of a payload is copied: the reader hands out its own memory."""
    reader, payload = MessageReader(), 1 << 20
    data = wire([Message(MessageType.FRAME, b"", bytes(payload))])
    assert feed(reader, data[:100], 100) == []
    place = reader.buffer()
    assert len(place) == payload - (100 - PREFIX.size)
    place[-1] = 77
    (message,) = reader.received(len(place))
    assert isinstance(message.payload, memoryview)
    assert message.payload.obj is place.obj
    assert message.payload[-1] == 77


def test_a_payload_of_wide_items_is_sent_as_bytes() -> None:
    wide = memoryview(bytearray(range(16))).cast("I")
    (got,) = feed(MessageReader(), wire([Message(MessageType.FRAME, b"", wide)]), 1000)
    assert bytes(got.payload) == bytes(range(16))
