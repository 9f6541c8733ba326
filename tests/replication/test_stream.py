"""Playbooks of a stream: opening, fence, order, replay, forgery, in both directions."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backhaul.replication import messages as m
from backhaul.replication.epochs import EpochOrder
from backhaul.replication.errors import (
    BackhaulError,
    DescriptorRefused,
    EpochViolation,
    FenceStale,
    FrameForged,
    FrameGap,
    FrameMalformed,
    NotActiveMachine,
    OpeningForged,
    OpeningRefused,
    SpoolLost,
    StreamClosed,
)
from backhaul.replication.records import Applied, Completed
from backhaul.replication.source import NOTHING_SPOOLED, WINDOW_BYTES
from backhaul.replication.target import Accepted, TargetSession
from backhaul.replication.values import CompletePoint, EpochReason, Fence, Role
from replication.ends import DISK_BYTES, ITEM, Ends, Key, begin, data_extent, end, frame, take


@pytest.fixture
def ends() -> Ends:
    return Ends()


def flipped(message: m.Message, at: int = 40) -> m.Message:
    payload = bytearray(message.payload)
    payload[at] ^= 1
    return m.Message(message.type, message.head, bytes(payload))


def renumbered(message: m.Message, **changes: object) -> m.Message:
    head = m.FrameHead.decode(message.head)
    values = {"item": head.item, "fence": head.fence, "number": head.number, "flags": head.flags} | changes
    return m.Message(message.type, m.FrameHead(**values).encode(), message.payload)  # type: ignore[arg-type]


class TestOpening:
    def test_the_agent_learns_where_the_target_stands(self, ends: Ends) -> None:
        source, target = ends.source(), ends.target(epochs=EpochOrder(CompletePoint(7, b"x" * 32)))  # type: ignore[arg-type]
        ends.open(source, target)
        assert source.opened is not None
        assert source.opened.fence == Fence(1, 1, 1)
        assert source.opened.complete == CompletePoint(7, b"x" * 32)  # type: ignore[arg-type]
        assert source.opened.disk_bytes == (DISK_BYTES, DISK_BYTES)

    def test_every_opening_gets_a_higher_stream_and_closes_the_lower(self, ends: Ends) -> None:
        source, target = ends.source(), ends.target()
        ends.open(source, target)
        old = frame(source, begun=begin(target))
        ends.open(source, target)
        assert target.fence == Fence(1, 1, 2)
        with pytest.raises(FenceStale):
            take(target, old)

    def test_a_copy_of_the_machine_gets_no_stream(self, ends: Ends) -> None:
        with pytest.raises(NotActiveMachine):
            ends.open(ends.source(machine="machine-2"), ends.target())

    def test_another_agent_gets_no_stream(self, ends: Ends) -> None:
        with pytest.raises(OpeningRefused, match="agent-2"):
            ends.open(ends.source(agent=ends.other_agent), ends.target())

    def test_an_unknown_certificate_gets_no_stream(self, ends: Ends) -> None:
        with pytest.raises(OpeningForged):
            ends.open(ends.source(agent=Key(Role.AGENT, "agent-1")), ends.target())

    def test_a_forged_request_answer_or_header_is_refused(self, ends: Ends) -> None:
        source, target = ends.source(), ends.target()
        request = source.request("scan")
        with pytest.raises(OpeningForged):
            target.answer(flipped(request), bytes(32))
        state, answer = target.answer(request, bytes(32))
        target.adopt(state)
        with pytest.raises(OpeningForged):
            source.answered(flipped(answer))
        stream = source.answered(answer)
        with pytest.raises(OpeningForged):
            target.header(flipped(stream, at=60))

    def test_an_answer_to_an_earlier_request_is_refused(self, ends: Ends) -> None:
        source, target = ends.source(), ends.target()
        _, answer = target.answer(source.request("scan"), bytes(32))
        source.request("scan")
        with pytest.raises(OpeningForged):
            source.answered(answer)

    def test_a_header_for_an_answer_that_is_not_the_newest_is_refused(self, ends: Ends) -> None:
        source, other, target = ends.source(), ends.source(), ends.target()
        state, answer = target.answer(source.request("scan"), bytes(32))
        target.adopt(state)
        stream = source.answered(answer)
        state, _ = target.answer(other.request("scan"), bytes(32))
        target.adopt(state)
        with pytest.raises(FenceStale):
            target.header(stream)

    def test_a_second_header_does_not_replace_the_first(self, ends: Ends) -> None:
        source, target = ends.source(), ends.target()
        state, answer = target.answer(source.request("scan"), bytes(32))
        target.adopt(state)
        first = source.answered(answer)
        opened = target.header(first)
        assert opened is not None
        target.adopt(opened)
        assert target.header(first) is None, "the same header again is acknowledged, not an error"
        source._answer_key, source._request = None, source._request
        with pytest.raises(OpeningForged):
            source.answered(answer)

    def test_promoted_and_final_items_take_no_stream(self, ends: Ends) -> None:
        for closing in ({"promoted": True, "opening": b""}, {"final": True}):
            target = ends.target()
            ends.open(ends.source(), target)
            target.adopt(msgspec.structs.replace(target.state, **closing))
            with pytest.raises(OpeningRefused):
                ends.open(ends.source(), target)

    def test_the_stream_survives_a_restart_of_the_target(self, ends: Ends) -> None:
        source, target = ends.source(), ends.target()
        ends.open(source, target)
        take(target, frame(source, begun=begin(target)))
        second = frame(source, data_extent(), data=b"a" * 4096)
        restarted = ends.target(target.state, applied=1, epochs=target.epochs)
        assert isinstance(take(restarted, second), Accepted)


class TestFence:
    def test_only_the_exact_fence_is_taken(self, ends: Ends) -> None:
        source, target = ends.source(), ends.target()
        ends.open(source, target)
        good = frame(source, begun=begin(target))
        for fence in (Fence(0, 1, 1), Fence(2, 1, 1), Fence(1, 0, 1), Fence(1, 2, 1), Fence(1, 1, 0), Fence(1, 1, 2)):
            with pytest.raises(FenceStale):
                take(target, renumbered(good, fence=fence))
        assert isinstance(take(target, good), Accepted)

    def test_a_higher_generation_closes_the_stream_and_forgets_promotion(self, ends: Ends) -> None:
        source, target = ends.source(), ends.target()
        ends.open(source, target)
        target.adopt(msgspec.structs.replace(target.closed(), promoted=True))
        target.adopt(target.raised(ends.signed(ends.descriptor(generation=2))))
        assert not target.is_open
        assert not target.state.promoted
        ends.open(ends.source(), target)
        assert target.fence == Fence(1, 2, 2), "stream numbers never start again"

    @pytest.mark.parametrize(
        "changes",
        [
            {"term": 1, "generation": 9},
            {"term": 2, "generation": 1},
            {"term": 2, "generation": 3, "target": "target-2"},
            {"term": 2, "generation": 3, "item": "f" * 32},
            {"term": 2, "generation": 3, "term_key": bytes(32)},
        ],
        ids=["lower-term", "lower-generation", "other-target", "other-item", "other-key-of-the-term"],
    )
    def test_a_lower_descriptor_is_refused(self, ends: Ends, changes: dict[str, object]) -> None:
        target = ends.target()
        target.adopt(target.raised(ends.signed(ends.descriptor(term=2, generation=2))))
        with pytest.raises(DescriptorRefused):
            target.raised(ends.signed(ends.descriptor(**changes)))  # type: ignore[arg-type]

    def test_a_descriptor_that_an_agent_signed_is_refused(self, ends: Ends) -> None:
        target = ends.target()
        ends.authority = ends.agent
        with pytest.raises(OpeningForged):
            target.raised(ends.signed(ends.descriptor(generation=2)))


class TestFrames:
    @pytest.fixture
    def pair(self, ends: Ends) -> tuple[Ends, TargetSession]:
        self.source, self.target = ends.source(), ends.target()
        ends.open(self.source, self.target)
        return ends, self.target

    @pytest.mark.usefixtures("pair")
    def test_a_replayed_frame_is_only_acknowledged(self) -> None:
        first = frame(self.source, begun=begin(self.target))
        assert isinstance(take(self.target, first), Accepted)
        assert take(self.target, first) is None

    @pytest.mark.usefixtures("pair")
    def test_a_missing_frame_is_a_gap(self) -> None:
        frame(self.source, begun=begin(self.target))
        second = frame(self.source, data_extent(), data=b"a" * 4096)
        with pytest.raises(FrameGap) as caught:
            take(self.target, second)
        assert caught.value.params == {"item": ITEM, "expected": 1, "number": 2}

    @pytest.mark.usefixtures("pair")
    def test_frames_in_exchanged_order_are_refused(self) -> None:
        first = frame(self.source, begun=begin(self.target))
        second = frame(self.source, data_extent(), data=b"a" * 4096)
        with pytest.raises(FrameForged):
            take(self.target, renumbered(second, number=1))
        take(self.target, first)
        with pytest.raises(FrameForged):
            take(self.target, renumbered(first, number=2))
        assert isinstance(take(self.target, second), Accepted)

    @pytest.mark.usefixtures("pair")
    @pytest.mark.parametrize("change", ["flip", "truncate", "extend", "flags"])
    def test_an_altered_frame_is_refused(self, change: str) -> None:
        good = frame(self.source, begun=begin(self.target))
        payload = bytes(good.payload)
        bad = {
            "flip": flipped(good),
            "truncate": m.Message(good.type, good.head, payload[:-1]),
            "extend": m.Message(good.type, good.head, payload + b"\0"),
            "flags": renumbered(good, flags=1),
        }[change]
        with pytest.raises(FrameForged):
            take(self.target, bad)
        assert isinstance(take(self.target, good), Accepted), "a refused frame changes nothing"

    def test_a_frame_of_another_item_or_stream_does_not_open(self, ends: Ends, pair: object) -> None:
        other_source, other_target = ends.source(), ends.target()
        ends.open(other_source, other_target)  # same fence 1.1.1, another secret
        with pytest.raises(FrameForged):
            take(self.target, frame(other_source, begun=begin(other_target)))

    @pytest.mark.usefixtures("pair")
    def test_no_frame_is_taken_after_the_stream_was_closed(self) -> None:
        late = frame(self.source, begun=begin(self.target))
        self.target.adopt(self.target.closed())
        with pytest.raises(StreamClosed):
            take(self.target, late)

    @given(st.binary(max_size=200))
    @settings(max_examples=200)
    def test_hostile_plaintext_moves_nothing(self, plaintext: bytes) -> None:
        ends = Ends()
        source, target = ends.source(), ends.target()
        ends.open(source, target)
        try:
            accepted = take(target, source.seal(plaintext))
        except (FrameMalformed, EpochViolation):
            assert target.received == 0
        else:
            assert isinstance(accepted, Accepted)
            assert not accepted.frame.extents, "no epoch has begun: only an empty frame can be well formed"
        assert target.epochs == EpochOrder()


class TestEpochs:
    @pytest.fixture(autouse=True)
    def _open(self, ends: Ends) -> None:
        self.source, self.target = ends.source(), ends.target()
        ends.open(self.source, self.target)

    def test_an_epoch_begins_carries_data_and_ends(self) -> None:
        begun = begin(self.target)
        take(self.target, frame(self.source, data_extent(), data=b"a" * 4096, begun=begun))
        ended = end(begun)
        take(self.target, frame(self.source, ended=ended))
        assert self.target.epochs.complete == CompletePoint(1, ended.lineage())
        following = begin(self.target)
        assert following.number == 2
        assert following.previous == ended.lineage()

    def test_data_outside_an_epoch_is_refused(self) -> None:
        with pytest.raises(EpochViolation):
            take(self.target, frame(self.source, data_extent(), data=b"a" * 4096))

    @pytest.mark.parametrize(
        "changes",
        [{"number": 2}, {"previous": b"y" * 32}, {"interrupted": (b"z" * 32,)}, {"stream": 9}, {"compares": (2,)}],
        ids=["number", "lineage", "interrupted", "stream", "disk"],
    )
    def test_a_begin_that_is_not_due_is_refused(self, changes: dict[str, object]) -> None:
        with pytest.raises(EpochViolation):
            take(self.target, frame(self.source, begun=begin(self.target, **changes)))

    def test_a_second_begin_is_refused(self) -> None:
        take(self.target, frame(self.source, begun=begin(self.target)))
        with pytest.raises(EpochViolation):
            take(self.target, frame(self.source, begun=begin(self.target)))

    @pytest.mark.parametrize("compared", [(), (0,)], ids=["none", "one-of-two"])
    def test_no_end_before_every_compare_has_ended(self, compared: tuple[int, ...]) -> None:
        begun = begin(self.target, compares=(0, 1), reason=EpochReason.COMPARE)
        take(self.target, frame(self.source, begun=begun))
        with pytest.raises(EpochViolation, match="compare"):
            take(self.target, frame(self.source, ended=end(begun, compared=compared)))

    def test_an_interrupted_epoch_is_continued_and_named(self, ends: Ends) -> None:
        first = begin(self.target)
        take(self.target, frame(self.source, begun=first))
        ends.open(self.source, self.target)
        assert self.source.opened is not None
        assert self.source.opened.interrupted == (first.digest(),)
        with pytest.raises(EpochViolation):
            take(self.target, frame(self.source, data_extent(), data=b"a" * 4096))
        ends.open(self.source, self.target)
        second = begin(self.target)
        assert second.number == first.number
        assert isinstance(take(self.target, frame(self.source, begun=second)), Accepted)

    @pytest.mark.parametrize(
        "extent", [data_extent(disk=2), data_extent(offset=DISK_BYTES)], ids=["no-such-disk", "behind-the-end"]
    )
    def test_an_extent_outside_the_disks_is_refused(self, extent: object) -> None:
        take(self.target, frame(self.source, begun=begin(self.target)))
        with pytest.raises(EpochViolation):
            take(self.target, frame(self.source, extent, data=b"a" * 4096))  # type: ignore[arg-type]


class TestAgentsEnd:
    @pytest.fixture(autouse=True)
    def _open(self, ends: Ends) -> None:
        self.ends = ends
        self.source, self.target = ends.source(), ends.target()
        self.stream = ends.open(self.source, self.target)

    def position(self, number: int, fence: Fence | None = Fence(1, 1, 1)) -> m.Position:  # noqa: B008  # a constant
        return m.Position(ITEM, fence, number, True)

    def test_what_is_not_spooled_is_sent_again(self) -> None:
        frames = [frame(self.source, begun=begin(self.target)), frame(self.source), frame(self.source)]
        self.source.spooled(m.SpooledHead(ITEM, 1, 1))
        assert self.source.pending(NOTHING_SPOOLED) == frames[1:]
        assert self.source.pending(2) == frames[2:]
        self.source.resume(self.position(1))
        assert self.source.pending(1) == frames[1:]
        self.source.resume(self.position(3))
        assert self.source.pending(3) == []
        assert self.source.unspooled_bytes == 0

    def test_a_header_that_was_never_spooled_is_sent_again(self) -> None:
        self.source.resume(self.position(NOTHING_SPOOLED))
        assert self.source.pending(NOTHING_SPOOLED) == [self.stream]

    @pytest.mark.parametrize(
        ("number", "fence"), [(0, Fence(1, 1, 1)), (1, None), (1, Fence(1, 1, 2))], ids=["less", "nothing", "other"]
    )
    def test_a_lost_spool_is_noticed(self, number: int, fence: Fence | None) -> None:
        frame(self.source, begun=begin(self.target))
        self.source.spooled(m.SpooledHead(ITEM, 1, 1))
        with pytest.raises(SpoolLost):
            self.source.resume(self.position(number, fence))

    def test_a_claim_about_frames_that_do_not_exist_frees_nothing(self) -> None:
        frame(self.source, begun=begin(self.target))
        before = self.source.unspooled_bytes
        self.source.spooled(m.SpooledHead(ITEM, 1, 99))
        self.source.spooled(m.SpooledHead(ITEM, 7, 1))
        assert self.source.unspooled_bytes == before

    def test_the_window_is_bounded(self) -> None:
        assert self.source.has_room
        self.source.unspooled_bytes = WINDOW_BYTES
        assert not self.source.has_room

    def reply(self, number: int) -> m.Message:
        message = self.target.reply([Applied(number)])
        assert message is not None
        return message

    def test_replies_arrive_sealed(self) -> None:
        assert self.source.replies(self.reply(3)) == [Applied(3)]
        point = CompletePoint(1, b"x" * 32)  # type: ignore[arg-type]
        message = self.target.reply([Applied(4), Completed(4, point)])
        assert message is not None
        assert self.source.replies(message) == [Applied(4), Completed(4, point)]

    def test_a_replayed_or_reordered_reply_is_refused(self) -> None:
        first, second = self.reply(1), self.reply(2)
        self.source.replies(second)
        for old in (first, second):
            with pytest.raises(FrameForged):
                self.source.replies(old)

    def test_a_forged_reply_is_refused_and_changes_nothing(self) -> None:
        good = self.reply(1)
        with pytest.raises(FrameForged):
            self.source.replies(flipped(good, at=3))
        head = m.read_head(good, m.ReplyHead)
        for changed in (
            msgspec.structs.replace(head, number=7),
            msgspec.structs.replace(head, incarnation=bytes(16)),
        ):
            with pytest.raises(FrameForged):
                self.source.replies(m.message(changed, good.payload))
        assert self.source.replies(good) == [Applied(1)]

    def test_replies_of_an_ended_incarnation_are_refused(self) -> None:
        old = [self.reply(1), self.reply(2)]
        self.source.replies(old[0])
        restarted = self.ends.target(self.target.state, epochs=self.target.epochs)
        new = restarted.reply([Applied(2)])
        assert new is not None
        assert self.source.replies(new) == [Applied(2)]
        with pytest.raises(FrameForged):
            self.source.replies(old[1])

    def test_a_frame_sent_back_as_a_reply_does_not_open(self) -> None:
        sealed = frame(self.source, begun=begin(self.target)).payload
        with pytest.raises(BackhaulError):
            self.source.replies(m.message(m.ReplyHead(ITEM, 1, b"i" * 16, 1), sealed))

    def test_replies_of_an_earlier_stream_say_nothing(self) -> None:
        old = self.reply(1)
        self.ends.open(self.source, self.target)
        assert self.source.replies(old) == []
