"""Message connections on loopback: order, bounds, silence, ends, and bytes that are no messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backhaul.links.connection import Connection, ConnectionSettings, accept_data, open_data
from backhaul.links.dialer import Address, dial_data, dial_stream
from backhaul.links.errors import LinkEnded, LinkLost, LinkStalled
from backhaul.links.listener import data_route
from backhaul.links.tls import ALPN_DATA
from backhaul.replication.errors import FrameMalformed, OpeningRefused, VersionUnsupported
from backhaul.replication.messages import (
    PREFIX,
    VERSION,
    Bye,
    Hello,
    Message,
    MessageType,
    Ping,
    message,
    read_head,
)
from backhaul.replication.ports import RealClock
from backhaul.replication.units import MiB
from backhaul.replication.values import Role
from links.faultproxy import Fault, FaultProxy
from links.world import PROCESS_SERVER, HandClock, Vault, linked, listening, turns, until, until_lost

ADDRESS = "127.0.0.1"


def frame(payload: bytes, head: bytes = b"h" * 42) -> Message:
    return Message(MessageType.FRAME, head, payload)


async def echo(connection: Connection) -> None:
    while True:
        await connection.send(await connection.receive())


async def forever(connection: Connection) -> None:
    await asyncio.Event().wait()


async def test_messages_of_all_sizes_come_back_in_order(vault: Vault) -> None:
    sizes = [0, 1, 5000, 16384, 16385, 200_000, MiB, 2 * MiB, 3]
    async with linked(vault, echo) as connection:
        for size in sizes:
            await connection.send(frame(bytes([size % 251]) * size))
        for size in sizes:
            got = await connection.receive()
            assert got.type is MessageType.FRAME
            assert bytes(got.payload) == bytes([size % 251]) * size
        assert connection.bytes_sent == sum(sizes) + len(sizes) * (8 + 42)
        assert connection.bytes_received == connection.bytes_sent
        assert connection.peer.name == "process-server/ps1"


async def test_each_end_knows_the_other(vault: Vault) -> None:
    seen: list[str] = []

    async def handler(connection: Connection) -> None:
        seen.append(connection.peer.name)
        await echo(connection)

    async with linked(vault, handler) as connection:
        await connection.send(frame(b"x"))
        await connection.receive()
    assert seen == ["agent/a1"]


async def test_a_batch_is_not_mixed_with_other_senders(vault: Vault) -> None:
    async with linked(vault, echo) as connection:
        batches = [[frame(bytes([sender]) * 100) for _ in range(20)] for sender in range(8)]
        await asyncio.gather(*(connection.send_many(batch) for batch in batches))
        got = [bytes((await connection.receive()).payload)[0] for _ in range(160)]
        assert [got[start] for start in range(0, 160, 20)] == list(range(8))
        assert all(got[start : start + 20] == [got[start]] * 20 for start in range(0, 160, 20))


async def test_split_at_each_byte_on_the_wire(vault: Vault) -> None:
    async with (
        listening(
            vault.credentials(Role.PROCESS_SERVER, "ps1"), {ALPN_DATA: data_route(echo, clock=RealClock())}
        ) as listener,
        FaultProxy(listener.port, split=1) as proxy,
    ):
        credentials = vault.credentials(Role.AGENT, "a1")
        connection = await dial_data(Address(ADDRESS, proxy.port), credentials, PROCESS_SERVER, clock=RealClock())
        await connection.send_many([frame(b"abc"), frame(b"")])
        assert bytes((await connection.receive()).payload) == b"abc"
        assert bytes((await connection.receive()).payload) == b""
        await connection.close()


# ends


async def test_close_delivers_what_was_sent_then_the_reason(vault: Vault) -> None:
    async def handler(connection: Connection) -> None:
        for number in range(50):
            await connection.send(frame(bytes([number]) * 50_000))
        raise OpeningRefused(item="i1", reason="not now")

    async with linked(vault, handler) as connection:
        for number in range(50):
            assert bytes((await connection.receive()).payload) == bytes([number]) * 50_000
        for _ in range(2):
            with pytest.raises(LinkEnded) as caught:
                await connection.receive()
            assert caught.value.params["reason"] == "BH-OPENING-REFUSED"
            assert caught.value.params["params"] == {"item": "i1", "reason": "not now"}
        with pytest.raises(LinkEnded):
            await connection.send(frame(b""))


async def test_an_ordinary_close_has_no_code(vault: Vault) -> None:
    async def handler(connection: Connection) -> None:
        await connection.close()

    async with linked(vault, handler) as connection:
        error = await until_lost(connection)
        assert isinstance(error, LinkEnded)
        assert error.params["params"] == {}


async def test_abort_drops_what_was_not_taken(vault: Vault) -> None:
    async def handler(connection: Connection) -> None:
        await connection.send(frame(b"x"))
        await forever(connection)

    async with linked(vault, handler) as connection:
        await until(lambda: connection.bytes_received)
        connection.abort()
        with pytest.raises(LinkLost):
            await connection.receive()
        with pytest.raises(LinkLost):
            await connection.send(frame(b""))


async def test_a_handler_that_fails_ends_its_link_only(vault: Vault) -> None:
    calls = 0

    async def handler(connection: Connection) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ZeroDivisionError
        await echo(connection)

    route = data_route(handler, clock=RealClock())
    credentials = vault.credentials(Role.AGENT, "a1")
    async with listening(vault.credentials(Role.PROCESS_SERVER, "ps1"), {ALPN_DATA: route}) as listener:
        address = Address(ADDRESS, listener.port)
        first = await dial_data(address, credentials, PROCESS_SERVER, clock=RealClock())
        assert isinstance(await until_lost(first), LinkLost)
        second = await dial_data(address, credentials, PROCESS_SERVER, clock=RealClock())
        await second.send(frame(b"still here"))
        assert bytes((await second.receive()).payload) == b"still here"
        await second.close()


@pytest.mark.parametrize("kind", ["reset", "half-close", "flip"])
async def test_a_broken_way_is_a_lost_link_on_both_ends(vault: Vault, kind: str) -> None:
    ends: asyncio.Queue[Exception] = asyncio.Queue()

    async def handler(connection: Connection) -> None:
        ends.put_nowait(await until_lost(connection))

    route = data_route(handler, clock=RealClock())
    fault = Fault("up", 100_000, kind)  # type: ignore[arg-type]
    async with (
        listening(vault.credentials(Role.PROCESS_SERVER, "ps1"), {ALPN_DATA: route}) as listener,
        FaultProxy(listener.port, [fault]) as proxy,
    ):
        credentials = vault.credentials(Role.AGENT, "a1")
        connection = await dial_data(Address(ADDRESS, proxy.port), credentials, PROCESS_SERVER, clock=RealClock())
        with pytest.raises(LinkLost):
            await send_for_ever(connection)
        await proxy.happened()
        assert isinstance(await ends.get(), LinkLost)
        assert isinstance(await until_lost(connection), LinkLost)
        await connection.close()


async def send_for_ever(connection: Connection) -> None:
    while True:
        await connection.send(frame(b"x" * 20_000))


# bounds


async def test_a_slow_receiver_slows_the_sender_and_loses_nothing(vault: Vault) -> None:
    """The sender cannot get further ahead than both ends' buffers and the kernel's hold."""
    go = asyncio.Event()
    held: list[Connection] = []

    async def handler(connection: Connection) -> None:
        held.append(connection)
        await go.wait()
        await echo(connection)

    bounds = ConnectionSettings(queue_bytes=MiB)
    total = 64
    async with linked(vault, handler, settings=bounds) as connection:
        sent = 0

        async def send_all() -> None:
            nonlocal sent
            for number in range(total):
                await connection.send(frame(bytes([number]) * MiB))
                sent += 1

        sending = asyncio.create_task(send_all())
        before = -1
        while sent != before or not held:
            before = sent
            await turns(200)
        assert sent < total, "the sender was held back"
        assert held[0].bytes_received <= 4 * MiB, "and the receiver's memory is bounded"
        go.set()
        for number in range(total):
            assert bytes((await connection.receive()).payload[:1]) == bytes([number])
        await sending


async def test_many_senders_at_once_hold_back_together(vault: Vault) -> None:
    """However many tasks send, what is unsent stays bounded; each wake-up lets only as many go as there is room."""
    go = asyncio.Event()

    async def handler(connection: Connection) -> None:
        await go.wait()
        await until_lost(connection)

    async with linked(vault, handler, settings=ConnectionSettings(queue_bytes=MiB)) as connection:
        sending = [asyncio.create_task(connection.send(frame(bytes(MiB)))) for _ in range(64)]
        transport = connection._transport
        assert transport is not None
        most = 0
        for turn in range(2000):
            await asyncio.sleep(0)
            most = max(most, transport.get_write_buffer_size())
            if turn == 500:
                go.set()
        assert most <= 4 * MiB
        await asyncio.gather(*sending)


async def test_a_flood_of_small_messages_pauses_by_count(vault: Vault) -> None:
    held: list[Connection] = []

    async def handler(connection: Connection) -> None:
        held.append(connection)
        await forever(connection)

    async with linked(vault, handler, settings=ConnectionSettings(queue_messages=100)) as connection:

        async def flood() -> None:
            while True:
                await connection.send_many([message(Hello((1,), ""))] * 1000)

        flooding = asyncio.create_task(flood())
        before = -1
        while not held or held[0].bytes_received != before:
            before = held[0].bytes_received if held else -1
            await turns(200)
        assert len(held[0]._queue) < 128 * 1024 // 8
        flooding.cancel()
        connection.abort()
        held[0].abort()


# silence


async def test_a_stalled_way_is_found_by_the_clock_on_both_ends(vault: Vault) -> None:
    ends: asyncio.Queue[Exception] = asyncio.Queue()
    hand = HandClock()
    quick = ConnectionSettings(idle_s=0.02)

    async def handler(connection: Connection) -> None:
        await accept_data(connection, "ps1")
        ends.put_nowait(await until_lost(connection))

    route = data_route(handler, clock=hand, settings=quick)
    async with (
        listening(vault.credentials(Role.PROCESS_SERVER, "ps1"), {ALPN_DATA: route}) as listener,
        FaultProxy(listener.port) as proxy,
    ):
        credentials = vault.credentials(Role.AGENT, "a1")
        address = Address(ADDRESS, proxy.port)
        connection = await dial_data(address, credentials, PROCESS_SERVER, clock=hand, settings=quick)
        await open_data(connection, "a1")
        proxy.stall()
        await turns()
        passed = dict(proxy.passed)
        hand.advance(21_000_000)
        assert isinstance(await until_lost(connection), LinkStalled)
        assert isinstance(await ends.get(), LinkStalled)
        assert proxy.passed == passed
        with pytest.raises(LinkStalled):
            await connection.send(frame(b""))
        await connection.close()


async def test_an_idle_link_keeps_itself_alive(vault: Vault) -> None:
    """Nobody sends; each end PINGs, and both clocks go on for many times `idle_s`."""
    hand = HandClock()
    quick = ConnectionSettings(idle_s=0.02)
    ends: list[Connection] = []

    async def handler(connection: Connection) -> None:
        ends.append(connection)
        await forever(connection)

    async with linked(vault, handler, settings=quick, clock=hand, server_clock=hand) as connection:
        for _ in range(40):
            here, there = connection.bytes_received, ends[0].bytes_received if ends else 0
            hand.advance(10_000_000)
            while not ends or connection.bytes_received == here or ends[0].bytes_received == there:
                assert connection.lost is None
                await asyncio.sleep(0)
        assert connection.lost is None
        assert ends[0].lost is None
        ends[0].abort()


async def test_ping_is_answered_inside(vault: Vault) -> None:
    async with linked(vault, echo) as connection:
        before = connection.bytes_received
        await connection.send(message(Ping(7)))
        await connection.send(frame(b"after"))
        assert bytes((await connection.receive()).payload) == b"after", "PONG is not shown to the application"
        assert connection.bytes_received > before + 8 + 42 + 5, "but it came"


async def test_an_end_that_does_not_read_does_not_judge(vault: Vault) -> None:
    """Its queue is full, so what the peer says lies unread: no stall, however long it takes."""
    hand = HandClock()
    bounds = ConnectionSettings(idle_s=0.02, queue_bytes=1000)

    async def handler(connection: Connection) -> None:
        for _ in range(20):
            await connection.send(frame(b"x" * 1000))
        await forever(connection)

    async with linked(vault, handler, settings=bounds, clock=hand) as connection:
        await until(lambda: not connection._reading)
        hand.advance(10**9)
        for _ in range(5):  # several rounds of the watch
            await asyncio.sleep(bounds.idle_s / 4)
        assert connection.lost is None
        for _ in range(20):
            await connection.receive()


# greeting


async def test_greeting_agrees_on_the_highest_common_version(vault: Vault) -> None:
    agreed: asyncio.Queue[int] = asyncio.Queue()

    async def handler(connection: Connection) -> None:
        agreed.put_nowait(await accept_data(connection, "ps1", (1, 2)))
        await forever(connection)

    async with linked(vault, handler) as connection:
        assert await open_data(connection, "a1", (2, 3, 1)) == 2
        assert await agreed.get() == 2
        connection.abort()


async def test_greeting_without_a_common_version_ends_on_both_sides(vault: Vault) -> None:
    failed: asyncio.Queue[Exception] = asyncio.Queue()

    async def handler(connection: Connection) -> None:
        try:
            await accept_data(connection, "ps1", (1,))
        except VersionUnsupported as error:
            failed.put_nowait(error)
            raise

    async with linked(vault, handler) as connection:
        with pytest.raises(LinkEnded) as caught:
            await open_data(connection, "a1", (2, 3))
        assert caught.value.params["reason"] == "BH-VERSION-UNSUPPORTED"
        assert isinstance(await failed.get(), VersionUnsupported)


async def test_a_version_nobody_offered_is_refused(vault: Vault) -> None:
    async def handler(connection: Connection) -> None:
        await accept_data(connection, "ps1", (1, 9))

    async with linked(vault, handler) as connection:
        await connection.send(message(Hello((9,), "x")))
        with pytest.raises(VersionUnsupported):
            await open_data(connection, "a1", (1,))


async def test_something_else_than_a_greeting_is_malformed(vault: Vault) -> None:
    async def handler(connection: Connection) -> None:
        await accept_data(connection, "ps1")

    async with linked(vault, handler) as connection:
        await connection.send(frame(b""))
        error = await until_lost(connection)
        assert isinstance(error, LinkEnded)
        assert error.params["reason"] == "BH-FRAME-MALFORMED"


# bytes that are no messages


@pytest.fixture
async def raw_port(vault: Vault) -> AsyncIterator[tuple[int, list[Exception]]]:
    """A process server that notes how its connections end."""
    ends: list[Exception] = []

    async def handler(connection: Connection) -> None:
        ends.append(await until_lost(connection))

    route = data_route(handler, clock=RealClock())
    async with listening(vault.credentials(Role.PROCESS_SERVER, "ps1"), {ALPN_DATA: route}) as listener:
        yield listener.port, ends


async def say_raw(vault: Vault, port: int, data: bytes) -> bytes:
    """Everything the server answers to `data` on a data link, until it ends."""
    credentials = vault.credentials(Role.AGENT, "a1")
    dialled = await dial_stream(Address(ADDRESS, port), credentials, ALPN_DATA, PROCESS_SERVER)
    dialled.writer.write(data)
    dialled.writer.write(b"".join([PREFIX.pack(MessageType.BYE, VERSION, 3, 0), b"\x92\xa0\x80"]))
    answer = await dialled.reader.read()
    dialled.writer.close()
    try:
        await dialled.writer.wait_closed()
    except OSError:
        pass
    return answer


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(PREFIX.pack(99, VERSION, 0, 0), id="unknown-type"),
        pytest.param(PREFIX.pack(MessageType.FRAME, 9, 0, 0), id="other-version"),
        pytest.param(PREFIX.pack(MessageType.FRAME, VERSION, 0, 1 << 31), id="oversized"),
        pytest.param(PREFIX.pack(MessageType.PING, VERSION, 1, 0) + b"\xc1", id="ping-without-head"),
        pytest.param(PREFIX.pack(MessageType.BYE, VERSION, 1, 0) + b"\xc1", id="bye-without-head"),
    ],
)
async def test_malformed_bytes_are_answered_with_bye(
    vault: Vault, raw_port: tuple[int, list[Exception]], data: bytes
) -> None:
    port, ends = raw_port
    answer = await say_raw(vault, port, data)
    kind, _, head_length, payload_length = PREFIX.unpack(answer[: PREFIX.size])
    assert (kind, payload_length) == (MessageType.BYE, 0)
    bye = Message(MessageType.BYE, answer[PREFIX.size : PREFIX.size + head_length])
    assert read_head(bye, Bye).code == "BH-FRAME-MALFORMED"
    await until(lambda: ends)
    assert isinstance(ends[0], LinkLost)
    assert isinstance(ends[0].__cause__, FrameMalformed)


async def test_truncated_by_the_end(vault: Vault, raw_port: tuple[int, list[Exception]]) -> None:
    port, ends = raw_port
    credentials = vault.credentials(Role.AGENT, "a1")
    dialled = await dial_stream(Address(ADDRESS, port), credentials, ALPN_DATA, PROCESS_SERVER)
    dialled.writer.write(PREFIX.pack(MessageType.FRAME, VERSION, 0, 100) + b"half")
    dialled.writer.close()
    await dialled.writer.wait_closed()
    await until(lambda: ends)
    assert "within a message" in str(ends[0])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=1, max_size=200))
async def test_random_bytes_end_one_link_and_never_the_service(
    vault: Vault, raw_port: tuple[int, list[Exception]], data: bytes
) -> None:
    port, ends = raw_port
    before = len(ends)
    credentials = vault.credentials(Role.AGENT, "a1")
    dialled = await dial_stream(Address(ADDRESS, port), credentials, ALPN_DATA, PROCESS_SERVER)
    dialled.writer.write(data)
    dialled.writer.close()
    try:
        await dialled.writer.wait_closed()
    except OSError:
        pass
    await until(lambda: len(ends) > before)
    assert isinstance(ends[-1], LinkLost)


async def test_both_ends_close_at_once_and_asyncio_reports_nothing(vault: Vault) -> None:
    """Our BYE, the peer's and the end of TLS cross on the wire."""
    reports: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, report: reports.append(report))
    ends: list[Connection] = []

    async def handler(connection: Connection) -> None:
        ends.append(connection)
        await until_lost(connection)

    for _ in range(10):
        async with linked(vault, handler) as connection:
            await until(lambda: ends)
            await asyncio.gather(connection.close(), ends.pop().close())
    assert not reports
