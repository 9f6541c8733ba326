"""What is inside a frame: round trips, bounds, hostile bytes."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backhaul.replication import messages as m
from backhaul.replication.errors import FrameMalformed, every_error
from backhaul.replication.records import (
    ChunkCodec,
    Codec,
    FrameRecords,
    MapAsk,
    MapLevel,
    decode_frame,
    decode_replies,
    encode_frame,
    pack_extents,
)
from backhaul.replication.units import CHUNK, MAX_FRAME, MAX_HEAD
from backhaul.replication.values import Extent, ExtentKind, Fence, ItemId

ITEM = ItemId("ab" * 16)


def raw_frame(records: FrameRecords, data: bytes = b"") -> bytes:
    head = msgspec.msgpack.encode(records)
    return len(head).to_bytes(4, "big") + head + data


extents = st.builds(
    lambda disk, block, blocks, kind: Extent(disk, block * 512, blocks * 512, kind),
    st.integers(0, 63),
    st.integers(0, 1 << 40),
    st.integers(1, 64),
    st.sampled_from(ExtentKind),
)


@given(st.lists(extents, max_size=20), st.randoms(use_true_random=False))
def test_extents_and_data_come_back(several: list[Extent], random: object) -> None:
    length = sum(e.length for e in several if e.kind is ExtentKind.DATA)
    data = (random.randbytes(length // 2 + 1) * 2)[:length]  # type: ignore[attr-defined]
    frame = decode_frame(encode_frame(ChunkCodec(), several, data))
    assert frame.extents == tuple(several)
    assert bytes(frame.data) == data


@pytest.mark.parametrize("compressible", [True, False], ids=["text", "noise"])
def test_a_chunk_fits_a_frame(compressible: bool, seed: int) -> None:
    import random

    data = b"abcdefgh" * (CHUNK // 8) if compressible else random.Random(seed).randbytes(CHUNK)
    plaintext = encode_frame(ChunkCodec(), [Extent(0, 0, CHUNK)], data)
    assert len(plaintext) < (CHUNK // 8 if compressible else MAX_FRAME)
    assert bytes(decode_frame(plaintext).data) == data


def test_incompressible_data_is_sent_as_it_is(seed: int) -> None:
    import random

    codec, noise = ChunkCodec(), random.Random(seed).randbytes(CHUNK)
    assert codec.compress(noise)[0] is Codec.RAW
    assert codec.compress(noise)[0] is Codec.RAW
    assert codec.compress(b"a" * CHUNK)[0] is Codec.ZSTD, "after noise, text is still noticed"


PACKED = pack_extents([Extent(0, 0, 4096)])


@pytest.mark.parametrize(
    "plaintext",
    [
        b"",
        b"\0\0\0",
        b"\xff\xff\xff\xff",
        raw_frame(FrameRecords(extents=PACKED, data_length=4096)),
        raw_frame(FrameRecords(extents=PACKED, data_length=4096), b"a" * 4095),
        raw_frame(FrameRecords(extents=PACKED, data_length=4096), b"a" * 4097),
        raw_frame(FrameRecords(extents=PACKED, data_length=8192), b"a" * 8192),
        raw_frame(FrameRecords(data_length=512), b"a" * 512),
        raw_frame(FrameRecords(extents=PACKED, data_length=-1)),
        raw_frame(FrameRecords(extents=PACKED, data_length=CHUNK + 1), b"a" * (CHUNK + 1)),
        raw_frame(FrameRecords(extents=PACKED, codec=Codec.ZSTD, data_length=4096), b"not zstd"),
        raw_frame(FrameRecords(extents=PACKED[:-1])),
        raw_frame(FrameRecords(extents=pack_extents([Extent(0, 1, 4096)]), data_length=4096), b"a" * 4096),
        raw_frame(FrameRecords(extents=pack_extents([Extent(0, 0, 0)]))),
        raw_frame(FrameRecords(extents=pack_extents([Extent(64, 0, 512, ExtentKind.ZERO)]))),
        raw_frame(FrameRecords(extents=PACKED[:2] + b"\x07" + PACKED[3:])),
        raw_frame(FrameRecords(ask=MapAsk(0, MapLevel.RANGE, 0, 0))),
        raw_frame(FrameRecords(ask=MapAsk(0, MapLevel.RANGE, 0, 1 << 20))),
        raw_frame(FrameRecords(ask=MapAsk(0, MapLevel.RANGE, -1, 1))),
    ],
    ids=lambda p: f"{len(p)}-bytes",
)
def test_what_does_not_add_up_is_refused(plaintext: bytes) -> None:
    with pytest.raises(FrameMalformed):
        decode_frame(plaintext)


def test_a_compression_bomb_is_cut_off() -> None:
    import zstandard

    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 * CHUNK))
    with pytest.raises(FrameMalformed):
        decode_frame(raw_frame(FrameRecords(extents=PACKED, codec=Codec.ZSTD, data_length=4096), bomb))


@given(st.binary(max_size=300))
def test_hostile_replies_are_refused(plaintext: bytes) -> None:
    with contextlib.suppress(FrameMalformed):
        assert isinstance(decode_replies(plaintext), list)


@given(st.binary(min_size=8, max_size=8))
def test_a_prefix_is_within_the_bounds_or_refused(prefix: bytes) -> None:
    try:
        _, head, payload = m.decode_prefix(prefix)
    except FrameMalformed:
        return
    assert head <= MAX_HEAD
    assert payload <= m.MAX_PAYLOAD


def test_heads_come_back_and_wrong_ones_are_refused() -> None:
    position = m.Position(ITEM, Fence(1, 2, 3), 4, True)
    assert m.read_head(m.message(position), m.Position) == position
    with pytest.raises(FrameMalformed):
        m.read_head(m.message(position), m.Attach)
    with pytest.raises(FrameMalformed):
        m.read_head(m.Message(m.MessageType.POSITION, b"\xc1"), m.Position)
    frame = m.FrameHead(ITEM, Fence(1, 2, 1 << 40), 5, 6)
    assert m.FrameHead.decode(frame.encode()) == frame
    with pytest.raises(FrameMalformed):
        m.FrameHead.decode(b"short")


def test_a_message_over_the_bounds_is_never_sent() -> None:
    with pytest.raises(FrameMalformed):
        m.encode_prefix(m.Message(m.MessageType.FRAME, b"", bytes(m.MAX_PAYLOAD + 1)))
    with pytest.raises(FrameMalformed):
        m.encode_prefix(m.Message(m.MessageType.HELLO, bytes(MAX_HEAD + 1)))


def test_errors_say_what_happened_and_what_to_do_even_with_a_parameter_missing() -> None:
    for error in (error for error in every_error() if error.__module__.startswith("backhaul.replication")):
        shown = str(error())
        assert shown.startswith(error.code)
        assert error.fix
