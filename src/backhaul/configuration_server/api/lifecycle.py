"""Moving items: Site Recovery's actions, and our own, which say what the classic ones cannot.

The classic shapes: reverse `unplannedFailover` with LatestTime is the failback with its final delta; forward it is the
unplanned failover. Every action answers 202 at once; what speaks against it is the job's first step, and is shown
beforehand by the preflight.
"""

from __future__ import annotations

from typing import Final

import msgspec
from fastapi import Request, Response

from backhaul.configuration_server.api.bodies import Body, Plane, answer, decode, nothing
from backhaul.configuration_server.api.recovery import accepted
from backhaul.configuration_server.callers import ADMINS, OPERATORS, READERS
from backhaul.configuration_server.errors import BodyWrong, ResourceUnknown
from backhaul.configuration_server.guarded import ApiRoute, CallerParam
from backhaul.configuration_server.items import NewItem, state_of
from backhaul.configuration_server.lifecycle import workflows as w
from backhaul.configuration_server.lifecycle.batches import AT_ONCE, Batch, batch_of, begin_batch
from backhaul.configuration_server.lifecycle.choosing import items_of_network
from backhaul.configuration_server.lifecycle.core import begin_job, begin_protect, lifecycle_of, set_agent
from backhaul.configuration_server.lifecycle.integrity import read_report
from backhaul.configuration_server.lifecycle.values import Place, Wish
from backhaul.configuration_server.plane import ControlPlane
from backhaul.configuration_server.shapes.paths import ITEM, VAULT, Paths, name_in
from backhaul.recovery.item import Integrity, Side
from backhaul.recovery.states import allowed_actions, allowed_operations, refused_operations
from backhaul.recovery.truth import truth
from backhaul.replication.values import ItemId
from backhaul.sites.local.definition import SiteKind


class _Details(msgspec.Struct, frozen=True):
    instanceType: str = ""  # noqa: N815 - Azure's names
    processServerId: str = ""  # noqa: N815
    recoveryPointId: str = ""  # noqa: N815
    recoveryPointType: str = ""  # noqa: N815


class _Properties(msgspec.Struct, frozen=True):
    recoveryPointId: str = ""  # noqa: N815
    providerSpecificDetails: _Details = _Details()  # noqa: N815


class _ActionBody(msgspec.Struct, frozen=True):
    properties: _Properties = _Properties()


