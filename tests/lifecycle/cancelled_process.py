"""Jobs that are cancelled, in a process of their own, as DBOS is one per process: `FOLDER`.

Prints what happened as JSON. A job that is cancelled before its workflow begins; and a job of many that is cancelled
while its first child runs.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
from dbos import DBOS

from backhaul.configuration_server.errors import JobNotCancelable
from backhaul.configuration_server.items import Items
from backhaul.configuration_server.jobs import ACTIVE, Jobs, Step, end_runner, failures_of, make_runner
from backhaul.configuration_server.lifecycle import batches
from backhaul.configuration_server.lifecycle import workflows as w
from backhaul.configuration_server.lifecycle.store import StoredItems
from backhaul.configuration_server.lifecycle.values import Wish
from backhaul.configuration_server.plane import ControlPlane
from backhaul.configuration_server.revisions import Revisions
from backhaul.configuration_server.settings import Settings
from backhaul.configuration_server.vault import Vault
from backhaul.links.dialer import Backoff, Redial
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness
from lifecycle.fake_world import World
from lifecycle.job_process import enter


class Cancelled:
    """A control plane whose moves do nothing but tell that they ran; the first of a batch has the batch cancelled."""

    def __init__(self, folder: Path) -> None:
        world = Redial(RealClock(), RealRandomness(), Backoff())
        self.vault = Vault(folder / "server", Settings(), RealFiles(), world)
        revisions = Revisions(self.vault.database)
        self.items = StoredItems(self.vault, revisions)
        self.ran: list[str] = []
        self.parent = ""
        kinds = {w.PLANNED: (Step("move", "move", self._move),), **batches.STEPS}
        self.jobs = Jobs(self.vault, kinds)
        plane = SimpleNamespace(vault=self.vault, jobs=self.jobs, items=Items(self.vault, revisions))
        self.plane = cast(ControlPlane, plane)
        self.plane.runner = make_runner(self.plane)

    def _move(self, plane: ControlPlane, subject: str) -> None:
        self.ran.append(subject)
        if self.parent:
            batches.cancel_job(plane, self.parent, "admin")

    def before_it_begins(self) -> dict[str, Any]:
        """Cancelled between its record and its workflow."""
        with self.vault.database.write() as session:
            job = self.jobs.add(session, w.PLANNED, "subject", "web", "admin")
        batches.cancel_job(self.plane, job, "admin")
        self.plane.runner.start(job, w.PLANNED)
        result: Any = DBOS.retrieve_workflow(job).get_result()
        with self.vault.database.write() as session:  # the subject is free again
            again = self.jobs.add(session, w.PLANNED, "subject", "web", "admin")
        self.plane.runner.start(again, w.PLANNED)
        DBOS.retrieve_workflow(again).get_result()
        try:
            batches.cancel_job(self.plane, again, "admin")
            refused = ""
        except JobNotCancelable as error:
            refused = error.code
        states = [self.jobs.get(one).state for one in (job, again)]
        return {"result": result, "states": states, "ran": self.ran.count("subject"), "refused": refused}

    def of_many(self) -> dict[str, Any]:
        """Cancelled while the first of three runs, one at a time."""
        names = [f"{number:032x}" for number in range(3)]
        item = World().stored
        for name in names:
            enter(self.vault, self.items, msgspec.structs.replace(item, id=name, name=f"vm{names.index(name)}"))
        self.ran.clear()
        batch = batches.Batch(w.PLANNED, tuple(names), Wish(), 1, "admin")
        # The parent's id is known before its first child runs: it is the newest job when that is asked for.
        self.parent = self._begun(batch)
        while self.jobs.get(self.parent).state in ACTIVE:
            time.sleep(0.02)  # polls, as a client does
        record = self.jobs.get(self.parent)
        children = batches.batch_of(self.plane, record.subject).children
        return {
            "state": record.state, "failures": [failure.message for failure in failures_of(record)],
            "ran": [names.index(one) for one in self.ran],
            "children": [children[name] if children[name].startswith("BH-") else "job" for name in names],
            "first": self.jobs.get(children[names[0]]).state,
        }  # fmt: skip

    def _begun(self, batch: batches.Batch) -> str:
        """Begin the batch with its runner held back until the parent is known here."""
        start, later = self.plane.runner.start, []
        cast(Any, self.plane).runner = SimpleNamespace(start=lambda *job: later.append(job))
        parent = batches.begin_batch(self.plane, batch)
        cast(Any, self.plane).runner = SimpleNamespace(start=start)
        self.parent = parent
        for job in later:
            start(*job)
        return parent


async def main(folder: Path) -> dict[str, Any]:
    """Both."""
    made = Cancelled(folder)

    def run() -> dict[str, Any]:
        made.plane.runner.launch()
        return {"one": made.before_it_begins(), "many": made.of_many()}

    try:
        return await asyncio.to_thread(run)
    finally:
        await asyncio.to_thread(end_runner)
        made.vault.close()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(Path(sys.argv[1])))))
