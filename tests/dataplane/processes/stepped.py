"""The plane in one process, with every file and disk of its services under `steps`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backhaul.disks.contract import Disk
from backhaul.disks.opening import open_disk
from backhaul.master_target.service import MasterTarget, TargetConfig
from backhaul.process_server.run import ProcessServerConfig
from backhaul.process_server.run import run as run_process_server
from backhaul.replication.control import ItemReport
from backhaul.replication.ports import RealClock, RealRandomness
from backhaul.replication.units import MiB
from dataplane.plane import FILES, WORLD, Machine, Plane
from dataplane.processes.steps import SteppedDisk, SteppedFiles, Steps

SOON_S = 0.1
"""Instead of the product's seconds between two reports, or two tries to open a disk."""


class SteppedPlane(Plane):
    """`source`, `at_relay` and `at_target` are the steps of agents, process server and master target."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        super().__init__(folder)
        self.source, self.at_relay, self.at_target = Steps(), Steps(), Steps()
        for name in ("mobility.agent.REPORT_S", "mobility.agent.START_RETRY_S", "master_target.service.OPEN_RETRY_S"):
            patch.setattr(f"backhaul.{name}", SOON_S)
        patch.setattr("backhaul.mobility.agent.open_disk", _opening(self.source))
        patch.setattr("backhaul.master_target.service.open_disk", _opening(self.at_target))
        patch.setattr("backhaul.master_target.control.open_disk", _opening(self.at_target))

    async def _run_relay(self, ready: asyncio.Event) -> None:
        def listening(port: int) -> None:
            self.relay_port = port
            ready.set()

        config = ProcessServerConfig("relay", self.folder / "relay", "127.0.0.1", self.relay_port, 512 * MiB)
        files = SteppedFiles(self.at_relay)
        await run_process_server(config, self.relay_credentials, files, RealClock(), RealRandomness(), listening)

    async def _run_target(self, ready: asyncio.Event) -> None:
        dial: dict[str, tuple[str, ...]] = {self.relay_id: (f"127.0.0.1:{self.relay_port}",)}
        config = TargetConfig(str(self.folder / "target"), "127.0.0.1", self.target_port, "target", dial)
        FILES.make_folder(self.folder / "target")
        service = MasterTarget(config, self.target_credentials, SteppedFiles(self.at_target), WORLD)
        self.master_target = service

        def listening() -> None:
            self.target_port = service.port
            ready.set()

        await service.run(listening)

    async def reported_code(self, machine: Machine, code: str) -> ItemReport:
        """Wait for a report of the machine's agent, made from now on, that names `code`."""
        machine.control.reports.clear()

        async def named() -> ItemReport | None:
            items = [item for report in machine.control.reports for item in report.items]
            return next((item for item in items if item.code == code), None)

        report: ItemReport = await self.until(named, f"a report with {code}")
        return report

    async def newest(self, machine: Machine) -> int:
        """Number of the newest point; 0 for none."""
        status = await self.status(machine.item)
        return status.complete.number if status.complete else 0


def _opening(steps: Steps) -> object:
    def opened(path: Path | str, *, writable: bool, direct: bool = True) -> Disk:
        return SteppedDisk(steps, open_disk(path, writable=writable, direct=direct))

    return opened


@contextlib.asynccontextmanager
async def running_stepped(folder: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[SteppedPlane]:
    """A stepped plane with its services up."""
    plane = SteppedPlane(folder, patch)
    try:
        await plane.relay.start()
        await plane.target.start()
        yield plane
    finally:
        for steps in (plane.source, plane.at_relay, plane.at_target):
            steps.mend()
        await plane.close()
