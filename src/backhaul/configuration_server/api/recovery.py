"""Site Recovery's resources: fabrics, containers, items, points, policies, jobs, events, vault health."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

import msgspec
from fastapi import Query, Request, Response
from sqlalchemy import select

from backhaul.configuration_server.api.bodies import Body, Plane, answer, decode, nothing
from backhaul.configuration_server.api.filters import filtered
from backhaul.configuration_server.errors import BodyWrong, ResourceUnknown
from backhaul.configuration_server.guarded import CallerParam, error_body
from backhaul.configuration_server.items import NewItem, state_of
from backhaul.configuration_server.jobs import ACTIVE, failures_of
from backhaul.configuration_server.lifecycle.ending import ENDING
from backhaul.configuration_server.plane import ControlPlane
from backhaul.configuration_server.records import EventRecord, JobRecord
from backhaul.configuration_server.shapes import activity, fabric
from backhaul.configuration_server.shapes.item import item_shape, recovery_point
from backhaul.configuration_server.shapes.paths import CONTAINER, Paths, name_in, resource
from backhaul.recovery.policies import ReplicationPolicy
from backhaul.replication.errors import BackhaulError
from backhaul.replication.values import Role

RETRY_AFTER_S: Final = 2
"""Jobs of this server take seconds; Azure's clients would wait 30 s without this."""

MAX_EVENTS: Final = 1000

Filter = Annotated[str, Query(alias="$filter")]


def _known_fabric(plane: ControlPlane, name: str, container: str = CONTAINER) -> None:
    if name.lower() != Paths(plane.vault).fabric_name.lower():
        raise ResourceUnknown(kind="fabric", name=name)
    if container.lower() != CONTAINER:
        raise ResourceUnknown(kind="protection container", name=container)


def _page(values: list[Any]) -> Response:
    return answer({"value": values, "nextLink": None})


def show_vault(plane: Plane) -> Response:
    """The vault."""
    record = plane.vault.record
    properties = {"provisioningState": "Succeeded", "backhaul": {"id": record.id, "term": record.term}}
    shown = resource(plane.vault.path, properties)
    return answer(shown | {"type": "Microsoft.RecoveryServices/vaults", "location": "home", "name": record.name})


def list_fabrics(plane: Plane) -> Response:
    """The one fabric."""
    return _page([fabric.fabric(plane)])


def show_fabric(plane: Plane, fabric_name: str) -> Response:
    """The fabric."""
    _known_fabric(plane, fabric_name)
    return answer(fabric.fabric(plane))


def list_providers(plane: Plane, fabric_name: str = "") -> Response:
    """The one provider."""
    if fabric_name:
        _known_fabric(plane, fabric_name)
    return _page([fabric.provider(plane)])


def show_provider(plane: Plane, fabric_name: str, provider: str) -> Response:
    """The provider."""
    _known_fabric(plane, fabric_name)
    if provider.lower() != Paths(plane.vault).fabric_name.lower():
        raise ResourceUnknown(kind="provider", name=provider)
    return answer(fabric.provider(plane))


def list_containers(plane: Plane, fabric_name: str = "") -> Response:
    """The one container."""
    if fabric_name:
        _known_fabric(plane, fabric_name)
    return _page([fabric.container(plane)])


def show_container(plane: Plane, fabric_name: str, container: str) -> Response:
    """The container."""
    _known_fabric(plane, fabric_name, container)
    return answer(fabric.container(plane))


def list_protectable(plane: Plane, fabric_name: str, container: str) -> Response:
    """Machines with an agent."""
    _known_fabric(plane, fabric_name, container)
    return _page([fabric.protectable(plane, agent) for agent in plane.registry.list(Role.AGENT)])


def show_protectable(plane: Plane, fabric_name: str, container: str, machine: str) -> Response:
    """A machine with an agent."""
    _known_fabric(plane, fabric_name, container)
    return answer(fabric.protectable(plane, plane.registry.get(machine, Role.AGENT)))


