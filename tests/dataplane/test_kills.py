"""SIGKILL of agent, process server and master target at counted places, while a machine is written and replicated.

Kills are placed by bytes that passed a proxy, or by a step of the service itself. Each is proved by the exit code.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from backhaul.demo.oracle import Barrier
from backhaul.disks.raw_file import create_raw_file
from backhaul.replication.control import AgentMode, StillImagePlan
from backhaul.replication.units import BLOCK, MiB
from dataplane.plane import Machine
from dataplane.processes.judging import check_every_point
from dataplane.processes.plane import CountingProxy, ProcessPlane, Service, running_processes
from dataplane.processes.steps import KILL_AT
from dataplane.processes.writers import Writer, writing
from links.faultproxy import Direction

SIZE = 4 * MiB
WRITTEN = 64
"""Blocks of each disk that the writer overwrites; the rest is noise that makes the initial replication long."""

FINAL_BYTES = 200
"""Less than the frame with the end of the final epoch, which is all that travels when nothing changed before it."""

SERVICES = ("agent", "relay", "target")


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ProcessPlane]:
    async with running_processes(tmp_path) as running:
        yield running


def noisy_disks(folder: Path, seed: int, size: int, *, first: int = 0) -> list[Path]:
    """Two images with random content from byte `first` on."""
    disks = [folder / f"web-{index}.img" for index in range(2)]
    noise = random.Random(seed)
    for disk in disks:
        create_raw_file(disk, size)
        with disk.open("r+b") as file:
            file.seek(first)
            file.write(noise.randbytes(size - first))
    return disks


def way_of(plane: ProcessPlane, who: str) -> tuple[CountingProxy, Direction]:
    """Where the frames pass that the service handles."""
    return (plane.by_target, "down") if who == "target" else (plane.by_agent, "up")


class Killer:
    """Kills one service again and again, and starts it again."""

    def __init__(self, plane: ProcessPlane, who: str) -> None:
        self.plane, self.who = plane, who
        self.proxy, self.direction = way_of(plane, who)

    def arm(self, count: int, service: Service) -> None:
        """SIGKILL when `count` more bytes of frames have passed."""
        self.proxy.after(self.direction, count, service.kill)

    async def struck(self, service: Service) -> None:
        """Wait for the kill, prove it, and start the service again."""
        await self.plane.killed(service)
        assert self.proxy.done
        await service.start()


async def two_more_points(plane: ProcessPlane, machine: Machine) -> None:
    """Two points that were begun from now on: replication goes on, with more than what was under way."""
    await plane.caught_up(machine)
    await plane.caught_up(machine)


@pytest.mark.parametrize("who", SERVICES)
async def test_killed_in_every_phase_the_oracle_holds(plane: ProcessPlane, who: str, seed: int, deep: bool) -> None:
    chance = random.Random(seed)
    disks = noisy_disks(plane.folder, seed, SIZE, first=WRITTEN * BLOCK)
    killer = Killer(plane, who)
    async with writing(plane.folder / "writer", "web", disks, seed, blocks=WRITTEN) as writer:
        if who != "agent":  # the agent has no process yet; its kill is armed below
            killer.arm(chance.randrange(100_000, 7 * MiB), plane.relay if who == "relay" else plane.target)
        plan = msgspec.structs.replace(writer.plan, stopped=True)
        machine = await plane.protect("web", [SIZE, SIZE], disks=disks, still=plan)
        service = plane.service(who, machine)
        if who == "agent":
            killer.arm(chance.randrange(50_000, 6 * MiB), service)
        await killer.struck(service)
        await two_more_points(plane, machine)
        for _ in range(12 if deep else 2):
            before = await plane.points(machine.item)
            killer.arm(chance.choice([1, 700, chance.randrange(50_000), chance.randrange(50_000, 600_000)]), service)
            await killer.struck(service)
            await two_more_points(plane, machine)
            after = {point.number: point for point in await plane.points(machine.item)}
            assert all(after[point.number] == point for point in before), "a point that was reported is gone"
        await writer.stop()
        await final_with_a_kill(plane, machine, killer, service, chance.randrange(1, FINAL_BYTES))
        assert writer.check(disks, Barrier.final()).missing == 0
        assert [disk.read_bytes() for disk in disks] == [disk.read_bytes() for disk in plane.replicas(machine)]
        if who != "agent":
            assert plane.compares(machine) == 2, f"more than the initial compare of two disks\n{plane.logs()}"
        await judged(plane, machine, writer)


async def final_with_a_kill(
    plane: ProcessPlane, machine: Machine, killer: Killer, service: Service, count: int
) -> None:
    """Ask for the final point, kill the service while it is made, and wait for it."""
    final = msgspec.structs.replace(plane.assigned(machine), mode=AgentMode.FINAL)
    killer.arm(count, service)
    await machine.control.set(machine.name, final)
    await killer.struck(service)

    async def is_final() -> bool:
        return (await plane.status(machine.item)).final

    await plane.until(is_final, "the final point", within_s=60)


async def judged(plane: ProcessPlane, machine: Machine, writer: Writer) -> None:
    await machine.agent.stop()
    points = await check_every_point(plane, machine, writer)
    assert points[-1].final
    assert len(points) >= 6


OFTEN = (1, 2, 3, 5, 8)
STEPS = (
    ("target", "journal.write", OFTEN),
    ("target", "journal.sync", OFTEN),
    ("target", "disk.read", OFTEN),  # the first ones within its recovery
    ("target", "disk.write", OFTEN),
    ("target", "disk.sync", OFTEN),
    ("target", "fence.replace", (1, 2)),
    ("relay", "spool.write", OFTEN),
    ("relay", "spool.sync", OFTEN),
    ("agent", "disk.read", OFTEN),
)


@pytest.mark.timeout(900)
async def test_killed_at_its_own_steps_the_oracle_holds(plane: ProcessPlane, seed: int, deep: bool) -> None:
    """Between any two calls that make something durable; every step in the deep run, a sample otherwise."""
    chance = random.Random(seed)
    chosen = [(who, step, number) for who, step, numbers in STEPS for number in numbers]
    chosen = chosen if deep else chance.sample(chosen, 4)
    disks = noisy_disks(plane.folder, seed, SIZE, first=WRITTEN * BLOCK)
    async with writing(plane.folder / "writer", "web", disks, seed, blocks=WRITTEN) as writer:
        machine = await plane.protect("web", [SIZE, SIZE], disks=disks, still=writer.plan)
        for who, step, number in chosen:
            await two_more_points(plane, machine)
            service = plane.service(who, machine)
            await service.quit()
            service.environment[KILL_AT] = f"{step}:{number}"
            await service.start(may_end=True)
            if step == "fence.replace":  # stored twice when a stream opens, which a new agent does
                await plane.service("agent", machine).quit()
                await plane.service("agent", machine).start()
            await plane.killed(service)
            await service.start()
        await two_more_points(plane, machine)
        await writer.stop()
        await machine.agent.stop()
        assert len(await check_every_point(plane, machine, writer)) >= 2 * len(chosen)


NOISE = 12 * MiB
OVERHEAD = 1.004
"""Bytes on the wire for a byte of incompressible data: TLS records, heads, questions and answers of the compare."""


@pytest.mark.parametrize("who", ["nobody", *SERVICES])
async def test_what_is_sent_again_after_a_kill(plane: ProcessPlane, who: str, seed: int) -> None:
    """Counted by the proxies: less than had been sent, and something for a killed server; without a kill nothing."""
    chance = random.Random(seed)
    count = chance.randrange(2 * NOISE // 4, 2 * NOISE * 3 // 4)
    disks = noisy_disks(plane.folder, seed, NOISE)
    proxy, direction = way_of(plane, who)
    killer = Killer(plane, who)
    if who in ("relay", "target"):
        killer.arm(count, plane.relay if who == "relay" else plane.target)
    machine = await plane.protect("web", [NOISE, NOISE], disks=disks, still=StillImagePlan())
    sent_before = 2 * NOISE
    if who != "nobody":
        service = plane.service(who, machine)
        if who == "agent":
            killer.arm(count, service)
        await plane.killed(service)
        sent_before = proxy.passed[direction]
        await service.start()
    await plane.complete_after(machine.item)
    again = proxy.passed[direction] - int(2 * NOISE * OVERHEAD)
    if who == "nobody":
        assert again <= 0
    else:
        assert again < sent_before
    if who in ("relay", "target"):  # of an agent all that it had sent may have been applied when it is killed
        assert again > 0, "what was on the way to the killed server is sent again"
    if who == "target":
        assert plane.by_agent.passed["up"] < 2 * NOISE * OVERHEAD, "the agent sends nothing again for the target"
    assert plane.compares(machine) == (4 if who == "agent" else 2), "only a new agent compares"
