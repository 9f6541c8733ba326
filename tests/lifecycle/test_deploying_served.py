"""Process servers deployed as their users have it: API and command line of a served configuration server, a real
cloud, servers as processes of their own.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backhaul.client.errors import ClientError
from backhaul.configuration_server.member import Member, MemberFolder
from backhaul.configuration_server.member_way import PROCESS_SERVERS_TAG
from backhaul.configuration_server.records import ItemRecord
from backhaul.configuration_server.vault import Vault
from backhaul.links.dialer import Address
from backhaul.links.tls import Credentials
from backhaul.replication.errors import BackhaulError
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness
from backhaul.replication.units import MiB
from lifecycle.deployed import (
    FORM,
    ITEM,
    NAME,
    PASSWORD,
    RANGE,
    SERVER_NET,
    World,
    command,
    failed_over_world,
    password_file,
    server_folder,
    until,
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with failed_over_world(tmp_path) as made:
        yield made


def on_server(world: World, line: str, *more: str) -> subprocess.CompletedProcess[str]:
    """A command line on the deployed server, where its commands begin."""
    program, *arguments = shlex.split(line)
    assert program == "backhaul"
    run = [sys.executable, "-m", "backhaul", *arguments, *more]
    where = server_folder(world.cloud).parent
    return subprocess.run(run, cwd=where, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def listed_server(world: World) -> dict[str, Any]:
    """The deployed server as it is listed, under its name."""
    found = [one["properties"] for one in world.server.vault().servers("processServers")]
    (shown,) = [properties for properties in found if properties["friendlyName"] == NAME]
    return dict(shown)


def holding(folder: Path, secret: bytes) -> list[Path]:
    """Files below a folder that hold these bytes."""
    return [path for path in folder.rglob("*") if path.is_file() and secret in path.read_bytes()]


def test_deploy_register_in_one_go_and_delete(world: World) -> None:
    before = world.cloud.listing()
    done = command(
        world, "process-server", "deploy", "--user", "rescue", "--password-file", password_file(world),
        "--address", f"{RANGE}.1.77", "--register",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Wait until it is healthy: Succeeded" in done.stdout
    assert "is registered, health Healthy" in done.stdout
    shown = world.state()
    assert_effects(world, shown)
    assert_secrets(world)
    folder = server_folder(world.cloud)
    _, identity = MemberFolder(folder, RealFiles(), RealRandomness(), "process-server").load()
    # Repeating it makes nothing twice.
    effects = world.cloud.effects()
    assert world.deploy(register=True)["state"] == "registered"
    assert world.cloud.effects() == effects == ["reserve_address", "create_server", "set_tags"]
    assert_delete_is_refused(world)
    world.records(lambda vault: give_item_to(vault, "ps-home"))
    done = command(world, "process-server", "delete", NAME)
    assert done.returncode == 0, done.stderr
    assert world.cloud.listing() == before
    assert world.cloud.client.metadata(world.machine.id).tags[PROCESS_SERVERS_TAG] == ""
    assert command(world, "process-server", "delete", NAME).returncode == 4
    assert NAME not in command(world, "process-server", "list").stdout
    assert refused(world, identity), "the old certificate is worth nothing"


def assert_effects(world: World, shown: dict[str, Any]) -> None:
    """Each field of the form, on the server that came of it."""
    client = world.cloud.client
    (server,) = client.servers()
    assert (server.name, server.address, server.user) == (NAME, f"{RANGE}.1.77", "rescue")
    assert (server.subscription, server.resource_group, server.region) == ("prod", "rg", "here")
    assert (server.network, server.subnet, server.size, server.account) == (SERVER_NET, "default", "small", "acc")
    assert client.authenticate(NAME, "rescue", PASSWORD)
    assert [account.used for account in client.accounts()] == [server.os_disk_bytes + server.spool_disk_bytes]
    assert [s.servers_used for s in client.subscriptions() if s.name == "prod"] == [1]
    assert (shown["address"], shown["dataPort"], shown["health"]) == (f"{RANGE}.1.77", 9443, "Healthy")
    listed = listed_server(world)
    assert (listed["addresses"], listed["network"]) == ([f"{RANGE}.1.77:9443"], SERVER_NET)
    assert listed["homeLink"]["up"], "home dialled it"
    assert client.metadata(world.machine.id).tags[PROCESS_SERVERS_TAG] == f"{RANGE}.1.77:9443"
    spool = server_folder(world.cloud) / "relay"
    assert spool.resolve().is_relative_to(server_folder(world.cloud).parent.parent / "spool")
    assert (spool / "spool").is_dir(), "the spool lies on the second disk"


def assert_secrets(world: World) -> None:
    """The password is nowhere; the token in the boot data alone, and used up."""
    assert holding(world.server.folder / "server", PASSWORD.encode()) == []
    assert holding(world.cloud.folder, PASSWORD.encode()) == []
    (boot,) = world.cloud.folder.rglob("custom-data")
    token = json.loads(boot.read_bytes())["token"]
    assert holding(world.server.folder / "server", token.encode()) == []
    assert holding(world.cloud.folder, token.encode()) == [boot]
    spent = world.server.folder / "spent"
    spent.write_text(token)
    with pytest.raises(AssertionError, match=r"BH-(TOKEN-SPENT|PASSPHRASE-WRONG)"):
        world.server.register("process-server", "again", "--passphrase-file", str(spent), "--data-port", "0")


def give_item_to(vault: Vault, server: str) -> None:
    with vault.database.write() as session:
        session.get_one(ItemRecord, ITEM).process_server = server


def assert_delete_is_refused(world: World) -> None:
    """With the items that use it, and nothing is changed."""
    done = command(world, "process-server", "switch", "web", "--to", NAME)
    assert done.returncode == 0, done.stderr
    effects = world.cloud.effects()
    done = command(world, "process-server", "delete", NAME)
    assert done.returncode == 1
    assert "BH-DELETE-IN-USE" in done.stdout
    assert "Item web uses it." in done.stdout
    with world.deployments() as client, pytest.raises(ClientError) as refusal:
        client.delete(NAME)
    assert refusal.value.code == "BH-DEPLOYMENT-REFUSED"
    assert "web" in refusal.value.message
    assert world.cloud.effects() == effects
    assert world.state()["state"] == "registered"


def refused(world: World, identity: Any) -> bool:
    """Whether the configuration server refuses a certificate."""
    import asyncio

    credentials = Credentials(identity, RealClock())
    folder = MemberFolder(world.server.folder / "copy", RealFiles(), RealRandomness(), "process-server")
    member = Member(folder, credentials, Address("127.0.0.1", world.server.port), RealClock())
    try:
        asyncio.run(member.orders(0, 0.0))
    except BackhaulError:
        return True
    return False


def test_deploy_then_register_on_the_server(world: World) -> None:
    done = command(
        world, "process-server", "deploy", "--user", "rescue", "--password-file", password_file(world),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = world.state()
    assert shown["state"] == "unregistered"
    assert "is unregistered. Next, on the server:" in done.stdout
    assert done.stdout.splitlines()[-1].strip() == shown["nextCommand"]
    listed = command(world, "process-server", "list").stdout
    assert NAME in listed
    assert "unregistered" in listed
    assert shown["nextCommand"] in listed
    passphrase = ("--passphrase-file", str(world.server.passphrase_file()))
    wrong = on_server(
        world, shown["nextCommand"], *passphrase, "--password-file", password_file(world, "Another-Horse-77"),
    )  # fmt: skip
    assert (wrong.returncode, "BH-ADMINISTRATOR" in wrong.stderr) == (1, True), wrong.stderr
    other = shown["nextCommand"].replace("--user rescue", "--user somebody")
    assert "BH-ADMINISTRATOR" in on_server(world, other, *passphrase, "--password-file", password_file(world)).stderr
    assert world.state()["state"] == "unregistered"
    right = on_server(world, shown["nextCommand"], *passphrase, "--password-file", password_file(world))
    assert right.returncode == 0, right.stderr
    until(lambda: world.state()["health"] == "Healthy")
    assert world.state()["state"] == "registered"
    assert listed_server(world)["state"] == "registered"
    config = (server_folder(world.cloud) / "service.json").read_bytes()
    again = on_server(world, shown["nextCommand"], *passphrase, "--password-file", password_file(world))
    assert again.returncode == 0, again.stderr
    assert "is registered as" in again.stdout
    assert (server_folder(world.cloud) / "service.json").read_bytes() == config, "its settings are as they were"
    assert "BH-ADMINISTRATOR" in on_server(world, other, *passphrase, "--password-file", password_file(world)).stderr


def assert_replicates_through(world: World, process_server: str) -> None:
    """A machine of the network replicates home through it: points come, and the replica is the disk."""
    server, vault = world.server, world.server.vault()
    target = server.register("master-target", "mt-home", "--data-port", "0", "--listen-host", "127.0.0.1")
    server.run("master-target", target)
    until(lambda: vault.server("mt-home")["properties"]["health"] == "Healthy")
    disk, metadata = server.folder / "vm.img", server.folder / "vm.json"
    disk.write_bytes(os.urandom(MiB) + bytes(MiB))
    metadata.write_text(json.dumps({"machine_id": "id-of-vm", "tags": {}}))
    more = ("--metadata-file", str(metadata), "--network", SERVER_NET, "--disk", f"root={disk}")
    server.run("agent", server.register("agent", "vm", *more))
    until(lambda: any(one["properties"]["machine"] == "id-of-vm" for one in vault.servers("agents")))
    vault.create_policy("fast", {"point_interval_s": 1.0})
    vault.wait_job(vault.protect("vm", "fast", "", "mt-home", process_server, []))
    until(lambda: vault.item("vm")["properties"]["protectionState"] == "protected")
    assert vault.item("vm")["properties"]["providerSpecificDetails"]["processServerId"] == process_server
    first = vault.points("vm")[0]["properties"]["backhaul"]["number"]
    until(lambda: vault.points("vm")[0]["properties"]["backhaul"]["number"] > first)
    replica = target / "target" / "items" / vault.item("vm")["name"] / "disks" / "0.img"
    assert replica.read_bytes() == disk.read_bytes()
    assert vault.doctor("vm", item=True)["ok"]


def test_through_a_vpn_the_server_dials(world: World) -> None:
    home = f"127.0.0.1:{world.server.port}"
    shown = world.deploy(register=True, dialling="server", configurationServer=home, dataPort=9555)
    assert (shown["state"], shown["health"]) == ("registered", "Healthy")
    assert listed_server(world)["homeLink"] is None, "home keeps no tunnel to it"
    assert listed_server(world)["addresses"] == [f"{shown['address']}:9555"]
    assert_replicates_through(world, shown["server"])
    gone = {"network": SERVER_NET, "dialling": "server", "configurationServer": f"{RANGE}.1.250:1"}
    with world.deployments() as client:
        found = client.validate("another", FORM | gone)["findings"]
    assert "BH-PS-ROUTE" in [one["code"] for one in found if one["severity"] == "fail"]
