"""`reach.json` in a member's folder: which way its calls take to the configuration server, and the addresses on it.

A machine that wakes up in a network is told of its process server by the site (a tag of the instance) and by its
assignments; whatever it was ever told is kept and tried. Written by `register`, read by `run`. Event loop; files in
worker threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from backhaul.configuration_server.errors import AddressWrong, SettingsWrong
from backhaul.configuration_server.settings import parse_address
from backhaul.links.dialer import Address
from backhaul.links.reaching import DirectWay, FirstWay, HomeTunnelWay, Reach, Way, make_way
from backhaul.links.tls import Credentials
from backhaul.links.tunnel import Tunnel
from backhaul.replication.errors import UNDECODABLE, BackhaulError
from backhaul.replication.ports import Clock, Files

FILE: Final = "reach.json"
PROCESS_SERVERS_TAG: Final = "backhaul-process-servers"
"""Tag of a machine, set by whoever deploys: `host:port` of the process servers of its network, with commas between."""

ASK_S: Final = 60.0
MAX_ADDRESSES: Final = 32
"""Two process servers a network, some addresses each, over some moves."""

_log = structlog.get_logger(__name__)


class ReachConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`process_servers`: `host:port` of every one it was ever told of, the newest first."""

    reach: Reach = Reach.DIRECT
    process_servers: tuple[str, ...] = ()


class ReachBook:
    """The file, and what it says now."""

    def __init__(self, files: Files, folder: Path) -> None:
        """Reads the file. Raises SettingsWrong."""
        self._files, self._folder = files, folder
        stored = files.read(folder / FILE) if FILE in files.names(folder) else b"{}"
        try:
            self._config = msgspec.json.decode(stored, type=ReachConfig)
            self._addresses = _parsed(self._config.process_servers)
        except (*UNDECODABLE, AddressWrong) as error:
            raise SettingsWrong(folder=folder, reason=str(error)) from error

    @property
    def reach(self) -> Reach:
        """The setting."""
        return self._config.reach

    @property
    def process_servers(self) -> tuple[Address, ...]:
        """Where process servers are said to be, the newest first."""
        return self._addresses

    def set_reach(self, reach: Reach) -> None:
        """Change the setting, durably; blocks."""
        self._save(ReachConfig(reach, self._config.process_servers))

    def tell(self, addresses: Iterable[str]) -> bool:
        """Keep addresses (`host:port`), durably; blocks. Whether any is new or moved. Raises AddressWrong."""
        fresh = [str(parse_address(text)) for text in addresses]
        every = tuple(dict.fromkeys((*fresh, *self._config.process_servers)))[:MAX_ADDRESSES]
        if every == self._config.process_servers:
            return False
        self._save(ReachConfig(self._config.reach, every))
        return True

    def _save(self, config: ReachConfig) -> None:
        self._files.replace(self._folder / FILE, msgspec.json.encode(config))
        self._config, self._addresses = config, _parsed(config.process_servers)

    def way(self, home: Address, credentials: Credentials, clock: Clock) -> Way:
        """The way that the setting names; `home` is what the registration says."""
        return make_way(
            self.reach, credentials, clock, direct=lambda: (home,), process_servers=lambda: self.process_servers
        )

    def own_way(
        self, home: Address, credentials: Credentials, clock: Clock, tunnel: Callable[[], Tunnel | None]
    ) -> Way:
        """The way of a process server itself: where the setting is not direct, only the tunnel that home dials."""
        through = HomeTunnelWay(tunnel, credentials)
        if self.reach is Reach.PROCESS_SERVER:
            return through
        return FirstWay((DirectWay(lambda: (home,), credentials), through), clock)


def _parsed(addresses: Iterable[str]) -> tuple[Address, ...]:
    return tuple(parse_address(text) for text in addresses)


async def keep_asking(
    book: ReachBook,
    read_tags: Callable[[], dict[str, str]],
    *,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Ask the site each minute where the process servers of this network are, until cancelled. `read_tags` blocks."""
    while True:
        try:
            tags = await asyncio.to_thread(read_tags)
            told = [text.strip() for text in tags.get(PROCESS_SERVERS_TAG, "").split(",") if text.strip()]
            changed: bool = await asyncio.to_thread(book.tell, told)
            if changed:
                _log.info("process_server.told", addresses=told)
        except BackhaulError as error:
            _log.warning("process_server.not_told", code=error.code, reason=error.message)
        await pause(ASK_S)
