"""Stages `failed-back` and `home-again`: final delta, fence, start at home; commit, and protection to the cloud again.

Called by the stages' runner.
"""

from __future__ import annotations

from typing import Final

from backhaul.demo.guest import read_boots
from backhaul.demo.items import await_points, item, rpo_s, state
from backhaul.demo.machines import find, place_agent
from backhaul.demo.moving import CANCEL, COMMIT, PLANNED, REPROTECT, arrive, drive, integrity, running_machine
from backhaul.demo.plan import ALL_DISKS, CLOUD, HOME, MACHINE_PLANS, MachinePlan
from backhaul.demo.reprotecting import POINTS, REPROTECTING, TO_HOME
from backhaul.demo.stages import Run

BACK: Final = frozenset({"failed-back", "committing-failback", "failed-back-committed"})
AT_HOME: Final = frozenset({"failed-back-committed"})
AGAIN: Final = frozenset({"reprotecting-to-cloud", "protected"})

CANCELLED: Final = "failback-cancelled"
"""Fact: how many lives alpha had in the cloud when its first failback was cancelled; negative: that is over."""


def fail_back(run: Run) -> str:
    """Alpha's first failback is cancelled; then both come home, and nothing that was acknowledged is missing."""
    alpha = MACHINE_PLANS[0]
    if run.progress.fact(CANCELLED, 0) >= 0:
        cancel_one(run, alpha)
    for plan in MACHINE_PLANS:
        if state(item(run, plan)) not in BACK:
            await_points(run, plan, TO_HOME, POINTS)
    drive(run, MACHINE_PLANS, PLANNED, BACK)
    judged = [arrive(run, plan, HOME, "home", "after its failback") for plan in MACHINE_PLANS]
    down = max(one.downtime_s for one in judged)
    proofs = ", ".join(sorted({integrity(run, plan) for plan in MACHINE_PLANS}))
    return (
        f"alpha's first failback was cancelled, and it went on in the cloud with all that it had; then both came home: "
        f"nothing lost, down {down:.1f} s, integrity {proofs}"
    )


def cancel_one(run: Run, plan: MachinePlan) -> None:
    """To home and back: the cloud machine starts from exactly what it had."""
    if not run.progress.fact(CANCELLED, 0):
        drive(run, [plan], PLANNED, BACK)
        arrive(run, plan, HOME, "tried", "after the failback that is cancelled then")
        machine = find(run.operator, CLOUD, plan.name)
        assert machine is not None, "it is kept until the commit"
        boots = read_boots(run.operator.machine_folder(CLOUD, machine.id))
        run.progress.note(**{CANCELLED: len(boots)})
    drive(run, [plan], CANCEL, REPROTECTING | {"verifying-to-home", "standby-to-home"})
    arrive(run, plan, CLOUD, "cancelled", "after the cancel", boot=run.progress.fact(CANCELLED))
    run.progress.note(**{CANCELLED: -1})


def home_again(run: Run) -> str:
    """Committed, and protected towards the cloud again."""
    if any(state(item(run, plan)) not in AT_HOME | AGAIN for plan in MACHINE_PLANS):
        drive(run, MACHINE_PLANS, COMMIT, AT_HOME | AGAIN)
    for plan in MACHINE_PLANS:
        place_agent(run.operator, HOME, plan, running_machine(run, HOME, plan))
    drive(run, MACHINE_PLANS, REPROTECT, AGAIN)
    for plan in MACHINE_PLANS:
        await_points(run, plan, "protected", POINTS)
    rpo = max(rpo_s(item(run, plan)) for plan in MACHINE_PLANS)
    return f"both are committed, and protected to the cloud again: {ALL_DISKS} disks compared, RPO {rpo:.1f} s"
