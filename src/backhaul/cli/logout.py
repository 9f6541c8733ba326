"""`backhaul logout`"""

from __future__ import annotations

import typer

from backhaul.cli.output import reporting
from backhaul.client.login import logout


@reporting
def run() -> None:
    """End the session of this machine."""
    logout()
    typer.echo("Logged out.")
