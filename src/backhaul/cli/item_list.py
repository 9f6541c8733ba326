"""`backhaul item list`"""

from __future__ import annotations

from backhaul.cli.output import AsJson, open_vault, print_json, print_table, reporting, seconds


@reporting
def run(as_json: AsJson = False) -> None:
    """List protected machines. Each row begins with where the true copy is: only that one may run.

    RPO: age of the newest recovery point that could be failed over to right now.
    """
    items = open_vault().items()
    if as_json:
        print_json(items)
        return
    rows = []
    for item in items:
        known = item["properties"]
        rpo = known["backhaul"]["rpo"]
        rows.append(
            (known["truth"]["authoritative"], known["friendlyName"], known["protectionState"],
             known["replicationHealth"], seconds(rpo["seconds"]), known["policyFriendlyName"], item["name"])
        )  # fmt: skip
    print_table(("TRUE COPY", "NAME", "STATE", "HEALTH", "RPO", "POLICY", "ID"), rows)
