"""`backhaul item commit`"""

from __future__ import annotations

from typing import Annotated

import typer

from backhaul.cli.item_jobs import AtOnce, DryRun, MaybeItems, Network, Wait, chosen, run_job, show_findings
from backhaul.cli.output import AsJson, reporting


@reporting
def run(
    items: MaybeItems = None,
    network: Network = "",
    accept_integrity: Annotated[
        bool,
        typer.Option(
            "--accept-integrity",
            help="Go on without the integrity report (`backhaul item integrity`), or although it failed.",
        ),
    ] = False,
    at_once: AtOnce = 4,
    dry_run: DryRun = False,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Say that a failover or failback was right, and end the possibility to cancel it.

    The side where the machine ran before is not kept as it was, and the other recovery points end.
    """
    choice = chosen(items, network)
    if dry_run:
        show_findings("Commit", choice, as_json=as_json)
    else:
        wish = {"acceptIntegrity": accept_integrity}
        run_job("Commit", choice, wish, at_once=at_once, wait=wait, as_json=as_json)
