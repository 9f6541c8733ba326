"""A configuration server's jobs in a process of their own, over a world that is a file.

    python -m lifecycle.job_process FOLDER STATION NUMBER WHEN

Runs the station's job, or goes on with the one that a kill interrupted. With NUMBER above 0 the process ends itself,
as SIGKILL would, before or after (WHEN) that effect of the world. Prints the job's end as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from backhaul.configuration_server.items import Items
from backhaul.configuration_server.jobs import ACTIVE, Jobs, end_runner, failures_of, make_runner
from backhaul.configuration_server.lifecycle.core import begin_job, job_steps
from backhaul.configuration_server.lifecycle.store import StoredItems
from backhaul.configuration_server.lifecycle.values import Item
from backhaul.configuration_server.plane import ControlPlane
from backhaul.configuration_server.records import ItemRecord, ServerRecord
from backhaul.configuration_server.revisions import Revisions
from backhaul.configuration_server.settings import Settings
from backhaul.configuration_server.vault import DEFAULT_POLICY, Vault
from backhaul.links.dialer import Backoff, Redial
from backhaul.replication.control import SourceDisk
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness
from backhaul.replication.values import ItemId
from lifecycle.fake_world import ITEM, World
from lifecycle.stations import JOBS


class DurableWorld(World):
    """A world that is written to its file with each effect, before anything else happens."""

    path: Path
    number = 0
    when = ""
    count = 0

    def effect(self, name: str, apply: Callable[[], None]) -> None:
        if not hasattr(self, "path"):
            return super().effect(name, apply)
        self.count += 1
        if (self.count, "before") == (self.number, self.when):
            os.kill(os.getpid(), signal.SIGKILL)
        super().effect(name, apply)
        self.save()
        if (self.count, "after") == (self.number, self.when):
            os.kill(os.getpid(), signal.SIGKILL)
        return None

    def save(self) -> None:
        """All or nothing."""
        beside = self.path.with_suffix(".new")
        beside.write_bytes(pickle.dumps(self))
        beside.rename(self.path)


class SeenItems:
    """The stored items; the world looks at the newest."""

    def __init__(self, items: StoredItems, world: World) -> None:
        self._items, self._world = items, world

    def load(self, item: ItemId) -> Item:
        self._world.stored = self._items.load(item)
        return self._world.stored

    def change(self, item: ItemId, token: str, make: Callable[[Item], Item]) -> Item:
        self._world.stored = self._items.change(item, token, make)
        return self._world.stored

    def forget(self, item: ItemId) -> None:
        self._items.forget(item)
        self._world.forget(item)


def enter(vault: Vault, items: StoredItems, item: Item) -> None:
    """The records that an item of the station would have."""
    disks = [SourceDisk(disk, disk.name) for disk in item.disks]
    with vault.database.write() as session:
        for server, role in (("agent-home", "agent"), ("ps-home", "process-server"), ("ps-cloud", "process-server")):
            session.merge(ServerRecord(id=server, role=role, name=server, state="registered", built_in=False))
        session.flush()
        session.add(
            ItemRecord(
                id=item.id, name=item.name, policy=DEFAULT_POLICY, agent="agent-home", machine=item.home.machine,
                process_server=item.process_server or "ps-home", created_ns=0, home_json="{}", cloud_json="{}",
                state_json=msgspec.json.encode(item.state).decode(), disks_json=msgspec.json.encode(disks).decode(),
                still_json=msgspec.json.encode(item.still).decode(),
            )
        )  # fmt: skip
        session.flush()
        items.plan(session, item.id, item.home, item.cloud)


def load_world(folder: Path, station: str, number: int, when: str) -> DurableWorld:
    """From its file, or the station's."""
    path = folder / "world"
    if path.exists():
        world = cast(DurableWorld, pickle.loads(path.read_bytes()))  # noqa: S301 - this test wrote it
    else:
        world = cast(DurableWorld, JOBS[station][0]())
        world.__class__ = DurableWorld
        world = cast(DurableWorld, pickle.loads(pickle.dumps(world)))  # noqa: S301 - binds its parts to the new class
        world.effects.clear()
    world.path, world.number, world.when, world.count = path, number, when, 0
    return world


async def main(folder: Path, station: str, number: int, when: str) -> dict[str, Any]:
    """Until the job is over."""
    redial = Redial(RealClock(), RealRandomness(), Backoff())
    vault = Vault(folder / "server", Settings(), RealFiles(), redial)
    revisions = Revisions(vault.database)
    items = StoredItems(vault, revisions)
    world = load_world(folder, station, number, when)
    ports = replace(world.ports, items=SeenItems(items, world))
    jobs = Jobs(vault, job_steps(lambda _: ports))
    plane = cast(ControlPlane, SimpleNamespace(vault=vault, jobs=jobs, items=Items(vault, revisions)))
    plane.runner = make_runner(plane)

    def run() -> dict[str, Any]:
        plane.runner.launch()
        if not jobs.list():
            enter(vault, items, world.stored)
            world.save()
            _, kind, wish = JOBS[station]
            begin_job(plane, ITEM, kind, wish, "admin")
        while (job := jobs.list()[0]).state in ACTIVE:
            time.sleep(0.02)  # polls, as a client does
        failures = [failure.code for failure in failures_of(job)]
        state = items.load(ITEM).state.state if plane.items.list() else "forgotten"
        return {
            "state": job.state, "failures": failures, "item": state, "running": world.running(),
            "effects": [re.sub("job-[0-9a-f]{16}|[0-9a-f]{32}", "JOB", effect) for effect in world.effects],
        }  # fmt: skip

    try:
        return await asyncio.to_thread(run)
    finally:
        await asyncio.to_thread(end_runner)
        vault.close()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]))))
