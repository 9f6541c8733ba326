"""A whole data plane in one process: vault, process server, master target and agents, over real TLS on loopback.

Services can be stopped and started again on their folders; what the control plane would do is done by `Plane`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from backhaul.disks.raw_file import create_raw_file
from backhaul.links.authority import Authority, AuthorityStore
from backhaul.links.certificates import Expect
from backhaul.links.connection import Connection, open_data
from backhaul.links.dialer import Address, Backoff, Redial, dial_data
from backhaul.links.identity import Identity
from backhaul.links.tls import Credentials
from backhaul.master_target.service import MasterTarget, TargetConfig
from backhaul.mobility.agent import Agent
from backhaul.process_server.run import ProcessServerConfig
from backhaul.process_server.run import run as run_process_server
from backhaul.replication import messages as m
from backhaul.replication.control import (
    AgentMode,
    AgentReport,
    Answer,
    Assignment,
    ItemAssignment,
    ItemReport,
    ItemStatus,
    Method,
    PointStatus,
    Question,
    SourceDisk,
    StillImagePlan,
)
from backhaul.replication.opening import make_descriptor
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness
from backhaul.replication.units import MiB
from backhaul.replication.values import (
    DiskIdentity,
    Hash,
    ItemDescriptor,
    ItemId,
    ItemPolicy,
    Role,
)

WORLD = Redial(RealClock(), RealRandomness(), Backoff(first_s=0.05, most_s=0.2))
FILES = RealFiles()
POLICY = ItemPolicy(point_interval_s=0.1)


class RequestFailed(Exception):
    """A control request was refused, with `code` and parameters."""

    def __init__(self, code: str, params: Any) -> None:
        super().__init__(f"{code} {params}")
        self.code = code


async def writable(disk: Path) -> BinaryIO:
    """A machine's disk, opened for writing in a thread: the kernel lets whoever opens it wait until the agent has given
    up its still image, and an agent on the event loop that waits cannot, so that both would, for 45 s.
    """
    return await asyncio.to_thread(disk.open, "r+b")


class Held:
    """The agent's control link as a variable: an assignment to set, reports to look at."""

    def __init__(self) -> None:
        self.current = Assignment(0, "", ())
        self._changed = asyncio.Condition()
        self.reports: list[AgentReport] = []

    async def set(self, machine: str, *items: ItemAssignment) -> None:
        async with self._changed:
            self.current = Assignment(self.current.revision + 1, machine, items)
            self._changed.notify_all()

    async def ask(self, *questions: Question) -> None:
        """What the agent is asked from now on, besides what it is to do."""
        async with self._changed:
            self.current = msgspec.structs.replace(
                self.current, revision=self.current.revision + 1, questions=questions
            )
            self._changed.notify_all()

    async def answer(self, question: Question) -> Answer:
        """Ask, and wait for the answer."""
        await self.ask(question)
        async with asyncio.timeout(30):
            while not (found := [a for report in self.reports for a in report.answers if a.id == question.id]):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return found[0]

    async def assignment(self, after: int) -> Assignment:
        async with self._changed:
            await self._changed.wait_for(lambda: self.current.revision > after)
            return self.current

    async def report(self, report: AgentReport) -> None:
        self.reports.append(report)


class Running:
    """A service's task that can be stopped and started again."""

    def __init__(self, start: Callable[[asyncio.Event], Any]) -> None:
        self._start = start
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        ready = asyncio.Event()
        self._task = asyncio.create_task(self._start(ready))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({waiting, self._task}, return_when="FIRST_COMPLETED")
        waiting.cancel()
        if self._task.done():
            self._task.result()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None


class Machine:
    """A protected machine: its disk images and its agent."""

    def __init__(self, name: str, disks: list[Path], agent: Running, control: Held, item: ItemId) -> None:
        self.name, self.disks, self.agent, self.control, self.item = name, disks, agent, control, item


