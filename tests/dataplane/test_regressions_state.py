"""What decides who may write, the sealing keys, and the maps: how and when they are stored."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from backhaul.links.identity import KeySeal
from backhaul.master_target.errors import JournalFull, StateNotStored
from backhaul.master_target.item import SAVE_MAPS_NS, SAVE_MAPS_SHARE, STATE
from backhaul.master_target.keys import FILE, SealingKeys
from backhaul.replication import messages as m
from backhaul.replication.ports import RealFiles, RealRandomness
from backhaul.replication.records import Completed, Refused, Waiting
from backhaul.replication.values import ItemPolicy
from dataplane.replica_item import ReplicaItem
from replication.ends import FixedClock, end


class FullFiles(RealFiles):
    """`failing`: file name and errno of what cannot be replaced. `torn`: it is replaced all the same."""

    def __init__(self) -> None:
        self.failing: tuple[str, int] = ("", 0)
        self.torn = False
        self.replaced: list[str] = []

    def replace(self, path: Path, content: bytes) -> None:
        name, number = self.failing
        if path.name != name or self.torn:
            super().replace(path, content)
            self.replaced.append(path.name)
        if path.name == name:
            raise OSError(number, "as it was set", str(path))


@pytest.fixture
def files() -> FullFiles:
    return FullFiles()


@pytest.fixture
def held(tmp_path: Path, files: FullFiles) -> ReplicaItem:
    return ReplicaItem(tmp_path / "item", files=files)


# --- the fence --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=["full", "quota"])
def test_without_space_for_the_fence_an_opening_is_refused_and_the_stream_goes_on(
    held: ReplicaItem, files: FullFiles, number: int
) -> None:
    held.open()
    begun = held.begin()
    frames = [held.block(b"x", begin=begun), held.frame(end=end(begun))]
    held.send(frames[0])
    before = held.item.session.state
    files.failing = (STATE, number)
    other = held.ends.source()
    refused = [m.read_head(each, m.OpenRefused).code for each in held.item.handle([other.request("scan")])]
    assert refused == [StateNotStored.code]
    assert held.item.session.state == before
    assert any(isinstance(reply, Completed) for reply in held.send(frames[1]))
    files.failing = ("", 0)
    assert held.answer(held.item.handle([other.request("scan")])) is not None


def promote(held: ReplicaItem) -> None:
    held.item.promote(held.signed(generation=2))


def raise_generation(held: ReplicaItem) -> None:
    held.item.raise_descriptor(held.signed(generation=2))


def hand_out(held: ReplicaItem) -> None:
    held.item.hand_out()


@pytest.mark.parametrize("decide", [promote, raise_generation, hand_out])
def test_without_space_for_the_fence_a_request_is_refused_and_loses_no_frame(
    held: ReplicaItem, files: FullFiles, monkeypatch: pytest.MonkeyPatch, decide: Callable[[ReplicaItem], None]
) -> None:
    """What waits to be applied is kept too: behind it the stream would go on with a hole."""
    held.open()
    begun = held.begin()
    with monkeypatch.context() as patch:
        patch.setattr(held.item.replica, "flush", _no_room)
        held.send(held.block(b"x", begin=begun))
        files.failing = (STATE, errno.ENOSPC)
        with pytest.raises(StateNotStored):
            decide(held)
    files.failing = ("", 0)
    assert (held.item.session.is_open, held.item.session.state.promoted) == (True, False)
    replies = held.send(held.frame(end=end(begun)))
    assert any(isinstance(reply, Completed) for reply in replies)
    assert held.image.read_bytes()[:4096] == b"x" * 4096
    decide(held)
    assert not held.item.session.is_open


def _no_room() -> int:
    raise JournalFull(item="x", needed=2, free=1)


def test_a_final_point_waits_for_space_for_the_fence(held: ReplicaItem, files: FullFiles) -> None:
    held.open()
    files.failing = (STATE, errno.ENOSPC)
    replies = held.epoch(final=True)
    assert any(isinstance(reply, Waiting) for reply in replies)
    assert not any(isinstance(reply, Refused | Completed) for reply in replies)
    files.failing = ("", 0)
    assert any(isinstance(reply, Completed) and reply.final for reply in held.send())
    assert held.item.session.state.final


def test_a_failed_sync_of_the_fence_is_no_refusal(held: ReplicaItem, files: FullFiles) -> None:
    files.failing = (STATE, errno.EIO)
    with pytest.raises(OSError, match="as it was set"):
        held.item.handle([held.source.request("scan")])


def test_a_fence_that_was_stored_before_the_error_is_no_refusal(held: ReplicaItem, files: FullFiles) -> None:
    files.failing, files.torn = (STATE, errno.ENOSPC), True
    with pytest.raises(OSError, match="as it was set"):
        held.item.handle([held.source.request("scan")])


# --- sealing keys -----------------------------------------------------------------------------------------------------


def test_whoever_iterates_the_sealing_keys_sees_no_change(tmp_path: Path) -> None:
    keys = SealingKeys(RealFiles(), tmp_path, RealRandomness())
    keys.newest(b"first")
    iterating = iter(keys.keys.items())
    seen = keys.keys
    for certificate in (b"second", b"third", b"fourth"):
        keys.newest(certificate)
    keys.erase_unused(())
    assert [number for number, _ in iterating] == [1]
    assert list(seen) == [1]
    assert list(keys.keys) == [3, 4], "the newest, and the one that agents may still have"


def test_a_sealing_key_in_use_is_kept_over_renewals_and_starts(tmp_path: Path) -> None:
    keys = SealingKeys(RealFiles(), tmp_path, RealRandomness())
    first = keys.newest(b"first")
    for certificate in (b"second", b"third"):
        keys.newest(certificate)
    keys.erase_unused({1})
    again = SealingKeys(RealFiles(), tmp_path, RealRandomness())
    assert list(again.keys) == [1, 2, 3]
    assert again.keys[1].public == first.public
    assert again.newest(b"third").public == keys.keys[3].public


def test_sealing_keys_lie_sealed_where_there_is_a_seal(tmp_path: Path) -> None:
    seal = KeySeal(seal=lambda key: b"sealed:" + key[::-1], open=lambda box: box.removeprefix(b"sealed:")[::-1])
    keys = SealingKeys(RealFiles(), tmp_path, RealRandomness(), seal)
    made = keys.newest(b"certificate")
    assert (tmp_path / FILE).read_bytes().startswith(b"sealed:")
    assert SealingKeys(RealFiles(), tmp_path, RealRandomness(), seal).newest(b"certificate").public == made.public


def test_a_sealing_key_that_cannot_be_stored_is_none(tmp_path: Path, files: FullFiles) -> None:
    keys = SealingKeys(files, tmp_path, RealRandomness())
    files.failing = (FILE, errno.ENOSPC)
    with pytest.raises(StateNotStored):
        keys.newest(b"certificate")
    assert not keys.keys
    files.failing = ("", 0)
    assert keys.newest(b"certificate").public == SealingKeys(files, tmp_path, RealRandomness()).keys[1].public


# --- granule maps -----------------------------------------------------------------------------------------------------


def due(held: ReplicaItem) -> bool:
    """Whether the worker would save the maps now."""
    return held.item.maps_due


def test_maps_are_saved_now_and_then_and_not_only_at_a_clean_end(tmp_path: Path, files: FullFiles) -> None:
    clock = FixedClock()
    held = ReplicaItem(tmp_path / "item", files=files, clock=clock, policy=ItemPolicy())
    held.open()
    held.epoch()
    assert not due(held)
    clock.now_ns += SAVE_MAPS_NS
    held.epoch(b"y")
    assert due(held)
    files.replaced.clear()
    held.item.save_maps()
    assert files.replaced == ["0"]
    held.epoch(b"z")
    assert not due(held), "just saved"


def test_maps_that_take_long_to_save_are_saved_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FixedClock()
    held = ReplicaItem(tmp_path / "item", clock=clock)
    held.open()

    def slow() -> None:
        clock.now_ns += SAVE_MAPS_NS

    monkeypatch.setattr(held.item.replica, "save_maps", slow)
    held.item.save_maps()
    clock.now_ns += SAVE_MAPS_SHARE * SAVE_MAPS_NS - 1
    held.epoch()
    assert not due(held)
    clock.now_ns += 1
    held.epoch(b"y")
    assert due(held)


def test_maps_that_cannot_be_saved_hold_nothing_back(tmp_path: Path, files: FullFiles) -> None:
    clock = FixedClock()
    held = ReplicaItem(tmp_path / "item", files=files, clock=clock)
    held.open()
    files.failing = ("0", errno.ENOSPC)
    clock.now_ns += SAVE_MAPS_NS
    held.epoch()
    held.item.save_maps()
    assert any(isinstance(reply, Completed) for reply in held.epoch(b"y"))
    clock.now_ns += SAVE_MAPS_NS
    held.epoch(b"z")
    assert due(held), "tried again"