class _WishBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Our own action: `items` for many (ids or names), `atOnce` of them at the same time; or all of a `network`, with
    `activeSide` only those that are active there.
    """

    point: int | None = None
    processServer: str = ""  # noqa: N815
    cancelGivenUp: bool = False  # noqa: N815
    acceptIntegrity: bool = False  # noqa: N815
    machine: str = ""
    items: tuple[str, ...] = ()
    network: str = ""
    activeSide: Side | None = None  # noqa: N815
    atOnce: int = AT_ONCE  # noqa: N815

    @property
    def wish(self) -> Wish:
        return Wish(self.point, name_in(self.processServer), self.cancelGivenUp, self.acceptIntegrity, self.machine)


class _PlanBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    home: Place
    cloud: Place


class _AgentBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    side: Side
    agent: str


class _SiteBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: SiteKind
    address: str
    certificate: str
    token: str


class _ProtectBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    agent: str
    policy: str
    home: Place
    cloud: Place
    processServer: str = ""  # noqa: N815
    disks: tuple[str, ...] = ()


def _check_sites(plane: ControlPlane, *places: Place) -> None:
    known = lifecycle_of(plane).book.names()
    for place in places:
        if place.site not in known:
            raise ResourceUnknown(kind="site", name=place.site)


def _begin(plane: ControlPlane, request: Request, item: str, kind: str, wish: Wish, account: str) -> Response:
    job = begin_job(plane, item, kind, wish, account)
    return accepted(plane, request, Paths(plane.vault).item(plane.items.get(item).id), job)


def point_of(text: str) -> int | None:
    """A recovery point by its number or resource; empty: none. Raises BodyWrong."""
    number = name_in(text)
    if number and not (number.isascii() and number.isdigit()):
        raise BodyWrong(reason=f"{number[:40]} is no recovery point")
    return int(number) if number else None


# --- Site Recovery's actions ------------------------------------------------------------------------------------------


def reprotect(plane: Plane, request: Request, caller: CallerParam, item: str, body: Body) -> Response:
    """Replicate the other way."""
    details = decode(body, _ActionBody).properties.providerSpecificDetails
    wish = Wish(process_server=name_in(details.processServerId))
    return _begin(plane, request, item, w.REPROTECT, wish, caller.name)


def planned_failover(plane: Plane, request: Request, caller: CallerParam, item: str) -> Response:
    """Move with a final delta: failover, or failback."""
    return _begin(plane, request, item, w.PLANNED, Wish(), caller.name)


def unplanned_failover(plane: Plane, request: Request, caller: CallerParam, item: str, body: Body) -> Response:
    """Forward: to a recovery point, without the source. Reverse with LatestTime: the failback with its final delta."""
    details = decode(body, _ActionBody).properties.providerSpecificDetails
    reverse = state_of(plane.items.get(item)).active_side is Side.CLOUD
    point = point_of(details.recoveryPointId)
    kind = w.PLANNED if reverse and point is None and details.recoveryPointType == "LatestTime" else w.UNPLANNED
    return _begin(plane, request, item, kind, Wish(point=point), caller.name)


def apply_point(plane: Plane, request: Request, caller: CallerParam, item: str, body: Body) -> Response:
    """Another recovery point, until the commit."""
    point = point_of(decode(body, _ActionBody).properties.recoveryPointId)
    return _begin(plane, request, item, w.CHANGE_POINT, Wish(point=point), caller.name)


def commit(plane: Plane, request: Request, caller: CallerParam, item: str) -> Response:
    """Commit the move: the other side is not kept."""
    return _begin(plane, request, item, w.COMMIT, Wish(), caller.name)


def cancel(plane: Plane, request: Request, caller: CallerParam, item: str) -> Response:
    """Back to the side before."""
    return _begin(plane, request, item, w.CANCEL, Wish(), caller.name)


# --- our own ----------------------------------------------------------------------------------------------------------


def act(plane: Plane, request: Request, caller: CallerParam, kind: str, item: str, body: Body) -> Response:
    """A job of one item, with everything that can be wished for."""
    asked = decode(body or b"{}", _WishBody)
    return _begin(plane, request, item, kind_of(kind), asked.wish, caller.name)


def act_on_many(plane: Plane, request: Request, caller: CallerParam, kind: str, body: Body) -> Response:
    """One job for many items; each has a child of its own, and one failure stops no other."""
    asked = decode(body, _WishBody)
    named = kind_of(kind)
    if asked.network and asked.items:
        raise BodyWrong(reason="give items or a network, not both")
    items = tuple(item.id for item in items_of_network(plane, asked.network, asked.activeSide)) if asked.network else ()
    batch = Batch(named, asked.items or items, asked.wish, asked.atOnce, caller.name)
    job = begin_batch(plane, batch)
    return accepted(plane, request, Paths(plane.vault).job(job), job)


def show_network(plane: Plane, network: str, request: Request) -> Response:
    """The items that an action for this virtual network would mean; `activeSide` as there."""
    side = request.query_params.get("activeSide", "")
    if side not in ("", *Side):
        raise BodyWrong(reason=f"{side[:40]} is no side")
    items = items_of_network(plane, network, Side(side) if side else None)
    return answer({"value": [{"id": item.id, "name": item.name} for item in items]})


def show_children(plane: Plane, job: str) -> Response:
    """The jobs of each item of a job of many."""
    record = plane.jobs.get(job)
    batch = batch_of(plane, record.subject)
    return answer({"kind": batch.kind, "items": list(batch.items), "children": batch.children})


def kind_of(name: str) -> str:
    """The kind of job, named in any case. Raises ResourceUnknown."""
    found = next((kind for kind in w.WORKFLOWS if kind.lower() == name.lower()), None)
    if found is None:
        raise ResourceUnknown(kind="kind of job", name=name)
    return found


def show_plan(plane: Plane, item: str) -> Response:
    """Where the item's machine is and would be, what is possible now, and why the rest is not."""
    found = lifecycle_of(plane).items.load(ItemId(plane.items.get(item).id))
    live = plane.live.items.get(found.id)
    newest = live.status.newest_point if live and live.status else None
    value = {
        "truth": msgspec.to_builtins(
            truth(found.state, newest.barrier_ns if newest else None, plane.vault.clock.wall_ns())
        ),
        "home": msgspec.to_builtins(found.home),
        "cloud": msgspec.to_builtins(found.cloud),
        "state": found.state.state,
        "integrity": found.state.integrity,
        "allowedOperations": [*allowed_operations(found.state)],
        "allowedActions": [*allowed_actions(found.state)],
        "refused": {name: msgspec.to_builtins(reason) for name, reason in refused_operations(found.state).items()},
    }
    return answer(value)


