"""Servers that the site makes: every field is checked and has an effect, and all is given back."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backhaul.replication.units import MiB
from backhaul.sites.errors import (
    AddressTaken,
    AddressWrong,
    InUse,
    NotAllowed,
    ServerRejected,
    StartFailed,
    TokenReused,
    TooManyAttempts,
)
from backhaul.sites.local.launcher import CLAIM_PORT
from backhaul.sites.values import PasswordHash, SiteRole
from sites.site_world import (
    PASSWORD,
    PRINCIPALS,
    RANGE,
    Caller,
    await_console,
    make_machine,
    python_guest,
    server_request,
)

SHOW = python_guest(
    "import os; print({k: v for k, v in os.environ.items()}); print('shown'); import time; time.sleep(9999)"
)


def listing(site: Caller) -> dict[str, Any]:
    """All that a deleted server must leave unchanged."""
    names = ("servers", "subscriptions", "accounts", "disks")
    return {name: site(name) for name in names} | {"addresses": site("addresses", network="vnet")}


def files_of(site: Caller) -> set[Path]:
    """All files of the site but those of the provider itself."""
    return {path for path in site.provider.world.volume.rglob("*") if path.parent != site.provider.world.volume}


def test_every_field_has_an_effect(site: Caller) -> None:
    request = server_request(command=SHOW, address=f"{RANGE}.1.9", custom_data="one-time", tags={"role": "ps"})
    server = site("create_server", "t1", request=request)
    assert server["power"] == "running"
    assert (server["address"], server["cores"], server["account"]) == (f"{RANGE}.1.9", 2, "acc")
    console = await_console(site, "server:ps1", "shown")
    environment = eval(console.splitlines()[0])  # noqa: S307 - a dictionary that this test's own guest printed
    assert environment["BACKHAUL_ADDRESS"] == f"{RANGE}.1.9"
    assert Path(environment["BACKHAUL_CUSTOM_DATA"]).read_text() == "one-time"
    assert "one-time" not in console
    metadata = msgspec.json.decode(Path(environment["BACKHAUL_METADATA"]).read_bytes())
    assert metadata["tags"] == {"role": "ps"}
    assert metadata["instance_id"] == server["id"]
    account = site.provider.world.volume / "accounts" / "acc"
    for folder in ("BACKHAUL_DATA", "BACKHAUL_SPOOL"):
        assert Path(environment[folder]).is_relative_to(account)
    assert {path.name: path.stat().st_size for path in account.rglob("*.img")} == {
        "os.img": 4 * MiB,
        "spool.img": 8 * MiB,
    }
    assert site("accounts")[0]["used"] == 12 * MiB
    subscription = site("subscriptions")[0]
    assert (subscription["servers_used"], subscription["cores_used"]) == (1, 2)
    holder = next(a["holder"] for a in site("addresses", network="vnet") if a["address"] == f"{RANGE}.1.9")
    assert holder == "server:ps1"


def test_deleting_gives_everything_back(site: Caller) -> None:
    before, files = listing(site), files_of(site)
    server = site("create_server", "t1", request=server_request())
    with socket.socket() as held, pytest.raises(OSError, match="in use"):
        held.bind((server["address"], CLAIM_PORT))
    site("delete_server", "t2", server="ps1")
    assert listing(site) == before
    assert {path for path in files_of(site) if path.is_file()} == {path for path in files if path.is_file()}
    with socket.socket() as free:
        free.bind((server["address"], CLAIM_PORT))


def test_creating_twice_makes_one(site: Caller) -> None:
    first = site("create_server", "t1", request=server_request())
    assert site("create_server", "t1", request=server_request()) == first
    site("delete_server", "t2", server="ps1")
    site("delete_server", "t2", server="ps1")
    site("delete_server", "t3", server="ps1")
    assert site.effects() == [("create_server", "t1"), ("delete_server", "t2")]


def test_a_token_stands_for_one_request(site: Caller) -> None:
    site("create_server", "t1", request=server_request())
    with pytest.raises(TokenReused):
        site("create_server", "t1", request=server_request(name="ps2"))


BROKEN: dict[str, dict[str, Any]] = {
    "BH-SERVER-NAME": {"name": "-x"},
    "BH-SERVER-NAME-TAKEN": {"name": "vm1"},
    "BH-SERVER-USER": {"user": "root"},
    "BH-SERVER-PASSWORD": {"password": PasswordHash("", "")},
    "BH-SERVER-SUBSCRIPTION": {"subscription": "nowhere"},
    "BH-SERVER-RESOURCE-GROUP": {"resource_group": "none"},
    "BH-SERVER-REGION": {"region": "there"},
    "BH-SERVER-NETWORK": {"network": "none"},
    "BH-SERVER-SUBNET": {"subnet": "none"},
    "BH-SERVER-ADDRESS": {"address": f"{RANGE}.2.9"},
    "BH-SERVER-ACCOUNT": {"account": "none"},
    "BH-SERVER-ACCOUNT-FULL": {"spool_bytes": 61 * MiB},
    "BH-SERVER-SIZE": {"size": "huge"},
    "BH-SERVER-SPOOL-SIZE": {"spool_bytes": 5},
    "BH-SERVER-COMMAND": {"command": ()},
}


@pytest.mark.parametrize("code", BROKEN, ids=str)
def test_each_broken_field_is_found(site: Caller, code: str) -> None:
    make_machine(site, "m")
    assert site("server_findings", request=server_request()) == []
    found = {finding["code"] for finding in site("server_findings", request=server_request(**BROKEN[code]))}
    # An unknown subscription takes network, account and group with it; each other break has exactly its finding.
    assert code in found
    if code != "BH-SERVER-SUBSCRIPTION":
        assert found == {code}
        with pytest.raises(ServerRejected) as refused:
            site("create_server", "t1", request=server_request(**BROKEN[code]))
        assert refused.value.params["codes"] == [code]
    assert site("servers") == []
    assert [effect for effect in site.effects() if effect[0] == "create_server"] == []


def test_all_findings_come_at_once(site: Caller) -> None:
    broken = server_request(name="-", user="admin", subnet="none", size="huge", account="none")
    codes = [finding["code"] for finding in site("server_findings", request=broken)]
    assert codes == ["BH-SERVER-SUBNET", "BH-SERVER-NAME", "BH-SERVER-USER", "BH-SERVER-SIZE", "BH-SERVER-ACCOUNT"]


@pytest.mark.parametrize(
    "address",
    [f"{RANGE}.1.0", f"{RANGE}.1.1", f"{RANGE}.1.3", f"{RANGE}.1.255", f"{RANGE}.1", "::1", "x"],
    ids=["network", "gateway", "cloud", "broadcast", "short", "version-6", "word"],
)
def test_addresses_the_network_keeps_are_refused(site: Caller, address: str) -> None:
    codes = [finding["code"] for finding in site("server_findings", request=server_request(address=address))]
    assert codes == ["BH-SERVER-ADDRESS"]


def test_quota_counts_servers_and_cores(site: Caller) -> None:
    site("create_server", "t1", request=server_request(size="large"))
    codes = [finding["code"] for finding in site("server_findings", request=server_request(name="b", size="large"))]
    assert codes == ["BH-SERVER-QUOTA"]
    site("create_server", "t2", request=server_request(name="b"))
    site("create_server", "t3", request=server_request(name="c"))
    reasons = [finding["reason"] for finding in site("server_findings", request=server_request(name="d"))]
    assert len(reasons) == 2, "servers and cores"


def test_an_operator_may_not_create_servers(site: Caller) -> None:
    operator = Caller(site.provider, PRINCIPALS[SiteRole.OPERATOR])
    codes = [finding["code"] for finding in operator("server_findings", request=server_request())]
    assert codes == ["BH-SERVER-NOT-ALLOWED"]
    with pytest.raises(NotAllowed):
        operator("create_server", "t1", request=server_request())
    assert site("servers") == []


def test_address_taken_meanwhile_fails_and_cleans_up(site: Caller) -> None:
    reserved = site("reserve_address", "r1", network="vnet", subnet="default")["address"]
    before, files = listing(site), files_of(site)
    request = server_request(address=reserved)
    with socket.create_server((reserved, 0)), pytest.raises(AddressTaken) as refused:
        site("create_server", "t1", request=request)
    assert refused.value.code == "BH-SITE-ADDRESS-TAKEN"
    assert listing(site) == before
    assert {p for p in files_of(site) if p.is_file()} == {p for p in files if p.is_file()}
    assert site("create_server", "t1", request=request)["power"] == "running"
    assert site.effects() == [("reserve_address", "r1"), ("create_server", "t1")]


def test_address_is_bound_at_each_start(site: Caller) -> None:
    address = site("create_server", "t1", request=server_request())["address"]
    assert site("stop_server", "t2", server="ps1")["power"] == "off"
    with socket.socket() as thief:
        thief.bind((address, CLAIM_PORT))
        with pytest.raises(AddressTaken):
            site("start_server", "t3", server="ps1")
    assert site("servers")[0]["power"] == "off"
    assert site("start_server", "t3", server="ps1")["power"] == "running"


def test_a_command_that_does_not_start_leaves_nothing(site: Caller) -> None:
    before = listing(site)
    with pytest.raises(StartFailed, match="No such file"):
        site("create_server", "t1", request=server_request(command=("/nonexistent",)))
    assert listing(site) == before


def test_reserved_addresses(site: Caller) -> None:
    first = site("reserve_address", "r1", network="vnet", subnet="default")
    assert first["address"] == f"{RANGE}.1.4", "the first that the network does not keep"
    assert site("reserve_address", "r1", network="vnet", subnet="default") == first
    assert site("reserve_address", "r2", network="vnet", subnet="default")["address"] == f"{RANGE}.1.5"
    contributor = Caller(site.provider, PRINCIPALS[SiteRole.CONTRIBUTOR])
    with pytest.raises(AddressWrong):
        contributor("reserve_address", "r3", network="vnet", subnet="default", address=f"{RANGE}.1.4")
    assert (
        contributor("server_findings", request=server_request(address=f"{RANGE}.1.4"))[0]["code"] == "BH-SERVER-ADDRESS"
    )
    site("create_server", "t1", request=server_request(address=f"{RANGE}.1.4"))
    with pytest.raises(InUse):
        site("release_address", "r4", network="vnet", address=f"{RANGE}.1.4")
    site("release_address", "r5", network="vnet", address=f"{RANGE}.1.5")
    assert [a["address"] for a in site("addresses", network="vnet")] == [f"{RANGE}.1.4"]


def test_administrator_login_is_checked_and_limited(site: Caller) -> None:
    site("create_server", "t1", request=server_request())
    assert site("authenticate", server="ps1", user="psadmin", password=PASSWORD) is True
    assert site("authenticate", server="ps1", user="other", password=PASSWORD) is False
    assert site("authenticate", server="ps1", user="psadmin", password=PASSWORD) is True, "a right one clears the count"
    for _ in range(5):
        assert site("authenticate", server="ps1", user="psadmin", password="wrong") is False
    with pytest.raises(TooManyAttempts):
        site("authenticate", server="ps1", user="psadmin", password=PASSWORD)


def test_no_secret_is_kept_outside_the_server(site: Caller) -> None:
    server = site("create_server", "t1", request=server_request(custom_data="SECRET-TOKEN"))
    site("authenticate", server="ps1", user="psadmin", password=PASSWORD)
    custom = site.provider.world.volume / "servers" / server["id"] / "custom-data"
    holders = set()
    for path in site.provider.world.folder.rglob("*"):
        if path.is_file() and any(secret in path.read_bytes() for secret in (b"SECRET-TOKEN", PASSWORD.encode())):
            holders.add(path)
    assert holders == {custom}
    assert site.provider.world.folder.stat().st_mode & 0o777 == 0o700
    assert custom.stat().st_mode & 0o077 == 0


def test_resource_groups_exist_or_are_made(site: Caller) -> None:
    made = site("create_resource_group", "g1", subscription="prod", name="new", region="here")
    assert made in site("resource_groups")
    assert site("server_findings", request=server_request(resource_group="new")) == []
    site("create_resource_group", "g2", subscription="prod", name="rg", region="here")
    assert site.effects() == [("create_resource_group", "g1")]
    with pytest.raises(InUse):
        site("create_resource_group", "g3", subscription="prod", name="rg", region="there")
