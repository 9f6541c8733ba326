"""The RPO that the API and `item show` show is the oracle's, also while it grows; and the item's health says why.

A live configuration server with its own process server and master target, a machine that is written all the time. The
oracle's figure comes from the images: the target's files as a kill leaves them, at the point that is shown.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backhaul.configuration_server.occupancy import running_in, started_at
from backhaul.demo.oracle import Barrier, true_rpo_s
from backhaul.disks.opening import open_disk
from backhaul.disks.raw_file import create_raw_file
from backhaul.master_target.replica import Replica
from backhaul.replication.ports import RealClock, RealFiles
from backhaul.replication.units import MiB
from configuration_server.gate import Gate
from configuration_server.live import LiveServer, live_server, until
from dataplane.processes.writers import Writer, writing

SIZE = 2 * MiB
TRUTH_S = 1.0
"""How far the shown RPO may be from what the oracle computes from its stamps: the issue's bound."""

SILENT_S = 3.0
"""Silence that is shown: well above a point a second and a heartbeat each fifth of one."""


@dataclass
class Home:
    """The server, the way to its process server, and a machine that is written."""

    server: LiveServer
    gate: Gate
    writer: Writer
    agent: Any

    def item(self) -> dict[str, Any]:
        return dict(self.server.vault().item("web")["properties"])

    def pid(self, service: str) -> int:
        running = running_in(RealFiles(), self.server.data_dir / service)
        assert running is not None
        return running.pid

    def codes(self) -> set[str]:
        return {str(error["errorCode"]) for error in self.item()["healthErrors"]}


@pytest.fixture
def gated(tmp_path: Path) -> Iterator[tuple[LiveServer, Gate]]:
    """A server whose process server is reached through the gate by everybody."""
    limits = {"unknown_after_s": SILENT_S, "stalled_warning_s": SILENT_S}
    with Gate() as gate:
        settings = {"addresses": [gate.host], "process_server_port": gate.port, "thresholds": limits}
        with live_server(tmp_path, **settings) as server:
            yield server, gate


