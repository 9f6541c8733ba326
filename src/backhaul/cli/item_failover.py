"""`backhaul item failover`"""

from __future__ import annotations

from typing import Annotated

import typer

from backhaul.cli.item_jobs import (
    AtOnce,
    DryRun,
    MaybeItems,
    Network,
    Wait,
    chosen,
    run_job,
    show_findings,
    show_outlook,
)
from backhaul.cli.output import AsJson, reporting


@reporting
def run(
    items: MaybeItems = None,
    network: Network = "",
    unplanned: Annotated[
        bool,
        typer.Option(
            "--unplanned",
            help="The machine at home is gone: start from a recovery point. What that loses is said first.",
        ),
    ] = False,
    point: Annotated[
        int | None,
        typer.Option(help="Number of a recovery point (`backhaul recovery-point list`).", show_default="the newest"),
    ] = None,
    change: Annotated[
        bool, typer.Option("--change", help="It was failed over and is not committed: start again from another point.")
    ] = False,
    at_once: AtOnce = 4,
    dry_run: DryRun = False,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Start machines in the cloud: planned, which loses nothing, or (--unplanned) from a recovery point.

    A planned failover stops the machine at home and sends what changed last. `item cancel` undoes either until
    `item commit`.

    Examples: backhaul item failover web db, or: backhaul item failover --network home-net --unplanned --dry-run
    """
    if point is not None and not (unplanned or change):
        raise typer.BadParameter("a planned failover ends with its own final point; give --unplanned or --change")
    kind = "ChangePit" if change else "UnplannedFailover" if unplanned else "PlannedFailover"
    choice = chosen(items, network, "" if change else "home")
    if dry_run:
        show_findings(kind, choice, as_json=as_json)
    else:
        if unplanned and not as_json:
            show_outlook(kind, choice)
        run_job(kind, choice, {"point": point}, at_once=at_once, wait=wait, as_json=as_json)
