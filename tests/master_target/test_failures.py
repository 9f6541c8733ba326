"""The n-th call fails, for every n: a clear error, nothing acknowledged is lost, and work goes on.

A failed sync poisons; after any other failure the same calls are made again and succeed, or the replica is opened
again. Proof that the fault happened: `World.failed` names the call.
"""

from __future__ import annotations

import errno
import random

import pytest

from backhaul.disks.errors import DiskError, DiskReadFailed
from backhaul.master_target.errors import (
    JournalFull,
    JournalUnreadable,
    JournalWriteFailed,
    MasterTargetError,
    PinRefused,
    ReplicaPoisoned,
    UndoImpossible,
)
from backhaul.replication.units import BLOCK

from .source import Setup
from .test_power_loss import EPOCHS, IMAGES, Script, new_script


def repeat(script: Script) -> None:
    """Run the script; after a failure go on as a session does, at most three times."""
    setup = script.setup
    for _ in range(3):
        try:
            script.run()
            return
        except (MasterTargetError, DiskError, UndoImpossible) as error:
            if not setup.world.failed:
                raise
            poisoned = isinstance(error, ReplicaPoisoned)
            what = setup.world.failed[0]
            if what.startswith(("sync", "sync-folder")):
                assert poisoned, what
            if poisoned:
                with pytest.raises(ReplicaPoisoned):
                    setup.replica.flush()
                with pytest.raises(ReplicaPoisoned):
                    setup.read(1)
                setup.crash(seed=1, keep=0.5)
                setup.replica._journal.segment_bytes = 6 * BLOCK
                assert setup.replica.findings == ()
    raise AssertionError("it does not go on")


def fail_at(call: int, number: int) -> str:
    script = new_script()
    world = script.setup.world
    world.fail_at, world.fail_errno = call, number
    repeat(script)
    world.fail_at = 0
    setup = script.setup
    if setup.replica.tries:
        setup.replica.undo_started()
    assert setup.replica.findings == ()
    for point in setup.replica.points():
        if point.number <= 6:
            assert setup.read(point.number) == IMAGES[point.number]
    assert setup.image() == IMAGES[6]
    setup.crash()
    assert setup.replica.findings == ()
    assert setup.image() == IMAGES[6]
    return world.failed[0]


def calls() -> range:
    script = new_script()
    start = script.setup.world.calls
    script.run()
    return range(start + 1, script.setup.world.calls + 1)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("part", range(3))
def test_every_call_fails_once(part: int, number: int, seed: int, deep: bool) -> None:
    chosen = list(calls())[part::3]
    if not deep:
        chosen = random.Random(seed + part).sample(chosen, 25)
    hit = {fail_at(call, number).split()[0] for call in chosen}
    assert {"write", "sync"} <= hit


def test_a_failed_sync_of_a_disk_is_fatal_until_opened_again() -> None:
    setup = Setup()
    setup.create()
    setup.epoch((0, 0, 1))
    setup.replica.begin(setup.begin())
    setup.write(0, 0, 2)
    setup.world.fail_at = setup.world.calls + 4  # write and sync of the journal, write of the disk
    with pytest.raises(ReplicaPoisoned):
        setup.replica.flush()
    assert setup.world.failed == ["sync disk0"]
    for call in (setup.replica.flush, setup.replica.undo_started, setup.replica.thin_to_floor, setup.replica.hand_out):
        with pytest.raises(ReplicaPoisoned):
            call()
    applied = setup.frame - 1
    setup.crash()
    assert setup.replica.applied_frame == applied
    setup.check_points()


def test_what_the_page_cache_held_is_written_again_before_it_counts() -> None:
    """After a failed sync a restart reads from the cache what the disk never got: it must become durable."""
    setup = Setup()
    setup.create()
    setup.epoch((0, 0, 1))
    setup.replica.begin(setup.begin())
    setup.write(0, 0, 2)
    setup.world.fail_at = setup.world.calls + 4
    with pytest.raises(ReplicaPoisoned):
        setup.replica.flush()
    disk = setup.world.disks[0].content
    disk.pending = []  # the kernel reported the error and forgot that the pages are dirty
    setup.world.fail_at = 0
    setup.open()  # the process died, the machine did not
    assert setup.replica.applied_frame == setup.frame
    setup.crash()
    assert setup.replica.findings == ()
    assert setup.image()[0][:BLOCK] == b"\x02" * BLOCK


def test_a_read_error_stops_before_anything_is_written() -> None:
    setup = Setup()
    setup.create()
    setup.epoch((0, 3, 1, 3))
    setup.replica.begin(setup.begin())
    setup.world.disks[0].broken_blocks = {4}
    setup.write(0, 3, 2, 2)
    before = setup.world.calls
    for _ in range(2):
        with pytest.raises(DiskReadFailed):
            setup.replica.flush()
    assert setup.world.calls == before
    setup.world.disks[0].broken_blocks = set()
    assert setup.replica.flush() == setup.frame
    setup.replica.complete(setup.end(), setup.frame)
    setup.images[2] = setup.image()
    setup.check_points()


def full_journal() -> Setup:
    setup = Setup(journal_bytes=26 * BLOCK)
    setup.create()
    setup.epoch((0, 0, 1, 6))
    setup.epoch((0, 0, 2, 6))
    setup.replica.pin("old", 1)
    setup.replica.begin(setup.begin())
    setup.write(0, 0, 3, 4)
    setup.replica.flush()
    return setup


def test_a_full_journal_stops_says_so_and_loses_nothing() -> None:
    setup = full_journal()
    applied = setup.replica.applied_frame
    for _ in range(2):
        with pytest.raises(JournalFull) as caught:
            _fill(setup)
        assert caught.value.params["needed"] > caught.value.params["free"]
    assert setup.replica.applied_frame >= applied
    assert setup.numbers() == [1, 2]
    assert setup.read(1) == setup.images[1]


