"""`backhaul job show`"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from backhaul.cli.job_details import detail_lines
from backhaul.cli.output import AsJson, open_vault, print_fields, print_json, print_table, reporting


@reporting
def run(job: Annotated[str, typer.Argument(help="Id of the job.")], as_json: AsJson = False) -> None:
    """Show a job with its steps, and why it failed."""
    shown = open_vault().job(job)
    if as_json:
        print_json(shown)
    else:
        print_job(shown)


def print_job(job: dict[str, Any]) -> None:
    """A job for people."""
    known = job["properties"]
    print_fields((("Job", known["friendlyName"]), ("Id", job["name"]), ("State", known["state"])))
    print_table(
        ("STEP", "STATE", "STARTED", "ENDED"),
        ((task["friendlyName"], task["state"], task["startTime"], task["endTime"]) for task in known["tasks"]),
    )
    for line in detail_lines(job):
        typer.echo(line)
    for error in known["errors"]:
        details = error["serviceErrorDetails"]
        typer.echo(f"{details['code']}: {details['message']} {details['recommendedAction']}")
