"""An item that was given up at its target and comes back: what is old stays refused."""

from __future__ import annotations

import errno
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from backhaul.disks.raw_file import create_raw_file
from backhaul.master_target import forgotten
from backhaul.replication.control import Method
from backhaul.replication.ports import RealFiles
from backhaul.replication.records import ChunkCodec, encode_frame
from backhaul.replication.units import GRANULE, MiB
from backhaul.replication.values import Extent
from dataplane.plane import Machine, Plane, RequestFailed, running_plane
from dataplane.processes.hostile import RawAgent
from dataplane.test_hostile import begin

SIZE = MiB


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    async with running_plane(tmp_path) as running:
        yield running


async def replicated(plane: Plane) -> Machine:
    """A machine with a point, under generation 2; its agent has been stopped."""
    image = plane.folder / "web-0.img"
    create_raw_file(image, SIZE)
    image.write_bytes(random.Random(1).randbytes(SIZE))
    machine = await plane.protect("web", [SIZE], disks=[image])
    await plane.complete_after(machine.item)
    await machine.agent.stop()
    await plane.request(Method.ITEM_RAISE, descriptor=plane.descriptor_of(machine, generation=2))
    return machine


async def given_up(plane: Plane, machine: Machine) -> str:
    """As a commit gives it up: its disk stays."""
    path = str(plane.replicas(machine)[0])
    kept = plane.folder / "kept.img"
    kept.hardlink_to(path)
    await plane.request(Method.ITEM_DELETE, item=machine.item, keep_disks=True)
    return str(kept)


def content_of(path: str) -> bytes:
    return Path(path).read_bytes()


async def made_anew(plane: Plane, machine: Machine, path: str, **changes: Any) -> None:
    descriptor = plane.descriptor_of(machine, **({"generation": 2} | changes))
    await plane.request(Method.ITEM_CREATE, descriptor=descriptor, paths=[path])


async def test_streams_go_on_above_those_of_before_also_after_a_restart(plane: Plane) -> None:
    machine = await replicated(plane)
    before = (await plane.status(machine.item)).fence.stream
    assert before > 0
    path = await given_up(plane, machine)
    await plane.target.stop()
    await plane.target.start()
    await made_anew(plane, machine, path, generation=3)
    assert (await plane.status(machine.item)).fence.stream == before
    await machine.agent.start()
    await plane.complete_after(machine.item)
    assert (await plane.status(machine.item)).fence.stream > before


async def test_an_old_agent_s_frames_are_refused_and_change_nothing(plane: Plane) -> None:
    machine = await replicated(plane)
    agent = await RawAgent.connect(plane, f"agent-{machine.name}", machine.item, machine.name)
    await agent.open()
    data = bytes(GRANULE)
    frame = agent.session.seal(encode_frame(ChunkCodec(), [Extent(0, 0, GRANULE)], data, begin=begin(agent)))
    path = await given_up(plane, machine)
    content = content_of(path)
    await made_anew(plane, machine, path, generation=3, active_machine="the-other-side")
    fence = (await plane.status(machine.item)).fence

    async def refused() -> bool:
        await agent.connection.send(frame)
        return await agent.refused() == "BH-FENCE-STALE"

    await plane.until(refused, "the frame of the closed stream is refused")
    await agent.connection.close()
    assert content_of(path) == content
    assert (await plane.status(machine.item)).fence == fence


@pytest.mark.parametrize(
    "changes", [{"generation": 1}, {"term": 0}, {"term_key": b"\1" * 32}], ids=["generation", "term", "key"]
)
async def test_what_was_below_the_fence_before_is_below_it_now(plane: Plane, changes: dict[str, Any]) -> None:
    machine = await replicated(plane)
    path = await given_up(plane, machine)
    with pytest.raises(RequestFailed) as refused:
        await made_anew(plane, machine, path, **changes)
    assert refused.value.code == "BH-DESCRIPTOR-REFUSED"
    await made_anew(plane, machine, path)


async def test_without_room_to_remember_nothing_is_given_up(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = await replicated(plane)
    points = await plane.points(machine.item)

    def full(self: RealFiles, path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patched:
        patched.setattr(RealFiles, "replace", full)
        with pytest.raises(RequestFailed):
            await plane.request(Method.ITEM_DELETE, item=machine.item, keep_disks=True)
    assert await plane.points(machine.item) == points
    await given_up(plane, machine)
    assert plane.master_target is not None
    assert forgotten.recall(RealFiles(), plane.master_target.folder, machine.item) is not None
