"""`backhaul item protect`"""

from __future__ import annotations

from typing import Annotated

import typer

from backhaul.cli.item_jobs import Wait
from backhaul.cli.job_watch import begun
from backhaul.cli.output import AsJson, open_vault, reporting
from backhaul.client.lifecycle import Lifecycle
from backhaul.client.profile import load_profile

WITH_SITES = "With sites (backhaul site add)"


@reporting
def run(
    machine: Annotated[
        str, typer.Argument(metavar="AGENT", help="Agent of the machine (`backhaul agent list`), by id or name.")
    ],
    policy: Annotated[
        str,
        typer.Option(
            help="Replication policy (`backhaul policy list`): how often there are recovery points, how long they stay."
        ),
    ] = "24-hours",
    name: Annotated[str, typer.Option(help="Name to show it under.", show_default="the agent's name")] = "",
    target: Annotated[str, typer.Option(help="Master target that keeps the copy.", show_default="a healthy one")] = "",
    process_server: Annotated[
        str, typer.Option(help="Process server that passes it on.", show_default="a healthy one of the network")
    ] = "",
    disk: Annotated[
        list[str] | None,
        typer.Option(
            help="A disk to be replicated, by the name that its agent gave it. Repeat it for several.",
            show_default="all disks",
        ),
    ] = None,
    cloud_network: Annotated[
        str, typer.Option(help="Virtual network that it is failed over to.", rich_help_panel=WITH_SITES)
    ] = "",
    cloud_site: Annotated[
        str, typer.Option(help="Site of the cloud.", show_default="the only one", rich_help_panel=WITH_SITES)
    ] = "",
    cloud_subscription: Annotated[
        str,
        typer.Option(help="Subscription that it is made in.", show_default="the network's", rich_help_panel=WITH_SITES),
    ] = "",
    cloud_subnet: Annotated[
        str,
        typer.Option(
            help="Subnet of its address there.", show_default="the network's first", rich_help_panel=WITH_SITES
        ),
    ] = "",
    cloud_account: Annotated[
        str, typer.Option(help="Storage account of its disks there.", show_default="none", rich_help_panel=WITH_SITES)
    ] = "",
    cloud_agent: Annotated[
        str,
        typer.Option(
            help="Agent that sends while the machine runs in the cloud.",
            show_default="the same, which travels with its disks",
            rich_help_panel=WITH_SITES,
        ),
    ] = "",
    home_site: Annotated[
        str, typer.Option(help="Site of the home.", show_default="the one with the machine", rich_help_panel=WITH_SITES)
    ] = "",
    home_target: Annotated[
        str,
        typer.Option(
            help="Master target at home, for the way back.",
            show_default="the configuration server's own",
            rich_help_panel=WITH_SITES,
        ),
    ] = "",
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Protect a machine: its disks are compared and copied, then it has recovery points.

    With --cloud-network it can be moved, too: the machine is found at home's site by the id that its agent reports, and
    will be made in that virtual network at a failover. Without, only its recovery points are kept.

    Example: backhaul item protect web --disk root --disk data --cloud-network vnet-a
    """
    placed = {
        "cloudSite": cloud_site, "cloudSubscription": cloud_subscription, "cloudSubnet": cloud_subnet,
        "cloudAccount": cloud_account, "cloudAgent": cloud_agent, "homeSite": home_site, "homeTarget": home_target,
    }  # fmt: skip
    if any(placed.values()) and not cloud_network:
        raise typer.BadParameter("the cloud's virtual network is missing", param_hint="--cloud-network")
    if cloud_network:
        wanted = placed | {
            "agent": machine, "policy": policy, "cloudNetwork": cloud_network, "target": target,
            "processServer": process_server, "disks": disk or [],
        }  # fmt: skip
        with Lifecycle(load_profile()) as lifecycle:
            job = lifecycle.protect_at_sites(name or machine, wanted)
    else:
        job = open_vault().protect(machine, policy, name, target, process_server, disk or [])
    begun(job, wait=wait, as_json=as_json)
