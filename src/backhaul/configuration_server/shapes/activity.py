"""Jobs, operations, events, policies and the vault's health."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import msgspec

from backhaul.configuration_server.jobs import ACTIVE, failures_of, tasks_of
from backhaul.configuration_server.plane import ControlPlane
from backhaul.configuration_server.records import EventRecord, JobRecord
from backhaul.configuration_server.shapes.paths import Paths, resource
from backhaul.configuration_server.shapes.times import utc_text
from backhaul.recovery.policies import ReplicationPolicy

MINUTE_S: Final = 60
_OPERATION_STATES: Final = {"NotStarted": "InProgress", "Cancelled": "Canceled"}


def job_shape(plane: ControlPlane, record: JobRecord) -> dict[str, Any]:
    """A job with its steps as tasks."""
    errors = [
        {
            "errorLevel": "Error",
            "creationTime": utc_text(record.ended_ns),
            "serviceErrorDetails": {
                "code": failure.code,
                "message": failure.message,
                "recommendedAction": failure.fix,
                "activityId": record.id,
            },
        }
        for failure in failures_of(record)
    ]
    tasks: list[dict[str, Any]] = [
        {
            "taskId": task.name,
            "name": task.name,
            "friendlyName": task.title,
            "state": task.state,
            "stateDescription": task.state,
            "startTime": utc_text(task.started_ns),
            "endTime": utc_text(task.ended_ns),
            "allowedActions": [],
            "backhaul": msgspec.json.decode(task.detail or "{}"),
        }
        for task in tasks_of(record)
    ]
    properties = {
        "activityId": record.id,
        "scenarioName": record.kind,
        "friendlyName": f"{record.kind} {record.subject_name}",
        "state": record.state,
        "stateDescription": record.state,
        "tasks": tasks,
        "errors": errors,
        "startTime": utc_text(record.started_ns or record.created_ns),
        "endTime": utc_text(record.ended_ns),
        "allowedActions": [],
        "targetObjectId": record.subject,
        "targetObjectName": record.subject_name,
        "targetInstanceType": "ProtectionEntity",
        "customDetails": {"instanceType": "AsrJobDetails", "affectedObjectDetails": {"user": record.account}},
    }
    return resource(Paths(plane.vault).job(record.id), properties)


def operation_shape(record: JobRecord) -> dict[str, Any]:
    """The status of a long-running operation."""
    failures = failures_of(record)
    tasks = tasks_of(record)
    done = sum(task.state == "Succeeded" for task in tasks)
    return {
        "id": None,
        "name": record.id,
        "status": _OPERATION_STATES.get(record.state, record.state),
        "startTime": utc_text(record.created_ns),
        "endTime": utc_text(record.ended_ns),
        "percentComplete": 100.0 * done / max(1, len(tasks)) if record.state in ACTIVE else 100.0,
        "properties": None,
        "error": {"code": failures[0].code, "message": failures[0].message} if failures else None,
    }


def event_shape(plane: ControlPlane, record: EventRecord) -> dict[str, Any]:
    """An event."""
    properties: dict[str, Any] = {
        "eventCode": record.code,
        "description": record.text,
        "eventType": record.kind,
        "affectedObjectFriendlyName": record.subject,
        "affectedObjectCorrelationId": record.subject,
        "severity": record.severity,
        "timeOfOccurrence": utc_text(record.at_ns),
        "fabricId": Paths(plane.vault).fabric,
        "healthErrors": [],
    }
    return resource(f"{plane.vault.path}/replicationEvents/{record.number}", properties)


def policy_shape(plane: ControlPlane, policy: ReplicationPolicy) -> dict[str, Any]:
    """A policy; what Site Recovery's minutes cannot say is under `backhaul`."""
    details = {
        "instanceType": "InMageAzureV2",
        "recoveryPointThresholdInMinutes": round(policy.rpo_threshold_s / MINUTE_S),
        "recoveryPointHistory": round(policy.retention_s / MINUTE_S),
        "crashConsistentFrequencyInMinutes": round(policy.point_interval_s / MINUTE_S),
        "appConsistentFrequencyInMinutes": round(policy.app_interval_s / MINUTE_S),
        "multiVmSyncStatus": "Disabled",
    }
    properties = {
        "friendlyName": policy.name,
        "providerSpecificDetails": details,
        "backhaul": msgspec.to_builtins(policy),
    }
    return resource(Paths(plane.vault).policy(policy.name), properties)


def vault_health(plane: ControlPlane) -> dict[str, Any]:
    """How many of what are how healthy."""
    servers = Counter(plane.server_health(server).health for server in plane.registry.list())
    items = Counter()  # type: Counter[str]
    for record in plane.items.list():
        live = plane.live.items.get(record.id)
        items[plane.item_health(record, plane.rpo(live.status if live else None)).health] += 1
    properties: dict[str, Any] = {
        "vaultErrors": [],
        "protectedItemsHealth": _summary(items),
        "fabricsHealth": _summary(servers),
        "containersHealth": {"resourceCount": 1, "issues": [], "categorizedResourceCounts": {"Healthy": 1}},
    }
    return resource(f"{plane.vault.path}/replicationVaultHealth/default", properties)


def _summary(counted: Counter[Any]) -> dict[str, Any]:
    return {
        "resourceCount": sum(counted.values()),
        "issues": [],
        "categorizedResourceCounts": {str(health): count for health, count in counted.items()},
    }
