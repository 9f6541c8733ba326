"""The provider as a process: `backhaul site run` calls `serve`, which returns when it is told to end.

Machines and servers outlive it. Where it listens and which certificate it shows is written to `endpoint.json` in the
site's folder, for the composition root, which hands it on.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import msgspec
import uvicorn

from backhaul.replication.ports import Clock, Files, Randomness, RealClock, RealFiles, RealRandomness
from backhaul.sites.errors import SiteDefinitionWrong
from backhaul.sites.local.api import create_app
from backhaul.sites.local.definition import SiteDefinition
from backhaul.sites.local.namespaces import NamespaceFabric
from backhaul.sites.local.principals import Principals
from backhaul.sites.local.provider import Provider
from backhaul.sites.local.tls import ensure_certificate

_BACKLOG = 64
_IDLE_S = 30
_SHUTDOWN_S = 2
"""Idle callers are not waited for; a call that is cut off is repeated with its token."""


class Endpoint(msgspec.Struct, frozen=True):
    """Where a provider answers: `address` on this machine's own loopback, `management` inside the networks, if any."""

    address: str
    management: str
    certificate_pem: str


def read_definition(path: Path) -> SiteDefinition:
    """The definition in this file. Raises SiteDefinitionWrong."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=SiteDefinition)
    except (OSError, msgspec.DecodeError) as error:
        raise SiteDefinitionWrong(reason=str(error)) from error


async def serve(folder: Path, definition: SiteDefinition, listen: str, management: str = "") -> None:
    """Serve the site until SIGTERM or SIGINT. `listen` and `management` are HOST:PORT; port 0 takes a free one.

    `management` (namespaces mode only) is an address on the router between the networks, for example
    198.18.0.2:8443: home reaches it also when the route between the networks is cut.
    """
    files, clock, randomness = RealFiles(), RealClock(), RealRandomness()
    provider = await asyncio.to_thread(_open, folder, definition, files, clock, randomness)
    try:
        certificate, key = ensure_certificate(provider.world.private, definition.name, files, clock)
        sockets = _listen(provider, listen, management)
        names = [_address(each) for each in sockets]
        endpoint = Endpoint(names[0], names[1] if management else "", certificate.read_text())
        files.replace(folder / "endpoint.json", msgspec.json.encode(endpoint))
        server = uvicorn.Server(_config(provider, definition, certificate, key))
        await server.serve(sockets=sockets)
    finally:
        await asyncio.to_thread(provider.close)


def take_down(folder: Path, definition: SiteDefinition) -> None:
    """Stop and remove everything of a site whose provider has ended; its disks and ledger stay in the folder."""
    _open(folder, definition, RealFiles(), RealClock(), RealRandomness()).take_down()


def _open(folder: Path, definition: SiteDefinition, files: Files, clock: Clock, randomness: Randomness) -> Provider:
    return Provider(folder, definition, files=files, clock=clock, randomness=randomness)


def _config(provider: Provider, definition: SiteDefinition, certificate: Path, key: Path) -> uvicorn.Config:
    config = uvicorn.Config(
        create_app(provider, Principals(definition.principals)),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=_SHUTDOWN_S,
        ssl_certfile=str(certificate),
        ssl_keyfile=str(key),
    )
    config.load()
    assert config.ssl is not None, "a certificate was given"
    config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    return config


def _listen(provider: Provider, listen: str, management: str) -> list[socket.socket]:
    host, _, port = listen.rpartition(":")
    sockets = [socket.create_server((host, int(port)), backlog=_BACKLOG)]
    if management:
        if not isinstance(provider.fabric, NamespaceFabric):
            raise SiteDefinitionWrong(reason="a management address needs a site in namespaces")
        host, _, port = management.rpartition(":")
        sockets.append(provider.fabric.listen_at_router(host, int(port)))
    return sockets


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"{host}:{port}"
