"""Ending a protection, resync and cancelling jobs as Microsoft's client and the command line see them, on items that
were protected without sites, through real processes.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.mgmt.recoveryservicessiterecovery import SiteRecoveryManagementClient

from backhaul.client.errors import ClientError
from configuration_server.live import LiveServer, until

MiB = 1024 * 1024
FLIPPED = 3 * 65536 + 77


class Sdk:
    """Microsoft's client, unmodified, with what every call of it names."""

    def __init__(self, server: LiveServer, folder: Path) -> None:
        assert server.profile is not None
        token, parts = server.profile.token, server.profile.vault.split("/")
        (folder / "ca.pem").write_text(server.roots)

        class Credential:
            def get_token(self, *scopes: str, **options: object) -> AccessToken:
                return AccessToken(token, int(time.time()) + 3600)

        self.client = SiteRecoveryManagementClient(
            Credential(), parts[2], base_url=server.server, polling_interval=0,
            connection_verify=str(folder / "ca.pem"), credential_scopes=["https://localhost/.default"],
        )  # fmt: skip
        self.vault = (parts[4], parts[8])

    def item(self, call: Callable[..., Any], name: str, *more: Any) -> Any:
        """Call an operation of an item, which is named by its path."""
        (fabric,) = self.client.replication_fabrics.list(*self.vault)
        (container,) = self.client.replication_protection_containers.list(*self.vault)
        return call(*self.vault, fabric.name, container.name, name, *more)


@pytest.fixture(scope="module")
def ready(server: LiveServer) -> LiveServer:
    """A server with a policy of a point every second."""
    server.healthy("masterTargets")
    server.healthy("processServers")
    server.vault().create_policy("fast", {"point_interval_s": 1.0})
    return server


@pytest.fixture
def sdk(ready: LiveServer, tmp_path: Path) -> Iterator[Sdk]:
    made = Sdk(ready, tmp_path)
    with made.client:
        yield made


def protect(server: LiveServer, name: str) -> str:
    """A machine that is protected; its item's id."""
    vault = server.vault()
    vault.wait_job(vault.protect(name, "fast", "", "", "", []))
    until(lambda: vault.item(name)["properties"]["protectionState"] == "protected")
    return str(vault.item(name)["name"])


def replica(server: LiveServer, item: str) -> Path:
    return server.data_dir / "master-target" / "target" / "items" / item / "disks" / "0.img"


def points(server: LiveServer, name: str) -> list[int]:
    return [point["properties"]["backhaul"]["number"] for point in server.vault().points(name)]


def names(server: LiveServer) -> list[str]:
    return [item["properties"]["friendlyName"] for item in server.vault().items()]


def kinds(server: LiveServer, item: str) -> list[str]:
    jobs = server.vault().jobs()
    return [job["properties"]["scenarioName"] for job in jobs if job["properties"]["targetObjectId"] == item]


def test_a_resync_mends_what_was_changed_behind_the_targets_back(ready: LiveServer, sdk: Sdk) -> None:
    content = os.urandom(MiB)
    ready.machine("mended", root=content)
    copy = replica(ready, protect(ready, "mended"))
    with copy.open("r+b") as file:
        file.seek(FLIPPED)
        file.write(bytes([content[FLIPPED] ^ 1]))
    before = points(ready, "mended")
    until(lambda: points(ready, "mended")[0] > before[0] + 1)
    assert copy.read_bytes() != content, "without a resync it stays"
    poller = sdk.item(sdk.client.replication_protected_items.begin_repair_replication, "mended")
    shown = poller.result()
    assert shown.properties.friendly_name == "mended"
    until(lambda: copy.read_bytes() == content)
    until(lambda: ready.vault().item("mended")["properties"]["protectionState"] == "protected")
    until(lambda: points(ready, "mended")[0] > before[0])
    assert set(before) <= set(points(ready, "mended"))


def test_the_sdk_disables_an_item_and_its_name_is_free(ready: LiveServer, sdk: Sdk) -> None:
    items = sdk.client.replication_protected_items
    ready.machine("ended", root=os.urandom(MiB))
    item = protect(ready, "ended")
    body = {"properties": {"disableProtectionReason": "MigrationComplete", "replicationProviderInput": {}}}
    assert sdk.item(items.begin_delete, "ended", body).result() is None
    assert "ended" not in names(ready)
    with pytest.raises(ResourceNotFoundError):
        sdk.item(items.get, "ended")
    assert not replica(ready, item).parent.parent.exists()
    assert kinds(ready, item) == ["DisableProtection", "Protect"]
    events: list[Any] = list(sdk.client.replication_events.list(*sdk.vault))
    assert {"item.disabled", "item.forgotten"} <= {event.properties.event_code for event in events}
    again = protect(ready, "ended")
    assert again != item
    assert sdk.item(items.begin_purge, "ended").result() is None
    assert "ended" not in names(ready)
    assert replica(ready, again).exists(), "a purge leaves behind what is at the target"


