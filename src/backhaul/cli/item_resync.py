"""`backhaul item resync`"""

from __future__ import annotations

from backhaul.cli.item_jobs import AtOnce, MaybeItems, Network, Wait, chosen, run_job
from backhaul.cli.output import AsJson, reporting


@reporting
def run(
    items: MaybeItems = None,
    network: Network = "",
    at_once: AtOnce = 4,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Compare all disks anew with their copies, and send what differs. Recovery points stay.

    The job ends when the comparing has begun. The item is `verifying` until it has ended, and `protected` then.
    """
    choice = chosen(items, network)
    run_job("RepairReplication", choice, {}, at_once=at_once, wait=wait, as_json=as_json)
