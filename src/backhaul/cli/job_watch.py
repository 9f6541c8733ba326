"""`backhaul job watch`"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from backhaul.cli.output import AsJson, open_vault, print_json, reporting
from backhaul.client.vault import Vault, job_error


@reporting
def run(job: Annotated[str, typer.Argument(help="Id of the job.")], as_json: AsJson = False) -> None:
    """Watch a job until it is over; exit code 6 when it failed."""
    follow(open_vault(), job, as_json=as_json)


def begun(job: str, *, wait: bool, as_json: bool) -> None:
    """What a verb says of the job that it began: its steps and its end, or without `wait` how to see them.

    Raises JobFailed.
    """
    if wait:
        follow(open_vault(), job, as_json=as_json)
    elif as_json:
        print_json(open_vault().job(job))
    else:
        say_begun(job)


def say_begun(job: str) -> None:
    """How to see the job that nobody waits for."""
    typer.echo(f"Job {job} was started: backhaul job watch {job}")


def follow(vault: Vault, job: str, *, as_json: bool) -> None:
    """Print each step as it changes, then how the job ended. Raises JobFailed."""
    shown: dict[str, Any] = {}
    printed: dict[str, str] = {}
    for shown in vault.watch_job(job):
        for task in () if as_json else shown["properties"]["tasks"]:
            if printed.get(task["taskId"], "NotStarted") != task["state"]:
                printed[task["taskId"]] = task["state"]
                typer.echo(f"{task['friendlyName']}: {task['state']}")
    if as_json:
        print_json(shown)
    if shown["properties"]["state"] != "Succeeded":
        raise job_error(shown)
    if not as_json:
        typer.echo(f"{shown['properties']['friendlyName']}: Succeeded")
