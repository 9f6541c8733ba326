"""The management API of a local site: JSON over HTTPS, one POST route for each operation of the table.

    POST /v1/OPERATION   Authorization: Bearer TOKEN   Client-Request-Token: TOKEN   {arguments}
    -> 200 answer, or 4xx/5xx {"code": …, "params": {…}, "message": …, "fix": …}

The caller is known before its body is read, bodies are bounded, and whatever is not in the table is refused. Runs in
the daemon's event loop; operations run in worker threads.
"""

from __future__ import annotations

import msgspec
import structlog
from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool

from backhaul.replication.errors import BackhaulError
from backhaul.replication.units import MiB
from backhaul.sites.errors import RequestMalformed, SiteError, SiteNotFound
from backhaul.sites.local.operations import TABLE
from backhaul.sites.local.principals import Principals
from backhaul.sites.local.provider import Provider

_log = structlog.get_logger(__name__)
MAX_BODY = 1 * MiB
"""A server's custom data is the largest argument; Azure's limit for it is 64 KiB."""
_JSON = "application/json"


def create_app(provider: Provider, principals: Principals) -> FastAPI:
    """The API of this provider."""
    app = FastAPI(title="Backhaul local site", openapi_url=None, docs_url=None, redoc_url=None)

    def route(operation: str) -> None:
        async def handle(request: Request) -> Response:
            return await _handle(provider, principals, operation, request)

        app.add_api_route(f"/v1/{operation}", handle, methods=["POST"], name=operation, include_in_schema=False)

    for operation in TABLE:
        route(operation)

    async def refuse(request: Request, _: Exception) -> Response:
        return _error(SiteNotFound(what="route", name=request.url.path))

    app.add_exception_handler(404, refuse)
    app.add_exception_handler(405, refuse)
    return app


async def _handle(provider: Provider, principals: Principals, operation: str, request: Request) -> Response:
    try:
        caller = principals.authenticate(request.headers.get("authorization", ""))
        body = await _body(request, operation)
        token = request.headers.get("client-request-token", "")
        answer = await run_in_threadpool(provider.perform, caller, operation, token, body)
    except BackhaulError as error:
        _log.info("refused", operation=operation, code=error.code)
        return _error(error)
    except OSError as error:
        _log.error("failed", operation=operation, reason=str(error))
        return _error(SiteError(operation=operation, reason=error.strerror or str(error)))
    return Response(answer, media_type=_JSON)


async def _body(request: Request, operation: str) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY:
            raise RequestMalformed(operation=operation, reason=f"its body is longer than {MAX_BODY} bytes")
    return bytes(body)


def _error(error: BackhaulError) -> Response:
    params = {
        name: value if isinstance(value, (int, float, list)) else str(value) for name, value in error.params.items()
    }
    document = {"code": error.code, "params": params, "message": error.message, "fix": error.advice}
    return Response(msgspec.json.encode(document), getattr(error, "status", 500), media_type=_JSON)
