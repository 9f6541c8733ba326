"""The spool under faults at every call, crashes at every call, and random histories against a model."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from backhaul.process_server.errors import SpoolSyncFailed, SpoolWriteFailed
from backhaul.process_server.spool import Entry, Spool, frame_entry, grant_entry
from backhaul.replication.units import KiB, MiB
from backhaul.replication.values import Fence, ItemId
from process_server.faulty_files import Crash, FaultyFiles
from process_server.world import AGENT, ITEM, OTHER, THIRD, make_spool, payload

BOUND = 1 * MiB
ITEMS = (ITEM, OTHER, THIRD)


@dataclass
class Told:
    """What the spool said: `fence` and `position` acknowledged, `applied` told to it."""

    fence: Fence
    position: int = -1
    applied: int = -1
    offered: Fence | None = None
    """A grant that was on its way when a fault came: it may or may not have been stored."""


@dataclass
class History:
    """Drives a spool and remembers what it acknowledged."""

    files: FaultyFiles
    spool: Spool
    told: dict[ItemId, Told] = field(default_factory=dict)

    def grant(self, item: ItemId) -> None:
        old = self.told.get(item)
        fence = Fence(1, 1, (old.offered or old.fence).stream + 1 if old else 1)
        if old is not None:
            old.offered = fence
        else:
            self.told[item] = Told(Fence(0, 0, 0), offered=fence)
        self._append([grant_entry(item, fence, AGENT)])
        self.told[item] = Told(fence)

    def send(self, count: int, size: int) -> None:
        entries: list[Entry] = []
        for item, told in self.told.items():
            numbers = range(told.position + 1, told.position + 1 + count)
            entries += [frame_entry(item, told.fence, number, payload(item, number, size)) for number in numbers]
        self._append(entries)

    def apply(self, item: ItemId) -> None:
        told = self.told[item]
        told.applied = max(told.applied, told.position)
        self.spool.free(item, told.fence, told.applied)
        self.spool.collect()

    def _append(self, entries: list[Entry]) -> None:
        positions = self.spool.append(entries)
        for item, (fence, number) in positions.items():
            if fence == self.told[item].fence:
                self.told[item].position = number
        for item in self.spool.take_dropped():
            self.told[item].position = min(self.told[item].position, self.told[item].applied)

    def check(self, spool: Spool, *, whole: bool = True) -> None:
        """Everything acknowledged and not applied is there, with its content."""
        for item, told in self.told.items():
            if told.offered is not None or told.fence.stream == 0:
                continue
            first = told.applied + 1
            held = [data for data, _ in spool.read(item, told.fence, first, 1 << 30)] if told.position >= first else []
            expected = [payload(item, number, len(data)) for number, data in enumerate(held, first)]
            assert held == expected
            if whole:
                assert len(held) >= told.position - told.applied, f"{item}: acknowledged frames are gone"


def script(history: History) -> None:
    """A little of everything: grants, bulk, freeing, deleting, moving, dropping."""
    for item in ITEMS:
        history.grant(item)
    for turn in range(6):
        history.send(2, 20 * KiB)
        history.apply(ITEM)
        if turn % 2:
            history.apply(OTHER)
    history.grant(OTHER)
    history.send(3, 30 * KiB)
    history.apply(THIRD)
    history.spool.close()


def begin(files: FaultyFiles) -> History:
    spool = make_spool(files, BOUND)
    spool.recover()
    return History(files, spool)


def calls_of_the_script() -> list[str]:
    files = FaultyFiles()
    script(begin(files))
    return files.calls


CALLS = calls_of_the_script()


def test_the_script_reaches_what_it_should() -> None:
    assert {"open", "write_at", "sync", "sync_folder", "remove", "truncate", "free_bytes", "read_at"} <= set(CALLS)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("call", range(1, len(CALLS) + 1))
def test_any_call_may_fail(call: int, error: int) -> None:
    files = FaultyFiles(error=error)
    files.fail_at = call
    history: History | None = None
    try:
        history = begin(files)
        script(history)
    except SpoolSyncFailed:
        assert files.failed[0] in ("sync", "sync_folder")
    except SpoolWriteFailed:
        assert files.failed[0] in ("open", "write_at", "truncate", "read_at")
    except OSError:
        assert history is None, "after recovery every failure has a name"
    assert files.failed, "the fault did not happen"
    if history is None:
        return
    fatal = files.failed[0] in ("sync", "sync_folder")
    if not fatal:
        history.check(history.spool)
    files.power_loss(call)
    again = make_spool(files, BOUND)
    report = again.recover()
    assert not report.damages
    history.check(again)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("call", range(1, len(CALLS) + 1))
def test_a_crash_at_any_call_loses_nothing_acknowledged(call: int, seed: int) -> None:
    files = FaultyFiles()
    files.fail_at, files.crash = call, True
    history: History | None = None
    try:
        history = begin(files)
        script(history)
    except Crash:
        pass
    assert files.failed, "the crash did not happen"
    if history is None:
        return
    files.power_loss(1000 * seed + call)
    again = make_spool(files, BOUND)
    report = again.recover()
    assert not report.damages, "a torn tail is not damage"
    history.check(again)
    for item in report.items:  # and it goes on
        following = frame_entry(item.item, item.fence, item.last + 1, b"more")
        assert again.append([following]) == {item.item: (item.fence, item.last + 1)}


class SpoolModel(RuleBasedStateMachine):
    """Random histories with crashes and failing writes, each checked against what was acknowledged."""

    @initialize()
    def start(self) -> None:
        self.files = FaultyFiles()
        self.history = begin(self.files)

    @rule(item=st.sampled_from(ITEMS))
    def grant(self, item: ItemId) -> None:
        self.history.grant(item)

    @rule(count=st.integers(1, 4), size=st.sampled_from([0, 1, 700, 30 * KiB, 90 * KiB]))
    def send(self, count: int, size: int) -> None:
        self.history.send(count, size)

    @rule(item=st.sampled_from(ITEMS))
    def apply(self, item: ItemId) -> None:
        if item in self.history.told:
            self.history.apply(item)

    @rule(call=st.integers(1, 4))
    def fail_once(self, call: int) -> None:
        self.files.fail_at = len(self.files.calls) + call
        try:
            self.history.send(1, 1000)
        except SpoolWriteFailed:
            pass
        except SpoolSyncFailed:
            self._restart(call)
        self.files.fail_at = 0

    @rule(seed=st.integers(0, 1000))
    def crash(self, seed: int) -> None:
        self._restart(seed)

    def _restart(self, seed: int) -> None:
        self.files.power_loss(seed)
        self.history.spool = make_spool(self.files, BOUND)
        report = self.history.spool.recover()
        assert not report.damages
        for one in report.items:
            told = self.history.told[one.item]
            assert one.fence == told.fence
            assert one.last >= told.position
            told.position = one.last
            told.applied = max(told.applied, one.applied)

    @invariant()
    def nothing_is_lost_and_nothing_passes_the_bound(self) -> None:
        if hasattr(self, "history"):
            self.history.check(self.history.spool)
            assert self.history.spool.space().used <= BOUND


SpoolModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestSpoolModel = SpoolModel.TestCase


class SmallVolume(FaultyFiles):
    """A volume that is full when its files take `total` bytes."""

    def __init__(self, total: int) -> None:
        super().__init__(error=errno.ENOSPC, total=total)
        self.most = 0

    def used(self) -> int:
        return sum(len(content.now) for content in self.contents.values())

    def free_bytes(self, path: Path) -> tuple[int, int]:
        return self.total - self.used(), self.total

    def call(self, kind: str) -> None:
        self.most = max(self.most, self.used())
        self.fail_kinds = frozenset({"write_at"}) if self.used() >= self.total - KiB else frozenset()
        super().call(kind)


@pytest.mark.parametrize("how", ["applied", "of a closed stream"])
def test_a_volume_smaller_than_the_bound_that_was_full_is_freed_again(how: str) -> None:
    files = SmallVolume(4 * MiB)
    spool = make_spool(files, 16 * MiB)
    history = History(files, spool)
    history.grant(ITEM)
    for _ in range(100):
        try:
            history.send(1, 100 * KiB)
        except SpoolWriteFailed:
            break
    else:
        raise AssertionError("it was never full")
    assert history.told[ITEM].position > 10
    history.check(spool)
    if how == "applied":
        history.apply(ITEM)
    spool.reopen()  # as the service does again and again, with what it knows by then
    if how != "applied":
        history.grant(ITEM)  # the agent opens its next stream
    spool.collect()
    history.send(10, 100 * KiB)
    history.check(spool)


def test_what_is_moved_on_a_nearly_full_volume_leaves_its_last_too() -> None:
    """A segment holds more that is live than the volume has left: moving it fills nothing up."""
    files = SmallVolume(16 * MiB)
    history = History(files, make_spool(files, 64 * MiB))
    history.grant(ITEM)
    history.grant(OTHER)
    for _ in range(200):
        try:
            history.send(1, 100 * KiB)
        except SpoolWriteFailed:
            break
    else:
        raise AssertionError("it was never full")
    history.apply(OTHER)
    assert files.most < files.total, "nothing met the end of the volume"
    history.check(history.spool)
    history.apply(ITEM)
    history.send(20, 100 * KiB)
    history.check(history.spool)
