"""The demo, in which at each stage one process of the product is killed, at a counted call of the operator.

    KILLS=... RECORD=... python -m demo.felled [ARGUMENTS of backhaul demo]

KILLS is `{stage: [who, call]}` as JSON; RECORD gets a line `{stage, who, pid, call}` for each process that was there,
was sent SIGKILL at that call (or at the first later one at which it ran) and is gone. A stage that ends before its kill
happened fails. What was killed is started again by who keeps it, as an init system would; nobody tells the product.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psutil

from backhaul.configuration_server.occupancy import running_in, started_at
from backhaul.demo import command
from backhaul.demo.errors import StageFailed
from backhaul.demo.lifecycle import STAGES, run_demo
from backhaul.demo.operator import Operator
from backhaul.demo.plan import (
    CLOUD,
    CLOUD_TARGET,
    CONFIGURATION,
    GATED,
    HOME,
    HOME_RELAY,
    HOME_TARGET,
)
from backhaul.demo.service import DATA
from backhaul.demo.stages import Run, Stage
from backhaul.replication.ports import RealFiles

REVERSE: Final = ("process-servers", "reprotected", "failed-back")
"""Stages in which the machines run in the cloud and replicate home, if they replicate."""

FREEZER: Final = {"freezer": "backhaul.mobility.freezer", "guard": "backhaul.mobility.guard"}
GONE_S: Final = 20.0


def serving(folder: Path) -> int | None:
    """Who serves a data folder."""
    running = running_in(RealFiles(), folder)
    return running.pid if running else None


def find(operator: Operator, who: str, reverse: bool) -> int | None:
    """The process, if it runs."""
    side = CLOUD if reverse else HOME
    if who == "configuration-server":
        return serving(operator.service_folder(HOME, CONFIGURATION) / DATA)
    if who == "master-target":
        target = (HOME, HOME_TARGET) if reverse else (CLOUD, CLOUD_TARGET)
        return serving(operator.service_folder(*target) / DATA)
    if who == "agent":
        return serving(operator.service_folder(side, GATED.agent) / DATA)
    if who in FREEZER:
        return beside(operator, side, FREEZER[who])
    if not reverse:
        return serving(operator.service_folder(HOME, HOME_RELAY) / DATA)
    servers = [each for each in operator.site(CLOUD).servers() if each.name == GATED.process_server]
    return serving(operator.server_folder(servers[0]) / "process-server") if servers else None


def beside(operator: Operator, side: str, module: str) -> int | None:
    """Freezer or guard of the agent: a child of its door."""
    run = operator.folder / side / "provider" / "run" / f"companion-{GATED.agent}.run"
    if not run.exists():
        return None
    door = psutil.Process(json.loads(run.read_text())["pid"])
    return next((child.pid for child in door.children() if module in child.cmdline()), None)


class Kills:
    """What is to be killed, and what was."""

    def __init__(self, wanted: dict[str, tuple[str, int]], record: Path) -> None:
        self._wanted, self._record = wanted, record
        self._operator: Operator | None = None
        self._stage, self._calls = "", 0
        self._session = Operator.session
        kills = self

        def session(operator: Operator, act: Callable[[Any], Any]) -> Any:
            kills.called()
            return kills._session(operator, act)

        Operator.session = session  # type: ignore[method-assign, assignment]

    def within(self, stage: Stage) -> Stage:
        """The stage, in which the kill happens."""

        def run(world: Run) -> str:
            self._operator, self._stage, self._calls = world.operator, stage.name, 0
            line = stage.run(world)
            if stage.name in self._wanted:
                raise StageFailed(
                    stage=stage.name, reason=f"{self._wanted[stage.name][0]} was never there to be killed"
                )
            return line

        return Stage(stage.name, stage.title, run)

    def called(self) -> None:
        """One call of the operator."""
        self._calls += 1
        if self._operator is None or self._stage not in self._wanted:
            return
        who, call = self._wanted[self._stage]
        pid = find(self._operator, who, self._stage in REVERSE) if self._calls >= call else None
        if pid is None:
            return
        started = started_at(pid)
        os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + GONE_S
        while started_at(pid) == started:
            assert time.monotonic() < end, f"{who} ({pid}) did not die"
            time.sleep(0.01)
        del self._wanted[self._stage]
        with self._record.open("a") as file:
            file.write(json.dumps({"stage": self._stage, "who": who, "pid": pid, "call": self._calls}) + "\n")


if __name__ == "__main__":
    kills = Kills(json.loads(os.environ["KILLS"]), Path(os.environ["RECORD"]))
    stages = [kills.within(stage) for stage in STAGES]
    setattr(command, "run_demo", lambda wish, display: run_demo(wish, display, stages))  # noqa: B010 -- not exported
    command.app(prog_name="backhaul demo")
