"""`backhaul process-server show`, `master-target show`, `agent show`"""

from __future__ import annotations

from typing import Annotated

import typer

from backhaul.cli.output import AsJson, open_vault, print_fields, print_json, reporting, size


@reporting
def run(
    name: Annotated[str, typer.Argument(help="The server or agent, by id or name.")], as_json: AsJson = False
) -> None:
    """Show a server, what it says of itself, and its alerts with what to do."""
    server = open_vault().server(name)
    if as_json:
        print_json(server)
        return
    known, status = server["properties"], server["properties"]["status"]
    fields = [
        ("Name", known["friendlyName"]),
        ("Id", server["name"]),
        ("Role", known["role"]),
        ("State", known["state"]),
        ("Health", known["health"]),
        ("Silence", known["silence"]),
        ("Addresses", ", ".join(known["addresses"])),
        ("Version", known["version"]),
        ("Last heartbeat", known["lastHeartbeat"]),
        ("Next", known["nextCommand"]),
    ]
    if status is not None:
        fields += [
            ("Processor", f"{status['cpu_percent']:.0f} %"),
            ("Space free", f"{size(status['space_free'])} of {size(status['space_total'])}"),
            ("Backlog", size(status["backlog_bytes"])),
            ("Peers", ", ".join(status["peers"])),
        ]
    fields += [(alert["code"], f"{alert['message']}. {alert['fix']}") for alert in known["alerts"]]
    print_fields((name, value) for name, value in fields if value)
