"""The relay, as playbooks: who may send what to whom."""

from __future__ import annotations

import pytest

from backhaul.process_server.errors import (
    ConnectionRefused,
    ConnectionReplaced,
    SpoolWriteFailed,
)
from backhaul.process_server.events import (
    Close,
    Connected,
    Control,
    Disconnected,
    Dropped,
    Forget,
    Forward,
    Free,
    Measured,
    Purge,
    Received,
    Send,
    SpaceReturned,
    Store,
    StoreFailed,
    Wake,
)
from backhaul.process_server.relay import MAX_ITEMS, WINDOW_BYTES, Relay
from backhaul.process_server.spool import Space, frame_entry, grant_entry
from backhaul.process_server.throttle import ThrottleLimits
from backhaul.replication import messages as m
from backhaul.replication.units import MAX_FRAME, MiB
from backhaul.replication.values import Fence, ItemId, Role
from process_server.playbook import (
    A,
    B,
    C,
    Playbook,
    T,
    U,
    agent,
    frame,
    says,
    serves,
    stored,
    streaming,
    target,
    tells,
)
from process_server.world import AGENT, FENCE, ITEM, NEXT, OTHER

OLD = Fence(1, 1, 0)
FAILED = SpoolWriteFailed(folder="/spool", reason="No space left on device")


def position(fence: Fence | None, number: int, *, connected: bool = True, to: int = A) -> Send:
    return tells(to, m.Position(ITEM, fence, number, connected))


def refused(play: Playbook, code: str, to: int = A) -> None:
    """The next command tells the peer `code`, and nothing was stored."""
    said = [one for one in play.skip() if isinstance(one, Send)]
    (command,) = [one for one in said if one.message.type is not m.MessageType.POSITION]
    assert (command.connection, m.read_head(command.message, m.OpenRefused).code) == (to, code)


def test_opening_a_stream_and_its_frames() -> None:
    play = Playbook()
    play >> agent() >> target()
    play >> says(A, m.Attach(ITEM)) << position(None, -1, connected=False)
    (
        play
        >> says(T, serves(fence=OLD))
        << Purge(ITEM)
        << Store(grant_entry(ITEM, OLD, AGENT))
        << tells(T, m.Attach(ITEM))
        << position(OLD, -1)
    )
    play >> stored(-1, fence=OLD)
    play >> says(A, m.OpenRequest(ITEM), b"q") << tells(T, m.OpenRequest(ITEM), b"q")
    answer = m.OpenAnswer(ITEM, FENCE, AGENT)
    play >> says(T, answer, b"a") << Purge(ITEM) << Store(grant_entry(ITEM, FENCE, AGENT))
    play >> stored(-1) << tells(A, answer, b"a")
    play >> says(A, m.StreamHead(ITEM, FENCE), b"h") << Store(frame_entry(ITEM, FENCE, 0, b"h"))
    play >> frame(1) << Store(frame_entry(ITEM, FENCE, 1, bytes(100)))
    play >> stored(1) << tells(A, m.SpooledHead(ITEM, 1, 1)) << Wake(T)
    assert play.relay.take(T, MiB) == Forward(ITEM, FENCE, 0, 2, 101, play.relay.items[ITEM].turn)
    assert play.relay.take(T, MiB) is None
    play >> says(T, m.AppliedHead(ITEM, 1, 1)) << Free(ITEM, FENCE, 1)
    play.done()


def test_no_answer_reaches_the_agent_before_the_grant_is_durable() -> None:
    play = streaming()
    play >> says(T, m.OpenAnswer(ITEM, NEXT, AGENT), b"a") << Purge(ITEM) << Store(grant_entry(ITEM, NEXT, AGENT))
    play >> stored(2)  # a batch of the old stream that was being written
    play >> stored(-1, fence=NEXT) << tells(A, m.OpenAnswer(ITEM, NEXT, AGENT), b"a")
    play.done()


def test_an_opening_needs_a_target() -> None:
    play = Playbook()
    play >> agent() >> says(A, m.Attach(ITEM))
    play.skip()
    play >> says(A, m.OpenRequest(ITEM), b"q")
    refused(play, "BH-TARGET-NOT-CONNECTED")
    play >> target()
    play >> says(T, serves(fence=OLD))
    assert position(OLD, -1) in play.skip(), "who asked hears that there is a target now"


