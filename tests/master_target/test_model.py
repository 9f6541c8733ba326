"""A replica against a model: block -> fill, and the list of points. Rules are what a session may do, and power loss."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backhaul.replication.units import BLOCK

from .source import SIZES, Image, Setup
from .worlds import PowerLoss

BLOCKS = (24, 10)
WRITE = st.tuples(st.integers(0, 1), st.integers(0, 23), st.integers(0, 5), st.integers(1, 6))


class ReplicaMachine(RuleBasedStateMachine):
    """`unsure` are writes of the running epoch that were not flushed: after a crash they are sent again."""

    @initialize(old=st.booleans(), pinned=st.booleans())
    def start(self, old: bool, pinned: bool) -> None:
        self.setup = Setup()
        if old:
            for disk in self.setup.world.disks:
                disk.content.write(0, b"\x77" * (7 * BLOCK))
                disk.content.sync()
            self.setup.images[0] = self.setup.image()
        self.setup.create(fresh=not old)
        self.setup.replica._journal.segment_bytes = 5 * BLOCK
        self.points: dict[int, Image] = {}
        self.pins: dict[str, int] = {}
        if pinned:
            self.pins["home"] = self.setup.replica.pin("home")
        self.state = [bytearray(part) for part in self.setup.image()]
        self.newest = 0
        self.running: list[tuple[int, tuple[int, int, int, int]]] | None = None
        self.stream = 1
        self.base_kept = False

    def _known(self) -> dict[int, Image]:
        states = set(self.points) | set(self.pins.values())
        return {number: self.setup.images[number] for number in states}

    @precondition(lambda self: self.running is None)
    @rule()
    def begin(self) -> None:
        self.setup.replica.begin(self.setup.begin(stream=self.stream))
        self.base_kept = bool(self.newest) or 0 in self.pins.values()
        self.running = []

    @precondition(lambda self: self.running is not None)
    @rule(write=WRITE)
    def write(self, write: tuple[int, int, int, int]) -> None:
        assert self.running is not None
        disk, block, fill, count = write
        block %= BLOCKS[disk]
        count = min(count, BLOCKS[disk] - block)
        self._send((disk, block, fill, count))

    def _send(self, write: tuple[int, int, int, int]) -> None:
        assert self.running is not None
        disk, block, fill, count = write
        self.setup.write(disk, block, fill, count)
        self.running.append((self.setup.frame, write))
        end = min((block + count) * BLOCK, SIZES[disk])
        self.state[disk][block * BLOCK : end] = bytes([fill]) * (end - block * BLOCK)

    @precondition(lambda self: self.running is not None)
    @rule()
    def flush(self) -> None:
        assert self.running is not None
        applied = self.setup.replica.flush()
        assert not self.running or applied >= self.running[-1][0]
        assert self.setup.image() == tuple(bytes(part) for part in self.state)

    @precondition(lambda self: self.running is not None)
    @rule()
    def complete(self) -> None:
        self.setup.frame += 1
        self.setup.replica.complete(self.setup.end(), self.setup.frame)
        self.running = None
        self._new_point()

    def _new_point(self) -> None:
        self.newest += 1
        image = tuple(bytes(part) for part in self.state)
        self.points[self.newest] = self.setup.images[self.newest] = image

    @precondition(lambda self: self.running is not None and self.base_kept)
    @rule()
    def undo(self) -> None:
        self.setup.replica.undo_started()
        self.running = None
        self.state = [bytearray(part) for part in self.setup.images[self.newest]]
        assert self.setup.image() == self.setup.images[self.newest]

    @rule(
        seed=st.integers(0, 1 << 20),
        keep=st.sampled_from([0.0, 0.5, 1.0]),
        within=st.integers(0, 6),
        new_stream=st.booleans(),
    )
    def crash(self, seed: int, keep: float, within: int, new_stream: bool) -> None:
        setup, running = self.setup, self.running
        acked = setup.replica.applied_frame
        if within and running is not None:  # in the middle of a batch
            setup.world.crash_at = setup.world.calls + within
            try:
                setup.replica.flush()
                acked = setup.replica.applied_frame
            except PowerLoss:
                pass
        setup.crash(seed, keep)
        setup.replica._journal.segment_bytes = 5 * BLOCK
        assert setup.replica.findings == ()
        if running is None:
            return
        if setup.replica.applied_stream == self.stream:
            assert setup.replica.applied_frame >= acked
        self.running = []
        if new_stream:  # all of the epoch's blocks come again, under new frame numbers
            self.stream += 1
            setup.replica.begin(setup.begin(stream=self.stream))
            setup.frame, again = 0, [write for _, write in running]
        else:  # the same frames again, as the spool has them
            again = [write for frame, write in running if frame > setup.replica.applied_frame]
            setup.frame = min(setup.replica.applied_frame, setup.frame)
            self.running = [(frame, write) for frame, write in running if frame <= setup.replica.applied_frame]
        for write in again:
            self._send(write)

    @precondition(lambda self: self.running is None and self.newest)
    @rule(data=st.data())
    def go_to(self, data: Any) -> None:
        number = data.draw(st.sampled_from(sorted(self._known())))
        self.setup.replica.go_to(number)
        self.state = [bytearray(part) for part in self.setup.images[number]]
        assert self.setup.image() == self.setup.images[number]
        self._new_point()

    @precondition(lambda self: self.points)
    @rule(data=st.data(), name=st.sampled_from("ab"))
    def pin(self, data: Any, name: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.points)))
        if self.pins.get(name, number) == number:
            self.pins[name] = self.setup.replica.pin(name, number)

    @rule(name=st.sampled_from(["a", "b", "home"]))
    def release(self, name: str) -> None:
        self.setup.replica.release(name)
        if self.pins.pop(name, None) == 0:
            self.base_kept = (self.base_kept and self.running is not None) or bool(self.newest)

    @rule(data=st.data())
    def thin(self, data: Any) -> None:
        keep = data.draw(st.sets(st.sampled_from(sorted(self.points)))) if self.points else set()
        self.setup.replica.thin(keep)
        stay = {*keep, *self.pins.values(), self.newest}
        self.points = {number: image for number, image in self.points.items() if number in stay}

    @precondition(lambda self: self.running is None)
    @rule(disk=st.integers(0, 1))
    def maps(self, disk: int) -> None:
        self.setup.replica.refresh(disk)
        self.setup.replica.save_maps()

    @invariant()
    def points_hold(self) -> None:
        if not hasattr(self, "setup"):
            return
        assert self.setup.numbers() == sorted(self.points)
        for number, image in self._known().items():
            assert self.setup.read(number) == image, f"view of {number}"

    @invariant()
    def maps_are_true(self) -> None:
        if not hasattr(self, "setup"):
            return
        for known, image in zip(self.setup.replica.maps, self.setup.image(), strict=True):
            for number in range(known.count):
                granule = image[number * 65536 : number * 65536 + 65536]
                assert known.get(number) in (None, known.hash_granule(granule))

    def teardown(self) -> None:
        if hasattr(self, "setup") and self.newest:
            other = self.setup.copy()
            for number, image in self._known().items():
                if other.replica.tries:
                    other.replica.undo_started()
                other.replica.go_to(number)
                assert other.image() == image


TestReplica = ReplicaMachine.TestCase
TestReplica.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_the_model_notices_a_lost_write() -> None:
    """The machine can fail: a disk that forgets a synced write is seen."""
    setup = Setup()
    setup.create()
    setup.epoch((0, 0, 1))
    setup.images[1] = (b"\x02" * len(setup.images[1][0]), setup.images[1][1])
    assert setup.read(1) != setup.images[1]
    assert random.Random(0).random() < 1
