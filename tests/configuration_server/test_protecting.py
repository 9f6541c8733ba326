"""A machine is protected, end to end, through real processes; and what the API and the SDK then show of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.mgmt.recoveryservicessiterecovery import SiteRecoveryManagementClient

from backhaul.configuration_server.member import Member, MemberFolder, register
from backhaul.configuration_server.occupancy import running_in, started_at
from backhaul.links.dialer import Address
from backhaul.links.passphrase import parse_passphrase
from backhaul.links.tls import Credentials
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness
from backhaul.replication.values import Role
from configuration_server.live import LiveServer, until

MiB = 1024 * 1024


@pytest.fixture(scope="module")
def protected(server: LiveServer) -> LiveServer:
    """The machine `web1`, protected by a policy with a point every second."""
    server.healthy("masterTargets")
    server.healthy("processServers")
    server.machine("web1", root=os.urandom(MiB) + bytes(3 * MiB), data=bytes(MiB))
    server.vault().create_policy("fast", {"point_interval_s": 1.0})
    vault = server.vault()
    vault.wait_job(vault.protect("web1", "fast", "", "", "", []))
    until(lambda: vault.item("web1")["properties"]["protectionState"] == "protected")
    return server


@pytest.fixture
def sdk(protected: LiveServer, tmp_path: Path) -> Iterator[tuple[Any, str, str]]:
    """Microsoft's client, unmodified, with resource group and vault."""
    profile = protected.profile
    assert profile is not None
    token, ca = profile.token, tmp_path / "ca.pem"
    ca.write_text(protected.roots)

    class Credential:
        def get_token(self, *scopes: str, **options: object) -> AccessToken:
            return AccessToken(token, int(time.time()) + 3600)

    parts = profile.vault.split("/")
    with SiteRecoveryManagementClient(
        Credential(), parts[2], base_url=protected.server, polling_interval=0, connection_verify=str(ca),
        credential_scopes=["https://localhost/.default"],
    ) as client:  # fmt: skip
        yield client, parts[4], parts[8]


def root_disk(server: LiveServer) -> dict[str, Any]:
    disks = server.vault().item("web1")["properties"]["providerSpecificDetails"]["protectedDisks"]
    return next(disk for disk in disks if disk["diskId"] == "root")


def test_the_replica_follows_and_the_view_begins_with_the_truth(protected: LiveServer) -> None:
    # Agents report once a second: what was compared, and then what of it was sent.
    until(lambda: root_disk(protected)["resyncProgressPercentage"] == 100)
    until(lambda: root_disk(protected)["resyncTotalTransferredBytes"] >= MiB)
    known = protected.vault().item("web1")["properties"]
    assert next(iter(known)) == "truth"
    assert known["truth"]["authoritative"] == "home"
    assert known["backhaul"]["generation"] == 1
    assert known["backhaul"]["rpo"]["seconds"] >= 0
    assert {"UnplannedFailover", "DisableProtection"} <= set(known["allowedOperations"])
    reason = known["refusedOperations"]["Commit"]
    assert reason["code"] == "BH-REFUSED-NOTHING-TO-COMMIT"
    assert reason["fix"]


def test_points_come_and_the_replica_is_the_disk(protected: LiveServer) -> None:
    vault = protected.vault()
    first = vault.points("web1")[0]["properties"]["backhaul"]["number"]
    until(lambda: vault.points("web1")[0]["properties"]["backhaul"]["number"] > first)
    assert vault.points("web1")[0]["properties"]["backhaul"]["kind"] == "stopped"
    item = vault.item("web1")["name"]
    replica = protected.data_dir / "master-target" / "target" / "items" / item / "disks" / "0.img"
    assert replica.read_bytes() == (protected.folder / "web1-disks" / "root.img").read_bytes()


