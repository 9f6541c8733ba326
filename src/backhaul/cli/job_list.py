"""`backhaul job list`"""

from __future__ import annotations

from backhaul.cli.output import AsJson, open_vault, print_json, print_table, reporting


@reporting
def run(as_json: AsJson = False) -> None:
    """List jobs (failovers, deployments and the like), newest first."""
    jobs = open_vault().jobs()
    if as_json:
        print_json(jobs)
        return
    rows = [(job["name"], job["properties"]) for job in jobs]
    print_table(
        ("ID", "JOB", "OF", "STATE", "STARTED", "ENDED"),
        (
            (name, known["scenarioName"], known["targetObjectName"], known["state"], known["startTime"],
             known["endTime"])
            for name, known in rows
        ),
    )  # fmt: skip
