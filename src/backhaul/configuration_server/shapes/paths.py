"""Resource ids below the vault. One fabric and one container: everything this configuration server looks after."""

from __future__ import annotations

from typing import Any, Final

from backhaul.configuration_server.vault import Vault

TYPE: Final = "Microsoft.RecoveryServices/vaults"
CONTAINER: Final = "home"

VAULT: Final = f"/subscriptions/{{subscription}}/resourceGroups/{{group}}/providers/{TYPE}/{{vault}}"
FABRIC: Final = VAULT + "/replicationFabrics/{fabric_name}"
CONTAINERS: Final = FABRIC + "/replicationProtectionContainers/{container}"
ITEM: Final = CONTAINERS + "/replicationProtectedItems/{item}"
"""Routes, with what a caller's path says in braces."""


class Paths:
    """Ids of one vault."""

    def __init__(self, vault: Vault) -> None:
        self.vault = vault.path
        self.fabric_name = vault.record.server_id
        self.fabric = f"{self.vault}/replicationFabrics/{self.fabric_name}"
        self.provider = f"{self.fabric}/replicationRecoveryServicesProviders/{self.fabric_name}"
        self.container = f"{self.fabric}/replicationProtectionContainers/{CONTAINER}"

    def item(self, item: str) -> str:
        """A protected item."""
        return f"{self.container}/replicationProtectedItems/{item}"

    def protectable(self, server: str) -> str:
        """A machine that could be protected."""
        return f"{self.container}/replicationProtectableItems/{server}"

    def policy(self, name: str) -> str:
        """A policy."""
        return f"{self.vault}/replicationPolicies/{name}"

    def job(self, job: str) -> str:
        """A job."""
        return f"{self.vault}/replicationJobs/{job}"

    def operation(self, job: str) -> str:
        """The status of a long-running operation."""
        return f"{self.vault}/replicationOperationStatus/{job}"


def name_in(path: str) -> str:
    """The last part of a resource's id, or the name alone: callers may give either."""
    return path.rstrip("/").rpartition("/")[2]


def resource(path: str, properties: dict[str, Any]) -> dict[str, Any]:
    """A resource of Azure Resource Manager; name and type follow from its id."""
    below = path.split("/vaults/", 1)[1].split("/")
    return {"id": path, "name": below[-1], "type": "/".join((TYPE, *below[1::2])), "properties": properties}
