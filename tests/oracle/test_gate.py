"""Quiescing: nothing is in flight afterwards, and it ends by itself whatever the caller does."""

from __future__ import annotations

import threading

from backhaul.demo.writers.gate import Gate
from backhaul.demo.writers.latency import Latencies
from backhaul.replication.ports import RealClock


class SteppedClock:
    """Stands still until stepped."""

    def __init__(self) -> None:
        self.now_ns = 0

    def wall_ns(self) -> int:
        return self.now_ns

    def monotonic_ns(self) -> int:
        return self.now_ns


def test_quiesce_waits_for_what_is_in_flight() -> None:
    gate = Gate(RealClock(), limit_s=60, per_s=0)
    entered, release, left = threading.Event(), threading.Event(), threading.Event()

    def write() -> None:
        with gate.passing():
            entered.set()
            release.wait()
            left.set()

    writer = threading.Thread(target=write)
    writer.start()
    entered.wait()
    threading.Timer(0.01, release.set).start()
    assert gate.quiesce()
    assert left.is_set()
    assert gate.resume()
    writer.join()


def test_the_limit_ends_it_for_whoever_waits() -> None:
    gate = Gate(RealClock(), limit_s=0.02, per_s=0)
    assert gate.quiesce()
    with gate.passing() as allowed:  # nobody resumes; it passes all the same
        assert allowed
    assert (gate.quiesced, gate.expired) == (1, 1)
    assert not gate.resume()


def test_it_is_given_up_when_what_is_in_flight_takes_too_long() -> None:
    gate = Gate(RealClock(), limit_s=0.02, per_s=0)
    with gate.passing():
        assert not gate.quiesce()
    assert gate.expired == 1
    with gate.passing() as allowed:
        assert allowed


def test_a_resume_behind_the_limit_says_so() -> None:
    clock = SteppedClock()
    gate = Gate(clock, limit_s=2, per_s=0)
    assert gate.quiesce()
    clock.now_ns = 2_000_000_000
    assert not gate.resume()
    assert gate.expired == 1


def test_stopping_ends_everything() -> None:
    gate = Gate(RealClock(), limit_s=60, per_s=0)
    assert gate.quiesce()
    answers: list[bool] = []

    def write() -> None:
        with gate.passing() as allowed:
            answers.append(allowed)

    writer = threading.Thread(target=write)
    writer.start()
    gate.stop()
    writer.join()
    assert answers == [False]
    assert not gate.quiesce()


def test_latencies_are_right_to_a_quarter() -> None:
    latencies = Latencies()
    for value in range(1, 10001):
        latencies.add(value * 1000)
    assert 4_950_000 <= latencies.quantile_ns(0.5) <= 5_000_000 * 1.25
    assert 9_900_000 <= latencies.quantile_ns(0.99) <= 10_000_000
    assert latencies.longest_ns == 10_000_000
    assert Latencies().quantile_ns(0.99) == 0
