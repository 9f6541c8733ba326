"""The whole way round on real local sites and a real data plane, judged by the oracle at each station."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backhaul.configuration_server.lifecycle import workflows as w
from backhaul.configuration_server.lifecycle.values import Wish
from backhaul.demo.oracle import Barrier
from backhaul.recovery.errors import ChecksFailed
from backhaul.recovery.item import Integrity, Side, State
from backhaul.replication.units import GRANULE
from backhaul.sites.values import PowerState
from lifecycle.real_world import SIZE, RealWorld, real_world


@pytest.fixture
async def world(tmp_path: Path, seed: int) -> AsyncIterator[RealWorld]:
    async with real_world(tmp_path, seed) as running:
        yield running


def running(world: RealWorld) -> list[str]:
    """Sites with a machine that runs."""
    return [
        name
        for name in ("home", "cloud")
        for machine in world.site(name).machines()
        if machine.power is PowerState.RUNNING
    ]


async def test_the_whole_way_round(world: RealWorld) -> None:
    """Protect, fail over, commit, reprotect and cancel it, reprotect, fail back, commit, protect again, fail over."""
    await world.job(w.PROTECT)
    await world.points(5)
    assert world.now() is State.PROTECTED

    await world.job(w.PLANNED)
    await moved(world, Side.CLOUD, 1)
    await world.job(w.COMMIT)
    assert running(world) == ["cloud"]

    home = contents(world, Side.HOME)
    await world.job(w.REPROTECT)
    await world.points(3)
    assert contents(world, Side.HOME) != home
    await world.job(w.CANCEL)
    assert world.now() is State.FAILED_OVER_COMMITTED
    assert contents(world, Side.HOME) == home, "byte for byte"
    assert running(world) == ["cloud"]

    await world.job(w.REPROTECT)
    await world.points(4)
    assert 0 < world.differing_bytes() <= 2 * SIZE
    await world.job(w.PLANNED)
    await moved(world, Side.HOME, 2)
    await world.job(w.COMMIT)
    assert running(world) == ["home"]
    assert world.site("cloud").machines() == ()

    await world.job(w.REPROTECT)
    await world.points(4)
    assert world.now() is State.PROTECTED
    await world.job(w.PLANNED, between=lambda step: flip_a_bit(world) if step == "layers" else None)
    assert running(world) == ["cloud"]
    assert world.stored.state.integrity is Integrity.FAILED
    with pytest.raises(ChecksFailed):
        await world.job(w.COMMIT)


async def moved(world: RealWorld, side: Side, incarnation: int) -> None:
    """The machine runs on this side only; everything that was acknowledged on the other one is there; so says the
    integrity report, too.
    """
    assert running(world) == [side.value]
    assert world.stored.state.integrity is Integrity.PASSED
    report = await world.judge(world.images(side, base=True), Barrier.final(incarnation))
    assert (report.incarnation, report.missing) == (incarnation, 0)
    assert report.contained > 0, "the oracle had something to judge"
    assert contents(world, side.other) == [image.read_bytes() for image in world.images(side, base=True)]


def contents(world: RealWorld, side: Side) -> list[bytes]:
    """What the side's own disks hold."""
    return [image.read_bytes() for image in world.images(side)]


def flip_a_bit(world: RealWorld) -> None:
    """In the replica, behind the master target's back, before the machine starts from it."""
    with world.images(world.stored.state.active_side, base=True)[1].open("r+b") as image:
        image.seek(5 * GRANULE + 77)
        byte = image.read(1)[0]
        image.seek(5 * GRANULE + 77)
        image.write(bytes([byte ^ 1]))


async def test_unplanned_to_a_point_another_point_and_back_by_cancel(world: RealWorld) -> None:
    await world.job(w.PROTECT)
    await world.points(6)
    points = await world.recovery_points()
    await world.job(w.UNPLANNED, Wish(point=points[1].number))
    assert running(world) == ["cloud"], "the old machine was powered off"
    await world.judge(world.images(Side.CLOUD, base=True), Barrier.at_ns(points[1].barrier_ns))
    await world.job(w.CHANGE_POINT, Wish(point=points[3].number))
    await world.judge(world.images(Side.CLOUD, base=True), Barrier.at_ns(points[3].barrier_ns))
    home = contents(world, Side.HOME)

    await world.job(w.CANCEL, between=lambda step: check_same(world, home) if step == "resume" else None)
    assert running(world) == ["home"]
    assert world.now() is State.PROTECTED
    assert [disk for disk in world.site("cloud").disks() if disk.base] == []
    await world.points(2)
    await world.job(w.PLANNED)
    await world.judge(world.images(Side.CLOUD, base=True), Barrier.final(4))


def check_same(world: RealWorld, before: list[bytes]) -> None:
    """Home's disks are what they were, byte for byte."""
    assert contents(world, Side.HOME) == before
