"""The lifecycle's ports over the real thing: two local sites as daemons, two process servers, two master targets,
agents, all over real TLS on loopback. Only the records are a variable.

Jobs run in worker threads, as they do in the product; the data plane runs on the test's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from backhaul.configuration_server.lifecycle.errors import WaitedTooLong
from backhaul.configuration_server.lifecycle.integrity import sign_report
from backhaul.configuration_server.lifecycle.ports import AgentFacts, Ports
from backhaul.configuration_server.lifecycle.values import Ids, Item, Place, Wish
from backhaul.configuration_server.lifecycle.workflows import WORKFLOWS
from backhaul.demo.oracle import Barrier, CheckReport, check
from backhaul.links.authority import Authority, AuthorityStore
from backhaul.links.certificates import Expect
from backhaul.links.tls import Credentials
from backhaul.master_target.service import MasterTarget, TargetConfig
from backhaul.mobility.agent import Agent
from backhaul.process_server.run import ProcessServerConfig
from backhaul.process_server.run import run as run_process_server
from backhaul.recovery.item import ItemState, Report, Side, State
from backhaul.recovery.preflight_facts import ServerFacts, Version
from backhaul.recovery.states import step
from backhaul.replication.control import (
    AgentReport,
    Answer,
    Assignment,
    ItemAssignment,
    ItemStatus,
    Method,
    PointStatus,
    Question,
    SourceDisk,
    StillImagePlan,
)
from backhaul.replication.opening import make_descriptor
from backhaul.replication.ports import RealClock, RealRandomness
from backhaul.replication.units import BLOCK, MiB
from backhaul.replication.values import DiskIdentity, Hash, ItemDescriptor, ItemId, ItemPolicy, Role
from backhaul.sites.local.client import LocalSite
from backhaul.sites.local.definition import (
    SiteKind,
)
from backhaul.sites.values import DiskRequest, MachineDisk, MachineRequest
from dataplane.plane import FILES, WORLD, Held, Running
from dataplane.processes.writers import QUIESCE
from lifecycle.real_sites import RealSite, facts_of, request

T = TypeVar("T")
SIZE = 2 * MiB
ITEM = ItemId("fedcba9876543210fedcba9876543210")
POLICY = ItemPolicy(point_interval_s=0.3)
GUEST = Path(__file__).with_name("guest.py")
LOOK_S = 0.02
NO_WISH = Wish()
W = TypeVar("W", bound="RealWorld")


class RealWorld:
    """See the module."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self._loop = asyncio.get_running_loop()
        FILES.make_folder(folder / "authority")
        store = AuthorityStore(FILES, folder / "authority", RealClock(), RealRandomness())
        self._authority = Authority.create("vault", store)
        self.configuration = self._credentials(Role.CONFIGURATION_SERVER, "cs-1")
        self.sites = {
            "home": RealSite(folder, "home", SiteKind.HOME, 1),
            "cloud": RealSite(folder, "cloud", SiteKind.CLOUD, 2),
        }
        self.where: dict[str, int] = {}
        self.targets: dict[str, MasterTarget] = {}
        self._ends = contextlib.AsyncExitStack()
        self._agents: dict[tuple[str, str], Held] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self.relays = {"home-net": "ps-home", "cloud-net": "ps-cloud"}
        self.asked: list[Question] = []
        self.stored: Item
        self.forgotten = False
        self.ports = Ports(self, self, self, self, self, self, self, RealClock())

    def _credentials(self, role: Role, id: str) -> Credentials:
        return Credentials(self._authority.own_identity(role, id), RealClock())

    # --- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Sites, servers, and a machine at home that runs and writes."""
        for site in self.sites.values():
            self._ends.push_async_callback(asyncio.to_thread, site.stop)
        await asyncio.gather(*(asyncio.to_thread(site.start) for site in self.sites.values()))
        for relay in self.relays.values():
            await self._run(partial(self._relay, relay))
        for target in ("mt-home", "mt-cloud"):
            await self._run(partial(self._target, target))
        self.stored = await asyncio.to_thread(self._machine_at_home)

    async def _run(self, start: Callable[[asyncio.Event], Any]) -> None:
        running = Running(start)
        await running.start()
        self._ends.push_async_callback(running.stop)

    async def close(self) -> None:
        """End all of it."""
        await self._ends.aclose()

    async def _relay(self, name: str, ready: asyncio.Event) -> None:
        def listening(port: int) -> None:
            self.where[name] = port
            ready.set()

        config = ProcessServerConfig(name, self.folder / name, "127.0.0.1", 0, 512 * MiB)
        credentials = self._credentials(Role.PROCESS_SERVER, name)
        await run_process_server(config, credentials, FILES, RealClock(), RealRandomness(), listening)

    async def _target(self, name: str, ready: asyncio.Event) -> None:
        dial: dict[str, tuple[str, ...]] = {relay: (self._address(relay),) for relay in self.relays.values()}
        config = TargetConfig(str(self.folder / name), "127.0.0.1", 0, name, dial)
        FILES.make_folder(self.folder / name)
        service = self.targets[name] = MasterTarget(config, self._credentials(Role.MASTER_TARGET, name), FILES, WORLD)

        def listening() -> None:
            self.where[name] = service.port
            ready.set()

        await service.run(listening)

    def _address(self, server: str) -> str:
        return f"127.0.0.1:{self.where[server]}"

    # --- the machine ------------------------------------------------------------------------------------------------

    def _machine_at_home(self) -> Item:
        site = self.site("home")
        disks = tuple(site.create_disk(DiskRequest(f"d{n}", "prod", SIZE), token=f"setup-{n}").id for n in range(2))
        parts = tuple(MachineDisk(disk) for disk in disks)
        request = MachineRequest("web", "prod", "home-net", "default", self._command(), parts)
        machine = site.create_machine(request, token="setup-machine")
        site.power_on(machine.id, token="setup-on")
        common: dict[str, Any] = {
            "subscription": "prod",
            "subnet": "default",
            "name": "web",
            "command": self._command(),
        }
        home = Place(
            site="home", network="home-net", target="mt-home", agent="agent-home", machine=machine.id,
            address=machine.address, disks=disks, **common,
        )  # fmt: skip
        cloud = Place(site="cloud", network="cloud-net", target="mt-cloud", agent="agent-cloud", **common)
        identities = tuple(DiskIdentity(index, f"d{index}", SIZE) for index in range(2))
        return Item(
            id=ITEM, name="web", state=ItemState(), term=1, term_key=Hash(bytes(32)), disks=identities, policy=POLICY,
            rpo_threshold_s=900.0, still=self._plan(), home=home, cloud=cloud,
        )  # fmt: skip

    def _command(self) -> tuple[str, ...]:
        log, control = self.folder / "acknowledged", self.folder / "control.sock"
        log.mkdir(exist_ok=True)
        blocks = str(SIZE // BLOCK)
        return (sys.executable, str(GUEST), "web", str(log), str(control), blocks, str(self.seed))

    def _plan(self) -> StillImagePlan:
        script = (sys.executable, "-IS", str(QUIESCE), str(self.folder / "control.sock"))
        return StillImagePlan(
            stopped=True, pre=(*script, "quiesce"), post=(*script, "resume"), script_limit_s=10.0, quiesce_limit_s=10.0
        )

    def images(self, side: Side, *, base: bool = False) -> list[Path]:
        """Where the side's disks lie: those that its machine runs on, or the replica below them."""
        place = self.stored.at(side)
        disks = place.disks if base else place.own_disks
        site, held = self.site(place.site), {disk.id: disk.holder for disk in self.site(place.site).disks()}
        return [Path(site.attach_disk(disk, held[disk], token=f"look-{disk}-{held[disk]}").path) for disk in disks]

    async def judge(self, images: list[Path], barrier: Barrier) -> CheckReport:
        """The oracle's judgement; fails the test unless it holds."""
        report = await asyncio.to_thread(check, self.folder / "acknowledged", images, barrier)
        assert report.ok, report.text()
        return report

    def now(self) -> State:
        """The item's state."""
        return self.stored.state.state

    # --- jobs -------------------------------------------------------------------------------------------------------

    async def job(self, kind: str, wish: Wish = NO_WISH, between: Callable[[str], None] = lambda _: None) -> list[str]:
        """Run a job in a worker thread; what its steps answered. `between` is called before each step."""
        number = next(self._numbers)

        def run() -> list[str]:
            self.stored = msgspec.structs.replace(self.stored, wish=wish)
            answers = []
            for each in WORKFLOWS[kind]:
                between(each.name)
                answers.append(each.run(self.ports, Ids(f"job-{number}", ITEM)))
            return answers

        return await asyncio.to_thread(run)

    async def points(self, count: int) -> ItemStatus:
        """Wait until the replica has so many more points; the control plane notes the first."""
        target = self.stored.passive.target
        first = await self._newest(target)
        async with asyncio.timeout(60):
            while (await self._newest(target)) < first + count:  # noqa: ASYNC110
                await asyncio.sleep(LOOK_S)  # polls, as the control plane's heartbeats do
        if self.stored.state.state.value in ("initial-replication", "reprotecting", "reprotecting-to-cloud"):
            self.stored = msgspec.structs.replace(self.stored, state=step(self.stored.state, Report.FIRST_POINT))
        return await self.status(target)

    async def status(self, target: str) -> ItemStatus:
        """What a target knows."""
        return msgspec.convert(await self._request(target, Method.ITEM_STATUS, {"item": ITEM}), ItemStatus)

    async def recovery_points(self) -> list[PointStatus]:
        """What the passive side's target offers, oldest first."""
        found = await self._request(self.stored.passive.target, Method.ITEM_POINTS, {"item": ITEM})
        return msgspec.convert(found, list[PointStatus])

    async def _newest(self, target: str) -> int:
        status = await self.status(target)
        return status.complete.number if status.complete else 0

    def differing_bytes(self) -> int:
        """What the active side's agent found to differ from the replica when it compared."""
        reports = self._agents[self.stored.active.agent, self.stored.active.machine].reports
        return max(sum(disk.differing for disk in item.disks) for report in reports for item in report.items)

    # --- Sites, Servers, Seals, Waiting, Items ------------------------------------------------------------------------

    def site(self, name: str) -> LocalSite:
        client = self.sites[name].client
        assert client is not None
        return client

    def homes(self) -> tuple[str, ...]:
        return ("home",)

    def process_servers(self, place: Place) -> tuple[ServerFacts, ...]:
        return (facts_of(self.relays[place.network], place.network),)

    def master_target(self, target: str) -> ServerFacts | None:
        return facts_of(target, "")

    def addresses(self, server: str) -> tuple[str, ...]:
        return (self._address(server),)

    def version(self) -> Version:
        return (1, 0, 0)

    def settle(self) -> None:
        """Everybody was heard."""

    def holds(self, item: ItemId, generation: int, since_ns: int) -> bool | None:
        """By the newest report of any agent."""
        reports = [one for held in self._agents.values() for report in held.reports[-1:] for one in report.items]
        return any(one.held_frozen and one.item == item for one in reports) or None

    def broken_rung(self, item: ItemId, process_server: str, target: str) -> str:
        return ""

    def descriptor(self, descriptor: ItemDescriptor) -> bytes:
        return make_descriptor(self.configuration.identity, descriptor)

    def report(self, body: bytes) -> bytes:
        return sign_report(self.configuration.identity, body)

    def until(self, look: Callable[[], T | None], *, item: ItemId, what: str, limit_s: float) -> T:
        deadline = time.monotonic() + min(limit_s, 60.0)
        while (found := look()) is None:
            if time.monotonic() > deadline:
                raise WaitedTooLong(item=item, what=what, limit_s=limit_s)
            time.sleep(LOOK_S)  # polls another process
        return found

    def load(self, item: ItemId) -> Item:
        return self.stored

    def change(self, item: ItemId, token: str, make: Callable[[Item], Item]) -> Item:
        with self._lock:
            if token not in self.stored.done:
                made = make(self.stored)
                self.stored = msgspec.structs.replace(made, done=(*made.done, token))
            return self.stored

    def forget(self, item: ItemId) -> None:
        self.forgotten = True

    # --- Targets, Agents ----------------------------------------------------------------------------------------------

    def ask(self, target: str, method: Method, params: dict[str, Any]) -> Any:
        return self._in_loop(self._request(target, method, params))

    def _in_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)

    async def _request(self, target: str, method: Method, params: dict[str, Any]) -> Any:
        role = Role.PROCESS_SERVER if target in self.relays.values() else Role.MASTER_TARGET
        return await request(self.configuration, self.where[target], Expect(role, target), method, params)

    def assign(self, agent: str, machine: str, assignment: ItemAssignment) -> None:
        self._in_loop(self._assign(agent, machine, assignment))

    async def _assign(self, agent: str, machine: str, assignment: ItemAssignment) -> None:
        held = await self._started(agent, machine)
        if held.current.items != (assignment,):
            await held.set(machine, assignment)

    async def _started(self, agent: str, machine: str) -> Held:
        """The agent on this machine, which has nothing to do yet when it is seen for the first time."""
        if (agent, machine) not in self._agents:
            await self.start_agent(agent, machine, Assignment(0, "", ()))
        return self._agents[agent, machine]

    async def start_agent(self, agent: str, machine: str, told: Assignment) -> None:
        """An agent on this machine."""
        held, credentials = Held(), self._credentials(Role.AGENT, agent)
        held.current = told

        async def run(ready: asyncio.Event) -> None:
            ready.set()
            await Agent(machine, credentials, held, WORLD).run()

        self._agents[agent, machine] = held
        await self._run(run)

    def held(self, agent: str, machine: str) -> Held:
        """What an agent was told, and what it reported."""
        return self._agents[agent, machine]

    def reports(self, agent: str, machine: str) -> list[AgentReport]:
        """What an agent on this machine has reported, oldest first."""
        return self._agents[agent, machine].reports

    async def request(self, server: str, method: Method, params: dict[str, Any]) -> Any:
        """A control request to a master target or a process server."""
        return await self._request(server, method, params)

    def known(self, agent: str) -> AgentFacts:
        return AgentFacts(registered=True, answers=True, version=(1, 0, 0))

    def reads(self, agent: str, item: ItemId) -> tuple[SourceDisk, ...]:
        side = Side.HOME if agent == "agent-home" else Side.CLOUD
        paths = zip(self.stored.disks, self.images(side), strict=True)
        return tuple(SourceDisk(disk, str(path)) for disk, path in paths)

    def one_time_key(self) -> bytes:
        return RealRandomness().token(32)

    def question(self, agent: str, question: Question) -> Answer:
        """To the agent itself, on its running machine or beside a stopped one."""
        named = msgspec.structs.replace(question, id=f"question-{next(self._numbers)}")
        self.asked.append(named)
        return self._in_loop(self._answer(agent, named))

    async def _answer(self, agent: str, question: Question) -> Answer:
        return await (await self._started(agent, question.machine)).answer(question)


@contextlib.asynccontextmanager
async def running(world: W) -> AsyncIterator[W]:
    """All of it, running; gone afterwards."""
    try:
        await world.start()
        yield world
    finally:
        await world.close()


@contextlib.asynccontextmanager
async def real_world(folder: Path, seed: int) -> AsyncIterator[RealWorld]:
    """The world whose machine writes all the time."""
    async with running(RealWorld(folder, seed)) as world:
        yield world
