"""What registered servers and agents ask with their certificates. The caller is always the subject: `self`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from fastapi import Query, Request, Response

from backhaul.configuration_server.api.bodies import Body, Plane, answer, decode, nothing
from backhaul.configuration_server.errors import BodyWrong
from backhaul.configuration_server.guarded import CallerParam
from backhaul.configuration_server.http_front import PEER
from backhaul.configuration_server.member import Orders, Renewed
from backhaul.configuration_server.registry import Announcement
from backhaul.replication.control import AgentReport

After = Annotated[int, Query()]
Wait = Annotated[float, Query(ge=0)]


class CertificateBody(msgspec.Struct, forbid_unknown_fields=True):
    """A certificate request, DER."""

    csr: bytes


def announce(plane: Plane, caller: CallerParam, body: Body) -> Response:
    """A server says who and where it is."""
    plane.registry.announce(caller.id, decode(body, Announcement))
    return nothing()


def renew(plane: Plane, caller: CallerParam, request: Request, body: Body) -> Response:
    """A new certificate for the owner of the present one."""
    certificate = request.scope[PEER].certificate_der
    chain, trust = plane.registry.renew(caller.id, certificate, decode(body, CertificateBody).csr)
    return answer(Renewed(chain, trust.bundle, trust.deny))


async def orders(plane: Plane, caller: CallerParam, after: After = 0, wait_s: Wait = 0.0) -> Response:
    """Whom to trust, and whom to dial; held until there is something new."""
    revision = await plane.revisions.wait(caller.id, after, wait_s)
    dial = await asyncio.to_thread(plane.dialled_by, caller.id)
    trust = plane.vault.authority.trust
    return answer(Orders(revision, trust.bundle, trust.deny, dial, plane.vault.clock.wall_ns()))


async def assignment(plane: Plane, caller: CallerParam, after: After = 0, wait_s: Wait = 0.0) -> Response:
    """What an agent is to replicate, and what it is asked now; held until there is something new."""
    revision = await plane.revisions.wait(caller.id, after, wait_s)
    assigned = await asyncio.to_thread(plane.items.assignment, caller.id, revision)
    return answer(msgspec.structs.replace(assigned, questions=plane.live.questions.open(caller.id)))


async def report(plane: Plane, caller: CallerParam, body: Body) -> Response:
    """An agent's heartbeat."""
    said = decode(body, AgentReport)
    if said.agent != caller.id:
        raise BodyWrong(reason=f"the report is of {said.agent[:100]}, the certificate of {caller.id}")
    await plane.reported(said)
    return nothing()


def sink(body: Body) -> Response:
    """Throws away what it is sent, at most a body's bound: how fast bytes come here is what an agent measures."""
    return nothing()
