"""The final delta of a machine that only the agent on it can read: frozen, stored, held, powered off, and only then
handed over. Nothing that its writers were told is written is lost, whichever of these does not come about.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from backhaul.composition import registering
from backhaul.configuration_server.lifecycle import workflows as w
from backhaul.configuration_server.lifecycle.core import CorePorts
from backhaul.configuration_server.lifecycle.errors import SourceHeld, SourceThawed
from backhaul.configuration_server.lifecycle.steps import assign
from backhaul.configuration_server.lifecycle.values import Ids, Wish
from backhaul.configuration_server.live import LiveItem
from backhaul.configuration_server.service_agent import FILE, AgentConfig
from backhaul.mobility.choosing import for_final
from backhaul.recovery.item import Side, State
from backhaul.replication.control import AgentMode, ItemReport, SourceDisk, StillImagePlan
from backhaul.replication.values import Fence, ItemId
from lifecycle import stations
from lifecycle.fake_world import ITEM, World, off
from lifecycle.stations import Build

MOVES: dict[str, tuple[Build, Side]] = {
    "failover": (stations.inside(stations.protected), Side.HOME),
    "failback": (stations.inside(stations.protected_to_home), Side.CLOUD),
}
MOVED = {"failover": State.FAILED_OVER, "failback": State.FAILED_BACK}


def site_of(world: World, side: Side) -> Any:
    return world.site(world.stored.at(side).site)


def until_fenced(world: World) -> None:
    """Run the move up to its fence, whose machine then does not go off."""
    site_of(world, world.stored.state.active_side).stubborn.add(world.stored.active.machine)
    with pytest.raises(SourceHeld):
        world.run(w.PLANNED, "job-x", wish=Wish())


@pytest.mark.parametrize("name", MOVES)
def test_the_machine_is_powered_off_after_its_final_point_and_before_the_other_side_is_told(name: str) -> None:
    build, side = MOVES[name]
    world = build()
    site_of(world, side).write("last")
    agent, machine, target = world.stored.active.agent, world.stored.active.machine, world.stored.passive.target
    before = len(world.effects)
    world.run(w.PLANNED, "job-x", wish=Wish())
    wanted = [
        f"assign {agent} final", "record job-x/final-stored", f"{side} power off {machine}", f"{target} promote",
        f"{side.other} power running",
    ]  # fmt: skip
    order = [next((one for one in wanted if effect.startswith(one)), "") for effect in world.effects[before:]]
    assert [one for one in order if one] == wanted
    assert not world.told[agent][1].source_off
    assert world.now() is MOVED[name]
    assert world.running() == [side.other.value]
    assert off(world, side)
    assert world.contents(side.other) == world.contents(side)
    assert "last" in world.contents(side.other)[0]


def test_what_is_written_after_a_freeze_that_was_not_held_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    world = MOVES["failover"][0]()
    world.thaws = 1
    held = world.holds

    def holds(item: ItemId, generation: int, since_ns: int) -> bool | None:
        found = held(item, generation, since_ns)
        world.home.write("after the thaw")
        return found

    monkeypatch.setattr(world, "holds", holds)
    world.run(w.PLANNED, "job-x", wish=Wish())
    assert world.now() is State.FAILED_OVER
    assert world.stored.state.generation == 3, "one more, for the second try"
    assert world.contents(Side.CLOUD) == world.contents(Side.HOME)
    assert world.contents(Side.CLOUD)[0].count("after the thaw") == 1, "the second freeze was held"
    assert [effect for effect in world.effects if effect.startswith("mt-cloud raise")] == ["mt-cloud raise 2"]


def test_a_machine_that_is_never_held_is_never_powered_off_and_goes_on_after_a_cancel() -> None:
    world = MOVES["failover"][0]()
    world.thaws = 99
    with pytest.raises(SourceThawed):
        world.run(w.PLANNED, "job-x", wish=Wish())
    assert world.now() is State.FINAL_DELTA
    assert world.running() == ["home"]
    assert not any("power off" in effect for effect in world.effects)
    assert not world.reps["mt-cloud", ITEM].promoted
    points = len(world.reps["mt-cloud", ITEM].states)
    world.run(w.CANCEL, "job-cancel", wish=Wish())
    world.home.write("on")
    world.tick()
    assert world.now() is State.PROTECTED
    assert len(world.reps["mt-cloud", ITEM].states) == points + 1
    assert "on" in world.reps["mt-cloud", ITEM].states[-1][1][0]


def test_a_silent_agent_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = MOVES["failover"][0]()
    monkeypatch.setattr(world, "holds", lambda *_: None)
    with pytest.raises(SourceThawed):
        world.run(w.PLANNED, "job-x", wish=Wish())
    assert not any("power off" in effect for effect in world.effects)


def test_a_machine_that_nobody_confirms_is_off_is_held_frozen_and_tried_again() -> None:
    world = MOVES["failover"][0]()
    until_fenced(world)
    assert (world.now(), world.stored.state.generation) == (State.HELD, 1)
    world.home.write("it is frozen")
    world.home.stubborn.clear()
    world.run(w.PLANNED, "job-again", wish=Wish())
    assert world.now() is State.FAILED_OVER
    assert world.running() == ["cloud"]
    assert world.contents(Side.CLOUD) == world.contents(Side.HOME)
    assert "it is frozen" not in world.contents(Side.CLOUD)[0]
    assert [told.mode for _, told in world.told.values()] == [AgentMode.STANDBY]


@pytest.mark.parametrize("name", MOVES)
def test_a_cancel_of_a_held_machine_raises_the_generation_and_then_lets_it_go_on(name: str) -> None:
    build, side = MOVES[name]
    world = build()
    generation = world.stored.state.generation
    until_fenced(world)
    before = len(world.effects)
    world.run(w.CANCEL, "job-cancel", wish=Wish())
    effects = [effect.split(" ")[:2] for effect in world.effects[before:]]
    told = ["assign", world.stored.active.agent]
    assert effects.index([world.stored.passive.target, "raise"]) < effects.index(told)
    assert world.stored.state.generation == generation + 1
    assert site_of(world, side).frozen, "until its agent has read what it was told"
    world.tick()
    site_of(world, side).write("it goes on")
    assert "it goes on" in world.contents(side)[0]
    assert world.running() == [side.value]


def test_a_held_source_is_declared_gone_by_name() -> None:
    world = MOVES["failover"][0]()
    until_fenced(world)
    final = world.reps["mt-cloud", ITEM].states[-1][1]
    world.run(w.UNPLANNED, "job-gone", wish=Wish())
    assert world.now() is State.FAILED_OVER
    assert world.contents(Side.CLOUD) == final
    assert len(world.cloud.running()) == 1
    assert world.stored.state.generation == 2


def test_the_agent_of_a_machine_that_is_off_makes_no_final_point() -> None:
    """Why the order is another one than for disks that are read from outside."""
    world = MOVES["failover"][0]()
    for step in w.WORKFLOWS[w.PLANNED][:2]:
        step.run(world.ports, Ids("job-x", ITEM))
    world.home.power_off(world.stored.home.machine, token="somebody")
    points = len(world.reps["mt-cloud", ITEM].states)
    world.tick()
    assert len(world.reps["mt-cloud", ITEM].states) == points


def test_an_agent_inside_reads_its_disks_where_it_finds_them_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    world = MOVES["failover"][0]()
    own = tuple(SourceDisk(disk, f"/dev/vd{disk.index}") for disk in world.stored.disks)
    monkeypatch.setattr(world, "reads", lambda *_: own)
    assign(world.ports, Ids("job-x", ITEM), "assign", world.stored, AgentMode.REPLICATE)
    assert world.told["agent-home"][1].disks == own
    beside = msgspec.structs.replace(world.stored, still=StillImagePlan())
    assign(world.ports, Ids("job-y", ITEM), "assign", beside, AgentMode.REPLICATE)
    assert [disk.path for disk in world.told["agent-home"][1].disks] == ["home:hd0", "home:hd1"]


def test_the_final_point_is_frozen_without_a_script_that_lets_go() -> None:
    plan = StillImagePlan(stopped=False, pre=("quiesce",), post=("resume",), freeze=True)
    assert for_final(plan) == stations.INSIDE
    script = msgspec.structs.replace(plan, freeze=False)
    assert for_final(script) == script


@pytest.mark.parametrize(
    ("options", "plan"),
    [
        pytest.param(("--inside", "--freeze"), stations.INSIDE, id="inside"),
        pytest.param(("--freeze",), StillImagePlan(freeze=True), id="beside"),
        pytest.param(("--inside",), None, id="not-frozen"),
    ],
)
def test_an_agent_is_registered_as_one_inside(
    options: tuple[str, ...], plan: StillImagePlan | None, tmp_path: Path
) -> None:
    """The configuration server it names is not there: what its machine can do is settled before."""
    (tmp_path / "passphrase").write_text("x")
    alone = typer.Typer()
    alone.command()(registering.agent)
    where = ("--configuration-server", "127.0.0.1", "--port", "1", "--passphrase-file", str(tmp_path / "passphrase"))
    done = CliRunner().invoke(alone, ["--disk", "a=/dev/vda", "--data-dir", str(tmp_path / "a"), *where, *options])
    assert done.exit_code == (1 if plan else 2), done.stderr
    if plan:
        kept = msgspec.json.decode((tmp_path / "a" / FILE).read_bytes(), type=AgentConfig)
        assert kept.still == plan


def report(state: str, *, held: bool = False, generation: int = 5) -> ItemReport:
    return ItemReport(
        item=ITEM, fence=Fence(1, generation, 2), state=state, tracker="scan", disks=(), newest_point_ns=0,
        newest_epoch=0, sent_bytes=0, unspooled_bytes=0, frozen_us=0, code="", params={}, held_frozen=held,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("told", "at_ns", "holds"),
    [
        pytest.param(report("held", held=True), 101, True, id="held"),
        pytest.param(report("held", held=True), 99, None, id="before"),
        pytest.param(report("held", held=True, generation=4), 101, None, id="of-an-earlier-generation"),
        pytest.param(report("held"), 101, None, id="about-to"),
        pytest.param(report("final"), 101, None, id="on-its-way"),
        pytest.param(report("opening"), 101, False, id="thawed"),
        pytest.param(None, 0, None, id="silent"),
    ],
)
def test_an_agent_holds_only_by_its_own_word(told: ItemReport | None, at_ns: int, holds: bool | None) -> None:
    live = SimpleNamespace(items={ITEM: LiveItem(told, at_ns)})
    ports = CorePorts(cast(Any, SimpleNamespace(live=live, vault=None, revisions=None)))
    assert ports.holds(ITEM, 5, 100) is holds
