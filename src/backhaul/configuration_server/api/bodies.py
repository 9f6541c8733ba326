"""Bodies in and out: JSON by msgspec, checked against a type; unknown fields of Azure's shapes pass."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import Depends, Request, Response

from backhaul.configuration_server.errors import BodyWrong
from backhaul.configuration_server.guarded import plane_of
from backhaul.configuration_server.plane import ControlPlane
from backhaul.replication.errors import UNDECODABLE

T = TypeVar("T")


async def _raw(request: Request) -> bytes:
    return await request.body()


Body = Annotated[bytes, Depends(_raw)]
Plane = Annotated[ControlPlane, Depends(plane_of)]


def decode(body: bytes, kind: type[T]) -> T:
    """The body as `kind`. Raises BodyWrong."""
    try:
        return msgspec.json.decode(body, type=kind)
    except UNDECODABLE as error:
        raise BodyWrong(reason=str(error)) from error


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`value` as JSON."""
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def nothing(status: int = 204, headers: dict[str, str] | None = None) -> Response:
    """An answer without a body."""
    return Response(status_code=status, headers=headers)
