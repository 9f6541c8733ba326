"""What a process server or master target shows of itself on the server itself: its doctor, and its settings in force.

For an operator who stands before the server because nobody reaches it any more: everything is looked at from there,
with its folder and its certificate, and nothing needs a session or a configuration server that answers. Changes
nothing. Called by the composition root in the command's own event loop, after the administrator was asked for.
"""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from backhaul.configuration_server.errors import ClockWrong, NotRegistered, ServiceDown, SettingsWrong, SpoolNearlyFull
from backhaul.configuration_server.member import REGISTRATION, Member, MemberFolder, Registration
from backhaul.configuration_server.member_way import ReachBook
from backhaul.configuration_server.occupancy import running_in
from backhaul.configuration_server.service_config import FILE, ServiceConfig, load_service
from backhaul.configuration_server.service_deployed import deployed_in
from backhaul.configuration_server.settings import parse_address
from backhaul.links.certificates import Expect, verify_certificate
from backhaul.links.dialer import Address, Redial, dial_data
from backhaul.links.identity import Identity
from backhaul.links.listener import close_stream
from backhaul.links.reaching import Reach, RelayWay, Way
from backhaul.links.rungs import Climbed, probe_api, probe_reach
from backhaul.links.tls import Credentials
from backhaul.process_server.register_socket import ask_status
from backhaul.process_server.throttle import ThrottleLimits
from backhaul.recovery.health import Thresholds
from backhaul.replication.errors import BackhaulError
from backhaul.replication.ports import Files
from backhaul.replication.values import Role

VOLUMES: Final = {Role.PROCESS_SERVER: "relay", Role.MASTER_TARGET: "target"}
"""Where in the folder the data lie: on a disk of their own at a deployed server."""