async def list_items(plane: Plane, fabric_name: str = "", container: str = CONTAINER, wanted: Filter = "") -> Response:
    """Protected items, each as it is now."""
    if fabric_name:
        _known_fabric(plane, fabric_name, container)
    fields = {"Name": lambda r: r.name, "ProtectionState": lambda r: state_of(r).state, "Policy": lambda r: r.policy}
    records = filtered(await asyncio.to_thread(plane.items.list), wanted, fields)
    return _page(await asyncio.gather(*(item_shape(plane, record) for record in records)))


async def show_item(plane: Plane, fabric_name: str, container: str, item: str) -> Response:
    """One item as it is now."""
    _known_fabric(plane, fabric_name, container)
    return answer(await item_shape(plane, await asyncio.to_thread(plane.items.get, item), alone=True))


class _ProtectDetails(msgspec.Struct, frozen=True):
    instanceType: str = ""  # noqa: N815 - Azure's names
    masterTargetId: str = ""  # noqa: N815
    processServerId: str = ""  # noqa: N815
    disksToInclude: tuple[Any, ...] = ()  # noqa: N815


class _ProtectProperties(msgspec.Struct):
    protectableItemId: str  # noqa: N815
    policyId: str  # noqa: N815
    providerSpecificDetails: _ProtectDetails = _ProtectDetails()  # noqa: N815


class _ProtectBody(msgspec.Struct):
    properties: _ProtectProperties


def protect_item(
    plane: Plane, caller: CallerParam, request: Request, fabric_name: str, container: str, item: str, body: Body
) -> Response:
    """Begin to protect a machine; the name in the path becomes the item's name."""
    _known_fabric(plane, fabric_name, container)
    asked = decode(body, _ProtectBody).properties
    details = asked.providerSpecificDetails
    if details.instanceType not in ("", "InMageAzureV2"):
        raise BodyWrong(reason=f"a {details.instanceType} item cannot be made here; InMageAzureV2 can")
    wanted = NewItem(
        agent=name_in(asked.protectableItemId),
        policy=name_in(asked.policyId),
        name=item,
        target=details.masterTargetId,
        process_server=details.processServerId,
        disks=tuple(str(d.get("diskId", "") if isinstance(d, dict) else d) for d in details.disksToInclude),
    )
    record, job = plane.protect(wanted, caller.name)
    return accepted(plane, request, Paths(plane.vault).item(record.id), job)


def accepted(plane: ControlPlane, request: Request, subject: str, job: str) -> Response:
    """202 with both headers that Azure's clients poll, under the host that this client knows."""
    version = "?api-version=2025-08-01"
    host = str(request.base_url).rstrip("/")
    headers = {
        "azure-asyncoperation": f"{host}{Paths(plane.vault).operation(job)}{version}",
        "location": f"{host}{subject}/operationresults/{job}{version}",
        "retry-after": str(RETRY_AFTER_S),
    }
    return nothing(202, headers)


def show_operation(plane: Plane, operation: str) -> Response:
    """How far a long-running operation is."""
    record = plane.jobs.get(operation)
    headers = {"retry-after": str(RETRY_AFTER_S)} if record.state in ACTIVE else None
    return answer(activity.operation_shape(record), headers=headers)


async def item_result(plane: Plane, fabric_name: str, container: str, item: str, operation: str) -> Response:
    """The item, when its operation is over."""
    _known_fabric(plane, fabric_name, container)
    record = await asyncio.to_thread(plane.jobs.get, operation)
    if record.state in ACTIVE:
        return nothing(202, {"retry-after": str(RETRY_AFTER_S)})
    if record.state != "Succeeded":
        failure = failures_of(record)[0]
        body = error_body(BackhaulError())
        body["error"] |= {"code": failure.code, "message": failure.message}
        return answer(body, 409)
    if record.kind in ENDING:
        return nothing()  # there is no item any more
    return answer(await item_shape(plane, await asyncio.to_thread(plane.items.get, item)))


async def list_points(plane: Plane, fabric_name: str, container: str, item: str) -> Response:
    """The item's recovery points, as its target lists them now, newest first."""
    _known_fabric(plane, fabric_name, container)
    record = await asyncio.to_thread(plane.items.get, item)
    return _page([recovery_point(plane, record, point) for point in reversed(await plane.points(record))])


