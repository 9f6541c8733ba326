"""Altered, lost, repeated, reordered and invented messages in both directions, through the real services.

Whoever lies between can delay; it can change no byte of a replica and make no point. Each test proves that its lie
was told, that the disks are equal afterwards, and that the services live on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from backhaul.disks.raw_file import create_raw_file
from backhaul.links.authority import Authority, AuthorityStore
from backhaul.links.certificates import Expect
from backhaul.links.connection import open_data
from backhaul.links.dialer import Address, dial_data, dial_stream
from backhaul.links.tls import ALPN_DATA, Credentials
from backhaul.mobility.compare import Comparison
from backhaul.replication import messages as m
from backhaul.replication.control import Method
from backhaul.replication.errors import BackhaulError
from backhaul.replication.maps import GranuleMap
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness
from backhaul.replication.records import ChunkCodec, MapAsk, MapLevel, encode_frame
from backhaul.replication.units import GRANULE, MAX_FRAME, MiB
from backhaul.replication.values import (
    NO_LINEAGE,
    Consistency,
    EpochBegin,
    EpochEnd,
    EpochReason,
    Extent,
    Hash,
    Role,
    StillKind,
)
from dataplane.plane import Machine, Plane, running_plane, writable
from dataplane.processes import hostile as h
from dataplane.processes.hostile import Once, RawAgent, Replayed, Swapped, between

SIZE = 4 * MiB
T = m.MessageType


@pytest.fixture
async def plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Plane]:
    monkeypatch.setattr("backhaul.mobility.stream.ANSWER_S", 2.0)  # what was stolen on the way is waited for so long
    monkeypatch.setattr("backhaul.mobility.replicator.Comparison", Counted)
    async with running_plane(tmp_path) as running:
        yield running


async def fill(image: Path, seed: int, length: int = SIZE) -> None:
    with await writable(image) as file:
        file.write(random.Random(seed).randbytes(length))


async def protected(plane: Plane, seed: int, name: str = "web") -> Machine:
    image = plane.folder / f"{name}-0.img"
    create_raw_file(image, SIZE)
    await fill(image, seed)
    machine = await plane.protect(name, [SIZE], disks=[image])
    await plane.caught_up(machine)
    return machine


def equal(plane: Plane, machine: Machine) -> bool:
    return machine.disks[0].read_bytes() == plane.replicas(machine)[0].read_bytes()


# --- a man in the middle ----------------------------------------------------------------------------------------------

UP: dict[str, Any] = {
    "a flipped frame": lambda: Once(T.FRAME, h.flipped, 2),
    "a truncated frame": lambda: Once(T.FRAME, h.truncated, 2),
    "an empty frame": lambda: Once(T.FRAME, h.emptied, 2),
    "a lost frame": lambda: Once(T.FRAME, h.dropped, 2),
    "a doubled frame": lambda: Once(T.FRAME, h.doubled, 2),
    "frames in the wrong order": lambda: Swapped(T.FRAME, 2),
    "frames replayed at once": lambda: Replayed(T.FRAME, 1),
    "frames replayed later": lambda: Replayed(T.FRAME, 5),
    "a frame of a later number": lambda: Once(T.FRAME, h.frame_head(number=1), 2),
    "a frame of a closed stream": lambda: Once(T.FRAME, h.frame_head(stream=-1), 2),
    "a frame of a stream to come": lambda: Once(T.FRAME, h.frame_head(stream=1), 2),
    "a frame of an old generation": lambda: Once(T.FRAME, h.frame_head(generation=-1), 2),
    "a frame of a generation to come": lambda: Once(T.FRAME, h.frame_head(generation=1), 2),
    "a flipped header": lambda: Once(T.STREAM, h.flipped),
    "a truncated header": lambda: Once(T.STREAM, h.truncated),
    "a doubled header": lambda: Once(T.STREAM, h.doubled),
    "a flipped request": lambda: Once(T.OPEN_REQUEST, h.flipped),
    "a truncated request": lambda: Once(T.OPEN_REQUEST, h.truncated),
    "a doubled request": lambda: Once(T.OPEN_REQUEST, h.doubled),
}

DOWN: dict[str, Any] = {
    "a flipped answer": lambda: Once(T.OPEN_ANSWER, h.flipped),
    "a truncated answer": lambda: Once(T.OPEN_ANSWER, h.truncated),
    "a doubled answer": lambda: Once(T.OPEN_ANSWER, h.doubled),
    "a flipped reply": lambda: Once(T.REPLY, h.flipped, 2),
    "a truncated reply": lambda: Once(T.REPLY, h.truncated, 2),
    "a doubled reply": lambda: Once(T.REPLY, h.doubled, 2),
    "replies in the wrong order": lambda: Swapped(T.REPLY, 4),
    "replies replayed later": lambda: Replayed(T.REPLY, 3),
    "a lie of the spool": lambda: Once(T.SPOOLED, h.spooled_lie, 2),
    "a lost word of the spool": lambda: Once(T.SPOOLED, h.dropped, 2),
    "a lie of the position": lambda: Once(T.POSITION, h.position_lie),
}


AT_THE_START = {T.STREAM, T.OPEN_REQUEST, T.OPEN_ANSWER, T.POSITION}
"""Messages of an opening; all others are changed while data travel."""


class Counted(Comparison):
    """A compare that is counted."""

    count = 0

    async def run(self) -> GranuleMap:
        Counted.count += 1
        return await super().run()


def cases(seed: int, deep: bool, table: dict[str, Any], count: int) -> list[str]:
    return sorted(table) if deep else random.Random(seed).sample(sorted(table), count)


@pytest.mark.parametrize(("way", "table"), [("up", UP), ("down", DOWN)], ids=["from the agent", "from the target"])
async def test_what_is_changed_on_the_way_changes_nothing(
    plane: Plane, seed: int, deep: bool, way: str, table: dict[str, Any]
) -> None:
    machine = await protected(plane, seed)
    for number, name in enumerate(cases(seed, deep, table, 5)):
        await machine.agent.stop()
        async with between(plane, machine) as middle:
            lie = table[name]()
            if lie.kind in AT_THE_START:
                setattr(middle, way, lie)
            await machine.agent.start()
            await plane.caught_up(machine)
            compares = Counted.count
            await fill(machine.disks[0], seed + 1 + number)
            setattr(middle, way, lie)  # the frames that follow hold the new data

            async def told(lie: Any = lie) -> bool:
                return bool(lie.done)

            await plane.until(told, f"{name} was sent")
            await plane.caught_up(machine)
            assert equal(plane, machine), name
            assert Counted.count == compares, f"{name} costs a new stream at most, and no compare"
        await machine.agent.start()
        await plane.caught_up(machine)
    points = await plane.points(machine.item)
    assert [point.number for point in points] == list(range(1, len(points) + 1))


# --- an agent that sends what it likes --------------------------------------------------------------------------------


def begin(agent: RawAgent, **changes: Any) -> EpochBegin:
    """The begin that is due, changed."""
    opened = agent.session.opened
    assert opened is not None
    complete = opened.complete
    values: dict[str, Any] = {
        "number": complete.number + 1 if complete else 1,
        "previous": complete.lineage if complete else NO_LINEAGE,
        "interrupted": opened.interrupted,
        "stream": opened.fence.stream,
        "begun_ns": 1,
        "reason": EpochReason.DELTA,
        "tracker": "hostile",
    }
    return EpochBegin(**(values | changes))


def end(of: EpochBegin, **changes: Any) -> EpochEnd:
    values: dict[str, Any] = {
        "number": of.number,
        "begin": of.digest(),
        "barrier_ns": 1,
        "kind": StillKind.STOPPED,
        "consistency": Consistency.CRASH,
    }
    return EpochEnd(**(values | changes))


def noise(agent: RawAgent, seed: int) -> list[bytes]:
    """Plaintexts that no honest agent seals, each the first of its stream."""
    codec, first, data = ChunkCodec(), begin(agent), bytes(GRANULE)
    huge, chance = (1 << 63) - 1, random.Random(seed)
    good = encode_frame(codec, [Extent(0, 0, GRANULE)], chance.randbytes(GRANULE), begin=first)
    return [
        b"",
        bytes(4),
        b"\xff" * 100,
        chance.randbytes(5000),
        good[:-1],
        good + b"x",
        good[: len(good) // 2],
        encode_frame(codec, [Extent(0, 0, GRANULE)], data),
        encode_frame(codec, [Extent(0, 0, GRANULE)], bytes(GRANULE - 512), begin=first),
        encode_frame(codec, [Extent(1, 0, GRANULE)], data, begin=first),
        encode_frame(codec, [Extent(63, 0, GRANULE)], data, begin=first),
        encode_frame(codec, [Extent(0, SIZE, GRANULE)], data, begin=first),
        encode_frame(codec, [Extent(0, huge - huge % 512, GRANULE)], data, begin=first),
        encode_frame(codec, [Extent(0, 100, GRANULE)], data, begin=first),
        encode_frame(codec, begin=begin(agent, number=huge)),
        encode_frame(codec, begin=begin(agent, number=first.number + 1)),
        encode_frame(codec, begin=begin(agent, number=-1)),
        encode_frame(codec, begin=begin(agent, previous=Hash(b"x" * 32))),
        encode_frame(codec, begin=begin(agent, interrupted=(Hash(b"x" * 32),))),
        encode_frame(codec, begin=begin(agent, stream=huge)),
        encode_frame(codec, begin=begin(agent, compares=(63,))),
        encode_frame(codec, end=end(first)),
        encode_frame(codec, begin=first, end=end(first, number=huge)),
        encode_frame(codec, begin=first, end=end(first, begin=Hash(b"x" * 32))),
        encode_frame(codec, begin=first, end=end(first, compared=(0,))),
        encode_frame(codec, ask=MapAsk(5, MapLevel.RANGE, 0, 1)),
        encode_frame(codec, ask=MapAsk(-5, MapLevel.RANGE, 0, 1)),
        encode_frame(codec, ask=MapAsk(0, MapLevel.GRANULE, 0, huge)),
        encode_frame(codec, ask=MapAsk(0, MapLevel.GRANULE, -1, 1)),
    ]


async def raw_agent(plane: Plane, machine: Machine) -> RawAgent:
    agent = await RawAgent.connect(plane, f"agent-{machine.name}", machine.item, machine.name)
    await agent.open()
    return agent


async def test_well_sealed_nonsense_is_refused_and_the_target_serves_on(plane: Plane, seed: int) -> None:
    machine = await protected(plane, seed)
    other = await protected(plane, seed + 1, "db")
    await machine.agent.stop()
    before = plane.replicas(machine)[0].read_bytes()
    points = await plane.points(machine.item)
    agent = await raw_agent(plane, machine)
    for number in range(len(noise(agent, seed))):
        plaintext = noise(agent, seed)[number]
        await agent.connection.send(agent.session.seal(plaintext))
        refusal = await agent.refusal()
        assert refusal.code in {"BH-FRAME-MALFORMED", "BH-EPOCH-VIOLATION"}, number
        await agent.open()  # the refused stream takes nothing more
    await agent.connection.close()
    await plane.caught_up(other)
    assert plane.replicas(machine)[0].read_bytes() == before
    assert await plane.points(machine.item) == points
    await machine.agent.start()
    await plane.caught_up(machine)
    assert equal(plane, machine)


async def test_extreme_but_allowed_values_are_kept_over_a_restart(plane: Plane, seed: int) -> None:
    """An agent with a wrong clock or a long tongue harms its own item's points at most."""
    machine = await protected(plane, seed)
    await machine.agent.stop()
    agent = await raw_agent(plane, machine)
    extremes: list[dict[str, Any]] = [
        {"barrier_ns": (1 << 63) - 1, "frozen_us": (1 << 63) - 1},
        {"barrier_ns": -(1 << 63), "frozen_us": -1},
        {"barrier_ns": 0, "label": "x" * MiB},
    ]
    for changes in extremes:
        first = begin(agent, begun_ns=-(1 << 63), tracker="y" * 1000)
        await agent.connection.send(agent.session.seal(encode_frame(ChunkCodec(), begin=first)))
        await agent.connection.send(agent.session.seal(encode_frame(ChunkCodec(), end=end(first, **changes))))
        await plane.complete_after(machine.item, first.number - 1)
        await agent.open()
    await agent.connection.close()
    await plane.target.stop()
    await plane.target.start()
    await machine.agent.start()
    await plane.caught_up(machine)
    assert equal(plane, machine)


