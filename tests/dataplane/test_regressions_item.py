"""An item at its target, message by message: what was lost is said again, what was refused changed nothing."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from backhaul.links.errors import CertificateRevoked
from backhaul.master_target.errors import DisksChanged, EpochUnfinished, JournalFull
from backhaul.replication import messages as m
from backhaul.replication import opening as o
from backhaul.replication.errors import DescriptorRefused
from backhaul.replication.records import Completed, MapPart, Refused, Reply, Waiting
from backhaul.replication.sealing import header_hash, seal_to
from backhaul.replication.target import TargetState
from backhaul.replication.units import MAX_OPENING, MiB
from backhaul.replication.values import NO_LINEAGE, DiskIdentity, EpochBegin, Hash, ItemPolicy, Role
from dataplane.processes.steps import SteppedFiles, Steps
from dataplane.replica_item import BLOCK, ReplicaItem
from replication.ends import data_extent, end


@pytest.fixture
def held(tmp_path: Path) -> ReplicaItem:
    return ReplicaItem(tmp_path / "item")


def refusals(replies: list[Reply | m.OpenRefused]) -> list[Reply | m.OpenRefused]:
    return [reply for reply in replies if isinstance(reply, Refused | m.OpenRefused)]


def says_final(replies: list[Reply | m.OpenRefused]) -> bool:
    return any(isinstance(reply, Completed) and reply.final for reply in replies)


# --- killed while a frame is applied ----------------------------------------------------------------------------------


class Killed(BaseException):
    """The target is gone; nothing may catch it."""


def kill() -> None:
    raise Killed


STEPS_OF_TWO_EPOCHS = {"journal.write": 6, "journal.sync": 6, "journal.replace": 2}


@pytest.mark.parametrize("one_frame", [False, True], ids=["an end of its own", "begin, data and end in one frame"])
@pytest.mark.parametrize(
    ("step", "number"), [(step, 1 + at) for step, count in STEPS_OF_TWO_EPOCHS.items() for at in range(count)]
)
def test_after_a_kill_anywhere_the_same_frames_are_taken_again(
    tmp_path: Path, step: str, number: int, *, one_frame: bool
) -> None:
    steps = Steps()
    held = ReplicaItem(tmp_path / "item", files=SteppedFiles(steps))
    held.open()
    frames, previous = [], NO_LINEAGE
    for number_of_epoch, content in enumerate((b"x", b"y"), start=1):
        begun = held.begin(number=number_of_epoch, previous=previous)
        previous = end(begun).lineage()
        if one_frame:
            frames.append(held.block(content, begin=begun, end=end(begun)))
        else:
            frames += [held.block(content, begin=begun), held.block(content, BLOCK), held.frame(end=end(begun))]
    steps.at(step, number, kill)
    with pytest.raises(Killed):
        _ = [held.item.handle([frame]) for frame in frames]
    held.start()
    assert refusals(held.send(*frames)) == []
    assert [point.number for point in held.item.replica.points()] == [1, 2]
    assert held.item.applied == len(frames)


# --- the final point --------------------------------------------------------------------------------------------------


def test_that_the_final_epoch_is_complete_reaches_the_agent(held: ReplicaItem) -> None:
    held.open()
    replies = held.epoch(final=True)
    assert held.item.session.state.final
    assert says_final(replies)


def test_that_the_final_epoch_is_complete_is_said_again_after_a_restart(held: ReplicaItem) -> None:
    held.open()
    held.epoch(final=True)
    held.start()
    assert says_final(held.send(held.attach()))


def test_a_final_point_is_final_after_a_crash_before_its_state_was_stored(
    held: ReplicaItem, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    def crash(state: TargetState) -> None:
        raise Crash

    held.open()
    monkeypatch.setattr(held.item, "_store", crash)
    with pytest.raises(Crash):
        held.epoch(final=True)
    held.start()
    newest = held.item.newest_point()
    assert newest is not None
    assert newest.final
    assert held.item.session.state.final


def test_a_header_sent_again_does_not_open_a_stream_that_was_final(held: ReplicaItem) -> None:
    header = held.open()
    held.epoch(final=True)
    held.item.handle([header])
    assert not held.item.session.is_open


# --- what is lost with a link is said again ---------------------------------------------------------------------------


def test_a_lost_answer_to_a_question_is_given_again(held: ReplicaItem) -> None:
    held.open()
    question = held.ask()
    held.item.handle([question])  # what it answers goes down with the link
    assert any(isinstance(reply, MapPart) for reply in held.send(held.attach(), question))


def test_answers_of_a_stream_are_not_given_in_the_next(held: ReplicaItem) -> None:
    held.open()
    held.send(held.ask())
    held.open()
    assert not any(isinstance(reply, MapPart) for reply in held.send(held.attach()))


def test_a_lost_refusal_is_said_again(held: ReplicaItem) -> None:
    held.open()
    held.block(b"x", begin=held.begin())  # lost on the way
    behind_the_gap = held.block(b"y", BLOCK)
    held.item.handle([behind_the_gap])  # refused, and the refusal goes down with the link
    assert refusals(held.send(held.attach(), behind_the_gap))


def test_of_many_frames_of_a_closed_stream_one_discard_speaks(held: ReplicaItem) -> None:
    held.open()
    frames = [held.block(b"x", begin=held.begin()), *(held.block(b"x") for _ in range(50))]
    held.item.raise_descriptor(held.signed(generation=2))
    out = held.item.handle(frames)
    assert [message.type for message in out] == [m.MessageType.DISCARD]


# --- who may write ----------------------------------------------------------------------------------------------------


def forged_header(held: ReplicaItem) -> m.Message:
    """What the item's own agent can make without an answer of the target."""
    ends, fence = held.ends, held.item.session.fence
    header = msgspec.msgpack.encode(
        o.StreamHeader(held.item.item, "target-1", "machine-1", fence, m.VERSIONS[0], Hash(b""), 1)
    )
    secret = seal_to(ends.sealing.public, bytes(32), header_hash(header))
    signature = ends.agent.sign(o.STREAM_CONTEXT, header + secret)
    body = o.StreamOpening(header, secret, ends.agent.certificate, signature)
    return m.message(m.StreamHead(held.item.item, fence), msgspec.msgpack.encode(body))


