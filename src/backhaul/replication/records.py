"""What is inside a sealed frame and a sealed reply, and its compression. Specification: docs/spec/wire.md.

A frame holds at most: the begin of an epoch, extents with their data, one question for hashes,
the end of an epoch; they take effect in this order. Pure; decoding treats every byte as hostile, although
only the holder of the stream's secret can have written it: an agent may be broken into.
"""

from __future__ import annotations

import enum
import struct
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import zstandard

from backhaul.replication.errors import UNDECODABLE, FrameMalformed
from backhaul.replication.units import CHUNK, MAX_DISKS, MAX_MAP_HASHES, SECTOR, KiB
from backhaul.replication.values import CompletePoint, EpochBegin, EpochEnd, Extent, ExtentKind

MAX_EXTENTS: Final = 4096
"""Extents of one frame: 256 data extents of 4 KiB are a chunk; the rest is for zeros."""

MAX_EXTENT_LENGTH: Final = (1 << 32) - 64 * KiB
"""Lengths are 32 bits on the wire and multiples of a granule where they are this long."""

_LENGTH: Final = struct.Struct("!I")
_EXTENT: Final = struct.Struct("!HBxIQ")


class Codec(enum.IntEnum):
    """How the data of a frame is stored."""

    RAW = 0
    ZSTD = 1


class MapLevel(enum.IntEnum):
    """What a question for hashes asks for."""

    RANGE = 0
    GRANULE = 1


class MapAsk(msgspec.Struct, frozen=True, array_like=True):
    """The agent asks for `count` hashes of a disk at the target, from number `first` of that level."""

    disk: int
    level: MapLevel
    first: int
    count: int


