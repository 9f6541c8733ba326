"""Who dials a server, and what a deployed one that is not registered yet is known by."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from fastapi import Response

from backhaul.configuration_server.api.bodies import Body, Plane, answer, decode
from backhaul.configuration_server.dial_book import DialEntry, Dialling
from backhaul.configuration_server.errors import BodyWrong
from backhaul.replication.values import Role


class DiallingBody(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """`addresses`: `host:port` of its data port, beside those known. `key_hash`: hexadecimal, as its console shows it;
    empty for a server that is registered.
    """

    role: Role = Role.PROCESS_SERVER
    dialling: Dialling = Dialling.HOME
    addresses: tuple[str, ...] = ()
    key_hash: str = ""


def _shape(entry: DialEntry, link: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "role": entry.role,
        "dialling": entry.dialling,
        "addresses": [str(address) for address in entry.addresses],
        "keyHash": entry.key_hash.hex(),
        "link": link,
    }


async def show_dialling(plane: Plane, server: str) -> Response:
    """The setting, every address the server was ever said to be at, and home's link to it."""
    entry = await asyncio.to_thread(plane.home.book.get, server)
    return answer(_shape(entry, plane.home.shape(server)))


async def set_dialling(plane: Plane, server: str, body: Body) -> Response:
    """Set it; with a key hash, the server is dialled so that it can register."""
    asked, home = decode(body, DiallingBody), plane.home
    if asked.role not in (Role.PROCESS_SERVER, Role.MASTER_TARGET):
        raise BodyWrong(reason="only process servers and master targets are dialled")
    if asked.key_hash:
        try:
            key_hash = bytes.fromhex(asked.key_hash)
        except ValueError as error:
            raise BodyWrong(reason=f"keyHash: {error}") from error
        await home.expect(server, asked.role, asked.addresses, key_hash, asked.dialling)
    else:
        await asyncio.to_thread(home.book.tell, server, asked.role, asked.addresses)
        await home.set_dialling(server, asked.role, asked.dialling)
    return await show_dialling(plane, server)
