"""How much a reprotect will move, from a sample: both sides' agents hash the same granules, drawn at random.

The old disks are read by the agent that stands by beside their machine, which is off; the new ones by the agent of the
running machine, so what it writes meanwhile is in no estimate. Both hash under a key that is used once. Where there is
no way to sample, that is said with the reason, and no figure is guessed. Changes nothing. Called from the jobs'
threads and for the preflight of the API.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import msgspec
from pyroaring import BitMap

from backhaul.configuration_server.errors import AgentMute, ResourceUnknown, ServerRefused, ServerSilent
from backhaul.configuration_server.lifecycle.ports import Ports
from backhaul.configuration_server.lifecycle.values import Item, Place
from backhaul.recovery.errors import EstimateImpossible
from backhaul.recovery.estimates import DiskSample, Estimate, Range, estimate
from backhaul.recovery.item import Side
from backhaul.replication.control import Answer, DiskAnswer, DiskQuestion, Method, Question, QuestionKind
from backhaul.replication.maps import GranuleMap
from backhaul.sites.errors import SiteError

SAMPLES: Final = 1024
"""Granules of a whole item: 64 MiB are read in a second, and the share that differs is known to 3 % at worst."""

LEAST: Final = 32
"""Granules of a small disk beside a large one."""


class Outlook(msgspec.Struct, frozen=True):
    """Before a reprotect. `estimate` None: there is no way to sample, for the reason in `basis`."""

    basis: str
    total_bytes: int
    estimate: Estimate | None = None

    def shown(self) -> dict[str, Any]:
        """As the API shows it; figures are None where there are none."""
        found = self.estimate
        return {
            "bytes": round(found.data_bytes.expected) if found else None,
            "bytesLow": round(found.data_bytes.low) if found else None,
            "bytesHigh": round(found.data_bytes.high) if found else None,
            "wireBytes": round(found.wire_bytes.expected) if found else None,
            "seconds": found.seconds.expected if found else None,
            "secondsHigh": found.seconds.high if found else None,
            "totalBytes": self.total_bytes,
            "basis": self.basis,
        }


def before_reprotect(ports: Ports, item: Item) -> Outlook:
    """The estimate, or why there is none. Raises nothing of sites and agents: an estimate stands in nobody's way."""
    total = sum(disk.size for disk in item.disks)
    try:
        found, basis = _estimate(ports, item)
    except (EstimateImpossible, AgentMute, SiteError, ResourceUnknown) as error:
        return Outlook(f"no estimate: {error.message}", total)
    return Outlook(basis, total, found)


def journal_free(ports: Ports, item: Item, target: str) -> int | None:
    """Bytes that the undo journal of a replica that is not made yet may take there; None where that is not known."""
    try:
        free = int(ports.targets.ask(target, Method.STATUS, {})["space_free"])
    except (ServerSilent, ServerRefused):
        return None
    return min(free, item.policy.journal_bytes or free)


# --- sampling ---------------------------------------------------------------------------------------------------------


class _End(NamedTuple):
    """One side's agent and where it finds the disks."""

    ports: Ports
    item: Item
    place: Place
    paths: tuple[str, ...]

    def ask(self, kind: QuestionKind, key: bytes = b"", granules: Sequence[tuple[int, ...]] = ()) -> Answer:
        """Raises EstimateImpossible, AgentMute."""
        wanted = granules or ((),) * len(self.paths)
        disks = tuple(
            DiskQuestion(disk.index, path, granules=chosen)
            for disk, path, chosen in zip(self.item.disks, self.paths, wanted, strict=True)
        )
        question = Question("", self.item.id, kind, self.place.machine, disks, key=key)
        answer = self.ports.agents.question(self.place.agent, question)
        if answer.code:
            reason = f"the agent of machine {self.place.machine} said {answer.code} {answer.params.get('message', '')}"
            raise EstimateImpossible(reason=reason)
        return answer


