"""`backhaul item reprotect`"""

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
    process_server: Annotated[
        str, typer.Option(help="Process server, by id or name.", show_default="a healthy one of the machine's network")
    ] = "",
    without_cancel: Annotated[
        bool,
        typer.Option(
            "--without-cancel",
            help="Where the journal has no room for it: give up that a cancel could bring the old disks back.",
        ),
    ] = False,
    at_once: AtOnce = 4,
    dry_run: DryRun = False,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Replicate machines back to where they came from: the old disks are compared, and only what differs is sent.

    Needs a process server in the machine's network. Says first how much will be sent, and how long that takes; the old
    disks' state is kept until the commit, so that `item cancel` can return to it.

    Example: backhaul item reprotect --network vnet-a
    """
    choice = chosen(items, network)
    if dry_run:
        show_findings("ReverseReplicate", choice, as_json=as_json)
    else:
        if not as_json:
            show_outlook("ReverseReplicate", choice)
        wish = {"processServer": process_server, "cancelGivenUp": without_cancel}
        run_job("ReverseReplicate", choice, wish, at_once=at_once, wait=wait, as_json=as_json)
