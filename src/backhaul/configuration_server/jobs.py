"""Jobs: DBOS workflows on the records' own database, with a record each that shows how far they are.

A job is a list of steps; a step reads the world again before it acts, so that a kill inside it leaves one effect.
Invariants: a workflow's arguments and results are ids and error codes, never secrets; a job's record and its workflow
have one id, and a record without a workflow (a kill between the two) gets one at the next start; at most one job of a
subject runs at a time (an index of the records is the lock); a job that is cancelled before its first step does
nothing. Steps run in DBOS's threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
from dbos import DBOS, DBOSConfig, DBOSConfiguredInstance, DBOSPortableJSONSerializer, SetWorkflowID
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from backhaul.configuration_server.errors import (
    JobCancelled,
    JobNotCancelable,
    JobRunning,
    ResourceUnknown,
    ServerSilent,
)
from backhaul.configuration_server.records import JobRecord
from backhaul.configuration_server.vault import Vault, note
from backhaul.links.errors import LinkError
from backhaul.replication.errors import BackhaulError
from backhaul.sites.errors import SiteUnreachable

if TYPE_CHECKING:
    from backhaul.configuration_server.plane import ControlPlane

WORKFLOWS_VERSION: Final = "2"
"""Raised when a kind's steps change so that a half-done job of before could not be gone on with."""

PROTECT: Final = "Protect"
"""Kinds of jobs; their steps are in the module of each."""

MAX_SHOWN: Final = 1000
"""Jobs of one answer; at most one of an item runs."""

EXECUTOR: Final = "configuration-server"
TRIES: Final = 6
FIRST_WAIT_S: Final = 1.0
"""A step whose server or site is silent is tried again after 1, 2, 4, 8 and 16 s; then the job may be repeated."""

ACTIVE: Final = ("NotStarted", "InProgress")
CANCELLED: Final = "Cancelled"
MOVES: Final = frozenset({"PlannedFailover", "UnplannedFailover", "ChangePit", "ReverseReplicate"})
"""Kinds that leave an item in a state from which it can be brought back."""

_log = structlog.get_logger(__name__)


class Task(msgspec.Struct):
    """One step as shown. Times in nanoseconds since 1970 UTC, 0: not yet. `detail`: what it did, a JSON object."""

    name: str
    title: str
    state: str = "NotStarted"
    started_ns: int = 0
    ended_ns: int = 0
    detail: str = ""


class Failure(msgspec.Struct, frozen=True):
    """Why a step failed. `passing`: it may work if it is tried again."""

    code: str
    message: str
    fix: str
    passing: bool


@dataclass(frozen=True, slots=True)
class Step:
    """`run` is given the control plane and the job's subject; it may be called again after any failure. What it
    answers, a JSON object without secrets, is kept with the job.
    """

    name: str
    title: str
    run: Callable[[ControlPlane, str], str | None]


Kinds = Mapping[str, Sequence[Step]]


