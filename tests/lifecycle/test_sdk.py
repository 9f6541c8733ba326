"""The item's way round by Microsoft's own client, unmodified, and each change as the command line shows it.

Meanwhile every secret that the jobs use, the sites' tokens first, is looked for wherever it must not be.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError
from azure.mgmt.recoveryservicessiterecovery import SiteRecoveryManagementClient
from azure.mgmt.recoveryservicessiterecovery import models as az

from backhaul.client.lifecycle import Lifecycle
from backhaul.configuration_server.occupancy import running_in
from backhaul.replication.ports import RealFiles
from configuration_server.live import LiveServer, until
from configuration_server.searched import forms
from lifecycle.real_sites import RealSite
from lifecycle.served import add_servers, agent, protect, registered, server, sites, state, tell_sites
from lifecycle.test_served import machine_at_home

__all__ = ["server", "sites"]


class Sdk:
    """The client with the item it moves."""

    def __init__(self, client: Any, group: str, vault: str) -> None:
        self.client, self._vault = client.replication_protected_items, (group, vault)
        (fabric,) = client.replication_fabrics.list(*self._vault)
        (container,) = client.replication_protection_containers.list(*self._vault)
        (item,) = self.client.list_by_replication_protection_containers(*self._vault, fabric.name, container.name)
        self._item = (*self._vault, fabric.name, container.name, item.name)
        self._jobs = client.replication_jobs

    def get(self) -> Any:
        """The item."""
        return self.client.get(*self._item)

    def run(self, verb: str, *body: Any) -> str:
        """Begin an operation, and poll it as the client polls; the state it led to."""
        made = getattr(self.client, f"begin_{verb}")(*self._item, *body).result()
        assert made.name == self._item[-1]
        return str(made.properties.protection_state)

    def refused(self, verb: str, *body: Any) -> str:
        """Why an operation's job fails at its checks."""
        with pytest.raises(HttpResponseError) as failure:
            self.run(verb, *body)
        assert failure.value.error is not None
        assert failure.value.error.code == "BH-CHECKS-FAILED"
        return str(failure.value.error.message)

    def jobs(self) -> list[tuple[str, str]]:
        """Kinds and states of all jobs, newest first."""
        return [
            (job.properties.scenario_name, job.properties.state) for job in self._jobs.list(*self._vault, filter="")
        ]


@contextmanager
def sdk_of(server: LiveServer) -> Iterator[Sdk]:
    """Microsoft's client against the live server."""
    profile, ca = server.profile, server.folder / "sdk-ca.pem"
    assert profile is not None
    ca.write_text(server.roots)

    class Credential:
        def get_token(self, *scopes: str, **options: object) -> AccessToken:
            assert profile is not None
            return AccessToken(profile.token, int(time.time()) + 3600)

    parts = profile.vault.split("/")
    with SiteRecoveryManagementClient(
        Credential(), parts[2], base_url=server.server, polling_interval=0.2, connection_verify=str(ca),
        credential_scopes=["https://localhost/.default"],
    ) as client:  # fmt: skip
        yield Sdk(client, parts[4], parts[8])