def test_the_sdk_lists_fabrics_items_points_policies_jobs_events(
    protected: LiveServer, sdk: tuple[Any, str, str]
) -> None:
    client, group, vault = sdk
    (fabric,) = client.replication_fabrics.list(group, vault)
    details = fabric.properties.custom_details
    assert details.instance_type == "VMware"
    assert [one.friendly_name for one in details.process_servers] == ["built-in-ps"]
    assert details.master_target_servers[0].retention_volumes[0].capacity_in_bytes > 0
    (container,) = client.replication_protection_containers.list(group, vault)
    (listed,) = client.replication_protected_items.list(group, vault)
    item = client.replication_protected_items.get(group, vault, fabric.name, container.name, listed.name)
    assert item.properties.provider_specific_details.instance_type == "InMageAzureV2"
    assert item.properties.friendly_name == "web1"
    assert item.properties.provider_specific_details.rpo_in_seconds >= 0
    points = list(
        client.recovery_points.list_by_replication_protected_items(group, vault, fabric.name, container.name, item.name)
    )
    assert points[0].properties.recovery_point_type == "CrashConsistent"
    assert {policy.name for policy in client.replication_policies.list(group, vault)} == {"24-hours", "fast"}
    (job,) = client.replication_jobs.list(group, vault, filter="State eq 'Succeeded' and JobName eq 'Protect'")
    assert [task.state for task in client.replication_jobs.get(group, vault, job.name).properties.tasks] == [
        "Succeeded"
    ] * 5
    assert not list(client.replication_jobs.list(group, vault, filter="State eq 'Failed'"))
    assert any(
        event.properties.event_code == "item.protected" for event in client.replication_events.list(group, vault)
    )
    assert client.replication_vault_health.get(group, vault).properties.protected_items_health.resource_count == 1


def test_the_sdk_protects_a_machine_and_polls_the_operation(protected: LiveServer, sdk: tuple[Any, str, str]) -> None:
    client, group, vault = sdk
    protected.machine("web2", root=bytes(MiB))
    agent = protected.vault().server("web2")["name"]
    (fabric,) = client.replication_fabrics.list(group, vault)
    (container,) = client.replication_protection_containers.list(group, vault)
    body = {
        "properties": {
            "policyId": f"{container.id}/../replicationPolicies/fast",
            "protectableItemId": f"{container.id}/replicationProtectableItems/{agent}",
            "providerSpecificDetails": {"instanceType": "InMageAzureV2"},
        }
    }
    poller = client.replication_protected_items.begin_create(group, vault, fabric.name, container.name, "web2", body)
    made = poller.result()
    assert made.properties.friendly_name == "web2"
    shown = protected.vault().item("web2")
    assert shown["id"] == made.id


def test_ids_match_in_any_case_and_other_query_parameters_are_ignored(protected: LiveServer) -> None:
    profile = protected.profile
    assert profile is not None
    path = profile.vault.replace("/subscriptions", "/Subscriptions").upper() + "/REPLICATIONFABRICS"
    with protected.transport(profile.token) as transport:
        found = transport.call("GET", path, query={"api-version": "2022-08-01", "t": "1", "s": "x"})
    assert len(found["value"]) == 1


def test_a_killed_target_shows_as_silent_then_comes_back_and_replication_goes_on(protected: LiveServer) -> None:
    vault, folder = protected.vault(), protected.data_dir / "master-target"
    running = running_in(RealFiles(), folder)
    assert running is not None
    last = vault.points("web1")[0]["properties"]["backhaul"]["number"]
    os.kill(running.pid, signal.SIGKILL)
    until(lambda: (again := running_in(RealFiles(), folder)) is not None and again.pid != running.pid)
    protected.healthy("masterTargets")
    until(lambda: vault.item("web1")["properties"]["backhaul"]["target"])
    until(lambda: vault.points("web1")[0]["properties"]["backhaul"]["number"] > last)


def test_a_killed_server_adopts_its_own_servers_and_points_go_on_meanwhile(protected: LiveServer) -> None:
    folder = protected.data_dir / "master-target"
    before = running_in(RealFiles(), folder)
    last = protected.vault().points("web1")[0]["properties"]["backhaul"]["number"]
    assert protected.end(signal.SIGKILL) == -signal.SIGKILL
    protected.start()
    protected.login()
    assert running_in(RealFiles(), folder) == before
    until(lambda: protected.vault().item("web1")["properties"]["backhaul"]["target"])
    until(lambda: protected.vault().points("web1")[0]["properties"]["backhaul"]["number"] > last)
    assert running_in(RealFiles(), folder) == before


