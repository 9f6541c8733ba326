"""Frames of what a tracker found: their bounds, their begin, nothing lost and nothing twice."""

from __future__ import annotations

from backhaul.mobility.framing import AT_ONCE, Framer
from backhaul.mobility.trackers.contract import Piece
from backhaul.replication.maps import GranuleMap
from backhaul.replication.records import MAX_EXTENTS, ChunkCodec, decode_frame
from backhaul.replication.units import CHUNK, GRANULE, MiB
from backhaul.replication.values import NO_LINEAGE, EpochBegin, EpochReason, Extent, ExtentKind

KNOWN = GranuleMap.unknown(1024 * MiB, bytes(32))
BEGIN = EpochBegin(1, NO_LINEAGE, (), 1, 0, EpochReason.DELTA, "scan")


def data(number: int, granules: int = 1) -> Piece:
    content = number.to_bytes(4, "big") * (granules * GRANULE // 4)
    return Piece(Extent(0, number * CHUNK, len(content)), content, (bytes(16),) * granules, KNOWN, 0)


def zeros(number: int) -> Piece:
    return Piece(Extent(0, number * GRANULE, GRANULE, ExtentKind.ZERO), b"", (), KNOWN, 0)


def all_frames(framer: Framer) -> list[list[Piece]]:
    made: list[list[Piece]] = []
    while frames := framer.frames():
        assert len(frames) <= AT_ONCE
        for frame in frames:
            decoded = decode_frame(frame.plaintext)
            assert decoded.extents == tuple(piece.extent for piece in frame.pieces)
            assert bytes(decoded.data) == b"".join(piece.data for piece in frame.pieces)
            assert decoded.begin == (None if made else BEGIN)
            made.append(frame.pieces)
    return made


def test_pieces_share_a_frame_up_to_a_chunk() -> None:
    pieces = [data(0, 7), data(1, 9), data(2, 16), data(3, 15), data(4, 2), data(5, 1), data(6, 16), data(7, 16)]
    made = all_frames(Framer(iter(pieces), ChunkCodec(), BEGIN))
    assert made == [pieces[:2], pieces[2:3], pieces[3:4], pieces[4:6], pieces[6:7], pieces[7:]]


def test_zeros_are_bounded_by_the_extents_of_a_frame() -> None:
    pieces = [zeros(number) for number in range(MAX_EXTENTS + 1)]
    assert [len(taken) for taken in all_frames(Framer(iter(pieces), ChunkCodec(), BEGIN))] == [MAX_EXTENTS, 1]


def test_nothing_found_makes_no_frame_and_uses_no_begin() -> None:
    assert Framer(iter(()), ChunkCodec(), BEGIN).frames() == []
