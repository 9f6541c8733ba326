"""Stage `protected`: both machines are copied to the cloud and have recovery points. Called by the stages' runner."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Final

from backhaul.client.errors import JobFailed
from backhaul.demo.display import size
from backhaul.demo.items import await_points, item, rpo_s, sent_bytes
from backhaul.demo.machines import agent_name, find, place_agent
from backhaul.demo.moving import PROTECT, drive
from backhaul.demo.operator import Operator, Session
from backhaul.demo.plan import CLOUD, CLOUD_TARGET, HOME, HOME_TARGET, MACHINE_PLANS, MachinePlan
from backhaul.demo.setting_up import await_healthy, server_name
from backhaul.demo.stages import Run
from backhaul.recovery.item import State

POLICY: Final = "demo"
POINT_INTERVAL_S: Final = 4.0
POINTS_KEPT: Final = 6
"""Each of them is failed over to, later."""

POINTS_BEFORE_GOING_ON: Final = 3

_TARGETS: Final = {HOME: HOME_TARGET, CLOUD: CLOUD_TARGET}
_BEGUN: Final = frozenset(State) - {State.DISCOVERED}


def protect(run: Run) -> str:
    """Both machines replicate to the cloud and have recovery points."""
    operator = run.operator
    values = {"point_interval_s": POINT_INTERVAL_S, "retention_s": 3600.0, "retention_points": POINTS_KEPT}
    operator.vault(lambda vault: vault.create_policy(POLICY, values))
    tell_sites(run)
    targets = {side: await_healthy(run, server_name(side, name))["name"] for side, name in _TARGETS.items()}
    known = {item["properties"]["friendlyName"] for item in operator.vault(lambda vault: vault.items())}
    for plan in MACHINE_PLANS:
        machine = find(operator, HOME, plan.name)
        assert machine is not None, "set-up defined it"
        place_agent(operator, HOME, plan, machine)  # a machine that was off since has other device nodes
        if plan.name not in known:
            agent = await_healthy(run, agent_name(HOME, plan))["name"]
            run.display.say(f"protecting {plan.name}")
            with suppress(JobFailed):  # it is known now, and tried again
                operator.run_job(partial(_begin, plan, agent, targets))
        drive(run, [plan], PROTECT, _BEGUN)
    points = {plan.name: await_points(run, plan, "protected", POINTS_BEFORE_GOING_ON) for plan in MACHINE_PLANS}
    shown = {plan.name: item(run, plan) for plan in MACHINE_PLANS}
    rpo = max(rpo_s(one) for one in shown.values())
    sent = sum(sent_bytes(one) for one in shown.values())
    pace = f"{sum(points.values())} recovery points, one every {POINT_INTERVAL_S:.0f} s"
    return f"{size(sent)} on the wire for the first copy and {pace}; RPO {rpo:.1f} s"


def tell_sites(run: Run) -> None:
    """The configuration server knows both sites and may act on them."""
    operator = run.operator
    for side, kind in ((HOME, "home"), (CLOUD, "cloud")):
        operator.session(partial(_tell, side, kind, run.plan.management(side), operator))


def _tell(side: str, kind: str, address: str, operator: Operator, session: Session) -> None:
    session.lifecycle.set_site(side, kind, address, operator.certificate(side), operator.token(side))


def _begin(plan: MachinePlan, agent: str, targets: dict[str, str], session: Session) -> str:
    wanted = {
        "agent": agent, "policy": POLICY, "cloudNetwork": plan.network, "cloudAgent": agent_name(CLOUD, plan),
        "homeTarget": targets[HOME], "target": targets[CLOUD],
    }  # fmt: skip
    return session.lifecycle.protect_at_sites(plan.name, wanted)