class FrameRecords(msgspec.Struct, frozen=True, array_like=True):
    """Everything of a frame but its data. `extents` is packed, 16 bytes each; `data_length` before compression."""

    begin: EpochBegin | None = None
    extents: bytes = b""
    codec: Codec = Codec.RAW
    data_length: int = 0
    ask: MapAsk | None = None
    end: EpochEnd | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded frame. `data` holds the bytes of the DATA extents, one after the other."""

    begin: EpochBegin | None
    extents: tuple[Extent, ...]
    data: bytes | memoryview
    ask: MapAsk | None
    end: EpochEnd | None


def pack_extents(extents: Sequence[Extent]) -> bytes:
    """Extents as on the wire; an extent longer than 32 bits allow is split by whoever makes it."""
    return b"".join(_EXTENT.pack(e.disk, e.kind, e.length, e.offset) for e in extents)


class ChunkCodec:
    """Compresses chunks once, at the source. One per item; calls may come from several threads.

    Adaptive: after a chunk that did not shrink by a sixteenth, the next ones are tried on a sample of 64 KiB
    first, so that incompressible data costs next to nothing (reference: zstd -5 runs at 800 MB/s a core).
    """

    SAMPLE: Final = 64 * KiB

    def __init__(self, level: int = -5) -> None:
        self._level = level
        self._local = threading.local()
        self._dense = False

    def _compressor(self) -> zstandard.ZstdCompressor:
        compressor: zstandard.ZstdCompressor | None = getattr(self._local, "compressor", None)
        if compressor is None:
            compressor = zstandard.ZstdCompressor(level=self._level, write_content_size=False, write_checksum=False)
            self._local.compressor = compressor
        return compressor

    def compress(self, data: bytes | bytearray | memoryview) -> tuple[Codec, bytes | bytearray | memoryview]:
        """Codec and stored form; the data itself when compressing does not pay."""
        if not len(data):
            return Codec.RAW, data
        compressor = self._compressor()
        if self._dense and len(data) > 2 * self.SAMPLE:
            sample = memoryview(data)[: self.SAMPLE]
            if not _pays(len(compressor.compress(sample)), len(sample)):
                return Codec.RAW, data
        stored = compressor.compress(data)
        self._dense = not _pays(len(stored), len(data))
        return (Codec.RAW, data) if self._dense else (Codec.ZSTD, stored)


def _pays(stored: int, length: int) -> bool:
    return stored < length - length // 16


def encode_frame(
    codec: ChunkCodec,
    extents: Sequence[Extent] = (),
    data: bytes | bytearray | memoryview = b"",
    *,
    begin: EpochBegin | None = None,
    ask: MapAsk | None = None,
    end: EpochEnd | None = None,
) -> bytes:
    """The plaintext of a frame. The data of all DATA extents is `data`, at most one chunk."""
    assert len(data) <= CHUNK, "a frame carries at most one chunk"
    assert len(extents) <= MAX_EXTENTS, "the caller splits long lists of extents"
    how, stored = codec.compress(data)
    records = FrameRecords(begin, pack_extents(extents), how, len(data), ask, end)
    head = msgspec.msgpack.encode(records)
    return b"".join((_LENGTH.pack(len(head)), head, stored))


_decompressors: Final = threading.local()


def _decompress(stored: memoryview, length: int) -> bytes:
    decompressor: zstandard.ZstdDecompressor | None = getattr(_decompressors, "zstd", None)
    if decompressor is None:
        decompressor = _decompressors.zstd = zstandard.ZstdDecompressor(max_window_size=8 * CHUNK)
    # The size is the frame's claim, bounded by one chunk before: a bomb is cut off there.
    return decompressor.decompress(stored, max_output_size=length)


def decode_frame(plaintext: bytes | memoryview) -> Frame:
    """The frame. Raises FrameMalformed for anything that is out of its bounds or does not add up."""
    view = memoryview(plaintext)
    try:
        (head_length,) = _LENGTH.unpack_from(view)
        records = msgspec.msgpack.decode(view[4 : 4 + head_length], type=FrameRecords)
        extents = _unpack_extents(records.extents)
        stored = view[4 + head_length :]
        if not 0 <= records.data_length <= CHUNK:
            raise _malformed(f"{records.data_length} bytes of data are more than a chunk")
        if records.codec is Codec.ZSTD:
            data: bytes | memoryview = _decompress(stored, records.data_length) if records.data_length else b""
        else:
            data = stored
    except (struct.error, *UNDECODABLE, zstandard.ZstdError) as error:
        raise _malformed(str(error)) from error
    expected = sum(e.length for e in extents if e.kind is ExtentKind.DATA)
    if len(data) != records.data_length or expected != records.data_length:
        raise _malformed(f"{len(data)} bytes of data, {records.data_length} announced, {expected} in extents")
    if records.ask and not (0 < records.ask.count <= MAX_MAP_HASHES and records.ask.first >= 0):
        raise _malformed(f"a question for {records.ask.count} hashes")
    return Frame(records.begin, extents, data, records.ask, records.end)


def _unpack_extents(packed: bytes) -> tuple[Extent, ...]:
    if len(packed) % _EXTENT.size or len(packed) > MAX_EXTENTS * _EXTENT.size:
        raise _malformed(f"a list of extents of {len(packed)} bytes")
    extents = []
    for disk, kind, length, offset in _EXTENT.iter_unpack(packed):
        if disk >= MAX_DISKS or kind > ExtentKind.DISCARDED or not length or offset % SECTOR or length % SECTOR:
            raise _malformed(f"extent of kind {kind} at {offset} with {length} bytes on disk {disk}")
        extents.append(Extent(disk, offset, length, ExtentKind(kind)))
    return tuple(extents)


def _malformed(reason: str) -> FrameMalformed:
    return FrameMalformed(peer="the agent", reason=reason)


class Applied(msgspec.Struct, frozen=True, array_like=True, tag="a"):
    """Durable at the target up to frame `number`, cumulative."""

    number: int


class Completed(msgspec.Struct, frozen=True, array_like=True, tag="c"):
    """The epoch is a recovery point. `number` is the frame that held its end."""

    number: int
    point: CompletePoint
    final: bool = False


class MapPart(msgspec.Struct, frozen=True, array_like=True, tag="m"):
    """Answer to MapAsk: hashes of 16 bytes each, one after the other. `number` is the frame that asked."""

    number: int
    disk: int
    level: MapLevel
    first: int
    hashes: bytes


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """The target did not apply frame `number` and will apply none after it, for the error with this code."""

    number: int
    code: str
    params: dict[str, Any]


class Waiting(msgspec.Struct, frozen=True, array_like=True, tag="w"):
    """The target holds back from frame `number` on, without loss, until the reason is gone (journal full)."""

    number: int
    code: str
    params: dict[str, Any]


Reply = Applied | Completed | MapPart | Refused | Waiting


def encode_replies(replies: Iterable[Reply]) -> bytes:
    """Plaintext of one sealed reply."""
    return msgspec.msgpack.encode(list(replies))


def decode_replies(plaintext: bytes) -> list[Reply]:
    """Raises FrameMalformed."""
    try:
        return msgspec.msgpack.decode(plaintext, type=list[Reply])
    except UNDECODABLE as error:
        raise FrameMalformed(peer="the target", reason=str(error)) from error
