"""Power loss at every call that writes or syncs, and again inside the recovery; every kept point byte for byte.

Proof that the fault happened: `World.dead` is set by the call it was placed at, and the run ends with PowerLoss.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from backhaul.replication.units import BLOCK

from .source import Image, Setup
from .worlds import PowerLoss

Step = Callable[[Setup], None]


@dataclass
class Script:
    """A session with a replica that is told again, after each crash, what it did not acknowledge."""

    setup: Setup
    acked: int = 0
    acked_frame: int = 0
    running: int = 0
    thinning: bool = False

    def run(self) -> None:
        """From wherever the replica stands to the end."""
        for number, writes in enumerate(EPOCHS, 1):
            self._epoch(number, writes)
            if number == 3:
                self.setup.replica.pin("three", 3)
            if number == 5:
                self.thinning = True
                self.setup.replica.thin([4, 5, 6, 7, 8])  # told again after a crash, it drops nothing newer
        self._undone_epoch()
        self._go_back()

    def _newest(self) -> int:
        complete = self.setup.replica.newest_complete
        return complete.number if complete else 0

    def _epoch(self, number: int, writes: list[tuple[int, ...]]) -> None:
        setup, replica = self.setup, self.setup.replica
        self.running = number
        if self._newest() >= number:
            self.acked = max(self.acked, number)
            return
        frame = number * 100
        if not replica.tries:
            replica.begin(setup.begin())
        for at, write in enumerate(writes, 1):
            if frame + at > replica.applied_frame:
                setup.frame = frame + at - 1
                setup.write(*write)
            if at % 3 == 0:
                self.acked_frame = max(self.acked_frame, replica.flush())
        replica.complete(setup.end(), frame + len(writes) + 1)
        self.acked = number

    def _undone_epoch(self) -> None:
        setup, replica = self.setup, self.setup.replica
        if self._newest() > 6:
            return
        self.running = 6
        started = replica._journal.started
        if started and started.undoing:  # a failed undo is called again
            replica.undo_started()
        if not replica.tries:
            replica.begin(setup.begin())
        setup.frame = 10_000
        for write in ((0, 0, 99, 20), (1, 0, 0, 10)):
            setup.write(*write)
            replica.flush()
        replica.undo_started()

    def _go_back(self) -> None:
        replica = self.setup.replica
        for number, point in ((7, 3), (8, 6)):
            self.running = number
            if self._newest() < number:
                replica.undo_started()  # what a failed one left
                replica.go_to(point)
            self.acked = number


EPOCHS: list[list[tuple[int, ...]]] = [
    [(0, 0, 1, 6), (1, 0, 2), (0, 12, 3, 2), (1, 9, 4)],
    [(0, 2, 5), (0, 3, 0, 2), (1, 5, 6, 3)],
    [(0, 2, 7), (0, 2, 8), (0, 20, 9, 4), (1, 9, 0)],
    [(0, 0, 10, 3), (1, 0, 11, 9)],
    [(0, 1, 12), (0, 5, 13), (0, 5, 0), (0, 6, 14), (1, 9, 15)],
    [(0, 0, 0, 24), (1, 3, 16)],
]


def expected() -> dict[int, Image]:
    """The image of each point, computed beside the product."""
    image = [bytearray(24 * BLOCK), bytearray(9 * BLOCK + 3 * 512)]
    images = {0: tuple(bytes(disk) for disk in image)}
    for number, writes in enumerate(EPOCHS, 1):
        for disk, block, fill, *rest in writes:
            low = block * BLOCK
            high = min(low + (rest[0] if rest else 1) * BLOCK, len(image[disk]))
            image[disk][low:high] = bytes([fill]) * (high - low)
        images[number] = tuple(bytes(disk) for disk in image)
    return images | {7: images[3], 8: images[6]}


IMAGES = expected()


def new_script() -> Script:
    setup = Setup()
    setup.create()
    setup.replica._journal.segment_bytes = 6 * BLOCK  # segments roll within an epoch as well
    setup.images = dict(IMAGES)
    return Script(setup)


def verify(script: Script, *, deep: bool = False) -> None:
    """After a recovery: nothing acknowledged is missing, and every point is what it was."""
    setup, replica = script.setup, script.setup.replica
    assert replica.findings == ()
    complete = replica.newest_complete
    newest = complete.number if complete else 0
    assert script.acked <= newest <= max(script.acked, script.running)
    if newest and newest == script.acked < 7 and script.acked_frame // 100 == newest + 1:
        assert replica.applied_frame >= script.acked_frame
    kept = {4, 3} | set(range(5, newest + 1)) if script.thinning else set(range(1, newest + 1))
    assert {number for number in kept if number <= newest} <= set(setup.numbers())
    for number in setup.numbers():
        assert setup.read(number) == IMAGES[number], f"view of point {number}"
    if deep:
        setup.check_points()


def crash_runs(script: Script, chance: random.Random) -> Iterator[None]:
    """Recover, perhaps losing power within, and yield once the replica is open."""
    for _ in range(3):
        setup = script.setup
        setup.world.restart(chance, chance.choice([0.0, 0.0, 0.5, 1.0]))
        if chance.random() < 0.5:
            setup.world.crash_at = setup.world.calls + chance.randrange(1, 8)
        try:
            setup.open()
        except PowerLoss:
            continue
        setup.world.crash_at = 0
        yield
        return
    setup.world.restart(chance, 0.5)
    setup.open()
    yield


def total_calls() -> tuple[int, int]:
    script = new_script()
    start = script.setup.world.calls
    script.run()
    verify(script, deep=True)
    assert script.setup.image() == IMAGES[8]
    return start, script.setup.world.calls


def lose_power_at(call: int, chance: random.Random) -> None:
    script = new_script()
    world = script.setup.world
    world.crash_at = call
    with pytest.raises(PowerLoss):
        script.run()
    assert world.dead
    for _ in crash_runs(script, chance):
        verify(script, deep=chance.random() < 0.15)
        script.setup.replica._journal.segment_bytes = 6 * BLOCK
    script.run()
    assert script.setup.image() == IMAGES[8]
    verify(script)


def test_the_script_without_any_loss() -> None:
    start, end = total_calls()
    assert end - start > 150


@pytest.mark.parametrize("part", range(4))
def test_power_loss_at_sampled_calls(part: int, seed: int) -> None:
    start, end = total_calls()
    chance = random.Random(seed + part)
    calls = range(start + 1 + part, end + 1, 4)
    for call in sorted(chance.sample(calls, 24)):
        try:
            lose_power_at(call, random.Random(seed + call))
        except BaseException as error:
            raise AssertionError(f"power lost at call {call}, seed {seed}") from error


@pytest.mark.deep
@pytest.mark.timeout(3600)
def test_power_loss_at_every_call() -> None:
    start, end = total_calls()
    for call in range(start + 1, end + 1):
        for seed in range(6):
            try:
                lose_power_at(call, random.Random(seed))
            except BaseException as error:
                raise AssertionError(f"power lost at call {call}, seed {seed}") from error
