"""The daemon: TLS, principals, roles, hostile requests, the client, and a restart that adopts."""

from __future__ import annotations

import asyncio
import inspect
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from backhaul.replication.ports import RealClock, RealFiles
from backhaul.replication.units import KiB, MiB
from backhaul.sites.contract import Site
from backhaul.sites.errors import (
    InUse,
    NotAllowed,
    RouteNotControllable,
    SiteNotFound,
    SiteUnreachable,
    Unauthenticated,
)
from backhaul.sites.local.client import LocalSite
from backhaul.sites.local.daemon import Endpoint, take_down
from backhaul.sites.local.operations import TABLE
from backhaul.sites.local.tls import client_context, ensure_certificate
from backhaul.sites.values import DiskRequest, MachineDisk, MachineRequest, PowerState, SiteRole
from sites.daemon_process import Daemon
from sites.site_world import PASSWORD, RANGE, SLEEPER, TOKENS, definition, server_request


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """One daemon for the tests that do not end it: it takes a second or two to start."""
    daemon = Daemon(tmp_path_factory.mktemp("site") / "cloud")
    yield daemon.start()
    daemon.end(signal.SIGTERM)
    take_down(daemon.folder, definition())


@pytest.fixture
def endpoint(shared: Endpoint) -> Iterator[Endpoint]:
    """The shared daemon, left empty for the next test."""
    yield shared
    site = client(shared)
    for server in site.servers():
        site.delete_server(server.name, token=f"clean {server.id}")
    for machine in site.machines():
        site.power_off(machine.id, token=f"off {machine.id}")
        site.delete_machine(machine.id, token=f"clean {machine.id}")
    for disk in site.disks():
        site.delete_disk(disk.id, token=f"clean {disk.id}")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that the test may kill; all that it made is taken down."""
    daemon = Daemon(tmp_path / "cloud")
    yield daemon
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.end(signal.SIGKILL)
    take_down(daemon.folder, definition())


_open: list[LocalSite] = []


@pytest.fixture(autouse=True)
def _close_clients() -> Iterator[None]:
    """Close what `dial` opened."""
    yield
    while _open:
        _open.pop().close()


def dial(endpoint: Endpoint, token: str, certificate: str = "") -> LocalSite:
    """A client that is closed at the end of the test."""
    _open.append(LocalSite(endpoint.address, token, certificate or endpoint.certificate_pem))
    return _open[-1]


def client(endpoint: Endpoint, role: SiteRole = SiteRole.OWNER) -> LocalSite:
    """A client with the role's token."""
    return dial(endpoint, TOKENS[role])


def test_the_contract_through_the_client(endpoint: Endpoint) -> None:
    site: Site = client(endpoint)
    assert site.whoami().roles == {"prod": SiteRole.OWNER}
    assert [network.name for network in site.networks()] == ["vnet", "vnet2"]
    assert site.networks()[0].subnets[0].reserved[1] == f"{RANGE}.1.1"
    assert {size.name for size in site.sizes()} == {"small", "large"}
    disk = site.create_disk(DiskRequest("d", "prod", 64 * KiB), token="d1")
    assert site.grow_disk(disk.id, 128 * KiB, token="d2").size == 128 * KiB
    layer = site.layer_create(disk.id, token="d3")
    assert site.layer_plan(disk.id).kind == layer.layer_kind
    assert site.layer_commit(layer.id, token="d4").id == disk.id
    site.layer_drop(site.layer_create(disk.id, token="d5").id, token="d6")
    attached = site.attach_disk(disk.id, "master-target:x", token="d7")
    assert Path(attached.path).stat().st_size == 128 * KiB
    site.detach_disk(disk.id, token="d8")
    request = MachineRequest("vm1", "prod", "vnet", "default", SLEEPER, (MachineDisk(disk.id),))
    machine = site.create_machine(request, token="m1")
    assert site.power_on(machine.id, token="m2").power is PowerState.RUNNING
    assert site.hang(machine.id, token="m3").power is PowerState.HUNG
    assert site.resume(machine.id, token="m4").power is PowerState.RUNNING
    assert site.set_tags(machine.id, {"a": "b"}, token="m5") == site.metadata(machine.id)
    assert site.power_off(machine.id, token="m6").power is site.power_state(machine.id) is PowerState.OFF
    assert site.machines()[0].tags == {"a": "b"}
    site.delete_machine(machine.id, token="m7")
    site.delete_disk(disk.id, token="d9")
    assert (site.disks(), site.machines()) == ((), ())
    numbers = [effect.number for effect in site.effects()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert [effect.token for effect in site.effects(after=numbers[-2])] == ["d9"]
    assert len(site.effects(limit=2)) == 2


def test_servers_through_the_client(endpoint: Endpoint) -> None:
    site = client(endpoint)
    assert site.create_resource_group("prod", "new", "here", token="g") in site.resource_groups()
    address = site.reserve_address("vnet", "default", token="r").address
    assert site.server_findings(server_request(name="-"))[0].code == "BH-SERVER-NAME"
    server = site.create_server(server_request(address=address), token="s1")
    assert site.servers() == (server,)
    assert site.authenticate("ps1", "psadmin", PASSWORD)
    assert site.stop_server("ps1", token="s2").power is PowerState.OFF
    assert site.start_server("ps1", token="s3").power is PowerState.RUNNING
    assert isinstance(site.console("server:ps1"), str)
    assert site.accounts()[0].used == 12 * MiB
    assert site.subscriptions()[0].cores_used == 2
    site.delete_server("ps1", token="s4")
    site.reserve_address("vnet", "default", token="r2")
    site.release_address("vnet", site.addresses("vnet")[0].address, token="r3")
    assert site.addresses("vnet") == ()
    with pytest.raises(SiteNotFound, match="ps1"):
        site.start_server("ps1", token="s5")


def test_unprivileged_routes_say_why_they_cannot_be_cut(endpoint: Endpoint) -> None:
    site = client(endpoint)
    assert [(r.controllable, bool(r.reason)) for r in site.routes()] == [(False, True)] * 2
    for act in (site.cut_route, site.restore_route):
        with pytest.raises(RouteNotControllable, match="without root"):
            act("vnet", token="x")
    with pytest.raises(RouteNotControllable):
        site.drop_inbound("vnet", True, token="y")
    host, _, port = endpoint.address.rpartition(":")
    assert site.probe("vnet", host, int(port)).reachable
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]
    refused = site.probe("vnet", "127.0.0.1", closed)
    assert not refused.reachable
    assert "refused" in refused.reason


