"""The whole plane: what changes on the way, or is lost on it, costs no compare and ends no service."""

from __future__ import annotations

import asyncio
import random
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backhaul.disks.raw_file import create_raw_file
from backhaul.links.certificates import PeerIdentity, verify
from backhaul.links.errors import CertificateRevoked
from backhaul.master_target.item import TargetItem
from backhaul.mobility.compare import Comparison
from backhaul.mobility.link import ProcessServerLink
from backhaul.process_server import relay
from backhaul.process_server.items import Peer
from backhaul.process_server.run import ProcessServerConfig
from backhaul.process_server.run import run as run_process_server
from backhaul.replication import messages as m
from backhaul.replication.control import AgentMode, ItemAssignment, Method, StillImagePlan
from backhaul.replication.maps import GranuleMap
from backhaul.replication.opening import REQUEST_CONTEXT
from backhaul.replication.ports import RealClock, RealRandomness
from backhaul.replication.records import MapAsk, Reply
from backhaul.replication.units import MiB
from backhaul.replication.values import ItemPolicy, Role
from dataplane.plane import FILES, Machine, Plane, Running, running_plane

SIZE = 8 * MiB


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    async with running_plane(tmp_path) as running:
        yield running


@pytest.fixture
def compares(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number for each compare of a disk."""
    begun: list[int] = []
    real = Comparison.run

    async def run(self: Comparison) -> GranuleMap:
        begun.append(len(begun))
        return await real(self)

    monkeypatch.setattr(Comparison, "run", run)
    return begun


# --- another way to the same replica ----------------------------------------------------------------------------------


async def second_relay(plane: Plane) -> tuple[Running, str]:
    """A second process server that the target dials; its address."""
    credentials, ports = plane.credentials(Role.PROCESS_SERVER, "relay-2"), list[int]()

    async def run(ready: asyncio.Event) -> None:
        def listening(port: int) -> None:
            ports.append(port)
            ready.set()

        config = ProcessServerConfig("relay-2", plane.folder / "relay-2", "127.0.0.1", 0, 512 * MiB)
        await run_process_server(config, credentials, FILES, RealClock(), RealRandomness(), listening)

    running = Running(run)
    await running.start()
    assert plane.master_target is not None
    address = f"127.0.0.1:{ports[0]}"
    plane.master_target.dial("relay-2", (address,))
    return running, address


async def test_an_item_moves_to_another_process_server_without_a_compare(plane: Plane, compares: list[int]) -> None:
    machine = await plane.protect("web", [SIZE])
    await plane.caught_up(machine)
    other, address = await second_relay(plane)
    stream = (await plane.status(machine.item)).fence.stream
    moved = msgspec.structs.replace(
        plane.assigned(machine), process_server="relay-2", process_server_addresses=(address,)
    )
    await machine.control.set("web", moved)

    async def another_stream() -> bool:
        return (await plane.status(machine.item)).fence.stream > stream

    await plane.until(another_stream, "a stream through the other process server")
    await plane.caught_up(machine)
    await machine.agent.stop()
    await other.stop()
    assert len(compares) == 1


async def other_policy(plane: Plane, machine: Machine) -> ItemAssignment:
    return msgspec.structs.replace(plane.assigned(machine), policy=ItemPolicy(point_interval_s=0.2))


async def next_generation(plane: Plane, machine: Machine) -> ItemAssignment:
    await plane.request(Method.ITEM_RAISE, descriptor=plane.descriptor_of(machine, generation=2))
    return msgspec.structs.replace(plane.assigned(machine), generation=2)


@pytest.mark.parametrize("change", [other_policy, next_generation], ids=["policy", "generation"])
async def test_a_changed_policy_or_generation_costs_no_compare(
    plane: Plane, compares: list[int], change: object
) -> None:
    assert callable(change)
    machine = await plane.protect("web", [SIZE])
    await plane.caught_up(machine)
    stream = (await plane.status(machine.item)).fence.stream
    await machine.control.set("web", await change(plane, machine))

    async def another_stream() -> bool:
        return (await plane.status(machine.item)).fence.stream > stream

    await plane.until(another_stream, "a stream of the changed assignment")
    await plane.caught_up(machine)
    assert len(compares) == 1


# --- what is lost on the way ------------------------------------------------------------------------------------------


async def test_the_agent_learns_that_its_final_point_is_held(plane: Plane) -> None:
    machine = await plane.protect("web", [2 * MiB])
    await plane.caught_up(machine)
    await machine.control.set("web", msgspec.structs.replace(plane.assigned(machine), mode=AgentMode.FINAL))

    async def held() -> bool:
        return any(item.state == "held" for report in machine.control.reports for item in report.items)

    await plane.until(held, "a report that it is held")
    assert (await plane.status(machine.item)).final


async def test_a_first_epoch_lost_with_the_spool_is_sent_again_with_its_compare(
    plane: Plane, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica of which nothing is known: an epoch without a compare would be refused for ever."""
    images = [tmp_path / "source.img", tmp_path / "replica.img"]
    for number, image in enumerate(images):
        create_raw_file(image, SIZE)
        image.write_bytes(random.Random(seed + number).randbytes(SIZE))
    compared = asyncio.Event()
    real = Comparison.run

    async def run(self: Comparison) -> GranuleMap:
        found = await real(self)
        if not compared.is_set():
            compared.set()
            await plane.target.stop()
        return found

    monkeypatch.setattr(Comparison, "run", run)
    machine = await plane.protect("web", [SIZE], disks=images[:1], paths=[str(images[1])])
    await plane.until(lambda: plane.spooled_bytes(SIZE), "the first epoch in the spool")
    await plane.relay.stop()
    shutil.rmtree(plane.folder / "relay")
    await plane.relay.start()
    await plane.target.start()
    await plane.complete_after(machine.item)
    assert images[0].read_bytes() == images[1].read_bytes()


class HeldAnswer:
    """The target's first answer about hashes waits until `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.go = threading.Event(), threading.Event()
        real = TargetItem._hashes

        def hashes(item: TargetItem, number: int, ask: MapAsk) -> Reply:
            self.asked.set()
            assert self.go.wait(60)
            return real(item, number, ask)

        monkeypatch.setattr(TargetItem, "_hashes", hashes)


async def test_a_compare_goes_on_when_the_targets_link_ended_under_it(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backhaul.mobility.stream.ANSWER_S", 600.0)  # the patience that would cover it up
    answer = HeldAnswer(monkeypatch)
    machine = await plane.protect("web", [SIZE])
    assert await asyncio.to_thread(answer.asked.wait, 60)
    target = plane.master_target
    assert target is not None
    target.hang_up("relay-1")

    async def hung_up() -> bool:
        return not target.peers

    await plane.until(hung_up, "the link's end")
    answer.go.set()  # what it answers finds no link
    await target.worker(machine.item).call(lambda held: None)
    target.dial("relay-1", (f"127.0.0.1:{plane.relay_port}",))
    await plane.complete_after(machine.item)


async def test_a_compare_goes_on_when_the_agents_link_ended_under_it(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    links: list[ProcessServerLink] = []
    replies: list[m.Message] = []
    real_init, real_reply = ProcessServerLink.__init__, relay.Relay._reply

    def init(self: ProcessServerLink, *args: object) -> None:
        real_init(self, *args)  # type: ignore[arg-type]
        links.append(self)

    def reply(self: relay.Relay, peer: Peer, message: m.Message) -> None:
        replies.append(message)
        real_reply(self, peer, message)

    monkeypatch.setattr(ProcessServerLink, "__init__", init)
    monkeypatch.setitem(relay._HANDLERS, (Role.MASTER_TARGET, m.MessageType.REPLY), reply)
    monkeypatch.setattr("backhaul.mobility.stream.ANSWER_S", 600.0)  # the patience that would cover it up
    answer = HeldAnswer(monkeypatch)
    machine = await plane.protect("web", [SIZE])
    assert await asyncio.to_thread(answer.asked.wait, 60)
    before = len(replies)
    addresses = links[0]._addresses
    monkeypatch.setattr(links[0], "_addresses", list)  # it finds nobody to dial
    connection = links[0]._connection
    assert connection is not None
    connection.abort()

    async def answered() -> bool:
        return len(replies) > before

    answer.go.set()
    await plane.until(answered, "an answer that finds no agent")
    monkeypatch.setattr(links[0], "_addresses", addresses)  # it is found again
    await plane.complete_after(machine.item)


async def test_a_revoked_agent_keeps_no_other_from_going_on(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    revoked = await plane.protect("web", [2 * MiB])
    await plane.caught_up(revoked)
    await revoked.agent.stop()
    other = await plane.protect("mail", [2 * MiB])
    refused = asyncio.Event()
    loop = asyncio.get_running_loop()

    def verify_unless_revoked(
        certificate: bytes, context: bytes, body: bytes, signature: bytes, **trust: Any
    ) -> PeerIdentity:
        peer = verify(certificate, context, body, signature, **trust)
        if context == REQUEST_CONTEXT and peer.id == "agent-web":
            loop.call_soon_threadsafe(refused.set)
            raise CertificateRevoked(peer=peer.name)
        return peer

    monkeypatch.setattr("backhaul.links.identity.verify", verify_unless_revoked)
    await revoked.agent.start()
    await asyncio.wait_for(refused.wait(), 30)
    await plane.caught_up(other)


# --- freezing ---------------------------------------------------------------------------------------------------------


async def test_a_scan_that_does_not_fit_the_freeze_holds_no_writer(plane: Plane, tmp_path: Path) -> None:
    held = tmp_path / "held"
    plan = StillImagePlan(stopped=False, pre=("touch", str(held)), post=("true",), quiesce_limit_s=1e-9)
    machine = await plane.protect("web", [2 * MiB], still=plan)

    async def reported() -> bool:
        codes = [item.code for report in machine.control.reports for item in report.items]
        return "BH-FREEZE-TOO-LONG" in codes

    machine.disks[0].write_bytes(bytes(range(256)) * (2 * MiB // 256))
    await plane.until(reported, "a report that scanning takes too long")
    assert not held.exists()
    assert (await plane.status(machine.item)).complete is None