async def test_an_epoch_without_its_compare_is_refused_where_nothing_is_known(plane: Plane, seed: int) -> None:
    machine = await protected(plane, seed)
    await machine.agent.stop()
    await plane.request(Method.ITEM_HAND_OUT, item=machine.item)
    await plane.request(Method.ITEM_RAISE, descriptor=plane.descriptor_of(machine, generation=2))
    agent = await raw_agent(plane, machine)
    await agent.connection.send(agent.session.seal(encode_frame(ChunkCodec(), begin=begin(agent))))
    assert (await agent.refusal()).code == "BH-EPOCH-VIOLATION"
    await agent.connection.close()
    await machine.agent.start()
    await plane.caught_up(machine)
    assert equal(plane, machine)


async def test_frames_of_a_closed_stream_change_nothing(plane: Plane, seed: int) -> None:
    """An agent that slept through the opening of a newer stream, and one that slept through a failover."""
    machine = await protected(plane, seed)
    await machine.agent.stop()
    agent = await raw_agent(plane, machine)
    first = begin(agent)
    frame = agent.session.seal(encode_frame(ChunkCodec(), [Extent(0, 0, GRANULE)], bytes(GRANULE), begin=first))
    before = plane.replicas(machine)[0].read_bytes()
    await agent.open()
    await agent.connection.send(frame)
    assert await agent.refused() == "BH-FENCE-STALE"
    frame = agent.session.seal(encode_frame(ChunkCodec(), [Extent(0, 0, GRANULE)], bytes(GRANULE), begin=begin(agent)))
    await plane.request(Method.ITEM_RAISE, descriptor=plane.descriptor_of(machine, generation=2))
    await agent.connection.send(frame)

    async def known() -> bool:
        await agent.connection.send(frame)
        return any(seen.type is T.OPEN_REFUSED for seen in agent.seen[1:])

    listening = asyncio.create_task(agent.lost())
    await plane.until(known, "the process server knows of the new generation and refuses the frame")
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await agent.connection.close()
    assert plane.replicas(machine)[0].read_bytes() == before