def test_the_client_has_exactly_the_contract() -> None:
    promised = {name for name, _ in inspect.getmembers(Site, inspect.isfunction) if not name.startswith("_")}
    assert promised == set(TABLE)
    for name in promised:
        assert inspect.signature(getattr(LocalSite, name)) == inspect.signature(getattr(Site, name)), name


FLOORS = {
    SiteRole.OWNER: {"cut_route", "restore_route", "drop_inbound"},
    SiteRole.CONTRIBUTOR: {
        "create_resource_group", "create_server", "delete_server", "reserve_address", "release_address",
    },
    SiteRole.OPERATOR: {
        "create_disk", "delete_disk", "grow_disk", "attach_disk", "detach_disk", "layer_create", "layer_drop",
        "layer_commit", "create_machine", "delete_machine", "power_on", "power_off", "hang", "resume", "set_tags",
        "start_server", "stop_server",
    },
}  # fmt: skip


def test_the_table_says_who_may_call_what() -> None:
    for role, names in FLOORS.items():
        assert {name for name, row in TABLE.items() if row.floor is role} == names
    writing = {name for names in FLOORS.values() for name in names}
    assert {name for name, row in TABLE.items() if row.writes} == writing


def test_every_operation_refuses_who_may_not(endpoint: Endpoint) -> None:
    http = httpx.Client(base_url=f"https://{endpoint.address}", verify=client_context(endpoint.certificate_pem))
    with http:
        for name, row in TABLE.items():
            assert http.post(f"/v1/{name}").status_code == 401, name
            below = [role for role in SiteRole if role.rank < row.floor.rank]
            for role in below:
                answer = http.post(f"/v1/{name}", headers={"authorization": f"Bearer {TOKENS[role]}"})
                assert (answer.status_code, answer.json()["code"]) == (403, "BH-SITE-NOT-ALLOWED"), (name, role)
    with pytest.raises(Unauthenticated):
        dial(endpoint, "wrong").whoami()


