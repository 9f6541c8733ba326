"""How many bytes and how many seconds a compare will take, with bounds, and how wrong that was afterwards.

Invariant: low <= expected <= high, for bytes and for seconds. Pure: the agent samples granules of each disk and the
link test gives its throughputs; the configuration server shows the estimate before the job and its error after it.
Bounds are for 95 %: Wilson's interval for the share of differing granules, with the correction for sampling without
replacement, and the spread of the measured throughputs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Final

import msgspec

from backhaul.recovery.errors import EstimateImpossible
from backhaul.replication.units import GRANULE

_Z: Final = 1.96


class DiskSample(msgspec.Struct, frozen=True, kw_only=True):
    """Granules of one disk, drawn at random among those that hold data (holes are not read).

    granules   all that hold data at either side
    sampled    how many of them were compared; all of them makes the figure exact
    differing  how many of the compared ones differ
    wire_ratio compressed size of the differing ones by their size; 1.0 when none differed
    """

    disk: str
    granules: int
    sampled: int
    differing: int
    wire_ratio: float = 1.0


class Range(msgspec.Struct, frozen=True):
    """A figure with its bounds."""

    low: float
    expected: float
    high: float

    def holds(self, actual: float) -> bool:
        """Whether what happened lies within the bounds."""
        return self.low <= actual <= self.high


class Estimate(msgspec.Struct, frozen=True):
    """Before the job. `data_bytes` are read and journalled; `wire_bytes` travel, compressed; `seconds` of the whole."""

    data_bytes: Range
    wire_bytes: Range
    seconds: Range


class EstimateError(msgspec.Struct, frozen=True):
    """After the job. Relative errors: 0.25 is a quarter more than expected; None where nothing was expected."""

    bytes_error: float | None
    seconds_error: float | None
    bytes_within: bool
    seconds_within: bool


def estimate(samples: Sequence[DiskSample], hash_rates: Sequence[float], link_rates: Sequence[float]) -> Estimate:
    """Bytes and seconds of a compare of all disks.

    hash_rates  bytes/s at which each end reads and hashes, measured; the slower end decides
    link_rates  bytes/s of the link test, one per try, at least one
    Raises `EstimateImpossible` when a sample is no sample or a rate is not above 0.
    """
    _refuse_nonsense(samples, hash_rates, link_rates)
    shares = [_share(sample) for sample in samples]
    sizes = [sample.granules * GRANULE for sample in samples]
    data = _sum(shares, sizes, _wholes(samples))
    wire = _sum(shares, [size * sample.wire_ratio for size, sample in zip(sizes, samples, strict=True)], None)
    hashing_s = sum(sizes) / min(hash_rates)
    slow, middle, fast = _rates(link_rates)
    return Estimate(
        data,
        wire,
        Range(
            max(hashing_s, wire.low / fast),
            max(hashing_s, wire.expected / middle),
            # At worst nothing overlaps: all is hashed first, then sent at the slowest rate.
            hashing_s + wire.high / slow,
        ),
    )


def error_of(estimated: Estimate, wire_bytes: int, seconds: float) -> EstimateError:
    """How wrong the estimate was, from the bytes that travelled and the time that it took."""
    return EstimateError(
        _relative(wire_bytes, estimated.wire_bytes.expected),
        _relative(seconds, estimated.seconds.expected),
        estimated.wire_bytes.holds(wire_bytes),
        estimated.seconds.holds(seconds),
    )


def _refuse_nonsense(samples: Sequence[DiskSample], hash_rates: Sequence[float], link_rates: Sequence[float]) -> None:
    for sample in samples:
        if not 0 <= sample.differing <= sample.sampled <= sample.granules:
            raise EstimateImpossible(reason=f"the counts of {sample.disk} contradict each other")
        if sample.granules and not sample.sampled:
            raise EstimateImpossible(reason=f"nothing of {sample.disk} was sampled")
        if not 0 < sample.wire_ratio < math.inf:
            raise EstimateImpossible(reason=f"the compression of {sample.disk} is {sample.wire_ratio}")
    for name, rates in (("hashing", hash_rates), ("the link", link_rates)):
        if not rates or not all(0 < rate < math.inf for rate in rates):
            raise EstimateImpossible(reason=f"the throughput of {name} was not measured")


def _share(sample: DiskSample) -> Range:
    """Share of differing granules with Wilson's interval, narrowed by what was not left to chance."""
    if sample.sampled == sample.granules:
        exact = sample.differing / sample.granules if sample.granules else 0.0
        return Range(exact, exact, exact)
    n, p = sample.sampled, sample.differing / sample.sampled
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    unseen = math.sqrt((sample.granules - n) / (sample.granules - 1))
    low = min(p, centre - half)
    high = max(p, centre + half)
    return Range(max(0.0, p - (p - low) * unseen), p, min(1.0, p + (high - p) * unseen))


def _wholes(samples: Sequence[DiskSample]) -> tuple[float, float]:
    """What is certain: granules seen to differ do differ, granules seen to be equal are."""
    certain = sum(sample.differing for sample in samples) * GRANULE
    equal = sum(sample.sampled - sample.differing for sample in samples) * GRANULE
    return certain, sum(sample.granules for sample in samples) * GRANULE - equal


def _sum(shares: Sequence[Range], sizes: Sequence[float], certain: tuple[float, float] | None) -> Range:
    """Sum over disks that err independently: the distances to the bounds add in quadrature."""
    expected = sum(share.expected * size for share, size in zip(shares, sizes, strict=True))
    below = math.hypot(*((share.expected - share.low) * size for share, size in zip(shares, sizes, strict=True)))
    above = math.hypot(*((share.high - share.expected) * size for share, size in zip(shares, sizes, strict=True)))
    low, high = max(0.0, expected - below), min(sum(sizes), expected + above)
    if certain is not None:
        low, high = max(low, certain[0]), min(high, certain[1])
    return Range(min(low, expected), expected, max(high, expected))


def _rates(rates: Sequence[float]) -> tuple[float, float, float]:
    """Slow, usual and fast rate: two standard deviations, but never outside half and twice what was measured."""
    middle = statistics.median(rates)
    # One try says nothing about the spread: a fifth either way is what repeated tests of one link show.
    spread = 2 * statistics.stdev(rates) if len(rates) > 1 else 0.2 * middle
    slow = max(min(min(rates), middle - spread), min(rates) / 2)
    return slow, middle, min(max(max(rates), middle + spread), max(rates) * 2)


def _relative(actual: float, expected: float) -> float | None:
    return actual / expected - 1 if expected else None
