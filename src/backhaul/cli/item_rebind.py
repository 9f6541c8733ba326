"""`backhaul item rebind`"""

from __future__ import annotations

from typing import Annotated

import typer

from backhaul.cli.item_jobs import Choice, Wait, run_job
from backhaul.cli.output import AsJson, reporting


@reporting
def run(
    item: Annotated[str, typer.Argument(help="The item, by id or name.")],
    machine: Annotated[
        str, typer.Option(help="Id of the machine that is the active one now, as hypervisor or cloud report it.")
    ],
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Say that the running machine's id has rightly changed: only the machine named here replicates from then on.

    Before that a machine with another id is taken for a copy: it stands by and sends nothing. All disks are compared.
    """
    run_job("Rebind", Choice([item]), {"machine": machine}, at_once=1, wait=wait, as_json=as_json)