class Jobs:
    """The jobs' records."""

    def __init__(self, vault: Vault, kinds: Kinds) -> None:
        self._vault, self.kinds = vault, kinds

    def add(self, session: Session, kind: str, subject: str, name: str, account: str) -> str:
        """A job that is to be run, in the caller's transaction; `JobRunner.start` follows. Raises JobRunning."""
        now = self._vault.clock.wall_ns()
        tasks = [Task(step.name, step.title) for step in self.kinds[kind]]
        record = JobRecord(
            id=self._vault.world.randomness.token(16).hex(),
            kind=kind,
            subject=subject,
            subject_name=name,
            state="NotStarted",
            account=account,
            tasks_json=msgspec.json.encode(tasks).decode(),
            created_ns=now,
        )
        session.add(record)
        try:
            session.flush()
        except IntegrityError as error:
            raise JobRunning(name=name) from error
        note(session, now, "job", "job.created", record.id, f"{kind} of {name} was asked for by {account}.")
        return record.id

    def list(self) -> Sequence[JobRecord]:
        """The newest jobs, newest first; those that run are among them."""
        with self._vault.database.read() as session:
            return session.scalars(select(JobRecord).order_by(JobRecord.created_ns.desc()).limit(MAX_SHOWN)).all()

    def get(self, job: str) -> JobRecord:
        """Raises ResourceUnknown."""
        with self._vault.database.read() as session:
            record = session.get(JobRecord, job.lower())
        if record is None:
            raise ResourceUnknown(kind="job", name=job)
        return record

    def begin(self, job: str) -> bool:
        """The job's first step is about to run; false where it was cancelled before. Again changes nothing."""
        with self._vault.database.write() as session:
            record = session.get_one(JobRecord, job)
            if record.state in ACTIVE:
                record.state = "InProgress"
            return record.state in ACTIVE

    def cancel(self, job: str, account: str) -> JobRecord:
        """End a job that has not begun; one that is cancelled already stays so. Raises ResourceUnknown,
        JobNotCancelable.
        """
        now = self._vault.clock.wall_ns()
        with self._vault.database.write() as session:
            record = session.get(JobRecord, job.lower())
            if record is None:
                raise ResourceUnknown(kind="job", name=job)
            if record.state == CANCELLED:
                return record
            if record.state != "NotStarted":
                raise not_cancelable(record)
            record.state, record.ended_ns = CANCELLED, now
            text = f"{record.kind} of {record.subject_name}: cancelled by {account} before it began."
            note(session, now, "job", "job.cancelled", record.id, text)
        return record

    def mark(self, job: str, step: str, state: str, detail: str = "") -> None:
        """A step begins or has ended, having done what `detail` says."""
        now = self._vault.clock.wall_ns()
        with self._vault.database.write() as session:
            record = session.get_one(JobRecord, job)
            tasks = tasks_of(record)
            for task in tasks:
                if task.name == step:
                    task.state = state
                    task.started_ns = task.started_ns or now
                    task.ended_ns = 0 if state == "InProgress" else now
                    task.detail = detail or task.detail
            record.state, record.started_ns = "InProgress", record.started_ns or now
            record.tasks_json = msgspec.json.encode(tasks).decode()

    def newest_detail(self, kind: str, subject: str, step: str) -> dict[str, Any]:
        """What a step of the newest job of this kind and subject did; empty where there is none."""
        with self._vault.database.read() as session:
            record = _newest(session, kind, subject)
        details = [task.detail for task in tasks_of(record) if task.name == step] if record else []
        known: dict[str, Any] = msgspec.json.decode((details or [""])[0] or "{}")
        return known

    def age_s(self, kind: str, subject: str) -> float | None:
        """Seconds since the newest job of this kind and subject began; None where there is none."""
        with self._vault.database.read() as session:
            record = _newest(session, kind, subject)
        return (self._vault.clock.wall_ns() - record.started_ns) / 1e9 if record and record.started_ns else None

    def annotate(self, kind: str, subject: str, step: str, values: dict[str, Any]) -> None:
        """Add to what a step of the newest job of this kind and subject did; nothing where there is no such job."""
        with self._vault.database.write() as session:
            record = _newest(session, kind, subject)
            if record is None:
                return
            tasks = tasks_of(record)
            for task in tasks:
                if task.name == step:
                    known = msgspec.json.decode(task.detail or "{}", type=dict[str, Any])
                    task.detail = msgspec.json.encode(known | values).decode()
            record.tasks_json = msgspec.json.encode(tasks).decode()

    def end(self, job: str, failure: Failure | None) -> None:
        """The job is over; again changes nothing."""
        now = self._vault.clock.wall_ns()
        with self._vault.database.write() as session:
            record = session.get_one(JobRecord, job)
            if record.ended_ns:
                return
            record.state, record.ended_ns = _end_of(failure), now
            if failure:
                record.errors_json = msgspec.json.encode([failure]).decode()
            text = f"{record.kind} of {record.subject_name}: " + (failure.message if failure else "succeeded.")
            severity = "Critical" if record.state == "Failed" else "OK"
            note(session, now, "job", f"job.{record.state.lower()}", job, text, severity)


def running_of(session: Session, subject: str) -> str | None:
    """Id of the one job of this subject that runs: the records' index allows no second one."""
    query = select(JobRecord.id).where(JobRecord.subject == subject, JobRecord.state.in_(ACTIVE))
    return session.scalars(query).one_or_none()


def _newest(session: Session, kind: str, subject: str) -> JobRecord | None:
    query = select(JobRecord).where(JobRecord.kind == kind, JobRecord.subject == subject)
    return session.scalars(query.order_by(JobRecord.created_ns.desc()).limit(1)).first()


def _end_of(failure: Failure | None) -> str:
    if failure is None:
        return "Succeeded"
    return CANCELLED if failure.code == JobCancelled.code else "Failed"


