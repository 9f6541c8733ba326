"""The data plane of `dataplane.plane` with every service a process of its own, and proxies between them that count.

    agent --> by_agent (proxy) --> process server <-- by_target (proxy) <-- master target

A kill is placed by a count: of bytes that passed a proxy (`CountingProxy.at`), or of a service's own steps (its next
start's environment, `steps`). Runs on the test's event loop; services end with the plane, whatever happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from backhaul.replication.control import ItemReport
from backhaul.replication.values import Role
from dataplane.plane import FILES, Held, Machine, Plane, Running
from dataplane.processes.control_file import publish, read_reports
from links.faultproxy import READ, Direction, FaultProxy

TESTS = Path(__file__).parent.parent.parent
END_S = 30.0
"""A service that has not ended so long after SIGTERM, or was not killed by then, fails the test."""


class Service(Running):
    """A service's process: started, stopped, killed, started again on its folder."""

    def __init__(self, name: str, log: Path, arguments: Callable[[], list[str]]) -> None:
        """`arguments` for `processes.main`, asked for at each start."""
        self.name, self.log = name, log
        self.port = 0
        self.environment: dict[str, str] = {}
        """What arms the next start; used once."""
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    async def start(self, *, may_end: bool = False) -> None:
        """Start, and wait until it serves. Fails with its log when it ends instead, unless it `may_end`."""
        environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent / 'src'}", **self.environment}
        self.environment = {}
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "dataplane.processes.main",
                *self._arguments(),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line and may_end:
            return
        if not line.startswith(b"ready "):
            await self._process.wait()
            raise AssertionError(f"{self.name} did not start:\n{self.log.read_text()[-4000:]}")
        self.port = int(line.split()[1])

    def kill(self) -> None:
        """SIGKILL, now. `gone` waits for the end and proves it."""
        os.kill(self.pid, signal.SIGKILL)

    async def ended(self) -> int:
        """The exit code, once the process is gone."""
        assert self._process is not None, f"{self.name} was not started"
        async with asyncio.timeout(END_S):
            code = await self._process.wait()
        self._process = None
        return code

    async def stop(self) -> None:
        """End it for good; nothing if it is gone."""
        await self.quit()

    async def quit(self) -> None:
        """SIGTERM, and wait, to start it again later; nothing if it is gone."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await self.ended()
        except TimeoutError:
            self.kill()
            await self.ended()
            raise AssertionError(f"{self.name} does not end:\n{self.log.read_text()[-4000:]}") from None


class AgentService(Service):
    """An agent's process; what `control` holds reaches it through files in `folder`."""

    def __init__(self, name: str, log: Path, arguments: list[str], control: Held, folder: Path) -> None:
        super().__init__(name, log, lambda: arguments)
        self.folder = folder
        self._control = control
        self._publishing: asyncio.Task[None] | None = None

    async def start(self, *, may_end: bool = False) -> None:
        publish(self.folder, self._control.current)
        if self._publishing is None:
            self._publishing = asyncio.create_task(self._publish())
        await super().start(may_end=may_end)

    async def _publish(self) -> None:
        known = self._control.current.revision
        while True:
            assignment = await self._control.assignment(known)
            publish(self.folder, assignment)
            known = assignment.revision

    @property
    def compares(self) -> int:
        """Disks that were compared by hashes so far, by all its processes."""
        return self.log.read_text().count("compare begins")

    async def stop(self) -> None:
        if self._publishing is not None:
            self._publishing.cancel()
            await asyncio.gather(self._publishing, return_exceptions=True)
            self._publishing = None
        await super().stop()