async def show_point(plane: Plane, fabric_name: str, container: str, item: str, point: str) -> Response:
    """One recovery point."""
    _known_fabric(plane, fabric_name, container)
    record = await asyncio.to_thread(plane.items.get, item)
    for known in await plane.points(record):
        if str(known.number) == point:
            return answer(recovery_point(plane, record, known))
    raise ResourceUnknown(kind="recovery point", name=point)


def list_policies(plane: Plane) -> Response:
    """Every policy."""
    return _page([activity.policy_shape(plane, policy) for policy in plane.policies.list()])


def show_policy(plane: Plane, policy: str) -> Response:
    """One policy."""
    return answer(activity.policy_shape(plane, plane.items.policy(policy)))


class _PolicyInput(msgspec.Struct, frozen=True):
    instanceType: str = "InMageAzureV2"  # noqa: N815
    recoveryPointThresholdInMinutes: int = 15  # noqa: N815
    recoveryPointHistory: int = 1440  # noqa: N815
    crashConsistentFrequencyInMinutes: int = 1  # noqa: N815
    appConsistentFrequencyInMinutes: int = 0  # noqa: N815


class _PolicyProperties(msgspec.Struct):
    providerSpecificInput: _PolicyInput | None = None  # noqa: N815
    backhaul: dict[str, Any] | None = None


class _PolicyBody(msgspec.Struct):
    properties: _PolicyProperties


def create_policy(plane: Plane, policy: str, body: Body) -> Response:
    """Save a new policy, in Site Recovery's minutes or in our own words."""
    asked = decode(body, _PolicyBody).properties
    if asked.backhaul is not None:
        try:
            made = msgspec.convert(asked.backhaul | {"name": policy}, ReplicationPolicy)
        except msgspec.ValidationError as error:
            raise BodyWrong(reason=str(error)) from error
    else:
        minutes = asked.providerSpecificInput or _PolicyInput()
        made = ReplicationPolicy(
            policy,
            point_interval_s=60.0 * minutes.crashConsistentFrequencyInMinutes,
            retention_s=60.0 * minutes.recoveryPointHistory,
            rpo_threshold_s=60.0 * minutes.recoveryPointThresholdInMinutes,
            app_interval_s=60.0 * minutes.appConsistentFrequencyInMinutes,
        )
    plane.policies.create(made)
    return answer(activity.policy_shape(plane, made))


def delete_policy(plane: Plane, policy: str) -> Response:
    """Remove a policy that nothing uses."""
    plane.policies.delete(policy)
    return nothing()


def list_jobs(plane: Plane, wanted: Filter = "") -> Response:
    """Jobs, newest first."""
    fields = {
        "State": lambda r: r.state,
        "JobName": lambda r: r.kind,
        "ScenarioName": lambda r: r.kind,
        "AffectedObjectId": lambda r: r.subject,
        "TargetObjectId": lambda r: r.subject,
        "TargetObjectName": lambda r: r.subject_name,
    }
    return _page([activity.job_shape(plane, record) for record in filtered(plane.jobs.list(), wanted, fields)])


def show_job(plane: Plane, job: str) -> Response:
    """One job."""
    record: JobRecord = plane.jobs.get(job)
    return answer(activity.job_shape(plane, record))


def list_events(plane: Plane, wanted: Filter = "") -> Response:
    """The newest events, newest first."""
    fields = {
        "Severity": lambda r: r.severity,
        "EventType": lambda r: r.kind,
        "EventCode": lambda r: r.code,
        "AffectedObjectFriendlyName": lambda r: r.subject,
    }
    with plane.vault.database.read() as session:
        newest = select(EventRecord).order_by(EventRecord.number.desc()).limit(MAX_EVENTS)
        records = session.scalars(newest).all()
    return _page([activity.event_shape(plane, record) for record in filtered(records, wanted, fields)])


def show_event(plane: Plane, event: str) -> Response:
    """One event."""
    with plane.vault.database.read() as session:
        record = session.get(EventRecord, int(event)) if event.isascii() and event.isdigit() else None
    if record is None:
        raise ResourceUnknown(kind="event", name=event)
    return answer(activity.event_shape(plane, record))


def show_vault_health(plane: Plane) -> Response:
    """How many of what are how healthy."""
    return answer(activity.vault_health(plane))