class Plane:
    """One vault, one process server, one master target."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        FILES.make_folder(folder / "authority")
        self.authority = Authority.create(
            "vault", AuthorityStore(FILES, folder / "authority", RealClock(), RealRandomness())
        )
        self._requests = itertools.count(1)
        self.relay_port = self.target_port = 0
        self.relay_id, self.target_id = "relay-1", "target-1"
        self.relay = Running(self._run_relay)
        self.target = Running(self._run_target)
        self.master_target: MasterTarget | None = None
        self.configuration = self.credentials(Role.CONFIGURATION_SERVER, "cs-1")
        self.target_credentials = self.credentials(Role.MASTER_TARGET, self.target_id)
        self.relay_credentials = self.credentials(Role.PROCESS_SERVER, self.relay_id)
        self.machines: list[Machine] = []
        self.generation = 1

    def identity(self, role: Role, id: str) -> Identity:
        return self.authority.own_identity(role, id)

    def credentials(self, role: Role, id: str) -> Credentials:
        return Credentials(self.identity(role, id), RealClock())

    async def _run_relay(self, ready: asyncio.Event) -> None:
        def listening(port: int) -> None:
            self.relay_port = port
            ready.set()

        config = ProcessServerConfig("relay", self.folder / "relay", "127.0.0.1", self.relay_port, 512 * MiB)
        await run_process_server(config, self.relay_credentials, FILES, RealClock(), RealRandomness(), listening)

    async def _run_target(self, ready: asyncio.Event) -> None:
        dial: dict[str, tuple[str, ...]] = {self.relay_id: (f"127.0.0.1:{self.relay_port}",)}
        config = TargetConfig(str(self.folder / "target"), "127.0.0.1", self.target_port, "target", dial)
        FILES.make_folder(self.folder / "target")
        service = MasterTarget(config, self.target_credentials, FILES, WORLD)
        self.master_target = service

        def listening() -> None:
            self.target_port = service.port
            ready.set()

        await service.run(listening)

    async def request(self, method: Method, **params: Any) -> Any:
        """One control request to the master target. Raises RequestFailed."""
        return await self._request(Role.MASTER_TARGET, self.target_port, method, params)

    async def relay_status(self) -> dict[str, Any]:
        """What the process server says of itself."""
        status: dict[str, Any] = await self._request(Role.PROCESS_SERVER, self.relay_port, Method.STATUS, {})
        return status

    async def _request(self, role: Role, port: int, method: Method, params: dict[str, Any]) -> Any:
        address = Address("127.0.0.1", port)
        connection: Connection = await dial_data(address, self.configuration, Expect(role), clock=RealClock())
        try:
            await open_data(connection, "configuration server")
            number = next(self._requests)
            await connection.send(m.message(m.Request(number, method, params)))
            answer = await connection.receive()
            response = m.read_head(answer, m.Response)
        finally:
            await connection.close()
        if response.code:
            raise RequestFailed(response.code, response.result)
        return msgspec.msgpack.decode(answer.payload)

    async def status(self, item: ItemId) -> ItemStatus:
        return msgspec.convert(await self.request(Method.ITEM_STATUS, item=item), ItemStatus)

    async def points(self, item: ItemId) -> list[PointStatus]:
        return msgspec.convert(await self.request(Method.ITEM_POINTS, item=item), list[PointStatus])

    def descriptor(self, machine: str, item: ItemId, disks: list[DiskIdentity], **changes: Any) -> bytes:
        values: dict[str, Any] = {
            "item": item,
            "term": 1,
            "term_key": Hash(bytes(32)),
            "generation": self.generation,
            "target": self.target_id,
            "agent": f"agent-{machine}",
            "active_machine": machine,
            "disks": tuple(disks),
            "policy": POLICY,
        }
        return make_descriptor(self.configuration.identity, ItemDescriptor(**(values | changes)))

    async def protect(
        self,
        name: str,
        sizes: list[int],
        *,
        still: StillImagePlan | None = None,
        policy: ItemPolicy = POLICY,
        paths: list[str | None] | None = None,
        disks: list[Path] | None = None,
    ) -> Machine:
        """A machine with new disks, its replica, and its agent, running."""
        item = ItemId(name.encode().hex().ljust(32, "0")[:32])
        images = disks or [self.folder / f"{name}-{index}.img" for index in range(len(sizes))]
        for image, size in zip(images, sizes, strict=True):
            if not image.exists():
                create_raw_file(image, size)
        identities = [
            DiskIdentity(index, image.name, size) for index, (image, size) in enumerate(zip(images, sizes, strict=True))
        ]
        descriptor = self.descriptor(name, item, identities, policy=policy)
        await self.request(Method.ITEM_CREATE, descriptor=descriptor, paths=paths or [None] * len(sizes))
        key = bytes((await self.request(Method.TARGET_KEY))["key"])
        assignment = ItemAssignment(
            item=item,
            term=1,
            generation=self.generation,
            mode=AgentMode.REPLICATE,
            target_key=key,
            process_server=self.relay_id,
            process_server_addresses=(f"127.0.0.1:{self.relay_port}",),
            disks=tuple(SourceDisk(i, str(p)) for i, p in zip(identities, images, strict=True)),
            still=still or StillImagePlan(),
            policy=policy,
        )
        control = Held()
        await control.set(name, assignment)
        machine = Machine(name, images, self.agent(name, control), control, item)
        self.machines.append(machine)
        await machine.agent.start()
        return machine

    def assigned(self, machine: Machine) -> ItemAssignment:
        """What the machine's agent was told last."""
        return machine.control.current.items[0]

    def descriptor_of(self, machine: Machine, **changes: Any) -> bytes:
        """The machine's descriptor, changed."""
        disks = [disk.identity for disk in self.assigned(machine).disks]
        return self.descriptor(machine.name, machine.item, disks, **changes)

    async def promote(self, machine: Machine, generation: int) -> ItemStatus:
        """Fail the item over to its replica."""
        descriptor = self.descriptor_of(machine, generation=generation)
        return msgspec.convert(await self.request(Method.ITEM_PROMOTE, descriptor=descriptor), ItemStatus)

    async def spooled_bytes(self, at_least: int) -> bool:
        """Whether so many bytes wait in the spool."""
        status = await self.relay_status()
        return bool(sum(item["backlog_bytes"] for item in status["items"]) >= at_least)

    def agent(self, machine: str, control: Held, *, agent: str | None = None) -> Running:
        credentials = self.credentials(Role.AGENT, agent or f"agent-{machine}")

        async def run(ready: asyncio.Event) -> None:
            ready.set()
            await Agent(machine, credentials, control, WORLD).run()

        return Running(run)

    async def until(self, holds: Callable[[], Any], what: str, *, within_s: float = 30.0) -> Any:
        """Wait until the coroutine function `holds` returns something true; fails the test after `within_s`."""
        try:
            async with asyncio.timeout(within_s):
                while not (value := await holds()):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)  # polls another process' state, as an operator would
                return value
        except TimeoutError:
            raise AssertionError(f"not within {within_s} s: {what}") from None

    async def complete_after(self, item: ItemId, number: int = 0, *, within_s: float = 30.0) -> ItemStatus:
        """The item's status once it has a point above `number`."""

        async def newer() -> ItemStatus | None:
            status = await self.status(item)
            return status if status.complete and status.complete.number > number else None

        status: ItemStatus = await self.until(newer, f"a point above {number} of {item}", within_s=within_s)
        return status

    async def caught_up(self, machine: Machine, *, within_s: float = 60.0) -> ItemStatus:
        """The item's status once its newest point holds all that was written to the machine before this call.

        Its barrier tells, no count of points does: an agent goes on making points while the way to its target is
        interrupted, so any number of them may be under way that are older than the call.
        """
        called_ns = time.time_ns()

        async def after() -> ItemStatus | None:
            status = await self.status(machine.item)
            return status if status.newest_point and status.newest_point.barrier_ns > called_ns else None

        status: ItemStatus = await self.until(after, f"a point of {machine.name} from now on", within_s=within_s)
        return status

    async def reported(self, machine: Machine) -> ItemReport:
        """A report of the machine's agent that knows the target's newest point as it is now."""
        status = await self.status(machine.item)
        number = status.complete.number if status.complete else 0

        async def newest() -> ItemReport | None:
            items = [item for report in machine.control.reports[-1:] for item in report.items]
            return next((item for item in items if item.newest_epoch >= number), None)

        report: ItemReport = await self.until(newest, f"a report of epoch {number}")
        return report

    def replicas(self, machine: Machine) -> list[Path]:
        """The replica's images."""
        folder = self.folder / "target" / "items" / machine.item / "disks"
        return [folder / f"{index}.img" for index in range(len(machine.disks))]

    async def close(self) -> None:
        for machine in self.machines:
            await machine.agent.stop()
        await self.target.stop()
        await self.relay.stop()


@contextlib.asynccontextmanager
async def running_plane(folder: Path) -> AsyncIterator[Plane]:
    """A plane with its services up."""
    plane = Plane(folder)
    try:
        await plane.relay.start()
        await plane.target.start()
        yield plane
    finally:
        await plane.close()
