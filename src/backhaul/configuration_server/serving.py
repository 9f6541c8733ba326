"""Starts a configuration server: vault, records, jobs, the one TLS port, and the tasks around them.

One event loop for everything that waits; records and passwords in worker threads; jobs in DBOS's. Ends when it is
cancelled: the process server and the master target it started go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from backhaul.configuration_server import protecting
from backhaul.configuration_server.built_in import BuiltInServers
from backhaul.configuration_server.guarded import make_application
from backhaul.configuration_server.heartbeats import Heartbeats
from backhaul.configuration_server.home_links import HomeLinks
from backhaul.configuration_server.http_front import HttpFront
from backhaul.configuration_server.jobs import Kinds, end_runner, make_runner
from backhaul.configuration_server.kept_links import LOOK_S
from backhaul.configuration_server.lifecycle import core, deploying_core
from backhaul.configuration_server.occupancy import occupy, write_note
from backhaul.configuration_server.plane import ControlPlane
from backhaul.configuration_server.reconciler import Reconciler
from backhaul.configuration_server.route_table import ROUTES
from backhaul.configuration_server.settings import load_settings
from backhaul.configuration_server.vault import Vault
from backhaul.links.certificates import Trust
from backhaul.links.dialer import Address, Redial
from backhaul.links.enrolment import AskBody, Desk, Issued, KnownSecret, serve_enrolment
from backhaul.links.enrolment_limits import Limiter, MemoryFailures
from backhaul.links.identity import Identity
from backhaul.links.listener import Caller, Listener, Route, listen, stream_route
from backhaul.links.renewal import Renewal, renewing
from backhaul.links.tls import ALPN_ENROL, ALPN_HTTP
from backhaul.replication.ports import Files

CLOSE_S: Final = 5.0
"""Requests in hand get so long to end at a stop."""

RECONCILE_S: Final = 1.0

_log = structlog.get_logger(__name__)


EVERY_KIND: Final = {**protecting.KINDS, **core.KINDS, **deploying_core.KINDS}
"""All jobs: protecting a machine, its moves, and process servers that are deployed and deleted."""


async def serve(
    data_dir: Path,
    address: Address,
    files: Files,
    world: Redial,
    *,
    show_password: Callable[[str, str], None],
    ready: Callable[[int, Path], None],
    kinds: Kinds = EVERY_KIND,
) -> None:
    """Serve until cancelled. `ready` is called with the port and the roots' file once it listens.

    Raises FolderTaken, SettingsWrong, SecretDamaged, IdentityDamaged, LinkUnreachable (the port is taken).
    """
    with occupy(files, data_dir):
        vault = await asyncio.to_thread(Vault, data_dir, load_settings(data_dir), files, world)
        try:
            await asyncio.to_thread(vault.refresh_identity, address.host)
            await asyncio.to_thread(vault.ensure_admin, show_password)
            await _serve(vault, address, ready, kinds)
        finally:
            vault.close()


async def _serve(vault: Vault, address: Address, ready: Callable[[int, Path], None], kinds: Kinds) -> None:
    plane = ControlPlane(vault, kinds)
    plane.reconciler = Reconciler(plane, min(RECONCILE_S, vault.settings.heartbeat_s))
    plane.runner = make_runner(plane)
    front = HttpFront(make_application(plane, ROUTES))
    desk = _desk(plane)
    listener = await listen(
        address.host, address.port, vault.credentials, {ALPN_HTTP: front.route, ALPN_ENROL: _enrolment(desk)}
    )
    try:
        plane.home = HomeLinks(vault, plane.registry, listener, desk, look_s=min(LOOK_S, vault.settings.heartbeat_s))
        await asyncio.to_thread(write_note, vault.files, vault.data_dir, listener.port)
        await asyncio.to_thread(plane.runner.launch)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(Heartbeats(plane.registry, plane.links, plane.live, vault.settings.heartbeat_s).run())
            tasks.create_task(plane.reconciler.run())
            tasks.create_task(plane.home.run())
            tasks.create_task(renewing(vault.credentials, _renewal(plane)))
            if vault.settings.built_in:
                api = Address(_reachable(address.host), listener.port)
                tasks.create_task(BuiltInServers(vault, plane.registry, api, address.host).run())
            _log.info("configuration_server.listening", port=listener.port)
            ready(listener.port, vault.data_dir / "ca.pem")
    finally:
        await _stop(plane, front, listener)


async def _stop(plane: ControlPlane, front: HttpFront, listener: Listener) -> None:
    plane.revisions.close()
    try:
        async with asyncio.timeout(CLOSE_S):
            await front.close()
    except TimeoutError:
        _log.info("configuration_server.requests_cut")
    await listener.close()
    await asyncio.to_thread(end_runner)
    await plane.links.close()


def _reachable(host: str) -> str:
    """The host under which this machine reaches itself."""
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104


def _desk(plane: ControlPlane) -> Desk:
    vault = plane.vault

    async def issue(ask: AskBody, known: KnownSecret) -> Issued:
        return await asyncio.to_thread(plane.registry.enrol, ask, known)

    limiter = Limiter(MemoryFailures(), vault.clock)
    return Desk(lambda: vault.identity, plane.registry, limiter, issue, vault.clock, vault.world.randomness)


def _enrolment(desk: Desk) -> Route:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller) -> None:
        await serve_enrolment(reader, writer, desk, address=caller.host)

    return stream_route(handle)


def _renewal(plane: ControlPlane) -> Renewal:
    """This server renews its own certificate at its own authority."""
    vault = plane.vault

    async def ask(csr: bytes) -> tuple[tuple[bytes, ...], Trust]:
        peer = vault.identity
        chain = await asyncio.to_thread(vault.authority.renew, peer.certificate, csr)
        return chain, vault.authority.trust

    def save(identity: Identity) -> None:
        vault.save_identity(identity)

    return Renewal(ask, save, vault.clock)
