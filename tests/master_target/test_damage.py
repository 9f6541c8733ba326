"""What was damaged or put back is found and said, never used; what was only torn costs nothing that was promised."""

from __future__ import annotations

import msgspec
import pytest

from backhaul.master_target.errors import (
    BeforeImageDamaged,
    DiskPutBack,
    EpochUnfinished,
    JournalDamaged,
    ReplicaFileDamaged,
)
from backhaul.master_target.records import HEAD, RecordType
from backhaul.master_target.segment import FIRST, Batch
from backhaul.replication.units import BLOCK

from .source import FOLDER, Setup
from .worlds import Content


@pytest.fixture
def setup() -> Setup:
    made = Setup()
    made.create()
    made.epoch((0, 0, 1, 4))
    made.epoch((0, 0, 2, 2), (1, 0, 3))
    made.epoch((0, 1, 4, 2))
    return made


def segment_file(setup: Setup, epoch: int) -> Content:
    """The first segment of an epoch, as the world holds it."""
    found = next(e for e in setup.replica._journal.epochs if e.number == epoch)
    return setup.world.contents[found.segments[0].path]


def flip(content: Content, offset: int) -> None:
    """Damage one byte, durably."""
    content.write(offset, bytes([content.read(offset, 1)[0] ^ 0xFF]))
    content.sync()


def record_offsets(setup: Setup, epoch: int, kind: RecordType) -> list[int]:
    found = next(e for e in setup.replica._journal.epochs if e.number == epoch).segments[0]
    batches = [batch for batch in found.scan(found.end) if isinstance(batch, Batch)]
    return [record.offset for batch in batches for record in batch.records if record.type is kind]


@pytest.mark.parametrize("where", ["head", "meta"])
def test_damage_withdraws_the_older_points_and_says_so(setup: Setup, where: str) -> None:
    (offset,) = record_offsets(setup, 2, RecordType.CHANGES)
    flip(segment_file(setup, 2), offset + (20 if where == "head" else HEAD + 3))
    setup.replica.pin("old", 1)
    setup.crash()
    (finding,) = setup.replica.findings
    assert isinstance(finding, JournalDamaged)
    assert finding.params["floor"] == 2
    assert setup.numbers() == [2, 3]
    assert setup.replica.pins() == {}
    assert all(known.stale_count == known.count for known in setup.replica.maps)
    setup.check_points()
    setup.crash()
    assert setup.numbers() == [2, 3]
    setup.epoch((0, 0, 9, 9))
    setup.check_points()


def test_damage_in_the_running_epoch_leaves_no_point_until_it_completes(setup: Setup) -> None:
    setup.replica.begin(setup.begin())
    for fill in (7, 8):
        setup.write(0, fill, fill)
        setup.replica.flush()
    offsets = record_offsets(setup, 4, RecordType.CHANGES)
    flip(segment_file(setup, 4), offsets[0] + 30)
    newest = setup.replica.newest_complete
    setup.crash()
    assert [type(finding) for finding in setup.replica.findings] == [JournalDamaged]
    assert setup.numbers() == []
    assert setup.replica.newest_complete == newest
    setup.write(0, 9, 9)
    setup.replica.complete(setup.end(), setup.frame)
    setup.images[4] = setup.image()
    setup.crash()
    assert setup.numbers() == [4]
    setup.epoch((0, 9, 1))
    setup.check_points()


@pytest.mark.parametrize("kind", [RecordType.BEGIN, RecordType.COMPLETE], ids=["begin", "complete"])
def test_a_damaged_header_of_the_newest_epoch_voids_all(setup: Setup, kind: RecordType) -> None:
    (offset,) = record_offsets(setup, 3, kind)
    setup.replica.begin(setup.begin())
    flip(segment_file(setup, 3), offset + 5)
    setup.crash()
    assert JournalDamaged in {type(finding) for finding in setup.replica.findings}
    assert setup.numbers() == []
    assert setup.replica.newest_complete is None
    assert setup.replica.must_compare
    setup.epoch((0, 0, 1, 24))
    setup.check_points()


def test_a_lost_segment_is_damage(setup: Setup) -> None:
    found = next(e for e in setup.replica._journal.epochs if e.number == 2).segments[0]
    setup.files.remove(found.path)
    setup.crash()
    assert {type(finding) for finding in setup.replica.findings} == {JournalDamaged}
    assert setup.numbers() == [3]
    setup.check_points()


def test_a_cut_sealed_segment_is_damage(setup: Setup) -> None:
    content = segment_file(setup, 2)
    content.truncate(FIRST + BLOCK)
    content.sync()
    setup.crash()
    assert {type(finding) for finding in setup.replica.findings} == {JournalDamaged}
    assert setup.numbers() == [3]
    setup.check_points()


def test_a_damaged_before_image_is_never_used(setup: Setup) -> None:
    found = next(e for e in setup.replica._journal.epochs if e.number == 2)
    piece = found.index.find(0, 0, 1)[0]
    flip(segment_file(setup, 2), piece.at + 100)
    with pytest.raises(BeforeImageDamaged):
        setup.read(1)
    with pytest.raises(BeforeImageDamaged):
        setup.replica.go_to(1)
    assert setup.image() == setup.images[3]
    assert setup.replica.tries == ()
    assert setup.read(2) == setup.images[2]


