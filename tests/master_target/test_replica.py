"""What a replica promises, sentence by sentence (design, section 7)."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from backhaul.master_target.contract import ReplicaContract, View
from backhaul.master_target.errors import (
    DisksChanged,
    ExtentOutside,
    PinRefused,
    PointUnknown,
    ReplicaTooSmall,
    UndoImpossible,
)
from backhaul.replication.errors import EpochViolation
from backhaul.replication.units import BLOCK, GRANULE, GiB, TiB
from backhaul.replication.values import EpochReason, Extent, ExtentKind

from .source import FOLDER, KEY, SIZES, Setup, descriptor
from .worlds import MemoryDisk, PowerLoss


@pytest.fixture
def setup() -> Setup:
    made = Setup()
    made.create()
    return made


def three_epochs(setup: Setup) -> None:
    setup.epoch((0, 0, 1, 4), (1, 0, 2), (0, 10, 3))
    setup.epoch((0, 0, 4), (0, 2, 0, 2), (1, 9, 5))
    setup.epoch((0, 0, 6, 2), (1, 9, 0), (0, 20, 7))


def test_each_point_can_be_read_and_gone_to(setup: Setup) -> None:
    three_epochs(setup)
    assert setup.numbers() == [1, 2, 3]
    assert len({setup.images[n] for n in (0, 1, 2, 3)}) == 4
    setup.check_points()


def test_going_to_a_point_is_an_epoch_and_works_forward_again(setup: Setup) -> None:
    three_epochs(setup)
    setup.replica.go_to(1)
    assert setup.image() == setup.images[1]
    assert setup.numbers() == [1, 2, 3, 4]
    first, last = setup.replica.points()[0], setup.replica.points()[-1]
    assert (last.barrier_ns, last.kind, last.consistency) == (first.barrier_ns, first.kind, first.consistency)
    setup.replica.go_to(3)
    assert setup.image() == setup.images[3]
    setup.images |= {4: setup.images[1], 5: setup.images[3]}
    setup.check_points()


def test_going_to_a_point_again_writes_nothing_and_still_makes_a_point(setup: Setup) -> None:
    setup.epoch((0, 0, 1))
    setup.replica.go_to(1)
    assert setup.numbers() == [1, 2]
    assert setup.image() == setup.images[1]


def test_it_is_a_replica_by_contract(setup: Setup) -> None:
    replica: ReplicaContract = setup.replica
    setup.epoch((0, 0, 1))
    view: View = replica.view(1)
    assert view.point == 1
    with pytest.raises(PinRefused):
        setup.replica.hand_out()
    view.close()
    replica.close()


def test_the_replica_is_the_newest_point_before_complete_returns(setup: Setup) -> None:
    setup.epoch((0, 3, 9))
    assert setup.world.disks[0].image()[3 * BLOCK : 4 * BLOCK] == b"\x09" * BLOCK


def test_flush_returns_the_newest_frame_and_survives(setup: Setup) -> None:
    setup.replica.begin(setup.begin(stream=7))
    assert (setup.replica.applied_stream, setup.replica.applied_frame) == (7, 0)
    setup.write(0, 0, 1)
    setup.write(0, 5, 2)
    assert setup.replica.flush() == 2
    setup.crash()
    assert (setup.replica.applied_stream, setup.replica.applied_frame) == (7, 2)


def test_frames_go_on_in_the_next_epoch_of_the_stream_and_begin_again_in_another(setup: Setup) -> None:
    setup.epoch((0, 0, 1))
    setup.replica.begin(setup.begin())
    assert setup.replica.applied_frame == setup.frame == 2
    setup.crash()
    assert setup.replica.applied_frame == 2
    setup.replica.begin(setup.begin(stream=2))
    assert setup.replica.applied_frame == 0
    setup.crash()
    assert (setup.replica.applied_stream, setup.replica.applied_frame) == (2, 0)


def test_an_interrupted_epoch_is_continued_and_its_before_images_stay(setup: Setup) -> None:
    setup.epoch((0, 0, 1, 3))
    setup.replica.begin(setup.begin())
    setup.write(0, 0, 2)
    setup.replica.flush()
    setup.crash()
    again = setup.begin(stream=2)
    assert len(again.interrupted) == 1
    setup.replica.begin(again)
    setup.replica.begin(again)
    setup.write(0, 0, 3)
    setup.write(0, 1, 4)
    setup.replica.complete(setup.end(), setup.frame)
    setup.images[2] = setup.image()
    setup.check_points()
    assert setup.numbers() == [1, 2]


def test_begin_refuses_what_is_not_due(setup: Setup) -> None:
    setup.epoch((0, 0, 1))
    old = setup.begin()
    setup.replica.begin(old)
    with pytest.raises(EpochViolation):
        setup.replica.begin(old.__class__(9, old.previous, (), 1, 0, EpochReason.DELTA, ""))
    with pytest.raises(EpochViolation, match="the try before"):
        setup.replica.begin(old.__class__(2, old.previous, (), 2, 0, EpochReason.DELTA, ""))
    end = setup.end()
    with pytest.raises(EpochViolation):
        setup.replica.complete(end.__class__(2, old.previous, 0, end.kind, end.consistency), 5)


def test_data_without_an_epoch_are_refused(setup: Setup) -> None:
    with pytest.raises(EpochViolation):
        setup.write(0, 0, 1)


@pytest.mark.parametrize(
    ("disk", "offset", "length"),
    [(2, 0, BLOCK), (0, SIZES[0] - 512, 1024), (0, 100, 512), (0, 0, 0), (1, -512, 512)],
    ids=["no disk", "behind the end", "not a sector", "empty", "negative"],
)
def test_extents_outside_are_refused(setup: Setup, disk: int, offset: int, length: int) -> None:
    setup.replica.begin(setup.begin())
    with pytest.raises(ExtentOutside):
        setup.replica.stage(Extent(disk, offset, length), bytes(length), 1)


def test_sectors_are_merged_into_their_blocks(setup: Setup) -> None:
    setup.epoch((0, 0, 1, 2))
    setup.replica.begin(setup.begin())
    setup.replica.stage(Extent(0, 512, 1024), b"x" * 1024, 10)
    setup.replica.stage(Extent(0, 1024, 5120), b"y" * 5120, 11)
    setup.replica.stage(Extent(0, 7 * 512, 1024, ExtentKind.ZERO), None, 12)
    setup.replica.complete(setup.end(), 12)
    was = bytearray(setup.images[1][0])
    was[512:1536] = b"x" * 1024
    was[1024:6144] = b"y" * 5120
    was[3584:4608] = bytes(1024)
    assert setup.image()[0] == bytes(was)
    setup.images[2] = setup.image()
    setup.check_points()


def test_a_discarded_extent_reads_as_zeros_and_can_be_undone(setup: Setup) -> None:
    setup.epoch((0, 0, 1, 8))
    setup.replica.begin(setup.begin())
    setup.replica.stage(Extent(0, 0, 8 * BLOCK, ExtentKind.DISCARDED), None, 9)
    setup.replica.complete(setup.end(), 9)
    assert setup.image()[0][: 8 * BLOCK] == bytes(8 * BLOCK)
    setup.images[2] = setup.image()
    setup.check_points()


def test_writing_over_holes_reads_nothing_and_stores_no_image(setup: Setup) -> None:
    before = setup.world.disks[0].reads
    setup.epoch((0, 0, 1, 20))
    assert setup.world.disks[0].reads == before
    assert setup.replica.journal_bytes() < 5 * BLOCK


def test_the_first_before_image_of_a_block_wins_within_an_epoch(setup: Setup) -> None:
    setup.epoch((0, 0, 1))
    setup.replica.begin(setup.begin())
    sizes = []
    for fill in (2, 3, 4):
        setup.write(0, 0, fill)
        setup.replica.flush()
        sizes.append(setup.replica.journal_bytes())
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] == BLOCK < sizes[0]
    setup.replica.undo_started()
    assert setup.image() == setup.images[1]


def test_undo_of_the_started_epoch(setup: Setup) -> None:
    setup.epoch((0, 0, 1, 4))
    setup.replica.begin(setup.begin())
    setup.write(0, 0, 9, 8)
    setup.write(1, 2, 0)
    setup.replica.flush()
    setup.write(0, 12, 9)  # staged only
    setup.replica.undo_started()
    assert setup.image() == setup.images[1]
    assert setup.replica.tries == ()
    setup.replica.undo_started()
    setup.epoch((0, 1, 5))
    setup.check_points()


def test_the_first_epoch_cannot_be_undone_unless_pinned(setup: Setup) -> None:
    setup.replica.begin(setup.begin())
    with pytest.raises(UndoImpossible):
        setup.replica.undo_started()


def test_home_before_reprotect_is_pinned_and_cancel_returns_to_it() -> None:
    setup = Setup()
    for disk in setup.world.disks:
        disk.content.write(0, b"\x42" * (5 * BLOCK))
        disk.content.sync()
    setup.images[0] = setup.image()
    assert setup.create(fresh=False).must_compare
    assert setup.replica.pin("home before reprotect") == 0
    begin = setup.begin()
    with pytest.raises(EpochViolation):
        setup.replica.begin(begin.__class__(1, begin.previous, (), 1, 0, EpochReason.DELTA, ""))
    setup.epoch((0, 0, 1, 8), (1, 1, 0, 3))
    assert not setup.replica.must_compare
    setup.epoch((0, 4, 2, 8))
    setup.replica.thin([])
    assert setup.numbers() == [2]
    assert setup.read(0) == setup.images[0]
    setup.crash()
    setup.replica.go_to(0)
    assert setup.image() == setup.images[0]
    setup.replica.release("home before reprotect")
    setup.replica.thin([])
    with pytest.raises(PointUnknown):
        setup.replica.go_to(0)


def test_without_a_pin_the_first_epoch_keeps_no_before_images() -> None:
    setup = Setup()
    setup.world.disks[0].content.write(0, b"\x42" * (20 * BLOCK))
    setup.create(fresh=False)
    setup.epoch((0, 0, 1, 20))
    assert setup.replica.journal_bytes() < 8 * BLOCK


def test_a_pin_survives_and_holds_against_thinning(setup: Setup) -> None:
    three_epochs(setup)
    setup.replica.pin("before", 2)
    setup.replica.pin("before", 2)
    with pytest.raises(PinRefused):
        setup.replica.pin("before", 1)
    with pytest.raises(PointUnknown):
        setup.replica.pin("no", 7)
    setup.crash()
    assert setup.replica.pins() == {"before": 2}
    setup.replica.thin_to_floor()
    assert setup.numbers() == [2, 3]
    setup.check_points()
    setup.replica.release("before")
    setup.replica.release("before")
    setup.replica.thin_to_floor()
    assert setup.numbers() == [3]


@pytest.mark.parametrize("keep", [(1, 3, 6), (2,), (), (1, 2, 3, 4, 5), (1,), (4, 5)], ids=str)
def test_thinning_merges_and_every_kept_point_stays(setup: Setup, keep: tuple[int, ...]) -> None:
    three_epochs(setup)
    setup.epoch((0, 1, 8), (0, 10, 9))
    setup.epoch((0, 1, 7, 3))
    setup.epoch((0, 2, 6), (1, 0, 1, 10))
    before = setup.replica.journal_bytes()
    freed = setup.replica.thin(keep)
    assert setup.numbers() == sorted({*keep, 6})
    assert freed == before - setup.replica.journal_bytes() >= 0
    setup.check_points()
    setup.crash()
    assert setup.numbers() == sorted({*keep, 6})
    setup.check_points()
    setup.epoch((0, 0, 3, 24))
    setup.check_points()


def test_thinning_deletes_files_and_waits_for_the_last_reader(setup: Setup) -> None:
    three_epochs(setup)
    view = setup.replica.view(1)
    setup.replica.thin_to_floor()
    assert setup.numbers() == [1, 3]
    buffer = bytearray(SIZES[0])
    view.read_into(0, 0, buffer)
    assert bytes(buffer) == setup.images[1][0]
    view.close()
    view.close()
    setup.replica.thin_to_floor()
    assert setup.numbers() == [3]
    with pytest.raises(PointUnknown):
        setup.replica.view(1)
    names = set(setup.files.names(FOLDER / "journal"))
    assert len(names) == 3  # manifest and the two newest epochs, whose hashes are checked at an opening


def test_a_segment_being_read_outlives_thinning(setup: Setup) -> None:
    three_epochs(setup)
    journal = setup.replica._journal
    with journal.lookup(1, 0, 0, 24) as pieces:
        setup.replica.thin([])
        for piece in pieces:
            journal.before_image(piece, 0, 1)
    assert journal._retired
    journal.sweep()
    assert not journal._retired


def test_nothing_is_thinned_while_held(setup: Setup) -> None:
    three_epochs(setup)
    setup.replica.hold(True)
    setup.crash()
    assert setup.replica.thin([]) == 0
    assert setup.numbers() == [1, 2, 3]
    setup.replica.hold(False)
    setup.replica.thin([])
    assert setup.numbers() == [3]


def test_a_view_reads_its_point_while_a_batch_overwrites_it(setup: Setup) -> None:
    three_epochs(setup)
    with_view = setup.replica.view(3)
    disk = setup.world.disks[0]
    seen: list[bytes] = []
    write = disk.write

    def reading(offset: int, data: bytes) -> None:
        buffer = bytearray(SIZES[0])
        with_view.read_into(0, 0, buffer)
        seen.append(bytes(buffer))
        write(offset, data)
        with_view.read_into(0, 0, buffer)
        seen.append(bytes(buffer))

    disk.write = reading  # type: ignore[method-assign, assignment]
    setup.epoch((0, 0, 9, 12))
    assert len(seen) == 2
    assert set(seen) == {setup.images[3][0]}


def test_a_view_reads_again_when_an_epoch_was_undone_meanwhile(setup: Setup) -> None:
    setup.epoch((0, 0, 1, 4))
    setup.replica.begin(setup.begin())
    setup.write(0, 0, 9)
    setup.replica.flush()
    disk = setup.world.disks[0]
    read, rounds = disk.read_into, []

    def undoing(offset: int, buffer: bytearray) -> None:
        read(offset, buffer)
        rounds.append(bytes(buffer))
        if len(rounds) == 1:
            setup.replica.undo_started()

    disk.read_into = undoing  # type: ignore[method-assign, assignment]
    buffer = bytearray(4 * BLOCK)
    setup.replica.read_at_point(1, 0, 0, buffer)
    assert len(rounds) == 2
    assert rounds[0] != rounds[1]
    assert bytes(buffer) == setup.images[1][0][: 4 * BLOCK]


def test_a_smaller_replica_is_refused_before_anything_is_written() -> None:
    setup = Setup(sizes=(4 * BLOCK, 4 * BLOCK))
    setup.sizes = (4 * BLOCK, 8 * BLOCK)
    with pytest.raises(ReplicaTooSmall):
        setup.create()
    assert setup.world.calls == 0


def test_a_grown_disk_is_continued(setup: Setup) -> None:
    setup.epoch((1, 8, 3, 2))
    grown = (SIZES[0], SIZES[1] + 4 * BLOCK)
    setup.replica.adopt(descriptor(grown))
    setup.sizes = grown
    assert setup.world.disks[1].size == grown[1]
    setup.images[1] = setup.image()
    setup.epoch((1, 10, 5, 3), (1, 9, 6))
    setup.crash()
    assert setup.replica.findings == ()
    setup.check_points()
    with pytest.raises(DisksChanged):
        setup.replica.adopt(descriptor(SIZES))
    with pytest.raises(DisksChanged):
        setup.replica.adopt(descriptor((1 << 20,)))


def test_a_larger_replica_is_used_as_far_as_the_item_goes() -> None:
    setup = Setup(sizes=(16 * BLOCK,))
    setup.sizes = (9 * BLOCK + 512,)
    setup.images[0] = setup.image()
    setup.create(fresh=False)
    setup.epoch((0, 8, 3, 2))
    assert setup.replica.refresh(0) == 0
    assert setup.replica.disks[0].size == 9 * BLOCK + 512
    setup.crash()
    assert setup.replica.findings == ()


def test_hand_out_ends_points_and_pins_and_makes_the_maps_stale_durably(setup: Setup) -> None:
    three_epochs(setup)
    setup.replica.pin("kept", 1)
    setup.replica.refresh(0)
    setup.replica.save_maps()
    setup.replica.hand_out()
    for _ in range(2):
        assert setup.numbers() == []
        assert setup.replica.pins() == {}
        assert setup.replica.newest_complete is None
        assert setup.replica.must_compare
        assert all(known.stale_count == known.count for known in setup.replica.maps)
        setup.crash()
    assert setup.epoch((0, 0, 8)) == 1
    setup.crash()
    setup.check_points()


def test_maps_are_stale_where_later_batches_wrote() -> None:
    setup = Setup(sizes=(40 * GRANULE,))
    setup.create()
    assert setup.replica.maps[0].stale_count == 0
    setup.epoch((0, 16, 1, 20))
    assert sorted(setup.replica.maps[0].stale_granules()) == [1, 2]
    assert setup.replica.refresh(0) == 0
    setup.crash()
    assert sorted(setup.replica.maps[0].stale_granules()) == [1, 2]
    setup.replica.refresh(0)
    setup.replica.save_maps()
    setup.crash()
    assert setup.replica.maps[0].stale_count == 0
    setup.epoch((0, 160, 1))
    setup.epoch((0, 320, 1))
    setup.epoch((0, 480, 1))
    setup.replica.refresh(0)
    setup.replica.thin([])
    setup.crash()
    assert {10, 20, 30} <= set(setup.replica.maps[0].stale_granules())
    image = setup.image()[0]
    for number in range(40):
        digest = setup.replica.maps[0].get(number)
        granule = image[number * GRANULE : number * GRANULE + GRANULE]
        assert digest in (None, setup.replica.maps[0].hash_granule(granule))


def test_undone_blocks_are_stale_after_an_opening() -> None:
    setup = Setup(sizes=(40 * GRANULE,))
    setup.create()
    setup.epoch((0, 0, 1))
    setup.replica.refresh(0)
    setup.replica.save_maps()
    setup.replica.begin(setup.begin())
    setup.write(0, 64, 1)
    setup.replica.flush()
    setup.replica.refresh(0)
    setup.replica.save_maps()
    setup.replica.undo_started()
    setup.crash()
    assert 4 in setup.replica.maps[0].stale_granules()


def test_two_tebibytes_take_little_memory_and_time() -> None:
    setup = Setup.__new__(Setup)
    setup.world = Setup().world
    setup.world.disks.clear()
    disk = MemoryDisk(setup.world, 2 * TiB)
    setup.sizes, setup.stream, setup.frame, setup.images = (2 * TiB,), 1, 0, {}
    setup.journal_bytes = 0
    setup.clock = Setup().clock
    tracemalloc.start()
    setup.create()
    setup.replica.begin(setup.begin())
    for gib in range(0, 2000, 50):
        setup.frame += 1
        setup.replica.stage(Extent(0, gib * GiB, GiB, ExtentKind.ZERO), None, setup.frame)
        setup.write(0, gib * (GiB // BLOCK) + 7, 3)
    setup.replica.complete(setup.end(), setup.frame)
    setup.replica.begin(setup.begin())
    setup.replica.stage(Extent(0, 0, 2 * TiB, ExtentKind.ZERO), None, 99)
    setup.replica.flush()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20
    setup.replica.undo_started()
    assert sum(length for _, length in disk.data_ranges()) >= 40 * BLOCK
    setup.crash()
    assert setup.replica.findings == ()


def test_create_is_repeated_after_an_interruption() -> None:
    setup = Setup()
    setup.world.crash_at = 5
    with pytest.raises(PowerLoss):
        setup.create()
    setup.world.restart(random.Random(1), 0.5)
    setup.create()
    setup.epoch((0, 0, 1))
    setup.check_points()
    assert setup.replica.key == KEY