class CountingProxy(FaultProxy):
    """A proxy that calls `act` when so many bytes have passed in one direction, counted from its start."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._acts: list[tuple[Direction, int, Callable[[], None]]] = []

    def at(self, direction: Direction, count: int, act: Callable[[], None]) -> None:
        """Arm one act; `count` must not have passed yet."""
        assert count > self.passed[direction], "it would come too late"
        self._acts.append((direction, count, act))

    def after(self, direction: Direction, count: int, act: Callable[[], None]) -> None:
        """Arm one act for when `count` more bytes have passed."""
        self.at(direction, self.passed[direction] + count, act)

    @property
    def done(self) -> bool:
        """Whether everything that was armed has happened."""
        return not self._acts

    def _until_next(self, direction: Direction) -> int:
        due = [count - self.passed[direction] for way, count, _ in self._acts if way == direction]
        return max(1, min([*due, READ]))

    async def _pass(self, direction: Direction, data: memoryview, writer: asyncio.StreamWriter) -> None:
        await super()._pass(direction, data, writer)
        for armed in list(self._acts):
            way, count, act = armed
            if way == direction and self.passed[direction] >= count:
                self._acts.remove(armed)
                act()


class ProcessPlane(Plane):
    """One vault, one process server, one master target, each service a process."""

    relay: Service
    target: Service
    by_agent: CountingProxy
    by_target: CountingProxy

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._stack = contextlib.AsyncExitStack()
        self.relay_listens = 0
        for role, id in ((Role.PROCESS_SERVER, self.relay_id), (Role.MASTER_TARGET, self.target_id)):
            self.identity(role, id).save(FILES, folder / "identities" / id)
        self.relay = Service("relay", folder / "relay.log", self._relay_arguments)
        self.target = Service("target", folder / "target.log", self._target_arguments)

    def _identity_folder(self, id: str) -> str:
        return str(self.folder / "identities" / id)

    def _relay_arguments(self) -> list[str]:
        return ["relay", self._identity_folder(self.relay_id), str(self.folder / "relay"), str(self.relay_listens)]

    def _target_arguments(self) -> list[str]:
        folder, port = str(self.folder / "target"), str(self.target_port)
        return ["target", self._identity_folder(self.target_id), folder, port, self.relay_id, str(self.by_target.port)]

    async def open(self) -> None:
        """Start process server, proxies and target."""
        await self.relay.start()
        self.relay_listens = self.relay.port
        self.by_agent = await self._stack.enter_async_context(CountingProxy(self.relay_listens))
        self.by_target = await self._stack.enter_async_context(CountingProxy(self.relay_listens))
        self.relay_port = self.by_agent.port
        await self.target.start()
        self.target_port = self.target.port

    def agent(self, machine: str, control: Held, *, agent: str | None = None) -> Running:
        """A machine's agent as a process."""
        name = agent or f"agent-{machine}"
        self.identity(Role.AGENT, name).save(FILES, self.folder / "identities" / name)
        folder = self.folder / "control" / machine
        folder.mkdir(parents=True)
        arguments = ["agent", self._identity_folder(name), machine, str(folder)]
        return AgentService(f"agent of {machine}", self.folder / f"{name}.log", arguments, control, folder)

    def service(self, name: str, machine: Machine) -> Service:
        """`relay`, `target` or `agent`."""
        found = {"relay": self.relay, "target": self.target, "agent": machine.agent}[name]
        assert isinstance(found, Service)
        return found

    def compares(self, machine: Machine) -> int:
        """Disks that the machine's agent has compared so far."""
        assert isinstance(machine.agent, AgentService)
        return machine.agent.compares

    async def killed(self, service: Service) -> None:
        """Wait for the end of a service that a count kills, and prove that it was the kill."""
        code = await service.ended()
        assert code == -signal.SIGKILL, f"{service.name} ended with {code}, not by the kill\n{self.logs()}"

    def reports(self, machine: Machine) -> list[ItemReport]:
        """What the machine's agent has reported of its item so far."""
        assert isinstance(machine.agent, AgentService)
        return [item for report in read_reports(machine.agent.folder) for item in report.items]

    def logs(self) -> str:
        """The end of every service's log, for a failure's message."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))

    async def close(self) -> None:
        """Stop every service."""
        try:
            await super().close()
        finally:
            await self._stack.aclose()


@contextlib.asynccontextmanager
async def running_processes(folder: Path) -> AsyncIterator[ProcessPlane]:
    """A plane of processes with its services up."""
    plane = ProcessPlane(folder)
    try:
        await plane.open()
        yield plane
    finally:
        await plane.close()