def test_a_torn_tail_is_cut_and_nothing_is_withdrawn(setup: Setup) -> None:
    setup.replica.begin(setup.begin())
    setup.write(0, 5, 5)
    setup.replica.flush()
    found = setup.replica._journal.epochs[-1].segments[0]
    content = setup.world.contents[found.path]
    content.write(found.end, b"BHJR" + b"\x05" * 700)
    content.sync()
    setup.crash()
    assert setup.replica.findings == ()
    assert setup.replica.applied_frame == setup.frame
    assert setup.numbers() == [1, 2, 3]
    setup.check_points()


def test_a_record_copied_elsewhere_is_no_record(setup: Setup) -> None:
    """A guest may write what it read of a journal: it is valid nowhere but in its place."""
    setup.replica.begin(setup.begin())
    found = setup.replica._journal.epochs[-1].segments[0]
    content = setup.world.contents[found.path]
    older = segment_file(setup, 3)
    content.write(found.end, older.read(FIRST, older.size - FIRST))
    content.sync()
    setup.crash()
    assert setup.replica.findings == ()
    assert setup.numbers() == [1, 2, 3]


def test_a_disk_put_back_to_an_older_state_is_found(setup: Setup) -> None:
    setup.replica.pin("kept", 1)
    disk = setup.world.disks[0]
    disk.content.write(0, setup.images[2][0])
    disk.content.sync()
    setup.crash()
    (finding,) = setup.replica.findings
    assert isinstance(finding, DiskPutBack)
    assert finding.params["disk"] == 0
    assert setup.numbers() == []
    assert setup.replica.pins() == {}
    assert setup.replica.newest_complete is None
    assert setup.replica.must_compare
    assert all(known.stale_count == known.count for known in setup.replica.maps)
    setup.crash()
    assert setup.replica.must_compare
    assert setup.epoch((0, 0, 1, 24)) == 1
    setup.check_points()


@pytest.mark.parametrize("block", [0, 2], ids=["of the epoch before", "of the newest epoch"])
def test_one_changed_block_of_the_last_two_epochs_is_found(setup: Setup, block: int) -> None:
    disk = setup.world.disks[0]
    disk.content.write(block * BLOCK + 8, b"?")
    disk.content.sync()
    setup.crash()
    assert [type(finding) for finding in setup.replica.findings] == [DiskPutBack]


def test_zeros_that_are_zeros_no_more_are_found(setup: Setup) -> None:
    setup.epoch((0, 0, 0, 8))
    setup.world.disks[0].content.write(7 * BLOCK, b"?")
    setup.world.disks[0].content.sync()
    setup.crash()
    assert [type(finding) for finding in setup.replica.findings] == [DiskPutBack]


def test_the_check_survives_thinning(setup: Setup) -> None:
    setup.replica.thin_to_floor()
    disk = setup.world.disks[0]
    disk.content.write(8, b"?")
    disk.content.sync()
    setup.crash()
    assert [type(finding) for finding in setup.replica.findings] == [DiskPutBack]


def test_a_lapsed_batch_must_come_again_before_the_epoch_completes(setup: Setup) -> None:
    setup.replica.begin(setup.begin())
    setup.write(0, 4, 4)
    setup.replica.flush()
    setup.write(0, 5, 5, 3)
    setup.replica.flush()
    setup.world.disks[0].content.write(5 * BLOCK, b"?")
    setup.world.disks[0].content.sync()
    setup.crash()
    assert setup.replica.findings == ()
    assert setup.replica.applied_frame == setup.frame - 1
    for _ in range(2):
        setup.write(0, 20, 1)
        with pytest.raises(EpochUnfinished):
            setup.replica.complete(setup.end(), setup.frame)
        setup.crash()
        assert setup.replica.findings == ()
    setup.write(0, 5, 6, 3)
    setup.replica.complete(setup.end(), setup.frame)
    setup.images[4] = setup.image()
    setup.check_points()


def test_a_compare_clears_the_doubt_of_a_lapsed_batch(setup: Setup) -> None:
    setup.replica.begin(setup.begin())
    setup.write(0, 5, 5)
    setup.replica.flush()
    setup.world.disks[0].content.write(5 * BLOCK, b"?")
    setup.world.disks[0].content.sync()
    setup.crash()
    begin = setup.begin(stream=2)
    compare = msgspec.structs.replace(begin, compares=(0, 1))
    setup.replica.begin(compare)
    setup.crash()
    setup.replica.complete(setup.end(), 3)
    assert setup.numbers() == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["item", "journal/manifest"])
def test_a_damaged_file_is_said(setup: Setup, name: str) -> None:
    flip(setup.world.contents[FOLDER / name], 40)
    with pytest.raises(ReplicaFileDamaged):
        setup.crash()


def test_a_damaged_map_knows_nothing(setup: Setup) -> None:
    setup.replica.refresh(0)
    setup.replica.save_maps()
    flip(setup.world.contents[FOLDER / "maps" / "0"], 60)
    setup.crash()
    assert setup.replica.maps[0].stale_count == setup.replica.maps[0].count
    assert setup.numbers() == [1, 2, 3]
