"""Ending a protection, resync, rebind, and cancelling jobs: Site Recovery's actions, and what an ending would lose.

Many items, and rebind, go through our own actions of `lifecycle`. `remove` ends the protection and cleans up; DELETE is
Site Recovery's purge, which forgets an item whose servers cannot be reached any more.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
from fastapi import Request, Response

from backhaul.configuration_server.api.bodies import Plane, answer
from backhaul.configuration_server.api.recovery import accepted
from backhaul.configuration_server.callers import OPERATORS, READERS
from backhaul.configuration_server.errors import ResourceUnknown
from backhaul.configuration_server.guarded import ApiRoute, CallerParam
from backhaul.configuration_server.lifecycle import ending
from backhaul.configuration_server.lifecycle import workflows as w
from backhaul.configuration_server.lifecycle.batches import cancel_job
from backhaul.configuration_server.lifecycle.core import begin_job, lifecycle_of
from backhaul.configuration_server.lifecycle.values import Wish
from backhaul.configuration_server.plane import ControlPlane
from backhaul.configuration_server.shapes.activity import job_shape
from backhaul.configuration_server.shapes.paths import ITEM, VAULT, Paths
from backhaul.recovery.states import refusal
from backhaul.replication.values import ItemId


def _begin(plane: ControlPlane, request: Request, item: str, kind: str, account: str) -> Response:
    record = plane.items.get(item)
    return accepted(plane, request, Paths(plane.vault).item(record.id), begin_job(plane, item, kind, Wish(), account))


def remove(plane: Plane, request: Request, caller: CallerParam, item: str) -> Response:
    """Disable the protection. The body's reason and details say nothing that would change what is done."""
    return _begin(plane, request, item, ending.DISABLE, caller.name)


def purge(plane: Plane, request: Request, caller: CallerParam, item: str) -> Response:
    """Forget the item, and leave behind what is at its target and sites."""
    return _begin(plane, request, item, ending.PURGE, caller.name)


def repair(plane: Plane, request: Request, caller: CallerParam, item: str) -> Response:
    """Resync."""
    return _begin(plane, request, item, w.RESYNC, caller.name)


async def before_ending(plane: Plane, kind: str, item: str) -> Response:
    """What ending the protection now would throw away, and why it is not possible. Changes nothing."""
    named = next((one for one in ending.ENDING if one.lower() == kind.lower()), None)
    if named is None:
        raise ResourceUnknown(kind="way to end a protection", name=kind)

    def look() -> dict[str, Any]:
        ports = lifecycle_of(plane).ports
        found = ports.items.load(ItemId(plane.items.get(item).id))
        reason = refusal(found.state, ending.operation_of(named, found))
        lost = [] if reason else ending.losses(ports, found, named)
        return {"kind": named, "losses": lost, "refused": msgspec.to_builtins(reason)}

    return answer(await asyncio.to_thread(look))


def cancel(plane: Plane, caller: CallerParam, job: str) -> Response:
    """Cancel what of a job has not begun; the job as it is then."""
    return answer(job_shape(plane, cancel_job(plane, job, caller.name)))


ROUTES: Final = (
    ApiRoute("POST", ITEM + "/remove", OPERATORS, remove),
    ApiRoute("DELETE", ITEM, OPERATORS, purge),
    ApiRoute("POST", ITEM + "/repairReplication", OPERATORS, repair),
    ApiRoute("GET", VAULT + "/backhaulItems/{item}/ending/{kind}", READERS, before_ending),
    ApiRoute("POST", VAULT + "/replicationJobs/{job}/cancel", OPERATORS, cancel),
)
"""For the route table."""