def test_lower_numbers_are_acknowledged_again_and_not_stored() -> None:
    play = streaming(spooled=2)
    play >> frame(1) << tells(A, m.SpooledHead(ITEM, 1, 2))
    play >> frame(3) << Store(frame_entry(ITEM, FENCE, 3, bytes(100)))
    play >> frame(3)  # being stored: nothing durable can be said of it yet
    play.done()


def test_a_gap_is_refused_once_and_told_with_the_position() -> None:
    play = streaming(spooled=2)
    gap = m.OpenRefused(ITEM, "BH-FRAME-GAP", {"item": ITEM, "expected": 3, "number": 5})
    play >> frame(5) << tells(A, gap) << position(FENCE, 2)
    play >> frame(6)
    play >> frame(3) << Store(frame_entry(ITEM, FENCE, 3, bytes(100)))
    play >> frame(9)
    assert play.skip(), "after a frame that was taken, a new gap is told again"


@pytest.mark.parametrize("fence", [OLD, NEXT, Fence(0, 1, 1), Fence(1, 0, 1), Fence(2, 1, 1)], ids=str)
def test_a_frame_of_another_fence_is_refused(fence: Fence) -> None:
    play = streaming(spooled=2)
    play >> frame(3, fence=fence)
    refused(play, "BH-FENCE-STALE")
    play >> says(A, m.StreamHead(ITEM, fence), b"h")
    play.done()


def test_nobody_appends_to_the_stream_of_another() -> None:
    play = streaming(spooled=2)
    play >> agent(B, "thief")
    play >> frame(3, connection=B)
    refused(play, "BH-STREAM-NOT-GRANTED", B)
    play >> says(B, m.Attach(ITEM)) << position(None, -1, to=B)
    play >> frame(3, connection=B)
    refused(play, "BH-STREAM-NOT-GRANTED", B)
    play >> says(B, m.StreamHead(ITEM, FENCE), b"h")
    play.done()
    play >> frame(3) << Store(frame_entry(ITEM, FENCE, 3, bytes(100)))
    play.done()


def test_what_is_said_to_the_granted_agent_is_said_to_nobody_else() -> None:
    play = streaming(spooled=2)
    play >> agent(B, "thief") >> says(B, m.Attach(ITEM)) << position(None, -1, to=B)
    reply = m.ReplyHead(ITEM, 1, b"i", 1)
    play >> says(T, reply, b"sealed") << tells(A, reply, b"sealed")
    play >> Disconnected(A) >> says(T, reply, b"sealed")
    play.done()


def test_an_agent_that_attaches_again_has_its_target_repeat_itself() -> None:
    play = streaming(spooled=2)
    play >> Disconnected(A) >> agent(B)
    play >> says(B, m.Attach(ITEM)) << position(FENCE, 2, to=B) << tells(T, m.Attach(ITEM))
    play.done()


def test_a_second_connection_of_an_agent_replaces_the_first() -> None:
    play = streaming(spooled=2)
    play >> agent(B)
    (closed,) = play.skip()
    assert isinstance(closed, Close)
    assert (closed.connection, type(closed.reason)) == (A, ConnectionReplaced)
    play >> frame(3)  # of the replaced one
    play >> Disconnected(A)
    play.done()
    assert play.relay.peers[B].replaced == 1


def test_a_new_connection_of_the_target_gets_the_rest_again() -> None:
    play = streaming(spooled=5)
    assert play.relay.take(T, MiB) is not None
    play >> Disconnected(T) >> target(U)
    play >> says(U, serves(3)) << Free(ITEM, FENCE, 3) << tells(U, m.Attach(ITEM)) << Wake(U)
    forward = play.relay.take(U, MiB)
    assert forward is not None
    assert (forward.first, forward.count) == (4, 2)


