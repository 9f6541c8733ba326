"""HTTPS to the server: JSON out and in, errors with their codes. Blocking; one per thread."""

from __future__ import annotations

import ssl
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx

from backhaul.client.errors import AnswerStrange, ClientError, NotFound, NotLoggedIn, ServerUnreachable

API_VERSION = "2025-08-01"
CONNECT_S = 10.0
ANSWER_S = 120.0
"""Doctors and long actions wait for servers, each with bounds of their own."""


class Transport:
    """One server."""

    def __init__(self, server: str, ca_pem: str, token: str = "") -> None:
        context = ssl.create_default_context(cadata=ca_pem)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        headers = {"authorization": f"Bearer {token}"} if token else {}
        timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
        self._http = httpx.Client(base_url=server, verify=context, headers=headers, timeout=timeout, trust_env=False)

    def __enter__(self) -> Transport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def call(self, method: str, path: str, body: Any = None, query: dict[str, str] | None = None) -> Any:
        """The answer's JSON; None for none. Raises ClientError's kinds."""
        return self.respond(method, path, body, query)[0]

    def begin(self, method: str, path: str, body: Any = None) -> str:
        """Call what begins a job; the job's id."""
        _, headers = self.respond(method, path, body)
        return urlsplit(headers["azure-asyncoperation"]).path.rpartition("/")[2]

    def respond(
        self, method: str, path: str, body: Any = None, query: dict[str, str] | None = None
    ) -> tuple[Any, httpx.Headers]:
        """The answer's JSON and headers. Raises ClientError's kinds."""
        params = dict(query or {})
        if path.startswith("/subscriptions"):
            params["api-version"] = API_VERSION
        try:
            response = self._http.request(method, path, json=body, params=params)
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise ServerUnreachable(server=self._http.base_url, reason=reason) from error
        if response.is_error:
            raise _error(response)
        return (response.json() if response.content else None), response.headers


def _error(response: httpx.Response) -> ClientError:
    try:
        known = response.json()["error"]
        code, message = str(known["code"]), str(known["message"])
        fix = next((str(one["info"]["fix"]) for one in known.get("additionalInfo", ())), "")
    except (ValueError, KeyError, TypeError):
        return AnswerStrange(http_status=response.status_code, status=response.status_code)
    kinds: dict[int, type[ClientError]] = {401: NotLoggedIn, 404: NotFound}
    return kinds.get(response.status_code, ClientError)(code, message, fix, response.status_code)
