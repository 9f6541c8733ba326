"""A copy of a machine, started beside it or in its place, sends nothing, whatever of the machine was copied with it.

The agent's identity, key and state lie on a disk that is replicated, so a test network, a clone or an old primary has
them too. Here a copy has all of it, byte for byte: disks, certificate and private key, granule keys. What tells it
from the machine is the id that the hypervisor reports, and nothing else.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from backhaul.links.identity import Identity
from backhaul.links.tls import Credentials
from backhaul.mobility import granule_keys
from backhaul.mobility.agent import Agent
from backhaul.mobility.granule_keys import GranuleKeys
from backhaul.replication.control import ItemAssignment, ItemReport
from backhaul.replication.ports import RealClock
from backhaul.replication.units import MiB
from backhaul.replication.values import Role
from dataplane.plane import FILES, WORLD, Held, Machine, Plane, Running

SIZE = 2 * MiB
ORIGINAL, COPY = "web", "copy-of-web"


class BodyPlane(Plane):
    """A plane whose machines are folders: `disks` beside the `agent` that reads them, with all that it keeps."""

    def body(self, machine: str) -> Path:
        """All that there is of a machine."""
        return self.folder / "machines" / machine

    def agent(self, machine: str, control: Held, *, agent: str | None = None) -> Running:
        """An agent whose certificate, key and state are what lies in the machine's folder."""
        folder = self.body(machine) / "agent"
        if not folder.exists():
            self.identity(Role.AGENT, agent or f"agent-{machine}").save(FILES, folder)

        async def run(ready: asyncio.Event) -> None:
            ready.set()
            credentials = Credentials(Identity.load(FILES, folder), RealClock())
            await Agent(machine, credentials, control, WORLD, GranuleKeys(FILES, folder)).run()

        return Running(run)

    async def protect_body(self, seed: int) -> Machine:
        """The machine with two disks, replicated, its state complete."""
        disks = [self.body(ORIGINAL) / "disks" / f"{index}.img" for index in range(2)]
        disks[0].parent.mkdir(parents=True)
        for index, disk in enumerate(disks):
            disk.write_bytes(random.Random(seed + index).randbytes(SIZE))
        machine = await self.protect(ORIGINAL, [SIZE, SIZE], disks=disks)
        await self.complete_after(machine.item)

        async def keyed() -> bool:
            return (self.body(ORIGINAL) / "agent" / granule_keys.FILE).exists()

        await self.until(keyed, "the agent has its granule key on disk")
        return machine

    def copy(self) -> Path:
        """The machine again, byte for byte."""
        shutil.copytree(self.body(ORIGINAL), self.body(COPY))
        pairs = [(one, self.body(COPY) / one.relative_to(self.body(ORIGINAL))) for one in files(self.body(ORIGINAL))]
        assert all(one.read_bytes() == other.read_bytes() for one, other in pairs)
        assert {one.name for one, _ in pairs} == {"0.img", "1.img", "identity", "trust", granule_keys.FILE}
        return self.body(COPY)


def write(disk: Path, text: bytes) -> None:
    """From a thread: the agent, on the loop, may have to let go of the disk first."""
    with disk.open("r+b") as file:
        file.write(text * 1000)


def files(folder: Path) -> list[Path]:
    """All files below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[BodyPlane]:
    plane = BodyPlane(tmp_path)
    try:
        await plane.relay.start()
        await plane.target.start()
        yield plane
    finally:
        await plane.close()


def told(plane: BodyPlane, machine: Machine) -> ItemAssignment:
    """What the machine was told, for the copy's disks, which lie where the machine's do in its own eyes."""
    original = plane.assigned(machine)
    disks = plane.body(COPY) / "disks"
    there = [msgspec.structs.replace(disk, path=str(disks / Path(disk.path).name)) for disk in original.disks]
    return msgspec.structs.replace(original, disks=tuple(there))


async def reports_of(plane: BodyPlane, copy: Held, count: int, code: str = "") -> list[ItemReport]:
    """What the copy's agent says of the item, once it has said so much, and met this code."""

    async def enough() -> list[ItemReport]:
        found = [item for report in copy.reports for item in report.items]
        met = not code or code in {item.code for item in found}
        return found if len(found) >= count and met else []

    found: list[ItemReport] = await plane.until(enough, "the copy's agent reports")
    return found


@pytest.mark.parametrize("obeys", [True, False], ids=["told the truth", "told that it is the one"])
@pytest.mark.parametrize("beside", [True, False], ids=["beside it", "in its place"])
async def test_a_copy_sends_nothing(plane: BodyPlane, seed: int, *, obeys: bool, beside: bool) -> None:
    """`obeys`: its agent is told which machine is meant, and stands by; otherwise it tries, and the target refuses."""
    machine = await plane.protect_body(seed)
    plane.copy()
    write(plane.body(COPY) / "disks" / "0.img", b"a write of the copy, which is another machine from now on")
    if not beside:
        await machine.agent.stop()
    before = await plane.status(machine.item)
    replica = [path.read_bytes() for path in plane.replicas(machine)]
    control = Held()
    await control.set(ORIGINAL if obeys else COPY, told(plane, machine))
    agent = plane.agent(COPY, control)
    await agent.start()
    try:
        found = await reports_of(plane, control, 3, "" if obeys else "BH-TARGET-REFUSED")
        status = await plane.status(machine.item)
    finally:
        await agent.stop()
    if obeys:
        assert {item.state for item in found} == {"standby"}
    else:
        refusals = {item.params["reason_code"] for item in found if item.code == "BH-TARGET-REFUSED"}
        assert refusals == {"BH-NOT-ACTIVE-MACHINE"}
    assert {item.sent_bytes for item in found} == {0}
    assert status.fence == before.fence, "the machine's own stream was not closed"
    assert [path.read_bytes() for path in plane.replicas(machine)] == replica
    if not beside:
        assert (status.complete, status.applied) == (before.complete, before.applied)
        return
    assert before.complete is not None
    await asyncio.to_thread(write, machine.disks[1], b"a write of the machine")
    known = (await plane.complete_after(machine.item, before.complete.number)).complete
    assert known is not None
    await plane.complete_after(machine.item, known.number + 1)
    assert [path.read_bytes() for path in plane.replicas(machine)] == [disk.read_bytes() for disk in machine.disks]
