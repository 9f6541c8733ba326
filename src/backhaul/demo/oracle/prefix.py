"""The proof itself: is what the blocks hold a prefix of one incarnation's writes?

A writer never has two writes of one block in flight, so a block that holds write s proves exactly which writes of
that block are in the set P: those up to s. P is downward closed under *before* if no acknowledged write outside of
P was acknowledged before a write inside of P was issued. Issue order is sequence order, so that is one comparison
per missing write with the last ISSUE inside of P: linear in the number of writes.

Pure: logs and contents in, findings out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from backhaul.demo.oracle.barrier import Barrier
from backhaul.demo.oracle.history import Incarnation
from backhaul.demo.oracle.report import NANOSECONDS, Findings, Violation, ViolationKind
from backhaul.demo.oracle.stamps import Content, ContentKind, disk_and_block


@dataclass(frozen=True)
class Verdict:
    """What one incarnation's log says of the contents; counts of its own writes. `data_loss_s` in seconds."""

    contained: int
    missing: int
    in_flight: int
    data_loss_s: float


@dataclass
class _Split:
    """The writes of an incarnation, by index: `newest` the last one in P (-1: none), `missing` acknowledged and
    not in P. Writes of blocks that are broken anyway are in neither.
    """

    contained: int = 0
    newest: int = -1
    in_flight: int = 0
    missing: list[int] = field(default_factory=list)


def verify(
    incarnation: Incarnation, contents: Mapping[int, Content], barrier: Barrier | None, findings: Findings
) -> Verdict:
    """Judge `contents` (what the incarnation's regions hold, zeros left out) against its log.

    `barrier` None demands nothing. Violations go into `findings`.
    """
    held, broken = _held(incarnation, contents, findings)
    inside = bytearray(len(incarnation.places))
    split = _split(incarnation, held, broken, inside)
    missing = split.missing
    blamed = _order(incarnation, split, inside, findings) if split.newest >= 0 else set()
    if barrier is not None:
        for index in missing:
            if index not in blamed and barrier.demands(incarnation, index):
                findings.add(_violation(ViolationKind.BEHIND, incarnation, index, "acknowledged before the barrier"))
    loss_ns = max(incarnation.acked_ns) - min(incarnation.acked_ns[index] for index in missing) if missing else 0
    return Verdict(split.contained, len(missing), split.in_flight, loss_ns / NANOSECONDS)


def _held(
    incarnation: Incarnation, contents: Mapping[int, Content], findings: Findings
) -> tuple[dict[int, int], set[int]]:
    """The index of the write that each place holds, for writes of this incarnation; and the places that are broken
    in themselves, which are reported here and left out of what follows.
    """
    held: dict[int, int] = {}
    broken: set[int] = set()
    for where, content in contents.items():
        if content.kind is ContentKind.STAMP and content.incarnation == incarnation.number:
            index = content.sequence - incarnation.first_sequence
            if 0 <= index < len(incarnation.places) and incarnation.places[index] == where:
                held[where] = index
                continue
        elif content.same_as(incarnation.base.get(where)):
            continue
        broken.add(where)
        findings.add(_broken(incarnation, where, content))
    for where in incarnation.base.keys() - contents.keys():
        broken.add(where)
        findings.add(_broken(incarnation, where, None))
    return held, broken


def _broken(incarnation: Incarnation, where: int, content: Content | None) -> Violation:
    """The violation of a place that holds neither a write of this incarnation nor what was there at its start."""
    disk, block = disk_and_block(where)
    before = incarnation.base.get(where)
    sequence = 0
    if content is None:
        kind, text = ViolationKind.LOST, f"zeros in place of {_name(before)}, which was there at the start"
    elif content.kind is ContentKind.TORN:
        kind, text = ViolationKind.TORN, content.detail
    elif content.kind is ContentKind.MISPLACED:
        kind, text = ViolationKind.MISPLACED, content.detail
    elif content.kind is ContentKind.OTHER:
        kind, text = ViolationKind.FOREIGN, f"holds what no writer wrote, in place of {_name(before)}"
    else:
        sequence = content.sequence
        known = before is not None and before.kind is ContentKind.STAMP
        if content.incarnation == incarnation.number:
            kind, text = ViolationKind.UNKNOWN, f"holds {_name(content)}, which the log does not have there"
        elif before is not None and known and _age(content) < _age(before):
            kind, text = ViolationKind.LOST, f"holds {_name(content)}, older than {_name(before)} of the start"
        else:
            kind, text = ViolationKind.FOREIGN, f"holds {_name(content)}, which is not of this line"
    return Violation(kind, text, disk, block, incarnation.number, sequence)


