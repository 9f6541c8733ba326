"""A job of many items in a process of its own: `python -m lifecycle.batch_process FOLDER ITEMS AT_ONCE FAILING`. Prints
what happened as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from backhaul.configuration_server.errors import ResourceUnknown
from backhaul.configuration_server.items import Items
from backhaul.configuration_server.jobs import ACTIVE, Jobs, Step, end_runner, failures_of, make_runner
from backhaul.configuration_server.lifecycle import batches
from backhaul.configuration_server.lifecycle import workflows as w
from backhaul.configuration_server.lifecycle.store import StoredItems
from backhaul.configuration_server.lifecycle.values import Wish
from backhaul.configuration_server.plane import ControlPlane
from backhaul.configuration_server.records import ItemRecord
from backhaul.configuration_server.revisions import Revisions
from backhaul.configuration_server.settings import Settings
from backhaul.configuration_server.vault import Vault
from backhaul.links.dialer import Backoff, Redial
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness
from lifecycle.fake_world import World
from lifecycle.job_process import enter


class Running:
    """Counts the children that run at the same time; each waits until as many as may run do, or it is the last."""

    def __init__(self, at_once: int) -> None:
        self.now = self.most = 0
        self.done: list[str] = []
        self._full = threading.Barrier(at_once)
        self._lock = threading.Lock()

    def child(self, item: str, fails: bool) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self._full.wait(60)
        with self._lock:
            self.now -= 1
        if fails:
            raise ResourceUnknown(kind="something of", name=item)
        self.done.append(item)


async def main(folder: Path, count: int, at_once: int, failing: int) -> dict[str, Any]:
    """Until the parent is over."""
    vault = Vault(folder / "server", Settings(), RealFiles(), Redial(RealClock(), RealRandomness(), Backoff()))
    revisions = Revisions(vault.database)
    items, world, running = StoredItems(vault, revisions), World(), Running(at_once)
    names = [f"{number:032x}" for number in range(count)]

    def child(_: ControlPlane, subject: str) -> None:
        running.child(subject, names.index(subject) == failing)

    kinds = {w.PLANNED: (Step("child", "child", child),), **batches.STEPS}
    jobs = Jobs(vault, kinds)
    plane = cast(ControlPlane, SimpleNamespace(vault=vault, jobs=jobs, items=Items(vault, revisions)))
    plane.runner = make_runner(plane)

    def run() -> dict[str, Any]:
        plane.runner.launch()
        for name in names:
            enter(vault, items, msgspec.structs.replace(world.stored, id=name, name=f"vm{names.index(name)}"))
        parent = batches.begin_batch(plane, batches.Batch(w.PLANNED, tuple(names), Wish(point=7), at_once, "admin"))
        while jobs.get(parent).state in ACTIVE:
            time.sleep(0.02)  # polls, as a client does
        record = jobs.get(parent)
        with vault.database.read() as session:
            assert session.get(ItemRecord, names[0]) is not None
        return {
            "state": record.state, "failures": [failure.message for failure in failures_of(record)],
            "done": sorted(names.index(item) for item in running.done), "most": running.most,
            "children": sorted(job.state for job in jobs.list() if job.id != parent),
            "wishes": [items.load(cast(Any, name)).wish.point for name in names],
        }  # fmt: skip

    try:
        return await asyncio.to_thread(run)
    finally:
        await asyncio.to_thread(end_runner)
        vault.close()


if __name__ == "__main__":
    folder, count, at_once, failing = sys.argv[1:]
    print(json.dumps(asyncio.run(main(Path(folder), int(count), int(at_once), int(failing)))))
