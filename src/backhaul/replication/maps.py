"""Granule maps: a hash of every 64 KiB of a disk, and which of them are stale.

Invariant: a granule that is not stale had exactly this hash, and no write to it was marked since the read that the
hash was made from began. Writers mark a range before they issue the write and again when it has completed; readers
take `generation()` before they read and hand it to `put`. One lock guards each call, so trackers, appliers and
readers may share a map from several threads.

Memory: 16 bytes per granule (256 MiB per TiB) for what holds data; ranges of 16 MiB that hash as zeros take
nothing. Marks: at most 2 MiB per TiB, that times KEPT_GENERATIONS + 1 in the worst case, usually a few KiB.

Encoded form (the durable map of a target), big-endian: `BHGM`, version (2), reserved (2), size (8), covers (8),
hash of a granule of zeros (16, tells whose key it is), length of the stale bitmap (4), number of ranges (4); the
stale bitmap in the portable Roaring format (32 bit); per range, ascending, its number (4) and its 256 hashes;
BLAKE3 (32) of all before.
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from typing import Final

from blake3 import blake3
from pyroaring import BitMap

from backhaul.replication.errors import BackhaulError
from backhaul.replication.units import GRANULE, MAX_DISK_BYTES, MAX_MAP_HASHES, RANGE_GRANULES, SECTOR

DIGEST_BYTES: Final = 16
KEY_BYTES: Final = 32
KEPT_GENERATIONS: Final = 16
"""Generations of marks kept apart. A read that began before the oldest of them proves nothing any more and its hash
is refused, which costs reading the granule again; a read lasts a few generations at most."""

_MAGIC: Final = b"BHGM"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("!4sHHQQ16sII")
_RANGE: Final = struct.Struct("!I")
_RANGE_BYTES: Final = RANGE_GRANULES * DIGEST_BYTES
_CHECK_BYTES: Final = 32

Data = bytes | bytearray | memoryview


class MapRangeInvalid(BackhaulError):
    """{count} {unit} from {first} on are not within the granule map, which has {limit}."""

    code = "BH-MAP-RANGE"


class MapSizeInvalid(BackhaulError):
    """A granule map of {before} bytes cannot be made one of {size} bytes: it covers whole sectors and never shrinks."""

    code = "BH-MAP-SIZE"
    fix = "A protected disk must not become smaller: enlarge it again, or protect it anew."


class MapUnusable(BackhaulError):
    """The granule map cannot be used: {reason}."""

    code = "BH-MAP-UNUSABLE"
    fix = "Nothing is lost: the disk is read and hashed again."


class GranuleMap:
    """The hashes of one disk. A new map knows nothing: every granule is stale.

    covers  journal position (64 bit) up to which the map's owner has applied what it marked; kept with the map,
            never read by it
    """

    def __init__(self, size: int, key: bytes) -> None:
        """`size` of the disk in bytes, `key` of the item (32 bytes). Raises MapSizeInvalid, MapUnusable."""
        if len(key) != KEY_BYTES:
            raise MapUnusable(reason=f"its key has {len(key)} bytes, not {KEY_BYTES}")
        self.covers = 0
        self._key = key
        self._lock = threading.Lock()
        self._ranges: dict[int, bytearray] = {}
        self._stale = BitMap()
        self._marks: deque[BitMap] = deque([BitMap()])
        self._generation = 0
        self._zero = self.hash_granule(bytes(GRANULE))
        self._zero_range = self._zero * RANGE_GRANULES
        self._zero_range_digest = _digest(self._zero_range)
        self._size = 0
        self._set_size(size)
        self.mark_all_stale()

    @staticmethod
    def unknown(size: int, key: bytes) -> GranuleMap:
        """The map of a disk of which nothing is known: all stale. Raises as the constructor."""
        return GranuleMap(size, key)

    @staticmethod
    def all_zero(size: int, key: bytes) -> GranuleMap:
        """The map of a fresh disk that is known to read as zeros: nothing stale. Raises as the constructor."""
        result = GranuleMap(size, key)
        result._stale.clear()
        return result

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return self._size

    @property
    def count(self) -> int:
        """Granules of the disk; the last one may be shorter."""
        return self._count

    @property
    def range_count(self) -> int:
        """Ranges of 256 granules; the last one may have fewer."""
        return -(-self._count // RANGE_GRANULES)

    @property
    def stale_count(self) -> int:
        """Stale granules."""
        return len(self._stale)

    def hash_granule(self, data: Data) -> bytes:
        """BLAKE3 under the item's key, 16 bytes, of a granule's bytes; the last granule is hashed as long as it is."""
        return blake3(data, key=self._key).digest(length=DIGEST_BYTES)

    def zero_hash(self, index: int) -> bytes:
        """The hash that granule `index` has when it reads as zeros. Raises MapRangeInvalid."""
        self._check(index, 1)
        return self._zero_of(index)

    def get(self, index: int) -> bytes | None:
        """The hash of a granule, None while it is stale. Raises MapRangeInvalid."""
        self._check(index, 1)
        with self._lock:
            return None if index in self._stale else self._load(index)

    def hashes(self, first: int, count: int) -> list[bytes | None]:
        """The hashes of `count` granules (at most MAX_MAP_HASHES), None where stale. Raises MapRangeInvalid."""
        self._check(first, count)
        if count > MAX_MAP_HASHES:
            raise MapRangeInvalid(first=first, count=count, unit="hashes at once", limit=MAX_MAP_HASHES)
        with self._lock:
            stale = self._stale
            return [None if index in stale else self._load(index) for index in range(first, first + count)]

    def range_digest(self, index: int) -> bytes | None:
        """BLAKE3, 16 bytes, over the hashes of range `index`; None if any is stale. Raises MapRangeInvalid."""
        if not 0 <= index < self.range_count:
            raise MapRangeInvalid(first=index, count=1, unit="ranges", limit=self.range_count)
        first = index * RANGE_GRANULES
        last = min(first + RANGE_GRANULES, self._count)
        with self._lock:
            if self._stale.range_cardinality(first, last):
                return None
            hashes = self._ranges.get(index)
            if hashes is None:
                return self._last_range_digest if last == self._count else self._zero_range_digest
            return _digest(memoryview(hashes)[: (last - first) * DIGEST_BYTES])

    def generation(self) -> int:
        """What a reader takes before it reads, and gives to `put` with the hash of what it read."""
        with self._lock:
            if self._marks[-1]:
                self._generation += 1
                self._marks.append(BitMap())
                if len(self._marks) > KEPT_GENERATIONS:
                    self._marks.popleft()
            return self._generation

    def put(self, index: int, digest: bytes, seen: int) -> bool:
        """Store the hash of what was read after `seen` was taken, and clear the granule's stale mark.

        False, and nothing is changed, if the granule was marked since. Raises MapRangeInvalid, MapUnusable.
        """
        self._check(index, 1)
        if len(digest) != DIGEST_BYTES:
            raise MapUnusable(reason=f"a hash has {len(digest)} bytes, not {DIGEST_BYTES}")
        with self._lock:
            since = self._marks_since(seen)
            if since is None or any(index in marks for marks in since):
                return False
            self._store(index, digest)
            self._stale.discard(index)
            return True

    def put_zeros(self, first: int, count: int, seen: int) -> int:
        """`put` the hash of zeros for `count` granules; how many were taken. Quick however many they are.

        Raises MapRangeInvalid.
        """
        self._check(first, count)
        with self._lock:
            since = self._marks_since(seen)
            if since is None:
                return 0
            taken = BitMap()
            taken.add_range(first, first + count)
            for marks in since:
                taken -= marks
            self._stale -= taken
            self._clear(taken, first, count)
            return len(taken)

    def mark_stale(self, offset: int, length: int) -> None:
        """Every granule that the range (bytes) touches is being, or has been, written. Raises MapRangeInvalid."""
        if offset < 0 or length < 0 or offset + length > self._size:
            raise MapRangeInvalid(first=offset, count=length, unit="bytes", limit=self._size)
        if length:
            with self._lock:
                self._mark(offset // GRANULE, -(-(offset + length) // GRANULE))

    def mark_all_stale(self) -> None:
        """Nothing is known of the disk any more."""
        with self._lock:
            self._mark(0, self._count)

    def stale_granules(self) -> BitMap:
        """The stale granules, as a set of the caller's own."""
        with self._lock:
            return self._stale.copy()

    def grow(self, size: int, *, zeros: bool = False) -> None:
        """The disk has `size` bytes now. The new part is stale, unless it is known to read as zeros.

        A last granule that was not whole is stale afterwards, unless it and the new part are zeros.
        Raises MapSizeInvalid when it would shrink.
        """
        with self._lock:
            before, count = self._size, self._count
            tail = count - 1
            partial = before % GRANULE and size > before
            keep_tail = zeros and partial and tail not in self._stale and self._load(tail) == self._zero_of(tail)
            self._set_size(size)
            if partial:
                # Its hash was made of fewer bytes, and so is one that a reader may be about to put.
                self._store(tail, self._zero_of(tail))
                self._marks[-1].add(tail)
                if not keep_tail:
                    self._stale.add(tail)
            if self._count > count:
                self._store(self._count - 1, self._last_zero)
                if not zeros:
                    self._mark(count, self._count)

    def encode(self) -> bytes:
        """The form above, stale marks included; tokens of readers do not survive it."""
        with self._lock:
            self._stale.run_optimize()
            stale = self._stale.serialize()
            head = (_MAGIC, _VERSION, 0, self._size, self.covers, self._zero, len(stale), len(self._ranges))
            parts: list[Data] = [_HEAD.pack(*head), stale]
            for index in sorted(self._ranges):
                parts += [_RANGE.pack(index), self._ranges[index]]
            check = blake3()
            for part in parts:
                check.update(part)
            return b"".join([*parts, check.digest(length=_CHECK_BYTES)])

    @staticmethod
    def decode(data: Data, key: bytes) -> GranuleMap:
        """The map that `encode` wrote under `key`. Raises MapUnusable when torn, damaged or another item's."""
        view = memoryview(data)
        if len(view) < _HEAD.size + _CHECK_BYTES:
            raise MapUnusable(reason=f"{len(view)} bytes are too few, it is torn")
        magic, version, _, size, covers, zero, stale_length, ranges = _HEAD.unpack_from(view)
        if magic != _MAGIC or version != _VERSION:
            raise MapUnusable(reason=f"it begins with {magic!r} version {version}, not {_MAGIC!r} {_VERSION}")
        body = view[:-_CHECK_BYTES]
        if blake3(body).digest(length=_CHECK_BYTES) != view[-_CHECK_BYTES:]:
            raise MapUnusable(reason="its checksum is wrong, it is torn or damaged")
        if len(body) != _HEAD.size + stale_length + ranges * (_RANGE.size + _RANGE_BYTES):
            raise MapUnusable(reason="its length is not what its head says")
        try:
            result = GranuleMap(size, key)
        except MapSizeInvalid as error:
            raise MapUnusable(reason=f"it is for a disk of {size} bytes") from error
        if zero != result._zero:
            raise MapUnusable(reason="it was made under another key")
        result.covers = covers
        result._fill(body[_HEAD.size : _HEAD.size + stale_length], body[_HEAD.size + stale_length :])
        return result

    def _fill(self, stale: memoryview, ranges: memoryview) -> None:
        """Take over the decoded marks and hashes."""
        try:
            self._stale = BitMap.deserialize(bytes(stale))
        except ValueError as error:
            raise MapUnusable(reason=f"its stale bitmap: {error}") from error
        if self._stale and self._stale.max() >= self._count:
            raise MapUnusable(reason="a stale mark lies behind its end")
        previous = -1
        step = _RANGE.size + _RANGE_BYTES
        for start in range(0, len(ranges), step):
            (index,) = _RANGE.unpack_from(ranges, start)
            if not previous < index < self.range_count:
                raise MapUnusable(reason=f"range {index} is out of order or behind its end")
            self._ranges[index] = bytearray(ranges[start + _RANGE.size : start + step])
            previous = index

    def _set_size(self, size: int) -> None:
        """Adopt the size and what follows from it: count, the last granule's hash of zeros, the last range's."""
        if size % SECTOR or not max(self._size, SECTOR) <= size <= MAX_DISK_BYTES:
            raise MapSizeInvalid(before=self._size, size=size)
        self._size = size
        self._count = -(-size // GRANULE)
        self._last_zero = self.hash_granule(bytes(size % GRANULE or GRANULE))
        before_last = (self._count - 1) % RANGE_GRANULES
        # A last range has 256 hashes in memory too: those behind the end are ready for the disk to grow.
        self._last_range = self._zero * before_last + self._last_zero + self._zero * (RANGE_GRANULES - before_last - 1)
        self._last_range_digest = _digest(self._last_range[: (before_last + 1) * DIGEST_BYTES])

    def _zero_of(self, index: int) -> bytes:
        return self._last_zero if index == self._count - 1 else self._zero

    def _zeros_of(self, range_index: int) -> bytes:
        """The hashes of a range of zeros."""
        return self._last_range if range_index == self.range_count - 1 else self._zero_range

    def _load(self, index: int) -> bytes:
        hashes = self._ranges.get(index // RANGE_GRANULES)
        if hashes is None:
            return self._zero_of(index)
        start = index % RANGE_GRANULES * DIGEST_BYTES
        return bytes(hashes[start : start + DIGEST_BYTES])

    def _store(self, index: int, digest: bytes) -> None:
        number = index // RANGE_GRANULES
        zero = digest == self._zero_of(index)
        hashes = self._ranges.get(number)
        if hashes is None:
            if zero:
                return
            hashes = self._ranges[number] = bytearray(self._zeros_of(number))
        start = index % RANGE_GRANULES * DIGEST_BYTES
        hashes[start : start + DIGEST_BYTES] = digest
        if zero and hashes == self._zeros_of(number):
            del self._ranges[number]

    def _clear(self, granules: BitMap, first: int, count: int) -> None:
        """Store zeros for `granules`, all of them among the `count` from `first` on."""
        span = range(first // RANGE_GRANULES, -(-(first + count) // RANGE_GRANULES))
        few = len(self._ranges) < len(span)
        for number in [number for number in self._ranges if number in span] if few else span:
            start = number * RANGE_GRANULES
            stop = min(start + RANGE_GRANULES, self._count)
            if granules.contains_range(start, stop):
                self._ranges.pop(number, None)
            elif number in self._ranges:
                for index in range(max(start, first), min(stop, first + count)):
                    if index in granules:
                        self._store(index, self._zero_of(index))

    def _mark(self, first: int, last: int) -> None:
        self._stale.add_range(first, last)
        self._marks[-1].add_range(first, last)

    def _marks_since(self, seen: int) -> list[BitMap] | None:
        """The marks made since `seen` was taken; None when they are no longer told apart."""
        back = self._generation - seen + 1
        return None if back > len(self._marks) else list(self._marks)[len(self._marks) - back :]

    def _check(self, first: int, count: int) -> None:
        if first < 0 or count < 0 or first + count > self._count:
            raise MapRangeInvalid(first=first, count=count, unit="granules", limit=self._count)


def _digest(hashes: Data) -> bytes:
    return blake3(hashes).digest(length=DIGEST_BYTES)
