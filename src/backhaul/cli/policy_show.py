"""`backhaul policy show`"""

from __future__ import annotations

from typing import Annotated

import typer

from backhaul.cli.output import AsJson, open_vault, print_fields, print_json, reporting


@reporting
def run(name: Annotated[str, typer.Argument(help="Name of the policy.")], as_json: AsJson = False) -> None:
    """Show a replication policy; times in seconds."""
    policy = open_vault().policy(name)
    if as_json:
        print_json(policy)
    else:
        print_fields(policy["properties"]["backhaul"].items())
