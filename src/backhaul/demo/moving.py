"""Moves of machines as the demo makes them: a job begun once whatever is killed, the machine's new life, its judgement.

Invariant: the item's own state says what was done already, so a move that is repeated goes on where it was. Called by
stages, in the demo's main thread.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec

from backhaul.client.errors import JobFailed
from backhaul.client.vault import RUNNING, Resource
from backhaul.demo.errors import StageFailed
from backhaul.demo.guest import BLOCKS_LOG, Boot, read_boots
from backhaul.demo.items import item, state
from backhaul.demo.machines import await_writing, find, place_agent
from backhaul.demo.operator import Session, await_that
from backhaul.demo.oracle import CheckReport, load_history
from backhaul.demo.plan import CLOUD, HOME, MachinePlan
from backhaul.demo.stages import Run
from backhaul.demo.stations import GATHERED, STATIONS, Station, begin_station, check_station, gather, stations
from backhaul.sites.values import Machine

PLANNED, UNPLANNED, CHANGE_POINT = "PlannedFailover", "UnplannedFailover", "ChangePit"
COMMIT, CANCEL, REPROTECT, PROTECT = "Commit", "CancelFailover", "ReverseReplicate", "EnableProtection"
"""Kinds of jobs, as the API names them."""

ACTIVE: Final = "active"
"""Fact: on which side each machine is active."""

_TRIES: Final = 15
"""A server that was killed is started again within seconds; a job that met it dead is tried again."""

_AGAIN_S: Final = 2.0
_NS: Final = 1e9


@dataclass(frozen=True)
class Judged:
    """A station that was judged. `downtime_s`: from the last acknowledgement there to the first one here."""

    report: CheckReport
    downtime_s: float


def drive(run: Run, plans: Collection[MachinePlan], kind: str, done: Collection[str], **wish: Any) -> None:
    """Have a job done for each machine that is not in a state of `done` yet, together. Raises JobFailed."""
    for attempt in range(1, _TRIES + 1):
        await_running(run)
        waiting = [plan.name for plan in plans if state(item(run, plan)) not in done]
        if not waiting:
            return
        try:
            run.operator.run_job(partial(_begin, kind, waiting, wish))
        except JobFailed:
            if attempt == _TRIES:
                raise
            time.sleep(_AGAIN_S)
    raise StageFailed(stage=kind, reason=f"after {_TRIES} jobs, these are not where they should be: {waiting}")


def drive_again(run: Run, plan: MachinePlan, kind: str, **wish: Any) -> None:
    """Have a job done for a machine that leaves it in the state that it is in. Raises JobFailed."""
    for attempt in range(1, _TRIES + 1):
        await_running(run)
        try:
            run.operator.run_job(partial(_begin, kind, [plan.name], wish))
        except JobFailed:
            if attempt == _TRIES:
                raise
            time.sleep(_AGAIN_S)
        else:
            return


def _begin(kind: str, names: list[str], wish: Resource, session: Session) -> str:
    return session.lifecycle.begin(kind, names, wish)


def await_running(run: Run) -> None:
    """Jobs that a killed run had begun are over: those of many items too, which begin more of them."""
    for job in run.operator.vault(lambda vault: vault.jobs()):
        known = job["properties"]
        if known["state"] in RUNNING:
            try:
                run.operator.await_job(job["name"])
            except JobFailed as error:
                run.display.say(f"{known['targetObjectName']}: {error}")


def running_machine(run: Run, side: str, plan: MachinePlan) -> Machine:
    """The machine on a side, which must be there, once it writes."""
    machine = await_that(lambda: find(run.operator, side, plan.name), f"{plan.name} ({side})")
    await_writing(run.operator, side, machine)
    return machine


def arrive(run: Run, plan: MachinePlan, side: str, name: str, where: str, barrier_ns: int = 0, boot: int = 0) -> Judged:
    """The machine moved to `side`: wait for its new life, gather all logs, and judge what it found.

    `name` and `where` as in `Station`; `boot`: lives of the machine on this side before. Raises PromiseBroken.
    """
    run.display.say(f"judging {plan.name} {where}")
    folder, operator = run.plan.folder, run.operator
    machine = running_machine(run, side, plan)
    known = next((one for one in stations(run.progress) if (one.machine, one.name) == (plan.name, name)), None)
    if known is None:
        gather_source(run, plan, side)
        work = operator.machine_folder(side, machine.id)
        boots = await_that(lambda: _more_than(boot, read_boots(work)), f"The boot of {plan.name} ({side})")
        known = Station(plan.name, name, where, boots[boot], barrier_ns)
        begin_station(folder, known, work)
        noted = [*run.progress.fact(STATIONS, []), msgspec.to_builtins(known)]
        run.progress.note(**{STATIONS: noted, ACTIVE: {**run.progress.fact(ACTIVE, {}), plan.name: side}})
    place_agent(operator, side, plan, machine)
    return Judged(check_station(folder, known)[0], _downtime_s(run, known))


def integrity(run: Run, plan: MachinePlan) -> str:
    """What the integrity report of the machine's last move says. Raises StageFailed when the sides differ."""
    said = str(run.operator.session(lambda session: session.lifecycle.plan(plan.name))["integrity"])
    if said == "failed":
        raise StageFailed(stage=PLANNED, reason=f"the integrity report of {plan.name} says that its sides differ")
    return said


def gather_source(run: Run, plan: MachinePlan, side: str) -> None:
    """What the machine acknowledged on the side that it left, which is off by now, belongs to its trunk."""
    left = CLOUD if side == HOME else HOME
    source = find(run.operator, left, plan.name)
    if source is not None:
        gather(run.plan.folder, plan.name, run.operator.machine_folder(left, source.id))


def _more_than(count: int, boots: list[Boot]) -> list[Boot] | None:
    return boots if len(boots) > count else None


def _downtime_s(run: Run, station: Station) -> float:
    logs = run.plan.folder / GATHERED / station.machine / station.name / BLOCKS_LOG
    lives = load_history(logs).incarnations
    last = max(max(life.acked_ns, default=0) for number, life in lives.items() if number < station.boot.blocks)
    return (lives[station.boot.blocks].started_ns - last) / _NS
