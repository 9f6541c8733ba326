"""One of our services as a process of its own: `python -m benchmarks.service ROLE …`.

    relay   IDENTITY FOLDER                     a process server
    target  IDENTITY FOLDER RELAY RELAY_PORT    a master target that dials it
    agent   IDENTITY MACHINE ASSIGNMENT         an agent; it begins when the file ASSIGNMENT appears

Prints `ready PORT`, logs to stderr, ends by SIGTERM. `BACKHAUL_BENCH_PROFILE=FOLDER` profiles the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import cProfile
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from backhaul.links.dialer import Backoff, Redial
from backhaul.links.identity import Identity
from backhaul.links.tls import Credentials
from backhaul.master_target.service import MasterTarget, TargetConfig
from backhaul.mobility.agent import Agent
from backhaul.process_server.run import ProcessServerConfig, run
from backhaul.replication.control import AgentReport, Assignment
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness
from backhaul.replication.units import GiB
from benchmarks.certificates import HOST

PROFILE: Final = "BACKHAUL_BENCH_PROFILE"
SPOOL_BYTES: Final = 8 * GiB
"""Room for the whole image: a spool that throttles would be measured instead of the way."""

LOOK_S: Final = 0.01
"""How often the agent looks for its assignment: the most by which the begin may be late."""

WORLD: Final = Redial(RealClock(), RealRandomness(), Backoff(first_s=0.05, most_s=0.2))


class AssignmentFile:
    """The agent's control: one assignment in a file, once it is there; reports are for nobody."""

    def __init__(self, file: Path) -> None:
        self._file = file

    async def assignment(self, after: int) -> Assignment:
        """See `agent.Control`."""
        if after:
            await asyncio.get_running_loop().create_future()  # there is only one
        while not self._file.exists():  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
        return msgspec.json.decode(self._file.read_bytes(), type=Assignment)

    async def report(self, report: AgentReport) -> None:
        """See `agent.Control`."""


def _ready(port: int) -> None:
    print(f"ready {port}", flush=True)


def _credentials(folder: str) -> Credentials:
    return Credentials(Identity.load(RealFiles(), Path(folder)), RealClock())


async def relay(identity: str, folder: str) -> None:
    """A process server."""
    config = ProcessServerConfig("relay", Path(folder), HOST, 0, SPOOL_BYTES)
    await run(config, _credentials(identity), RealFiles(), RealClock(), RealRandomness(), _ready)


async def target(identity: str, folder: str, server: str, port: str) -> None:
    """A master target."""
    config = TargetConfig(folder, HOST, 0, "target", {server: (f"{HOST}:{port}",)})
    service = MasterTarget(config, _credentials(identity), RealFiles(), WORLD)
    await service.run(lambda: _ready(service.port))


async def agent(identity: str, machine: str, assignment: str) -> None:
    """An agent."""
    _ready(0)
    await Agent(machine, _credentials(identity), AssignmentFile(Path(assignment)), WORLD).run()


SERVICES: Final[dict[str, Callable[..., Awaitable[None]]]] = {"relay": relay, "target": target, "agent": agent}


async def main(arguments: list[str]) -> None:
    """Run one service until SIGTERM."""
    task = asyncio.ensure_future(SERVICES[arguments[0]](*arguments[1:]))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    profile = cProfile.Profile()
    if PROFILE in os.environ:
        profile.enable()
    asyncio.run(main(sys.argv[1:]))
    if PROFILE in os.environ:
        profile.dump_stats(Path(os.environ[PROFILE], f"{sys.argv[1]}.prof"))
