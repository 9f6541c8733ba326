"""Servers in our own shape: process servers, master targets, agents."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from fastapi import Response

from backhaul.configuration_server.api.bodies import Body, Plane, answer, decode, nothing
from backhaul.configuration_server.errors import BodyWrong
from backhaul.configuration_server.lifecycle.deploying_jobs import next_command_of
from backhaul.configuration_server.plane import ControlPlane
from backhaul.configuration_server.records import ServerRecord
from backhaul.configuration_server.registry import MEMBER_ROLES, addresses_of
from backhaul.configuration_server.shapes.times import utc_text
from backhaul.replication.values import Role

KINDS = {"processservers": Role.PROCESS_SERVER, "mastertargets": Role.MASTER_TARGET, "agents": Role.AGENT}


class TokenBody(msgspec.Struct, forbid_unknown_fields=True):
    """For which server the token is."""

    role: Role
    server: str


def server_shape(plane: ControlPlane, server: ServerRecord) -> dict[str, Any]:
    """A server with its health of this moment."""
    live = plane.live.server(server.id)
    health = plane.server_health(server)
    return {
        "id": f"{plane.vault.path}/backhaulServers/{server.id}",
        "name": server.id,
        "type": "Microsoft.RecoveryServices/vaults/backhaulServers",
        "properties": {
            "role": server.role,
            "friendlyName": server.name,
            "state": server.state,
            "builtIn": server.built_in,
            "network": server.network,
            "addresses": list(addresses_of(server)),
            "version": server.version,
            "machine": server.machine,
            "lastHeartbeat": utc_text(server.heartbeat_ns),
            "health": health.health,
            "alerts": msgspec.to_builtins(health.alerts),
            "silence": live.error,
            "homeLink": plane.home.shape(server.id),
            "status": msgspec.to_builtins(live.status) if live.status is not None else None,
            "nextCommand": next_command_of(plane, server),
        },
    }


def list_servers(plane: Plane, kind: str = "") -> Response:
    """Every server, or those of a kind."""
    role = KINDS.get(kind.lower())
    if kind and role is None:
        raise BodyWrong(reason=f"kind is one of {', '.join(KINDS)}")
    return answer({"value": [server_shape(plane, server) for server in plane.registry.list(role)]})


def show_server(plane: Plane, server: str) -> Response:
    """One server, by id or name."""
    return answer(server_shape(plane, plane.registry.get(server)))


async def revoke_server(plane: Plane, server: str) -> Response:
    """Refuse every certificate of a server from now on, and cut its links."""
    found = await asyncio.to_thread(plane.registry.get, server)
    trust = await asyncio.to_thread(plane.registry.revoke, found.id)
    await plane.vault.take_trust(trust)
    plane.links.forget(found.id)
    return nothing()


def make_token(plane: Plane, body: Body) -> Response:
    """A one-time token for one server that is being set up."""
    asked = decode(body, TokenBody)
    if asked.role not in MEMBER_ROLES:
        raise BodyWrong(reason="only servers and agents register")
    token = plane.registry.make_token(asked.role, asked.server)
    return answer({"token": token.text()}, 201, {"cache-control": "no-store"})


async def doctor_server(plane: Plane, server: str) -> Response:
    """Walk the ladder for a server."""
    return answer(await plane.doctor.server(server))


async def doctor_item(plane: Plane, item: str) -> Response:
    """Walk the ladder for an item."""
    return answer(await plane.doctor.item(item))
