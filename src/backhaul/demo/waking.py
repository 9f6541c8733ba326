"""After a kill of the demo, or a stop of everything: all runs again as far as it should, before a stage goes on.

Invariant: a machine is switched on only where the product says that it runs. In the middle of a move the product has
switched the source off and read its last changes: whoever starts it then makes a second life of it. Called by the
demo's main thread.
"""

from __future__ import annotations

import os

from backhaul.client.errors import NotFound
from backhaul.demo.going_over import CUT
from backhaul.demo.machines import find, place_agent, switch_on
from backhaul.demo.moving import await_running
from backhaul.demo.operator import await_that
from backhaul.demo.plan import CLOUD, HOME, MACHINE_PLANS, MachinePlan
from backhaul.demo.rescue_servers import ensure_running
from backhaul.demo.setting_up import await_servers
from backhaul.demo.stages import Run
from backhaul.recovery.item import State
from backhaul.recovery.refusals import PHASES, Phase
from backhaul.sites.values import PowerState

_ON_THE_WAY = frozenset({Phase.MOVING, Phase.HELD, Phase.CANCELING})
"""The product switches the machine on, or will not before its operator has decided."""


def wake(run: Run) -> None:
    """Sites, servers, process servers, jobs that were begun, and then the machines."""
    operator = run.operator
    operator.ensure_sites()
    run.display.say("waiting for the configuration server")
    await_that(lambda: operator.vault(lambda vault: vault.config()), "The configuration server")
    names = {server.name for server in operator.site(CLOUD).servers()}
    for plan in MACHINE_PLANS:
        if plan.process_server in names:
            ensure_running(run, plan)
    await_running(run)
    places = {plan.name: side for plan in MACHINE_PLANS if (side := runs_at(run, plan)) is not None}
    for plan in MACHINE_PLANS:
        if plan.name in places:
            _wake_machine(run, plan, places[plan.name])
    # In the cloud an agent is reached through its network's process server: the stage that needs it waits for both.
    # While the disaster lasts nobody at home is heard of.
    cut = run.progress.fact(CUT, False)
    await_servers(run, [name for name, side in places.items() if side == HOME and not cut])


def runs_at(run: Run, plan: MachinePlan) -> str | None:
    """The side where the machine runs, as the product says; None: it is on its way, and runs where that ends."""
    try:
        shown = run.operator.vault(lambda vault: vault.item(plan.name))["properties"]
    except NotFound:
        return HOME  # not protected yet
    if PHASES[State(shown["protectionState"])] in _ON_THE_WAY:
        return None
    return HOME if shown["activeLocation"] == "Primary" else CLOUD


def _wake_machine(run: Run, plan: MachinePlan, side: str) -> None:
    operator = run.operator
    machine = await_that(lambda: find(operator, side, plan.name), f"{plan.name} ({side})")
    if machine.power is PowerState.OFF:
        run.display.say(f"switching {plan.name} on")
        switch_on(operator, side, machine, os.urandom(8).hex())
    place_agent(operator, side, plan, machine)