async def test_a_process_server_that_forwards_closed_streams_is_told_to_discard_them(plane: Plane, seed: int) -> None:
    """What the honest one filters, one that comes back from the past does not: the target itself refuses it."""
    machine = await protected(plane, seed)
    await machine.agent.stop()
    agent = await raw_agent(plane, machine)
    frame = agent.session.seal(encode_frame(ChunkCodec(), [Extent(0, 0, GRANULE)], bytes(GRANULE), begin=begin(agent)))
    assert agent.session.opened is not None
    header = agent.session.pending(-1)[0]
    await agent.open()
    before = plane.replicas(machine)[0].read_bytes()
    old = plane.credentials(Role.PROCESS_SERVER, "relay-0")
    address = Address("127.0.0.1", plane.target_port)
    connection = await dial_data(address, old, Expect(Role.MASTER_TARGET), clock=RealClock())
    await open_data(connection, "relay-0")
    for message in (frame, header, frame):
        await connection.send(message)
        while (received := await connection.receive()).type is not T.DISCARD:
            assert received.type in {T.SERVES, T.APPLIED}
        assert m.read_head(received, m.Discard).fence == (await plane.status(machine.item)).fence
    await connection.close()
    await agent.connection.close()
    assert plane.replicas(machine)[0].read_bytes() == before


