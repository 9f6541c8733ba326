"""The tunnel: streams both ways, bounds, ends, hostile frames, and TLS through a relay that sees only ciphertext."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backhaul.links.certificates import Expect
from backhaul.links.dialer import Address, dial_stream
from backhaul.links.errors import (
    DestinationUnknown,
    LinkLost,
    LinkStalled,
    LinkUnreachable,
    StreamReset,
    TunnelFull,
    TunnelViolation,
)
from backhaul.links.forwarding import forward_local, forward_to, relay_to
from backhaul.links.listener import Caller, stream_route
from backhaul.links.tls import ALPN_HTTP, ALPN_TUNNEL
from backhaul.links.tunnel import MAX_DATA, WINDOW, Destination, FrameType, Tunnel, TunnelSettings, TunnelStream
from backhaul.replication.errors import BackhaulError
from backhaul.replication.ports import Clock, RealClock
from backhaul.replication.values import Role
from links.faultproxy import FaultProxy
from links.world import PROCESS_SERVER, HandClock, Vault, listening, turns, until

QUIET = TunnelSettings(idle_s=1000.0)


async def echo(stream: TunnelStream) -> None:
    while data := await stream.read():
        await stream.write(data)


async def read_all(stream: TunnelStream) -> bytes:
    parts = []
    while data := await stream.read():
        parts.append(data)
    return b"".join(parts)


async def run(tunnel: Tunnel, ends: list[BackhaulError]) -> None:
    try:
        await tunnel.run()
    except BackhaulError as error:
        ends.append(error)


class Pair:
    """Both ends of a tunnel over plain TCP, and how each ended."""

    def __init__(self, near: Tunnel, far: Tunnel, proxy: FaultProxy) -> None:
        self.near = near
        self.far = far
        self.proxy = proxy
        self.ends: list[BackhaulError] = []
        self.running = [asyncio.create_task(run(tunnel, self.ends)) for tunnel in (near, far)]

    async def ended(self) -> list[BackhaulError]:
        await asyncio.gather(*self.running)
        return self.ends


@contextlib.asynccontextmanager
async def paired(
    near: Mapping[str, Destination] | None = None,
    far: Mapping[str, Destination] | None = None,
    *,
    clock: Clock | None = None,
    options: TunnelSettings = QUIET,
    split: int | None = None,
) -> AsyncIterator[Pair]:
    """`near` has dialled `far`."""
    accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accepted.put((reader, writer))

    clock = clock or RealClock()
    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with FaultProxy(server.sockets[0].getsockname()[1], split=split) as proxy:
        dialled = await asyncio.open_connection("127.0.0.1", proxy.port)
        here = Tunnel(*dialled, "far", near or {}, dialled=True, clock=clock, settings=options)
        there = Tunnel(*await accepted.get(), "near", far or {}, dialled=False, clock=clock, settings=options)
        pair = Pair(here, there, proxy)
        try:
            yield pair
        finally:
            for task in pair.running:
                task.cancel()
            await asyncio.gather(*pair.running, return_exceptions=True)
            server.close()
            await server.wait_closed()


async def test_either_end_opens_streams() -> None:
    async with paired({"home": echo}, {"cloud": echo}) as pair:
        for tunnel, word in ((pair.near, "cloud"), (pair.far, "home")):
            stream = await tunnel.open(word)
            await stream.write(b"hello")
            assert await stream.read() == b"hello"
            await stream.end()
            assert await stream.read() == b""


async def test_many_streams_at_once_keep_apart() -> None:
    async with paired({}, {"cloud": echo}) as pair:

        async def one(number: int) -> None:
            stream = await pair.near.open("cloud")
            data = bytes([number]) * 100_000

            async def send() -> None:
                await stream.write(data)
                await stream.end()

            sending = asyncio.create_task(send())
            assert await read_all(stream) == data
            await sending

        await asyncio.gather(*(one(number) for number in range(20)))
        await until(lambda: not pair.far._streams and not pair.near._streams)


async def test_split_at_each_byte() -> None:
    async with paired({}, {"cloud": echo}, split=1) as pair:
        stream = await pair.near.open("cloud")
        await stream.write(b"one byte at a time")
        await stream.end()
        assert await read_all(stream) == b"one byte at a time"


async def test_half_close_leaves_the_other_direction_open() -> None:
    async def answer_after_the_end(stream: TunnelStream) -> None:
        data = await read_all(stream)
        await stream.write(b"got %d" % len(data))

    async with paired({}, {"cloud": answer_after_the_end}) as pair:
        stream = await pair.near.open("cloud")
        await stream.write(b"x" * 1000)
        await stream.end()
        assert await read_all(stream) == b"got 1000"


async def test_a_stream_nobody_reads_holds_up_no_other() -> None:
    held: list[TunnelStream] = []
    release = asyncio.Event()

    async def hold(stream: TunnelStream) -> None:
        held.append(stream)
        await release.wait()
        assert len(await read_all(stream)) == 2 * WINDOW

    async with paired({}, {"hold": hold, "echo": echo}) as pair:
        slow = await pair.near.open("hold")
        sending = asyncio.create_task(slow.write(bytes(2 * WINDOW)))
        await until(lambda: held and sum(map(len, held[0]._parts)) == WINDOW)
        quick = await pair.near.open("echo")
        for _ in range(5):
            await quick.write(b"still moving")
            assert await quick.read() == b"still moving"
        assert not sending.done()
        assert sum(map(len, held[0]._parts)) == WINDOW
        release.set()
        await sending
        await slow.end()
        assert await slow.read() == b""


async def test_reset_reaches_the_other_end_behind_what_was_sent() -> None:
    async def fail(stream: TunnelStream) -> None:
        await stream.write(b"partial")
        raise LinkUnreachable(peer="somewhere", reason="on purpose")

    async with paired({}, {"cloud": fail}) as pair:
        stream = await pair.near.open("cloud")
        assert await stream.read() == b"partial"
        with pytest.raises(StreamReset, match="on purpose"):
            await stream.read()
        with pytest.raises(StreamReset):
            await stream.write(b"x")
        with pytest.raises(StreamReset):
            await stream.end()


async def test_a_destination_with_a_defect_ends_its_stream_only() -> None:
    async def defect(stream: TunnelStream) -> None:
        raise ZeroDivisionError

    async with paired({}, {"defect": defect, "echo": echo}) as pair:
        broken = await pair.near.open("defect")
        with pytest.raises(StreamReset):
            await broken.read()
        stream = await pair.near.open("echo")
        await stream.write(b"x")
        assert await stream.read() == b"x"


async def test_only_words_that_the_other_end_maps_lead_anywhere() -> None:
    async with paired({}, {"cloud": echo}) as pair:
        stream = await pair.near.open("secrets")
        with pytest.raises(DestinationUnknown):
            await stream.read()


@pytest.mark.parametrize("word", ["127.0.0.1:22", "host:22", "", "Cloud", "a" * 33, "../api", "cloud\n"])
async def test_a_stream_cannot_name_a_host_and_port(word: str) -> None:
    async with paired({}, {"cloud": echo}) as pair:
        stream = await pair.near.open(word)
        with pytest.raises(StreamReset):
            await stream.read()
        assert any(isinstance(error, TunnelViolation) for error in await pair.ended())


async def test_streams_are_bounded_on_both_ends() -> None:
    options = TunnelSettings(idle_s=1000.0, max_streams=3)
    async with paired({}, {"cloud": echo}, options=options) as pair:
        streams = [await pair.near.open("cloud") for _ in range(3)]
        with pytest.raises(TunnelFull):
            await pair.near.open("cloud")
        pair.near._settings = QUIET  # an end that does not mind the bound
        fourth = await pair.near.open("cloud")
        with pytest.raises(TunnelFull):
            await fourth.read()
        await streams[0].end()
        assert await streams[0].read() == b""
        again = await pair.near.open("cloud")
        await again.write(b"x")
        assert await again.read() == b"x"


async def test_losing_the_tunnel_resets_every_stream_and_says_so() -> None:
    async with paired({}, {"cloud": echo}) as pair:
        streams = [await pair.near.open("cloud") for _ in range(3)]
        await streams[0].write(b"x")
        await streams[0].read()
        pair.proxy.reset()
        for stream in streams:
            with pytest.raises(StreamReset):
                await stream.read()
        assert [type(error) for error in await pair.ended()] == [LinkLost, LinkLost]
        with pytest.raises(LinkLost):
            await pair.near.open("cloud")


async def test_close_ends_both_ends() -> None:
    async with paired({}, {"cloud": echo}) as pair:
        await pair.near.close()
        assert len(await pair.ended()) == 2
        assert isinstance(pair.near.lost, LinkLost)


async def test_a_stalled_tunnel_is_found_and_an_idle_one_lives() -> None:
    clock = HandClock()
    async with paired({}, {"cloud": echo}, clock=clock, options=TunnelSettings(idle_s=0.02)) as pair:
        for _ in range(20):
            passed = dict(pair.proxy.passed)
            clock.advance(10_000_000)
            await until(lambda: all(pair.proxy.passed[way] > passed[way] for way in ("up", "down")))  # noqa: B023
            assert pair.near.lost is pair.far.lost is None
        pair.proxy.stall()
        await turns()
        clock.advance(10**9)
        assert [type(error) for error in await pair.ended()] == [LinkStalled, LinkStalled]


def frame(kind: int, number: int, payload: bytes = b"") -> bytes:
    return struct.pack("!BII", kind, number, len(payload)) + payload


OPEN = frame(FrameType.OPEN, 1, b"cloud")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(frame(99, 1), id="unknown-type"),
        pytest.param(OPEN + frame(99, 1), id="unknown-type-on-a-stream"),
        pytest.param(struct.pack("!BII", FrameType.DATA, 1, MAX_DATA + 1), id="oversized"),
        pytest.param(frame(FrameType.OPEN, 2, b"cloud"), id="a-number-of-the-other-end"),
        pytest.param(OPEN + OPEN, id="a-number-twice"),
        pytest.param(frame(FrameType.OPEN, 3, b"cloud") + OPEN, id="a-number-going-back"),
        pytest.param(frame(FrameType.DATA, 1, b"x"), id="data-before-open"),
        pytest.param(frame(FrameType.DATA, 0, b"x"), id="data-of-no-stream"),
        pytest.param(frame(FrameType.RESET, 2), id="reset-of-a-stream-we-never-opened"),
        pytest.param(OPEN + frame(FrameType.DATA, 1), id="empty-data"),
        pytest.param(OPEN + frame(FrameType.CREDIT, 1, b"abc"), id="short-credit"),
        pytest.param(OPEN + frame(FrameType.CREDIT, 1, b"\0\0\0\1"), id="credit-over-the-window"),
        pytest.param(OPEN + frame(FrameType.END, 1) + frame(FrameType.END, 1), id="two-ends"),
        pytest.param(OPEN + frame(FrameType.END, 1) + frame(FrameType.DATA, 1, b"x"), id="data-after-the-end"),
        pytest.param(OPEN + frame(FrameType.DATA, 1, bytes(MAX_DATA)) * 9, id="more-data-than-credit"),
    ],
)
async def test_a_peer_that_breaks_the_rules_loses_the_tunnel(data: bytes) -> None:
    async def idle(stream: TunnelStream) -> None:
        await asyncio.Event().wait()

    ends: list[BackhaulError] = []
    async with far_end({"cloud": idle}, ends) as (writer, task):
        writer.write(data)
        await task
        assert isinstance(ends[0], TunnelViolation)


@contextlib.asynccontextmanager
async def far_end(
    destinations: Mapping[str, Destination], ends: list[BackhaulError]
) -> AsyncIterator[tuple[asyncio.StreamWriter, asyncio.Task[None]]]:
    """A tunnel's accepting end, and a bare connection to it."""
    started: asyncio.Queue[asyncio.Task[None]] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tunnel = Tunnel(reader, writer, "x", destinations, dialled=False, clock=RealClock(), settings=QUIET)
        started.put_nowait(asyncio.create_task(run(tunnel, ends)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        yield writer, await started.get()
    finally:
        writer.transport.abort()
        server.close()
        await server.wait_closed()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.lists(st.one_of(st.binary(max_size=40), st.just(OPEN)), max_size=6).map(b"".join))
async def test_random_bytes_end_the_tunnel_in_order(data: bytes) -> None:
    ends: list[BackhaulError] = []
    async with far_end({"cloud": echo}, ends) as (writer, task):
        writer.write(data)
        writer.close()
        await task
    assert isinstance(ends[0], LinkLost | TunnelViolation)


async def test_a_peer_that_asks_and_never_reads_is_cut() -> None:
    """Answers do not wait for the peer to read, so there is a bound on them."""
    ends: list[BackhaulError] = []
    async with far_end({}, ends) as (writer, task):
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        pings = frame(FrameType.PING, 0) * 50_000
        while not task.done():
            writer.write(pings)
            with contextlib.suppress(OSError):
                await writer.drain()
            await asyncio.sleep(0)
        assert isinstance(ends[0], TunnelViolation)


# forwarding


@contextlib.asynccontextmanager
async def plain_server(answer: bytes) -> AsyncIterator[int]:
    """Reads to the end, answers with a count, and ends."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read()
        writer.write(answer + b" %d" % len(data))
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def ask_plain(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    writer.write_eof()
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_a_local_port_leads_through_the_tunnel() -> None:
    async with plain_server(b"api") as port, paired({}, {"api": forward_to("127.0.0.1", port)}) as pair:
        forward = await forward_local(lambda: pair.near, "api")
        assert await asyncio.gather(*(ask_plain(forward.port, bytes(n * 90_000)) for n in range(4))) == [
            b"api 0",
            b"api 90000",
            b"api 180000",
            b"api 270000",
        ]
        await forward.close()


async def test_a_local_port_without_a_tunnel_or_server_ends_its_connections() -> None:
    async def closed(port: int) -> None:
        with contextlib.suppress(OSError):
            assert await ask_plain(port, b"x") == b""

    async with plain_server(b"") as port:
        gone = port
    async with paired({}, {"api": forward_to("127.0.0.1", gone)}) as pair:
        present: list[Tunnel | None] = [None, pair.near]
        forward = await forward_local(lambda: present.pop(0), "api")
        await closed(forward.port)
        await closed(forward.port)
        assert present == []
        await forward.close()


class Api:
    """The configuration server's API as far as links are concerned: TLS ends here."""

    def __init__(self, vault: Vault) -> None:
        self.credentials = vault.credentials(Role.CONFIGURATION_SERVER, "cs")
        self.callers: list[str] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller) -> None:
        self.callers.append(caller.peer.name if caller.peer else "nobody")
        writer.write(b"ANSWER to " + await reader.readline())


