"""A configuration server's jobs in a process of its own, over real sites, targets and agents, that kills itself.

    python -m lifecycle.doomed_jobs FOLDER

Runs the job in FOLDER/task, or goes on with it, on a vault of its own with DBOS. Sites and targets are called as the
product calls them; agents belong to the test, which answers at FOLDER/agents. Every call that changes something is a
place for a kill, before and after it: a site's writing calls, a target's, changes of the records, what agents are told.
Which one ends the process, with SIGKILL, says the task; it is written down first. Leaves the item in FOLDER/item.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Client
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, TypeVar, cast

import msgspec
import structlog

from backhaul.configuration_server.items import Items
from backhaul.configuration_server.jobs import ACTIVE, Jobs, end_runner, failures_of, make_runner
from backhaul.configuration_server.lifecycle.core import begin_job, job_steps
from backhaul.configuration_server.lifecycle.errors import WaitedTooLong
from backhaul.configuration_server.lifecycle.integrity import sign_report
from backhaul.configuration_server.lifecycle.ports import AgentFacts, Ports
from backhaul.configuration_server.lifecycle.store import StoredItems
from backhaul.configuration_server.lifecycle.values import Item, Place, Wish
from backhaul.configuration_server.plane import ControlPlane
from backhaul.configuration_server.records import PolicyRecord
from backhaul.configuration_server.revisions import Revisions
from backhaul.configuration_server.settings import Settings
from backhaul.configuration_server.vault import DEFAULT_POLICY, Vault
from backhaul.links.certificates import Expect
from backhaul.links.dialer import Backoff, Redial
from backhaul.links.identity import Identity
from backhaul.links.tls import Credentials
from backhaul.recovery.policies import ReplicationPolicy
from backhaul.recovery.preflight_facts import ServerFacts, Version
from backhaul.replication.control import Answer, ItemAssignment, Method, Question, SourceDisk
from backhaul.replication.opening import make_descriptor
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness
from backhaul.replication.values import Hash, ItemDescriptor, ItemId, Role
from backhaul.sites.local.client import LocalSite
from lifecycle.job_process import enter
from lifecycle.real_sites import facts_of, request
from lifecycle.real_world import LOOK_S

T = TypeVar("T")
EVERYWHERE: Final = "everywhere"
READING: Final = frozenset(
    {Method.STATUS, Method.TARGET_KEY, Method.ITEM_LIST, Method.ITEM_STATUS, Method.ITEM_POINTS, Method.ITEM_DIGESTS}
)
_IDS: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|job-[0-9a-f]{16}")


class Task(msgspec.Struct, frozen=True):
    """A job.

    number   of the jobs of this folder, from 1
    item     the item as it is before; its record is made to say so
    doomed   where the process ends itself, once: `before EFFECT`, `after EFFECT`, `everywhere`, or nowhere
    sites    by name: address, token and certificate
    targets, relays   ports by name, and the relays' networks
    """

    number: int
    kind: str
    wish: Wish
    item: Item
    doomed: str
    sites: dict[str, tuple[str, str, str]]
    targets: dict[str, int]
    relays: dict[str, tuple[str, int]]


class Doom:
    """Notes effects by name, and ends the process where it is to end."""

    def __init__(self, folder: Path, task: Task) -> None:
        self._doomed = task.doomed
        self._effects, self._kills = folder / f"effects-{task.number}", folder / f"kills-{task.number}"

    def around(self, name: str, act: Callable[[], T]) -> T:
        """An effect between two places for a kill."""
        name = plain(name)
        _add(self._effects, name)
        self._at(f"before {name}")
        answer = act()
        self._at(f"after {name}")
        return answer

    def _at(self, place: str) -> None:
        if self._doomed in (EVERYWHERE, place) and place not in lines(self._kills):
            _add(self._kills, place)
            os.kill(os.getpid(), signal.SIGKILL)


def plain(name: str) -> str:
    """Without what is another one each time."""
    return _IDS.sub("ID", name)


def lines(path: Path) -> list[str]:
    """Of a file that may not be there."""
    return path.read_text().splitlines() if path.exists() else []


def _add(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def without_job(token: str) -> str:
    """A request token without the job that it belongs to."""
    return token.partition("/")[2]


class DoomedItems:
    """The stored items; each change of a record is an effect, and one that was stored before is none."""

    def __init__(self, items: StoredItems, doom: Doom) -> None:
        self._items, self._doom = items, doom

    def load(self, item: ItemId) -> Item:
        return self._items.load(item)

    def change(self, item: ItemId, token: str, make: Callable[[Item], Item]) -> Item:
        if token in self._items.load(item).done:
            return self._items.change(item, token, make)
        return self._doom.around(f"record {without_job(token)}", lambda: self._items.change(item, token, make))

    def forget(self, item: ItemId) -> None:
        self._doom.around("record forget", lambda: self._items.forget(item))


class DoomedPorts:
    """All other ports; see the module."""

    def __init__(self, folder: Path, task: Task, doom: Doom) -> None:
        self._folder, self._task, self._doom = folder, task, doom
        self._own = Credentials(Identity.load(RealFiles(), folder / "identity"), RealClock())
        self._sites = {name: LocalSite(*where) for name, where in task.sites.items()}

    # --- Sites, Targets ---------------------------------------------------------------------------------------------

    def site(self, name: str) -> LocalSite:
        return self._sites[name]

    def homes(self) -> tuple[str, ...]:
        return ("home",)

    def name_of(self, site: LocalSite) -> str:
        """A site's name."""
        return next(name for name, known in self._sites.items() if known is site)

    def ask(self, target: str, method: Method, params: dict[str, Any]) -> Any:
        expect = Expect(Role.MASTER_TARGET, target)

        def act() -> Any:
            return asyncio.run(request(self._own, self._task.targets[target], expect, method, params))

        return act() if method in READING else self._doom.around(f"{target} {method.value}", act)

    # --- Agents -----------------------------------------------------------------------------------------------------

    def assign(self, agent: str, machine: str, assignment: ItemAssignment) -> None:
        self._doom.around(
            f"assign {agent} {assignment.mode.value}", lambda: self._tell("assign", agent, machine, assignment)
        )

    def question(self, agent: str, question: Question) -> Answer:
        return cast(Answer, self._tell("question", agent, question))

    def reads(self, agent: str, item: ItemId) -> tuple[SourceDisk, ...]:
        return cast(tuple[SourceDisk, ...], self._tell("reads", agent, item))

    def holds(self, item: ItemId, generation: int, since_ns: int) -> bool | None:
        return cast(bool | None, self._tell("holds", item, generation, since_ns))

    def known(self, agent: str) -> AgentFacts:
        return cast(AgentFacts, self._tell("known", agent))

    def _tell(self, method: str, *arguments: Any) -> Any:
        with Client(str(self._folder / "agents"), "AF_UNIX") as test:
            test.send((method, arguments))
            return test.recv()

    # --- Servers, Seals, Waiting ------------------------------------------------------------------------------------

    def process_servers(self, place: Place) -> tuple[ServerFacts, ...]:
        return tuple(facts_of(name, net) for name, (net, _) in self._task.relays.items() if net == place.network)

    def master_target(self, target: str) -> ServerFacts | None:
        return facts_of(target, "")

    def addresses(self, server: str) -> tuple[str, ...]:
        return (f"127.0.0.1:{self._task.relays[server][1]}",)

    def version(self) -> Version:
        return (1, 0, 0)

    def settle(self) -> None:
        """Everybody was heard."""

    def broken_rung(self, item: ItemId, process_server: str, target: str) -> str:
        return ""

    def descriptor(self, descriptor: ItemDescriptor) -> bytes:
        return make_descriptor(self._own.identity, descriptor)

    def report(self, body: bytes) -> bytes:
        return sign_report(self._own.identity, body)

    def one_time_key(self) -> bytes:
        return RealRandomness().token(32)

    def until(self, look: Callable[[], T | None], *, item: ItemId, what: str, limit_s: float) -> T:
        deadline = time.monotonic() + min(limit_s, 60.0)
        while (found := look()) is None:
            if time.monotonic() > deadline:
                raise WaitedTooLong(item=item, what=what, limit_s=limit_s)
            time.sleep(LOOK_S)  # polls another process
        return found


