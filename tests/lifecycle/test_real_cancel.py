"""Cancel at every boundary between the steps of every move, on real sites: the side before has its disks byte for byte.

The machine writes at each start and is still then, so that one hash of the whole disks says all: of the side that the
item returns to, and of the replica, which is what it was before the move.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from backhaul.configuration_server.lifecycle import workflows as w
from backhaul.configuration_server.lifecycle.values import Wish
from backhaul.recovery.item import Side, State
from lifecycle.real_world import running
from lifecycle.resting import RestingWorld

END: Final = "the end"
"""Where a job that ran to its end is cancelled."""


class Stopped(Exception):
    """The job came to the boundary."""


async def until_boundary(world: RestingWorld, kind: str, boundary: str, wish: Wish) -> None:
    """The job's steps before the boundary, and what its machine writes when it was started."""
    before = world.bursts

    def between(step: str) -> None:
        if step == boundary:
            raise Stopped

    started = False
    try:
        await world.job(kind, wish, between)
    except Stopped:
        names = boundaries(kind)
        started = names.index(boundary) > names.index("start") if "start" in names else False
    else:
        started = boundary == END and "start" in boundaries(kind)
    if started:
        await world.burst(before + 1)


def boundaries(kind: str) -> list[str]:
    """The names of the steps before which a job can stand still, once it has changed the item's state."""
    names = [step.name for step in w.WORKFLOWS[kind]]
    return [*names[names.index("begin") + 1 :], END]


def chosen(kind: str, seed: int, deep: bool) -> list[str]:
    """All boundaries, or one."""
    return boundaries(kind) if deep else [random.Random(f"{seed} {kind}").choice(boundaries(kind))]


@pytest.fixture
async def world(tmp_path: Path, seed: int) -> AsyncIterator[RestingWorld]:
    async with running(RestingWorld(tmp_path, seed)) as made:
        await made.burst(1)
        await made.job(w.PROTECT)
        await made.points(2)
        yield made


async def canceled(world: RestingWorld, side: Side, kind: str, boundary: str, wish: Wish, first: str = "") -> None:
    """The move `kind`, behind the whole move `first` if there is one, is cancelled at the boundary: this side, and its
    replica, are as they were, and replicate again.
    """
    state = world.now()
    await asyncio.to_thread(world.write, side)
    await world.points(2)
    before = world.digest(side)
    assert world.digest(side.other, base=True) == before, "the replica holds all of it"
    if first:
        another = (await world.recovery_points())[1].number
        await until_boundary(world, first, END, wish)
        assert world.digest(side.other, base=True) != before, "it went to an older point"
        wish = Wish(point=another)
    await until_boundary(world, kind, boundary, wish)
    where = f"{kind} cancelled before {boundary}"
    assert world.now() is not state, where
    if world.stored.at(side.other).layers and world.on() == [side.other.value]:
        assert world.digest(side.other) != before, "what is thrown away was written"
    seen: list[list[str]] = []

    def look(step: str) -> None:
        if step == "resume":
            seen.extend((world.digest(side), world.digest(side.other, base=True)))

    await world.job(w.CANCEL, between=look)
    assert seen == [before, before], where
    assert world.now() is state
    assert world.on() == [side.value]
    layers = [disk.id for site in ("home", "cloud") for disk in world.site(site).disks() if disk.base]
    assert layers == []
    await world.points(2)
    assert world.digest(side.other, base=True) == world.digest(side), "it replicates again"


async def oldest(world: RestingWorld) -> Wish:
    """To the oldest point that there is."""
    return Wish(point=(await world.recovery_points())[0].number)


@pytest.mark.timeout(1800)
async def test_a_failover_is_cancelled_at_every_boundary(world: RestingWorld, seed: int, deep: bool) -> None:
    for boundary in chosen(w.PLANNED, seed, deep):
        await canceled(world, Side.HOME, w.PLANNED, boundary, Wish())
    for boundary in chosen(w.UNPLANNED, seed, deep):
        await canceled(world, Side.HOME, w.UNPLANNED, boundary, await oldest(world))
    for boundary in chosen(w.CHANGE_POINT, seed, deep):
        await canceled(world, Side.HOME, w.CHANGE_POINT, boundary, await oldest(world), first=w.UNPLANNED)


async def go_over(world: RestingWorld) -> None:
    """The machine is in the cloud for good, and has written there."""
    bursts = world.bursts
    await world.job(w.PLANNED)
    await world.job(w.COMMIT)
    await world.burst(bursts + 1)


@pytest.mark.timeout(1800)
async def test_a_reprotect_is_cancelled_at_every_boundary(world: RestingWorld, seed: int, deep: bool) -> None:
    """And behind it, when points have been made of the old disks."""
    await go_over(world)
    home = world.digest(Side.HOME)
    for boundary in [*chosen(w.REPROTECT, seed, deep), END]:
        cloud = world.digest(Side.CLOUD)
        assert cloud != home
        await until_boundary(world, w.REPROTECT, boundary, Wish())
        if boundary == END:
            await world.points(2)
            assert world.digest(Side.HOME) == cloud, "the old disks are a replica of the cloud's"
        await world.job(w.CANCEL)
        where = f"cancelled before {boundary}"
        assert world.digest(Side.HOME) == home, where
        assert world.digest(Side.CLOUD) == cloud, where
        assert world.now() is State.FAILED_OVER_COMMITTED
        assert world.on() == ["cloud"]
        holders = {disk.holder for disk in world.site("home").disks()}
        assert holders == {world.stored.home.holder}, "the old machine has its disks again"


@pytest.mark.timeout(1800)
async def test_a_failback_is_cancelled_at_every_boundary(world: RestingWorld, seed: int, deep: bool) -> None:
    await go_over(world)
    await world.job(w.REPROTECT)
    await world.points(2)
    for boundary in chosen(w.PLANNED, seed + 1, deep):
        await canceled(world, Side.CLOUD, w.PLANNED, boundary, Wish())
    for boundary in chosen(w.UNPLANNED, seed + 1, deep):
        await canceled(world, Side.CLOUD, w.UNPLANNED, boundary, await oldest(world))
