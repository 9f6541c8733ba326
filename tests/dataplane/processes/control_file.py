"""An agent's desired state and reports as two files in a folder, so that a test can steer an agent's process."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec

from backhaul.replication.control import AgentReport, Assignment

LOOK_S = 0.05
"""How often the agent's side looks for a new assignment."""


class ControlFile:
    """The agent's side: `backhaul.mobility.agent.Control`."""

    def __init__(self, folder: Path) -> None:
        self._assignment, self._reports = folder / "assignment", folder / "reports"

    async def assignment(self, after: int) -> Assignment:
        while (found := self._read()).revision <= after:  # noqa: ASYNC110 - the writer is another process
            await asyncio.sleep(LOOK_S)
        return found

    def _read(self) -> Assignment:
        return msgspec.json.decode(self._assignment.read_bytes(), type=Assignment)

    async def report(self, report: AgentReport) -> None:
        descriptor = os.open(self._reports, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, msgspec.json.encode(report) + b"\n")
        finally:
            os.close(descriptor)


def publish(folder: Path, assignment: Assignment) -> None:
    """The test's side: what the agent in another process is to do."""
    beside = folder / "assignment.new"
    beside.write_bytes(msgspec.json.encode(assignment))
    beside.rename(folder / "assignment")


def read_reports(folder: Path) -> list[AgentReport]:
    """What the agent's processes have reported so far, oldest first."""
    path = folder / "reports"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [msgspec.json.decode(line, type=AgentReport) for line in lines]
