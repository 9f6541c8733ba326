"""The one contract of everything that holds blocks.

Implemented by a raw file, a block device and later by NBD and page blobs; `tests/disks/` runs one suite over all
of them. Calls are blocking and are made from worker threads, never from an event loop; a `Disk` may be used by
several threads at once as long as their ranges do not overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

Buffer = bytes | bytearray | memoryview


class Disk(Protocol):
    """A disk opened for reading, or for reading and writing.

    name       what messages call it; never used to find it again
    size       bytes, a multiple of 512
    alignment  bytes: offsets and lengths of `read_into`, `write` and `zero` are multiples of it, except that the
               last piece of the disk may end at `size`
    writable   whether `write`, `zero`, `sync` and `grow` may be called
    """

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def alignment(self) -> int: ...
    @property
    def writable(self) -> bool: ...

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill the whole buffer from `offset`. MUST NOT return fewer bytes, and MUST NOT put zeros in place of
        what could not be read.

        Raises DiskReadFailed (names the disk and offset) or OutOfBounds.
        """
        ...

    def write(self, offset: int, data: Buffer) -> None:
        """Write all of `data` at `offset`; durable only after `sync`. Idempotent.

        Raises DiskWriteFailed or OutOfBounds.
        """
        ...

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, by freeing its space where the disk can. Raises as `write` does."""
        ...

    def data_ranges(self, offset: int = 0, length: int | None = None) -> Iterator[tuple[int, int]]:
        """The ranges (offset, length) that may hold other than zeros, ascending, disjoint; all else reads as zeros
        and need not be read. A disk that cannot tell yields the whole range.
        """
        ...

    def sync(self) -> None:
        """All writes before are durable. Raises DiskSyncFailed, after which the process must end (design section 7)."""
        ...

    def grow(self, size: int) -> None:
        """Enlarge to `size` bytes; the new part reads as zeros. Never shrinks: raises DiskShrinkRefused."""
        ...

    def close(self) -> None:
        """Let go of the disk; calling it twice is no error."""
        ...
