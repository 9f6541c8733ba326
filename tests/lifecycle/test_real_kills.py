"""A configuration server that is killed before or after any effect of any job, on real sites: exactly one of each.

Its process ends itself with SIGKILL at the effect: a site's call, a request to a master target, a change of its
records, an agent that is told something. A new process goes on from what DBOS kept. The sites' own logs say what was
done there.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import msgspec
import pytest

from backhaul.configuration_server.lifecycle import ending
from backhaul.configuration_server.lifecycle import workflows as w
from backhaul.configuration_server.lifecycle.values import Wish
from backhaul.recovery.item import Integrity, Report, State
from backhaul.recovery.states import step
from backhaul.replication.control import Method
from lifecycle.doomed_jobs import EVERYWHERE
from lifecycle.real_effects import EFFECTS, noted, places
from lifecycle.real_jobs import DoomedJobs, operations
from lifecycle.real_world import running
from lifecycle.resting import RestingWorld

KINDS: Final[dict[str, str]] = {
    "protect": w.PROTECT,
    "resync": w.RESYNC,
    "failover": w.PLANNED,
    "cancel failover": w.CANCEL,
    "unplanned": w.UNPLANNED,
    "change of point": w.CHANGE_POINT,
    "cancel after change": w.CANCEL,
    "commit": w.COMMIT,
    "reprotect": w.REPROTECT,
    "cancel reprotect": w.CANCEL,
    "failback": w.PLANNED,
    "commit failback": w.COMMIT,
    "protect again": w.REPROTECT,
    "unprotect": ending.DISABLE,
}

ROUND: Final = (
    *("protect", "resync", "failover", "cancel failover", "unplanned", "change of point", "cancel after change"),
    *("failover", "commit", "reprotect", "cancel reprotect", "reprotect", "failback", "commit failback"),
    *("protect again", "unprotect"),
)
"""Every job where it is possible, and those between them."""

SAMPLED: Final = 4
"""Jobs that are killed in a run that is not deep, each at one place."""

REPLICATING: Final = frozenset(
    {"protect", "resync", "cancel failover", "cancel after change", "reprotect", "protect again"}
)


@pytest.fixture
async def world(tmp_path: Path, seed: int) -> AsyncIterator[RestingWorld]:
    async with running(RestingWorld(tmp_path, seed)) as made:
        await made.burst(1)
        yield made


def dooms(seed: int, deep: bool) -> dict[str, str]:
    """Which jobs run in processes of their own, and where those are killed."""
    if deep:
        return dict.fromkeys(KINDS, EVERYWHERE)
    chance = random.Random(seed)
    chosen = chance.sample(sorted(KINDS), SAMPLED)
    return {job: f"{chance.choice(('before', 'after'))} {chance.choice(places(job))}" for job in chosen}


@pytest.mark.timeout(7200)
async def test_a_kill_anywhere_leaves_one_effect_of_each(world: RestingWorld, seed: int, deep: bool) -> None:
    jobs, left = DoomedJobs(world), dooms(seed, deep)
    point: int | None = None
    try:
        for job in ROUND:
            if job == "unplanned":
                offered = await world.recovery_points()
                point = offered[0].number
            wish = Wish(point=point) if job in ("unplanned", "change of point") else Wish()
            doomed = left.pop(job, "")
            if doomed:
                await killed(jobs, job, wish, doomed)
            else:
                await world.job(KINDS[job], wish)
            if job == "unplanned":
                point = offered[-1].number
            await settled(world, job)
    finally:
        jobs.close()
    assert left == {}
    assert world.forgotten
    assert world.on() == ["home"]
    assert world.site("cloud").disks() == ()


async def killed(jobs: DoomedJobs, job: str, wish: Wish, doomed: str) -> None:
    """The job, killed there and gone on with, did what it does: each effect once, by the sites' own logs."""
    lived = await jobs.run(KINDS[job], wish, doomed)
    everywhere = {f"{when} {effect}" for effect in places(job) for when in ("before", "after")}
    if doomed == EVERYWHERE:
        assert everywhere <= set(lived.kills), job
    else:
        assert lived.kills == [doomed], job
    # Behind a kill some calls are made once more, or besides, that find everything as they want it.
    first = [effect for effect in lived.effects if effect in places(job)]
    assert first == places(job), f"{job}: the table of effects does not say what it does"
    assert operations(lived.sites) == noted(job), f"{job}, killed {doomed}"


async def settled(world: RestingWorld, job: str) -> None:
    """Nothing of the job is left over; where it replicates, it has made points before the next one begins."""
    if job in ("failover", "failback"):
        assert world.stored.state.integrity is Integrity.PASSED
    if job in REPLICATING:
        await world.points(2)
    if world.now() is State.VERIFYING:
        world.stored = msgspec.structs.replace(world.stored, state=step(world.stored.state, Report.COMPARED))
    for target in ("mt-home", "mt-cloud"):
        for held in await world.request(target, Method.ITEM_LIST, {}):
            marks = [pin for pin in held["pins"] if pin.startswith("job-")]
            assert marks == [], f"a mark of {job} is left"
            assert held["descriptor"]["generation"] == world.stored.state.generation, job


def test_every_kind_of_job_that_has_effects_is_in_the_matrix() -> None:
    assert EFFECTS.keys() == KINDS.keys() == set(ROUND)
    others = {w.REBIND, ending.MIGRATED, ending.PURGE}
    # Those have the steps of a resync, and no effects but on records.
    assert set(KINDS.values()) | others == set(w.WORKFLOWS)
