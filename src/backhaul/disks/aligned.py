"""Page-aligned memory, which O_DIRECT needs.

Invariant: a bounce buffer belongs to one thread and holds nothing between two calls. Called by disks from worker
threads, and by whoever reads or writes much and wants to be spared the copy (`aligned_buffer`).
"""

from __future__ import annotations

import mmap
import threading
from typing import Final

from backhaul.replication.units import CHUNK

BOUNCE_BYTES: Final = CHUNK
"""Size of a thread's bounce buffer: one frame's data. Memory is bounded by it times the worker threads."""


def aligned_buffer(size: int) -> memoryview:
    """`size` bytes of zeroed memory that begins at a page; given back when the last view of it is gone."""
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


ZEROS: Final = memoryview(mmap.mmap(-1, BOUNCE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ))
"""Zeros to write from: read-only, and of one physical page."""


class _Bounce(threading.local):
    """One buffer per thread, made at its first use, freed with the thread."""

    def __init__(self) -> None:
        self.buffer = aligned_buffer(BOUNCE_BYTES)


_bounce: Final = _Bounce()


def bounce_buffer() -> memoryview:
    """The calling thread's aligned buffer of BOUNCE_BYTES; valid until the thread's next call."""
    return _bounce.buffer