def shown(server: LiveServer, *command: str) -> Any:
    """What the command line prints as JSON."""
    done = server.command(*command, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def seen(server: LiveServer, kind: str) -> dict[str, Any]:
    """The item by `item show`, once `job list` says that its newest job was of this kind and succeeded."""
    newest = shown(server, "job", "list")[0]["properties"]
    assert (newest["scenarioName"], newest["targetObjectName"], newest["state"]) == (kind, "web", "Succeeded")
    item: dict[str, Any] = shown(server, "item", "show", "web")["properties"]
    assert next(iter(item)) == "truth", "a view begins with which copy is true"
    return item


def protected(server: LiveServer, sites: dict[str, RealSite]) -> tuple[dict[str, str], list[str]]:
    """A machine at home that is protected; ids of the servers, and where its disks lie."""
    ids = add_servers(server)
    machine, disks, paths = machine_at_home(sites["home"])
    agent(server, "agent-home", machine.id, "", paths)
    server.vault().create_policy("fast", {"point_interval_s": 1.0})
    assert server.profile is not None
    with Lifecycle(server.profile) as lifecycle:
        tell_sites(lifecycle, sites)
        protect(server, lifecycle, machine, disks, "fast", ids)
    until(lambda: state(server) == "protected")
    return ids, paths


def running(site: RealSite) -> list[str]:
    """Ids of a site's machines that run."""
    assert site.client is not None
    return [one.id for one in site.client.machines() if one.power == "running"]


def cloud_agent(server: LiveServer, cloud: RealSite) -> list[str]:
    """The machine in the cloud wakes up with its agent; where its disks lie."""
    assert server.profile is not None
    assert cloud.client is not None
    client = cloud.client
    with Lifecycle(server.profile) as lifecycle:
        place = lifecycle.plan("web")["cloud"]
        holder = f"machine:{place['machine']}"
        paths = [client.attach_disk(disk, holder, token=f"own-{disk}").path for disk in place["disks"]]
        agent(server, "agent-cloud", place["machine"], "cloud-net", paths)
        until(lambda: registered(server, "agents", "agent-cloud"))
        lifecycle.set_agent("web", "cloud", "agent-cloud")
    return paths


# --- secrets ----------------------------------------------------------------------------------------------------------


def looked_through(server: LiveServer) -> dict[str, bytes]:
    """Every place of the server's side where a secret must not be: files, arguments, environments."""
    assert server.process is not None
    pids = {server.process.pid, *(member.pid for member in server.members)}
    for folder in ("process-server", "master-target"):
        found = running_in(RealFiles(), server.data_dir / folder)
        assert found is not None
        pids.add(found.pid)
    given = {server.profile_path, server.folder / "passphrase"}  # the operator's own
    places = {
        str(path): path.read_bytes()
        for path in server.folder.rglob("*")
        if path.is_file() and path not in given and "disks" not in path.parts and path.name != "sdk-ca.pem"
    }
    return places | {
        f"{what} of {pid}": Path(f"/proc/{pid}/{what}").read_bytes() for pid in pids for what in ("cmdline", "environ")
    }


def assert_nowhere(server: LiveServer, secrets: dict[str, bytes]) -> None:
    """None of the secrets is anywhere in clear; the places are those where they would be."""
    places = looked_through(server)
    for name in ("backhaul.db", "server.log", "service.log", "endpoint.json"):
        assert [place for place in places if place.endswith(f"/{name}")], name
    for place, content in places.items():
        for name, secret in secrets.items():
            assert not [form for form in forms(secret) if form in content], (name, place)


# --- the way round ----------------------------------------------------------------------------------------------------


def home_contents(paths: list[str]) -> list[bytes]:
    return [Path(path).read_bytes() for path in paths]


def test_the_sdk_moves_an_item_there_and_back(server: LiveServer, sites: dict[str, RealSite]) -> None:
    ids, paths = protected(server, sites)
    assert server.profile is not None
    secrets = {"session": server.profile.token.encode()} | {name: f"token-{name}".encode() for name in sites}
    written = home_contents(paths)
    with sdk_of(server) as sdk:
        assert "BH-ITEM-STATE" in sdk.refused("failover_commit")
        over_and_back_by_cancel(sdk, server, sites)
        assert home_contents(paths) == written
        over_for_good(sdk, server, sites)
        in_cloud = cloud_agent(server, sites["cloud"])
        assert home_contents(in_cloud) == written
        home_by_the_classic_verbs(sdk, server, sites, ids, lambda: assert_nowhere(server, secrets))
        assert home_contents(paths) == home_contents(in_cloud) == written
        kinds = [kind for kind, _ in sdk.jobs()]
    assert kinds == [job["properties"]["scenarioName"] for job in shown(server, "job", "list")]


def over_and_back_by_cancel(sdk: Sdk, server: LiveServer, sites: dict[str, RealSite]) -> None:
    planned = az.PlannedFailoverInput(
        properties=az.PlannedFailoverInputProperties(failover_direction="PrimaryToRecovery")
    )
    assert sdk.run("planned_failover", planned) == "failed-over"
    item = seen(server, "PlannedFailover")
    assert (item["truth"]["authoritative"], item["backhaul"]["generation"]) == ("cloud", 2)
    assert (len(running(sites["home"])), len(running(sites["cloud"]))) == (0, 1)
    assert sdk.run("failover_cancel") in ("protected", "verifying"), "its agent may be comparing by now"
    until(lambda: sdk.get().properties.protection_state == "protected")
    item = seen(server, "CancelFailover")
    assert (item["truth"]["authoritative"], item["backhaul"]["generation"]) == ("home", 3)
    assert (len(running(sites["home"])), len(running(sites["cloud"]))) == (1, 0)


def over_for_good(sdk: Sdk, server: LiveServer, sites: dict[str, RealSite]) -> None:
    def unplanned() -> az.UnplannedFailoverInput:
        details = az.InMageAzureV2UnplannedFailoverInput(recovery_point_id="")
        return az.UnplannedFailoverInput(
            properties=az.UnplannedFailoverInputProperties(provider_specific_details=details)
        )

    assert sdk.run("unplanned_failover", unplanned()) == "failed-over"
    assert "Commit" in seen(server, "UnplannedFailover")["allowedOperations"]
    assert sdk.run("failover_commit") == "failed-over-committed"
    assert seen(server, "Commit")["truth"]["authoritative"] == "cloud"
    assert (len(running(sites["home"])), len(running(sites["cloud"]))) == (0, 1)


def home_by_the_classic_verbs(
    sdk: Sdk, server: LiveServer, sites: dict[str, RealSite], ids: dict[str, str], look: Callable[[], None]
) -> None:
    """Reprotect, fail back with the final delta, and cancel that; `look` is called while a job runs."""
    fabric = "/".join(sdk.get().id.split("/")[:11])

    def reprotect(process_server: str) -> az.ReverseReplicationInput:
        details = az.InMageReprotectInput(
            master_target_id=ids["mt-home"], process_server_id=process_server, retention_drive="", profile_id=""
        )
        return az.ReverseReplicationInput(
            properties=az.ReverseReplicationInputProperties(
                failover_direction="RecoveryToPrimary", provider_specific_details=details
            )
        )

    refused = sdk.refused("reprotect", reprotect(f"{fabric}/processServers/{ids['ps-home']}"))
    assert "BH-PROCESS-SERVER-CHOICE" in refused, "one of another network"
    sdk.run("reprotect", reprotect(f"{fabric}/processServers/{ids['ps-cloud']}"))
    until(lambda: sdk.get().properties.protection_state == "protected-to-home")
    item = seen(server, "ReverseReplicate")
    assert item["providerSpecificDetails"]["instanceType"] == "InMage"
    assert item["providerSpecificDetails"]["processServerId"] == ids["ps-cloud"]
    assert sdk.get().properties.provider_specific_details.instance_type == "InMage"
    details = az.InMageUnplannedFailoverInput(recovery_point_type="LatestTime", recovery_point_id="")
    latest = az.UnplannedFailoverInput(
        properties=az.UnplannedFailoverInputProperties(
            failover_direction="RecoveryToPrimary", provider_specific_details=details
        )
    )
    begun = sdk.client.begin_unplanned_failover(*sdk._item, latest)
    look()
    assert begun.result().properties.protection_state == "failed-back"
    assert seen(server, "PlannedFailover")["truth"]["authoritative"] == "home"
    assert (len(running(sites["home"])), len(running(sites["cloud"]))) == (1, 0)
    assert sdk.run("failover_cancel") in ("protected-to-home", "verifying-to-home"), "its agent may be comparing by now"
    until(lambda: sdk.get().properties.protection_state == "protected-to-home")
    assert seen(server, "CancelFailover")["truth"]["authoritative"] == "cloud"
    assert (len(running(sites["home"])), len(running(sites["cloud"]))) == (0, 1)