def test_applied_0_does_not_free_a_header_that_may_never_have_arrived() -> None:
    play = streaming(spooled=2)
    play >> Disconnected(T) >> target(U) >> says(U, serves(0)) << tells(U, m.Attach(ITEM)) << Wake(U)
    forward = play.relay.take(U, MiB)
    assert forward is not None
    assert (forward.first, forward.count) == (0, 3)


def test_serves_again_does_not_send_again() -> None:
    play = streaming(spooled=2)
    assert play.relay.take(T, MiB) is not None
    play >> says(T, serves(1)) << Free(ITEM, FENCE, 1)
    assert play.relay.take(T, MiB) is None


def test_a_spool_that_was_lost_takes_over_where_the_target_is() -> None:
    play = Playbook()
    play >> agent() >> target()
    play >> says(T, serves(7)) << Purge(ITEM) << Store(grant_entry(ITEM, FENCE, AGENT, 7))
    play >> stored(7)
    play >> says(A, m.Attach(ITEM)) << position(FENCE, 7) << tells(T, m.Attach(ITEM))
    play >> frame(8) << Store(frame_entry(ITEM, FENCE, 8, bytes(100)))
    play.done()


def test_an_old_spool_changes_nothing() -> None:
    """It comes back with frames of a closed stream: what the target serves now removes them."""
    play = streaming(spooled=5)
    play >> Disconnected(T) >> target(U)
    (
        play
        >> says(U, serves(0, fence=NEXT))
        << Purge(ITEM)
        << Store(grant_entry(ITEM, NEXT, AGENT))
        << tells(U, m.Attach(ITEM))
        << position(NEXT, -1)
    )
    assert play.relay.take(U, MiB) is None
    play >> frame(6)
    refused(play, "BH-FENCE-STALE")


def test_an_old_target_gets_no_frames_of_a_higher_fence() -> None:
    play = streaming(spooled=2)
    play >> Disconnected(T) >> target(U, "old-target") >> says(U, serves(0, fence=OLD)) << tells(U, m.Attach(ITEM))
    assert play.relay.take(U, MiB) is None
    play >> says(A, m.OpenRequest(ITEM), b"q") << tells(U, m.OpenRequest(ITEM), b"q")
    play >> says(U, m.OpenAnswer(ITEM, OLD, AGENT), b"a")
    refused(play, "BH-FENCE-STALE")


def test_what_an_old_target_applied_frees_nothing() -> None:
    play = streaming(spooled=2)
    play >> Disconnected(T) >> target(U, "old-target")
    play >> says(U, serves(2, fence=Fence(1, 0, 1))) << tells(U, m.Attach(ITEM))
    play >> says(U, m.AppliedHead(ITEM, 1, 2))
    play.done()
    assert play.relay.items[ITEM].applied == -1


def test_the_target_with_the_highest_fence_serves() -> None:
    play = streaming(spooled=2)
    play >> target(U, "old-target") >> says(U, serves(2, fence=OLD))
    play >> says(U, m.AppliedHead(ITEM, 1, 2)) >> says(U, m.Discard(ITEM, Fence(9, 9, 9)))
    play >> says(U, m.OpenAnswer(ITEM, Fence(9, 9, 9), "thief"), b"a")
    play.done()


def test_discard_forgets_lower_streams_and_lets_nobody_send() -> None:
    play = streaming(spooled=2)
    play >> says(T, m.Discard(ITEM, NEXT)) << Purge(ITEM) << Store(grant_entry(ITEM, NEXT, ""))
    play >> frame(3)
    refused(play, "BH-STREAM-NOT-GRANTED")
    play >> says(T, m.Discard(ITEM, FENCE))
    play.done()


def test_a_refusal_of_the_target_reaches_who_asked() -> None:
    play = streaming(spooled=2)
    play >> agent(B, "copy") >> says(B, m.Attach(ITEM)) << position(None, -1, to=B)
    play >> says(B, m.OpenRequest(ITEM), b"q") << tells(T, m.OpenRequest(ITEM), b"q")
    no = m.OpenRefused(ITEM, "BH-NOT-ACTIVE-MACHINE", {"machine": "m2"})
    play >> says(T, no) << tells(B, no)
    play.done()