class OnServer:
    """A folder with a process server or master target, seen from beside it."""

    def __init__(self, folder: Path, files: Files, world: Redial) -> None:
        """Raises NotRegistered where the folder is no server's, SettingsWrong."""
        self.folder, self._files, self._world = folder, files, world
        if not folder.is_dir() or FILE not in files.names(folder):
            raise NotRegistered(folder=folder, kind=Role.PROCESS_SERVER)
        self.config: ServiceConfig = load_service(files, folder)
        known: tuple[Registration, Identity] | None = None
        if REGISTRATION in files.names(folder):  # else it has no keys either, and looking must make none
            known = MemberFolder(folder, files, world.randomness, Role.PROCESS_SERVER).load()
        self.registration = known[0] if known else None
        self.identity = known[1] if known else None
        self.role = self.registration.role if self.registration else Role.PROCESS_SERVER
        self.rungs: list[dict[str, Any]] = []

    # --- its settings -------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What is in force on this server; no secret is among it."""
        deployed = deployed_in(self._files, self.folder)
        running = running_in(self._files, self.folder)
        shown: dict[str, Any] = {
            "name": self.config.name,
            "role": self.role,
            "state": "registered" if self.registration else "unregistered",
            "running": running is not None,
            "listenHost": self.config.host,
            "dataPort": self.config.port or (running.port if running else 0),
            "addresses": list(self.config.addresses(self.config.port or (running.port if running else 0))),
            "network": self.config.network,
            "spoolBytes": self.config.spool_bytes,
            "administrator": deployed.administrator.user if deployed else "",
        }
        if self.registration is not None and self.identity is not None:
            shown |= {
                "id": self.registration.id,
                "configurationServer": self.registration.configuration_server,
                "whoDials": self._who_dials(),
                "certificateEnds": _date(self.identity.peer.expires_ns),
            }
        return shown

    def _who_dials(self) -> str:
        return "home" if self._reach() is Reach.PROCESS_SERVER else "this server"

    def _reach(self) -> Reach:
        return ReachBook(self._files, self.folder).reach

    # --- its doctor ---------------------------------------------------------------------------------------------

    async def walk(self) -> dict[str, Any]:
        """The ladder as seen from this server, in the API's shape; it ends at the first broken rung."""
        for step in (self._service, self._registered, self._way_home, self._volume):
            if not await step():
                break
        ok = all(rung["ok"] for rung in self.rungs)
        return {"subject": f"{self.role} {self.config.name}, seen from itself", "ok": ok, "rungs": self.rungs}

    async def _service(self) -> bool:
        running = running_in(self._files, self.folder)

        async def runs() -> None:
            if running is None:
                raise ServiceDown(kind=self.role, folder=self.folder)

        if not await self._rung("its service runs", runs):
            return False
        assert running is not None, "the rung held"
        port = Address(self.config.host or "127.0.0.1", running.port or self.config.port)
        return self._climbed(f"its data port {port}", await probe_reach(port))

    async def _registered(self) -> bool:
        async def registered() -> None:
            if self.registration is None:
                await ask_status(self.folder)
                raise NotRegistered(folder=self.folder, kind=self.role)

        async def valid() -> None:
            assert self.identity is not None, "it is registered"
            verify_certificate(self.identity.certificate, self.identity.trust, self._world.clock.wall_ns())

        async def shown() -> None:
            running = running_in(self._files, self.folder)
            assert running is not None, "the first rung held"
            assert self.identity is not None, "it is registered"
            port = Address(self.config.host or "127.0.0.1", running.port or self.config.port)
            own = Expect(self.role, self.identity.peer.id)
            (await dial_data(port, self._credentials(), own, clock=self._world.clock)).abort()

        if not await self._rung("it is registered", registered):
            return False
        assert self.identity is not None, "the rung held"
        until = _date(self.identity.peer.expires_ns)
        return await self._rung(f"its certificate, valid until {until}", valid) and await self._rung(
            "its data port: TLS with that certificate", shown
        )

    async def _way_home(self) -> bool:
        assert self.registration is not None, "the rung before held"
        home = parse_address(self.registration.configuration_server)
        credentials = self._credentials()
        way: Way | None = None
        if self._reach() is Reach.DIRECT:
            if not self._climbed(f"the configuration server {home}", await probe_api(home, credentials)):
                return False
        else:
            way = through = self._through(credentials)
            if not await self._rung("home has dialled this server, and keeps a tunnel", lambda: _connect(through)):
                await way.close()
                return False
        kept = MemberFolder(self.folder, self._files, self._world.randomness, self.role)
        member = Member(kept, credentials, home, self._world.clock, way)
        told: list[int] = []

        async def answers() -> None:
            told.append((await member.orders(0, 0.0)).now_ns)

        async def clocks() -> None:
            apart = (self._world.clock.wall_ns() - told[0]) / 1e9 if told[0] else 0.0
            if abs(apart) > Thresholds().clock_skew_s:
                raise ClockWrong(seconds=f"{apart:.0f}")

        try:
            answered = await self._rung("the configuration server answers, and knows this certificate", answers)
            return answered and await self._rung("the clocks of both agree", clocks)
        finally:
            member.close()
            if way is not None:
                await way.close()

    def _through(self, credentials: Credentials) -> Way:
        """Home dials: this server's own API is reached as the agents behind it reach it, through itself."""
        running = running_in(self._files, self.folder)
        port = running.port if running is not None else self.config.port
        own = [Address(self.config.host or "127.0.0.1", port)] if self.role is Role.PROCESS_SERVER else []
        servers = (*own, *ReachBook(self._files, self.folder).process_servers)
        return RelayWay(lambda: servers, credentials, self._world.clock)

    async def _volume(self) -> bool:
        volume = self.folder / VOLUMES[self.role]

        async def room() -> None:
            try:
                free, total = self._files.free_bytes(volume)
            except OSError as error:
                raise SettingsWrong(folder=volume, reason=error.strerror or str(error)) from error
            shares = [free / max(1, total)]
            if self.role is Role.PROCESS_SERVER:
                shares.append(1 - _bytes_below(volume) / self.config.spool_bytes)
            if min(shares) < ThrottleLimits().throttle_below:
                raise SpoolNearlyFull(percent=max(0, round(100 * min(shares))), folder=volume.resolve())

        return await self._rung("there is room on the volume of its data", room)

    def _credentials(self) -> Credentials:
        assert self.identity is not None, "it is registered"
        return Credentials(self.identity, self._world.clock)

    async def _rung(self, name: str, look: Callable[[], Awaitable[None]]) -> bool:
        try:
            await look()
        except BackhaulError as error:
            self._note(name, error)
            return False
        self._note(name)
        return True

    def _climbed(self, where: str, found: Climbed) -> bool:
        for rung in found.held:
            self._note(f"{where}: {rung}")
        if found.error is not None:
            self._note(f"{where}: {found.broken}", found.error)
        return found.error is None

    def _note(self, name: str, error: BackhaulError | None = None) -> None:
        code, reason, fix = (error.code, error.message, error.advice) if error else ("", "", "")
        self.rungs.append({"rung": name, "ok": error is None, "code": code, "reason": reason, "fix": fix})


async def _connect(way: Way) -> None:
    await close_stream((await way.connect()).writer)


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _date(ns: int) -> str:
    return datetime.datetime.fromtimestamp(ns / 1e9, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