def test_no_stream_opens_at_a_promoted_replica_without_an_answer(held: ReplicaItem) -> None:
    held.open()
    held.epoch()
    held.item.promote(held.signed(generation=2))
    held.item.handle([forged_header(held)])
    assert not held.item.session.is_open


def test_a_revoked_agent_is_refused_and_nothing_else_ends(held: ReplicaItem, monkeypatch: pytest.MonkeyPatch) -> None:
    real = held.ends.trust.verify

    def verify(certificate: bytes, context: bytes, body: bytes, signature: bytes) -> tuple[Role, str]:
        if context == o.REQUEST_CONTEXT:
            raise CertificateRevoked(peer="agent-1")
        return real(certificate, context, body, signature)

    monkeypatch.setattr(held.ends.trust, "verify", verify)
    out = held.item.handle([held.source.request("scan")])
    assert [message.type for message in out] == [m.MessageType.OPEN_REFUSED]


def test_after_a_rebind_the_old_machine_makes_no_point(held: ReplicaItem) -> None:
    held.open()
    held.item.raise_descriptor(held.signed(active_machine="machine-2"))
    held.epoch()
    assert held.item.replica.newest_complete is None


def test_disks_that_were_handed_out_are_written_by_no_stream(held: ReplicaItem) -> None:
    held.open()
    held.item.hand_out()
    out = held.item.handle([held.source.request("scan")])
    assert held.answer(out) is None
    assert refusals(held.replies(out))
    assert not held.item.session.is_open


def test_a_stale_promotion_disturbs_no_stream(held: ReplicaItem) -> None:
    held.item.raise_descriptor(held.signed(generation=5))
    held.open()
    begun = held.begin()
    held.send(held.block(b"x", begin=begun))
    with pytest.raises(DescriptorRefused):
        held.item.promote(held.signed(generation=2))
    assert not refusals(held.send(held.frame(end=end(begun))))


def test_a_descriptor_whose_disks_do_not_fit_disturbs_no_stream(held: ReplicaItem) -> None:
    held.open()
    begun = held.begin()
    held.send(held.block(b"x", begin=begun))
    with pytest.raises(DisksChanged):
        held.item.raise_descriptor(held.signed(generation=2, disks=(DiskIdentity(0, "a", BLOCK),)))
    assert not refusals(held.send(held.frame(end=end(begun))))


# --- what an opening tells --------------------------------------------------------------------------------------------


