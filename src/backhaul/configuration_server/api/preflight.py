"""What speaks for and against a job of an item before it is begun: its first step's findings, and what it loses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from fastapi import Request, Response

from backhaul.configuration_server.api.bodies import Plane, answer
from backhaul.configuration_server.api.lifecycle import kind_of, point_of
from backhaul.configuration_server.callers import READERS
from backhaul.configuration_server.errors import ResourceUnknown, ServerRefused, ServerSilent
from backhaul.configuration_server.guarded import ApiRoute
from backhaul.configuration_server.lifecycle import workflows as w
from backhaul.configuration_server.lifecycle.core import lifecycle_of
from backhaul.configuration_server.lifecycle.errors import ReplicaMissing
from backhaul.configuration_server.lifecycle.moving import what_is_lost
from backhaul.configuration_server.lifecycle.values import Wish
from backhaul.configuration_server.shapes.paths import VAULT, name_in
from backhaul.replication.values import ItemId


async def preflight(plane: Plane, kind: str, item: str, request: Request) -> Response:
    """All findings before a job of this kind. Changes nothing. The query says what would be wished for: `point`,
    `processServer`, `cancelGivenUp`, `machine`.
    """
    asked = _wished(request.query_params)

    def look() -> dict[str, Any]:
        named = kind_of(kind)
        ports = lifecycle_of(plane).ports
        found = ports.items.load(ItemId(plane.items.get(item).id))
        found = msgspec.structs.replace(found, wish=asked)  # not what was wished for in the last job
        findings, outlook = w.look_before(ports, found, named)
        loses = ""
        if named == w.UNPLANNED:
            with contextlib.suppress(ServerSilent, ServerRefused, ReplicaMissing, ResourceUnknown):  # findings tell
                loses = what_is_lost(ports, found)
        estimate = outlook.shown() if outlook else None
        return {"kind": named, "findings": msgspec.to_builtins(findings), "loses": loses, "estimate": estimate}

    return answer(await asyncio.to_thread(look))


def _wished(query: Mapping[str, str]) -> Wish:
    return Wish(
        point=point_of(query.get("point", "")),
        process_server=name_in(query.get("processServer", "")),
        cancel_given_up=query.get("cancelGivenUp", "") == "true",
        machine=query.get("machine", ""),
    )


ROUTES: Final = (ApiRoute("GET", VAULT + "/backhaulItems/{item}/preflight/{kind}", READERS, preflight),)
"""For the route table."""
