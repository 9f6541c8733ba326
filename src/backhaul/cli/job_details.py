"""What a job's steps did, as lines for people: estimate and what came of it, integrity report, what was accepted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from backhaul.cli.output import size


def estimate_text(estimate: dict[str, Any]) -> str:
    """An estimate before a job."""
    if estimate["bytes"] is None:
        return str(estimate["basis"])
    return (
        f"About {size(estimate['bytes'])} of {size(estimate['totalBytes'])} differ: {_duration(estimate['seconds'])} "
        f"({estimate['basis']})"
    )


def detail_lines(job: dict[str, Any]) -> Iterator[str]:
    """Of all steps of a job."""
    for task in job["properties"]["tasks"]:
        known = task.get("backhaul", {})
        if "estimate" in known:
            yield f"Estimate: {estimate_text(known['estimate'])}"
        if "actual" in known:
            yield f"Actual: {_actual(known)}"
        if known.get("integrity") and known.get("signed"):
            signed = len(known["signed"]) // 2
            yield f"Integrity report: {known['integrity']}, signed, {signed} bytes kept with this job (--json)"
        if "accepted" in known:
            yield f"Integrity report: {known['accepted']}, and accepted by name"
        if known.get("skipped") and known.get("reason"):
            yield f"{task['friendlyName']}: skipped. {known['reason']}"


def _actual(known: dict[str, Any]) -> str:
    actual, error = known["actual"], known.get("error", {})
    parts = [f"{size(actual['bytes'])} differed, {size(actual['wireBytes'])} travelled, {_duration(actual['seconds'])}"]
    wrong = [
        f"{what} {error[name]:+.0%}"
        for what, name in (("bytes", "bytes"), ("time", "seconds"))
        if error.get(name) is not None
    ]
    return "; against the estimate: ".join([*parts, ", ".join(wrong)]) if wrong else parts[0]


def _duration(value: float) -> str:
    return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min"
