"""What a reprotect must send, as the demo finds it out: every granule that differs, and none of the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backhaul.demo.differing import compressed
from backhaul.replication.units import GRANULE


def disk(folder: Path, name: str, *granules: bytes) -> Path:
    path = folder / name
    path.write_bytes(b"".join(granules))
    return path


def test_only_what_differs_counts_and_compressed(tmp_path: Path) -> None:
    same, noise, zeros = os.urandom(GRANULE), os.urandom(GRANULE), bytes(GRANULE)
    old = disk(tmp_path, "old", same, zeros, noise)
    assert compressed(old, disk(tmp_path, "equal", same, zeros, noise)) == 0
    assert compressed(old, disk(tmp_path, "noise", same, noise, noise)) == GRANULE
    assert 0 < compressed(old, disk(tmp_path, "zeros", same, zeros, zeros)) < GRANULE // 100
    one_bit = bytes([same[0] ^ 1]) + same[1:]
    assert compressed(old, disk(tmp_path, "bit", one_bit, zeros, noise)) == GRANULE


def test_disks_of_two_sizes_are_no_pair(tmp_path: Path) -> None:
    old = disk(tmp_path, "old", bytes(GRANULE), bytes(GRANULE))
    with pytest.raises(ValueError, match="shorter"):
        compressed(old, disk(tmp_path, "new", bytes(GRANULE)))
