"""A service of the data plane as a process of its own, for tests: `python -m dataplane.processes.main ROLE …`.

    relay   IDENTITY FOLDER PORT                    prints `ready PORT`
    target  IDENTITY FOLDER PORT RELAY RELAY_PORT   prints `ready PORT`
    agent   IDENTITY MACHINE CONTROL                prints `ready 0`

Ends cleanly by SIGTERM. The environment arms kills and failures (`steps`); the product knows nothing of them. Logs go
to stderr, once a call was killed or made to fail on purpose a line `fired STEP` as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

import backhaul.master_target.control
import backhaul.master_target.service
import backhaul.mobility.agent
import backhaul.mobility.replicator
import backhaul.mobility.stream
from backhaul.disks.contract import Disk
from backhaul.disks.opening import open_disk
from backhaul.links.dialer import Backoff, Redial
from backhaul.links.identity import Identity
from backhaul.links.tls import Credentials
from backhaul.master_target.service import MasterTarget, TargetConfig
from backhaul.mobility.agent import Agent
from backhaul.mobility.compare import Comparison
from backhaul.process_server.run import ProcessServerConfig, run
from backhaul.replication.maps import GranuleMap
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness
from backhaul.replication.units import MiB
from dataplane.processes.control_file import ControlFile
from dataplane.processes.steps import SteppedDisk, SteppedFiles, Steps, from_environment

ANSWER_S = 5.0
"""Instead of the product's half minute: a target killed with an opening in its hands leaves it unanswered."""

WORLD = Redial(RealClock(), RealRandomness(), Backoff(first_s=0.05, most_s=0.2))


def ready(port: int) -> None:
    """Tell the test that the service is up."""
    print(f"ready {port}", flush=True)


def credentials(folder: str) -> Credentials:
    """Who the service is."""
    return Credentials(Identity.load(RealFiles(), Path(folder)), RealClock())


async def relay(steps: Steps, identity: str, folder: str, port: str) -> None:
    """A process server."""
    config = ProcessServerConfig("relay", Path(folder), "127.0.0.1", int(port), 512 * MiB)
    await run(config, credentials(identity), SteppedFiles(steps), RealClock(), RealRandomness(), ready)


async def target(steps: Steps, identity: str, folder: str, port: str, server: str, server_port: str) -> None:
    """A master target that dials one process server."""
    RealFiles().make_folder(Path(folder))
    dial: dict[str, tuple[str, ...]] = {server: (f"127.0.0.1:{server_port}",)}
    config = TargetConfig(folder, "127.0.0.1", int(port), "target", dial)
    service = MasterTarget(config, credentials(identity), SteppedFiles(steps), WORLD)
    await service.run(lambda: ready(service.port))


async def agent(steps: Steps, identity: str, machine: str, control: str) -> None:
    """A machine's agent; desired state and reports go through the folder `control`."""
    ready(0)
    await Agent(machine, credentials(identity), ControlFile(Path(control)), WORLD).run()


class LoggedComparison(Comparison):
    """A compare that leaves a line: no other trace tells for certain how many there were."""

    async def run(self) -> GranuleMap:
        print("compare begins", file=sys.stderr, flush=True)
        return await super().run()


SERVICES: dict[str, Callable[..., Awaitable[None]]] = {"relay": relay, "target": target, "agent": agent}


def step_the_disks(steps: Steps) -> None:
    """Every disk that a service of this process opens is counted."""

    def opened(path: Path | str, *, writable: bool, direct: bool = True) -> Disk:
        return SteppedDisk(steps, open_disk(path, writable=writable, direct=direct))

    for module in (backhaul.master_target.control, backhaul.master_target.service, backhaul.mobility.agent):
        module.open_disk = opened  # type: ignore[attr-defined]


async def main(arguments: list[str]) -> None:
    """Run one service until SIGTERM."""
    steps = from_environment()
    step_the_disks(steps)
    backhaul.mobility.stream.ANSWER_S = ANSWER_S  # type: ignore[misc]
    backhaul.mobility.replicator.Comparison = LoggedComparison  # type: ignore[attr-defined]
    task = asyncio.ensure_future(SERVICES[arguments[0]](steps, *arguments[1:]))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await task
    finally:
        for step in steps.fired:
            print(f"fired {step}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main(sys.argv[1:]))