async def test_control_passes_a_process_server_that_sees_only_ciphertext(vault: Vault) -> None:
    """agent -> (tunnel) -> process server -> (tunnel that home has dialled) -> configuration server."""
    api, seen = Api(vault), bytearray()
    process_server = vault.credentials(Role.PROCESS_SERVER, "ps1")
    home: list[Tunnel] = []
    async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        api_listener = await stack.enter_async_context(
            listening(api.credentials, {ALPN_HTTP: stream_route(api.handle)})
        )
        relayed = relay_to(lambda: home[0] if home else None, "api")

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller) -> None:
            assert caller.peer is not None
            from_home = caller.peer.role is Role.CONFIGURATION_SERVER
            destinations = {} if from_home else {"api": spy(relayed, seen)}
            tunnel = Tunnel(reader, writer, caller.name, destinations, dialled=False, clock=RealClock())
            if from_home:
                home.append(tunnel)
            await tunnel.run()

        relay = await stack.enter_async_context(listening(process_server, {ALPN_TUNNEL: stream_route(accept)}))
        address, ends = Address("127.0.0.1", relay.port), list[BackhaulError]()

        async def dialled(role: Role, name: str, destinations: Mapping[str, Destination]) -> Tunnel:
            link = await dial_stream(address, vault.credentials(role, name), ALPN_TUNNEL, PROCESS_SERVER)
            tunnel = Tunnel(*link.stream, "ps1", destinations, dialled=True, clock=RealClock())
            tasks.create_task(run(tunnel, ends))
            return tunnel

        to_api = {"api": forward_to("127.0.0.1", api_listener.port)}
        from_home = await dialled(Role.CONFIGURATION_SERVER, "cs", to_api)
        await until(lambda: home)
        from_agent = await dialled(Role.AGENT, "a1", {})
        forward = await forward_local(lambda: from_agent, "api")
        inner = await dial_stream(
            Address("127.0.0.1", forward.port),
            vault.credentials(Role.AGENT, "a1"),
            ALPN_HTTP,
            Expect(Role.CONFIGURATION_SERVER, "cs"),
        )
        inner.writer.write(b"QUESTION\n")
        assert await inner.reader.read() == b"ANSWER to QUESTION\n"
        inner.writer.close()
        await forward.close()
        await from_agent.close()
        await from_home.close()
    assert api.callers == ["agent/a1"]
    assert len(seen) > 1000, "the relay did carry the session"
    assert b"QUESTION" not in seen
    assert b"ANSWER" not in seen


def spy(destination: Destination, seen: bytearray) -> Destination:
    """What a curious process server could note of a stream it relays."""

    async def serve(stream: TunnelStream) -> None:
        read, write = stream.read, stream.write

        async def noting_read(size: int = MAX_DATA) -> bytes:
            data = await read(size)
            seen.extend(data)
            return data

        async def noting_write(data: bytes) -> None:
            seen.extend(data)
            await write(data)

        stream.read, stream.write = noting_read, noting_write  # type: ignore[method-assign]
        await destination(stream)

    return serve
