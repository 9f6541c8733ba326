"""A gateway in a virtual network of the demo: the counting proxy as a process of its own, between agents and a server.

`python -m backhaul.demo.gateway`, in its own folder, as a service of its site. The operator writes `gateway.json` (an
Order), the gateway writes `counts.json` (Counts) and, once it was told to hold, `history` (a Moment a line): nothing of
it is known to the product. Runs on one event loop; `order`, `counts` and `counted_until` are called by the demo's main
thread. What it counted goes on after a restart.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from backhaul.demo.proxy import CountingProxy
from backhaul.replication.errors import UNDECODABLE
from backhaul.replication.ports import RealFiles

ORDER: Final = "gateway.json"
COUNTS: Final = "counts.json"
HISTORY: Final = "history"
HISTORY_BYTES: Final = 512 * 1024
"""A reprotect takes seconds: this is enough for many minutes, and what comes after them is nobody's question."""

LOOK_S: Final = 0.1

T = TypeVar("T")


class Order(msgspec.Struct, frozen=True):
    """What the gateway is to do.

    host, port  whom it passes everything on to, at the port it listens on itself
    hold_at     count of bytes from clients at which it begins to hold, once; 0: never
    let_go      whether to end that
    """

    host: str
    port: int
    hold_at: int = 0
    let_go: bool = False


class Counts(msgspec.Struct, frozen=True):
    """Bytes from clients so far; how many of them were thrown away while it held, so sent again; whether it holds."""

    from_clients: int = 0
    lost: int = 0
    holds: bool = False


class Moment(msgspec.Struct, frozen=True, array_like=True):
    """What was counted at a time (wall clock)."""

    at_ns: int
    from_clients: int
    lost: int


def order(folder: Path, wanted: Order, owner: int | None) -> None:
    """The operator's side, as the gateway's user."""
    RealFiles().replace(folder / ORDER, msgspec.json.encode(wanted))
    if owner is not None:
        os.chown(folder / ORDER, owner, owner)


def ordered(folder: Path) -> Order | None:
    """What it was told last."""
    return _read(folder / ORDER, Order)


def counts(folder: Path) -> Counts:
    """What it has counted."""
    return _read(folder / COUNTS, Counts) or Counts()


def counted_until(folder: Path, at_ns: int) -> Counts:
    """What it had counted at this time, within LOOK_S; nothing where its history begins later."""
    path = folder / HISTORY
    found = Moment(0, 0, 0)
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            moment = msgspec.json.decode(line, type=Moment)
        except UNDECODABLE:
            break  # the gateway was killed while it wrote its last line
        if moment.at_ns > at_ns:
            break
        found = moment
    return Counts(found.from_clients, found.lost)


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, *UNDECODABLE):
        return None


async def run(folder: Path, address: str, ended: asyncio.Event) -> None:
    """Obey and count until `ended`."""
    proxy: CountingProxy | None = None
    said = before = counts(folder)
    obeyed: Order | None = None
    while not ended.is_set():
        wanted = ordered(folder)
        if wanted is not None and wanted != obeyed:
            if proxy is None:
                proxy = CountingProxy((wanted.host, wanted.port))
                proxy.counted.from_clients, proxy.counted.lost = before.from_clients, before.lost
                await proxy.start(address, wanted.port)
            proxy.hold_at = 0 if wanted.let_go else wanted.hold_at  # let go for good, also after a restart
            if wanted.let_go:
                await proxy.let_go()
            obeyed = wanted
        if proxy is not None:
            now = Counts(proxy.counted.from_clients, proxy.counted.lost, proxy.holds)
            if now != said:
                RealFiles().replace(folder / COUNTS, msgspec.json.encode(now))
                if obeyed is not None and obeyed.hold_at:
                    _remember(folder / HISTORY, now)
                said = now
        await _pause(ended)
    if proxy is not None:
        await proxy.stop()


def _remember(path: Path, now: Counts) -> None:
    with path.open("ab") as file:
        if file.tell() < HISTORY_BYTES:
            file.write(msgspec.json.encode(Moment(time.time_ns(), now.from_clients, now.lost)) + b"\n")


async def _pause(ended: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(LOOK_S):
            await ended.wait()
    except TimeoutError:
        return


async def _main() -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await run(Path(), os.environ["BACKHAUL_ADDRESS"], ended)


if __name__ == "__main__":
    asyncio.run(_main())
