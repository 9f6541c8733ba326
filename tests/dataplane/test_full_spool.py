"""A spool that is full: agents wait or send again, files stay within their bound, and nothing is compared for it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backhaul.disks.raw_file import create_raw_file
from backhaul.mobility.stream import Stream
from backhaul.process_server.run import ProcessServerConfig
from backhaul.process_server.run import run as run_process_server
from backhaul.replication.errors import BackhaulError, SpoolLost
from backhaul.replication.ports import RealClock, RealRandomness
from backhaul.replication.units import MiB
from dataplane.plane import FILES, Machine, Plane

BOUND = 64 * MiB
"""A fifth of it is more than one connection's queue, so whoever is told to stop has time to."""

SIZE = 72 * MiB
"""More than the spool holds."""


class SmallSpool(Plane):
    """A plane whose process server has little space."""

    async def _run_relay(self, ready: asyncio.Event) -> None:
        def listening(port: int) -> None:
            self.relay_port = port
            ready.set()

        config = ProcessServerConfig("relay", self.folder / "relay", "127.0.0.1", self.relay_port, BOUND)
        await run_process_server(config, self.relay_credentials, FILES, RealClock(), RealRandomness(), listening)

    def spool_bytes(self) -> int:
        """What the spool's files take."""
        return sum(path.stat().st_size for path in (self.folder / "relay").rglob("*") if path.is_file())


@pytest.fixture
async def plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SmallSpool]:
    monkeypatch.setattr("backhaul.process_server.run.SPOOL_AT_LEAST", BOUND)  # smaller than a person may choose
    plane = SmallSpool(tmp_path)
    try:
        await plane.relay.start()
        await plane.target.start()
        yield plane
    finally:
        await plane.close()


def fill(machine: Machine, seed: int, length: int) -> None:
    """In a thread of its own: the kernel lets who opens a disk wait until the agent has given up its still image."""
    with machine.disks[0].open("r+b") as file:
        file.write(random.Random(seed).randbytes(length))


async def protected(plane: Plane, name: str, size: int, seed: int) -> Machine:
    image = plane.folder / f"{name}-0.img"
    create_raw_file(image, size)
    image.write_bytes(random.Random(seed).randbytes(size))
    machine = await plane.protect(name, [size], disks=[image])
    await plane.complete_after(machine.item)
    return machine


async def settled(plane: Plane, machine: Machine) -> None:
    """A point holds all that was written before this call. The replica is the disk."""
    await plane.caught_up(machine)
    assert plane.replicas(machine)[0].read_bytes() == machine.disks[0].read_bytes()


def compared(machine: Machine) -> bool:
    """Whether any report since they were cleared shows a compare."""
    return "verifying" in {item.state for report in machine.control.reports for item in report.items}


async def overfill(plane: SmallSpool, large: Machine, small: Machine, seed: int) -> None:
    """The target goes, and more than the spool holds is written."""
    for machine in (large, small):
        await settled(plane, machine)
    await plane.target.stop()
    for machine in (large, small):
        machine.control.reports.clear()
    await asyncio.to_thread(fill, large, seed, SIZE)


async def come_back(plane: SmallSpool, *machines: Machine) -> None:
    """The target is back: all goes on, and nothing was compared for it."""
    await plane.target.start()
    for machine in machines:
        await settled(plane, machine)
        assert not compared(machine)
    assert plane.spool_bytes() <= BOUND


async def test_more_than_the_spool_holds_waits_for_the_target_and_costs_no_compare(
    plane: SmallSpool, seed: int
) -> None:
    large, small = await protected(plane, "web", SIZE, seed), await protected(plane, "db", MiB, seed + 1)
    await overfill(plane, large, small, seed + 2)
    most = 0

    async def short() -> bool:
        nonlocal most
        most = max(most, plane.spool_bytes())
        return bool((await plane.relay_status())["throttled_items"])

    await plane.until(short, "the process server tells the large item to stop")
    await asyncio.to_thread(fill, small, seed + 3, MiB)
    await come_back(plane, large, small)
    assert 0 < most <= BOUND


async def test_an_agent_that_does_not_stop_loses_its_own_frames_only_and_sends_them_again(
    plane: SmallSpool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = await protected(plane, "web", SIZE, seed), await protected(plane, "db", MiB, seed + 1)
    monkeypatch.setattr(Stream, "_throttled", property(lambda _: False, lambda *_: None), raising=False)
    ended: list[tuple[str, str]] = []
    fail = Stream.fail

    def noted(self: Stream, error: BackhaulError) -> None:
        ended.append((self.item, error.code))
        fail(self, error)

    monkeypatch.setattr(Stream, "fail", noted)
    await overfill(plane, large, small, seed + 2)

    async def lost() -> bool:
        return (large.item, SpoolLost.code) in ended

    await plane.until(lost, "the spool drops the large item's frames")
    await asyncio.to_thread(fill, small, seed + 3, MiB)
    await come_back(plane, large, small)
    assert small.item not in {item for item, _ in ended}
