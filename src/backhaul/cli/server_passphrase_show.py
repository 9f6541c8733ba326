"""`backhaul server passphrase show`, through the API."""

from __future__ import annotations

import typer

from backhaul.cli.output import open_vault, print_json, reporting


@reporting
def show(as_json: bool) -> None:
    """Print the connection passphrase."""
    text = open_vault().passphrase()
    if as_json:
        print_json({"passphrase": text})
    else:
        typer.echo(text)
