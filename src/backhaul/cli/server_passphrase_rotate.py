"""`backhaul server passphrase rotate`, through the API."""

from __future__ import annotations

import typer

from backhaul.cli.output import open_vault, print_json, reporting


@reporting
def rotate(as_json: bool) -> None:
    """Make a new connection passphrase and print it."""
    text = open_vault().rotate_passphrase()
    if as_json:
        print_json({"passphrase": text})
    else:
        typer.echo(text)
