"""Payloads kept for forwarding: bounded, and never of another turn."""

from __future__ import annotations

from backhaul.process_server.events import Dropped
from backhaul.process_server.recent import RecentPayloads
from backhaul.process_server.spool import frame_entry
from backhaul.replication.units import MiB
from process_server.playbook import streaming
from process_server.world import FENCE, ITEM


def test_what_is_forwarded_at_once_is_not_read_back() -> None:
    relay = streaming(spooled=2).relay
    recent = RecentPayloads(relay.items, 1000)
    for number in range(3):
        recent.add(frame_entry(ITEM, FENCE, number, bytes([number]) * 100, number))
    forward = relay.take(10, MiB)
    assert forward is not None
    assert recent.take(forward) == [(bytes([number]) * 100, number) for number in range(3)]
    assert recent.bytes == 0


def test_a_hole_ends_what_is_given_and_leaves_nothing_behind() -> None:
    relay = streaming(spooled=2).relay
    recent = RecentPayloads(relay.items, 1000)
    recent.add(frame_entry(ITEM, FENCE, 0, b"header"))
    recent.add(frame_entry(ITEM, FENCE, 2, b"second"))
    forward = relay.take(10, MiB)
    assert forward is not None
    assert recent.take(forward) == [(b"header", 0)]
    assert recent.bytes == 0


def test_the_bound_holds_and_stale_payloads_make_room() -> None:
    relay = streaming(spooled=2).relay
    recent = RecentPayloads(relay.items, 250)
    for number in range(3):
        recent.add(frame_entry(ITEM, FENCE, number, bytes(100)))
    assert recent.bytes == 200
    relay.handle(Dropped({ITEM: "full"}))
    recent.add(frame_entry(ITEM, FENCE, 0, bytes(200)))
    assert recent.bytes == 200
