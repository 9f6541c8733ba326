"""What is not deployed, why, and what stays of it: through API and command line of a served configuration server."""

from __future__ import annotations

import json
import socket
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backhaul.client.errors import ClientError, JobFailed
from backhaul.configuration_server.lifecycle.deploying import DEPLOYING
from backhaul.sites.local.launcher import CLAIM_PORT
from backhaul.sites.values import MachineRequest
from lifecycle.deployed import (
    FORM,
    NAME,
    RANGE,
    SERVER_NET,
    World,
    command,
    enter_item,
    failed_over_world,
    password_file,
)
from sites.site_world import SLEEPER

WRONG = {
    "user": "admin", "password": "short", "site": "cloud", "subscription": "prod", "resourceGroup": "bad.",
    "region": "there", "network": "vnet2", "subnet": "none", "address": f"{RANGE}.2.1", "storageAccount": "gone",
}  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with failed_over_world(tmp_path) as made:
        yield made


def test_all_findings_at_once_and_nothing_is_made(world: World) -> None:
    with world.deployments() as client:
        found = client.validate("-bad-", WRONG)
        with pytest.raises(ClientError) as refusal:
            client.deploy("-bad-", WRONG)
        assert client.list() == []
    codes = {one["code"] for one in found["findings"] if one["severity"] == "fail"}
    assert codes >= {
        "BH-PS-NAME-CHARACTERS", "BH-PS-USER-RESERVED", "BH-PS-PASSWORD-LENGTH", "BH-PS-GROUP-NAME",
        "BH-PS-REGION-UNKNOWN", "BH-PS-SUBNET-UNKNOWN", "BH-PS-STORAGE-UNKNOWN",
    }  # fmt: skip
    assert "password" not in found["form"]
    assert refusal.value.code == "BH-DEPLOYMENT-REFUSED"
    assert all(code in refusal.value.message for code in codes)
    dry = command(
        world, "process-server", "deploy", "--user", "admin", "--password-file", password_file(world), "--dry-run",
    )  # fmt: skip
    assert (dry.returncode, "BH-PS-USER-RESERVED" in dry.stdout) == (1, True), dry.stderr
    assert world.cloud.effects() == []
    assert world.server.vault().jobs() == []


def test_readers_read_and_operators_act(world: World) -> None:
    with world.server.transport(world.server.account("reader")) as reader:
        assert world.server.profile is not None
        path = f"{world.server.profile.vault}/backhaulProcessServerDeployments"
        assert reader.call("GET", path)["value"] == []
        with pytest.raises(ClientError) as refusal:
            reader.call("PUT", f"{path}/{NAME}", FORM)
    assert refusal.value.status == 403
    with world.deployments() as client:
        (offer,) = client.offers()
    assert (offer["name"], offer["machines"], offer["healthy"]) == (NAME, 1, False)
    assert offer["form"]["network"] == SERVER_NET
    assert offer["form"]["size"] == "small"


def test_an_item_is_switched_only_to_a_healthy_server_of_its_network(world: World) -> None:
    world.deploy()
    with world.deployments() as client:
        with pytest.raises(ClientError) as unregistered:
            client.switch("web", NAME)
        assert unregistered.value.code == "BH-SWITCH-NETWORK", "it serves nothing before it is registered"
        with pytest.raises(ClientError) as elsewhere:
            client.switch("web", "ps-home")
        assert elsewhere.value.code == "BH-SWITCH-NETWORK"
        with pytest.raises(ClientError) as unknown:
            client.switch("web", "nobody")
        assert unknown.value.status == 404


def test_another_form_for_a_server_that_is_there(world: World) -> None:
    world.deploy()
    with world.deployments() as client:
        for changed in ({"size": "large"}, {"password": "Another-Horse-77"}, {"user": "other"}):
            with pytest.raises(ClientError) as refusal:
                client.deploy(NAME, FORM | changed)
            assert refusal.value.code == "BH-DEPLOYMENT-EXISTS"
            assert next(iter(changed)) in refusal.value.message


