"""Times as Azure writes them."""

from __future__ import annotations

import datetime


def utc_text(ns: int) -> str | None:
    """`ns` since 1970 in ISO 8601 with `Z`; None for 0, never."""
    if not ns:
        return None
    moment = datetime.datetime.fromtimestamp(ns / 1e9, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
