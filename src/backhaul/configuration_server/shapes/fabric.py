"""The fabric: this configuration server with its process servers and master targets (VMwareDetails)."""

from __future__ import annotations

import socket
from typing import Any

from backhaul import __version__
from backhaul.configuration_server.items import disks_of, target_of
from backhaul.configuration_server.plane import ControlPlane
from backhaul.configuration_server.records import ItemRecord, ServerRecord
from backhaul.configuration_server.registry import addresses_of, offer_of
from backhaul.configuration_server.shapes.health import health_errors
from backhaul.configuration_server.shapes.paths import CONTAINER, Paths, resource
from backhaul.configuration_server.shapes.times import utc_text
from backhaul.replication.values import Role


def fabric(plane: ControlPlane) -> dict[str, Any]:
    """The one fabric."""
    paths, items = Paths(plane.vault), plane.items.list()
    properties = {
        "friendlyName": "home",
        "bcdrState": "Valid",
        "internalIdentifier": plane.vault.record.id,
        "health": "Normal",
        "healthErrorDetails": [],
        "customDetails": _details(plane, items),
    }
    return resource(paths.fabric, properties)


def _details(plane: ControlPlane, items: Any) -> dict[str, Any]:
    relays = plane.registry.list(Role.PROCESS_SERVER)
    agents = plane.registry.list(Role.AGENT)
    return {
        "instanceType": "VMware",
        "processServers": [_process_server(plane, relay, items) for relay in relays],
        "masterTargetServers": [_master_target(plane, one, items) for one in plane.registry.list(Role.MASTER_TARGET)],
        "runAsAccounts": [],
        "processServerCount": str(len(relays)),
        "agentCount": str(len(agents)),
        "protectedServers": str(len(items)),
        "replicationPairCount": str(sum(len(disks_of(item)) for item in items)),
        "csServiceStatus": "Healthy",
        "hostName": socket.gethostname(),
        "agentVersion": __version__,
        "lastHeartbeat": utc_text(plane.vault.clock.wall_ns()),
        "versionStatus": "Supported",
        "sslCertExpiryRemainingDays": plane.vault.expires_days(),
    }


def _process_server(plane: ControlPlane, server: ServerRecord, items: Any) -> dict[str, Any]:
    health, live = plane.server_health(server), plane.live.server(server.id)
    mine = [item for item in items if item.process_server == server.id]
    value = _common(server) | {
        "friendlyName": server.name,
        "hostId": server.id,
        "machineCount": str(len(mine)),
        "replicationPairCount": str(sum(len(disks_of(item)) for item in mine)),
        "psServiceStatus": health.health,
        "health": health.health,
        "healthErrors": health_errors(health.alerts),
        "network": server.network,
        "registrationState": server.state,
    }
    status = live.status
    if status is None:
        return value
    return value | {
        "cpuLoad": f"{status.cpu_percent:.0f}%",
        "totalMemoryInBytes": status.memory_total,
        "availableMemoryInBytes": status.memory_available,
        "totalSpaceInBytes": status.space_total,
        "availableSpaceInBytes": status.space_free,
        "throughputUploadPendingDataInBytes": status.backlog_bytes,
        "throughputInBytes": int(status.out_bytes_per_s),
        "throughputInMBps": int(status.out_bytes_per_s / 1e6),
        "psStatsRefreshTime": utc_text(status.now_ns),
    }


def _master_target(plane: ControlPlane, server: ServerRecord, items: list[ItemRecord]) -> dict[str, Any]:
    health, status = plane.server_health(server), plane.live.server(server.id).status
    volumes = []
    if status is not None:
        volumes = [
            {
                "volumeName": "retention",
                "capacityInBytes": status.space_total,
                "freeSpaceInBytes": status.space_free,
                "thresholdPercentage": 20,
            }
        ]
    return _common(server) | {
        "name": server.name,
        "retentionVolumes": volumes,
        "dataStores": [{"symbolicName": "local", "type": "folder"}],
        "validationErrors": [],
        "health": health.health,
        "healthErrors": health_errors(health.alerts),
        "diskCount": sum(len(disks_of(item)) for item in items if target_of(item) == server.id),
    }


def _common(server: ServerRecord) -> dict[str, Any]:
    addresses = addresses_of(server)
    return {
        "id": server.id,
        "ipAddress": addresses[0].rpartition(":")[0].strip("[]") if addresses else "",
        "osType": "Linux",
        "agentVersion": server.version,
        "lastHeartbeat": utc_text(server.heartbeat_ns),
        "versionStatus": "Supported",
    }


def provider(plane: ControlPlane) -> dict[str, Any]:
    """The one provider: this server again, as Site Recovery wants it."""
    paths = Paths(plane.vault)
    properties = {
        "fabricType": "VMware",
        "fabricFriendlyName": "home",
        "friendlyName": "home",
        "providerVersion": __version__,
        "serverVersion": __version__,
        "connectionStatus": "Connected",
        "lastHeartBeat": utc_text(plane.vault.clock.wall_ns()),
        "protectedItemCount": len(plane.items.list()),
        "machineName": socket.gethostname(),
    }
    return resource(paths.provider, properties)


def container(plane: ControlPlane) -> dict[str, Any]:
    """The one protection container."""
    properties = {
        "fabricFriendlyName": "home",
        "friendlyName": CONTAINER,
        "fabricType": "VMware",
        "protectedItemCount": len(plane.items.list()),
        "pairingStatus": "Paired",
        "role": "Primary",
    }
    return resource(Paths(plane.vault).container, properties)


def protectable(plane: ControlPlane, agent: ServerRecord) -> dict[str, Any]:
    """A machine with an agent: protected, or what it could protect."""
    paths = Paths(plane.vault)
    item = next((item for item in plane.items.list() if item.agent == agent.id), None)
    offer = offer_of(agent)
    disks = (
        [{"id": disk.name, "name": disk.path, "capacityInBytes": disk.size} for disk in offer.disks] if offer else []
    )
    properties = {
        "friendlyName": agent.name,
        "protectionStatus": "Protected" if item else "Unprotected",
        "replicationProtectedItemId": paths.item(item.id) if item else None,
        "recoveryServicesProviderId": paths.provider,
        "protectionReadinessErrors": [] if offer else ["the agent has not said yet which disks there are"],
        "supportedReplicationProviders": ["InMageAzureV2"],
        "customDetails": {
            "instanceType": "VMwareVirtualMachine",
            "agentInstalled": "True",
            "agentVersion": agent.version,
            "diskDetails": disks,
            "machineId": agent.machine,
        },
    }
    return resource(paths.protectable(agent.id), properties)
