"""`backhaul process-server deploy`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from backhaul.cli.exit_codes import FAILED
from backhaul.cli.item_jobs import Wait
from backhaul.cli.job_watch import follow, say_begun
from backhaul.cli.output import AsJson, open_vault, print_fields, print_json, print_table, reporting
from backhaul.cli.secrets import secret
from backhaul.client.deployments import Deployments
from backhaul.client.profile import load_profile

Resource = dict[str, Any]


@reporting
def run(
    user: Annotated[
        str,
        typer.Option(help="User name of the new server's administrator.", prompt="User name", show_default="asked for"),
    ],
    password_file: Annotated[
        Path | None,
        typer.Option(
            "--password-file", help="File with the administrator's password.", show_default="asked for, not echoed"
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the new server.", show_default="ps-NETWORK")] = "",
    network: Annotated[
        str,
        typer.Option(
            help="Virtual network that the server is for.", show_default="the one that needs a process server"
        ),
    ] = "",
    site: Annotated[str, typer.Option(help="Site of the network.", show_default="that of its machines")] = "",
    subscription: Annotated[str, typer.Option(help="Subscription it is made in.", show_default="the network's")] = "",
    resource_group: Annotated[
        str, typer.Option(help="Resource group it is made in.", show_default="the network's")
    ] = "",
    new_resource_group: Annotated[
        bool, typer.Option("--new-resource-group", help="The resource group does not exist yet, and is made.")
    ] = False,
    region: Annotated[str, typer.Option(help="Region it is made in.", show_default="the network's")] = "",
    subnet: Annotated[str, typer.Option(help="Subnet of its address.", show_default="the network's first")] = "",
    address: Annotated[str, typer.Option(help="Its IP address.", show_default="the next free one")] = "",
    storage_account: Annotated[
        str, typer.Option(help="Storage account of its disks.", show_default="the region's with most room")
    ] = "",
    size: Annotated[str, typer.Option(help="Size of the server.", show_default="the site's smallest")] = "",
    data_port: Annotated[
        int, typer.Option(help="Data transfer port: agents and servers reach it there. Never 443.")
    ] = 9443,
    register: Annotated[
        bool,
        typer.Option(
            "--register", help="It registers by itself, with a one-time token, and is healthy when the job ends."
        ),
    ] = False,
    server_dials: Annotated[
        bool,
        typer.Option(
            "--server-dials", help="The server dials home (through a VPN), instead of home dialling the server."
        ),
    ] = False,
    configuration_server: Annotated[
        str,
        typer.Option(help="Configuration server as the new one reaches it, HOST:PORT.", show_default="this one's name"),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every field, show what was found, and make nothing.")
    ] = False,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Deploy a process server into a virtual network of failed-over machines, so that they have a way home.

    Every field is checked before anything is made, all findings at once. Repeated with the same fields it goes on where
    it stopped, and makes nothing twice.

    Example: backhaul process-server deploy --network vnet-a --user rescue --register
    """
    form: Resource = {
        "user": user, "password": secret("Password of the administrator", password_file, confirm=True),
        "site": site, "subscription": subscription, "resourceGroup": resource_group,
        "newResourceGroup": new_resource_group, "region": region, "network": network, "subnet": subnet,
        "address": address, "storageAccount": storage_account, "size": size, "dataPort": data_port,
        "register": register, "dialling": "server" if server_dials else "home",
        "configurationServer": configuration_server,
    }  # fmt: skip
    with Deployments(load_profile()) as deployments:
        if not network:
            form["network"], offered = _choose(deployments.offers())
            name = name or offered
        name = name or _name_of(deployments, network)
        if dry_run or not _known(deployments, name):
            _judge(deployments, name, form, dry_run=dry_run, as_json=as_json)
        if dry_run:
            return
        job = deployments.deploy(name, form)
        if wait and as_json:
            open_vault().wait_job(job)
        elif wait:
            follow(open_vault(), job, as_json=False)
        shown = deployments.get(name)
    if as_json:
        print_json(shown)
    else:
        _tell(shown["properties"], name, job, wait=wait)


def _choose(offers: list[Resource]) -> tuple[str, str]:
    needing = [offer for offer in offers if not offer["healthy"]]
    if len(needing) != 1:
        names = ", ".join(str(offer["form"]["network"]) for offer in needing) or "none"
        raise typer.BadParameter(f"networks without a healthy process server: {names}", param_hint="--network")
    return str(needing[0]["form"]["network"]), str(needing[0]["name"])


def _name_of(deployments: Deployments, network: str) -> str:
    named = [offer["name"] for offer in deployments.offers() if offer["form"]["network"].lower() == network.lower()]
    return str(named[0]) if named else f"ps-{network}"


def _known(deployments: Deployments, name: str) -> bool:
    """Begun before: what it took itself would be found taken."""
    return any(one["name"].lower() == name.lower() for one in deployments.list())


def _judge(deployments: Deployments, name: str, form: Resource, *, dry_run: bool, as_json: bool) -> None:
    """Show the findings; all in a dry run, else what forbids it. Exits with 1 where something does."""
    found = deployments.validate(name, form)
    findings = found["findings"]
    failed = [finding for finding in findings if finding["severity"] == "fail"]
    if as_json and (dry_run or failed):
        print_json(found)
    elif dry_run or failed:
        if dry_run:
            print_fields((field, value) for field, value in found["form"].items() if value != "")
        print_findings(findings if dry_run else failed)
    if failed:
        raise typer.Exit(FAILED)


def print_findings(findings: list[Resource]) -> None:
    """As a table."""
    rows = [(one["severity"], one["field"], one["code"], one["reason"], one["fix"]) for one in findings]
    print_table(("result", "field", "code", "reason", "fix"), rows)


def _tell(known: Resource, name: str, job: str, *, wait: bool) -> None:
    if not wait:
        say_begun(job)
        return
    where = f"{name} ({known['server']}) at {known['address']}:{known['dataPort']}"
    if known["state"] == "unregistered":
        typer.echo(f"{where} is unregistered. Next, on the server:")
        typer.echo(f"  {known['nextCommand']}")
    else:
        typer.echo(f"{where} is {known['state']}, health {known['health']}.")