def hook_sites(ports: DoomedPorts, doom: Doom) -> None:
    """A site's writing calls have a token; those that only look have one that says so."""
    call = LocalSite._call

    def doomed(site: LocalSite, kind: type[Any], operation: str, token: str = "", /, **arguments: Any) -> Any:
        if not token or token.startswith("look"):
            return call(site, kind, operation, token, **arguments)
        name = f"{ports.name_of(site)} {operation} {without_job(token)}"
        return doom.around(name, lambda: call(site, kind, operation, token, **arguments))

    LocalSite._call = doomed  # type: ignore[method-assign]


def open_vault(folder: Path) -> Vault:
    """The vault that the jobs' records lie in."""
    redial = Redial(RealClock(), RealRandomness(), Backoff())
    return Vault(folder / "server", Settings(), RealFiles(), redial)


def adopt(vault: Vault, item: Item) -> Item:
    """The item as this vault has it: its term, and its policy, by which points are made as often as by the item's."""
    with vault.database.write() as session:
        record = session.get_one(PolicyRecord, DEFAULT_POLICY)
        slow = msgspec.json.decode(record.definition_json, type=ReplicationPolicy)
        quick = msgspec.structs.replace(slow, point_interval_s=item.policy.point_interval_s)
        record.definition_json = msgspec.json.encode(quick).decode()
    policy, vaults = quick.for_data_plane(), vault.record
    return msgspec.structs.replace(item, policy=policy, term=vaults.term, term_key=Hash(vaults.term_key))


