"""Keeps one outgoing link per server of a changing set, and knows of each whether it is up, since when, or why not.

The tunnels of home and the dialling of servers that wait to be registered are kept by this. Invariant: a server has one
task; it is dialled at every address that is known at the time; what fails is shown until the next try says otherwise.
Event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from backhaul.links.dialer import Address, Redial, reconnecting
from backhaul.links.errors import LinkLost
from backhaul.replication.errors import BackhaulError

LOOK_S: Final = 5.0
"""How often the set is looked up; `wake` looks at once."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LinkState:
    """What is known of one server's link. `since_ns`: wall clock of the last change of `up`, 0 before the first try.

    `address`: the one that was tried last. `error`: why it is down.
    """

    server: str
    up: bool = False
    since_ns: int = 0
    address: str = ""
    error: BackhaulError | None = None

    def check(self) -> None:
        """Raises why the link is down."""
        if not self.up:
            raise self.error or LinkLost(peer=self.server, reason="it was not dialled yet")


@dataclass(slots=True)
class _Kept:
    addresses: tuple[Address, ...]
    state: LinkState
    task: asyncio.Task[None] | None = None


class KeptLinks(Generic[T]):
    """See the module. `wanted` blocks and runs in a thread; `serve` runs until the link is over."""

    def __init__(
        self,
        wanted: Callable[[], Mapping[str, Sequence[Address]]],
        connect: Callable[[str, Address], Awaitable[T]],
        serve: Callable[[str, Address, T], Awaitable[None]],
        world: Redial,
        look_s: float = LOOK_S,
    ) -> None:
        self._wanted, self._connect, self._serve, self._world, self._look_s = wanted, connect, serve, world, look_s
        self._kept: dict[str, _Kept] = {}
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def states(self) -> dict[str, LinkState]:
        """Of every server that is to be linked at the moment."""
        return {server: kept.state for server, kept in self._kept.items()}

    def state(self, server: str) -> LinkState | None:
        """Of one; None when it is not to be linked."""
        kept = self._kept.get(server)
        return kept.state if kept else None

    def wake(self) -> None:
        """Look at the set at once: something changed."""
        self._woken.set()

    def wake_threadsafe(self) -> None:
        """`wake` for worker threads."""
        self._loop.call_soon_threadsafe(self._woken.set)

    async def run(self) -> None:
        """Keep the links until cancelled; ends with what is no error of a link (a defect, or a failed disk)."""
        try:
            while True:
                self._woken.clear()
                await self._look()
                await self._wait()
        finally:
            await self._stop(tuple(self._kept))

    async def _wait(self) -> None:
        """Until it is time to look, or a link's task has failed."""
        woken = asyncio.create_task(self._woken.wait())
        tasks = [kept.task for kept in self._kept.values() if kept.task is not None]
        try:
            done, _ = await asyncio.wait({woken, *tasks}, timeout=self._look_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
        for task in done - {woken}:
            task.result()

    async def _look(self) -> None:
        wanted = {server: tuple(addresses) for server, addresses in (await asyncio.to_thread(self._wanted)).items()}
        await self._stop(tuple(self._kept.keys() - wanted.keys()))
        for server, addresses in wanted.items():
            kept = self._kept.get(server)
            if kept is not None:
                kept.addresses = addresses
                continue
            kept = self._kept[server] = _Kept(addresses, LinkState(server))
            kept.task = asyncio.create_task(self._keep(server, kept), name=f"link to {server}")

    async def _stop(self, servers: Sequence[str]) -> None:
        tasks = [kept.task for kept in (self._kept.pop(server) for server in servers) if kept.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, server: str, kept: _Kept) -> None:
        async def connect(address: Address) -> tuple[Address, T]:
            try:
                return address, await self._connect(server, address)
            except BackhaulError as error:
                self._down(kept, address, error)
                raise

        async def serve(link: tuple[Address, T]) -> None:
            address, made = link
            kept.state = LinkState(server, True, self._world.clock.wall_ns(), str(address))
            try:
                await self._serve(server, address, made)
            except BackhaulError as error:
                self._down(kept, address, error)
                raise
            except OSError as error:
                self._down(kept, address, LinkLost(peer=server, reason=str(error)))
                raise

        await reconnecting(lambda: kept.addresses, connect, serve, self._world)

    def _down(self, kept: _Kept, address: Address, error: BackhaulError) -> None:
        before = kept.state
        first = before.up or not before.since_ns
        since_ns = self._world.clock.wall_ns() if first else before.since_ns
        kept.state = LinkState(before.server, False, since_ns, str(address), error.with_traceback(None))
