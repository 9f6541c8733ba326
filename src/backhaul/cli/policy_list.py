"""`backhaul policy list`"""

from __future__ import annotations

from backhaul.cli.output import AsJson, open_vault, print_json, print_table, reporting, seconds


@reporting
def run(as_json: AsJson = False) -> None:
    """List replication policies: how often recovery points are made, and how long they are kept."""
    policies = open_vault().policies()
    if as_json:
        print_json(policies)
        return
    known = [policy["properties"]["backhaul"] for policy in policies]
    print_table(
        ("NAME", "POINT EVERY", "KEPT FOR", "MOST POINTS", "RPO ALERT"),
        (
            (one["name"], seconds(one["point_interval_s"]), seconds(one["retention_s"]), one["retention_points"],
             seconds(one["rpo_threshold_s"]))
            for one in known
        ),
    )  # fmt: skip