def _end(ports: Ports, item: Item, place: Place) -> _End:
    """Raises EstimateImpossible, SiteError."""
    if not place.machine or not ports.agents.known(place.agent).answers:
        raise EstimateImpossible(reason=f"no agent answers that reads the disks of {place.name} at {place.site}")
    site = ports.sites.site(place.site)
    holders = {disk.id: disk.holder for disk in site.disks()}
    if any(holders.get(disk) != place.holder for disk in place.own_disks):
        raise EstimateImpossible(reason=f"the disks of {place.name} at {place.site} are not its machine's")
    # Handed to whom they belong to already: changes nothing, and says where they are.
    paths = [site.attach_disk(disk, place.holder, token=f"look/{place.holder}/{disk}").path for disk in place.own_disks]
    return _End(ports, item, place, tuple(paths))


def _estimate(ports: Ports, item: Item) -> tuple[Estimate, str]:
    new = _end(ports, item, item.active)
    # Without old disks, new ones are made: they are zeros.
    old = _end(ports, item, item.passive) if item.passive.disks else None
    with ThreadPoolExecutor(2, thread_name_prefix="sample") as beside:
        asking = [beside.submit(end.ask, QuestionKind.EXTENTS) for end in (new, old) if end]
        held = [answer.result().disks for answer in asking]
        populations = [_population([answers[at] for answers in held]) for at in range(len(item.disks))]
        drawn = _draw(f"{item.id}/{item.state.generation}", populations)
        key = ports.seals.one_time_key()
        reading = [beside.submit(end.ask, QuestionKind.SAMPLE, key, drawn) for end in (new, old) if end]
        answers = [answer.result() for answer in reading]
    samples = [
        _sampled(item.disks[at].name, len(populations[at]), drawn[at], [answer.disks[at] for answer in answers], key)
        for at in range(len(item.disks))
    ]
    hashing = [rate for answer in answers for rate in answer.rates]
    if not hashing:
        nothing = Range(0, 0, 0)
        return Estimate(nothing, nothing, nothing), "neither side holds any data"
    rates, way = _link(new)
    taken = sum(map(len, drawn))
    basis = f"{taken} of {sum(map(len, populations))} granules of 64 KiB compared on both sides; {way}"
    return estimate(samples, hashing, rates), basis


def _link(new: _End) -> tuple[tuple[float, ...], str]:
    """Rates of the way, and what was measured: the configuration server stands beside the master target at home."""
    if new.item.state.active_side is Side.HOME:
        return (1e12,), "the way to the cloud was not measured, the time is that of reading"
    return new.ask(QuestionKind.LINK).rates, "the link was measured from the machine's agent to home"


def _population(answers: list[DiskAnswer]) -> BitMap:
    """Granules that hold data at either side."""
    population = BitMap()
    for answer in answers:
        for first, count in answer.runs:
            population.add_range(first, first + count)
    return population


def _draw(seed: str, populations: list[BitMap]) -> list[tuple[int, ...]]:
    """A seeded sample of each disk, by its share; all of a small one."""
    draw = random.Random(seed)  # noqa: S311 - the same sample for the same item and generation
    total = max(1, sum(map(len, populations)))
    drawn = []
    for population in populations:
        wanted = min(len(population), max(LEAST, SAMPLES * len(population) // total))
        drawn.append(tuple(population[place] for place in sorted(draw.sample(range(len(population)), wanted))))
    return drawn


def _sampled(name: str, count: int, drawn: tuple[int, ...], answers: list[DiskAnswer], key: bytes) -> DiskSample:
    """Granules that one side did not give count as differing."""
    new = dict(zip(drawn, answers[0].digests, strict=False))
    if len(answers) > 1:
        old = dict(zip(drawn, answers[1].digests, strict=False))
    else:
        zeros = GranuleMap.all_zero(answers[0].size, key)
        old = {index: zeros.zero_hash(index) for index in drawn}
    differing = sum(not new.get(index) or new.get(index) != old.get(index) for index in drawn)
    ratio = answers[0].wire_ratio or 1.0
    return DiskSample(disk=name, granules=count, sampled=len(drawn), differing=differing, wire_ratio=ratio)