def not_cancelable(record: JobRecord) -> JobNotCancelable:
    """Why a job that has begun cannot be cancelled, and what can be done instead."""
    if record.state not in ACTIVE:
        advice = "Nothing to do: see `backhaul job show`."
        return JobNotCancelable(name=record.subject_name, kind=record.kind, state="is over", advice=advice)
    advice = "Wait for it to end: `backhaul job watch`."
    if record.kind in MOVES:
        advice = f"{advice} Then go back to the side before with `backhaul item cancel {record.subject_name}`."
    return JobNotCancelable(name=record.subject_name, kind=record.kind, state="has begun", advice=advice)


def tasks_of(record: JobRecord) -> list[Task]:
    """The job's steps."""
    return msgspec.json.decode(record.tasks_json, type=list[Task])


def failures_of(record: JobRecord) -> list[Failure]:
    """Why the job failed."""
    return msgspec.json.decode(record.errors_json, type=list[Failure])


@DBOS.dbos_class()
class JobRunner(DBOSConfiguredInstance):
    """Runs jobs as workflows. One per process, as DBOS is."""

    def __init__(self, plane: ControlPlane) -> None:
        super().__init__("jobs")
        self._plane = plane

    def launch(self) -> None:
        """Start DBOS, which goes on with what a kill interrupted; then start what has no workflow yet."""
        DBOS.launch()
        for record in self._plane.jobs.list():
            if record.state in ACTIVE:
                self.start(record.id, record.kind)

    def start(self, job: str, kind: str) -> None:
        """Run a job whose record is stored; one that has a workflow already is not run twice."""
        with SetWorkflowID(job):
            DBOS.start_workflow(self.run, job, kind)

    @DBOS.workflow()
    def run(self, job: str, kind: str) -> str:
        """The workflow; its result is the code of the failure, empty for none."""
        if not self.begin(job):
            return JobCancelled.code
        for step in self._plane.jobs.kinds[kind]:
            for attempt in range(TRIES):
                failed = self.perform(job, kind, step.name)
                if not failed or not failed["passing"]:
                    break
                DBOS.sleep(FIRST_WAIT_S * 2**attempt)
            if failed:
                self.finish(job, failed)
                return str(failed["code"])
        self.finish(job, {})
        return ""

    @DBOS.step()
    def begin(self, job: str) -> bool:
        """Whether the job is still to be run."""
        return self._plane.jobs.begin(job)

    @DBOS.step()
    def perform(self, job: str, kind: str, name: str) -> dict[str, Any]:
        """One step; what it failed with, empty for nothing."""
        plane = self._plane
        step = next(step for step in plane.jobs.kinds[kind] if step.name == name)
        plane.jobs.mark(job, name, "InProgress")
        try:
            detail = step.run(plane, plane.jobs.get(job).subject)
        except BackhaulError as error:
            passing = isinstance(error, ServerSilent | SiteUnreachable | LinkError)
            _log.warning("job.step_failed", job=job, step=name, code=error.code, reason=error.message)
            plane.jobs.mark(job, name, "Failed")
            failure: dict[str, Any] = msgspec.to_builtins(Failure(error.code, error.message, error.advice, passing))
            return failure
        except Exception:
            _log.exception("job.step_defect", job=job, step=name)
            plane.jobs.mark(job, name, "Failed")
            defect = BackhaulError()
            return {"code": defect.code, "message": defect.message, "fix": defect.advice, "passing": False}
        plane.jobs.mark(job, name, "Succeeded", detail or "")
        return {}

    @DBOS.step()
    def finish(self, job: str, failed: dict[str, Any]) -> None:
        """Note how the job ended."""
        self._plane.jobs.end(job, msgspec.convert(failed, Failure) if failed else None)


def make_runner(plane: ControlPlane) -> JobRunner:
    """Configure DBOS on the records' file, which is in WAL mode by now, and register the workflows."""
    config: DBOSConfig = {
        "name": "backhaul",
        "system_database_url": f"sqlite:///{plane.vault.database.path}",
        "executor_id": EXECUTOR,
        "application_version": WORKFLOWS_VERSION,
        "log_level": "WARNING",
        "serializer": DBOSPortableJSONSerializer(),
    }
    DBOS(config=config)
    return JobRunner(plane)


def end_runner() -> None:
    """Stop DBOS; what runs is gone on with at the next start."""
    DBOS.destroy()
