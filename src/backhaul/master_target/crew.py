"""Several reads or writes of disks at once: a disk answers small requests several times faster together than in turn.

Invariant: `each` ends only after everything that it began has ended, also when a part of it failed. One crew serves all
items of a master target; each item's worker waits for its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Final, TypeVar

T = TypeVar("T")

HANDS: Final = 4
"""Requests that a master target has in flight: more gained nothing where it was measured."""

WORTH: Final = 4
"""Fewer parts are done in turn: handing them over would cost more than it saves."""


class Crew:
    """See the module. `hands` 1: everything is done in turn, by the caller."""

    def __init__(self, hands: int = HANDS) -> None:
        self._hands = hands
        self._pool = ThreadPoolExecutor(hands, "disk") if hands > 1 else None

    def each(self, act: Callable[[T], object], parts: Sequence[T]) -> None:
        """Do it to each part, in any order. Raises the first error of `act`; other parts may be done or not then."""
        if self._pool is None or len(parts) < WORTH:
            _in_turn(act, parts)
            return
        hands = min(self._hands, len(parts))
        begun = [self._pool.submit(_in_turn, act, parts[hand::hands]) for hand in range(hands)]
        wait(begun)
        for one in begun:
            one.result()

    def close(self) -> None:
        """End its threads; nobody waits for `each` any longer."""
        if self._pool is not None:
            self._pool.shutdown()


def _in_turn(act: Callable[[T], object], parts: Sequence[T]) -> None:
    for part in parts:
        act(part)


ALONE: Final = Crew(1)
"""For whoever has no crew, such as a tool that opens one replica."""
