"""As root: home is a network whose firewall drops every inbound connection, and all still works, as home dials out.

Its route is cut, before the process server is registered and while a machine of the cloud replicates: preflight,
registration, RPO and doctor each name the cut, and none of them does once it is mended.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from backhaul.client.deployments import Deployments
from backhaul.client.lifecycle import Lifecycle
from backhaul.sites.local.client import LocalSite
from backhaul.sites.local.daemon import Endpoint, take_down
from backhaul.sites.local.definition import SiteKind
from backhaul.sites.local.namespaces import NamespaceFabric, inside
from backhaul.sites.values import SiteRole
from configuration_server.dialled import ID, Cloud
from configuration_server.live import LiveServer, until
from sites.daemon_process import Daemon
from sites.root_world import CLOUD_NET, HOME_NET, assert_as_before, remember_session, root_definition, traces
from sites.site_world import TOKENS

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not all(shutil.which(tool) for tool in ("ip", "nft", "losetup", "mkfs.xfs")),
        reason="needs iproute2, nftables, util-linux and xfsprogs",
    ),
]

HOME_HOST, CLOUD_HOST = "10.77.0.50", "10.78.1.50"
T = TypeVar("T")
OWNER = TOKENS[SiteRole.OWNER]
MiB = 1024 * 1024
SILENT_S = 5.0
"""Silence that is shown: far above what is normal."""


class HomeServer(LiveServer):
    """A configuration server on an address of home's network."""

    def start(self, *command: str) -> None:
        run = f'exec "$0" -m backhaul server run --data-dir "$2" --listen {HOME_HOST}:"${{4##*:}}"'
        super().start(*(command or ("/bin/sh", "-c", run, sys.executable)))

    @property
    def server(self) -> str:
        return f"https://{HOME_HOST}:{self.port}"


@dataclass(frozen=True)
class ServedSite:
    """A site whose provider is a process of its own, as the configuration server calls it."""

    kind: SiteKind
    network: str
    fabric: NamespaceFabric
    endpoint: Endpoint
    _client: LocalSite
    _outside: Executor

    def __call__(self, act: Callable[[LocalSite], T]) -> T:
        """Call the site from outside of all networks, wherever this thread is: what is dropped or cut is none of it."""
        return self._outside.submit(act, self._client).result()

    def within(self, act: Callable[[], Any]) -> Any:
        """Runs what it is given inside the network's namespace; processes that it starts stay there."""
        return inside(self.fabric.namespace(self.network), act)


@contextlib.contextmanager
def served(folder: Path, kind: SiteKind, network: str, host: str, management: str) -> Iterator[ServedSite]:
    """A site with an address of its network for this test's servers."""
    folder = folder / str(kind) / "site"
    folder.mkdir(parents=True)
    site = root_definition(kind)
    daemon = Daemon(folder, site, management)
    try:
        endpoint = daemon.start()
        fabric = NamespaceFabric(site)
        fabric.bind(network, host)
        with (
            contextlib.closing(LocalSite(endpoint.address, OWNER, endpoint.certificate_pem)) as client,
            ThreadPoolExecutor(1) as outside,
        ):
            outside.submit(client.routes).result()  # its thread begins here: one begun in a network stays there
            yield ServedSite(kind, network, fabric, endpoint, client, outside)
    finally:
        daemon.end(signal.SIGTERM)
        take_down(folder, site)


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[tuple[ServedSite, ServedSite]]:
    """Home and cloud; afterwards the machine is as it was before."""
    remember_session(tmp_path)
    before = traces()
    with (
        served(tmp_path / "sites", SiteKind.HOME, HOME_NET, HOME_HOST, "198.18.0.1:8443") as home,
        served(tmp_path / "sites", SiteKind.CLOUD, CLOUD_NET, CLOUD_HOST, "198.18.0.2:8443") as cloud,
    ):
        yield home, cloud
    assert_as_before(before)


def set_sites(home: HomeServer, sites: tuple[ServedSite, ServedSite]) -> None:
    """The configuration server knows both, and reaches them whatever route is cut."""
    assert home.profile is not None
    with Lifecycle(home.profile) as lifecycle:
        for site in sites:
            where = site.endpoint
            lifecycle.set_site(str(site.kind), site.kind, where.management, where.certificate_pem, OWNER)


def failing(home: HomeServer) -> dict[str, str]:
    """Code and reason of what speaks against another process server in the cloud's network."""
    assert home.profile is not None
    form = {"user": "rescue", "password": "Correct-Horse-7", "network": CLOUD_NET}
    with Deployments(home.profile) as deployments:
        findings = deployments.validate("ps-new", form)["findings"]
    return {one["code"]: one["reason"] for one in findings if one["severity"] == "fail"}


def plan_move(home: HomeServer, item: str) -> None:
    """Say where the item's sides are, so that a move can be looked at beforehand."""
    known = home.vault().item(item)["properties"]["backhaul"]
    common = {"subscription": "prod", "subnet": "default", "name": item, "agent": known["agent"]}
    here = common | {"site": "home", "network": HOME_NET, "target": "", "machine": f"id-of-{item}"}
    there = common | {"site": "cloud", "network": CLOUD_NET, "target": known["cloud"]["target"]}
    assert home.profile is not None
    with Lifecycle(home.profile) as lifecycle:
        lifecycle.set_plan(item, here, there)


def moving(home: HomeServer, item: str) -> dict[str, str]:
    """Code and reason of what speaks against moving an item with its final delta."""
    assert home.profile is not None
    with Lifecycle(home.profile) as lifecycle:
        findings = lifecycle.preflight("PlannedFailover", item)["findings"]
    return {one["code"]: one["reason"] for one in findings if one["severity"] == "fail"}


