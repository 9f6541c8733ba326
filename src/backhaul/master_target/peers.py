"""A connected process server as the items see it: a place to put messages, and a task that sends them.

Invariant: putting never waits, so a process server that does not read holds back no item and no other process server;
it is cut off when too much waits for it. What it misses by that it is told when it connects again: SERVES and ATTACH
lead to the newest state. Used on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

import structlog

from backhaul.links.connection import Connection
from backhaul.links.errors import LinkLost
from backhaul.master_target.errors import ProcessServerTooSlow
from backhaul.replication import messages as m
from backhaul.replication.errors import BackhaulError
from backhaul.replication.units import MiB

OUTBOX_MESSAGES: Final = 8192
OUTBOX_BYTES: Final = 32 * MiB
"""What waits for a process server that pauses while its own disk is slow; far above what it asks for in that time."""

_log = structlog.get_logger(__name__)


class RelayPeer:
    """See the module."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._outbox: deque[m.Message] = deque()
        self._waiting_bytes = 0
        self._awake = asyncio.Event()

    @property
    def name(self) -> str:
        """Role and id of the process server."""
        return self._connection.peer.name

    def post(self, message: m.Message) -> None:
        """Send when it reads. One that is gone, or is cut off for this, gets nothing more."""
        if self._connection.lost is not None:
            return
        if len(self._outbox) >= OUTBOX_MESSAGES or self._waiting_bytes > OUTBOX_BYTES:
            slow = ProcessServerTooSlow(peer=self.name, waiting=len(self._outbox))
            _log.warning("process_server.cut_off", peer=self.name, code=slow.code, reason=slow.message)
            self.cut(slow)
            return
        self._outbox.append(message)
        self._waiting_bytes += len(message.head) + len(message.payload)
        self._awake.set()

    def cut(self, reason: BackhaulError | None = None) -> None:
        """End the connection at once."""
        self._outbox.clear()
        self._waiting_bytes = 0
        self._connection.abort(reason)

    async def send_all(self) -> None:
        """Send what is put, until the connection ends."""
        try:
            while True:
                await self._awake.wait()
                self._awake.clear()
                waiting, self._waiting_bytes = tuple(self._outbox), 0
                self._outbox.clear()
                await self._connection.send_many(waiting)
        except LinkLost as error:
            _log.debug("replies.link_lost", peer=self.name, reason=error.message)  # the receiving side ends it
        except BackhaulError as error:  # a message over the bounds: without a sender the link is worth nothing
            _log.error("replies.not_sent", peer=self.name, code=error.code, reason=error.message)
            self.cut(error)