@pytest.fixture
async def home(gated: tuple[LiveServer, Gate], seed: int) -> AsyncIterator[Home]:
    server, gate = gated
    disk = server.folder / "web.img"
    create_raw_file(disk, SIZE)
    async with writing(server.folder / "writer", "web", [disk], seed, blocks=SIZE // 4096) as writer:
        home = Home(server, gate, writer, protect(server, writer))
        until(lambda: home.item()["protectionState"] == "protected" and not home.item()["healthErrors"])
        yield home


def protect(server: LiveServer, writer: Writer) -> Any:
    """The machine's agent, whose points quiesce the writer; protected with a point every second."""
    server.healthy("masterTargets")
    server.healthy("processServers")
    metadata = server.folder / "web.json"
    metadata.write_text(json.dumps({"machine_id": "id-of-web", "tags": {}}))
    folder = server.register("agent", "web", "--metadata-file", str(metadata), "--disk", f"root={writer.disks[0]}")
    config = json.loads((folder / "agent.json").read_text())
    plan = {name: getattr(writer.plan, name) for name in writer.plan.__struct_fields__}
    (folder / "agent.json").write_text(json.dumps(config | {"still": plan}))
    agent = server.run("agent", folder)
    vault = server.vault()
    until(lambda: [one for one in vault.servers("agents") if one["properties"]["machine"]])
    vault.create_policy("fast", {"point_interval_s": 1.0})
    vault.wait_job(vault.protect("web", "fast", "", "", "", []))
    return agent


@dataclass
class Shown:
    """A reading of the RPO: what was shown, and between which moments."""

    seconds: float
    point: int
    before_ns: int
    after_ns: int


def read(look: Callable[[], dict[str, Any]]) -> Shown:
    before_ns = time.time_ns()
    own = look()["backhaul"]
    return Shown(own["rpo"]["seconds"], own["rpo"]["point"], before_ns, time.time_ns())


def assert_shown_is_the_oracles(home: Home) -> None:
    """What API and command line show now, each against the image at the point that it is the age of."""

    def printed() -> dict[str, Any]:
        return dict(json.loads(home.server.command("item", "show", "web", "--json").stdout)["properties"])

    readings = [read(home.item), read(printed)]
    images = images_at(home, {reading.point for reading in readings})
    for reading in readings:
        barrier_ns, image = images[reading.point]
        report = home.writer.check([image], Barrier.at_ns(barrier_ns))
        least_s, most_s = true_rpo_s(report, reading.before_ns), true_rpo_s(report, reading.after_ns)
        assert least_s - TRUTH_S < reading.seconds < most_s + TRUTH_S


def images_at(home: Home, numbers: set[int]) -> dict[int, tuple[int, Path]]:
    """Barriers and images of points, from a copy of what a killed target leaves."""
    folder, copy = home.server.data_dir / "master-target" / "target" / "items", home.server.folder / "copy"
    assert home.server.end(signal.SIGKILL) == -signal.SIGKILL  # or it would start the target again
    kill(home.pid("master-target"))
    (item,) = [one for one in folder.iterdir() if not one.name.startswith(".")]
    shutil.copytree(item, copy)
    found = {}
    with contextlib.closing(open_disk(copy / "disks" / "0.img", writable=True)) as disk:
        replica = Replica.open(copy, [disk], RealFiles(), RealClock())
        for point in replica.points():
            if point.number in numbers:
                content = bytearray(SIZE)
                replica.read_at_point(point.number, 0, 0, content)
                image = home.server.folder / f"at-{point.number}.img"
                image.write_bytes(content)
                found[point.number] = (point.barrier_ns, image)
    return found


def kill(pid: int) -> None:
    """End a process at once, and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    until(lambda: not started_at(pid))


def grown(home: Home, by_s: float) -> dict[str, Any]:
    """The item once its RPO has grown by so much, without a new point."""
    first = home.item()["backhaul"]["rpo"]
    found = until(lambda: (now := home.item())["backhaul"]["rpo"]["seconds"] > first["seconds"] + by_s and now)
    assert found["backhaul"]["rpo"]["point"] == first["point"]
    return dict(found)


async def test_while_all_is_well_it_is_small_and_the_oracles(home: Home) -> None:
    known = until(lambda: (now := home.item())["backhaul"]["rpo"]["why"] == "" and now)
    assert known["replicationHealth"] == "Normal"
    assert_shown_is_the_oracles(home)


async def test_behind_a_stalled_link_it_grows_and_is_the_oracles_and_health_says_stalled(home: Home) -> None:
    target = home.pid("master-target")
    home.gate.stall(target)
    until(lambda: home.gate.held)  # the fault happened: something waits for the target
    until(lambda: "BH-HEALTH-STALLED" in home.codes())
    known = grown(home, SILENT_S)
    assert known["replicationHealth"] != "Normal"
    assert known["backhaul"]["rpo"]["why"], "it says why"
    printed = home.server.command("item", "show", "web").stdout
    assert known["backhaul"]["rpo"]["why"].split(" ")[0] in printed
    assert "BH-HEALTH-STALLED" in printed
    assert_shown_is_the_oracles(home)


async def test_behind_a_dead_agent_it_grows_and_is_the_oracles_and_health_says_who_is_silent(home: Home) -> None:
    home.agent.kill()
    assert home.agent.wait() == -signal.SIGKILL
    until(lambda: "BH-HEALTH-AGENT" in home.codes())
    known = grown(home, SILENT_S)
    assert known["replicationHealth"] != "Normal"
    assert "the link between agent" in known["backhaul"]["rpo"]["why"]
    assert_shown_is_the_oracles(home)


async def test_a_cut_link_is_named_by_rpo_health_doctor_and_heals(home: Home) -> None:
    """Everything runs and answers; only target and process server do not reach each other."""
    target = home.pid("master-target")
    home.gate.cut(target)
    until(lambda: home.gate.refused)  # the fault happened
    named = until(lambda: home.item()["backhaul"]["rpo"]["why"])
    until(lambda: "BH-HEALTH-LINK" in home.codes())
    details = home.item()["providerSpecificDetails"]
    relay, mt = details["processServerId"], details["masterTargetId"]
    assert named == f"the link between process server {relay} and master target {mt} is broken"
    (alert,) = [one for one in home.item()["healthErrors"] if one["errorCode"] == "BH-HEALTH-LINK"]
    assert named in alert["errorMessage"]
    walked = home.server.vault().doctor("web", item=True)["rungs"][-1]
    assert (walked["id"], walked["code"]) == ("target-link", "BH-RUNG-TARGET-LINK")
    assert relay in walked["reason"]
    assert mt in walked["reason"]
    home.gate.mend(target)
    until(lambda: not home.item()["healthErrors"])
    until(lambda: home.item()["backhaul"]["rpo"]["why"] == "")
    until(lambda: home.server.vault().doctor("web", item=True)["ok"])
