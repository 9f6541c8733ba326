"""The one contract of still images: stopped, frozen, quiesced (and, by the trackers that can, snapshot and cut).

Invariant: a recovery point is made only of what was read between entering `hold()` and a `confirm()` that did not
raise. Called by the agent from worker threads; a source holds one image at a time.

    with source.hold() as still:
        for piece in scanner.changed(...): stage(piece)
        still.confirm()          # raises ImageNotStill: throw away what was staged
    send(staged, EpochEnd(barrier_ns=still.barrier_ns, kind=still.kind, frozen_us=still.frozen_us, ...))
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from backhaul.replication.values import Consistency, StillKind


class StillImage(Protocol):
    """Disks that nobody changes.

    kind         how they are still
    consistency  what that promises to the applications
    barrier_ns   wall clock when stillness was established: everything acknowledged before is in the image
    limit_s      after how long it ends by itself; None: not by itself
    frozen_us    after `confirm`: microseconds for which writers were held; 0 where nothing was
    """

    @property
    def kind(self) -> StillKind: ...
    @property
    def consistency(self) -> Consistency: ...
    @property
    def barrier_ns(self) -> int: ...
    @property
    def limit_s(self) -> float | None: ...
    @property
    def frozen_us(self) -> int: ...

    def confirm(self) -> None:
        """End the stillness, and prove that it lasted until now. Raises ImageNotStill if it did not."""
        ...


class StillSource(Protocol):
    """A way to have a still image of the disks it was made for."""

    def hold(self) -> AbstractContextManager[StillImage]:
        """The image, still from entering on; ended by `confirm`, or by leaving at the latest. Raises StillError."""
        ...
