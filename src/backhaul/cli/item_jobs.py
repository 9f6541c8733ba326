"""What the verbs that move items share: preflight and its findings, beginning the job, watching it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from backhaul.cli.exit_codes import FAILED
from backhaul.cli.job_details import estimate_text
from backhaul.cli.job_watch import begun
from backhaul.cli.output import print_json, print_table
from backhaul.client.lifecycle import Lifecycle
from backhaul.client.profile import load_profile

MaybeItems = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="ITEM",
        help="Items, by id or name. Several are moved by one job, and one that fails stops no other.",
    ),
]
Network = Annotated[
    str, typer.Option(help="All items of this virtual network, instead of naming them.", show_default="none")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what speaks for and against it, and change nothing.")]
Wait = Annotated[bool, typer.Option(help="Wait until the job has ended, and show its steps.")]
AtOnce = Annotated[int, typer.Option(help="How many items are moved at the same time.", min=1, max=32)]


@dataclass(frozen=True)
class Choice:
    """Items by name, or all of a virtual network; `side`: of these only those that are active there."""

    items: list[str]
    network: str = ""
    side: str = ""

    def names(self, lifecycle: Lifecycle) -> list[str]:
        """Of the items."""
        return self.items or lifecycle.items_of_network(self.network, self.side)

    @property
    def wish(self) -> dict[str, Any]:
        """What the batch's body says of the network."""
        if not self.network:
            return {}
        return {"network": self.network} | ({"activeSide": self.side} if self.side else {})


def chosen(items: list[str] | None, network: str, side: str = "") -> Choice:
    """What the operator named. Exits with 2 unless it is exactly one of items and network."""
    if bool(items) == bool(network):
        raise typer.BadParameter("name items, or a virtual network with --network")
    return Choice(items or [], network, side)


def show_findings(kind: str, choice: Choice, *, as_json: bool) -> None:
    """Every finding before the job, for each item. Exits with 1 where one forbids it."""
    with Lifecycle(load_profile()) as lifecycle:
        shown = {item: lifecycle.preflight(kind, item) for item in choice.names(lifecycle)}
    if as_json:
        print_json(shown)
    else:
        rows = [
            (item, finding["severity"], finding["code"], finding["reason"], finding["fix"])
            for item, found in shown.items()
            for finding in found["findings"]
        ]
        print_table(("item", "result", "code", "reason", "fix"), rows)
        for item, found in shown.items():
            _print_outlook(item, found, err=False)
    if any(finding["severity"] == "fail" for found in shown.values() for finding in found["findings"]):
        raise typer.Exit(FAILED)


def show_outlook(kind: str, choice: Choice) -> None:
    """What the job will lose and move, for each item, on standard error: standard output is for what was done."""
    with Lifecycle(load_profile()) as lifecycle:
        for item in choice.names(lifecycle):
            _print_outlook(item, lifecycle.preflight(kind, item), err=True)


def _print_outlook(item: str, found: dict[str, Any], *, err: bool) -> None:
    if found["loses"]:
        typer.echo(f"{item}: {found['loses']}", err=err)
    if found["estimate"]:
        typer.echo(f"{item}: {estimate_text(found['estimate'])}", err=err)


def run_job(kind: str, choice: Choice, wish: dict[str, Any], *, at_once: int, wait: bool, as_json: bool) -> None:
    """Begin the job, and follow it to its end. Raises JobFailed."""
    many = len(choice.items) != 1
    with Lifecycle(load_profile()) as lifecycle:
        job = lifecycle.begin(kind, choice.items, wish | choice.wish | ({"atOnce": at_once} if many else {}))
    begun(job, wait=wait, as_json=as_json)
