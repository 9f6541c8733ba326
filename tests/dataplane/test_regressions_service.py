"""Workers, links and the event loop of a master target: who waits for whom."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from backhaul.links.connection import Connection
from backhaul.links.errors import LinkLost
from backhaul.master_target.errors import ItemUnknown
from backhaul.master_target.item import TargetItem
from backhaul.master_target.keys import SealingKeys
from backhaul.master_target.peers import OUTBOX_MESSAGES, RelayPeer
from backhaul.master_target.replica import Replica
from backhaul.master_target.worker import ItemWorker
from backhaul.replication import messages as m
from backhaul.replication.control import Method
from backhaul.replication.errors import BackhaulError
from backhaul.replication.opening import read_target_key
from backhaul.replication.units import MiB
from backhaul.replication.values import Role
from dataplane.plane import Plane, RequestFailed, running_plane
from dataplane.replica_item import ReplicaItem


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    async with running_plane(tmp_path) as running:
        yield running


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


@pytest.fixture
def held(tmp_path: Path) -> ReplicaItem:
    return ReplicaItem(tmp_path / "item")


class Heard:
    """A process server that hears."""

    def __init__(self) -> None:
        self.types: list[m.MessageType] = []
        self.answered = asyncio.Event()

    def post(self, message: m.Message) -> None:
        self.types.append(message.type)
        if message.type is m.MessageType.OPEN_ANSWER:
            self.answered.set()


# --- workers ----------------------------------------------------------------------------------------------------------


async def test_an_answer_goes_to_the_process_server_that_asked(
    held: ReplicaItem, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking, other = Heard(), Heard()
    taken, go = threading.Event(), threading.Event()
    real = held.item.handle

    def slow(batch: Sequence[m.Message]) -> list[m.Message]:
        taken.set()
        assert go.wait(60)
        return real(batch)

    monkeypatch.setattr(held.item, "handle", slow)
    worker = ItemWorker(held.item, {asking, other}, executor, lambda error: None, lambda: None)
    worker.put(asking, held.source.request("scan"))
    await asyncio.to_thread(taken.wait, 60)
    worker.put(other, held.attach())  # it connects while the request is in hand
    go.set()
    await asyncio.wait_for(asking.answered.wait(), 60)
    await worker.close()
    assert not other.answered.is_set()


async def test_messages_of_two_process_servers_share_no_batch(
    held: ReplicaItem, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Heard(), Heard()
    batches: list[int] = []
    real = held.item.handle

    def counting(batch: Sequence[m.Message]) -> list[m.Message]:
        batches.append(len(batch))
        return real(batch)

    monkeypatch.setattr(held.item, "handle", counting)
    worker = ItemWorker(held.item, {first, second}, executor, lambda error: None, lambda: None)
    for origin in (first, first, second, first):
        worker.put(origin, held.attach())
    while sum(batches) < 4:
        await worker.call(lambda held: None)
    await worker.call(lambda held: None)  # behind it all is sent
    await worker.close()
    assert [size for size in batches if size] == [2, 1, 1]
    applied = m.MessageType.APPLIED
    assert (first.types.count(applied), second.types.count(applied)) == (4, 4), "all hear what is applied"


async def test_an_item_that_is_closed_answers_who_waits_for_it(held: ReplicaItem, executor: ThreadPoolExecutor) -> None:
    worker = ItemWorker(held.item, set(), executor, lambda error: None, lambda: None)
    waiting = asyncio.create_task(worker.call(lambda held: held.applied))
    await asyncio.sleep(0)
    await worker.close()
    with pytest.raises(ItemUnknown):
        await asyncio.wait_for(waiting, 60)


async def test_what_is_served_is_told_without_touching_the_replica(
    held: ReplicaItem, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = ItemWorker(held.item, set(), executor, lambda error: None, lambda: None)
    threads: list[int] = []
    real = held.item.served

    def served() -> m.Served:
        threads.append(threading.get_ident())
        return real()

    monkeypatch.setattr(held.item, "served", served)
    generation = worker.served.fence.generation
    await worker.call(lambda item: item.raise_descriptor(held.signed(generation=generation + 1)))
    assert worker.served.fence.generation == generation + 1
    assert threads
    assert threading.get_ident() not in threads
    await worker.close()


async def test_maps_that_are_due_are_saved_behind_the_answers(
    held: ReplicaItem, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, saved = Heard(), asyncio.Event()
    loop, told = asyncio.get_running_loop(), list[m.MessageType]()
    real = held.item.save_maps

    def save() -> None:
        told.extend(heard.types)
        real()
        loop.call_soon_threadsafe(saved.set)

    monkeypatch.setattr(held.item, "save_maps", save)
    held.item.maps_due = True
    worker = ItemWorker(held.item, {heard}, executor, lambda error: None, lambda: None)
    worker.put(heard, held.source.request("scan"))
    await asyncio.wait_for(saved.wait(), 60)
    assert m.MessageType.OPEN_ANSWER in told
    await worker.close()


# --- process servers that do not read ---------------------------------------------------------------------------------


class Deaf:
    """A connection whose peer reads nothing."""

    def __init__(self) -> None:
        self.peer = type("Peer", (), {"name": "process-server/deaf"})()
        self.lost: LinkLost | None = None
        self.reason: BackhaulError | None = None

    async def send_many(self, messages: Sequence[m.Message]) -> None:
        await asyncio.Event().wait()

    def abort(self, reason: BackhaulError | None = None) -> None:
        self.lost, self.reason = LinkLost(peer="deaf", reason="cut"), reason


async def test_a_process_server_that_does_not_read_holds_back_no_answer(
    held: ReplicaItem, executor: ThreadPoolExecutor
) -> None:
    deaf, heard = RelayPeer(cast(Connection, Deaf())), Heard()
    sender = asyncio.create_task(deaf.send_all())
    worker = ItemWorker(held.item, {deaf, heard}, executor, lambda error: None, lambda: None)
    for _ in range(3):  # what is said to all goes to the one that is deaf, too
        worker.put(heard, held.attach())
        await worker.call(lambda held: None)
    worker.put(heard, held.source.request("scan"))
    await asyncio.wait_for(heard.answered.wait(), 60)
    sender.cancel()
    await asyncio.gather(sender, return_exceptions=True)
    await worker.close()


async def test_a_process_server_that_does_not_read_is_cut_off() -> None:
    connection = Deaf()
    peer = RelayPeer(cast(Connection, connection))
    sender = asyncio.create_task(peer.send_all())
    message = m.message(m.Serves(()))
    for _ in range(OUTBOX_MESSAGES):
        peer.post(message)
    assert connection.lost is None
    peer.post(message)
    assert connection.reason is not None
    assert connection.reason.code == "BH-PROCESS-SERVER-TOO-SLOW"
    peer.post(message)
    assert not peer._outbox, "nothing is kept for one that is gone"
    sender.cancel()
    await asyncio.gather(sender, return_exceptions=True)


# --- items that come and go -------------------------------------------------------------------------------------------


async def test_a_replica_is_not_opened_twice(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk is put back: the target tries by itself, and the item is asked for again at the same time."""
    monkeypatch.setattr("backhaul.master_target.service.OPEN_RETRY_S", 0.005)
    machine = await plane.protect("web", [MiB])
    await plane.complete_after(machine.item)
    await machine.agent.stop()
    await plane.target.stop()
    disk = plane.replicas(machine)[0]
    disk.rename(plane.folder / "taken")
    opened: list[object] = []
    entered, go = threading.Event(), threading.Event()
    real = Replica.open

    def slow(*args: Any, **named: Any) -> Replica:
        opened.append(args)
        entered.set()
        assert go.wait(60)
        return real(*args, **named)

    monkeypatch.setattr(Replica, "open", slow)
    await plane.target.start()
    (plane.folder / "taken").rename(disk)
    await asyncio.to_thread(entered.wait, 60)
    descriptor = plane.descriptor_of(machine)
    create = asyncio.create_task(plane.request(Method.ITEM_CREATE, descriptor=descriptor, paths=[None]))
    for _ in range(20):
        with pytest.raises(RequestFailed):
            await plane.status(machine.item)
    go.set()
    await create
    await plane.status(machine.item)
    assert len(opened) == 1


