"""One item's worker: a queue on the event loop, and a thread in which one batch at a time is applied.

While a batch is applied the next gathers, so that the syncs of a batch are shared by all that arrived meanwhile.
Control calls take their turn in the same thread. Invariant: nothing else touches the item. An error that the item
does not know how to answer (a failed sync, a state file that cannot be written) ends the process through `failed`.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Executor
from typing import Any, Final, ParamSpec, Protocol, TypeVar

from backhaul.master_target.errors import ItemUnknown, ReplicaPoisoned
from backhaul.master_target.item import TargetItem
from backhaul.replication import messages as m
from backhaul.replication.units import BATCH_BYTES
from backhaul.replication.values import ItemId

RETRY_S: Final = 1.0
"""How often an item that waits for space tries again."""

P = ParamSpec("P")
T = TypeVar("T")


class Peer(Protocol):
    """A connected process server."""

    def post(self, message: m.Message) -> None:
        """Send when it reads; never waits."""
        ...


_FOR_ALL: Final = (m.MessageType.APPLIED, m.MessageType.DISCARD)
"""What every connected process server must hear: an old one may hold frames of closed streams."""


class ItemWorker:
    """Feeds one item. `peers` are the process servers connected at the moment, shared by all workers."""

    def __init__(
        self,
        item: TargetItem,
        peers: Collection[Peer],
        executor: Executor,
        failed: Callable[[BaseException], None],
        taken: Callable[[], None],
    ) -> None:
        """`taken` is called whenever queued messages were taken in hand."""
        self.id: ItemId = item.item
        self.item = item
        """For the item's thread; everybody else uses `call`."""
        self.served = item.served()
        """What a process server must know of the item, as it was after the newest batch or call."""
        self._peers, self._executor, self._failed, self._taken = peers, executor, failed, taken
        self._queue: deque[tuple[Peer, m.Message]] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._results: set[asyncio.Future[Any]] = set()
        self._origin: Peer | None = None
        self._work = asyncio.Event()
        self.queued_bytes = 0
        self._task = asyncio.create_task(self._run(), name=f"item {self.id}")

    def put(self, origin: Peer, message: m.Message) -> None:
        """Queue a message; the process server's window per item bounds how much that can be."""
        self._queue.append((origin, message))
        self.queued_bytes += len(message.payload)
        self._work.set()

    async def call(self, work: Callable[[TargetItem], T]) -> T:
        """Run `work` in the item's thread, between two batches; its result or error."""
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def run() -> None:
            loop = result.get_loop()
            try:
                value = work(self.item)
                self.served = self.item.served()
            except Exception as error:
                loop.call_soon_threadsafe(_settle, result, None, error)
                if isinstance(error, ReplicaPoisoned | OSError):  # as for messages: the process ends and recovers
                    raise
            else:
                loop.call_soon_threadsafe(_settle, result, value, None)

        self._calls.append(run)
        self._work.set()
        self._results.add(result)
        try:
            return await result
        finally:
            self._results.discard(result)

    async def close(self) -> None:
        """End after the batch in hand. Raises as `TargetItem.close`."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for result in self._results:
            if not result.done():
                result.set_exception(ItemUnknown(item=self.id))
        await asyncio.get_running_loop().run_in_executor(self._executor, self.item.close)

    async def _run(self) -> None:
        try:
            while True:
                await self._something()
                batch = self._gather()
                calls, self._calls = self._calls, deque()
                self._send(await self._in_thread(self._apply, batch, calls))
                if self.item.maps_due:
                    await self._in_thread(self.item.save_maps)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._failed(error)

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Cancelled, it waits for the thread: nobody else may touch the item before."""
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._executor, functools.partial(work, *args, **kwargs))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait({running})
            raise

    async def _something(self) -> None:
        """Wait for work; while the item waits for space, at most RETRY_S."""
        try:
            async with asyncio.timeout(RETRY_S if self.item.waiting is not None else None):
                await self._work.wait()
        except TimeoutError:
            return
        self._work.clear()

    def _gather(self) -> list[m.Message]:
        batch: list[m.Message] = []
        size = 0
        if self._queue:
            self._origin = self._queue[0][0]  # who is answered: a batch comes from one process server
        while self._queue and size < BATCH_BYTES and self._queue[0][0] is self._origin:
            _, message = self._queue.popleft()
            batch.append(message)
            size += len(message.payload)
        self.queued_bytes -= size
        self._taken()
        if self._queue:
            self._work.set()
        return batch

    def _apply(self, batch: list[m.Message], calls: deque[Callable[[], None]]) -> list[m.Message]:
        out = self.item.handle(batch)
        for call in calls:
            call()
        self.served = self.item.served()
        return out

    def _send(self, out: list[m.Message]) -> None:
        for message in out:
            receivers = tuple(self._peers) if message.type in _FOR_ALL else (self._origin,)
            for peer in receivers:
                if peer is not None and peer in self._peers:
                    peer.post(message)


def _settle(result: asyncio.Future[T], value: T | None, error: Exception | None) -> None:
    if result.done():
        return
    if error is not None:
        result.set_exception(error)
    else:
        result.set_result(value)  # type: ignore[arg-type]  # the value of `work`, which may be None
