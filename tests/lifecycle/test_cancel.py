"""Cancel at every stage before commit: the side before has exactly the state it had, and goes on from it."""

from __future__ import annotations

import pytest

from backhaul.configuration_server.lifecycle import workflows as w
from backhaul.configuration_server.lifecycle.values import Wish
from backhaul.recovery.errors import OperationRefused
from backhaul.recovery.item import Operation, Side, State
from backhaul.recovery.states import refusal
from lifecycle import stations
from lifecycle.fake_world import ITEM, Killed, World
from lifecycle.stations import Build

MOVES: dict[str, tuple[Build, str, Wish, Side]] = {
    "failover": (stations.protected, w.PLANNED, Wish(), Side.HOME),
    "failover from inside": (stations.inside(stations.protected), w.PLANNED, Wish(), Side.HOME),
    "unplanned": (stations.protected, w.UNPLANNED, Wish(point=1), Side.HOME),
    "failback": (stations.protected_to_home, w.PLANNED, Wish(), Side.CLOUD),
    "failback from inside": (stations.inside(stations.protected_to_home), w.PLANNED, Wish(), Side.CLOUD),
    "unplanned failback": (stations.protected_to_home, w.UNPLANNED, Wish(point=1), Side.CLOUD),
}


def killed_after(build: Build, kind: str, wish: Wish, number: int) -> tuple[World, bool]:
    """The world after a kill behind the job's effect `number`; whether the job had so many."""
    world = build()
    world.kill_at = (len(world.effects) + number, "after")
    try:
        world.run(kind, "job-x", wish=wish)
    except Killed:
        return world, True
    world.kill_at = None
    return world, False


def layers(world: World) -> list[str]:
    """Every writable layer anywhere."""
    return [disk.id for site in (world.home, world.cloud) for disk in site.disks() if disk.base]


@pytest.mark.parametrize("name", MOVES)
def test_a_move_is_canceled_at_every_stage(name: str) -> None:
    build, kind, wish, side = MOVES[name]
    before = build()
    number = stages = 0
    goes_on = True
    while goes_on:
        number += 1
        world, goes_on = killed_after(build, kind, wish, number)
        if refusal(world.stored.state, Operation.CANCEL_FAILOVER) is not None or (
            world.now() is before.stored.state.state
        ):
            continue
        if side is Side.HOME:
            world.cloud.write("to be thrown away")
        else:
            world.home.write("to be thrown away")
        world.run(w.CANCEL, "job-cancel", wish=Wish())
        stages += 1
        assert world.now() is before.stored.state.state
        assert world.stored.state.generation > before.stored.state.generation
        assert world.contents(side) == before.contents(side), f"after effect {number}: {world.effects[-1]}"
        assert world.running() == [side.value]
        assert layers(world) == []
        assert world.stored.at(side.other).layers == ()
        points = len(world.reps[world.stored.passive.target, ITEM].states)
        world.tick()
        rep = world.reps[world.stored.passive.target, ITEM]
        assert len(rep.states) == points + 1, "it replicates again"
        assert set(rep.pins) <= {"home-before-reprotect"}
    assert stages > 5


def test_a_change_of_point_is_canceled_at_every_stage() -> None:
    before = stations.protected()
    number, goes_on = 0, True
    while goes_on:
        number += 1
        world, goes_on = killed_after(stations.failed_over, w.CHANGE_POINT, Wish(point=1), number)
        world.run(w.CANCEL, "job-cancel", wish=Wish())
        assert world.now() is State.PROTECTED
        assert world.contents(Side.HOME) == before.contents(Side.HOME)
        assert world.running() == ["home"]
        assert layers(world) == []
        states = world.reps["mt-cloud", ITEM].states
        assert states[-1][1] == before.contents(Side.HOME), "the replica is what it was before the failover"
    assert number > 8


@pytest.mark.parametrize("points", [0, 2])
def test_a_reprotect_is_canceled_and_home_is_as_it_was(points: int) -> None:
    before = stations.committed()
    number, goes_on, stages = 0, True, 0
    while goes_on:
        number += 1
        world, goes_on = killed_after(stations.committed, w.REPROTECT, Wish(), number)
        if world.now() is State.FAILED_OVER_COMMITTED:
            continue
        for turn in range(points if not goes_on else 0):
            world.cloud.write(f"more {turn}")
            world.tick()
        if not goes_on and points == 0:
            world.half_an_epoch("mt-home")
        world.run(w.CANCEL, "job-cancel", wish=Wish())
        stages += 1
        assert world.now() is State.FAILED_OVER_COMMITTED
        assert world.contents(Side.HOME) == before.contents(Side.HOME)
        assert world.running() == ["cloud"]
        assert ("mt-home", ITEM) not in world.reps
        holders = {disk.holder for disk in world.home.disks()}
        assert holders == {world.stored.home.holder}, "the old machine has its disks again"
    assert stages > 5


def test_what_comes_after_a_cancel_works() -> None:
    world = stations.failed_over()
    world.run(w.CANCEL, "job-cancel", wish=Wish())
    world.home.write("later")
    world.tick()
    world.run(w.PLANNED, "job-again", wish=Wish())
    assert world.running() == ["cloud"]
    assert world.contents(Side.CLOUD) == world.contents(Side.HOME)
    world.run(w.COMMIT, "job-commit", wish=Wish())
    world.run(w.REPROTECT, "job-reprotect", wish=Wish())
    world.run(w.CANCEL, "job-cancel-2", wish=Wish())
    world.run(w.REPROTECT, "job-reprotect-2", wish=Wish())
    world.first_point()
    world.run(w.PLANNED, "job-back", wish=Wish())
    assert world.running() == ["home"]
    assert world.contents(Side.HOME) == world.contents(Side.CLOUD)


def test_after_the_commit_nothing_can_be_canceled() -> None:
    world = stations.committed()
    with pytest.raises(OperationRefused) as refused:
        world.run(w.CANCEL, "job-cancel", wish=Wish())
    assert refused.value.reason.code == "BH-REFUSED-COMMITTED"


def test_a_reprotect_without_cancel_keeps_nothing() -> None:
    world = stations.committed()
    world.run(w.REPROTECT, "job-reprotect", wish=Wish(cancel_given_up=True))
    assert world.reps["mt-home", ITEM].pins == {}
    with pytest.raises(OperationRefused) as refused:
        world.run(w.CANCEL, "job-cancel", wish=Wish())
    assert refused.value.reason.code == "BH-REFUSED-CANCEL-GIVEN-UP"
