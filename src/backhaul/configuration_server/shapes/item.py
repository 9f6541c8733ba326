"""A protected item: InMageAzureV2 towards the cloud, InMage towards home. It begins with which copy is true."""

from __future__ import annotations

from typing import Any

import msgspec

from backhaul.configuration_server.items import disks_of, is_reverse, side_of, state_of, target_of
from backhaul.configuration_server.plane import ControlPlane
from backhaul.configuration_server.records import ItemRecord
from backhaul.configuration_server.shapes.frozen import frozen_share
from backhaul.configuration_server.shapes.health import health_errors, item_health
from backhaul.configuration_server.shapes.paths import CONTAINER, Paths, resource
from backhaul.configuration_server.shapes.times import utc_text
from backhaul.recovery.health import Assessment
from backhaul.recovery.item import MEANING, Side
from backhaul.recovery.rpo import Rpo
from backhaul.recovery.states import allowed_actions, allowed_operations, refused_operations
from backhaul.recovery.truth import truth
from backhaul.replication.control import DiskProgress, ItemReport, ItemStatus, PointStatus, SourceDisk
from backhaul.replication.errors import BackhaulError
from backhaul.replication.units import MiB


async def item_shape(plane: ControlPlane, record: ItemRecord, *, alone: bool = False) -> dict[str, Any]:
    """The item as it is now: its target is asked. `alone`: also for what takes all of its points to tell."""
    status = await plane.target_status(record)
    found = plane.shown_rpo(record, status)
    health = plane.item_health(record, found)
    properties = _properties(plane, record, status, found, health)
    if alone:
        properties["backhaul"]["frozen"] = await _frozen(plane, record) if status is not None else None
    return resource(Paths(plane.vault).item(record.id), properties)


async def _frozen(plane: ControlPlane, record: ItemRecord) -> dict[str, Any] | None:
    try:
        share = frozen_share(await plane.points(record))
    except BackhaulError:
        return None  # a target that is silent shows as such elsewhere in the view
    return None if share is None else dict(msgspec.to_builtins(share))


def _properties(
    plane: ControlPlane, record: ItemRecord, status: ItemStatus | None, found: Rpo, health: Assessment
) -> dict[str, Any]:
    state, paths = state_of(record), Paths(plane.vault)
    newest_ns = status.newest_point.barrier_ns if status and status.newest_point else None
    true = truth(state, newest_ns, plane.vault.clock.wall_ns())
    return {
        "truth": msgspec.to_builtins(true),
        "friendlyName": record.name,
        "protectedItemType": "VMwareVirtualMachine",
        "protectableItemId": paths.protectable(record.agent),
        "recoveryServicesProviderId": paths.provider,
        "primaryFabricFriendlyName": "home",
        "primaryFabricProvider": "VMware",
        "recoveryFabricFriendlyName": "cloud",
        "recoveryFabricId": "Microsoft Azure",
        "primaryProtectionContainerFriendlyName": CONTAINER,
        "recoveryProtectionContainerFriendlyName": "cloud",
        "protectionState": state.state,
        "protectionStateDescription": MEANING[state.state],
        "activeLocation": "Primary" if state.active_side is Side.HOME else "Recovery",
        "testFailoverState": "None",
        "allowedOperations": list(allowed_operations(state)),
        "refusedOperations": {op: msgspec.to_builtins(why) for op, why in refused_operations(state).items()},
        "allowedActions": list(allowed_actions(state)),
        "replicationHealth": item_health(health),
        "failoverHealth": item_health(health),
        "healthErrors": health_errors(health.alerts),
        "policyId": paths.policy(record.policy),
        "policyFriendlyName": record.policy,
        "providerSpecificDetails": _details(plane, record, status, found),
        "backhaul": _own(plane, record, status, found),
    }