def assert_preflight_names_the_cut(home: HomeServer) -> None:
    """Home dials, so nothing in the cloud could try the way: home's own site says that its route is cut."""
    found = failing(home)
    assert f"the route of network {HOME_NET} of home, which is cut on home's side" in found["BH-PS-ROUTE"]


def assert_registration_names_the_cut(home: HomeServer, cloud: Cloud) -> None:
    """The tool on the new server where that dials, home's list of servers where home does, and the doctor."""
    cloud.dialling(addresses=[cloud.address], keyHash=cloud.key_hash)
    direct = cloud.register(home.vault().passphrase())
    assert direct.returncode != 0
    assert "BH-LINK-UNREACHABLE" in direct.stderr
    assert cloud.told in direct.stderr
    until(lambda: (cloud.dialling()["link"] or {}).get("code") == "BH-LINK-UNREACHABLE")
    assert cloud.server()["state"] == "unregistered"
    assert_doctor_names_the_cut(home, ID, item=False)


def assert_doctor_names_the_cut(home: HomeServer, subject: str, *, item: bool) -> None:
    """It stops at the rung that the cut broke: the first that leaves home's network."""
    walked = home.vault().doctor(subject, item=item)
    broken = walked["rungs"][-1]
    assert not walked["ok"]
    assert ("process-server" in broken["rung"], broken["code"]) == (True, "BH-LINK-UNREACHABLE"), broken
    assert CLOUD_HOST in broken["reason"]
    assert broken["fix"]


def assert_rpo_names_the_cut(home: HomeServer, item: str) -> None:
    """The newest point gets older, and beside it stands which link is broken; the item's health says it too, and who
    is not heard behind it.
    """

    def shown() -> dict[str, Any]:
        return dict(home.vault().item(item)["properties"])

    first = shown()["backhaul"]["rpo"]["seconds"]
    until(lambda: {"BH-HEALTH-AGENT", "BH-HEALTH-LINK"} <= {one["errorCode"] for one in shown()["healthErrors"]})
    known = until(lambda: (now := shown())["backhaul"]["rpo"]["seconds"] > first + SILENT_S and now)
    assert known["replicationHealth"] != "Normal"
    link = f"the link between this configuration server and process server {ID} at {CLOUD_HOST}:"
    assert known["backhaul"]["rpo"]["why"].startswith(link)
    (alert,) = [error for error in known["healthErrors"] if error["errorCode"] == "BH-HEALTH-LINK"]
    assert link in alert["errorMessage"]
    assert link in home.command("item", "show", item).stdout
    assert link in moving(home, item)["BH-PATH-BROKEN"]


def assert_all_heal(home: HomeServer, item: str) -> None:
    """Nobody names a cut any more."""
    until(lambda: home.vault().doctor(item, item=True)["ok"])
    until(lambda: home.vault().item(item)["properties"]["replicationHealth"] == "Normal")
    until(lambda: home.vault().item(item)["properties"]["backhaul"]["rpo"]["why"] == "")
    until(lambda: "BH-PATH-BROKEN" not in moving(home, item))
    assert "BH-PS-ROUTE" not in failing(home)


def test_registration_heartbeat_reports_and_replication_with_home_closed(
    sites: tuple[ServedSite, ServedSite], tmp_path: Path
) -> None:
    home_site, cloud_site = sites

    def reaches_home(port: int) -> bool:
        return cloud_site(lambda site: site.probe(CLOUD_NET, HOME_HOST, port, timeout_s=0.5)).reachable

    def at_home() -> None:
        home = HomeServer(tmp_path, addresses=[HOME_HOST], thresholds={"unknown_after_s": SILENT_S})
        try:
            home.start()
            home.login()
            set_sites(home, sites)
            assert reaches_home(home.port), "the firewall is what closes home, nothing else"
            home_site(lambda site: site.drop_inbound(HOME_NET, drop=True, token="closed"))
            assert not reaches_home(home.port)
            assert "BH-PS-ROUTE" not in failing(home), "home dials out: nothing needs a way in"

            cloud = Cloud(home, f"{HOME_HOST}:{home.port}", CLOUD_HOST, cloud_site.within)
            home_site(lambda site: site.cut_route(HOME_NET, token="cut before"))
            assert_preflight_names_the_cut(home)
            assert_registration_names_the_cut(home, cloud)
            home_site(lambda site: site.restore_route(HOME_NET, token="mended before"))
            assert "BH-PS-ROUTE" not in failing(home)
            cloud.registered()
            home.healthy("masterTargets")
            replica = cloud.replicate("vm1", root=os.urandom(MiB) + bytes(MiB))
            assert replica.read_bytes() == (tmp_path / "vm1-disks" / "root.img").read_bytes()
            plan_move(home, "vm1")
            assert_all_heal(home, "vm1")

            home_site(lambda site: site.cut_route(HOME_NET, token="cut"))
            assert_doctor_names_the_cut(home, "vm1", item=True)  # the agent's silence, which follows from it, is short
            until(lambda: cloud.server()["homeLink"]["code"] in ("BH-LINK-STALLED", "BH-LINK-UNREACHABLE"))
            assert_doctor_names_the_cut(home, ID, item=False)
            assert_preflight_names_the_cut(home)
            assert_rpo_names_the_cut(home, "vm1")
            home_site(lambda site: site.restore_route(HOME_NET, token="mended"))
            until(lambda: cloud.server()["homeLink"]["up"])
            assert_all_heal(home, "vm1")
            assert not reaches_home(home.port), "home was closed all the time"
        finally:
            home.close()

    home_site.within(at_home)
