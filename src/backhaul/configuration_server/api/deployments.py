"""Process servers that are deployed into virtual networks: the form, its findings, the jobs, and what comes of them."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from fastapi import Request, Response

from backhaul.configuration_server.api.bodies import Body, Plane, answer, decode, nothing
from backhaul.configuration_server.api.recovery import accepted
from backhaul.configuration_server.callers import OPERATORS, READERS
from backhaul.configuration_server.guarded import ApiRoute, CallerParam
from backhaul.configuration_server.lifecycle import deploying_jobs as d
from backhaul.configuration_server.lifecycle.deploying_core import StoredDeployments
from backhaul.configuration_server.lifecycle.deploying_forms import Form, offers
from backhaul.configuration_server.shapes.paths import VAULT, name_in


class _SwitchBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    process_server: str


def _shown(form: Form) -> dict[str, Any]:
    """A form without its password."""
    value: dict[str, Any] = msgspec.to_builtins(form)
    value.pop("password")
    return value


def list_deployments(plane: Plane) -> Response:
    """Every process server that was deployed from here."""
    return answer({"value": [d.shape(plane, known) for known in StoredDeployments(plane.vault).every()]})


def show_deployment(plane: Plane, server: str) -> Response:
    """One of them, by name or id: deploying, deleting, failed, unregistered or registered."""
    return answer(d.shape(plane, d.find(plane, server)))


def deploy(plane: Plane, request: Request, caller: CallerParam, server: str, body: Body) -> Response:
    """Begin to deploy; the same form again goes on where it stopped. What is left out is filled in."""
    job = d.begin_deploy(plane, server, decode(body, Form), caller.name)
    return accepted(plane, request, f"{plane.vault.path}/backhaulProcessServerDeployments/{server}", job)


def validate(plane: Plane, server: str, body: Body) -> Response:
    """All findings on a form, and the form as filled in. Changes nothing."""
    form, found = d.judge(plane, server, decode(body, Form))
    return answer({"form": _shown(form), "findings": msgspec.to_builtins(found)})


def delete(plane: Plane, request: Request, caller: CallerParam, server: str) -> Response:
    """Begin to delete; refused with the items that use it."""
    job = d.begin_delete(plane, server, caller.name)
    return accepted(plane, request, f"{plane.vault.path}/backhaulProcessServerDeployments/{server}", job)


def validate_delete(plane: Plane, server: str) -> Response:
    """What speaks for and against deleting it. Changes nothing."""
    return answer({"findings": msgspec.to_builtins(d.delete_findings(plane, server))})


def list_offers(plane: Plane) -> Response:
    """Virtual networks with failed-over machines, each with the form that would be filled in for it."""
    value = [
        {"name": offer.name, "machines": offer.machines, "healthy": offer.healthy, "form": _shown(offer.form)}
        for offer in offers(plane)
    ]
    return answer({"value": value})


def switch(plane: Plane, caller: CallerParam, item: str, body: Body) -> Response:
    """Another process server for an item, at once and without a resync."""
    asked = decode(body, _SwitchBody)
    d.switch(plane, item, name_in(asked.process_server), caller.name)
    return nothing()


_D: Final = VAULT + "/backhaulProcessServerDeployments"

ROUTES: Final = (
    ApiRoute("GET", _D, READERS, list_deployments),
    ApiRoute("GET", _D + "/{server}", READERS, show_deployment),
    ApiRoute("PUT", _D + "/{server}", OPERATORS, deploy),
    ApiRoute("DELETE", _D + "/{server}", OPERATORS, delete),
    ApiRoute("POST", _D + "/{server}/validate", OPERATORS, validate),
    ApiRoute("GET", _D + "/{server}/deleteFindings", READERS, validate_delete),
    ApiRoute("GET", VAULT + "/backhaulProcessServerOffers", READERS, list_offers),
    ApiRoute("PUT", VAULT + "/backhaulItems/{item}/processServer", OPERATORS, switch),
)
"""For the route table."""