def test_what_the_site_cannot_start_is_cleaned_up_and_tried_again(world: World) -> None:
    """Somebody has the address meanwhile, which no record of the site shows: the server cannot bind it."""
    before, address = world.cloud.listing(), f"{RANGE}.1.91"
    form = FORM | {"address": address, "register": True, "newResourceGroup": True, "resourceGroup": "rg-new"}
    with socket.socket() as thief, world.deployments() as client:
        thief.bind((address, CLAIM_PORT))
        job = client.deploy(NAME, form)
        with pytest.raises(JobFailed) as failure:
            world.server.vault().wait_job(job)
        shown = client.get(NAME)["properties"]
        assert (shown["state"], shown["code"]) == ("failed", failure.value.code)
        assert failure.value.code == "BH-SITE-ADDRESS-TAKEN", failure.value.code
        assert address in shown["reason"]
    assert world.cloud.listing() == before
    assert "rg-new" in [group.name for group in world.cloud.client.resource_groups()]
    with sqlite3.connect(world.server.data_dir / "backhaul.db") as records:
        assert records.execute("SELECT count(*) FROM token").fetchone() == (0,), "its token is worth nothing"
        assert records.execute("SELECT count(*) FROM server WHERE name = ?", [NAME]).fetchone() == (0,)
    shown = world.deploy(address=address, register=True)
    assert (shown["state"], shown["address"], shown["resourceGroup"]) == ("registered", address, "rg")


def test_an_address_that_is_taken_is_refused_before_anything_is_made(world: World) -> None:
    taken = world.cloud.client.reserve_address(SERVER_NET, "default", f"{RANGE}.1.90", token="mine")
    before = world.cloud.listing()
    with world.deployments() as client, pytest.raises(ClientError) as refusal:
        client.deploy(NAME, FORM | {"address": taken.address})
    assert "BH-PS-ADDRESS-TAKEN" in refusal.value.message
    assert world.cloud.listing() == before
    world.cloud.client.release_address(SERVER_NET, taken.address, token="mine-no-more")
    assert world.deploy(address=taken.address)["address"] == taken.address


def test_while_it_is_deployed_its_steps_are_shown_and_no_other_job_begins(world: World) -> None:
    with world.deployments() as client:
        job = client.deploy(NAME, FORM)
        shown = client.get(NAME)["properties"]
        assert (shown["state"], shown["job"], shown["nextCommand"]) == ("deploying", job, "")
        assert [task["name"] for task in shown["tasks"]] == [step.name for step in DEPLOYING]
        others: tuple[Callable[[], str], ...] = (lambda: client.deploy(NAME, FORM), lambda: client.delete(NAME))
        for begin in others:
            with pytest.raises(ClientError) as refusal:
                begin()
            assert refusal.value.code == "BH-JOB-RUNNING"
        world.server.vault().wait_job(job)
        assert client.get(NAME)["properties"]["state"] == "unregistered"
        # One that never registered is deleted as any other.
        world.server.vault().wait_job(client.delete(shown["server"]))
        assert client.list() == []
    assert world.cloud.client.servers() == ()


def test_of_several_networks_one_must_be_named(world: World) -> None:
    request = MachineRequest("db", "prod", "vnet2", "default", SLEEPER, ())
    machine = world.cloud.client.create_machine(request, token="second")
    world.records(lambda vault: enter_item(vault, machine, "db", "f" * 32))
    arguments = ("process-server", "deploy", "--user", "rescue", "--password-file", password_file(world), "--dry-run")
    unnamed = command(world, *arguments)
    assert unnamed.returncode == 2
    assert "vnet2" in unnamed.stderr
    named = command(world, *arguments, "--network", "vnet2", "--json")
    assert named.returncode == 0, named.stderr
    judged = json.loads(named.stdout)
    assert judged["form"]["network"] == "vnet2"
    assert [one["code"] for one in judged["findings"] if one["severity"] == "warn"] == ["BH-PS-ROUTE-UNTESTED"]
