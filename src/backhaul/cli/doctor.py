"""`backhaul doctor`, through the API, and how its ladders are shown."""

from __future__ import annotations

from typing import Any

import typer

from backhaul.cli.exit_codes import BROKEN_RUNG
from backhaul.cli.output import open_vault, print_json
from backhaul.client.errors import NotFound
from backhaul.client.vault import Vault


def walk(name: str | None) -> list[dict[str, Any]]:
    """The ladder of an item or server, or of all."""
    vault = open_vault()
    return [_walk(vault, name)] if name else _walk_all(vault)


def show(ladders: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print them. Exits with 7 when a rung is broken."""
    if as_json:
        print_json(ladders)
    else:
        for ladder in ladders:
            _print(ladder)
    if not all(ladder["ok"] for ladder in ladders):
        raise typer.Exit(BROKEN_RUNG)


def _walk(vault: Vault, name: str) -> dict[str, Any]:
    try:
        return vault.doctor(name, item=True)
    except NotFound:
        return vault.doctor(name, item=False)


def _walk_all(vault: Vault) -> list[dict[str, Any]]:
    ladders = [vault.doctor(server["name"], item=False) for server in vault.servers()]
    return ladders + [vault.doctor(item["name"], item=True) for item in vault.items()]


def _print(ladder: dict[str, Any]) -> None:
    typer.echo(ladder["subject"])
    for rung in ladder["rungs"]:
        typer.echo(f"  {'ok    ' if rung['ok'] else 'BROKEN'} {rung['rung']}")
        if not rung["ok"]:
            typer.echo(f"         {rung['code']} {rung['reason']}".replace("  ", " "))
            typer.echo(f"         {rung['fix']}")
