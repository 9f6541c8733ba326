"""`backhaul process-server delete`"""

from __future__ import annotations

from typing import Annotated

import typer

from backhaul.cli.exit_codes import FAILED
from backhaul.cli.item_jobs import Wait
from backhaul.cli.job_watch import begun
from backhaul.cli.output import AsJson, print_json, reporting
from backhaul.cli.process_server_deploy import print_findings
from backhaul.client.deployments import Deployments
from backhaul.client.profile import load_profile


@reporting
def run(
    name: Annotated[str, typer.Argument(help="Name or id of a deployed process server.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what speaks for and against it, and delete nothing.")
    ] = False,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Delete a deployed process server: its certificate is refused, server, address, disks and quota are given back.

    Refused while items use it, which are listed.
    """
    with Deployments(load_profile()) as deployments:
        known = deployments.get(name)
        findings = deployments.delete_findings(name)["findings"]
        failed = [finding for finding in findings if finding["severity"] == "fail"]
        if dry_run or failed:
            if as_json:
                print_json({"usedBy": known["properties"]["usedBy"], "findings": findings})
            else:
                print_findings(findings if dry_run else failed)
                for item in known["properties"]["usedBy"]:
                    typer.echo(f"Item {item} uses it.")
            if failed:
                raise typer.Exit(FAILED)
            return
        job = deployments.delete(name)
    begun(job, wait=wait, as_json=as_json)
