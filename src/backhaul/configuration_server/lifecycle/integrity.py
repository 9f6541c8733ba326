"""The integrity report of a planned move: both ends' disks, range by range.

Before the start both ends' maps are compared, with what is stale in them read back; after it both are read whole: the
replica under the layer is as it was promoted, so a bit that was flipped on either side is found. Signed by the
configuration server, kept with the item until its next move, and with the job for good; commit waits for it, and makes
it itself where the move could not: until then both sides are kept as they were. Called from the jobs' threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import msgspec

from backhaul.configuration_server.errors import AgentMute
from backhaul.configuration_server.lifecycle.errors import DigestsRefused, IntegrityReportForged
from backhaul.configuration_server.lifecycle.ports import Ports
from backhaul.configuration_server.lifecycle.steps import advance, detail, host
from backhaul.configuration_server.lifecycle.targets import Digests, Replica
from backhaul.configuration_server.lifecycle.values import Ids, Item
from backhaul.links.certificates import Trust, verify
from backhaul.recovery.item import Integrity, Report
from backhaul.replication.control import Answer, DiskQuestion, Question, QuestionKind
from backhaul.replication.errors import UNDECODABLE, BackhaulError
from backhaul.replication.sealing import Signer
from backhaul.replication.units import RANGE
from backhaul.replication.values import Role
from backhaul.sites.values import PowerState

SPAN: Final = 4096
"""Ranges that are looked at together, 64 GiB: of holes one question to the agent and one request to the target, of data
more, as each answers for what it can read in a bounded time. Both read at the same time.
"""

MAX_LISTED: Final = 100
"""Ranges that are named in the report; all are counted."""

REPORT_CONTEXT: Final = b"backhaul/1 integrity report\0"


class Difference(msgspec.Struct, frozen=True):
    """A range of 16 MiB in which the sides differ."""

    disk: int
    range: int


class ComparedDisk(msgspec.Struct, frozen=True):
    """A disk of which every byte was read on both sides."""

    index: int
    name: str
    bytes: int
    ranges: int


class IntegrityReport(msgspec.Struct, frozen=True):
    """What was compared, and what differs.

    source, replica   machines: the one that was stopped, and the one that was started from the replica
    compared_*        read whole on both sides; `digests`: of ranges, both sides together, the target's map included
    differing         ranges in which the disks differ; the first of them in `differences`
    map_differing     ranges in which the target's map differs from the stopped disks
    """

    item: str
    generation: int
    source: str
    replica: str
    compared_ranges: int
    compared_bytes: int
    differing: int
    differences: tuple[Difference, ...]
    map_differing: int
    at_ns: int
    name: str = ""
    digests: int = 0
    disks: tuple[ComparedDisk, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing differs."""
        return not self.differing and not self.map_differing


def sign_report(signer: Signer, body: bytes) -> bytes:
    """MessagePack of certificate, body and signature, as descriptors have them."""
    return msgspec.msgpack.encode([signer.certificate, body, signer.sign(REPORT_CONTEXT, body)])


def read_report(trust: Trust, signed: bytes) -> IntegrityReport:
    """The report, if a configuration server of this trust signed it. Its certificate counts as of then: it is over
    long before the report is of no interest any more. Raises IntegrityReportForged.
    """
    try:
        certificate, body, signature = msgspec.msgpack.decode(signed, type=tuple[bytes, bytes, bytes])
        report = msgspec.msgpack.decode(body, type=IntegrityReport)
        verify(
            certificate, REPORT_CONTEXT, body, signature,
            trust=trust, now_ns=report.at_ns, expect_role=Role.CONFIGURATION_SERVER,
        )  # fmt: skip
    except (*UNDECODABLE, BackhaulError) as error:
        raise IntegrityReportForged(reason=str(error)) from error
    return report


def compare_before_start(ports: Ports, ids: Ids) -> str:
    """The maps of both ends, with what is stale in them read back: reads next to nothing, as the machine is down."""
    item = ports.items.load(ids.item)
    if item.state.integrity is not Integrity.PENDING:
        return detail(skipped=True)
    try:
        mapped, _ = _compare(ports, item, _source_of(ports, ids, "compare", item), reread=False)
    except (AgentMute, DigestsRefused) as error:
        return detail(skipped=True, code=error.code, reason=error.message)
    return detail(differing=len(mapped))


