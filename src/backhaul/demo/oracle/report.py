"""What the oracle found: violations, counts, and what a failover to the images would lose.

Plain values; made by the checkers, read by tests, the command line and the demo.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

NANOSECONDS: Final = 1_000_000_000

LISTED: Final = 50
"""Violations of one kind that are listed one by one; all are counted. More would hide the others."""


class ViolationKind(enum.StrEnum):
    """What is wrong. The first three are one finding, a write without one that came before it; which of the two is
    blamed is what needs the fewest changes to make a prefix of the images.
    """

    LOST = "lost"
    """An acknowledged write is missing though later ones are there: a hole."""
    REORDERED = "reordered"
    """A write is there and one acknowledged before it was issued is not, and either may be the wrong one."""
    TOO_LATE = "too-late"
    """A write is there that was issued behind the point where all others end, without what was before it."""
    TORN = "torn"
    """A block with sectors of different writes, or with a damaged one."""
    MISPLACED = "misplaced"
    """A whole stamp of another block, disk or machine."""
    UNKNOWN = "unknown"
    """A stamp, or a transaction, that the log does not know."""
    FOREIGN = "foreign"
    """Content that belongs to no write of this line and was not there when it began, as from an abandoned side."""
    BEHIND = "behind"
    """A write acknowledged before the barrier is missing: the images are too old for what they claim to be."""
    WRONG_LINE = "wrong-line"
    """The images go on from another state than the barrier belongs to."""
    SHORT = "short"
    """An image is smaller than what the writer overwrote."""
    UNSOUND = "unsound"
    """The application's own check of its data failed."""


@dataclass(frozen=True)
class Violation:
    """One finding. `disk` and `block` (4 KiB each) are -1 where it has no place."""

    kind: ViolationKind
    text: str
    disk: int = -1
    block: int = -1
    incarnation: int = 0
    sequence: int = 0

    def __str__(self) -> str:
        where = f"disk {self.disk} block {self.block}: " if self.disk >= 0 else ""
        return f"{self.kind}: {where}{self.text}"


class Findings:
    """Collects violations: all are counted, LISTED of each kind are kept."""

    def __init__(self) -> None:
        self.counts: Counter[ViolationKind] = Counter()
        self.listed: list[Violation] = []

    def add(self, violation: Violation) -> None:
        """One more."""
        self.counts[violation.kind] += 1
        if self.counts[violation.kind] <= LISTED:
            self.listed.append(violation)


@dataclass(frozen=True)
class Newest:
    """The newest write that is in the images, by its stamp. `wall_ns` is when it was issued."""

    incarnation: int
    sequence: int
    wall_ns: int

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.sequence}"


@dataclass(frozen=True)
class CheckReport:
    """The oracle's judgement.

    checked             blocks (or rows) looked at
    incarnation         life of the writer that the images were judged against
    contained           its writes that are in the images, overwritten ones included
    missing             its acknowledged writes that are not in the images: after the point, or violations
    in_flight           its writes that were never acknowledged and are not in the images
    data_loss_s         seconds of acknowledged work that are not in the images: from the first missing
                        acknowledgement to the last one of the log
    newest              None: no stamped write at all
    """

    checked: int
    incarnation: int
    contained: int
    missing: int
    in_flight: int
    data_loss_s: float
    newest: Newest | None
    counts: dict[ViolationKind, int] = field(default_factory=dict)
    violations: tuple[Violation, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the prefix property holds and nothing before the barrier is missing."""
        return not self.counts

    def text(self) -> str:
        """The report for a person, lines separated by newlines."""
        lines = [
            f"checked     {self.checked:,} blocks against incarnation {self.incarnation}",
            f"contained   {self.contained:,} writes, newest {self.newest or 'none'}",
            f"after it    {self.missing:,} acknowledged writes ({self.data_loss_s:.3f} s), {self.in_flight} in flight",
        ]
        if self.ok:
            return "\n".join([*lines, "result      OK: a prefix of the acknowledged writes"])
        counted = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.counts.items()))
        lines.append(f"result      VIOLATED: {counted}")
        lines += [f"  {violation}" for violation in self.violations]
        left_out = sum(self.counts.values()) - len(self.violations)
        return "\n".join([*lines, f"  and {left_out:,} more"] if left_out else lines)


def true_rpo_s(newest: CheckReport | Newest | None, now_ns: int) -> float:
    """The RPO as the data prove it: seconds from the newest write in the images to `now_ns` (the writers' wall clock).

    Means something while the writers write all the time. Infinite if no write is there at all.
    """
    found = newest.newest if isinstance(newest, CheckReport) else newest
    return (now_ns - found.wall_ns) / NANOSECONDS if found is not None else float("inf")
