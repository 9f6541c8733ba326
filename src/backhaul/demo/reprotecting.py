"""Stage `reprotected`: both machines replicate home; one of the process servers is killed in the middle of that.

On the way of GATED's bytes stands a gateway that counts. Where the middle will be is found out beforehand, by comparing
the disks of both sides. There the gateway stops delivering, and the process server behind it is killed; what was sent
to nobody must be sent again, and not everything is. Called by the stages' runner.
"""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import Any, Final

import msgspec

from backhaul.configuration_server.occupancy import running_in
from backhaul.demo.differing import differing_bytes
from backhaul.demo.display import size
from backhaul.demo.errors import StageFailed
from backhaul.demo.gateway import Counts, counted_until, counts, order, ordered
from backhaul.demo.items import await_points, item, moment_ns, rpo_s, state
from backhaul.demo.machines import agent_name
from backhaul.demo.moving import REPROTECT, drive
from backhaul.demo.operator import await_that
from backhaul.demo.plan import ALL_BYTES, CLOUD, GATED, GATEWAY, MACHINE_PLANS, MachinePlan
from backhaul.demo.rescue_servers import ensure_running, server_of
from backhaul.demo.setting_up import await_healthy
from backhaul.demo.stages import Run
from backhaul.replication.ports import RealFiles
from backhaul.sites.values import PowerState

STAGE: Final = "reprotected"

HOLD_AT: Final = 0.6
"""Part of the bytes that differ after which the gateway holds. What is written until the first recovery point is sent
too: a tenth more on an idle machine, as much again on a busy one.
"""

EARLIEST, LATEST = 0.25, 0.75
"""Where the kill must have been, as parts of the bytes of GATED that differed."""

NEARLY: Final = 0.9
"""So much of what differed is sent at least; what was written over meanwhile is not sent twice."""

POINTS: Final = 2
"""To wait for after a reprotect: what it sent is whole, and newer points follow."""

EXPECTED: Final = "reprotect-expected"
"""Fact: bytes that GATED's reprotect has to send at least."""

GATE: Final = "gate"
"""Fact: counts of the gateway before the reprotect."""

KILLED: Final = "process-server-killed"
"""Fact: counts of the gateway when the process server had been killed."""

TO_HOME: Final = "protected-to-home"
REPROTECTING: Final = frozenset({"reprotecting", TO_HOME})


def reprotect(run: Run) -> str:
    """Both replicate to home through their process servers, one of which is killed in the middle."""
    for plan in MACHINE_PLANS:
        if state(item(run, plan)) not in REPROTECTING:
            ensure_running(run, plan)
            await_healthy(run, agent_name(CLOUD, plan))
    before = prepare(run)
    drive(run, MACHINE_PLANS, REPROTECT, REPROTECTING)
    kill_and_start(run, before)
    for plan in MACHINE_PLANS:
        await_points(run, plan, TO_HOME, POINTS)
    return _sent(run, before)


def prepare(run: Run) -> Counts:
    """The product estimates, the demo finds out, and the gateway is told where to hold; what it had counted before."""
    folder = run.operator.service_folder(CLOUD, GATEWAY)
    if run.progress.fact(GATE) is None:
        estimated = {plan.name: await_that(partial(_estimate, run, plan), "An estimate") for plan in MACHINE_PLANS}
        shown = " and ".join(f"{size(one['bytes'])} of {name}" for name, one in estimated.items())
        run.display.line(f"  the product estimates that {shown} differ")
        expected = differing_bytes(run.operator, GATED)
        run.progress.note(**{EXPECTED: expected, GATE: msgspec.to_builtins(counts(folder))})
    before = msgspec.convert(run.progress.fact(GATE), Counts)
    told = ordered(folder)
    assert told is not None, "its stage before gave it its first order"
    if not told.hold_at:
        middle = round(HOLD_AT * run.progress.fact(EXPECTED))
        order(folder, msgspec.structs.replace(told, hold_at=before.from_clients + middle), run.plan.uid(CLOUD))
    return before


def _estimate(run: Run, plan: MachinePlan) -> dict[str, Any] | None:
    run.display.say(f"estimating what the reprotect of {plan.name} will send")
    found = run.operator.session(lambda session: session.lifecycle.preflight(REPROTECT, plan.name))["estimate"]
    return found if found and found["wireBytes"] else None  # an agent that was just started may not answer yet