def prove(ports: Ports, ids: Ids) -> str:
    """Both sides are read whole, compared, and the result is signed and recorded: passed or failed. Where the source's
    agent cannot be asked there is no report, and commit waits until the operator accepts that by name.
    """
    item = ports.items.load(ids.item)
    if item.state.integrity is not Integrity.PENDING:
        # Repeated after a kill: what was stored is what this job proved.
        return _kept(item) if ids.token("proved") in item.done else detail(skipped=True)
    try:
        mapped, found = _compare(ports, item, _source_of(ports, ids, "prove", item), reread=True)
    except (AgentMute, DigestsRefused) as error:
        return detail(skipped=True, code=error.code, reason=f"{error.message} {error.advice}")
    ranges = sum(_ranges(disk.size) for disk in item.disks)
    report = IntegrityReport(
        item=item.id,
        generation=item.state.generation,
        source=item.passive.machine,
        replica=item.active.machine,
        compared_ranges=ranges,
        compared_bytes=sum(disk.size for disk in item.disks),
        differing=len(found),
        differences=tuple(found[:MAX_LISTED]),
        map_differing=len(mapped),
        at_ns=ports.clock.wall_ns(),
        name=item.name,
        digests=3 * ranges,
        disks=tuple(ComparedDisk(disk.index, disk.name, disk.size, _ranges(disk.size)) for disk in item.disks),
    )
    signed = ports.seals.report(msgspec.msgpack.encode(report))
    event = Report.INTEGRITY_PASSED if report.passed else Report.INTEGRITY_FAILED
    item = advance(ports, ids, "proved", event, lambda item: msgspec.structs.replace(item, report=signed))
    return _kept(item, differing=report.differing, map_differing=report.map_differing, bytes=report.compared_bytes)


def _kept(item: Item, **more: Any) -> str:
    """For the job's record: the report itself, as the item's is replaced by that of its next move."""
    return detail(integrity=item.state.integrity, **more, signed=item.report.hex())


class _Span(NamedTuple):
    disk: int
    first: int
    ranges: int


class _Source(NamedTuple):
    """Who reads the disks of the machine that was stopped, where it finds each of them now, and whether its site says
    that the machine is off.
    """

    agent: str
    machine: str
    paths: dict[int, str]
    off: bool


def _source_of(ports: Ports, ids: Ids, step: str, item: Item) -> _Source:
    """Raises AgentMute."""
    place = item.passive
    read = {disk.identity.index: disk.path for disk in ports.agents.reads(place.agent, item.id)}
    if not read:
        raise AgentMute(agent=place.agent, machine=place.machine, reason="another agent replicates the item now")
    if not place.site or item.read_from_inside:
        return _Source(place.agent, place.machine, read, off=False)
    at = host(ports, ids, step, place)
    paths = {disk.index: path for disk, path in zip(item.disks, at.paths(), strict=True)}
    return _Source(place.agent, place.machine, paths, at.power() is PowerState.OFF)


def _compare(ports: Ports, item: Item, source: _Source, *, reread: bool) -> tuple[list[Difference], list[Difference]]:
    """Ranges in which the replica differs from the source that was stopped, which is the passive side by now: by the
    replica's map, and by what its disks hold (`reread`: both ends read their disks whole; otherwise none).

    Raises AgentMute, DigestsRefused.
    """
    replica = Replica(ports, item, item.active)
    mapped: list[Difference] = []
    found: list[Difference] = []
    with ThreadPoolExecutor(1, thread_name_prefix="digests") as beside:
        for span in _spans(item):
            known = _of_replica(replica, span, reread=False)
            asking = beside.submit(_of_source, ports, item, source, span, known.lineage, reread=reread)
            read = _of_replica(replica, span, reread=True) if reread else None
            ours = asking.result()
            mapped += _differing(span, ours, known.digests)
            if read is not None:
                found += _differing(span, ours, read.digests)
    return mapped, found


def _of_replica(replica: Replica, span: _Span, *, reread: bool) -> Digests:
    digests: list[bytes] = []
    lineage = b""
    while rest := span.ranges - len(digests):
        answer = replica.digests(span.disk, span.first + len(digests), rest, reread=reread)
        if not answer.digests:
            break
        digests += answer.digests
        lineage = answer.lineage
    return Digests(tuple(digests), lineage)


def _of_source(
    ports: Ports, item: Item, source: _Source, span: _Span, lineage: bytes, *, reread: bool
) -> tuple[bytes, ...]:
    digests: list[bytes] = []
    while rest := span.ranges - len(digests):
        asked = DiskQuestion(span.disk, source.paths[span.disk], span.first + len(digests), rest)
        question = Question(
            "", item.id, QuestionKind.DIGESTS, source.machine, (asked,), lineage, reread, machine_off=source.off
        )
        answer: Answer = ports.agents.question(source.agent, question)
        if answer.code:
            raise DigestsRefused(
                machine=source.machine, reason_code=answer.code, reason=answer.params.get("message", "")
            )
        given = answer.disks[0].digests if answer.disks else ()
        if not given:
            break
        digests += given
    return tuple(digests)


def _differing(span: _Span, ours: tuple[bytes, ...], theirs: tuple[bytes, ...]) -> list[Difference]:
    """A digest that one side did not give counts as differing."""
    pairs = [(ours[at : at + 1], theirs[at : at + 1]) for at in range(span.ranges)]
    return [
        Difference(span.disk, span.first + at)
        for at, (mine, other) in enumerate(pairs)
        if not mine or not mine[0] or mine != other
    ]


def _spans(item: Item) -> Iterator[_Span]:
    for disk in item.disks:
        for first in range(0, _ranges(disk.size), SPAN):
            yield _Span(disk.index, first, min(SPAN, _ranges(disk.size) - first))


def _ranges(size: int) -> int:
    return -(-size // RANGE)
