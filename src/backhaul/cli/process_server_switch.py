"""`backhaul process-server switch`"""

from __future__ import annotations

from typing import Annotated

import typer

from backhaul.cli.output import AsJson, open_vault, print_json, reporting
from backhaul.client.deployments import Deployments
from backhaul.client.profile import load_profile


@reporting
def run(
    item: Annotated[str, typer.Argument(help="Item, by id or name.")],
    to: Annotated[str, typer.Option("--to", help="Process server, by id or name.")],
    as_json: AsJson = False,
) -> None:
    """Have an item replicate through another process server of its machine's network: at once, without a resync."""
    with Deployments(load_profile()) as deployments:
        deployments.switch(item, to)
    if as_json:
        print_json(open_vault().item(item))
    else:
        typer.echo(f"{item} replicates through {to}.")
