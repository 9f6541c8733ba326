"""`backhaul item show`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final

import typer

from backhaul.cli.output import AsJson, open_vault, print_fields, print_json, reporting, seconds, size


@reporting
def run(name: Annotated[str, typer.Argument(help="The item, by id or name.")], as_json: AsJson = False) -> None:
    """Show a protected machine: which copy is true, what acting now would lose, its state, points and disks.

    Everything that can be done now is listed, and for everything else why not, and what would help.
    """
    item = open_vault().item(name)
    if as_json:
        print_json(item)
        return
    known = item["properties"]
    typer.echo(known["truth"]["text"])
    for loss in known["truth"]["losses"]:
        typer.echo(f"  {loss['operation']}: {loss['text']}")
    print_fields(_fields(item["name"], known))


TRACKERS: Final = {"scan": "scan: all disks are read and compared for each point"}
"""How changed blocks are found; those that explain themselves are not listed."""


def _newest(point: dict[str, Any] | None, frozen: dict[str, Any] | None) -> Iterator[tuple[str, Any]]:
    """The newest point: how its image was kept still, what it is consistent for, what it cost the writers."""
    if point is None:
        return
    yield (
        "Newest point",
        f"{point['number']}, {point['time']}, image {point['kind']}, {point['consistency']} consistent",
    )
    held = f"{point['frozenMicroseconds'] / 1000:.1f} ms for the newest point"
    if frozen is not None:
        aim = f"aim: below {frozen['aimPercent']:g} %"
        held += f"; {frozen['percent']:.2f} % of the last {seconds(frozen['seconds'])} ({aim})"
    yield "Writers held", held


def _fields(item: str, known: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    own, details = known["backhaul"], known["providerSpecificDetails"]
    yield "Name", known["friendlyName"]
    yield "Id", item
    yield "State", f"{known['protectionState']}: {known['protectionStateDescription']}"
    yield "Health", known["replicationHealth"]
    yield "RPO", f"{seconds(own['rpo']['seconds'])} {own['rpo']['why']}".strip()
    yield "Policy", known["policyFriendlyName"]
    yield "Generation", own["generation"]
    yield "Process server", details["processServerId"]
    yield "Master target", details["masterTargetId"]
    if own["agentReport"] is not None:
        yield "Tracker", TRACKERS.get(own["agentReport"]["tracker"], own["agentReport"]["tracker"])
    if own["target"] is not None:
        yield "Recovery points", own["target"]["points"]
        yield from _newest(own["target"]["newestPoint"], own.get("frozen"))
    for disk in details["protectedDisks"]:
        compared = f"{disk['resyncProgressPercentage']} % compared, {size(disk['resyncTotalTransferredBytes'])} sent"
        yield f"Disk {disk['diskId']}", f"{size(disk['diskCapacityInBytes'])}, {compared}"
    for error in known["healthErrors"]:
        yield error["errorCode"], f"{error['summaryMessage']}. {error['recommendedAction']}"
    yield "Possible", ", ".join(known["allowedOperations"])
    for operation, reason in known["refusedOperations"].items():
        yield f"Not {operation}", f"{reason['text']} ({reason['code']}). {reason['fix']}"