def test_a_role_elsewhere_is_none_here(endpoint: Endpoint) -> None:
    mine = client(endpoint)
    disk = mine.create_disk(DiskRequest("d", "prod", 64 * KiB), token="d").id
    mine.create_server(server_request(), token="s")
    machine = mine.create_machine(MachineRequest("m", "prod", "vnet", "default", SLEEPER, ()), token="m").id
    stranger = dial(endpoint, "stranger")
    for seen in (stranger.disks(), stranger.servers(), stranger.machines(), stranger.networks(), stranger.accounts()):
        assert seen == ()
    size = len(mine.effects())
    attempts: list[Any] = [
        lambda: stranger.delete_disk(disk, token="1"),
        lambda: stranger.grow_disk(disk, MiB, token="2"),
        lambda: stranger.attach_disk(disk, "x:y", token="3"),
        lambda: stranger.detach_disk(disk, token="4"),
        lambda: stranger.layer_create(disk, token="5"),
        lambda: stranger.layer_plan(disk),
        lambda: stranger.layer_drop(disk, token="6"),
        lambda: stranger.layer_commit(disk, token="7"),
        lambda: stranger.create_disk(DiskRequest("d", "prod", 4096), token="8"),
        lambda: stranger.create_server(server_request(name="b"), token="9"),
        lambda: stranger.delete_server("ps1", token="10"),
        lambda: stranger.stop_server("ps1", token="11"),
        lambda: stranger.start_server("ps1", token="12"),
        lambda: stranger.authenticate("ps1", "psadmin", PASSWORD),
        lambda: stranger.console("server:ps1"),
        lambda: stranger.power_on(machine, token="13"),
        lambda: stranger.power_off(machine, token="14"),
        lambda: stranger.power_state(machine),
        lambda: stranger.hang(machine, token="15"),
        lambda: stranger.resume(machine, token="16"),
        lambda: stranger.metadata(machine),
        lambda: stranger.set_tags(machine, {}, token="17"),
        lambda: stranger.delete_machine(machine, token="18"),
        lambda: stranger.addresses("vnet"),
        lambda: stranger.reserve_address("vnet", "default", token="19"),
        lambda: stranger.release_address("vnet", f"{RANGE}.1.4", token="20"),
        lambda: stranger.probe("vnet", "127.0.0.1", 1),
        lambda: stranger.cut_route("vnet", token="21"),
        lambda: stranger.create_resource_group("prod", "x", "here", token="22"),
    ]
    for attempt in attempts:
        with pytest.raises(NotAllowed):
            attempt()
    assert len(mine.effects()) == size


def test_hostile_requests(endpoint: Endpoint) -> None:
    headers = {"authorization": f"Bearer {TOKENS[SiteRole.OWNER]}", "client-request-token": "t"}
    with httpx.Client(
        base_url=f"https://{endpoint.address}", verify=client_context(endpoint.certificate_pem), headers=headers
    ) as http:
        assert http.post("/v1/nothing").status_code == 404
        assert http.get("/v1/whoami").status_code == 404
        for path in ("/docs", "/openapi.json", "/"):
            assert http.get(path).status_code == 404
        for body in (b"{", b"[]", b'{"disk": 5, "size": 1}', b'{"disk": "a", "size": 1, "more": 2}', b"{}"):
            answer = http.post("/v1/grow_disk", content=body)
            assert (answer.status_code, answer.json()["code"]) == (400, "BH-SITE-REQUEST-MALFORMED"), body
        large = http.post("/v1/grow_disk", content=b" " * (2 * MiB))
        assert large.json()["code"] == "BH-SITE-REQUEST-MALFORMED"
        for token in ("", "x" * 300):
            answer = http.post("/v1/delete_disk", content=b'{"disk": "a"}', headers={"client-request-token": token})
            assert answer.status_code == 400
        assert http.post("/v1/whoami").json()["name"] == "owner"


def test_only_tls_1_3_with_the_pinned_certificate(endpoint: Endpoint, tmp_path: Path) -> None:
    files, clock = RealFiles(), RealClock()
    other, _ = ensure_certificate(tmp_path, "other", files, clock)
    with pytest.raises(SiteUnreachable, match="certificate"):
        dial(endpoint, TOKENS[SiteRole.OWNER], other.read_text()).whoami()
    old = client_context(endpoint.certificate_pem)
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    host, _, port = endpoint.address.rpartition(":")
    with socket.create_connection((host, int(port))) as plain, pytest.raises(ssl.SSLError):
        old.wrap_socket(plain)
    assert ((tmp_path / "key.pem").stat().st_mode & 0o077) == 0


def test_a_killed_daemon_comes_back_and_adopts(daemon: Daemon) -> None:
    site = client(daemon.start())
    site.create_server(server_request(), token="s1")
    run = (daemon.folder / "provider" / "run" / "server-ps1.run").read_bytes()
    assert daemon.end(signal.SIGKILL) == -signal.SIGKILL
    with pytest.raises(SiteUnreachable):
        site.servers()
    again = client(daemon.start())
    assert again.servers()[0].power is PowerState.RUNNING
    assert (daemon.folder / "provider" / "run" / "server-ps1.run").read_bytes() == run
    again.create_server(server_request(), token="s1")
    assert [effect.token for effect in again.effects()] == ["s1"]
    with pytest.raises(InUse):
        again.release_address("vnet", again.servers()[0].address, token="x")
    assert daemon.end(signal.SIGTERM) in (0, -signal.SIGTERM)


async def test_calls_at_once_are_carried_out_once(endpoint: Endpoint) -> None:
    site = client(endpoint)
    before = site.effects()[-1].number if site.effects() else 0
    request = server_request()
    calls = [asyncio.to_thread(site.create_server, request, token="same") for _ in range(6)]
    answers = await asyncio.gather(*calls)
    assert len({answer.id for answer in answers}) == 1
    assert [effect.token for effect in site.effects(after=before)] == ["same"]
