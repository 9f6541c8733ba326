"""The replicated items as the API shows them, and what the demo reads of that. Called by stages."""

from __future__ import annotations

import datetime
from typing import Any, Final

from backhaul.client.vault import Resource
from backhaul.demo.operator import await_that
from backhaul.demo.plan import MachinePlan
from backhaul.demo.stages import Run

_MS_NS: Final = 1_000_000
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def item(run: Run, plan: MachinePlan) -> Resource:
    """The item of a machine, as the API shows it now."""
    return run.operator.vault(lambda vault: vault.item(plan.name))


def state(shown: Resource) -> str:
    """An item's state."""
    return str(shown["properties"]["protectionState"])


def rpo_s(shown: Resource) -> float:
    """Its RPO; infinite where it has none."""
    seconds = shown["properties"]["backhaul"]["rpo"]["seconds"]
    return float("inf") if seconds is None else float(seconds)


def sent_bytes(shown: Resource) -> int:
    """What its agent has put on the wire since it was started, compressed and sealed."""
    report = shown["properties"]["backhaul"]["agentReport"]
    return int(report["sent_bytes"]) if report else 0


def disks_of(shown: Resource) -> list[dict[str, Any]]:
    """Its disks with their progress."""
    found: list[dict[str, Any]] = shown["properties"]["providerSpecificDetails"]["protectedDisks"]
    return found


def points(run: Run, plan: MachinePlan) -> list[tuple[int, int]]:
    """Numbers and barriers (ns, rounded down to ms) of its recovery points, oldest first."""
    found: list[Resource] = run.operator.vault(lambda vault: vault.points(plan.name))
    known = [one["properties"]["backhaul"] for one in found]
    return sorted((one["number"], moment_ns(one["time"])) for one in known)


def await_points(run: Run, plan: MachinePlan, wanted: str, count: int) -> int:
    """The item is in this state and has so many recovery points, by its target's last word; how many it has."""

    def look() -> int | None:
        shown = item(run, plan)
        done = ", ".join(f"{disk['diskId']} {disk['resyncProgressPercentage']} %" for disk in disks_of(shown))
        run.display.say(f"{plan.name}: {state(shown)}; compared {done}")
        target = shown["properties"]["backhaul"]["target"]
        found = int(target["points"]) if target else 0
        return found if state(shown) == wanted and found >= count else None

    return await_that(look, f"{count} recovery points of {plan.name}")


def moment_ns(text: str) -> int:
    """A time of the API, rounded down to ms."""
    moment = datetime.datetime.fromisoformat(text)
    return int((moment - _EPOCH) / datetime.timedelta(milliseconds=1)) * _MS_NS
