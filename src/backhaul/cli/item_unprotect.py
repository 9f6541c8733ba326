"""`backhaul item unprotect`"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from backhaul.cli.exit_codes import FAILED
from backhaul.cli.item_jobs import AtOnce, Choice, MaybeItems, Network, Wait, chosen, run_job
from backhaul.cli.output import AsJson, print_error, print_json, reporting
from backhaul.client.lifecycle import Lifecycle
from backhaul.client.profile import load_profile


@reporting
def run(
    items: MaybeItems = None,
    network: Network = "",
    complete_migration: Annotated[
        bool, typer.Option("--complete-migration", help="The failed-over machine stays in the cloud for good.")
    ] = False,
    purge: Annotated[
        bool,
        typer.Option(
            "--purge", help="Its servers are gone for good: forget the item, and leave behind whatever they still hold."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether this is really wanted.")] = False,
    at_once: AtOnce = 4,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what it throws away, and change nothing.")] = False,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """End the protection of machines. Says what it throws away, and asks.

    Replica and recovery points go, and disks that were made for the replica; the machine, and its own old disks, stay.
    """
    if complete_migration and purge:
        raise typer.BadParameter("give --complete-migration or --purge, not both")
    kind = "CompleteMigration" if complete_migration else "PurgeProtection" if purge else "DisableProtection"
    choice = chosen(items, network)
    with Lifecycle(load_profile()) as lifecycle:
        found = {item: lifecycle.ending(kind, item) for item in choice.names(lifecycle)}
    if as_json and dry_run:
        print_json(found)
    elif not (as_json and yes):
        _show(found)
    if any(one["refused"] for one in found.values()):
        raise typer.Exit(FAILED)
    if dry_run:
        return
    if not yes and not typer.confirm("End the protection?", err=True):
        raise typer.Exit(FAILED)
    run_job(kind, Choice(list(found)), {}, at_once=at_once, wait=wait, as_json=as_json)


def _show(found: dict[str, dict[str, Any]]) -> None:
    """On standard error, as the question is: standard output is for what was done."""
    for item, one in found.items():
        if one["refused"]:
            print_error(one["refused"]["code"], f"{item}: {one['refused']['text']}. {one['refused']['fix']}")
        for lost in one["losses"]:
            typer.echo(f"{item}: {lost}", err=True)
