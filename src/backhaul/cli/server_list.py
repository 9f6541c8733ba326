"""`backhaul process-server list`, `master-target list`, `agent list`"""

from __future__ import annotations

from collections.abc import Callable

from backhaul.cli.output import AsJson, open_vault, print_json, print_table, reporting

COLUMNS = ("NAME", "ID", "STATE", "HEALTH", "ADDRESS", "NETWORK", "LAST HEARTBEAT", "NEXT")


def verb(kind: str) -> Callable[[bool], None]:
    """The verb for a kind of servers."""

    @reporting
    def run(as_json: AsJson = False) -> None:
        """List what is registered or waits to be, with its health now, and what to do next where there is something."""
        servers = open_vault().servers(kind)
        if as_json:
            print_json(servers)
            return
        rows = []
        for server in servers:
            known = server["properties"]
            health = known["health"] + (f" ({known['silence']})" if known["silence"] else "")
            where = ", ".join(known["addresses"])
            rows.append(
                (known["friendlyName"], server["name"], known["state"], health, where, known["network"],
                 known["lastHeartbeat"], known["nextCommand"])
            )  # fmt: skip
        print_table(COLUMNS, rows)

    return run
