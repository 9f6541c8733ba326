"""Both ends without a network: what neither may believe after a lost spool, a snapshot or ninety days."""

from __future__ import annotations

from pathlib import Path

import pytest

from backhaul.links.authority import Authority, AuthorityStore
from backhaul.links.identity import TrustVerifier
from backhaul.mobility.unconfirmed import Unconfirmed
from backhaul.replication import messages as m
from backhaul.replication.epochs import EpochOrder
from backhaul.replication.errors import OpeningForged, SpoolLost
from backhaul.replication.maps import GranuleMap
from backhaul.replication.opening import make_descriptor
from backhaul.replication.ports import RealFiles, RealRandomness
from backhaul.replication.records import ChunkCodec, encode_frame
from backhaul.replication.sealing import SealingKey
from backhaul.replication.source import Opened
from backhaul.replication.target import OFFERED_KEYS, Target, TargetSession, TargetState
from backhaul.replication.units import MiB
from backhaul.replication.values import CompletePoint, EpochReason, Fence, Hash, Role
from replication.ends import Ends, FixedClock, begin, end

NINETY_DAYS_NS = 91 * 24 * 3600 * 1_000_000_000


def test_a_machine_that_went_back_in_time_does_not_resume_its_stream() -> None:
    """A hypervisor's snapshot with memory: the process server holds frames that this self has never sealed."""
    ends = Ends()
    target, source = ends.target(), ends.source()
    ends.open(source, target)
    source.seal(encode_frame(ChunkCodec(), begin=begin(target)))
    assert source.opened is not None
    source.spooled(m.SpooledHead(source.item, source.opened.fence.stream, 1))
    with pytest.raises(SpoolLost):
        source.resume(m.Position(source.item, source.opened.fence, 500, True))


def test_an_epoch_that_another_self_has_begun_is_not_gone_on_from() -> None:
    """A clone, or the machine set back with its memory: the blocks that were sent then are in none of our sets."""
    unconfirmed, key = Unconfirmed(), bytes(32)
    maps = {0: GranuleMap.all_zero(MiB, key)}
    opened = Opened(Fence(1, 1, 1), None, (), key, (MiB,))
    unconfirmed.compared(opened)
    ended = end(unconfirmed.begin(opened, begun_ns=1, reason=EpochReason.DELTA, tracker="scan", compares=()))
    unconfirmed.ended(ended)
    point = CompletePoint(1, ended.lineage())
    unconfirmed.completed(point)
    foreign = (Hash(b"f" * 32),)
    assert not unconfirmed.go_on_from(Opened(Fence(1, 1, 3), point, foreign, key, (MiB,)), maps)
    assert unconfirmed.go_on_from(Opened(Fence(1, 1, 4), point, (), key, (MiB,)), maps)


def test_a_stored_descriptor_outlives_the_certificate_it_was_signed_with(tmp_path: Path) -> None:
    clock = FixedClock()
    RealFiles().make_folder(tmp_path / "authority")
    store = AuthorityStore(RealFiles(), tmp_path / "authority", clock, RealRandomness())
    authority = Authority.create("vault", store)
    server = authority.own_identity(Role.CONFIGURATION_SERVER, "cs-1")
    target = authority.own_identity(Role.MASTER_TARGET, "target-1")
    ends = Ends()
    state = TargetState(make_descriptor(server, ends.descriptor()))
    clock.now_ns += NINETY_DAYS_NS
    verifier = TrustVerifier(lambda: target.trust, clock)
    session = TargetSession(Target("target-1", target, verifier, dict, bytes(16)), state, EpochOrder(), 0)
    assert session.descriptor == ends.descriptor()


def test_no_stream_is_opened_to_a_sealing_key_that_may_be_erased() -> None:
    """Such a key would be in use again between the look at what is used and the erasing."""
    ends = Ends()
    source = ends.source()
    keys = {1: ends.sealing} | {number: SealingKey.make(ends.randomness) for number in range(2, OFFERED_KEYS + 1)}
    target = Target("target-1", ends.target_key, ends.trust, lambda: keys, bytes(16))
    state = TargetState(ends.signed(ends.descriptor()))
    session = TargetSession(target, state, EpochOrder(), 0)
    session.answer(source.request("scan"), bytes(32))
    keys = keys | {OFFERED_KEYS + 1: SealingKey.make(ends.randomness)}
    with pytest.raises(OpeningForged):
        session.answer(source.request("scan"), bytes(32))
