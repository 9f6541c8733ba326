"""How much of the time a machine's writers were held for its recovery points. The aim is below 1 %.

Pure; called for one item's view, with the points as the target lists them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import msgspec

from backhaul.replication.control import PointStatus

AIM_PERCENT: Final = 1.0
MOST: Final = 60
"""Points looked at: the newest hour of the default policy."""


class FrozenShare(msgspec.Struct, frozen=True, rename="camel"):
    """`percent` of the `seconds` over which `points` were made."""

    percent: float
    points: int
    seconds: float
    aim_percent: float = AIM_PERCENT


def frozen_share(points: Sequence[PointStatus]) -> FrozenShare | None:
    """From points, oldest first; None where fewer than two follow each other.

    Only points between which none is missing count: what was thinned took its own holding with it.
    """
    newest = points[-MOST:]
    gaps = [at for at, (one, other) in enumerate(pairwise(newest), 1) if other.number != one.number + 1]
    kept = newest[gaps[-1] if gaps else 0 :]
    if len(kept) < 2:
        return None
    seconds = (kept[-1].barrier_ns - kept[0].barrier_ns) / 1e9
    if seconds <= 0:
        return None
    held = sum(point.frozen_us for point in kept[1:]) / 1e6
    return FrozenShare(round(100 * held / seconds, 3), len(kept) - 1, round(seconds, 3))
