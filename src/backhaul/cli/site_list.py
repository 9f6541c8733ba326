"""`backhaul site list`"""

from __future__ import annotations

from backhaul.cli.output import AsJson, print_json, print_table, reporting
from backhaul.client.lifecycle import Lifecycle
from backhaul.client.profile import load_profile


@reporting
def run(as_json: AsJson = False) -> None:
    """List the sites that the configuration server works with."""
    with Lifecycle(load_profile()) as lifecycle:
        sites = lifecycle.sites()
    if as_json:
        print_json(sites)
    else:
        print_table(("NAME", "KIND"), ((site["name"], site["kind"]) for site in sites))