def test_what_the_spool_dropped_is_told_by_a_position_that_goes_back() -> None:
    play = streaming(spooled=5)
    play >> says(T, m.AppliedHead(ITEM, 1, 2)) << Free(ITEM, FENCE, 2) << Wake(T)
    play >> frame(6) << Store(frame_entry(ITEM, FENCE, 6, bytes(100)))
    play >> Dropped({ITEM: "full"}) << Purge(ITEM) << position(FENCE, 2)
    play >> stored(2, asked=6)
    play >> frame(7)
    refused(play, "BH-FRAME-GAP")
    assert play.relay.items[ITEM].backlog.bytes == 0


def test_frames_that_were_not_stored_are_asked_for_again() -> None:
    play = streaming(spooled=2)
    for number in (3, 4, 5):
        play >> frame(number) << Store(frame_entry(ITEM, FENCE, number, bytes(100)))
    play >> stored(3, asked=4) << tells(A, m.SpooledHead(ITEM, 1, 3)) << Wake(T) << Purge(ITEM) << position(FENCE, 3)
    play >> frame(4) << Store(frame_entry(ITEM, FENCE, 4, bytes(100)))
    play.done()


def test_a_spool_that_cannot_be_written_stops_agents_and_goes_on_later() -> None:
    play = streaming(spooled=2)
    entry = frame_entry(ITEM, FENCE, 3, bytes(100))
    play >> frame(3) << Store(entry)
    on = tells(A, m.Throttle(ITEM, True, FAILED.message))
    play >> StoreFailed([entry], FAILED) << on << position(FENCE, 2)
    play >> frame(4)  # it was on its way
    play >> SpaceReturned() << tells(A, m.Throttle(ITEM, False, "")) << position(FENCE, 2)
    play >> frame(3) << Store(entry)
    play.done()
    assert play.relay.items[ITEM].backlog.bytes == len(b"header") + 3 * 100


def test_a_grant_that_was_not_stored_is_refused_and_nobody_may_send() -> None:
    play = streaming(spooled=2)
    play >> says(T, m.OpenAnswer(ITEM, NEXT, AGENT), b"a") << Purge(ITEM) << Store(grant_entry(ITEM, NEXT, AGENT))
    play >> StoreFailed([grant_entry(ITEM, NEXT, AGENT)], FAILED)
    out = play.skip()
    assert position(None, -1) in out
    assert not any(isinstance(one, Send) and one.message.type is m.MessageType.OPEN_ANSWER for one in out)
    play >> frame(1, fence=NEXT)
    refused(play, "BH-STREAM-NOT-GRANTED")


def test_the_window_bounds_what_a_target_has_not_applied() -> None:
    play = streaming(spooled=0)
    count = WINDOW_BYTES // MAX_FRAME + 10
    for number in range(1, count + 1):
        play >> frame(number, size=MAX_FRAME)
        play.skip()
    play >> stored(count)
    play.skip()
    sent = 0
    while (forward := play.relay.take(T, MAX_FRAME)) is not None:
        sent += forward.bytes
    assert WINDOW_BYTES <= sent < WINDOW_BYTES + MAX_FRAME
    play >> says(T, m.AppliedHead(ITEM, 1, 5)) << Free(ITEM, FENCE, 5) << Wake(T)
    assert play.relay.take(T, MAX_FRAME) is not None


def test_items_of_a_target_take_turns() -> None:
    play = streaming(spooled=3)
    for event in (says(A, m.Attach(OTHER)), says(T, serves(item=OTHER)), stored(-1, item=OTHER)):
        play >> event
        play.skip()
    play >> says(A, m.StreamHead(OTHER, FENCE), b"h")
    play.skip()
    for number in range(1, 4):
        play >> frame(number, item=OTHER)
        play.skip()
    play >> stored(3, item=OTHER)
    play.skip()
    order = []
    while (forward := play.relay.take(T, 1)) is not None:
        order.append(forward.item)
    assert order == [ITEM, OTHER] * 4


def test_what_was_taken_before_a_rewind_is_not_current() -> None:
    play = streaming(spooled=2)
    forward = play.relay.take(T, MiB)
    assert forward is not None
    assert play.relay.is_current(forward)
    play >> Dropped({ITEM: "full"})
    play.skip()
    assert not play.relay.is_current(forward)


