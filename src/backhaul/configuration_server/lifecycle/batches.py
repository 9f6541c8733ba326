"""One job for many items: a parent with a child job each, K of them at once; one failure stops no other.

Invariant: an item's child is made once, in the transaction that notes it in the batch, so a kill of the parent makes
no second one. The parent's one step waits for its children in a thread of the jobs' own; children are started from a
thread beside it, as a workflow may not be started from inside a step.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec
from sqlalchemy import String, Text
from sqlalchemy.orm import Mapped, mapped_column

from backhaul.configuration_server import jobs
from backhaul.configuration_server.errors import BodyWrong, JobCancelled, JobRunning, ResourceUnknown
from backhaul.configuration_server.lifecycle.errors import BatchFailed, LifecycleUnknown
from backhaul.configuration_server.lifecycle.store import set_wish
from backhaul.configuration_server.lifecycle.values import Wish
from backhaul.configuration_server.lifecycle.workflows import WITHOUT_SITES, WORKFLOWS
from backhaul.configuration_server.plane import ControlPlane
from backhaul.configuration_server.records import JobRecord, Record

SEVERAL: Final = "Several"
"""Kind of the parent job."""

MAX_ITEMS: Final = 1000
AT_ONCE: Final = 4
"""Children at once unless the operator says otherwise: each copies or compares disks, which share links and disks."""

MAX_AT_ONCE: Final = 32
LOOK_S: Final = 0.2
_CODE: Final = "BH-"


class Batch(msgspec.Struct, frozen=True):
    """What the parent is to do. `children`: item -> job, or the code for which none could be made.

    cancelled  no child is begun any more
    """

    kind: str
    items: tuple[str, ...]
    wish: Wish
    at_once: int
    account: str
    children: dict[str, str] = {}
    cancelled: bool = False


class BatchRecord(Record):
    """A batch by its id, which is the parent job's subject."""

    __tablename__ = "lifecycle_batch"
    id: Mapped[str] = mapped_column(String(160), primary_key=True)
    batch_json: Mapped[str] = mapped_column(Text)


def begin_batch(plane: ControlPlane, batch: Batch) -> str:
    """Begin the job of many items; the parent's id. Raises BodyWrong, ResourceUnknown."""
    if batch.kind not in WORKFLOWS:
        raise BodyWrong(reason=f"there is no job of kind {batch.kind}")
    if not 1 <= len(batch.items) <= MAX_ITEMS or not 1 <= batch.at_once <= MAX_AT_ONCE:
        raise BodyWrong(reason=f"1 to {MAX_ITEMS} items, 1 to {MAX_AT_ONCE} at once")
    named = {plane.items.get(item).id: None for item in batch.items}
    stored = msgspec.structs.replace(batch, items=tuple(named))
    subject = f"batch-{plane.vault.world.randomness.token(16).hex()}"
    with plane.vault.database.write() as session:
        session.add(BatchRecord(id=subject, batch_json=msgspec.json.encode(stored).decode()))
        job = plane.jobs.add(session, SEVERAL, subject, f"{batch.kind} of {len(named)} items", batch.account)
    plane.runner.start(job, SEVERAL)
    return job


def batch_of(plane: ControlPlane, subject: str) -> Batch:
    """Raises ResourceUnknown."""
    with plane.vault.database.read() as session:
        record = session.get(BatchRecord, subject)
    if record is None:
        raise ResourceUnknown(kind="batch", name=subject)
    return msgspec.json.decode(record.batch_json, type=Batch)


def cancel_batch(plane: ControlPlane, parent: JobRecord) -> None:
    """Begin no further child; what has begun goes on to its end, and the parent ends with it.

    Raises JobNotCancelable when every child has begun.
    """
    with plane.vault.database.write() as session:
        record = session.get_one(BatchRecord, parent.subject)
        batch = msgspec.json.decode(record.batch_json, type=Batch)
        never = {item: JobCancelled.code for item in batch.items if item not in batch.children}
        if not never and not batch.cancelled:
            raise jobs.not_cancelable(parent)
        stopped = msgspec.structs.replace(batch, cancelled=True, children=batch.children | never)
        record.batch_json = msgspec.json.encode(stopped).decode()


def cancel_job(plane: ControlPlane, job: str, account: str) -> JobRecord:
    """Cancel what of a job has not begun; the job as it is then. Raises ResourceUnknown, JobNotCancelable."""
    record = plane.jobs.get(job)
    if record.kind == SEVERAL and record.state == "InProgress":
        cancel_batch(plane, record)
        return plane.jobs.get(job)
    return plane.jobs.cancel(job, account)


def _run(plane: ControlPlane, subject: str) -> None:
    with ThreadPoolExecutor(1, thread_name_prefix="children") as beside:
        _Parent(plane, subject, beside).run()


STEPS: Final = {SEVERAL: (jobs.Step("children", "Do it for each item", _run),)}
"""The parent's kind."""


class _Parent:
    def __init__(self, plane: ControlPlane, subject: str, beside: ThreadPoolExecutor) -> None:
        self._plane, self._subject, self._beside = plane, subject, beside

    def run(self) -> None:
        """Until every child has ended. Raises JobCancelled, or BatchFailed with those that failed."""
        while True:
            batch = batch_of(self._plane, self._subject)
            active = sum(self._is_active(child) for child in batch.children.values())
            waiting = [item for item in batch.items if item not in batch.children]
            for item in waiting[: batch.at_once - active]:
                self._begin(batch, item)
            if not waiting and not active:
                break
            time.sleep(LOOK_S)
        begun = sum(not child.startswith(_CODE) for child in batch.children.values())
        if batch.cancelled and begun < len(batch.items):
            raise JobCancelled(name=batch.kind, done=begun, total=len(batch.items))
        failed = [item for item, child in batch.children.items() if self._failed(child)]
        if failed:
            names = ", ".join(self._name(item) for item in failed)
            raise BatchFailed(item=self._subject, failed=len(failed), total=len(batch.items), names=names)

    def _begin(self, batch: Batch, item: str) -> None:
        plane = self._plane
        try:
            with plane.vault.database.write() as session:
                record = session.get_one(BatchRecord, self._subject)
                if item in msgspec.json.decode(record.batch_json, type=Batch).children:
                    return  # cancelled since it was looked at
                child = plane.jobs.add(session, batch.kind, item, plane.items.get(item).name, batch.account)
                set_wish(session, item, batch.wish, without_sites=batch.kind in WITHOUT_SITES)
                self._note(record, item, child)
        except (JobRunning, LifecycleUnknown, ResourceUnknown) as error:  # the last: its protection was ended meanwhile
            with plane.vault.database.write() as session:
                self._note(session.get_one(BatchRecord, self._subject), item, error.code)
            return
        self._beside.submit(plane.runner.start, child, batch.kind).result()

    def _name(self, item: str) -> str:
        try:
            return self._plane.items.get(item).name
        except ResourceUnknown:
            return item  # its protection has ended

    @staticmethod
    def _note(record: BatchRecord, item: str, child: str) -> None:
        batch = msgspec.json.decode(record.batch_json, type=Batch)
        noted = msgspec.structs.replace(batch, children=batch.children | {item: child})
        record.batch_json = msgspec.json.encode(noted).decode()

    def _is_active(self, child: str) -> bool:
        return not child.startswith(_CODE) and self._plane.jobs.get(child).state in jobs.ACTIVE

    def _failed(self, child: str) -> bool:
        return child.startswith(_CODE) or self._plane.jobs.get(child).state != "Succeeded"
