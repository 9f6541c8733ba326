"""Latencies of writes in bounded memory: counts in buckets that grow by a quarter of a power of two.

A quantile is right to within a quarter. Not thread-safe: the writer's lock guards it.
"""

from __future__ import annotations

from typing import Final

_BUCKETS: Final = 4 * 64  # 64 bits of nanoseconds, four buckets for each


class Latencies:
    """Counts latencies in nanoseconds."""

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self.count = 0
        self.longest_ns = 0

    def add(self, latency_ns: int) -> None:
        """One more."""
        self._counts[_bucket(max(latency_ns, 4))] += 1
        self.count += 1
        self.longest_ns = max(self.longest_ns, latency_ns)

    def quantile_ns(self, share: float) -> int:
        """Upper end of the bucket that holds the quantile, never above the longest; 0 without any latency."""
        wanted = share * self.count
        seen = 0
        for number, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return min(_upper_end(number), self.longest_ns)
        return 0


def _bucket(value: int) -> int:
    power = value.bit_length() - 1
    return 4 * power + (value >> (power - 2) & 3)


def _upper_end(bucket: int) -> int:
    power, quarter = divmod(bucket, 4)
    return (5 + quarter) << (power - 2)