async def test_a_message_over_its_bounds_ends_the_link_before_it_is_read(plane: Plane, seed: int) -> None:
    machine = await protected(plane, seed)
    for kind, head, payload in [(T.FRAME, 42, MAX_FRAME + 17), (T.FRAME, 65535, 0), (T.ATTACH, 16 * 1024 + 1, 0)]:
        credentials = plane.credentials(Role.AGENT, "agent-web")
        address = Address("127.0.0.1", plane.relay_port)
        link = await dial_stream(address, credentials, ALPN_DATA, Expect(Role.PROCESS_SERVER))
        link.writer.write(m.PREFIX.pack(kind, m.VERSION, head, payload))
        said = await link.reader.read()  # to the end: nothing of the announced bytes was waited for
        assert b"BH-FRAME-MALFORMED" in said
        link.writer.close()
    await plane.caught_up(machine)


# --- whoever one is not -----------------------------------------------------------------------------------------------


async def test_an_agent_that_names_another_machines_item_gets_nothing(plane: Plane, seed: int) -> None:
    machine = await protected(plane, seed)
    other = await protected(plane, seed + 1, "db")
    await other.agent.stop()
    await machine.agent.stop()  # or it would take its place back from the one below
    before = plane.replicas(other)[0].read_bytes()
    agent = await RawAgent.connect(plane, "agent-web", other.item, "db")
    await agent.connection.send(m.message(m.Attach(other.item)))
    await agent.next(T.POSITION)
    await agent.connection.send(agent.session.request("hostile"))
    assert await agent.refused() == "BH-OPENING-REFUSED"
    fence = (await plane.status(other.item)).fence
    frame = m.Message(T.FRAME, m.FrameHead(other.item, fence, 1).encode(), b"x" * 1000)
    await agent.connection.send(frame)
    assert await agent.refused() == "BH-STREAM-NOT-GRANTED"
    await agent.connection.send(m.message(m.StreamHead(other.item, fence), b"x" * 1000))
    await agent.connection.close()
    assert (await plane.status(other.item)).fence == fence
    assert plane.replicas(other)[0].read_bytes() == before
    await machine.agent.start()
    await plane.caught_up(machine)
    await other.agent.start()
    await plane.caught_up(other)