async def test_disks_and_keys_are_stored_and_closed_beside_the_event_loop(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = await plane.protect("web", [MiB])
    await plane.complete_after(machine.item)
    await machine.agent.stop()
    threads: dict[str, int] = {}

    def watched(owner: type, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: Any) -> Any:
            threads[name] = threading.get_ident()
            return real(*args)

        monkeypatch.setattr(owner, name, call)

    watched(TargetItem, "close")
    watched(TargetItem, "save_maps")
    watched(SealingKeys, "newest")
    watched(SealingKeys, "erase_unused")
    plane.target_credentials.replace(plane.identity(Role.MASTER_TARGET, plane.target_id))
    await plane.request(Method.TARGET_KEY)
    await plane.request(Method.ITEM_DELETE, item=machine.item, keep_disks=False)
    assert threads.keys() == {"close", "save_maps", "newest", "erase_unused"}
    assert threading.get_ident() not in threads.values()


async def test_renewals_erase_the_sealing_keys_that_no_stream_uses(plane: Plane) -> None:
    machine = await plane.protect("web", [MiB])
    await plane.complete_after(machine.item)
    target = plane.master_target
    assert target is not None
    for _ in range(4):
        plane.target_credentials.replace(plane.identity(Role.MASTER_TARGET, plane.target_id))
        blob = bytes((await plane.request(Method.TARGET_KEY))["key"])
    keys = target.target.sealing_keys()
    assert list(keys) == [1, 4, 5], "the open stream's, the one before, the newest"
    assert read_target_key(target.target.verifier, blob).public == keys[5].public
    await plane.caught_up(machine)
    await plane.target.stop()
    await plane.target.start()
    await plane.caught_up(machine)
