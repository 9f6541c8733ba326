"""The spool: what is acknowledged is found again; what is applied is deleted; nothing passes the bound."""

from __future__ import annotations

import errno
from collections.abc import Iterable

import pytest

from backhaul.process_server.errors import SpoolSyncFailed, SpoolWriteFailed
from backhaul.process_server.spool import Entry, Spool, SpooledItem, frame_entry, grant_entry
from backhaul.replication.units import KiB, MiB
from backhaul.replication.values import Fence, ItemId
from process_server.faulty_files import FaultyFiles
from process_server.world import AGENT, FENCE, FOLDER, ITEM, NEXT, OTHER, make_spool, payload


def frames(item: ItemId, numbers: Iterable[int], *, fence: Fence = FENCE, size: int = 1000) -> list[Entry]:
    return [frame_entry(item, fence, number, payload(item, number, size), number % 7) for number in numbers]


def opened(files: FaultyFiles, bound: int = 1 << 30) -> Spool:
    spool = make_spool(files, bound)
    spool.recover()
    return spool


def found(files: FaultyFiles, bound: int = 1 << 30) -> dict[ItemId, SpooledItem]:
    return {one.item: one for one in make_spool(files, bound).recover().items}


def contents(spool: Spool, item: ItemId, first: int, fence: Fence = FENCE) -> list[bytes]:
    return [data for data, _ in spool.read(item, fence, first, 1 << 30)]


def test_what_was_appended_is_found_after_a_restart() -> None:
    files = FaultyFiles()
    spool = opened(files)
    positions = spool.append([grant_entry(ITEM, FENCE, AGENT), *frames(ITEM, range(5))])
    assert positions == {ITEM: (FENCE, 4)}
    files.power_loss(1)
    again = make_spool(files)
    (item,) = again.recover().items
    assert (item.fence, item.agent, item.applied, item.last) == (FENCE, AGENT, -1, 4)
    assert again.read(ITEM, FENCE, 0, 1 << 30) == [(payload(ITEM, number), number % 7) for number in range(5)]


def test_a_batch_is_one_write_and_one_sync() -> None:
    files = FaultyFiles()
    spool = opened(files)
    spool.append([grant_entry(ITEM, FENCE, AGENT), grant_entry(OTHER, FENCE, AGENT)])
    before = len(files.calls)
    spool.append([*frames(ITEM, range(50)), *frames(OTHER, range(50))])
    assert files.calls[before:] == ["free_bytes", "write_at", "sync"]


def test_only_the_next_number_of_the_granted_stream_is_stored() -> None:
    spool = opened(FaultyFiles())
    spool.append([grant_entry(ITEM, FENCE, AGENT), *frames(ITEM, range(3))])
    wrong = [*frames(ITEM, [2, 4]), *frames(ITEM, [3], fence=NEXT), *frames(OTHER, [0])]
    assert spool.append(wrong) == {ITEM: (FENCE, 2)}
    assert spool.append(frames(ITEM, [3])) == {ITEM: (FENCE, 3)}


def test_a_grant_forgets_lower_streams_also_after_a_restart() -> None:
    files = FaultyFiles()
    spool = opened(files)
    spool.append([grant_entry(ITEM, FENCE, AGENT), *frames(ITEM, range(3))])
    assert spool.append([grant_entry(ITEM, NEXT, AGENT)]) == {ITEM: (NEXT, -1)}
    assert spool.append([grant_entry(ITEM, FENCE, AGENT)]) == {ITEM: (NEXT, -1)}
    assert contents(spool, ITEM, 0) == []
    assert found(files)[ITEM].last == -1
    assert found(files)[ITEM].fence == NEXT


def test_applied_frames_are_forgotten_and_their_segments_deleted() -> None:
    files = FaultyFiles()
    spool = opened(files, 16 * MiB)
    spool.append([grant_entry(ITEM, FENCE, AGENT)])
    for number in range(100):
        spool.append(frames(ITEM, [number], size=100 * KiB))
        spool.free(ITEM, FENCE, number)
        spool.collect()
    assert spool.space().used < 3 * MiB
    assert len(files.contents) <= 2
    item = found(files)[ITEM]
    assert (item.last, item.agent) == (99, AGENT)


def test_position_survives_the_deletion_of_every_frame() -> None:
    files = FaultyFiles()
    spool = opened(files, 16 * MiB)
    spool.append([grant_entry(ITEM, FENCE, AGENT), *frames(ITEM, range(20), size=100 * KiB)])
    spool.free(ITEM, FENCE, 19)
    spool.append([grant_entry(OTHER, FENCE, AGENT), *frames(OTHER, range(20), size=100 * KiB)])
    spool.collect()
    files.power_loss(3)
    assert found(files)[ITEM].last == 19


