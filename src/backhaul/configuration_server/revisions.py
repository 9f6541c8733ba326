"""Desired state has a revision per server; a server that asks waits for the next one.

Invariant: a revision rises in the transaction that changes what it counts, and waiters look into the records again
after every wake, so a wake that is lost costs one wait and no change. `bump` in any thread, `wait` on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from backhaul.configuration_server.database import Database
from backhaul.configuration_server.records import ServerRecord

MAX_WAIT_S: Final = 60.0
"""A held request is given up before any middlebox drops the silent connection."""


class Revisions:
    """Wakes waiters of one process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._loop = asyncio.get_running_loop()
        self._change = asyncio.Event()
        self._closed = False

    def close(self) -> None:
        """Let every waiter go: the server stops."""
        self._closed = True
        self._wake()

    @staticmethod
    def bump(session: Session, servers: Iterable[str]) -> None:
        """What these servers are to do changes with the session's transaction; call `wake` after it."""
        for server in servers:
            session.get_one(ServerRecord, server).revision += 1

    @staticmethod
    def bump_all(session: Session) -> None:
        """As `bump`, for every server."""
        for server in session.scalars(select(ServerRecord)):
            server.revision += 1

    def wake(self) -> None:
        """Let every waiter look again. Any thread; after the loop has ended there is nobody to be woken."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        change, self._change = self._change, asyncio.Event()
        change.set()

    async def wait(self, server: str, after: int, wait_s: float) -> int:
        """The server's revision, once it is above `after` or `wait_s` is over."""
        deadline = self._loop.time() + max(0.0, min(wait_s, MAX_WAIT_S))
        while True:
            change = self._change
            revision = await asyncio.to_thread(self._read, server)
            left = deadline - self._loop.time()
            if revision > after or left <= 0 or self._closed:
                return revision
            try:
                async with asyncio.timeout(left):
                    await change.wait()
            except TimeoutError:
                return revision

    def _read(self, server: str) -> int:
        with self._database.read() as session:
            return session.get_one(ServerRecord, server).revision