def space(free: float) -> Measured:
    return Measured(Space(int(1000 * (1 - free)), 1000, 100, 100))


def two_items(first: int, second: int) -> Playbook:
    play = streaming(spooled=1)
    for event in (says(A, m.Attach(OTHER)), says(T, serves(item=OTHER)), stored(-1, item=OTHER)):
        play >> event
        play.skip()
    for item, size in ((ITEM, first), (OTHER, second)):
        if item == OTHER:
            play >> says(A, m.StreamHead(OTHER, FENCE), b"h")
            play.skip()
        play >> frame(2 if item == ITEM else 1, item=item, size=size)
        play.skip()
    return play


def test_below_20_percent_the_item_over_its_share_stops_first_with_hysteresis() -> None:
    play = two_items(50_000, 1000)
    on, off = tells(A, m.Throttle(ITEM, True, "the spool is short of space")), tells(A, m.Throttle(ITEM, False, ""))
    play >> space(0.21)
    play >> space(0.19) << on
    play >> space(0.25)
    play >> space(0.29)
    play >> space(0.31) << off
    play >> space(0.25)
    play.done()


def test_below_10_percent_everybody_who_holds_anything_stops() -> None:
    play = two_items(50_000, 1000)
    play >> space(0.05)
    assert len(play.skip()) == 2
    play >> says(T, m.AppliedHead(OTHER, 1, 0))
    play.skip()
    assert play.relay.items[OTHER].throttled


def test_the_volume_counts_as_the_bound_does() -> None:
    play = two_items(50_000, 1000)
    play >> Measured(Space(0, 1000, 15, 100)) << tells(A, m.Throttle(ITEM, True, "the spool is short of space"))
    play.done()


@pytest.mark.parametrize(
    ("connection", "head"),
    [
        (A, serves()),
        (A, m.AppliedHead(ITEM, 1, 2)),
        (A, m.Discard(ITEM, NEXT)),
        (T, m.Attach(ITEM)),
        (A, m.Request(1, "status", {})),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_role_says_only_what_is_its_own(connection: int, head: m.Head) -> None:
    play = streaming(spooled=2)
    play >> says(connection, head)
    (closed,) = play.skip()
    assert isinstance(closed, Close)
    assert closed.reason.code == "BH-FRAME-MALFORMED"
    assert connection not in play.relay.peers


@pytest.mark.parametrize("head", [b"", b"\xff" * 10, bytes(41), bytes(43)], ids=len)
def test_a_malformed_frame_closes_its_connection_only(head: bytes) -> None:
    play = streaming(spooled=2)
    play >> Received(A, m.Message(m.MessageType.FRAME, head, b""))
    (closed,) = play.skip()
    assert isinstance(closed, Close)
    assert T in play.relay.peers


def test_control_is_for_the_configuration_server() -> None:
    play = Playbook()
    play >> Connected(C, Role.CONFIGURATION_SERVER, "cs")
    play >> says(C, m.Request(7, "status", {})) << Control(C, m.Request(7, "status", {}))
    play >> Connected(30, Role.PROCESS_SERVER, "other")
    (closed,) = play.skip()
    assert isinstance(closed, Close)
    assert isinstance(closed.reason, ConnectionRefused)


def test_items_are_bounded_and_idle_ones_make_room() -> None:
    relay = Relay("ps", ThrottleLimits())
    play = Playbook(relay)
    play >> target()
    names = [ItemId(f"{number:032x}") for number in range(MAX_ITEMS)]
    for start in range(0, MAX_ITEMS, 128):
        served = tuple(m.Served(name, OLD, 0, AGENT) for name in names[start : start + 128])
        play >> says(T, m.Serves(served))
        play.skip()
    play >> agent() >> says(A, m.Attach(ITEM))
    (closed,) = play.skip()
    assert isinstance(closed, Close)
    assert closed.reason.code == "BH-SPOOL-ITEMS-FULL"
    play >> Disconnected(T) >> agent(B, "agent-2")
    play >> says(B, m.Attach(ITEM)) << Forget(names[0]) << position(None, -1, connected=False, to=B)
    play.done()