def set_plan(plane: Plane, item: str, body: Body) -> Response:
    """Say where the item's machine is and where it shall run."""
    asked = decode(body, _PlanBody)
    _check_sites(plane, asked.home, asked.cloud)
    record = plane.items.get(item)
    with plane.vault.database.write() as session:
        lifecycle_of(plane).items.plan(session, record.id, asked.home, asked.cloud)
    return nothing()


def change_agent(plane: Plane, item: str, body: Body) -> Response:
    """Another agent sends when a side is active, such as one that was registered on the machine in the cloud."""
    asked = decode(body, _AgentBody)
    set_agent(plane, item, asked.side, asked.agent)
    return nothing()


def protect(plane: Plane, request: Request, caller: CallerParam, item: str, body: Body) -> Response:
    """Begin to protect a machine whose both sides are told; the name in the path becomes the item's name."""
    asked = decode(body, _ProtectBody)
    _check_sites(plane, asked.home, asked.cloud)
    wanted = NewItem(asked.agent, asked.policy, item, process_server=name_in(asked.processServer), disks=asked.disks)
    made, job = begin_protect(plane, wanted, asked.home, asked.cloud, caller.name)
    return accepted(plane, request, Paths(plane.vault).item(made), job)


def show_integrity(plane: Plane, item: str) -> Response:
    """The newest integrity report, its signature checked, and the signed bytes that prove it (hexadecimal). While
    there is none though a move waits for it: why.
    """
    found = lifecycle_of(plane).items.load(ItemId(plane.items.get(item).id))
    proved = plane.jobs.newest_detail(w.PLANNED, found.id, "prove")
    waits = found.state.integrity is Integrity.PENDING or not found.report
    if waits and found.state.integrity is Integrity.NONE:
        raise ResourceUnknown(kind="integrity report of", name=found.name)
    report = None if waits else read_report(plane.vault.identity.trust, found.report)
    value = {
        "state": found.state.integrity,
        "passed": report.passed if report else None,
        "report": msgspec.to_builtins(report),
        "signed": "" if waits else found.report.hex(),
        "code": proved.get("code", "") if waits else "",
        "reason": proved.get("reason", "") if waits else "",
    }
    return answer(value)


def list_sites(plane: Plane) -> Response:
    """The sites, without their tokens."""
    names = lifecycle_of(plane).book.names()
    return answer({"value": [{"name": name, "kind": kind} for name, kind in sorted(names.items())]})


def set_site(plane: Plane, site: str, body: Body) -> Response:
    """Add a site, or say where it answers now. The token is stored sealed and never shown."""
    asked = decode(body, _SiteBody)
    lifecycle_of(plane).book.add(site, asked.kind, asked.address, asked.certificate, asked.token)
    return nothing()


_B: Final = VAULT + "/backhaulItems"

ROUTES: Final = (
    ApiRoute("POST", ITEM + "/reProtect", OPERATORS, reprotect),
    ApiRoute("POST", ITEM + "/plannedFailover", OPERATORS, planned_failover),
    ApiRoute("POST", ITEM + "/unplannedFailover", OPERATORS, unplanned_failover),
    ApiRoute("POST", ITEM + "/applyRecoveryPoint", OPERATORS, apply_point),
    ApiRoute("POST", ITEM + "/failoverCommit", OPERATORS, commit),
    ApiRoute("POST", ITEM + "/failoverCancel", OPERATORS, cancel),
    ApiRoute("PUT", _B + "/{item}", OPERATORS, protect),
    ApiRoute("POST", _B + "/actions/{kind}", OPERATORS, act_on_many),
    ApiRoute("POST", _B + "/{item}/actions/{kind}", OPERATORS, act),
    ApiRoute("GET", _B + "/{item}/plan", READERS, show_plan),
    ApiRoute("PUT", _B + "/{item}/plan", ADMINS, set_plan),
    ApiRoute("PUT", _B + "/{item}/agent", OPERATORS, change_agent),
    ApiRoute("GET", _B + "/{item}/integrity", READERS, show_integrity),
    ApiRoute("GET", VAULT + "/backhaulNetworks/{network}/items", READERS, show_network),
    ApiRoute("GET", VAULT + "/backhaulJobs/{job}/children", READERS, show_children),
    ApiRoute("GET", VAULT + "/backhaulSites", READERS, list_sites),
    ApiRoute("PUT", VAULT + "/backhaulSites/{site}", ADMINS, set_site),
)
"""For the route table."""
