"""Stages `process-servers` and `cleaned-up`: one process server into each virtual network, and all of it gone again.

One registers by itself, the other by its administrator's hand, who then has it answer behind a gateway that counts
bytes. Called by the stages' runner.
"""

from __future__ import annotations

import os
import shlex
from functools import partial
from typing import Any, Final

import msgspec

from backhaul.client.errors import NotFound
from backhaul.client.vault import Resource
from backhaul.demo.errors import StageFailed
from backhaul.demo.gateway import Order, order, ordered
from backhaul.demo.on_server import on_server
from backhaul.demo.operator import Operator, Session, await_that
from backhaul.demo.plan import CLOUD, DATA_PORT, GATED, GATEWAY, MACHINE_PLANS, SUBSCRIPTION, MachinePlan
from backhaul.demo.setting_up import await_healthy
from backhaul.demo.stages import Run
from backhaul.sites.values import PowerState, Server

USER: Final = "rescue"
LISTED: Final = "site-before"
"""Fact: what the cloud listed before the first process server was deployed."""


def deploy(run: Run) -> str:
    """Two process servers, each registered its own way and healthy."""
    if run.progress.fact(LISTED) is None:
        run.progress.note(**{LISTED: listing(run.operator)})
    for plan in MACHINE_PLANS:
        run.display.say(f"deploying {plan.process_server}")
        ensure_deployed(run, plan)
    gate(run)
    first, second = MACHINE_PLANS
    return (
        f"{first.process_server} in {first.network} registered by itself, {second.process_server} in {second.network} "
        f"by its administrator's hand; both are healthy"
    )


def ensure_deployed(run: Run, plan: MachinePlan) -> None:
    """The network's process server is registered and healthy."""
    name, operator = plan.process_server, run.operator
    known = _settled(operator, name)
    if known is None or known["state"] == "failed":
        form = {
            "user": USER, "password": operator.secrets.server_password, "network": plan.network,
            "register": plan is not GATED,
        }  # fmt: skip
        operator.run_job(partial(_deploy, name, form))
        known = _deployment(operator, name)
    assert known is not None, "it was deployed"
    ensure_running(run, plan)
    if known["state"] == "unregistered":
        _register(run, plan, known["nextCommand"])
    await_healthy(run, name)


def _deploy(name: str, form: Resource, session: Session) -> str:
    return session.deployments.deploy(name, form)


def _settled(operator: Operator, name: str) -> dict[str, Any] | None:
    """As `_deployment`, once the job of a killed run is over. Raises JobFailed."""
    known = _deployment(operator, name)
    if known is None or known["state"] not in ("deploying", "deleting"):
        return known
    operator.await_job(known["job"])
    return _deployment(operator, name)


def _deployment(operator: Operator, name: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = operator.session(lambda session: session.deployments.get(name))["properties"]
    except NotFound:
        return None
    return found


def _register(run: Run, plan: MachinePlan, command: str, *more: str) -> None:
    """On the server itself, with the command that the product names."""
    operator = run.operator
    passphrase = operator.vault(lambda vault: vault.passphrase())
    secrets = {"passphrase-file": passphrase, "password-file": operator.secrets.server_password}
    _, *arguments = shlex.split(command)
    on_server(operator, server_of(operator, plan), [*arguments, *more], secrets)


def server_of(operator: Operator, plan: MachinePlan) -> Server:
    """The deployed server, as its site has it."""
    return next(server for server in operator.site(CLOUD).servers() if server.name == plan.process_server)


def ensure_running(run: Run, plan: MachinePlan) -> None:
    """It is powered on: a site starts a server when it is told to."""
    if server_of(run.operator, plan).power is PowerState.OFF:
        run.operator.site(CLOUD).start_server(plan.process_server, token=f"demo/start/{os.urandom(8).hex()}")


# --- the gateway ------------------------------------------------------------------------------------------------------


def gate(run: Run) -> None:
    """What reaches GATED's process server goes through the gateway: that is the address it tells everybody."""
    operator = run.operator
    server = server_of(operator, GATED)
    gateway = run.plan.service_address(CLOUD, GATEWAY)
    folder = operator.service_folder(CLOUD, GATEWAY)
    if ordered(folder) is None:
        order(folder, Order(server.address, DATA_PORT), run.plan.uid(CLOUD))
    if _announced(run) == [f"{gateway}:{DATA_PORT}"]:
        return
    run.display.say(f"{server.name} is registered again, behind a gateway")
    command = f"backhaul process-server register --configuration-server {run.plan.configuration_server} --user {USER}"
    _register(run, GATED, command, "--address", gateway)
    site = operator.site(CLOUD)
    site.stop_server(server.name, token=f"demo/stop/{os.urandom(8).hex()}")
    site.start_server(server.name, token=f"demo/start/{os.urandom(8).hex()}")
    await_that(lambda: _announced(run) == [f"{gateway}:{DATA_PORT}"], f"{server.name} behind its gateway")
    await_healthy(run, server.name)


def _announced(run: Run) -> list[str]:
    """The addresses at which the configuration server has it."""
    found = run.operator.vault(lambda vault: vault.servers("processServers"))
    known = {one["properties"]["friendlyName"]: one["properties"]["addresses"] for one in found}
    return list(known.get(GATED.process_server, []))


# --- the end ----------------------------------------------------------------------------------------------------------


def delete(run: Run) -> str:
    """Both are deleted; the cloud lists what it listed before."""
    for plan in MACHINE_PLANS:
        run.display.say(f"deleting {plan.process_server}")
        if _settled(run.operator, plan.process_server) is not None:
            run.operator.run_job(partial(_delete, plan.process_server))
    before, after = run.progress.fact(LISTED), listing(run.operator)
    left = "; ".join(f"{what} {before[what]}, now {now}" for what, now in after.items() if now != before[what])
    if left:
        raise StageFailed(stage="cleaned-up", reason=f"the cloud does not list what it listed before: {left}")
    return "both process servers are deleted; the cloud lists the servers, disks, addresses and quota of before"


def _delete(name: str, session: Session) -> str:
    return session.deployments.delete(name)


def listing(operator: Operator) -> dict[str, Any]:
    """All of the cloud that a process server could leave something in; machines' own addresses come and go."""
    site = operator.site(CLOUD)
    taken = [address for network in site.networks() for address in site.addresses(network.name)]
    listed = {
        "servers": site.servers(),
        "quota": [one for one in site.subscriptions() if one.name == SUBSCRIPTION],
        "accounts": site.accounts(),
        "disks": [disk.id for disk in site.disks() if not disk.base],
        "addresses": [address for address in taken if not address.holder.startswith("machine:")],
    }
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(listed))  # as it is read back after a kill
    return found