def test_the_command_line_says_what_is_thrown_away_and_asks(ready: LiveServer) -> None:
    ready.machine("asked", root=bytes(MiB))
    protect(ready, "asked")
    looked = ready.command("item", "unprotect", "asked", "--dry-run")
    assert looked.returncode == 0, looked.stderr
    assert "recovery points are thrown away" in looked.stderr
    unanswered = ready.command("item", "unprotect", "asked")
    assert unanswered.returncode == 1
    assert "End the protection?" in unanswered.stderr
    migrated = ready.command("item", "unprotect", "asked", "--complete-migration", "--yes")
    assert migrated.returncode == 1
    assert "BH-REFUSED-NOT-FAILED-OVER" in migrated.stderr
    assert "asked" in names(ready)
    ready.machine("beside", root=bytes(MiB))
    protect(ready, "beside")
    done = ready.command("item", "unprotect", "asked", "beside", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["properties"]["state"] == "Succeeded"
    assert not {"asked", "beside"} & set(names(ready))


def test_an_item_without_sites_is_bound_by_name_and_cannot_be_moved(ready: LiveServer) -> None:
    ready.machine("bound", root=os.urandom(MiB))
    protect(ready, "bound")
    refused = ready.command("item", "rebind", "bound", "--machine", "another")
    assert (refused.returncode, "BH-OPERATION-REFUSED" in refused.stderr) == (6, True), refused.stderr
    moved = ready.command("item", "failover", "bound")
    assert "BH-LIFECYCLE-UNKNOWN" in moved.stderr
    assert ready.command("item", "resync", "bound").returncode == 0
    assert "BH-LIFECYCLE-UNKNOWN" in ready.command("item", "failover", "bound").stderr, "a resync told it no sites"


def test_a_copy_stands_by_and_a_changed_id_is_bound_by_name(ready: LiveServer) -> None:
    agent = ready.machine("renamed", root=os.urandom(MiB))
    protect(ready, "renamed")
    agent.terminate()
    agent.wait()
    (ready.folder / "renamed-disks" / "metadata.json").write_text(json.dumps({"machine_id": "id-since", "tags": {}}))
    ready.run("agent", ready.folder / "renamed")

    def shown() -> Any:
        return ready.vault().item("renamed")["properties"]

    until(lambda: shown()["protectionState"] == "standby")
    assert shown()["refusedOperations"]["PlannedFailover"]["code"] == "BH-REFUSED-ONLY-A-COPY"
    assert "rebind" in shown()["allowedActions"]
    newest = points(ready, "renamed")[0]
    bound = ready.command("item", "rebind", "renamed", "--machine", "id-since")
    assert bound.returncode == 0, bound.stderr
    until(lambda: shown()["protectionState"] == "protected")
    until(lambda: points(ready, "renamed")[0] > newest)
    assert shown()["backhaul"]["generation"] == 2


def queued(server: LiveServer) -> str:
    """A job whose record is stored and whose workflow never was: what a kill between the two leaves."""
    job = os.urandom(16).hex()
    named = {
        "id": job, "kind": "PlannedFailover", "subject": f"of-{job}", "subject_name": "web", "state": "NotStarted",
        "account": "admin", "tasks_json": "[]", "errors_json": "[]", "created_ns": time.time_ns(), "started_ns": 0,
        "ended_ns": 0,
    }  # fmt: skip
    places = ", ".join(f":{name}" for name in named)
    with sqlite3.connect(server.data_dir / "backhaul.db", timeout=30) as records:
        records.execute(f"INSERT INTO job ({', '.join(named)}) VALUES ({places})", named)  # noqa: S608
    records.close()
    return job


def test_the_sdk_cancels_a_job_that_has_not_begun(ready: LiveServer, sdk: Sdk) -> None:
    cancelled: Any = sdk.client.replication_jobs.begin_cancel(*sdk.vault, queued(ready)).result()
    assert cancelled.properties.state == "Cancelled"
    job = queued(ready)
    shown = ready.command("job", "cancel", job)
    assert (shown.returncode, "Cancelled" in shown.stdout) == (0, True), shown.stderr
    assert ready.command("job", "cancel", job).returncode == 0, "again changes nothing"


def test_a_job_that_is_over_cannot_be_cancelled(ready: LiveServer, sdk: Sdk) -> None:
    ready.machine("over", root=bytes(MiB))
    vault = ready.vault()
    job = vault.protect("over", "fast", "", "", "", [])
    vault.wait_job(job)
    with pytest.raises(HttpResponseError) as refused:
        sdk.client.replication_jobs.begin_cancel(*sdk.vault, job).result()
    assert refused.value.error is not None
    assert refused.value.error.code == "BH-JOB-NOT-CANCELABLE"
    with pytest.raises(ClientError) as told:
        vault.cancel_job(job)
    assert "is over" in told.value.message
