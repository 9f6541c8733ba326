"""Questions about disks, answered in threads: what may be read when, what is told, and what ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backhaul.disks.contract import Disk
from backhaul.disks.digests import lineage_of, read_digests
from backhaul.disks.opening import open_disk
from backhaul.mobility import questions as q
from backhaul.mobility.granule_keys import FILE, GranuleKeys
from backhaul.mobility.questions import Questions, data_runs
from backhaul.replication.control import Answer, Assignment, DiskQuestion, Question, QuestionKind
from backhaul.replication.maps import GranuleMap
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness
from backhaul.replication.units import GRANULE, RANGE, MiB
from backhaul.replication.values import ItemId

ITEM = ItemId("0" * 32)
KEY = bytes(range(32))
SIZE = RANGE + 2 * MiB


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(MiB))
    os.truncate(path, SIZE)
    return path


class World:
    """The answers of an agent with one item."""

    def __init__(self) -> None:
        self.key: bytes | None = KEY
        self.maps: dict[int, GranuleMap] = {}
        self.sunk: list[int] = []
        self.questions = Questions("vm", lambda _: self.key, self._maps, RealClock(), RealRandomness(), self._sink)

    def _maps(self, _: ItemId) -> Mapping[int, GranuleMap]:
        return self.maps

    async def _sink(self, body: bytes) -> None:
        self.sunk.append(len(body))

    async def answer(self, question: Question) -> Answer:
        self.questions.take([question])
        async with asyncio.timeout(20):
            await self.questions.answered.wait()
        (answer,) = self.questions.untold()
        return answer


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.questions.close()


def digests(path: Path, **changes: Any) -> Question:
    disks = (DiskQuestion(0, str(path), 0, 2),)
    whole = Question("q1", ITEM, QuestionKind.DIGESTS, "vm", disks, lineage_of(KEY))
    return msgspec.structs.replace(whole, **changes)


def opened(path: Path) -> Disk:
    return open_disk(path, writable=False)


async def test_digests_are_those_of_the_disk(world: World, disk: Path) -> None:
    answer = await world.answer(digests(disk))
    assert answer.code == ""
    assert answer.disks[0].digests == tuple(read_digests(opened(disk), KEY, 0, 2))
    assert answer.disks[0].size == SIZE


async def test_the_map_answers_where_it_may_and_the_disk_where_it_must(world: World, disk: Path) -> None:
    true = tuple(read_digests(opened(disk), KEY, 0, 2))
    world.maps = {0: GranuleMap.all_zero(SIZE, KEY)}
    lie = (await world.answer(digests(disk, reread=False))).disks[0].digests
    assert lie != true, "the map is believed"
    assert (await world.answer(digests(disk, id="q2"))).disks[0].digests == true
    world.maps[0].mark_all_stale()
    assert (await world.answer(digests(disk, id="q3", reread=False))).disks[0].digests == true
    world.maps = {0: GranuleMap.all_zero(SIZE, bytes(32))}
    answer = await world.answer(digests(disk, id="q4", reread=False))
    assert answer.disks[0].digests == true, "a map under another key is not believed"


async def test_a_disk_that_somebody_writes_is_not_compared(world: World, disk: Path) -> None:
    with disk.open("r+b"):
        assert (await world.answer(digests(disk))).code == "BH-NOT-STOPPED"
    assert (await world.answer(digests(disk, id="q2"))).code == ""


async def test_a_writer_that_comes_while_it_is_read_is_noticed(
    world: World, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **named: Any) -> list[bytes]:
        with contextlib.suppress(BlockingIOError):  # a lease holds it up; it was broken all the same
            os.close(os.open(disk, os.O_WRONLY | os.O_NONBLOCK))
        return read_digests(*arguments, **named)

    monkeypatch.setattr("backhaul.mobility.questions.read_digests", interrupted)
    assert (await world.answer(digests(disk))).code == "BH-IMAGE-NOT-STILL"


@pytest.mark.parametrize("key", [None, bytes(32)], ids=["none", "another target's"])
async def test_without_the_replica_s_key_there_is_no_answer(world: World, disk: Path, key: bytes | None) -> None:
    world.key = key
    assert (await world.answer(digests(disk))).code == "BH-GRANULE-KEY-UNKNOWN"


async def test_what_is_not_understood_or_not_there_has_a_code(world: World, disk: Path) -> None:
    assert (await world.answer(digests(disk, kind="of a later version"))).code == "BH-QUESTION-UNKNOWN"
    gone = (DiskQuestion(0, str(disk) + "-gone", 0, 1),)
    assert (await world.answer(digests(disk, id="q2", disks=gone))).code.startswith("BH-")
    behind = (DiskQuestion(0, str(disk), 1, 2),)
    assert (await world.answer(digests(disk, id="q3", disks=behind))).code == "BH-DISK-BOUNDS"


async def test_a_copy_of_the_machine_does_not_answer(world: World, disk: Path) -> None:
    world.questions.take([digests(disk, machine="vm-copy"), digests(disk, id="mine")])
    await world.questions.answered.wait()
    assert [answer.id for answer in world.questions.untold()] == ["mine"]


async def test_an_answer_is_told_until_it_arrived_and_kept_until_it_is_not_asked_for(world: World, disk: Path) -> None:
    answer = await world.answer(digests(disk))
    assert world.questions.untold() == (answer,)
    world.questions.told([answer])
    assert world.questions.untold() == ()
    world.questions.take([digests(disk)])
    assert world.questions.untold() == (), "it is not read twice"
    world.questions.take([])
    again = await world.answer(digests(disk))
    assert again.disks == answer.disks, "asked again, as by a server that was started anew"


async def test_a_question_that_is_withdrawn_stops_reading(
    world: World, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, gone = threading.Event(), threading.Event()
    progress = q._Reader._progress

    def slow(self: Any, count: int) -> None:
        reading.set()
        assert gone.wait(20)
        progress(self, count)

    monkeypatch.setattr(q._Reader, "_progress", slow)
    world.questions.take([digests(disk)])
    assert await asyncio.to_thread(reading.wait, 20)
    closing = asyncio.create_task(world.questions.close())
    await asyncio.sleep(0)
    gone.set()
    async with asyncio.timeout(20):
        await closing
    assert world.questions.untold() == ()


async def test_extents_and_samples(world: World, disk: Path) -> None:
    with disk.open("r+b") as file:
        file.seek(RANGE)
        file.write(os.urandom(GRANULE))
    one = (DiskQuestion(0, str(disk)),)
    answer = await world.answer(Question("q1", ITEM, QuestionKind.EXTENTS, "vm", one))
    assert answer.disks[0].runs == ((0, MiB // GRANULE), (RANGE // GRANULE, 1))
    chosen = (0, MiB // GRANULE, RANGE // GRANULE, SIZE // GRANULE)
    asked = (DiskQuestion(0, str(disk), granules=chosen),)
    answer = await world.answer(Question("q2", ITEM, QuestionKind.SAMPLE, "vm", asked, key=KEY))
    content = GranuleMap.unknown(SIZE, KEY)
    data = await asyncio.to_thread(disk.read_bytes)
    expected = [content.hash_granule(data[at * GRANULE : (at + 1) * GRANULE]) for at in chosen[:3]]
    assert answer.disks[0].digests == (*expected, b""), "a hole is zeros; behind the end is nothing"
    assert answer.disks[0].wire_ratio == pytest.approx(1.0)
    assert answer.rates[0] > 0
    with disk.open("r+b"):
        assert (await world.answer(Question("q3", ITEM, QuestionKind.SAMPLE, "vm", asked, key=KEY))).code == ""


async def test_the_link_is_measured_by_sending(world: World) -> None:
    answer = await world.answer(Question("q1", ITEM, QuestionKind.LINK, "vm"))
    assert len(answer.rates) == len(world.sunk) == q.LINK_TRIES
    assert min(answer.rates) > 0


def test_many_runs_are_told_as_few(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Scattered:
        def data_ranges(self) -> list[tuple[int, int]]:
            return [(at * GRANULE, GRANULE) for at in (0, 2, 4, 100, 102, 1000)]

    disk_like: Any = Scattered()
    monkeypatch.setattr(q, "MAX_RUNS", 3)
    assert data_runs(disk_like) == ((0, 5), (100, 3), (1000, 1))
    monkeypatch.setattr(q, "MAX_RUNS", 6)
    assert len(data_runs(disk_like)) == 6


def test_keys_outlive_the_agent_and_go_with_the_item(tmp_path: Path) -> None:
    keys = GranuleKeys(RealFiles(), tmp_path)
    keys.learn({ITEM: KEY}, {ITEM})
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    again = GranuleKeys(RealFiles(), tmp_path)
    assert again.get(ITEM) == KEY
    again.learn({}, {ITEM})
    assert again.get(ITEM) == KEY, "it stands by"
    again.learn({}, set())
    assert GranuleKeys(RealFiles(), tmp_path).get(ITEM) is None
    (tmp_path / FILE).write_bytes(b"\x00torn")
    assert GranuleKeys(RealFiles(), tmp_path).get(ITEM) is None


def test_an_agent_of_before_takes_an_assignment_with_questions_and_the_other_way_round() -> None:
    class Before(msgspec.Struct, frozen=True):
        revision: int
        machine: str
        items: tuple[Any, ...]

    new = Assignment(1, "vm", (), (Question("q1", ITEM, QuestionKind.LINK, "vm"),))
    assert msgspec.json.decode(msgspec.json.encode(new), type=Before).revision == 1
    assert msgspec.json.decode(msgspec.json.encode(Before(1, "vm", ())), type=Assignment).questions == ()
