"""The gateway and what is concluded from its counts: the kill was in the middle, or the demo says that it was not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from backhaul.demo import gateway
from backhaul.demo.errors import StageFailed
from backhaul.demo.gateway import Counts, Moment, Order, counted_until, counts, order
from backhaul.demo.reprotecting import judge

HOST = "127.0.0.1"
BEFORE = Counts(from_clients=100, lost=10)


def killed(sent: int, lost: int) -> Counts:
    """The gateway's counts when the process server was killed, `sent` of them delivered."""
    return Counts(BEFORE.from_clients + sent + lost, BEFORE.lost + lost, holds=True)


def ended(total: int, lost: int) -> Counts:
    """Its counts at the first recovery point, `total` delivered."""
    return Counts(BEFORE.from_clients + total + lost, BEFORE.lost + lost)


def test_a_kill_in_the_middle_is_told_with_its_figures() -> None:
    assert judge(1000, BEFORE, killed(500, 50), ended(1100, 50)) == (0.5, 50, 1100)


@pytest.mark.parametrize("sent", [1, 240, 760, 1000])
def test_a_kill_elsewhere_is_a_failure(sent: int) -> None:
    with pytest.raises(StageFailed, match="was killed at"):
        judge(1000, BEFORE, killed(sent, 50), ended(1100, 50))


def test_nothing_sent_again_is_a_failure() -> None:
    with pytest.raises(StageFailed, match="nothing was sent again"):
        judge(1000, BEFORE, killed(500, 0), ended(1100, 0))


def test_what_is_thrown_away_after_the_kill_does_not_move_it() -> None:
    assert judge(1000, BEFORE, killed(500, 50), ended(1100, 5000)) == (0.5, 5000, 1100)


def test_a_kill_after_which_too_little_was_sent_is_a_failure() -> None:
    with pytest.raises(StageFailed, match="800 bytes were sent in all"):
        judge(1000, BEFORE, killed(500, 50), ended(800, 50))


def test_nothing_sent_at_all_is_a_failure() -> None:
    with pytest.raises(StageFailed):
        judge(1000, BEFORE, BEFORE, BEFORE)


def test_what_was_counted_at_a_time_is_found_in_a_history_whose_last_line_is_torn(tmp_path: Path) -> None:
    assert counted_until(tmp_path, 10) == Counts()
    lines = b"".join(b"[%d,%d,%d]\n" % (at, 100 * at, at) for at in (1, 5, 9))
    (tmp_path / gateway.HISTORY).write_bytes(lines + b"[12,1300")
    assert counted_until(tmp_path, 0) == Counts()
    assert counted_until(tmp_path, 5) == Counts(500, 5)
    assert counted_until(tmp_path, 8) == Counts(500, 5)
    assert counted_until(tmp_path, 99) == Counts(900, 9)


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[None]:
    """A life of the gateway."""
    over = asyncio.Event()
    task = asyncio.create_task(gateway.run(folder, HOST, over))
    try:
        yield
    finally:
        over.set()
        await task


async def seen(folder: Path, wanted: int, holds: bool) -> Counts:
    """Its counts, once they are these."""
    async with asyncio.timeout(10):
        while not ((now := counts(folder)).from_clients >= wanted and now.holds is holds):  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # the gateway tells by its file only
    return now


@asynccontextmanager
async def sink() -> AsyncIterator[int]:
    """A server that takes everything; its port."""

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.2", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def send(port: int, count: int) -> asyncio.StreamWriter:
    """Through the gateway, once it listens."""
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection(HOST, port)
                break
            except OSError:
                await asyncio.sleep(0.02)
    writer.write(b"x" * count)
    await writer.drain()
    return writer


async def test_a_gateway_that_let_go_does_not_hold_again_after_a_restart(tmp_path: Path) -> None:
    async with sink() as port:
        order(tmp_path, Order("127.0.0.2", port, hold_at=1000), None)
        async with running(tmp_path):
            writer = await send(port, 1500)
            held = await seen(tmp_path, 1500, holds=True)
            assert held.lost == 1500
            order(tmp_path, Order("127.0.0.2", port, hold_at=1000, let_go=True), None)
            await seen(tmp_path, 1500, holds=False)
            writer.close()
        async with running(tmp_path):
            writer = await send(port, 700)
            after = await seen(tmp_path, 2200, holds=False)
            writer.close()
    assert after.lost == 1500, "what came after the restart was delivered"
    assert counted_until(tmp_path, time.time_ns()) == Counts(2200, 1500)


async def test_a_gateway_that_holds_goes_on_holding_after_a_restart(tmp_path: Path) -> None:
    async with sink() as port:
        order(tmp_path, Order("127.0.0.2", port, hold_at=1000), None)
        async with running(tmp_path):
            (await send(port, 1500)).close()
            await seen(tmp_path, 1500, holds=True)
        async with running(tmp_path):
            (await send(port, 10)).close()
            assert (await seen(tmp_path, 1510, holds=True)).lost == 1510


def test_a_history_is_no_longer_than_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "HISTORY_BYTES", 100)
    for count in range(50):
        gateway._remember(tmp_path / gateway.HISTORY, Counts(count))
    assert (tmp_path / gateway.HISTORY).stat().st_size < 200
    assert counted_until(tmp_path, time.time_ns()).from_clients > 0
    assert Moment.__struct_fields__ == ("at_ns", "from_clients", "lost")
