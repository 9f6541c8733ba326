"""A disk image with real file-system content: an ext4 of this machine's own files, a third of its 64 KiB blocks zero.

The files are taken in an order that is shuffled but the same each time, so a small image has the same mixture of
programs, libraries and text as a large one. Blocking; called once, before anything is measured.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backhaul.replication.units import GRANULE, MiB

FILLED: Final = 0.64
"""Share of the image that is filled with files; with the file system's own structures about two thirds are not zero."""

LARGEST_FILE: Final = 256 * MiB
"""One huge file would make the image all of one kind."""

_ZEROS: Final = bytes(GRANULE)


class ImageNotMade(Exception):
    """The image could not be made; says why."""


@dataclass(frozen=True)
class ImageFacts:
    """What an image consists of: bytes, and how many of its 64 KiB blocks are zero."""

    size: int
    blocks: int
    zero_blocks: int

    def __str__(self) -> str:
        share = self.zero_blocks / self.blocks
        data = (self.blocks - self.zero_blocks) * GRANULE
        return f"{self.size / MiB:.0f} MiB, {data / MiB:.0f} MiB of data, {share:.0%} of 64 KiB blocks zero"


def make_image(image: Path, size: int, sources: Sequence[Path]) -> None:
    """Make `image`, a sparse ext4 of `size` bytes with files of `sources`. Raises ImageNotMade."""
    tree = image.with_name(image.name + ".files")
    try:
        _gather(tree, int(size * FILLED), sources)
        with image.open("wb") as file:
            file.truncate(size)
        command = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-d", str(tree), str(image)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ImageNotMade(f"mke2fs failed: {done.stderr.strip()[-500:]}")
    except OSError as error:
        raise ImageNotMade(str(error)) from error
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def _gather(tree: Path, wanted: int, sources: Sequence[Path]) -> None:
    """Copy files of `wanted` bytes into a folder, again and again the same ones if there are not enough."""
    files = [file for source in sources for file in _files(source)]
    if not files:
        raise ImageNotMade(f"no readable files in {', '.join(map(str, sources))}")
    random.Random(0).shuffle(files)
    have = 0
    for turn in range(1 + wanted // max(1, sum(size for _, size in files))):
        for number, (file, size) in enumerate(files):
            if have >= wanted:
                return
            if have + size > wanted:
                continue
            place = tree / str(turn) / str(number // 1000) / f"{number}-{file.name}"
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(file, place)
            except PermissionError:
                continue
            have += size


def _files(source: Path) -> Iterator[tuple[Path, int]]:
    for folder, folders, names in os.walk(source):
        folders.sort()
        for name in sorted(names):
            file = Path(folder, name)
            if file.is_file() and not file.is_symlink() and 0 < (size := file.stat().st_size) <= LARGEST_FILE:
                yield file, size


def facts(image: Path) -> ImageFacts:
    """Read the image once; it lies in the page cache afterwards, if that is large enough."""
    blocks = zero = 0
    with image.open("rb") as file:
        while block := file.read(GRANULE):
            blocks += 1
            zero += block == _ZEROS[: len(block)]
    return ImageFacts(image.stat().st_size, blocks, zero)