def _fill(setup: Setup) -> None:
    for fill in range(5, 40):
        setup.write(0, 0, fill)
        setup.replica.flush()


def test_a_full_journal_thins_to_the_floor_first() -> None:
    setup = Setup(journal_bytes=40 * BLOCK)
    setup.create()
    for fill in range(1, 12):
        setup.epoch((0, 0, fill, 6))
    assert setup.replica.journal_bytes() <= 40 * BLOCK
    assert setup.numbers()[-1] == 11
    assert setup.numbers()[0] > 1
    setup.check_points()


def test_room_for_going_to_a_point_is_checked_before_anything_is_written() -> None:
    setup = full_journal()
    setup.replica.undo_started()
    setup.world.free = 8 << 20
    before = setup.world.calls
    with pytest.raises(JournalFull):
        setup.replica.go_to(1)
    assert setup.world.calls == before
    setup.world.free = 1 << 40


def test_ways_out_of_a_full_journal() -> None:
    setup = full_journal()
    with pytest.raises(JournalFull):
        _fill(setup)
    with pytest.raises(PinRefused):
        setup.replica.no_points_until_complete()
    setup.replica.release("old")
    newest = setup.replica.newest_complete
    setup.replica.no_points_until_complete()
    assert setup.numbers() == []
    assert setup.replica.newest_complete == newest
    with pytest.raises(UndoImpossible):
        setup.replica.undo_started()
    _short_fill(setup)
    setup.crash()
    assert setup.replica.findings == ()
    assert setup.numbers() == []
    assert setup.replica.applied_frame == setup.frame
    setup.replica.complete(setup.end(), setup.frame)
    setup.images[3] = setup.image()
    assert setup.numbers() == [3]
    setup.epoch((0, 0, 9, 2))
    setup.check_points()
    assert setup.numbers() == [3, 4]


def _short_fill(setup: Setup) -> None:
    for fill in range(5, 9):
        setup.write(0, 0, fill, 6)
        setup.replica.flush()


def test_no_space_on_the_volume_is_a_full_journal_and_goes_on_when_there_is_some() -> None:
    setup = Setup()
    setup.create()
    setup.epoch((0, 0, 1, 6))
    setup.replica.begin(setup.begin())
    setup.write(0, 0, 2, 6)
    setup.world.free = 100
    with pytest.raises(JournalFull):
        setup.replica.flush()
    assert setup.image() == setup.images[1]
    setup.world.free = 1 << 40
    assert setup.replica.flush() == setup.frame
    setup.replica.complete(setup.end(), setup.frame)
    setup.images[2] = setup.image()
    setup.check_points()


def test_no_space_on_the_replica_goes_on_where_it_stopped() -> None:
    setup = Setup()
    setup.create()
    setup.epoch((0, 0, 1, 6))
    setup.replica.begin(setup.begin())
    setup.write(0, 0, 2, 6)
    setup.world.fail_at, setup.world.fail_errno = setup.world.calls + 3, errno.ENOSPC
    with pytest.raises(DiskError):
        setup.replica.flush()
    assert setup.world.failed == ["write disk0"]
    assert setup.read(1) == setup.images[1]
    other = setup.copy()
    other.replica.undo_started()
    assert other.image() == setup.images[1]
    assert setup.replica.flush() == setup.frame
    setup.replica.complete(setup.end(), setup.frame)
    setup.images[2] = setup.image()
    setup.check_points()


def test_an_unreadable_journal_is_not_taken_for_damage() -> None:
    setup = Setup()
    setup.create()
    setup.epoch((0, 0, 1))
    broken = setup.files

    def unreadable(path: object, **_: object) -> object:
        raise OSError(errno.EIO, str(path))

    broken.open = unreadable  # type: ignore[method-assign, assignment]
    with pytest.raises(JournalUnreadable):
        type(setup.replica).open(setup.replica._folder, setup.world.disks, broken, setup.clock)
    setup.open()
    assert setup.numbers() == [1]


def test_the_journal_write_error_is_clear() -> None:
    setup = Setup()
    setup.create()
    setup.replica.begin(setup.begin())
    setup.write(0, 0, 2)
    setup.world.fail_at = setup.world.calls + 1
    with pytest.raises(JournalWriteFailed):
        setup.replica.flush()
    assert setup.replica.flush() == setup.frame
    assert len(EPOCHS) == 6


def test_a_journal_tail_that_only_the_page_cache_held_is_written_again() -> None:
    setup = Setup()
    setup.create()
    setup.epoch((0, 0, 1, 3))
    setup.replica.begin(setup.begin())
    setup.write(0, 0, 2, 2)
    setup.world.fail_at = setup.world.calls + 2
    with pytest.raises(ReplicaPoisoned):
        setup.replica.flush()
    name = setup.world.failed[0].split()[1]
    content = next(content for path, content in setup.world.contents.items() if path.name == name)
    content.pending = []  # the kernel forgot that the pages are dirty: a sync makes only newer writes durable
    held, kept = dict(content.now), dict(content.durable)
    setup.world.fail_at = 0
    setup.open()
    rewritten = {block for block, data in held.items() if kept.get(block) != data}
    assert rewritten
    assert all(content.durable.get(block) == held[block] for block in rewritten)
    writes = [call for call in setup.world.log if call == f"write {name}"]
    assert len(writes) == 5  # head, begin, the batch, the batch again, and that it lapsed
    setup.write(0, 0, 2, 2)
    setup.replica.complete(setup.end(), setup.frame)
    setup.images[2] = setup.image()
    setup.crash()
    setup.check_points()