def test_an_epoch_without_compares_is_refused_where_all_must_be_compared(tmp_path: Path) -> None:
    held = ReplicaItem(tmp_path / "item", fresh=False)
    held.open()
    assert held.item.replica.must_compare
    assert refusals(held.send(held.block(b"x", begin=held.begin())))


def test_an_opening_while_the_journal_is_full_names_the_newest_complete_epoch(
    held: ReplicaItem, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.open()
    held.epoch()

    def full() -> int:
        raise JournalFull(item="x", needed=2, free=1)

    with monkeypatch.context() as patch:
        patch.setattr(held.item.replica, "flush", full)
        held.epoch(b"y")
        assert held.item.waiting is not None
        answer = held.answer(held.item.handle([held.source.request("scan")]))
    assert answer is not None
    held.source.answered(answer)
    assert held.source.opened is not None
    assert held.source.opened.complete == held.item.replica.newest_complete
    assert held.source.opened.complete is not None


def test_an_epoch_whose_end_was_refused_is_not_named_complete(
    held: ReplicaItem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unfinished(ended: object, frame: int) -> None:
        raise EpochUnfinished(item="x", epoch=1, blocks=1)

    held.open()
    monkeypatch.setattr(held.item.replica, "complete", unfinished)
    held.epoch()
    answer = held.answer(held.item.handle([held.source.request("scan")]))
    assert answer is not None
    held.source.answered(answer)
    assert held.source.opened is not None
    assert held.source.opened.complete is None


def test_an_opening_fits_however_often_an_epoch_was_interrupted(held: ReplicaItem) -> None:
    tries: list[EpochBegin] = []
    for stream in range(2000):
        interrupted = (tries[-1].digest(),) if tries else ()
        tries.append(held.begin(stream=stream, interrupted=interrupted))
    held.item.session.epochs.tries = tries
    _, answer = held.item.session.answer(held.source.request("scan"), bytes(32))
    assert len(answer.payload) <= MAX_OPENING
    held.source.answered(answer)


# --- waiting for room -------------------------------------------------------------------------------------------------


def full_journal(folder: Path, size: int, seed: int) -> tuple[ReplicaItem, EpochBegin]:
    """An item whose journal takes the before-images of a part of its disk, and the epoch that will overwrite it all."""
    held = ReplicaItem(folder, size=size, policy=ItemPolicy(journal_bytes=MiB))
    held.open()
    held.fill(seed)
    held.epoch()  # a point, so that before-images are kept
    return held, held.begin()


def test_what_an_item_that_waits_holds_decoded_is_bounded(tmp_path: Path, seed: int) -> None:
    held, begun = full_journal(tmp_path / "item", 64 * MiB, seed)
    for turn in range(200):
        extent = data_extent(turn % 64 * MiB, MiB)
        held.send(held.frame(extent, data=b"\xff" * MiB, begin=None if turn else begun))
    assert held.item.waiting is not None
    assert held.item._staged_bytes <= 128 * MiB


def test_trying_again_while_the_journal_is_full_stages_nothing_twice(tmp_path: Path, seed: int) -> None:
    held, begun = full_journal(tmp_path / "item", 128 * MiB, seed)
    frames = [
        held.frame(data_extent(turn * MiB, MiB), data=b"\xff" * MiB, begin=None if turn else begun)
        for turn in range(70)
    ]
    held.send(*frames)
    assert held.item.waiting is not None
    staged = held.item.replica._applier.stage.bytes
    for _ in range(10):
        assert any(isinstance(reply, Waiting) for reply in held.send())
    assert held.item.replica._applier.stage.bytes == staged


# --- points -----------------------------------------------------------------------------------------------------------


def test_going_to_a_point_again_changes_nothing(held: ReplicaItem) -> None:
    held.open()
    for content in (b"\1", b"\2"):
        held.epoch(content)
    held.item.promote(held.signed(generation=2))
    held.item.go_to(1)
    first = held.item.newest_point()
    held.item.go_to(1)
    assert held.item.newest_point() == first
    assert held.image.read_bytes()[:BLOCK] == b"\1" * BLOCK


def test_a_point_stands_when_thinning_fails(held: ReplicaItem, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(keep: object) -> int:
        raise JournalFull(item="x", needed=1, free=0)

    held.open()
    monkeypatch.setattr(held.item.replica, "thin", full)
    monkeypatch.setattr("backhaul.master_target.item.to_drop", lambda *_: [1])
    assert any(isinstance(reply, Completed) for reply in held.epoch())
    assert held.item.waiting is None
