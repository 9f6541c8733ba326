"""`backhaul recovery-point list`"""

from __future__ import annotations

from typing import Annotated

import typer

from backhaul.cli.output import AsJson, open_vault, print_json, print_table, reporting, size


@reporting
def run(item: Annotated[str, typer.Argument(help="Item, by id or name.")], as_json: AsJson = False) -> None:
    """List the moments to which an item can be put back, newest first, as its master target has them now."""
    points = open_vault().points(item)
    if as_json:
        print_json(points)
        return
    known = [point["properties"]["backhaul"] for point in points]
    print_table(
        ("NUMBER", "TIME", "IMAGE", "CONSISTENCY", "FROZEN", "BYTES", "LABEL"),
        (
            (point["number"], point["time"], point["kind"], point["consistency"],
             f"{point['frozenMicroseconds'] / 1000:.1f} ms", size(point["bytes"]), point["label"])
            for point in known
        ),
    )  # fmt: skip
