"""The oracle: proves the prefix property on any set of disk images.

Reads the regions that the writers overwrite, finds out which incarnation of the writers the images go on from, and
has `prefix` judge them against its log; then the state that incarnation started from against its parent's log, and
so on, so that a whole chain of failovers is proved. What an abandoned side wrote behind the point that was failed
over to is lost legitimately: the next incarnation's start says so. Only reads. Blocking; call from a worker thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from backhaul.demo.oracle.acklog import Region, merged
from backhaul.demo.oracle.barrier import Barrier
from backhaul.demo.oracle.errors import DiskMissing, LogUnusable
from backhaul.demo.oracle.history import History, Incarnation, load_history
from backhaul.demo.oracle.images import Image, ReadAt, reading
from backhaul.demo.oracle.prefix import verify
from backhaul.demo.oracle.report import CheckReport, Findings, Newest, Violation, ViolationKind
from backhaul.demo.oracle.stamps import Content, ContentKind, observe, place
from backhaul.replication.units import BLOCK, CHUNK

_CHUNK_BLOCKS: Final = CHUNK // BLOCK


def check(log: Path | History, images: Sequence[Image], barrier: Barrier | None = None) -> CheckReport:
    """Prove that `images` (disk 0, 1, ... of the machine) are a prefix of the acknowledged writes in `log` and hold
    everything before `barrier`.

    Raises LogUnusable, LogDamaged, DiskMissing, ImageUnreadable; a bad image is no error but a violation.
    """
    history = log if isinstance(log, History) else load_history(log)
    regions = merged(region for found in history.incarnations.values() for region in found.regions)
    contents, sizes = scan(images, history.machine, regions)
    return judge(history, contents, barrier or Barrier.none(), sizes)


def scan(
    images: Sequence[Image], machine: bytes, regions: Iterable[Region]
) -> tuple[dict[int, Content], dict[int, int]]:
    """What the blocks of the regions hold, zeros left out; and per disk, how many blocks from its start could be read.

    Blocks behind the end of an image count as zeros. Raises DiskMissing, ImageUnreadable.
    """
    contents: dict[int, Content] = {}
    sizes: dict[int, int] = {}
    for region in regions:
        if region.disk >= len(images):
            raise DiskMissing(disk=region.disk, given=len(images))
        with reading(images[region.disk]) as image:
            readable = _scan_region(image, machine, region, contents)
        sizes[region.disk] = min(readable, sizes.get(region.disk, readable))
    return contents, sizes


def _scan_region(image: ReadAt, machine: bytes, region: Region, contents: dict[int, Content]) -> int:
    """Add the region's contents; answers the end of what could be read, in blocks from the disk's start."""
    block = region.first
    end = region.first + region.blocks
    while block < end:
        wanted = min(_CHUNK_BLOCKS, end - block)
        data = image.read_at(block * BLOCK, wanted * BLOCK)
        whole = len(data) // BLOCK
        for number in range(whole):
            start = number * BLOCK
            content = observe(data[start : start + BLOCK], machine, region.disk, block + number)
            if content is not None:
                contents[place(region.disk, block + number)] = content
        block += whole
        if whole < wanted:
            break
    return block


def judge(
    history: History, contents: Mapping[int, Content], barrier: Barrier, sizes: Mapping[int, int] | None = None
) -> CheckReport:
    """As `check`, for contents that were already read; `sizes` as `scan` answers them, None: all were readable."""
    findings = Findings()
    demanded = barrier.chosen(history)
    if demanded is None and barrier.incarnation:
        raise LogUnusable(path="given", reason=f"it has no incarnation {barrier.incarnation}")
    target = _target(history, contents, demanded)
    line = history.line(target.number)
    if demanded is not None and demanded not in line:
        text = f"they go on from incarnation {target.number}, which does not descend from {demanded.number}"
        findings.add(Violation(ViolationKind.WRONG_LINE, f"the images are of another line: {text}"))
    for region in target.regions:
        _check_size(region, sizes, findings)
    here = {where: content for where, content in contents.items() if target.covers(where)}
    verdict = verify(target, here, barrier if demanded is target else None, findings)
    for child, parent in pairwise(line):
        began = {where: content for where, content in child.base.items() if parent.covers(where)}
        verify(parent, began, barrier if demanded is parent else None, findings)
    return CheckReport(
        checked=sum(region.blocks for region in target.regions),
        incarnation=target.number,
        contained=verdict.contained,
        missing=verdict.missing,
        in_flight=verdict.in_flight,
        data_loss_s=verdict.data_loss_s,
        newest=newest_contained(contents),
        counts=dict(findings.counts),
        violations=tuple(findings.listed),
    )


def newest_contained(contents: Mapping[int, Content]) -> Newest | None:
    """The newest write among the contents; None without any stamp."""
    stamps = [found for found in contents.values() if found.kind is ContentKind.STAMP]
    if not stamps:
        return None
    newest = max(stamps, key=lambda found: (found.incarnation, found.sequence))
    return Newest(newest.incarnation, newest.sequence, newest.wall_ns)


def _target(history: History, contents: Mapping[int, Content], demanded: Incarnation | None) -> Incarnation:
    """The incarnation to judge against: the youngest with a write in the images, or the one the barrier demands if
    that is younger still (then everything it wrote before the barrier is missing, and is reported so).
    """
    seen = {found.incarnation for found in contents.values() if found.kind is ContentKind.STAMP}
    known = seen & history.incarnations.keys()
    number = max(known) if known else min(history.incarnations)
    if demanded is not None:
        number = max(number, demanded.number)
    return history.incarnations[number]


def _check_size(region: Region, sizes: Mapping[int, int] | None, findings: Findings) -> None:
    end = region.first + region.blocks
    if sizes is not None and sizes.get(region.disk, 0) < end:
        text = f"the image ends before the blocks {region.first} to {end - 1} that the writer overwrote"
        findings.add(Violation(ViolationKind.SHORT, text, region.disk, sizes.get(region.disk, 0)))