def kill_and_start(run: Run, before: Counts) -> None:
    """The process server behind the gateway is killed while that holds, and started again."""
    folder = run.operator.service_folder(CLOUD, GATEWAY)
    if run.progress.fact(KILLED) is None:
        held = await_that(lambda: _holding(run, before), "The middle of the reprotect")
        server = server_of(run.operator, GATED)
        if server.power is not PowerState.OFF:
            process = running_in(RealFiles(), run.operator.server_folder(server) / "process-server")
            if process is not None:
                os.kill(process.pid, signal.SIGKILL)
            await_that(lambda: server_of(run.operator, GATED).power is PowerState.OFF, f"The end of {server.name}")
        sent = size(held.from_clients - held.lost - before.from_clients + before.lost)
        run.display.line(f"  {server.name} was killed after {sent} of {GATED.name}; it is started again")
        run.progress.note(**{KILLED: msgspec.to_builtins(counts(folder))})
    ensure_running(run, GATED)
    told = ordered(folder)
    assert told is not None, "it holds as it was told"
    order(folder, msgspec.structs.replace(told, let_go=True), run.plan.uid(CLOUD))
    await_that(lambda: not counts(folder).holds, "The gateway that lets go")
    await_healthy(run, GATED.process_server)


def _holding(run: Run, before: Counts) -> Counts | None:
    now = counts(run.operator.service_folder(CLOUD, GATEWAY))
    run.display.say(f"{GATED.name}: {size(now.from_clients - before.from_clients)} through the gateway")
    return now if now.holds and now.lost > before.lost else None


# --- what the gateway says of it --------------------------------------------------------------------------------------


def first_point_ns(run: Run, plan: MachinePlan) -> int:
    """When the product noted the first recovery point of the machine's reprotect, wall clock."""
    name = item(run, plan)["name"]
    noted = [event["properties"] for event in run.operator.vault(lambda vault: vault.events())]
    of_item = [one for one in noted if one["affectedObjectFriendlyName"] == name]
    times = [moment_ns(one["timeOfOccurrence"]) for one in of_item if one["eventCode"] == "item.protected-to-home"]
    return min(times)


def _sent(run: Run, before: Counts) -> str:
    """What the gateway says of the reprotect, asserted. Raises StageFailed."""
    folder = run.operator.service_folder(CLOUD, GATEWAY)
    killed = msgspec.convert(run.progress.fact(KILLED), Counts)
    after = counted_until(folder, first_point_ns(run, GATED))
    expected = run.progress.fact(EXPECTED)
    part, again, total = judge(expected, before, killed, after)
    differing = sum(_differing(run, plan) for plan in MACHINE_PLANS)
    rpo = max(rpo_s(item(run, plan)) for plan in MACHINE_PLANS)
    return (
        f"{size(differing)} of {size(ALL_BYTES)} differed; {GATED.process_server} was killed at {part:.0%} of "
        f"{GATED.name}'s {size(expected)}, and {size(again)} were sent again, on top of {size(total)}; RPO {rpo:.1f} s"
    )


def judge(expected: int, before: Counts, killed: Counts, after: Counts) -> tuple[float, int, int]:
    """At which part of the bytes that differed the process server was killed, how many bytes were sent again, and how
    many in all but those. Counts of the gateway: before the reprotect, after the kill, at the first recovery point.

    What the gateway threw away was sent to nobody, so it was sent again; it cannot tell what else was.
    Raises StageFailed unless the kill was in the middle, something was sent again, and what was left came after it.
    """
    passed_on = killed.from_clients - killed.lost - before.from_clients + before.lost
    again = after.lost - before.lost
    total = after.from_clients - before.from_clients - again
    if again <= 0:
        raise StageFailed(stage=STAGE, reason="nothing was sent again after the process server was killed")
    part = passed_on / expected
    if not EARLIEST <= part <= LATEST:
        raise StageFailed(stage=STAGE, reason=f"the process server was killed at {part:.0%} of the bytes that differed")
    if total < expected * NEARLY:
        raise StageFailed(stage=STAGE, reason=f"{total} bytes were sent in all, and {expected} differed")
    return part, again, total


def _differing(run: Run, plan: MachinePlan) -> int:
    report: dict[str, Any] | None = item(run, plan)["properties"]["backhaul"]["agentReport"]
    return sum(disk["differing"] for disk in report["disks"]) if report else 0
