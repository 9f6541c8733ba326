"""The vault as the command line sees it: one method per thing to be shown or done. Blocking."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import quote

from backhaul.client.errors import JobEnded, JobFailed
from backhaul.client.profile import Profile
from backhaul.client.transport import Transport

RUNNING: Final = ("NotStarted", "InProgress")
POLL_S: Final = 1.0

Resource = dict[str, Any]


class Vault:
    """One vault with a session."""

    def __init__(self, profile: Profile) -> None:
        self._transport = Transport(profile.server, profile.ca_pem, profile.token)
        self._path = profile.vault
        self._container_path = ""

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def _get(self, below: str, **query: str) -> Any:
        return self._transport.call("GET", f"{self._path}/{below}", query=query)

    def _list(self, below: str, **query: str) -> list[Resource]:
        rows: list[Resource] = self._get(below, **query)["value"]
        return rows

    def _container(self) -> str:
        if not self._container_path:
            self._container_path = str(self._list("replicationProtectionContainers")[0]["id"])
        return self._container_path

    def _item(self, item: str) -> str:
        return f"{self._container()}/replicationProtectedItems/{quote(item, safe='')}"

    # --- server -------------------------------------------------------------------------------------------------

    def passphrase(self) -> str:
        """The connection passphrase."""
        return str(self._get("backhaulPassphrase")["passphrase"])

    def rotate_passphrase(self) -> str:
        """A new connection passphrase."""
        return str(self._transport.call("POST", f"{self._path}/backhaulPassphrase/rotate")["passphrase"])

    def config(self) -> Resource:
        """The settings in force."""
        shown: Resource = self._get("backhaulConfig")
        return shown

    def servers(self, kind: str = "") -> list[Resource]:
        """Servers and agents; `kind`: processServers, masterTargets, agents."""
        return self._list("backhaulServers", kind=kind)

    def server(self, name: str) -> Resource:
        """One of them, by id or name."""
        shown: Resource = self._get(f"backhaulServers/{quote(name, safe='')}")
        return shown

    def doctor(self, name: str, *, item: bool) -> Resource:
        """The ladder of a server, or of an item."""
        walked: Resource = self._get(f"backhaulDoctor/{'items' if item else 'servers'}/{quote(name, safe='')}")
        return walked

    # --- items --------------------------------------------------------------------------------------------------

    def items(self) -> list[Resource]:
        """Every item, as it is now."""
        return self._list("replicationProtectedItems")

    def item(self, name: str) -> Resource:
        """One item, by id or name."""
        shown: Resource = self._transport.call("GET", self._item(name))
        return shown

    def protect(
        self, machine: str, policy: str, name: str, target: str, process_server: str, disks: Sequence[str]
    ) -> str:
        """Begin to protect a machine; id of the job."""
        container = self._container()
        details = {
            "instanceType": "InMageAzureV2",
            "masterTargetId": target,
            "processServerId": process_server,
            "disksToInclude": [{"diskId": disk} for disk in disks],
        }
        properties = {
            "protectableItemId": f"{container}/replicationProtectableItems/{quote(machine, safe='')}",
            "policyId": f"{self._path}/replicationPolicies/{quote(policy, safe='')}",
            "providerSpecificDetails": details,
        }
        return self._transport.begin("PUT", self._item(name or machine), {"properties": properties})

    def points(self, item: str) -> list[Resource]:
        """The item's recovery points, newest first."""
        rows: list[Resource] = self._transport.call("GET", f"{self._item(item)}/recoveryPoints")["value"]
        return rows

    def events(self) -> list[Resource]:
        """The newest events, newest first."""
        return self._list("replicationEvents")

    # --- policies -----------------------------------------------------------------------------------------------

    def policies(self) -> list[Resource]:
        """Every policy."""
        return self._list("replicationPolicies")

    def policy(self, name: str) -> Resource:
        """One policy."""
        shown: Resource = self._get(f"replicationPolicies/{quote(name, safe='')}")
        return shown

    def create_policy(self, name: str, values: Resource) -> Resource:
        """Save a new policy; `values` as in `ReplicationPolicy`, seconds."""
        path = f"{self._path}/replicationPolicies/{quote(name, safe='')}"
        made: Resource = self._transport.call("PUT", path, {"properties": {"backhaul": values}})
        return made

    # --- jobs ---------------------------------------------------------------------------------------------------

    def jobs(self) -> list[Resource]:
        """Jobs, newest first."""
        return self._list("replicationJobs")

    def job(self, job: str) -> Resource:
        """One job."""
        shown: Resource = self._get(f"replicationJobs/{quote(job, safe='')}")
        return shown

    def cancel_job(self, job: str) -> Resource:
        """Cancel what of a job has not begun; the job as it is then."""
        path = f"{self._path}/replicationJobs/{quote(job, safe='')}/cancel"
        shown: Resource = self._transport.call("POST", path)
        return shown

    def watch_job(self, job: str) -> Iterator[Resource]:
        """The job again and again, until it is over; the last one given is its end."""
        while True:
            shown = self.job(job)
            yield shown
            if shown["properties"]["state"] not in RUNNING:
                return
            time.sleep(POLL_S)

    def wait_job(self, job: str) -> Resource:
        """The job at its end. Raises JobFailed."""
        *_, shown = self.watch_job(job)
        if shown["properties"]["state"] == "Succeeded":
            return shown
        raise job_error(shown)


def job_error(job: Resource) -> JobFailed:
    """Why a job failed."""
    errors = job["properties"]["errors"]
    if not errors:
        return JobEnded(state=job["properties"]["state"])
    details = errors[0]["serviceErrorDetails"]
    return JobFailed(details["code"], details["message"], details["recommendedAction"])
