"""How much a reprotect moved and how long it took, beside what was estimated: kept with its job.

The job itself ends when the agent has been told; replicating is desired state, so this is noted when the first recovery
point has come. Blocking; worker threads.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from backhaul.configuration_server.jobs import Jobs
from backhaul.recovery.estimates import Estimate, error_of

KIND: Final = "ReverseReplicate"
ESTIMATED: Final = "preflight"
"""Step of the job that estimates."""


def note_outcome(jobs: Jobs, item: str, differing: int, wire_bytes: int) -> None:
    """Bytes that differed and that travelled, of the item's newest reprotect; nothing for an item without one."""
    stored = jobs.newest_detail(KIND, item, ESTIMATED)
    age_s = jobs.age_s(KIND, item)
    if age_s is not None and "estimate" in stored and "actual" not in stored:
        jobs.annotate(KIND, item, ESTIMATED, outcome(stored, age_s, differing, wire_bytes))


def outcome(stored: dict[str, Any], seconds: float, differing: int, wire_bytes: int) -> dict[str, Any]:
    """What came of it, and relative errors (0.25: a quarter more than expected) where something had been expected."""
    actual = {"bytes": differing, "wireBytes": wire_bytes, "seconds": round(seconds, 1)}
    if stored.get("estimated") is None:
        return {"actual": actual}
    estimated = msgspec.convert(stored["estimated"], Estimate)
    wrong, expected = error_of(estimated, wire_bytes, seconds), estimated.data_bytes.expected
    relative = differing / expected - 1 if expected else None
    errors = {"bytes": relative, "wireBytes": wrong.bytes_error, "seconds": wrong.seconds_error}
    return {"actual": actual, "error": errors}
