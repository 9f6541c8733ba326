"""Several disk requests at once: everything is done, and nothing is still under way when it returns or fails."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from backhaul.disks.opening import open_disk
from backhaul.disks.raw_file import RawFile
from backhaul.master_target.crew import Crew
from backhaul.master_target.replica import Replica
from backhaul.replication.units import BLOCK, MiB
from dataplane.replica_item import ReplicaItem
from replication.ends import data_extent, end


class Broken(Exception):
    pass


@pytest.mark.parametrize("hands", [1, 4])
def test_everything_is_done(hands: int) -> None:
    done: list[int] = []
    crew = Crew(hands)
    crew.each(done.append, range(1000))
    crew.each(done.append, [])
    crew.close()
    assert sorted(done) == list(range(1000))


def test_a_failure_is_raised_when_nothing_is_under_way_any_longer() -> None:
    crew, all_began, under_way = Crew(4), threading.Barrier(4), [0] * 4

    def act(part: int) -> None:
        under_way[part] = 1
        all_began.wait()
        if part == 2:
            raise Broken
        threading.Event().wait(0.05 * part)  # the failing one is not the last to end
        under_way[part] = 0

    with pytest.raises(Broken):
        crew.each(act, range(4))
    assert under_way == [0, 0, 1, 0]
    crew.each(lambda _: None, range(10))  # and it goes on
    crew.close()


def test_a_replica_written_by_many_hands_holds_the_same_and_can_be_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, most, lock = 0, 0, threading.Lock()
    plain = RawFile.write

    def counted(disk: RawFile, offset: int, data: bytes) -> None:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        plain(disk, offset, data)
        with lock:
            busy -= 1

    held = ReplicaItem(tmp_path / "item", size=4 * MiB)
    held.fill(1)
    before = held.image.read_bytes()
    crew = Crew(4)
    held.item.close()
    replica = Replica.open(held.folder, [open_disk(held.image, writable=True)], held.files, held.clock, crew)
    held.start(replica)
    held.open()
    held.epoch(b"\0")
    first = held.item.replica.points()[-1].number
    monkeypatch.setattr(RawFile, "write", counted)
    rng = random.Random(2)
    expected = bytearray(BLOCK) + before[BLOCK:]
    begun = held.begin()
    blocks = rng.sample(range(MiB // BLOCK * 4), 600)
    extents = [data_extent(block * BLOCK) for block in blocks]
    data = b"".join(rng.randbytes(BLOCK) for _ in blocks)
    for at, block in enumerate(blocks):
        expected[block * BLOCK : (block + 1) * BLOCK] = data[at * BLOCK : (at + 1) * BLOCK]
    held.send(*(held.frame(*extents[at : at + 200], data=data[at * BLOCK : (at + 200) * BLOCK],
                           begin=begun if at == 0 else None) for at in range(0, 600, 200)),
              held.frame(end=end(begun)))  # fmt: skip
    assert held.image.read_bytes() == expected
    assert most > 1, "several requests were under way at once"
    held.item.replica.go_to(first)
    assert held.image.read_bytes() == bytes(BLOCK) + before[BLOCK:]
    held.item.close()
    crew.close()