def put(vault: Vault, known: Items, items: StoredItems, task: Task) -> None:
    """The item's record says what the task says."""
    if task.item.id not in {record.id for record in known.list()}:
        enter(vault, items, task.item)
    items.change(task.item.id, f"test-{task.number}", lambda _: task.item)


def run(folder: Path, task: Task, vault: Vault, revisions: Revisions) -> dict[str, Any]:
    """Until the job is over."""
    items, doom = StoredItems(vault, revisions), Doom(folder, task)
    world = DoomedPorts(folder, task, doom)
    hook_sites(world, doom)
    ports = Ports(world, world, world, world, DoomedItems(items, doom), world, world, RealClock())
    jobs = Jobs(vault, job_steps(lambda _: ports))
    plane = cast(ControlPlane, SimpleNamespace(vault=vault, jobs=jobs, items=Items(vault, revisions)))
    plane.runner = make_runner(plane)
    plane.runner.launch()
    if len(jobs.list()) < task.number:
        put(vault, plane.items, items, task)
        begin_job(plane, task.item.id, task.kind, task.wish, "admin")
    while (job := jobs.list()[0]).state in ACTIVE:
        time.sleep(LOOK_S)  # polls, as a client does
    left = items.load(task.item.id) if plane.items.list() else None
    (folder / "item").write_bytes(msgspec.json.encode(left))
    return {"state": job.state, "failures": [[one.code, one.message] for one in failures_of(job)]}


async def main(folder: Path) -> dict[str, Any]:
    """One life."""
    task = msgspec.json.decode((folder / "task").read_bytes(), type=Task)
    vault = open_vault(folder)
    try:
        return await asyncio.to_thread(run, folder, task, vault, Revisions(vault.database))
    finally:
        await asyncio.to_thread(end_runner)
        vault.close()


if __name__ == "__main__":
    structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()])
    print(json.dumps(asyncio.run(main(Path(sys.argv[1])))))
