"""The vault's own resources: connection passphrase, settings, metrics."""

from __future__ import annotations

import msgspec
from fastapi import Response
from fastapi.responses import PlainTextResponse

from backhaul.configuration_server.api.bodies import Plane, answer
from backhaul.configuration_server.metrics import render


def show_passphrase(plane: Plane) -> Response:
    """The connection passphrase."""
    return answer({"passphrase": plane.vault.passphrase().text()}, headers={"cache-control": "no-store"})


def rotate_passphrase(plane: Plane) -> Response:
    """A new connection passphrase; the one before is wrong from now on."""
    return answer({"passphrase": plane.vault.rotate_passphrase().text()}, headers={"cache-control": "no-store"})


def show_config(plane: Plane) -> Response:
    """The settings in force."""
    vault = plane.vault
    return answer(
        {
            "vault": vault.path,
            "term": vault.record.term,
            "server": vault.record.server_id,
            "certificateExpiresInDays": vault.expires_days(),
            "settings": msgspec.to_builtins(vault.settings),
        }
    )


def metrics(plane: Plane) -> Response:
    """Figures for Prometheus."""
    return PlainTextResponse(render(plane), media_type="text/plain; version=0.0.4")
