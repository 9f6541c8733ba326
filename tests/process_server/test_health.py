"""What the process server says of itself: ages, stalls, rates."""

from __future__ import annotations

from array import array

from backhaul.process_server.health import STALLED_S, Health, ItemHealth, Monitor
from backhaul.process_server.relay import Relay
from backhaul.process_server.spool import Space, SpooledItem
from backhaul.process_server.throttle import ThrottleLimits
from backhaul.replication import messages as m
from process_server.playbook import T, frame, says, streaming
from process_server.world import AGENT, FENCE, ITEM, SetClock

SPACE = Space(10, 100, 900, 1000)


def monitored() -> tuple[Relay, SetClock, Monitor]:
    relay, clock = streaming(spooled=2).relay, SetClock()
    return relay, clock, Monitor(relay, clock, (), ())


def advance(clock: SetClock, monitor: Monitor, seconds: int) -> None:
    for _ in range(seconds):
        clock.now_ns += 1_000_000_000
        monitor.tick()


def only_item(health: Health) -> ItemHealth:
    (item,) = health.items
    return item


def test_the_oldest_unapplied_frame_gives_the_age() -> None:
    relay, clock, monitor = monitored()
    monitor.tick()
    advance(clock, monitor, 5)
    relay.handle(frame(3))
    advance(clock, monitor, 5)
    assert only_item(monitor.sample(SPACE)).oldest_age_s == 10
    relay.handle(says(T, m.AppliedHead(ITEM, 1, 2)))
    advance(clock, monitor, 1)
    assert 5 <= only_item(monitor.sample(SPACE)).oldest_age_s <= 7
    relay.handle(says(T, m.AppliedHead(ITEM, 1, 3)))
    advance(clock, monitor, 1)
    assert only_item(monitor.sample(SPACE)).oldest_age_s == 0


def test_a_target_that_applies_nothing_is_stalled_until_it_does() -> None:
    relay, clock, monitor = monitored()
    monitor.tick()
    advance(clock, monitor, int(STALLED_S) - 1)
    assert not only_item(monitor.sample(SPACE)).stalled
    advance(clock, monitor, 1)
    assert monitor.sample(SPACE).stalled_items == 1
    relay.handle(says(T, m.AppliedHead(ITEM, 1, 1)))
    advance(clock, monitor, 1)
    assert not only_item(monitor.sample(SPACE)).stalled


def test_an_item_without_backlog_is_never_stalled() -> None:
    relay, clock, monitor = monitored()
    relay.handle(says(T, m.AppliedHead(ITEM, 1, 2)))
    advance(clock, monitor, 1000)
    assert not only_item(monitor.sample(SPACE)).stalled


def test_age_outlives_a_restart() -> None:
    clock = SetClock()
    stored = SpooledItem(ITEM, FENCE, AGENT, 4, 6, array("I", [10, 10]), clock.wall_ns() - 90_000_000_000)
    relay = Relay("ps", ThrottleLimits(), [stored])
    monitor = Monitor(relay, clock, [stored], ["damaged"])
    monitor.tick()
    health = monitor.sample(SPACE)
    assert (only_item(health).oldest_age_s, health.backlog_bytes, health.damages) == (90, 20, ("damaged",))


def test_rates_are_of_their_windows() -> None:
    _, clock, monitor = monitored()
    monitor.in_bytes += 1000
    advance(clock, monitor, 10)
    assert monitor.sample(SPACE).in_rate == {10: 100, 60: 100, 300: 100}
    advance(clock, monitor, 50)
    rates = monitor.sample(SPACE).in_rate
    assert (rates[10], round(rates[60])) == (0, 17)
