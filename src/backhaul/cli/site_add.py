"""`backhaul site add`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backhaul.cli.errors import CertificateUnreadable
from backhaul.cli.output import reporting
from backhaul.cli.secrets import secret
from backhaul.client.lifecycle import Lifecycle
from backhaul.client.profile import load_profile

KINDS = ("home", "cloud")


@reporting
def run(
    name: Annotated[str, typer.Argument(help="Name to know the site by.")],
    kind: Annotated[str, typer.Option(help="Which side it is: home or cloud.")],
    address: Annotated[str, typer.Option(help="Where its provider's management API answers, HOST:PORT.")],
    certificate_file: Annotated[
        Path, typer.Option("--certificate-file", help="The certificate with which its provider answers, PEM.")
    ],
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            help="File with the token by which the site admits Backhaul.",
            show_default="asked for, not echoed",
        ),
    ] = None,
) -> None:
    """Tell the configuration server of a site, or where it answers now. The token is stored sealed, and never shown."""
    if kind not in KINDS:
        raise typer.BadParameter(f"{kind} is neither home nor cloud", param_hint="--kind")
    try:
        certificate = certificate_file.read_text()
    except OSError as error:
        raise CertificateUnreadable(file=certificate_file, reason=error.strerror) from None
    with Lifecycle(load_profile()) as lifecycle:
        lifecycle.set_site(name, kind, address, certificate, secret("Access token", token_file))
    typer.echo(f"Site {name} ({kind}) is known.")