def _age(content: Content) -> tuple[int, int]:
    return content.incarnation, content.sequence


def _name(content: Content | None) -> str:
    if content is None:
        return "zeros"
    if content.kind is ContentKind.STAMP:
        return f"write {content.incarnation}.{content.sequence}"
    return "the initial content"


def _split(incarnation: Incarnation, held: Mapping[int, int], broken: set[int], inside: bytearray) -> _Split:
    """Sort all writes into P (marked in `inside`), missing and in flight."""
    split = _Split()
    acked_at = incarnation.acked_at
    for index, where in enumerate(incarnation.places):
        if held.get(where, -1) >= index:
            inside[index] = 1
            split.contained += 1
        elif where in broken:
            continue
        elif acked_at[index] >= 0:
            split.missing.append(index)
        else:
            split.in_flight += 1
    split.newest = inside.rfind(1)
    return split


def _order(incarnation: Incarnation, split: _Split, inside: bytearray, findings: Findings) -> set[int]:
    """Report what breaks the order; answers the missing writes that were blamed."""
    last_issue = incarnation.issued_at[split.newest]
    holes = [index for index in split.missing if incarnation.acked_at[index] < last_issue]
    if not holes:
        return set()
    lowest, highest = _cheapest_cuts(incarnation, holes, inside)
    blamed: set[int] = set()
    newest = incarnation.first_sequence + split.newest
    for index in holes:
        acked = incarnation.acked_at[index]
        if acked < lowest:
            kind, why = ViolationKind.LOST, f"later ones up to {incarnation.number}.{newest} are there"
        elif acked < highest:
            kind, why = ViolationKind.REORDERED, "one issued after it is there"
        else:
            continue
        blamed.add(index)
        findings.add(_violation(kind, incarnation, index, why))
    for index in range(len(inside)):
        if inside[index] and incarnation.issued_at[index] >= highest:
            why = "issued behind the point where the others end"
            findings.add(_violation(ViolationKind.TOO_LATE, incarnation, index, why))
    return blamed


def _cheapest_cuts(incarnation: Incarnation, holes: list[int], inside: bytearray) -> tuple[int, int]:
    """First and last position in the log such that the fewest writes are on the wrong side: missing ones with their
    ACK before it, present ones with their ISSUE behind it. Only positions from the first hole on can be cheapest.
    """
    gaps = sorted(incarnation.acked_at[index] for index in holes)
    begin = gaps[0]
    late = [incarnation.issued_at[index] for index in range(len(inside)) if inside[index]]
    late = [position for position in late if position > begin]
    events = sorted([(position, 1) for position in gaps] + [(position, -1) for position in late])
    cost = best = len(late)
    start = lowest = highest = begin
    for event, change in [*events, (-1, 0)]:  # all cuts from `start` up to `event` cost the same
        end = max(start, event)
        if cost < best:
            best, lowest = cost, start
        if cost == best:
            highest = end
        cost += change
        start = end + 1
    return lowest, highest


def _violation(kind: ViolationKind, incarnation: Incarnation, index: int, why: str) -> Violation:
    disk, block = disk_and_block(incarnation.places[index])
    sequence = incarnation.first_sequence + index
    presence = "is there" if kind is ViolationKind.TOO_LATE else "is missing"
    text = f"write {incarnation.number}.{sequence} {presence}: {why}"
    return Violation(kind, text, disk, block, incarnation.number, sequence)
