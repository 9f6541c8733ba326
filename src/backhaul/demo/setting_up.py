"""Stage `set-up`: two sites, their servers, two machines that write all the time.

Called by the stages' runner.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from backhaul.client.vault import Resource
from backhaul.demo.display import size
from backhaul.demo.machines import (
    agent_name,
    enrol,
    enrol_agent,
    make_at_home,
    place_agent,
    switch_on,
)
from backhaul.demo.operator import await_that
from backhaul.demo.plan import (
    ALL_BYTES,
    ALL_DISKS,
    CLOUD,
    CLOUD_TARGET,
    DATA_PORT,
    HOME,
    HOME_RELAY,
    HOME_TARGET,
    MACHINE_PLANS,
    TARGET_PORT,
)
from backhaul.demo.stages import Run

_SERVERS: Final = (
    (HOME, HOME_RELAY, "process-server", DATA_PORT),
    (HOME, HOME_TARGET, "master-target", TARGET_PORT),
    (CLOUD, CLOUD_TARGET, "master-target", TARGET_PORT),
)


def set_up(run: Run) -> str:
    """Sites, configuration server, process server, master targets, agents, machines."""
    operator = run.operator
    run.display.say("starting home and cloud")
    operator.ensure_sites()
    run.display.say("starting the configuration server")
    passphrase = await_that(lambda: operator.vault(lambda vault: vault.passphrase()), "The configuration server")
    for side, service, kind, port in _SERVERS:
        arguments = [kind, "register", "--name", server_name(side, service), "--data-port", str(port)]
        arguments += ["--listen-host", "{address}", "--address", "{address}"]
        enrol(operator, side, service, arguments, passphrase)
    for plan in MACHINE_PLANS:
        run.display.say(f"installing {plan.name}")
        machine = make_at_home(operator, plan)
        place_agent(operator, HOME, plan, machine)
        switch_on(operator, HOME, machine, "set-up")
        for side in (HOME, CLOUD):
            enrol_agent(operator, side, plan, passphrase)
    await_servers(run, [plan.name for plan in MACHINE_PLANS])
    how = "loop devices with ext4 and SQLite" if run.plan.as_root else "disk images"
    names = " and ".join(plan.name for plan in MACHINE_PLANS)
    return f"{names} write to {ALL_DISKS} disks at home all the time ({size(ALL_BYTES)}, {how})"


def await_servers(run: Run, machines: Collection[str]) -> None:
    """All servers are healthy, and the agents at home of these machines."""
    run.display.say("waiting until every server is healthy")
    for side, service, _, _ in _SERVERS:
        await_healthy(run, server_name(side, service))
    for plan in MACHINE_PLANS:
        if plan.name in machines:
            await_healthy(run, agent_name(HOME, plan))


def server_name(side: str, service: str) -> str:
    """Under which name the configuration server knows a service."""
    return f"{side}-{service}"


def await_healthy(run: Run, name: str) -> Resource:
    """The server of this name, once it is registered and healthy."""

    def look() -> Resource | None:
        for server in run.operator.vault(lambda vault: vault.servers()):
            known = server["properties"]
            if known["friendlyName"] == name and str(known["health"]).lower() == "healthy":
                return server
        return None

    return await_that(look, f"A healthy {name}")