def test_a_stalled_item_pins_only_what_it_holds() -> None:
    files = FaultyFiles()
    spool = opened(files, 16 * MiB)
    spool.append([grant_entry(ITEM, FENCE, AGENT), grant_entry(OTHER, FENCE, AGENT)])
    for number in range(600):  # 60 MB pass; of the stalled item, 1.2 MB stay, spread over all of it
        batch = frames(OTHER, [number], size=100 * KiB)
        if number % 5 == 0:
            batch += frames(ITEM, [number // 5], size=10 * KiB)
        spool.append(batch)
        spool.free(OTHER, FENCE, number)
        spool.collect()
        assert spool.space().used <= 16 * MiB
    assert spool.take_dropped() == {}
    assert contents(spool, ITEM, 0) == [payload(ITEM, number, 10 * KiB) for number in range(120)]
    files.power_loss(5)
    again = make_spool(files, 16 * MiB)
    report = again.recover()
    assert not report.damages
    assert not report.lost
    assert contents(again, ITEM, 0) == [payload(ITEM, number, 10 * KiB) for number in range(120)]


def test_a_full_spool_costs_the_largest_backlog_and_nothing_else() -> None:
    files = FaultyFiles()
    spool = opened(files, 16 * MiB)
    spool.append([grant_entry(ITEM, FENCE, AGENT), grant_entry(OTHER, FENCE, AGENT)])
    spool.append(frames(OTHER, range(10), size=100 * KiB))
    for number in range(200):
        position = spool.append(frames(ITEM, [number], size=100 * KiB))
        assert spool.space().used <= 16 * MiB
        if position[ITEM][1] != number:
            break
    else:
        pytest.fail("the spool was never full")
    assert spool.take_dropped().keys() == {ITEM}
    assert position[ITEM] == (FENCE, -1)
    assert contents(spool, OTHER, 0) == [payload(OTHER, number, 100 * KiB) for number in range(10)]
    spool.append(frames(OTHER, [10]))
    items = found(files, 16 * MiB)
    assert items[ITEM].last == -1, "what was dropped stays dropped after a restart"
    assert items[OTHER].last == 10


def test_a_failed_write_changes_nothing_and_the_next_goes_on() -> None:
    files = FaultyFiles(error=errno.ENOSPC)
    spool = opened(files)
    spool.append([grant_entry(ITEM, FENCE, AGENT), *frames(ITEM, range(3))])
    files.fail_kinds = frozenset({"write_at", "open"})
    for _ in range(3):
        with pytest.raises(SpoolWriteFailed, match="ENOSPC"):
            spool.append(frames(ITEM, [3, 4]))
    assert files.failed
    files.fail_kinds = frozenset()
    assert spool.append(frames(ITEM, [3, 4])) == {ITEM: (FENCE, 4)}
    assert contents(spool, ITEM, 0) == [payload(ITEM, number) for number in range(5)]
    files.power_loss(7)
    again = make_spool(files)
    report = again.recover()
    assert not report.damages
    assert contents(again, ITEM, 0) == [payload(ITEM, number) for number in range(5)]


def test_a_failing_disk_leaves_no_heap_of_files_behind() -> None:
    files = FaultyFiles(error=errno.ENOSPC)
    spool = opened(files)
    files.fail_kinds = frozenset({"write_at"})
    for _ in range(50):
        with pytest.raises(SpoolWriteFailed):
            spool.reopen()
    assert len(files.contents) == 1


@pytest.mark.parametrize("kind", ["sync", "sync_folder"])
def test_a_failed_sync_is_fatal(kind: str) -> None:
    files = FaultyFiles()
    spool = opened(files)
    files.fail_kinds = frozenset({kind})
    with pytest.raises(SpoolSyncFailed):
        spool.append([grant_entry(ITEM, FENCE, AGENT)])
    assert files.failed == [kind]


def damage(files: FaultyFiles, segment: int, needle: bytes) -> None:
    content = files.contents[FOLDER / f"{segment:016x}.spool"]
    at = content.now.index(needle)
    content.now[at] ^= 0xFF
    content.durable[:] = content.now


def test_damage_in_the_middle_is_reported_and_ends_only_that_items_stream() -> None:
    files = FaultyFiles()
    spool = opened(files)
    spool.append([grant_entry(ITEM, FENCE, AGENT), grant_entry(OTHER, FENCE, AGENT)])
    for number in range(6):
        spool.append([*frames(ITEM, [number]), *frames(OTHER, [number])])
    damage(files, 1, payload(ITEM, 3))
    again = make_spool(files)
    report = again.recover()
    assert [error.code for error in report.damages] == ["BH-SPOOL-DAMAGED"]
    assert report.lost == {ITEM: 3}
    items = {one.item: one for one in report.items}
    assert (items[ITEM].last, items[OTHER].last) == (2, 5)
    assert again.append(frames(ITEM, [3])) == {ITEM: (FENCE, 3)}


def test_a_torn_tail_is_cut_and_is_no_damage() -> None:
    files = FaultyFiles()
    spool = opened(files)
    spool.append([grant_entry(ITEM, FENCE, AGENT), *frames(ITEM, range(3))])
    spool.append([*frames(ITEM, [3, 4, 5])])
    damage(files, 1, payload(ITEM, 4))
    report = make_spool(files).recover()
    assert not report.damages
    assert not report.lost, "nobody was told of anything behind the tear"
    assert report.items[0].last == 3


def test_damage_found_when_reading_back_drops_the_rest_of_the_stream() -> None:
    files = FaultyFiles()
    spool = opened(files)
    spool.append([grant_entry(ITEM, FENCE, AGENT), *frames(ITEM, range(6))])
    damage(files, 1, payload(ITEM, 2))
    assert contents(spool, ITEM, 0) == [payload(ITEM, 0), payload(ITEM, 1)]
    assert spool.take_dropped().keys() == {ITEM}
    assert spool.append(frames(ITEM, [6])) == {ITEM: (FENCE, -1)}


def test_a_payload_cannot_pass_for_a_record() -> None:
    """An agent puts a whole foreign record into its payload, and damage makes the reader look for the next one."""
    files = FaultyFiles()
    forger = FaultyFiles()
    opened(forger).append([grant_entry(OTHER, Fence(9, 9, 9), "thief")])
    forged = bytes(forger.contents[FOLDER / f"{1:016x}.spool"].now)
    spool = make_spool(files)
    spool.recover()
    spool._randomness.token(1)  # another salt than the forger's
    spool.append([grant_entry(ITEM, FENCE, AGENT)])
    spool.append([frame_entry(ITEM, FENCE, 0, b"header"), frame_entry(ITEM, FENCE, 1, b"start" + forged)])
    spool.append([frame_entry(ITEM, FENCE, 2, b"end")])
    damage(files, 1, b"start")
    report = make_spool(files).recover()
    assert report.damages
    assert {one.item for one in report.items} == {ITEM}


def test_a_header_that_damage_ate_does_not_stop_moving() -> None:
    files = FaultyFiles()
    spool = opened(files, 16 * MiB)
    spool.append([grant_entry(ITEM, FENCE, AGENT), grant_entry(OTHER, FENCE, AGENT)])
    spool.append(frames(ITEM, range(2), size=10 * KiB))
    content = files.contents[FOLDER / f"{1:016x}.spool"]
    at = content.now.index(payload(ITEM, 1, 10 * KiB))
    content.now[at - 4] ^= 1
    for number in range(400):
        spool.append(frames(OTHER, [number], size=100 * KiB))
        if number < 10 or number > 200:
            spool.free(OTHER, FENCE, number - 1)
        spool.collect()
        assert spool.space().used <= 16 * MiB
    assert ITEM in spool.take_dropped()


def test_frames_whose_grant_was_damaged_belong_to_no_other_stream() -> None:
    files = FaultyFiles()
    spool = opened(files)
    spool.append([grant_entry(ITEM, FENCE, "first"), *frames(ITEM, range(3))])
    spool.append([grant_entry(ITEM, NEXT, "second"), *frames(ITEM, range(2), fence=NEXT, size=50)])
    spool.append([grant_entry(OTHER, FENCE, AGENT)])
    damage(files, 1, b"second")
    again = make_spool(files)
    report = again.recover()
    assert report.damages
    assert contents(again, ITEM, 0, NEXT) == []
    assert contents(again, ITEM, 0) == [payload(ITEM, number) for number in range(3)]


def test_what_is_applied_is_written_down_once() -> None:
    spool = opened(FaultyFiles())
    spool.append([grant_entry(ITEM, FENCE, AGENT), *frames(ITEM, range(3))])
    sizes = []
    for number in (3, 4, 5):
        spool.free(ITEM, FENCE, 1)
        before = spool.space().used
        spool.append(frames(ITEM, [number]))
        sizes.append(spool.space().used - before)
    assert sizes[0] > sizes[1] == sizes[2]
