"""Silence is not health: behind a stalled link or a dead agent the newest point's age grows, and it is the truth."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backhaul.demo.oracle import Barrier, load_history, true_rpo_s
from backhaul.disks.raw_file import create_raw_file
from backhaul.replication.units import MiB
from dataplane.plane import Machine
from dataplane.processes.plane import ProcessPlane, running_processes
from dataplane.processes.writers import Writer, writing

SIZE = 2 * MiB
TRUTH_S = 1.0
"""How far the shown RPO may be from what the oracle computes from its stamps: design section 3 by way of its issue."""

MORE = 200
"""Writes for which the silence lasts; half a second's worth."""


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ProcessPlane]:
    async with running_processes(tmp_path) as running:
        yield running


async def age_s(plane: ProcessPlane, machine: Machine) -> tuple[int, float, int]:
    """The newest point's number, its age as everybody is shown it, and when that was (ns)."""
    status = await plane.status(machine.item)
    assert status.newest_point is not None
    now_ns = time.time_ns()
    return status.newest_point.number, (now_ns - status.newest_point.barrier_ns) / 1e9, now_ns


async def written_more(plane: ProcessPlane, writer: Writer) -> None:
    """Wait until the writer has done MORE writes."""
    before = load_history(writer.log).newest.newest_acknowledged

    async def done() -> bool:
        return load_history(writer.log).newest.newest_acknowledged >= before + MORE

    await plane.until(done, f"{MORE} more writes")


async def assert_grows_truly(plane: ProcessPlane, machine: Machine, writer: Writer) -> int:
    """The age grows with every write that is not in the point, and equals what the stamps say. The point's number."""
    number, first_s, _ = await age_s(plane, machine)
    await written_more(plane, writer)
    again, second_s, now_ns = await age_s(plane, machine)
    assert (again, second_s > first_s) == (number, True)
    await plane.promote(machine, 2)  # undoes what came after the point
    report = writer.check(plane.replicas(machine), Barrier.at_ns((await plane.points(machine.item))[-1].barrier_ns))
    assert abs(true_rpo_s(report, now_ns) - second_s) < TRUTH_S
    return number


async def running_machine(plane: ProcessPlane, writer: Writer) -> Machine:
    machine = await plane.protect("web", [SIZE], disks=writer.disks, still=writer.plan)
    await plane.complete_after(machine.item, 2)
    return machine


async def test_behind_a_stalled_link_the_age_grows_and_is_the_oracles(plane: ProcessPlane, seed: int) -> None:
    disk = plane.folder / "web-0.img"
    create_raw_file(disk, SIZE)
    async with writing(plane.folder / "writer", "web", [disk], seed, blocks=SIZE // 4096) as writer:
        machine = await running_machine(plane, writer)
        plane.by_agent.stall()
        passed = plane.by_agent.passed["up"]
        await written_more(plane, writer)  # whatever was behind the proxy has arrived
        plane.by_target.stall()
        newest = (await plane.points(machine.item))[-1].barrier_ns
        number = await assert_grows_truly(plane, machine, writer)
        assert plane.by_agent.passed["up"] <= passed + 64 * 1024, "the link was stalled"
        shown = plane.reports(machine)[-1]
        assert shown.newest_point_ns <= newest, "the agent shows no newer point than there is"
        assert shown.newest_epoch <= number
    plane.by_agent.resume()
    plane.by_target.resume()


async def test_the_points_go_on_when_a_stalled_link_resumes(plane: ProcessPlane, seed: int) -> None:
    disk = plane.folder / "web-0.img"
    create_raw_file(disk, SIZE)
    async with writing(plane.folder / "writer", "web", [disk], seed, blocks=SIZE // 4096) as writer:
        machine = await running_machine(plane, writer)
        plane.by_agent.stall()
        await written_more(plane, writer)
        plane.by_agent.resume()
        await plane.caught_up(machine)
        assert plane.compares(machine) == 1


async def test_behind_a_dead_agent_the_age_grows_and_is_the_oracles(plane: ProcessPlane, seed: int) -> None:
    disk = plane.folder / "web-0.img"
    create_raw_file(disk, SIZE)
    async with writing(plane.folder / "writer", "web", [disk], seed, blocks=SIZE // 4096) as writer:
        machine = await running_machine(plane, writer)
        agent = plane.service("agent", machine)
        agent.kill()
        await plane.killed(agent)
        reports = len(plane.reports(machine))
        await written_more(plane, writer)
        await assert_grows_truly(plane, machine, writer)
        assert len(plane.reports(machine)) == reports, "nobody reports for a dead agent"