async def test_an_agent_cannot_speak_to_a_target_or_as_control(plane: Plane, seed: int) -> None:
    machine = await protected(plane, seed)
    await machine.agent.stop()  # or it would take its place back
    agent = await RawAgent.connect(plane, "agent-web", machine.item, "web")
    await agent.connection.send(m.message(m.Request(1, Method.STATUS, {})))
    assert "BH-FRAME-MALFORMED" in str(await agent.lost())
    plane.relay_port, relay = plane.target_port, plane.relay_port
    with pytest.raises(BackhaulError):
        await RawAgent.connect(plane, "agent-web", machine.item, "web")
    plane.relay_port = relay
    await machine.agent.start()
    await plane.caught_up(machine)


@pytest.mark.parametrize("which", ["relay", "target"])
@pytest.mark.parametrize("role", [Role.AGENT, Role.PROCESS_SERVER, Role.CONFIGURATION_SERVER])
async def test_a_peer_with_another_authoritys_certificate_is_cut_off(
    plane: Plane, seed: int, which: str, role: Role
) -> None:
    store = AuthorityStore(RealFiles(), plane.folder / "other", RealClock(), RealRandomness())
    RealFiles().make_folder(plane.folder / "other")
    other = Authority.create("vault", store)
    ours = plane.identity(role, "agent-web")
    theirs = other.own_identity(role, "agent-web")
    forged = Credentials(theirs.with_trust(ours.trust), RealClock())  # it trusts us; we do not trust it
    address = Address("127.0.0.1", plane.relay_port if which == "relay" else plane.target_port)
    expect = Expect(Role.PROCESS_SERVER if which == "relay" else Role.MASTER_TARGET)

    async def greet() -> None:
        connection = await dial_data(address, forged, expect, clock=RealClock())
        await open_data(connection, "stranger")

    with pytest.raises(BackhaulError) as cut:
        await greet()
    assert cut.value.code.startswith(("BH-LINK", "BH-HANDSHAKE", "BH-CERT")), cut.value.code
    machine = await protected(plane, seed)
    assert equal(plane, machine)


async def test_an_agent_sends_nothing_to_a_process_server_of_another_authority(plane: Plane, seed: int) -> None:
    machine = await protected(plane, seed)
    await machine.agent.stop()
    RealFiles().make_folder(plane.folder / "other")
    store = AuthorityStore(RealFiles(), plane.folder / "other", RealClock(), RealRandomness())
    stranger = Authority.create("vault", store).own_identity(Role.PROCESS_SERVER, plane.relay_id)
    ours = plane.relay_credentials
    plane.relay_credentials = Credentials(stranger.with_trust(ours.identity.trust), RealClock())
    await fill(machine.disks[0], seed + 1)
    async with between(plane, machine) as middle:
        await machine.agent.start()
        status = await plane.status(machine.item)
        machine.control.reports.clear()

        async def reported() -> bool:
            return len(machine.control.reports) >= 2

        await plane.until(reported, "two reports")
        assert next(middle.connections) == 0, "no connection came past the handshake"
        assert (await plane.status(machine.item)).complete == status.complete
    plane.relay_credentials = ours
    await machine.agent.start()
    await plane.caught_up(machine)
    assert equal(plane, machine)