def _details(plane: ControlPlane, record: ItemRecord, status: ItemStatus | None, found: Rpo) -> dict[str, Any]:
    state = state_of(record)
    live = plane.live.items.get(record.id)
    report = live.report if live else None
    reverse = is_reverse(state)
    megabytes = ("sourceDataInMB", "psDataInMB") if reverse else ("sourceDataInMegaBytes", "psDataInMegaBytes")
    known = {progress.index: progress for progress in report.disks} if report else {}
    disks = [_disk(disk, known.get(disk.identity.index), found, megabytes) for disk in disks_of(record)]
    details = {
        "instanceType": "InMage" if reverse else "InMageAzureV2",
        "vmId": record.machine,
        "protectionStage": state.state,
        "vmProtectionState": state.state,
        "vmProtectionStateDescription": MEANING[state.state],
        "rpoInSeconds": int(found.seconds) if found.seconds is not None else None,
        "lastRpoCalculatedTime": utc_text(plane.vault.clock.wall_ns()),
        "processServerId": record.process_server,
        "masterTargetId": target_of(record),
        "protectedDisks": disks,
        "multiVmSyncStatus": "Disabled",
        "osType": "Linux",
        "validationErrors": [],
    }
    if reverse:
        return details | {"activeSiteType": "Azure" if state.active_side is Side.CLOUD else "OnPrem"}
    newest = status.newest_point if status else None
    return details | {"lastRecoveryPointReceived": utc_text(newest.barrier_ns) if newest else None}


def _disk(disk: SourceDisk, progress: DiskProgress | None, found: Rpo, names: tuple[str, str]) -> dict[str, Any]:
    size = disk.identity.size
    compared = progress.compared if progress else 0
    return {
        "diskId": disk.identity.name,
        "diskName": disk.path,
        "diskCapacityInBytes": size,
        "rpoInSeconds": int(found.seconds) if found.seconds is not None else None,
        "resyncProgressPercentage": min(100, 100 * compared // size) if size else 100,
        "resyncProcessedBytes": compared,
        "resyncTotalTransferredBytes": progress.sent if progress else 0,
        names[0]: (progress.differing if progress else 0) / MiB,
        names[1]: 0.0,
    }


def _own(plane: ControlPlane, record: ItemRecord, status: ItemStatus | None, found: Rpo) -> dict[str, Any]:
    """What Site Recovery's shape cannot say."""
    live = plane.live.items.get(record.id)
    report: ItemReport | None = live.report if live else None
    target = None
    if status is not None:
        target = {
            "fence": str(status.fence),
            "streamOpen": status.stream_open,
            "points": status.points,
            "newestPoint": point_shape(status.newest_point) if status.newest_point else None,
            "pins": status.pins,
            "journalBytes": status.journal_bytes,
            "journalLimitBytes": status.journal_limit_bytes,
            "waiting": status.waiting,
            "findings": list(status.findings),
        }
    return {
        "generation": state_of(record).generation,
        "rpo": msgspec.to_builtins(found),
        "home": msgspec.to_builtins(side_of(record, Side.HOME)),
        "cloud": msgspec.to_builtins(side_of(record, Side.CLOUD)),
        "agent": record.agent,
        "agentReport": msgspec.to_builtins(report) if report else None,
        "target": target,
    }


def point_shape(point: PointStatus) -> dict[str, Any]:
    """A recovery point in our own words."""
    return {
        "number": point.number,
        "time": utc_text(point.barrier_ns),
        "kind": point.kind,
        "consistency": point.consistency,
        "label": point.label,
        "final": point.final,
        "frozenMicroseconds": point.frozen_us,
        "bytes": point.bytes,
    }


def recovery_point(plane: ControlPlane, record: ItemRecord, point: PointStatus) -> dict[str, Any]:
    """A recovery point as Site Recovery shows it."""
    crash = point.consistency == "crash"
    details = {"instanceType": "InMageAzureV2", "isMultiVmSyncPoint": "No"}
    properties = {
        "recoveryPointTime": utc_text(point.barrier_ns),
        "recoveryPointType": "CrashConsistent" if crash else "AppConsistent",
        "providerSpecificDetails": None if is_reverse(state_of(record)) else details,
        "backhaul": point_shape(point),
    }
    return resource(f"{Paths(plane.vault).item(record.id)}/recoveryPoints/{point.number}", properties)