def newest(server: LiveServer) -> int:
    """The newest point's number; 0 while the target does not answer."""
    target = server.vault().item("web1")["properties"]["backhaul"]["target"]
    return int(target["newestPoint"]["number"]) if target and target["newestPoint"] else 0


def killed(folder: Path) -> int:
    """End whatever serves the folder, at once; the process that is gone."""
    running = running_in(RealFiles(), folder)
    assert running is not None
    os.kill(running.pid, signal.SIGKILL)
    until(lambda: not started_at(running.pid))
    return running.pid


def assert_points_go_on(server: LiveServer, last: int, streams_before: int) -> None:
    """New points come through a new stream; nobody gave a command, and nothing was compared again for it."""
    until(lambda: newest(server) > last)
    assert stream(server) > streams_before
    assert server.vault().item("web1")["properties"]["protectionState"] == "protected"
    until(lambda: server.vault().doctor("web1", item=True)["ok"])


def stream(server: LiveServer) -> int:
    """Number of the newest stream at the target."""
    return int(server.vault().item("web1")["properties"]["backhaul"]["target"]["fence"].split(".")[-1])


def test_a_killed_process_server_is_started_again_and_replication_goes_on(protected: LiveServer) -> None:
    folder = protected.data_dir / "process-server"
    last = newest(protected)
    gone = killed(folder)
    until(lambda: (again := running_in(RealFiles(), folder)) is not None and again.pid != gone)
    protected.healthy("processServers")
    until(lambda: newest(protected) > last)
    until(lambda: protected.vault().doctor("web1", item=True)["ok"])


def test_a_killed_agent_goes_on_when_it_is_started_again(protected: LiveServer) -> None:
    folder, before = protected.folder / "web1", stream(protected)
    killed(folder)
    last = newest(protected)
    protected.run("agent", folder)  # as its machine's init system would
    assert_points_go_on(protected, last, before)


def test_all_killed_at_once_go_on_when_they_are_started_again(protected: LiveServer) -> None:
    """A power cut at home: configuration server, process server, master target and agent."""
    servers = [protected.data_dir / name for name in ("process-server", "master-target")]
    last, before = newest(protected), stream(protected)
    assert protected.end(signal.SIGKILL) == -signal.SIGKILL  # first, as it would start the others again
    gone = {folder: killed(folder) for folder in (*servers, protected.folder / "web1")}
    assert [running_in(RealFiles(), folder) for folder in gone] == [None] * 3
    protected.run("agent", protected.folder / "web1")
    protected.start()
    protected.login()
    assert_points_go_on(protected, last, before)
    running = {folder: running_in(RealFiles(), folder) for folder in gone}
    assert all(found is not None and found.pid != gone[folder] for folder, found in running.items())


def test_what_an_agent_says_of_an_item_that_is_not_its_own_does_not_count(
    protected: LiveServer, tmp_path: Path
) -> None:
    item = protected.vault().item("web1")["name"]
    said = {
        "item": item, "fence": None, "state": "failed", "tracker": "", "disks": [], "newest_point_ns": 0,
        "newest_epoch": 0, "sent_bytes": 0, "unspooled_bytes": 0, "frozen_us": 0, "code": "BH-LIE", "params": {},
    }  # fmt: skip
    report = {"agent": "liar", "machine": "id-of-web1", "version": "0", "now_ns": 0, "revision": 0, "items": [said]}

    async def lie() -> None:
        address, clock = Address("127.0.0.1", protected.port), RealClock()
        passphrase = parse_passphrase(protected.vault().passphrase())
        _, identity = await register(address, passphrase, Role.AGENT, "liar", "liar", clock=clock)
        folder = MemberFolder(tmp_path / "liar", RealFiles(), RealRandomness(), "agent")
        member = Member(folder, Credentials(identity, clock), address, clock)
        await member.call("POST", "/members/self/report", json.dumps(report).encode())
        member.close()

    def reported() -> Any:
        return protected.vault().item("web1")["properties"]["backhaul"]["agentReport"]

    until(reported)  # the server may have been started a moment ago
    asyncio.run(lie())
    assert reported()["code"] != "BH-LIE"
