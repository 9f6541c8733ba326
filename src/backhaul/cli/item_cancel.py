"""`backhaul item cancel`"""

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
    """Undo a failover, failback or reprotect that is not committed yet.

    The side where the machine ran before goes on from exactly the state it had; what was written since is lost.

    Example: backhaul item cancel web db
    """
    choice = chosen(items, network)
    run_job("CancelFailover", choice, {}, at_once=at_once, wait=wait, as_json=as_json)
