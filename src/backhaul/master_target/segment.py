"""One file of the undo journal. Specification: docs/spec/journal.md, "Segment".

Invariant: batches begin at multiples of 4,096 and a record is valid only in its segment at its offset, so a write
that was torn never touches what was synced, and data of a guest is never taken for a record. Appended to by the
item's worker; `read_at` may be called by any thread.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blake3 import blake3

from backhaul.disks.contract import Buffer
from backhaul.master_target.errors import ReplicaFileDamaged
from backhaul.master_target.records import (
    HASH,
    HEAD,
    MAGIC,
    VERSION,
    BadRecord,
    Before,
    Record,
    RecordType,
    block_hashes,
    decode_head,
    digest,
    encode_head,
    unpack_runs,
)
from backhaul.replication.ports import Files, OpenFile
from backhaul.replication.units import BLOCK, MiB
from backhaul.replication.values import ItemId

_HEAD: Final = struct.Struct("!4sHH16sIQQQ")
_READ: Final = 16 * 1024  # a head and the meta of most records in one read
FIRST: Final = BLOCK
"""Offset of the first batch."""


@dataclass(slots=True)
class Batch:
    """Records that were appended in one write. `unsettled`: none was appended after it."""

    records: list[Record]
    unsettled: bool = False

    @property
    def start(self) -> int:
        """Offset of its first byte."""
        return self.records[0].offset

    @property
    def end(self) -> int:
        """Offset behind its last record."""
        return self.records[-1].end


@dataclass(slots=True)
class Damage:
    """A place that was durable once and does not read back as it was written."""

    place: int


def aligned(offset: int) -> int:
    """The next place a batch may begin at."""
    return -(-offset // BLOCK) * BLOCK


class Segment:
    """An open segment file. `end` is where the next batch goes; `synced` what is durable."""

    def __init__(self, file: OpenFile, path: Path, head: bytes, key: bytes) -> None:
        """`head` without its hash; use `create` or `open`."""
        fields = _HEAD.unpack(head)
        self.item = ItemId(fields[3].hex())
        self.id, self.epoch, self.base, self.created_ns = (int(value) for value in fields[4:])
        self.path = path
        self.file = file
        self.item_key = key
        self.key: bytes = blake3(head, key=key).digest()
        self.end = FIRST
        self.synced = FIRST
        self.readers = 0

    @classmethod
    def create(
        cls, files: Files, folder: Path, item: ItemId, key: bytes, number: int, epoch: int, base: int, now_ns: int
    ) -> Segment:
        """A new segment whose head is written, not synced. Raises OSError."""
        head = _HEAD.pack(b"BHJS", VERSION, 0, bytes.fromhex(item), number, epoch, base, now_ns)
        path = folder / f"{number:08d}"
        file = files.open(path, create=True)
        try:
            file.truncate(0)
            file.write_at(0, [head, digest(key, head), bytes(FIRST - len(head) - HASH)])
        except OSError:
            file.close()
            raise
        return cls(file, path, head, key)

    @classmethod
    def open(cls, files: Files, folder: Path, key: bytes, number: int) -> Segment:
        """An existing segment. Raises BadRecord when its head is not valid, ReplicaFileDamaged, OSError."""
        path = folder / f"{number:08d}"
        file = files.open(path)
        try:
            head = file.read_at(0, _HEAD.size + HASH)
            fixed = head[: _HEAD.size]
            if len(head) < _HEAD.size + HASH or digest(key, fixed) != head[_HEAD.size :]:
                raise BadRecord("segment head")
            if int.from_bytes(fixed[4:6], "big") != VERSION:
                raise ReplicaFileDamaged(name=path.name, reason="it is of a newer version")
            return cls(file, path, fixed, key)
        except (OSError, BadRecord, ReplicaFileDamaged):
            file.close()
            raise

    def place(self, records: Sequence[Record]) -> int:
        """Give the records of one batch their offsets; the batch's end. Nothing is written."""
        at = self.end
        for record in records:
            record.offset, record.synced, record.last = at, self.synced, False
            at = record.end
        records[-1].last = True
        return at

    def write(self, records: Sequence[Record]) -> None:
        """Append a placed batch in one write; on OSError nothing of it counts."""
        buffers: list[Buffer] = []
        for record in records:
            buffers += [encode_head(self.key, record), record.meta, *record.stored]
        end = records[-1].end
        buffers.append(bytes(aligned(end) - end))
        self.file.write_at(self.end, buffers)
        self.end = aligned(end)

    def cut(self, end: int) -> None:
        """Forget what lies behind `end`. Raises OSError."""
        self.file.truncate(end)
        self.end = end

    def read_at(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes. Raises BadRecord where the file ends early, OSError."""
        data = self.file.read_at(offset, size)
        if len(data) != size:
            raise BadRecord("end of file")
        return data

    def read_record(self, offset: int, limit: int) -> Record:
        """The record at `offset` with its meta, without payload. Raises BadRecord, OSError."""
        start = self.file.read_at(offset, min(_READ, limit - offset))
        record, meta_length, meta_hash = decode_head(self.key, offset, start)
        if offset + HEAD + meta_length + record.payload_length > limit:
            raise BadRecord("length")
        meta = start[HEAD : HEAD + meta_length]
        if len(meta) < meta_length:
            meta = self.read_at(offset + HEAD, meta_length)
        if digest(self.key, meta) != meta_hash:
            raise BadRecord("meta")
        record.meta = meta
        return record

    def scan(self, sealed: int) -> Iterator[Batch | Damage]:
        """Whole batches in order, and damage. `sealed`: length of a segment that is not written any more, else 0.

        Behind the last whole batch of the open segment `end` is set, and everything there is a torn tail.
        """
        limit = sealed or self.file.size()
        at, held = FIRST, None
        while at < limit:
            try:
                batch = self._read_batch(at, limit)
            except BadRecord:
                if not sealed and not self._synced_beyond(at, limit):
                    break
                yield from [held] if held else []
                held = None
                yield Damage(at)
                at = self._next_batch(at + BLOCK, limit)
                continue
            yield from [held] if held else []
            held = batch
            at = aligned(batch.end)
        if (sealed and at < sealed) or sealed > self.file.size():
            yield Damage(at)
        if held and not sealed:
            if self._payload_good(held):
                held.unsettled = True
            elif self._synced_beyond(held.start, limit):
                yield Damage(held.start)
            else:
                at, held = held.start, None
        if not sealed:
            self.end = self.synced = min(at, aligned(limit))
        yield from [held] if held else []

    def _read_batch(self, at: int, limit: int) -> Batch:
        records: list[Record] = []
        while True:
            record = self.read_record(at, limit)
            if records and record.batch != records[0].batch:
                raise BadRecord("batch")
            records.append(record)
            if record.last:
                return Batch(records)
            at = record.end

    def _payload_good(self, batch: Batch) -> bool:
        try:
            for record in batch.records:
                self.check_payload(record)
        except BadRecord:
            return False
        return True

    def check_payload(self, record: Record) -> None:
        """Read all before-images of a record. Raises BadRecord, OSError."""
        if record.type is not RecordType.CHANGES:
            return
        for run, at, _ in unpack_runs(record.meta):
            if run.before is Before.STORED:
                data = self.read_at(record.payload_at + at, run.stored_bytes)
                if block_hashes(self.item_key, data) != run.before_hashes:
                    raise BadRecord("payload")

    def _synced_beyond(self, place: int, limit: int) -> bool:
        """Whether a valid record says that what lies at `place` was durable."""
        at = place
        while at < limit:
            data = self.file.read_at(at, MiB + len(MAGIC) - 1)
            if not data:
                break
            found = data.find(MAGIC)
            while found >= 0:
                try:
                    if self.read_record(at + found, limit).synced > place:
                        return True
                except BadRecord:
                    pass  # the four bytes occur in data as well
                found = data.find(MAGIC, found + 1)
            at += MiB
        return False

    def _next_batch(self, at: int, limit: int) -> int:
        while at < limit:
            try:
                self._read_batch(at, limit)
            except BadRecord:
                at += BLOCK
            else:
                return at
        return limit
