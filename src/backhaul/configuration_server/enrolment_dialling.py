"""Dials servers that were deployed and are not registered yet, and serves enrolment to them over that connection.

Where nothing can dial home, the registration tool of a new server has no way to the configuration server but the one
that home opens. Invariant: only a server with the key whose hash was read back from it is spoken to, and through its
connection only that server can register. Event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Final

import structlog

from backhaul.configuration_server.dial_book import DialEntry
from backhaul.configuration_server.kept_links import LOOK_S, KeptLinks, LinkState
from backhaul.links.dialer import Address, Backoff, DialledStream, Redial, dial_enrolment
from backhaul.links.enrolment import AskBody, Desk, Issued, KnownSecret, serve_enrolment
from backhaul.links.errors import EnrolmentRefused
from backhaul.links.listener import close_stream
from backhaul.replication.errors import BackhaulError

BACKOFF: Final = Backoff(0.2, 2.0)
"""A person waits at the other end; a connection on which nobody registers ends after 30 s and is opened again."""

_log = structlog.get_logger(__name__)


class EnrolmentDialling:
    """See the module. `awaited` (`DialBook.awaited`) and `enrolled` block and run in a thread."""

    def __init__(
        self,
        awaited: Callable[[], Mapping[str, DialEntry]],
        desk: Desk,
        enrolled: Callable[[DialEntry, Address], None],
        world: Redial,
        *,
        look_s: float = LOOK_S,
    ) -> None:
        self._awaited, self._desk, self._enrolled = awaited, desk, enrolled
        self._entries: Mapping[str, DialEntry] = {}
        self._refused: dict[str, BackhaulError] = {}
        patient = Redial(world.clock, world.randomness, BACKOFF, world.pause)
        self._links: KeptLinks[DialledStream] = KeptLinks(self._look, self._connect, self._serve, patient, look_s)

    async def run(self) -> None:
        """Keep dialling until cancelled."""
        await self._links.run()

    def wake(self) -> None:
        """A server was deployed, or its key hash was read: look at once."""
        self._links.wake()

    def states(self) -> dict[str, LinkState]:
        """Each server that is awaited. Up: it was dialled, holds the right key, and waits for its registration tool."""
        return self._links.states()

    def refusal(self, server: str) -> BackhaulError | None:
        """Why its last try to register was refused (a wrong passphrase); None when there was none."""
        return self._refused.get(server)

    def _look(self) -> Mapping[str, tuple[Address, ...]]:
        self._entries = dict(self._awaited())
        return {server: entry.addresses for server, entry in self._entries.items()}

    async def _connect(self, server: str, address: Address) -> DialledStream:
        return await dial_enrolment(address, self._entries[server].key_hash)

    async def _serve(self, server: str, address: Address, dialled: DialledStream) -> None:
        entry = self._entries[server]
        desk = replace(self._desk, issue=self._only(entry))
        try:
            await serve_enrolment(dialled.reader, dialled.writer, desk, address=f"{address.host} dialled")
        except BackhaulError as error:
            if error.code != "BH-ENROLMENT":  # nobody registered within the time: not a refusal
                self._refused[server] = error
            raise
        finally:
            await close_stream(dialled.writer)
        self._refused.pop(server, None)
        await asyncio.to_thread(self._enrolled, entry, address)
        _log.info("server.registered", server=server, address=str(address))
        self.wake()
        await asyncio.get_running_loop().create_future()  # it is awaited no more: the next look ends this

    def _only(self, entry: DialEntry) -> Callable[[AskBody, KnownSecret], Awaitable[Issued]]:
        async def issue(ask: AskBody, known: KnownSecret) -> Issued:
            if (ask.role, ask.id) != (entry.role, entry.server):
                said = f"{ask.role}/{ask.id}"[:200]
                raise EnrolmentRefused(peer=said, reason=f"{entry.role}/{entry.server} was deployed at its address")
            return await self._desk.issue(ask, known)

        return issue
