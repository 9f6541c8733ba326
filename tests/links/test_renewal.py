"""Certificates renew themselves, in time, durably first, and survive refusals."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from backhaul.links.authority import Authority
from backhaul.links.certificates import Trust
from backhaul.links.errors import RenewalRefused
from backhaul.links.identity import Identity
from backhaul.links.renewal import Renewal, renew, renewing
from backhaul.links.tls import Credentials
from backhaul.replication.values import Role
from links.world import DAY_NS, HandClock, make_authority


class World:
    """A server that asks its authority directly; `rounds` of the renewal loop, a day each."""

    def __init__(self, folder: Path) -> None:
        self.clock = HandClock()
        self.authority: Authority = make_authority(folder, clock=self.clock)
        self.credentials = Credentials(self.authority.own_identity(Role.AGENT, "a1"), self.clock)
        self.saved: list[Identity] = []
        self.asked_on: list[int] = []
        self.begin = self.clock.wall_ns()
        self.rounds = 0

    async def ask(self, csr: bytes) -> tuple[tuple[bytes, ...], Trust]:
        self.asked_on.append((self.clock.wall_ns() - self.begin) // DAY_NS)
        assert self.saved == [] or self.credentials.identity == self.saved[-1]
        return self.authority.renew(self.credentials.identity.certificate, csr), self.authority.trust

    async def pause(self, seconds: float) -> None:
        self.clock.advance(DAY_NS)
        self.rounds -= 1
        if self.rounds == 0:
            raise asyncio.CancelledError

    async def live(self, days: int) -> None:
        self.rounds = days
        with pytest.raises(asyncio.CancelledError):
            await renewing(self.credentials, self.renewal())

    def renewal(self) -> Renewal:
        return Renewal(self.ask, self.saved.append, self.clock, self.pause)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "ca")


async def test_a_year_of_renewals(world: World) -> None:
    first = world.credentials.identity
    await world.live(365)
    assert world.asked_on == [60, 120, 180, 240, 300, 360]
    assert world.credentials.identity == world.saved[-1]
    assert world.credentials.identity.peer.uri == first.peer.uri
    assert world.credentials.identity.key.public_key() != first.key.public_key()


async def test_a_rollover_reaches_a_server_by_its_renewals(world: World) -> None:
    world.authority.roll_over()
    await world.live(130)
    assert len(world.credentials.identity.trust.bundle) == 1
    assert world.credentials.identity.trust.bundle == world.authority.trust.bundle


async def test_a_revoked_server_asks_again_and_keeps_what_it_has(world: World) -> None:
    first = world.credentials.identity
    world.authority.revoke(name="agent/a1")
    await world.live(64)
    assert world.asked_on == [60, 61, 62, 63]
    assert world.credentials.identity == first
    assert world.saved == []


async def test_what_was_not_asked_for_is_not_used(world: World) -> None:
    async def other_name(csr: bytes) -> tuple[tuple[bytes, ...], Trust]:
        return world.authority.issue(csr, Role.AGENT, "a2"), world.authority.trust

    async def other_key(csr: bytes) -> tuple[tuple[bytes, ...], Trust]:
        return world.authority.own_identity(Role.AGENT, "a1").chain, world.authority.trust

    for ask in (other_name, other_key):
        with pytest.raises(RenewalRefused):
            await renew(world.credentials, Renewal(ask, world.saved.append, world.clock))
    assert world.saved == []


async def test_nothing_changes_when_saving_fails(world: World) -> None:
    first = world.credentials.identity

    def fail(identity: Identity) -> None:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        await renew(world.credentials, Renewal(world.ask, fail, world.clock))
    assert world.credentials.identity == first
