"""`backhaul item failback`"""

from __future__ import annotations

from backhaul.cli.item_jobs import AtOnce, DryRun, MaybeItems, Network, Wait, chosen, run_job, show_findings
from backhaul.cli.output import AsJson, reporting


@reporting
def run(
    items: MaybeItems = None,
    network: Network = "",
    at_once: AtOnce = 4,
    dry_run: DryRun = False,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Bring machines home that run in the cloud and are replicated home (`item reprotect`).

    What changed last is sent, the cloud machine is stopped for good, the one at home starts, and both sides' disks are
    compared. `item cancel` undoes it until `item commit`.

    Example: backhaul item failback --network vnet-a
    """
    choice = chosen(items, network, "cloud")
    if dry_run:
        show_findings("PlannedFailover", choice, as_json=as_json)
    else:
        run_job("PlannedFailover", choice, {}, at_once=at_once, wait=wait, as_json=as_json)
