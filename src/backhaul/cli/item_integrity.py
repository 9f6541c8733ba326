"""`backhaul item integrity`"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from backhaul.cli.exit_codes import FAILED
from backhaul.cli.output import AsJson, print_fields, print_json, reporting, size
from backhaul.client.lifecycle import Lifecycle
from backhaul.client.profile import load_profile


@reporting
def run(item: Annotated[str, typer.Argument(help="The item, by id or name.")], as_json: AsJson = False) -> None:
    """Print the proof that the last planned move lost nothing: what was read on both sides, compared, and signed.

    Exits with 1 unless it passed. The signature is the configuration server's, checked against its CA.
    """
    with Lifecycle(load_profile()) as lifecycle:
        found = lifecycle.integrity(item)
    if as_json:
        print_json(found)
    elif found["report"] is None:
        typer.echo(f"There is no integrity report of {item} yet: {found['reason'] or 'it is being made.'}")
    else:
        print_fields(_fields(found))
    if not found["passed"]:
        raise typer.Exit(FAILED)


def _fields(found: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    report = found["report"]
    yield "Integrity report", f"{report['name'] or report['item']}, generation {report['generation']}"
    yield "Verdict", _verdict(found)
    yield "Made", datetime.fromtimestamp(report["at_ns"] / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    yield "Stopped machine", report["source"]
    yield "Started machine", report["replica"]
    for disk in report["disks"]:
        yield f"Disk {disk['name']}", f"{size(disk['bytes'])} read on both sides, {disk['ranges']} ranges of 16 MiB"
    yield "Compared", f"{size(report['compared_bytes'])}, {report['digests']} digests"
    yield "Differing", f"{report['differing']} ranges on disk, {report['map_differing']} ranges in the target's map"
    for difference in report["differences"]:
        first = difference["range"] * 16
        yield "Differs", f"disk {difference['disk']}, {first} MiB to {first + 16} MiB"
    yield "Signature", f"of the configuration server, good; {len(found['signed']) // 2} signed bytes (--json)"


def _verdict(found: dict[str, Any]) -> str:
    verdict = "passed: both sides hold the same, byte for byte" if found["passed"] else "FAILED: the sides differ"
    return f"{verdict}; accepted by name" if found["state"] == "accepted" else verdict
