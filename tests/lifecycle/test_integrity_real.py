"""The integrity report of a failback, by the agent that stands by beside the stopped machine; real sites."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from backhaul.configuration_server.lifecycle import workflows as w
from backhaul.configuration_server.lifecycle.integrity import read_report
from backhaul.configuration_server.lifecycle.values import Wish
from backhaul.mobility import granule_keys
from backhaul.mobility.agent import Agent
from backhaul.mobility.granule_keys import GranuleKeys
from backhaul.recovery.errors import ChecksFailed
from backhaul.recovery.item import Integrity, Side, State
from backhaul.replication.control import AgentMode, DiskQuestion, Method, Question, QuestionKind
from backhaul.replication.units import GRANULE, MiB
from backhaul.replication.values import Role
from dataplane.plane import FILES, WORLD, Held, Machine, Plane, Running, running_plane
from lifecycle.real_world import ITEM, RealWorld, real_world


@pytest.fixture
async def world(tmp_path: Path, seed: int) -> AsyncIterator[RealWorld]:
    async with real_world(tmp_path, seed) as made:
        yield made


def shown(world: RealWorld) -> Integrity:
    """What the item says of its report now."""
    return world.stored.state.integrity


def flip_a_bit(world: RealWorld) -> None:
    """In the replica at home, behind the master target's back, before the machine starts from it. The target's map
    knows the disk as it was: what is stale in it would be read back later, flipped.
    """
    world.ask("mt-home", Method.ITEM_DIGESTS, {"item": ITEM, "disk": 0, "first": 0, "count": 1, "reread": False})
    with world.images(Side.HOME, base=True)[0].open("r+b") as image:
        image.seek(3 * GRANULE + 5)
        byte = image.read(1)[0]
        image.seek(3 * GRANULE + 5)
        image.write(bytes([byte ^ 4]))


async def test_a_bit_that_flipped_at_home_is_found_and_only_its_name_lets_it_through(world: RealWorld) -> None:
    await world.job(w.PROTECT)
    await world.points(2)
    await world.job(w.PLANNED)
    assert shown(world) is Integrity.PASSED
    kinds = [(question.kind, question.reread, question.disks[0].index) for question in world.asked]
    assert kinds == [("digests", reread, disk) for reread in (False, True) for disk in (0, 1)], (
        "before the start by the maps, afterwards whole"
    )
    await world.job(w.COMMIT)
    await world.job(w.REPROTECT)
    await world.points(2)
    outcome = await world.job(w.PLANNED, between=lambda step: flip_a_bit(world) if step == "layers" else None)
    assert shown(world) is Integrity.FAILED
    report = read_report(world.configuration.identity.trust, world.stored.report)
    assert ([(d.disk, d.range) for d in report.differences], report.map_differing) == ([(0, 0)], 0)
    assert json.loads(outcome[-1])["signed"] == world.stored.report.hex(), "kept with the job"
    with pytest.raises(ChecksFailed):
        await world.job(w.COMMIT)
    accepted = await world.job(w.COMMIT, Wish(accept_integrity=True))
    assert json.loads(accepted[0]) == {"accepted": "failed"}
    assert world.now() is State.FAILED_BACK_COMMITTED


class Living:
    """An agent of a machine, started again and again with the same assignment."""

    def __init__(self, plane: Plane, machine: Machine, held: Held) -> None:
        self._credentials = plane.credentials(Role.AGENT, f"agent-{machine.name}")
        self._name, self._held = machine.name, held

    @contextlib.asynccontextmanager
    async def life(self, keys: GranuleKeys) -> AsyncIterator[None]:
        async def run(ready: asyncio.Event) -> None:
            ready.set()
            await Agent(self._name, self._credentials, self._held, WORLD, keys).run()

        running = Running(run)
        await running.start()
        try:
            yield
        finally:
            await running.stop()


async def test_an_agent_that_was_started_anew_while_it_stands_by_answers(tmp_path: Path) -> None:
    """Its key is in its folder; without that nothing can be compared, and it says so."""
    async with running_plane(tmp_path) as plane:
        disk = tmp_path / "web.img"
        await asyncio.to_thread(disk.write_bytes, os.urandom(MiB))
        FILES.make_folder(tmp_path / "agent")
        machine = await plane.protect("web", [MiB], disks=[disk])
        await machine.agent.stop()
        assignment, held = plane.assigned(machine), Held()
        await held.set("web", assignment)
        agent = Living(plane, machine, held)
        async with agent.life(GranuleKeys(FILES, tmp_path / "agent")):
            done = (await plane.status(machine.item)).complete
            await plane.complete_after(machine.item, done.number if done else 0)
            await held.set("web", msgspec.structs.replace(assignment, mode=AgentMode.STANDBY))

            async def kept() -> bool:
                return (tmp_path / "agent" / granule_keys.FILE).exists()

            await plane.until(kept, "the key in the agent's folder")
        wanted = {"item": machine.item, "disk": 0, "first": 0, "count": 1}
        theirs = await plane.request(Method.ITEM_DIGESTS, **wanted, reread=True)
        disks = (DiskQuestion(0, str(disk), 0, 1),)
        question = Question("q1", machine.item, QuestionKind.DIGESTS, "web", disks, bytes(theirs["lineage"]))
        async with agent.life(GranuleKeys(FILES, tmp_path / "agent")):
            answer = await held.answer(question)
        assert list(answer.disks[0].digests) == [bytes(digest) for digest in theirs["digests"]]
        async with agent.life(GranuleKeys()):
            assert (await held.answer(msgspec.structs.replace(question, id="q2"))).code == "BH-GRANULE-KEY-UNKNOWN"
