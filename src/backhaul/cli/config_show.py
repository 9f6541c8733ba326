"""`backhaul config show`, through the API."""

from __future__ import annotations

from backhaul.cli.output import open_vault, print_fields, print_json


def show(*, as_json: bool) -> None:
    """Print the configuration server's settings in force."""
    config = open_vault().config()
    if as_json:
        print_json(config)
        return
    settings = config.pop("settings")
    print_fields((*config.items(), *settings.items()))
