"""`backhaul job cancel`"""

from __future__ import annotations

from typing import Annotated

import typer

from backhaul.cli.output import AsJson, open_vault, print_json, reporting


@reporting
def run(job: Annotated[str, typer.Argument(help="Id of the job.")], as_json: AsJson = False) -> None:
    """Cancel a job that has not begun, or the items that a job of many has not begun.

    What has begun goes on to its end. A move that has begun is undone for its item, by `backhaul item cancel`.
    """
    shown = open_vault().cancel_job(job)
    if as_json:
        print_json(shown)
        return
    known = shown["properties"]
    over = known["state"] == "Cancelled"
    left = "Cancelled" if over else "nothing more is begun; what has begun goes on"
    typer.echo(f"{known['friendlyName']}: {left}")
