"""Turns what a tracker found into frames of at most one chunk. Called from worker threads, one at a time per framer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from backhaul.mobility.trackers.contract import Piece
from backhaul.replication.records import MAX_EXTENTS, ChunkCodec, encode_frame
from backhaul.replication.units import CHUNK
from backhaul.replication.values import EpochBegin

AT_ONCE: Final = 4
"""Frames made in one call: a change of threads costs as much as sealing one. Bounds the memory of a call to 8 MiB."""


@dataclass(frozen=True)
class MadeFrame:
    """A frame that is ready to be sealed, and what is in it."""

    begin: EpochBegin | None
    pieces: list[Piece]
    plaintext: bytes


class Framer:
    """Gathers pieces until a chunk is full, and compresses it."""

    def __init__(self, pieces: Iterator[Piece], codec: ChunkCodec, begin: EpochBegin | None) -> None:
        """`begin` goes into the first frame."""
        self._pieces = pieces
        self._codec = codec
        self._begin = begin
        self._kept: Piece | None = None

    def frames(self) -> list[MadeFrame]:
        """The next frames, at most AT_ONCE; empty when there are no more pieces."""
        made: list[MadeFrame] = []
        while len(made) < AT_ONCE and (pieces := self._gather()):
            data = pieces[0].data if len(pieces) == 1 else b"".join(piece.data for piece in pieces)
            extents = [piece.extent for piece in pieces]
            begin, self._begin = self._begin, None
            made.append(MadeFrame(begin, pieces, encode_frame(self._codec, extents, data, begin=begin)))
        return made

    def _gather(self) -> list[Piece]:
        """The pieces of the next frame, at most CHUNK bytes of data and MAX_EXTENTS; empty when there are no more."""
        taken: list[Piece] = []
        length = 0
        while len(taken) < MAX_EXTENTS and length < CHUNK:
            piece = self._kept or next(self._pieces, None)
            self._kept = None
            if piece is None:
                break
            if length + len(piece.data) > CHUNK:
                self._kept = piece
                break
            taken.append(piece)
            length += len(piece.data)
        return taken
