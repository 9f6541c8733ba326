"""Routes that know who may call them; errors as Azure Resource Manager words them.

Invariant: a caller is known and admitted before one byte of its body is parsed. A route without callers cannot be
made. Paths match in any case, as clients of Azure send ids back with capitals of their own, and unknown query
parameters are ignored. Event loop; sessions are looked up in a worker thread.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import structlog
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from backhaul.configuration_server.callers import SESSIONS, Caller, Who, member_caller
from backhaul.configuration_server.errors import (
    ApiVersionMissing,
    ApiVersionUnsupported,
    BodyWrong,
    CallerRefused,
    LoginLocked,
    LoginRequired,
    PasswordChangeRequired,
    RequestError,
    ResourceUnknown,
    http_status,
)
from backhaul.configuration_server.http_front import PEER
from backhaul.replication.errors import BackhaulError

if TYPE_CHECKING:
    from backhaul.configuration_server.plane import ControlPlane

OLDEST_VERSION: Final = "2022-08-01"
NEWEST_VERSION: Final = "2025-08-01"
_VERSION: Final = re.compile(r"\d{4}-\d{2}-\d{2}(-preview)?")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ApiRoute:
    """One row of the route table."""

    method: str
    path: str
    who: frozenset[Who]
    endpoint: Callable[..., Any]

    def __post_init__(self) -> None:
        assert self.who, "a route that nobody may call is no route"


class GuardedRoute(APIRoute):
    """A route that asks who calls before anything else."""

    def __init__(self, row: ApiRoute) -> None:
        self._row = row
        super().__init__(row.path, row.endpoint, methods=[row.method], response_model=None, name=row.endpoint.__name__)
        self.path_regex = re.compile(self.path_regex.pattern, re.IGNORECASE)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler behind the guard."""
        handle = super().get_route_handler()
        row = self._row

        async def guarded(request: Request) -> Response:
            request.state.caller = await _admit(request, row)
            if row.path.startswith("/subscriptions"):
                _check_vault(request)
            return await handle(request)

        return guarded


async def _admit(request: Request, row: ApiRoute) -> Caller:
    caller = await _caller(request)
    if caller is None:
        if Who.ANONYMOUS in row.who:
            return Caller(Who.ANONYMOUS, "")
        raise LoginRequired()
    if caller.who in row.who:
        return caller
    if Who.ANONYMOUS in row.who:
        return caller
    if caller.who is Who.CHANGING:
        raise PasswordChangeRequired(reason="the password is a one-time password")
    raise CallerRefused(caller=caller.name, route=f"{row.method} {row.path}", allowed=", ".join(sorted(row.who)))


async def _caller(request: Request) -> Caller | None:
    """A session counts before a certificate: a person may work on a registered server."""
    token = bearer(request)
    if token:
        return await asyncio.to_thread(plane_of(request).accounts.caller, token)
    peer = request.scope.get(PEER)
    return member_caller(peer.role, peer.id) if peer is not None else None


def bearer(request: Request) -> str:
    """The request's bearer token; empty for none."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def _check_vault(request: Request) -> None:
    """The api-version is one of ours, and the vault in the path is this one."""
    version = request.query_params.get("api-version")
    if not version:
        raise ApiVersionMissing()
    if not _VERSION.fullmatch(version) or not OLDEST_VERSION <= version[:10] <= NEWEST_VERSION:
        raise ApiVersionUnsupported(version=version[:40], oldest=OLDEST_VERSION, newest=NEWEST_VERSION)
    vault = plane_of(request).vault.path.lower()
    path = request.url.path.lower()
    if path != vault and not path.startswith(vault + "/"):
        raise ResourceUnknown(kind="vault", name=request.url.path[:300])


def plane_of(request: Request) -> ControlPlane:
    """The control plane behind the application."""
    plane: ControlPlane = request.app.state.plane
    return plane


def caller_of(request: Request) -> Caller:
    """Who calls, as the guard found out."""
    caller: Caller = request.state.caller
    return caller


CallerParam = Annotated[Caller, Depends(caller_of)]


def error_body(error: BackhaulError) -> dict[str, Any]:
    """The error in Azure Resource Manager's shape; our advice and parameters under `additionalInfo`."""
    info = {"fix": error.advice, "params": {name: str(value) for name, value in error.params.items()}}
    known = {"code": error.code, "message": error.message.replace("\n", " "), "details": []}
    return {"error": known | {"additionalInfo": [{"type": "backhaul", "info": info}]}}


def _answer(error: BackhaulError) -> JSONResponse:
    headers = {}
    if isinstance(error, LoginRequired):
        headers["www-authenticate"] = 'Bearer realm="backhaul"'
    if isinstance(error, LoginLocked):
        headers["retry-after"] = str(error.params["wait_s"])
    return JSONResponse(error_body(error), http_status(error), headers)


async def _on_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, BackhaulError)
    return _answer(error)


async def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    wrong = ("{}: {}".format(".".join(str(part) for part in one["loc"]), one["msg"]) for one in error.errors()[:5])
    return _answer(BodyWrong(reason="; ".join(wrong)))


async def _on_status(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _answer(ResourceUnknown(kind="resource", name=request.url.path[:300]))
    return JSONResponse(error_body(RequestError(reason=str(error.detail))), error.status_code, error.headers)


async def _on_defect(request: Request, error: Exception) -> Response:
    _log.error("api.defect", route=request.url.path, exc_info=error)
    return _answer(BackhaulError())


def make_application(plane: ControlPlane, table: tuple[ApiRoute, ...]) -> FastAPI:
    """The API of a control plane: exactly the routes of the table, nothing beside them."""
    application = FastAPI(title="Backhaul", openapi_url=None, docs_url=None, redoc_url=None)
    application.state.plane = plane
    application.add_exception_handler(BackhaulError, _on_error)
    application.add_exception_handler(RequestValidationError, _on_invalid)
    application.add_exception_handler(HTTPException, _on_status)
    application.add_exception_handler(Exception, _on_defect)
    application.router.redirect_slashes = False
    application.router.routes[:] = [GuardedRoute(row) for row in table]
    return application


__all__ = ["SESSIONS", "ApiRoute", "CallerParam", "bearer", "error_body", "make_application", "plane_of"]
