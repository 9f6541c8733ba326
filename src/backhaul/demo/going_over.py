"""Stages `failed-over` and `committed`: alpha from a recovery point, as its home does not answer; beta without loss.

Called by the stages' runner.
"""

from __future__ import annotations

import os
from typing import Final

from backhaul.demo.errors import StageFailed
from backhaul.demo.guest import read_boots
from backhaul.demo.items import item, points, rpo_s, state
from backhaul.demo.machines import find, place_agent
from backhaul.demo.moving import (
    ACTIVE,
    CHANGE_POINT,
    COMMIT,
    PLANNED,
    UNPLANNED,
    arrive,
    drive,
    drive_again,
    integrity,
    running_machine,
)
from backhaul.demo.operator import await_that
from backhaul.demo.plan import CLOUD, HOME, MACHINE_PLANS, MACHINES, MachinePlan
from backhaul.demo.stages import Run
from backhaul.demo.stations import stations
from backhaul.sites.values import PowerState

CHOSEN: Final = "chosen-points"
"""Fact: numbers and barriers of the points that alpha is failed over to one after the other: all that are retained."""

LOSS: Final = "loss-said"
"""Fact: what the product said before that an unplanned failover would lose."""

CUT: Final = "home-cut"
"""Fact: home's machines are cut off from their network, or are about to be."""

LOST_AT_LEAST_S: Final = 1.5
"""Home has acknowledged work for so long since its newest point, so that there is something to be lost."""

OVER: Final = frozenset({"failed-over", "committing-failover", "failed-over-committed"})
COMMITTED: Final = frozenset({"failed-over-committed"})


def fail_over(run: Run) -> str:
    """Alpha in a disaster, to its oldest point and then to each newer one; beta planned."""
    alpha, beta = MACHINE_PLANS
    disaster = strike(run, alpha)
    chosen: list[tuple[int, int]] = [(number, barrier) for number, barrier in run.progress.fact(CHOSEN)]
    if alpha.name not in run.progress.fact(ACTIVE, {}):
        drive(run, [alpha], UNPLANNED, OVER, point=chosen[0][0])
        arrive(run, alpha, CLOUD, f"point-{chosen[0][0]}", f"at point {chosen[0][0]}", chosen[0][1])
    lost = [change_point(run, alpha, point) for point in chosen[1:]][-1]
    end_disaster(run)
    drive(run, [beta], PLANNED, OVER)
    planned = arrive(run, beta, CLOUD, "planned", "after its planned failover")
    return (
        f"alpha, {disaster}, ran from each of its {len(chosen)} points and each held what it promised; the newest "
        f'lost {lost:.1f} s of work, and "{run.progress.fact(LOSS)}" was said before. beta, as planned: nothing lost, '
        f"down {planned.downtime_s:.1f} s, integrity {integrity(run, beta)}"
    )


def strike(run: Run, plan: MachinePlan) -> str:
    """Home's machines are cut off from everything (namespaces), or the machine hangs; what it did, in words.

    What would be lost is asked for, and which points there are. Until the failover was begun all of it is done again:
    a home that was stopped meanwhile, and started again, has made other points.
    """
    site, how = run.operator.site(HOME), "cut off from its network" if run.plan.as_root else "hung"
    if run.progress.fact(CHOSEN) is not None and state(item(run, plan)) != "protected":
        return how
    machine = find(run.operator, HOME, plan.name)
    assert machine is not None, "it writes there"
    if run.plan.as_root:
        run.progress.note(**{CUT: True})
        site.cut_route(MACHINES, token=f"demo/cut/{os.urandom(8).hex()}")
    elif machine.power is PowerState.RUNNING:
        await_that(lambda: rpo_s(item(run, plan)) >= LOST_AT_LEAST_S, f"Work of {plan.name} since its newest point")
        site.hang(machine.id, token=f"demo/hang/{os.urandom(8).hex()}")
    run.display.say(f"{plan.name} is {how}")
    await_that(lambda: rpo_s(item(run, plan)) >= LOST_AT_LEAST_S, f"An RPO of {plan.name} that shows it")
    said = run.operator.session(lambda session: session.lifecycle.preflight(UNPLANNED, plan.name))["loses"]
    found = points(run, plan)
    run.display.line(f"  {plan.name} is {how}; the product says: {said}")
    run.progress.note(**{LOSS: said, CHOSEN: found})
    return how


def change_point(run: Run, plan: MachinePlan, point: tuple[int, int]) -> float:
    """Another point, before the commit; seconds of acknowledged work that it does not hold."""
    name = f"point-{point[0]}"
    if not any((one.machine, one.name) == (plan.name, name) for one in stations(run.progress)):
        drive_again(run, plan, CHANGE_POINT, point=point[0])
    return arrive(run, plan, CLOUD, name, f"at point {point[0]}", point[1]).report.data_loss_s


def end_disaster(run: Run) -> None:
    """Home's network is whole again."""
    if run.plan.as_root:
        run.operator.site(HOME).restore_route(MACHINES, token=f"demo/restore/{os.urandom(8).hex()}")
        run.progress.note(**{CUT: False})


def commit(run: Run) -> str:
    """Both stay in the cloud: their layers become their disks. What a planned move promised is proved by then."""
    lives = [_lives(run, plan) for plan in MACHINE_PLANS]
    drive(run, MACHINE_PLANS, COMMIT, COMMITTED)
    for plan in MACHINE_PLANS:
        place_agent(run.operator, CLOUD, plan, running_machine(run, CLOUD, plan))
    if lives != (now := [_lives(run, plan) for plan in MACHINE_PLANS]):
        raise StageFailed(stage="committed", reason=f"the machines had booted {lives} times in the cloud, now {now}")
    return "both stay in the cloud, on disks of their own, and were not stopped for it; the way back by cancel is gone"


def _lives(run: Run, plan: MachinePlan) -> int:
    """How often the machine has booted in the cloud."""
    machine = running_machine(run, CLOUD, plan)
    return len(read_boots(run.operator.machine_folder(CLOUD, machine.id)))
