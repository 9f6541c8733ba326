"""`backhaul login`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backhaul.cli.errors import RootsUnreadable
from backhaul.cli.output import reporting
from backhaul.cli.secrets import secret
from backhaul.client.login import login


@reporting
def run(
    server: Annotated[str, typer.Option(help="Configuration server, HOST or HOST:PORT.")],
    ca: Annotated[Path, typer.Option(help="File by which it is recognised: `ca.pem` of its data folder.")],
    user: Annotated[str, typer.Option(help="Account to log in as.")] = "admin",
    password_file: Annotated[
        Path | None, typer.Option(help="File with the password.", show_default="asked for, not echoed")
    ] = None,
    new_password_file: Annotated[
        Path | None,
        typer.Option(help="File with the password that replaces a one-time one.", show_default="asked for, not echoed"),
    ] = None,
) -> None:
    """Begin a session on this machine, for all other commands. A one-time password is changed at once.

    Example: backhaul login --server cs.example.com --ca ca.pem
    """
    try:
        roots = ca.read_text()
    except OSError as error:
        raise RootsUnreadable(file=ca, reason=error.strerror) from None
    made = login(
        f"https://{server}",
        roots,
        user,
        secret("Password", password_file),
        lambda: secret("New password", new_password_file, confirm=True),
    )
    typer.echo(f"Logged in at {made.server} as {made.user}.")
