"""What the end of a protection throws away, what it never touches, and what it says before."""

from __future__ import annotations

import msgspec
import pytest

from backhaul.configuration_server.errors import ResourceUnknown, ServerSilent
from backhaul.configuration_server.lifecycle import ending
from backhaul.configuration_server.lifecycle import workflows as w
from backhaul.configuration_server.lifecycle.errors import LifecycleUnknown, MachineUnnamed
from backhaul.configuration_server.lifecycle.values import Ids, Wish
from backhaul.recovery.errors import OperationRefused
from backhaul.recovery.item import Side, State
from backhaul.replication.control import AgentMode, Method
from lifecycle import stations
from lifecycle.fake_world import ITEM, World


def cut_off(world: World) -> None:
    """Neither targets nor sites answer any more."""

    def silent(target: str, method: Method, params: object) -> object:
        raise ServerSilent(server=target, reason="it is gone")

    world.ask = silent  # type: ignore[method-assign]
    world.home.silent = world.cloud.silent = True


def gone(world: World) -> bool:
    """Whether the item's record is."""
    try:
        world.load(ITEM)
    except ResourceUnknown:
        return True
    return False


def test_the_replica_goes_and_the_machine_goes_on() -> None:
    world = stations.protected()
    made, before = world.stored.cloud.disks, world.contents(Side.HOME)
    assert set(made) <= set(world.cloud.held)
    world.run(ending.DISABLE, "job-x", wish=Wish())
    assert gone(world)
    assert world.stored.state.state is State.DISABLED
    assert not set(made) & set(world.cloud.held), "made for the replica"
    assert world.reps == {}
    assert world.told["agent-home"][1].mode is AgentMode.STANDBY
    assert world.running() == ["home"]
    assert world.contents(Side.HOME) == before


def test_disks_that_were_given_are_not_deleted() -> None:
    world = stations.protected()
    world.stored = world.stored.placed(Side.CLOUD, made=())
    disks = world.stored.cloud.disks
    world.run(ending.DISABLE, "job-x", wish=Wish())
    assert set(disks) <= set(world.cloud.held)
    assert [world.cloud.held[disk].shown.holder for disk in disks] == ["", ""]


def test_old_disks_at_home_are_given_back_without_half_an_epoch() -> None:
    world = stations.protected_to_home()
    whole = world.contents(Side.HOME)
    world.half_an_epoch("mt-home")
    disks, machine = world.stored.home.disks, world.stored.home.machine
    world.run(ending.DISABLE, "job-x", wish=Wish())
    assert world.running() == ["cloud"]
    assert [world.home.held[disk].shown.holder for disk in disks] == [f"machine:{machine}"] * 2
    assert world.contents(Side.HOME) == whole
    assert world.told["agent-cloud"][1].mode is AgentMode.STANDBY


@pytest.mark.parametrize(("build", "kind"), [(stations.committed, ending.MIGRATED), (stations.protected, ending.PURGE)])
def test_neither_a_migration_nor_a_purge_needs_the_other_side(build: stations.Build, kind: str) -> None:
    world = build()
    disks = {site.name: set(site.held) for site in (world.home, world.cloud)}
    cut_off(world)
    world.run(kind, "job-x", wish=Wish())
    assert gone(world)
    assert {site.name: set(site.held) for site in (world.home, world.cloud)} == disks


def test_a_job_that_failed_may_be_repeated() -> None:
    world = stations.protected()
    ask = world.ask
    for step in w.WORKFLOWS[ending.DISABLE][:2]:
        step.run(world.ports, Ids("job-x", ITEM))
    cut_off(world)
    with pytest.raises(ServerSilent):
        world.run(ending.DISABLE, "job-x", wish=Wish())
    assert world.now() is State.DISABLING
    world.ask = ask  # type: ignore[method-assign]
    world.home.silent = world.cloud.silent = False
    world.run(ending.DISABLE, "job-y", wish=Wish())
    assert gone(world)
    assert world.reps == {}


@pytest.mark.parametrize(
    ("build", "kind", "code"),
    [
        (stations.failed_over, ending.DISABLE, "BH-REFUSED-COMMIT-FIRST"),
        (stations.failed_over, ending.PURGE, "BH-REFUSED-COMMIT-FIRST"),
        (stations.protected, ending.MIGRATED, "BH-REFUSED-NOT-FAILED-OVER"),
        (stations.protected_to_home, ending.MIGRATED, "BH-REFUSED-REPROTECTED"),
        (stations.failed_over, w.RESYNC, "BH-REFUSED-COMMIT-FIRST"),
        (stations.protected, w.REBIND, "BH-REFUSED-NOTHING-TO-CONFIRM"),
    ],
)
def test_what_the_state_forbids_is_refused_and_changes_nothing(build: stations.Build, kind: str, code: str) -> None:
    world = build()
    before = list(world.effects)
    with pytest.raises(OperationRefused) as refused:
        world.run(kind, "job-x", wish=Wish(machine="m"))
    assert refused.value.reason.code == code
    assert world.effects == before


def test_it_says_first_what_it_throws_away() -> None:
    world = stations.protected()
    _, replica, disks = ending.losses(world.ports, world.stored, ending.DISABLE)
    assert replica == "The replica in the cloud and its 3 recovery points are thrown away."
    assert all(disk in disks for disk in world.stored.cloud.disks)
    back = stations.protected_to_home()
    *_, kept = ending.losses(back.ports, back.stored, ending.DISABLE)
    assert "are kept and given back" in kept
    assert not any("deleted" in text for text in ending.losses(back.ports, back.stored, ending.DISABLE))
    cut_off(world)
    _, unknown, _ = ending.losses(world.ports, world.stored, ending.DISABLE)
    assert "not known (BH-SERVER-SILENT)" in unknown
    assert "left behind" in ending.losses(world.ports, world.stored, ending.PURGE)[1]
    (migrated,) = ending.losses(world.ports, stations.committed().stored, ending.MIGRATED)
    assert "stays in the cloud" in migrated


def test_a_rebind_names_its_machine() -> None:
    world = stations.standing_by()
    with pytest.raises(MachineUnnamed):
        world.run(w.REBIND, "job-x", wish=Wish())
    world.run(w.REBIND, "job-y", wish=Wish(machine=stations.OTHER_ID))
    descriptor = world.reps["mt-cloud", ITEM].descriptor
    assert (descriptor.active_machine, descriptor.generation) == (stations.OTHER_ID, 2)
    machine, told = world.told["agent-home"]
    assert (machine, told.mode, told.compare) == (stations.OTHER_ID, AgentMode.REPLICATE, True)
    assert world.now() is State.VERIFYING


def test_an_item_without_sites_is_not_moved() -> None:
    world = stations.protected()
    bare = msgspec.structs.replace(world.stored.home, site="")
    world.stored = msgspec.structs.replace(world.stored, home=bare)
    with pytest.raises(LifecycleUnknown):
        world.run(w.PLANNED, "job-x", wish=Wish())
