"""Deploying and deleting a process server on a real local site: effects are counted in the site's own log, and a kill
before or after each call leaves exactly one of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from backhaul.configuration_server.errors import ResourceUnknown
from backhaul.configuration_server.lifecycle import deploying as d
from backhaul.configuration_server.lifecycle.errors import WaitedTooLong
from backhaul.configuration_server.member_way import PROCESS_SERVERS_TAG
from backhaul.process_server.unregistered import console_line
from backhaul.recovery.deployment import DeploymentRequest
from backhaul.recovery.errors import ChecksFailed
from backhaul.recovery.findings import Severity
from backhaul.recovery.preflight_facts import DeleteFacts
from backhaul.replication.units import MiB
from backhaul.replication.values import ItemId
from backhaul.sites.errors import AddressWrong, SiteError, SiteUnreachable, StartFailed
from backhaul.sites.local.client import LocalSite
from backhaul.sites.local.definition import AccountDefinition, SiteDefinition, SubscriptionDefinition
from backhaul.sites.values import Network, PowerState, Principal, RouteState, SiteRole, Subnet
from lifecycle.fake_world import Killed
from sites.site_world import (
    OWNER,
    PASSWORD,
    PASSWORD_HASH,
    PRINCIPALS,
    RANGE,
    SERVER_NET,
    Caller,
    definition,
    make_machine,
    running_site,
)

T = TypeVar("T")
FORM = DeploymentRequest(
    subscription="prod", resource_group="rg-new", new_resource_group=True, region="here", network=SERVER_NET,
    subnet="default", name="ps-azure", user="drops", password=PASSWORD, storage_account="acc",
)  # fmt: skip
KEY = bytes(range(32))
BOOTED = ("/bin/sh", "-c", f"echo '{console_line(KEY)}'; while :; do sleep 1000; done")
WRITING = frozenset(
    {"set_tags", "create_resource_group", "reserve_address", "create_server", "delete_server", "release_address"}
)


class ProviderSite(LocalSite):
    """The client, with the provider in this process; a kill is placed before or after a writing call."""

    def __init__(self, caller: Caller, principal: Principal = OWNER) -> None:
        self._caller, self._principal = caller, principal
        self.calls = 0
        self.kill_at: tuple[int, str] | None = None

    def _call(self, kind: type[T], operation: str, token: str = "", /, **arguments: Any) -> T:
        writes = operation in WRITING
        self.calls += writes
        if writes and self.kill_at == (self.calls, "before"):
            self.kill_at = None
            raise Killed(operation)
        body = msgspec.json.encode(arguments)
        answer = self._caller.provider.perform(self._principal, operation, token, body)
        if writes and self.kill_at == (self.calls, "after"):
            self.kill_at = None
            raise Killed(operation)
        return msgspec.json.decode(answer, type=kind)


class HomeSite:
    """What a home says of its networks and their routes. `routes` None: it does not answer."""

    def __init__(self, **cut: bool) -> None:
        self.cut: dict[str, bool] | None = cut

    def networks(self) -> tuple[Network, ...]:
        prefixes = {"servers": "10.77.0.0/24", "machines": "10.77.1.0/24"}
        return tuple(
            Network(name, "prod", "rg", "here", prefix, (Subnet("default", prefix),))
            for name, prefix in prefixes.items()
        )

    def routes(self) -> tuple[RouteState, ...]:
        if self.cut is None:
            raise SiteUnreachable(site="home", reason="it is off")
        return tuple(RouteState(name, cut, False, True) for name, cut in self.cut.items())


class Plane:
    """Every port but the site itself."""

    def __init__(self, site: ProviderSite) -> None:
        self.held: dict[str, d.Deployment] = {}
        self.cloud = site
        self.home_sites: dict[str, HomeSite] = {}
        self.is_healthy = True
        self.users: tuple[str, ...] = ()
        self.revoked: list[str] = []
        self.withdrawn: list[str] = []
        self.expected: list[tuple[str, bytes]] = []
        self.machine = ""
        self.ports = d.DeployPorts(self, self, self, self)

    def site(self, name: str) -> Any:
        return self.cloud if name == "cloud" else self.home_sites[name]

    def homes(self) -> tuple[str, ...]:
        return tuple(self.home_sites)

    def load(self, deployment: str) -> d.Deployment:
        try:
            return self.held[deployment]
        except KeyError:
            raise ResourceUnknown(kind="deployment", name=deployment) from None

    def store(self, deployment: d.Deployment) -> None:
        self.held[deployment.id] = deployment

    def forget(self, deployment: str) -> None:
        self.held.pop(deployment, None)

    def boot_data(self, deployment: d.Deployment) -> str:
        return f"token-for-{deployment.server}" if deployment.register else ""

    def registered(self, server: str) -> bool:
        return False

    def healthy(self, server: str) -> bool:
        assert (server, KEY) in self.expected
        return self.is_healthy

    def expect(self, deployment: d.Deployment, key_hash: bytes) -> None:
        self.expected.append((deployment.server, key_hash))

    def withdraw(self, deployment: d.Deployment) -> None:
        self.withdrawn.append(deployment.server)

    def failed_over(self, site: str, network: str) -> tuple[str, ...]:
        return (self.machine,) if network == SERVER_NET else ()

    def failover_subscription(self, site: str, network: str) -> str:
        return "prod"

    def before_delete(self, deployment: d.Deployment) -> DeleteFacts:
        return DeleteFacts(
            name=deployment.form.name, network=SERVER_NET, items=self.users, spool_bytes=0, built_in=False,
            caller_may_delete=True, other_servers=0, failed_over=0,
        )  # fmt: skip

    def revoke(self, deployment: d.Deployment) -> None:
        if deployment.server not in self.revoked:
            self.revoked.append(deployment.server)

    def until(self, look: Callable[[], T | None], *, item: ItemId, what: str, limit_s: float) -> T:
        while (found := look()) is None:
            if "key" not in what:
                raise WaitedTooLong(item=item, what=what, limit_s=limit_s)
        return found

    def run(self, steps: tuple[d.DeployStep, ...], journal: set[str] | None = None) -> None:
        """The job, from where its journal says."""
        done = journal if journal is not None else set()
        for step in steps:
            if step.name not in done:
                step.run(self.ports, "one")
                done.add(step.name)


@contextmanager
def deployment(folder: Path, site: SiteDefinition | None = None, **changes: Any) -> Iterator[tuple[Caller, Plane]]:
    """A cloud, and a form that was filled in."""
    with running_site(folder, site) as caller:
        plane = Plane(ProviderSite(caller))
        plane.machine = make_machine(caller, "machine").id
        form = msgspec.structs.replace(FORM, password="", **changes)
        plane.store(
            d.Deployment(
                id="one", site="cloud", form=form, password=PASSWORD_HASH, size="small", command=BOOTED, register=True
            )
        )
        yield caller, plane


def effects(caller: Caller) -> list[str]:
    """Names of what the site did, by its own log, after the machine was made."""
    return [operation for operation, _ in caller.effects()][1:]


WHOLE = ["create_resource_group", "reserve_address", "create_server", "set_tags"]
GONE = ["set_tags", "delete_server"]
"""This site gives the address back with the server; the step that releases it finds nothing to do."""


def test_a_deployment_makes_each_thing_once_and_repeating_it_nothing(tmp_path: Path) -> None:
    with deployment(tmp_path / "cloud", address=f"{RANGE}.1.77") as (caller, plane):
        plane.run(d.DEPLOYING)
        assert effects(caller) == WHOLE
        plane.run(d.DEPLOYING)
        assert effects(caller) == WHOLE
        server = plane.cloud.servers()[0]
        assert (server.name, server.address, server.user, server.account) == (
            "ps-azure", f"{RANGE}.1.77", "drops", "acc",
        )  # fmt: skip
        assert server.power is PowerState.RUNNING
        assert plane.cloud.authenticate("ps-azure", "drops", PASSWORD)
        assert plane.cloud.metadata(plane.machine).tags == {PROCESS_SERVERS_TAG: f"{RANGE}.1.77:9443"}
        assert plane.expected[0] == ("ps-azure-one", KEY)


def test_a_kill_anywhere_leaves_one_effect_of_each(tmp_path: Path) -> None:
    places = [(number, when) for number in range(1, 5) for when in ("before", "after")]
    for number, when in places:
        with deployment(tmp_path / f"{number}{when}") as (caller, plane):
            plane.cloud.kill_at = (number, when)
            journal: set[str] = set()
            with pytest.raises(Killed):
                plane.run(d.DEPLOYING, journal)
            plane.run(d.DEPLOYING, journal)
            assert effects(caller) == WHOLE, f"{when} call {number}"


def test_a_deletion_leaves_the_site_as_it_was(tmp_path: Path) -> None:
    for number, when in [(0, ""), *((n, when) for n in (5, 6) for when in ("before", "after"))]:
        with deployment(tmp_path / f"{number}{when}") as (caller, plane):
            before = (plane.cloud.servers(), plane.cloud.addresses(SERVER_NET), plane.cloud.subscriptions())
            free = [account.used for account in plane.cloud.accounts()]
            plane.run(d.DEPLOYING)
            assert plane.cloud.servers() != before[0]
            plane.cloud.kill_at = (number, when) if number else None
            journal: set[str] = set()
            if number:
                with pytest.raises(Killed):
                    plane.run(d.DELETING, journal)
            plane.run(d.DELETING, journal)
            assert effects(caller) == WHOLE + GONE
            assert (plane.cloud.servers(), plane.cloud.addresses(SERVER_NET), plane.cloud.subscriptions()) == before
            assert [account.used for account in plane.cloud.accounts()] == free
            assert plane.revoked == ["ps-azure-one"]
            assert plane.cloud.metadata(plane.machine).tags[PROCESS_SERVERS_TAG] == ""
            assert plane.held == {}


def test_a_server_that_items_need_is_not_deleted(tmp_path: Path) -> None:
    with deployment(tmp_path / "cloud") as (caller, plane):
        plane.run(d.DEPLOYING)
        plane.users = ("web", "db")
        with pytest.raises(ChecksFailed) as refused:
            plane.run(d.DELETING)
        assert "BH-DELETE-IN-USE" in str(refused.value)
        assert effects(caller) == WHOLE
        assert plane.revoked == []


def test_what_cannot_be_created_is_cleaned_up_and_may_be_tried_again(tmp_path: Path) -> None:
    with deployment(tmp_path / "cloud") as (caller, plane):
        before = plane.cloud.addresses(SERVER_NET)
        plane.store(msgspec.structs.replace(plane.load("one"), command=("/nonexistent/program",)))
        with pytest.raises(SiteError) as failed:
            plane.run(d.DEPLOYING)
        assert isinstance(failed.value, StartFailed)
        assert plane.cloud.servers() == ()
        assert plane.cloud.addresses(SERVER_NET) == before, "the address was given back"
        assert plane.load("one").reserved == ""
        assert plane.withdrawn == ["ps-azure-one"]
        plane.store(msgspec.structs.replace(plane.load("one"), command=BOOTED))
        plane.run(d.DEPLOYING)
        assert effects(caller) == ["create_resource_group", "reserve_address", "release_address", *WHOLE[1:]]


def test_one_that_does_not_get_healthy_is_gone_on_with(tmp_path: Path) -> None:
    with deployment(tmp_path / "cloud") as (caller, plane):
        plane.is_healthy = False
        with pytest.raises(WaitedTooLong):
            plane.run(d.DEPLOYING)
        assert len(plane.cloud.servers()) == 1
        plane.is_healthy = True
        plane.run(d.DEPLOYING)
        assert effects(caller) == WHOLE


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"subscription": "elsewhere"}, "BH-PS-SUBSCRIPTION-UNKNOWN"),
        ({"resource_group": "rg"}, "BH-PS-GROUP-EXISTS"),
        ({"region": "there"}, "BH-PS-REGION-UNKNOWN"),
        ({"network": "vnet2"}, "BH-PS-NETWORK-UNUSED"),
        ({"subnet": "other"}, "BH-PS-SUBNET-UNKNOWN"),
        ({"address": "10.9.9.9"}, "BH-PS-ADDRESS-OUTSIDE"),
        ({"address": f"{RANGE}.1.2"}, "BH-PS-ADDRESS-RESERVED"),
        ({"name": "-bad"}, "BH-PS-NAME-CHARACTERS"),
        ({"user": "admin"}, "BH-PS-USER-RESERVED"),
        ({"storage_account": "none"}, "BH-PS-STORAGE-UNKNOWN"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_form_with_a_mistake_makes_nothing(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    with deployment(tmp_path / "cloud", **changes) as (caller, plane):
        found = d.findings(plane.ports, plane.load("one"), PASSWORD)
        assert code in [finding.code for finding in found if finding.severity is Severity.FAIL]
        with pytest.raises(ChecksFailed):
            plane.run(d.DEPLOYING)
        assert effects(caller) == []


FULL: dict[str, dict[str, Any]] = {
    "BH-PS-QUOTA-SERVERS": {"subscriptions": (SubscriptionDefinition("prod", 0, 12),)},
    "BH-PS-QUOTA-CORES": {"subscriptions": (SubscriptionDefinition("prod", 3, 1),)},
    "BH-PS-STORAGE-FULL": {"accounts": (AccountDefinition("acc", "prod", "rg", "here", 8 * MiB),)},
    "BH-PS-STORAGE-REGION": {"accounts": (AccountDefinition("acc", "prod", "rg", "there", 64 * MiB),)},
}


@pytest.mark.parametrize("code", FULL)
def test_a_site_without_room_makes_nothing(tmp_path: Path, code: str) -> None:
    with deployment(tmp_path / "cloud", definition(**FULL[code])) as (caller, plane):
        found = d.findings(plane.ports, plane.load("one"), PASSWORD)
        assert [finding.code for finding in found if finding.severity is Severity.FAIL] == [code]
        with pytest.raises(ChecksFailed):
            plane.run(d.DEPLOYING)
        assert effects(caller) == []


def test_a_cut_route_is_found_and_named(tmp_path: Path) -> None:
    with deployment(tmp_path / "cloud") as (_, plane):
        cut = RouteState(SERVER_NET, cut=True, inbound_dropped=False, controllable=True)
        plane.cloud.routes = lambda: (cut,)  # type: ignore[method-assign]
        found = d.findings(plane.ports, plane.load("one"), PASSWORD)
        (failed,) = [finding for finding in found if finding.severity is Severity.FAIL]
        assert failed.code == "BH-PS-ROUTE"
        assert f"network {SERVER_NET}, which is cut on the cloud's side" in failed.reason


@pytest.mark.parametrize(
    ("cut", "server", "named"),
    [
        pytest.param(
            {"servers": True, "machines": True}, "", "network machines of home, network servers of home", id="all"
        ),
        pytest.param({"servers": True, "machines": False}, "10.77.0.9:443", "network servers of home", id="its-own"),
        pytest.param({"servers": True, "machines": False}, "10.77.1.9:443", "", id="another"),
        pytest.param({"servers": True, "machines": False}, "cs.example.com:443", "", id="nobody-knows"),
        pytest.param({"servers": False, "machines": False}, "10.77.0.9:443", "", id="whole"),
        pytest.param(None, "10.77.0.9:443", "", id="home-is-silent"),
    ],
)
def test_a_cut_on_homes_side_is_found_and_named(
    tmp_path: Path, cut: dict[str, bool] | None, server: str, named: str
) -> None:
    """Home dials, so nothing in the cloud can try the way: home's own site says that it is cut."""
    with deployment(tmp_path / "cloud") as (_, plane):
        plane.home_sites = {"home": HomeSite()}
        plane.home_sites["home"].cut = cut
        plane.store(msgspec.structs.replace(plane.load("one"), configuration_server=server))
        found = d.findings(plane.ports, plane.load("one"), PASSWORD)
        failed = [finding for finding in found if finding.severity is Severity.FAIL]
        assert [finding.code for finding in failed] == ["BH-PS-ROUTE"] * bool(named)
        assert [f"route of {named}, which is cut on home's side" in finding.reason for finding in failed] == [
            True
        ] * bool(named)


def test_an_address_that_is_taken_meanwhile_fails_with_its_code(tmp_path: Path) -> None:
    with deployment(tmp_path / "cloud", address=f"{RANGE}.1.77") as (caller, plane):
        d.validate(plane.ports, "one")
        caller("reserve_address", "thief", network=SERVER_NET, subnet="default", address=f"{RANGE}.1.77")
        before = plane.cloud.addresses(SERVER_NET)
        with pytest.raises(AddressWrong):
            plane.run(d.DEPLOYING, {"validate"})
        assert (plane.cloud.servers(), plane.cloud.addresses(SERVER_NET)) == ((), before)
        caller("release_address", "thief-gone", network=SERVER_NET, address=f"{RANGE}.1.77")
        plane.run(d.DEPLOYING)
        assert plane.cloud.servers()[0].address == f"{RANGE}.1.77"


def test_a_good_form_has_no_finding_and_a_reader_may_not(tmp_path: Path) -> None:
    with deployment(tmp_path / "cloud") as (caller, plane):
        failed = [f.code for f in d.findings(plane.ports, plane.load("one"), PASSWORD) if f.severity is Severity.FAIL]
        assert failed == []
        reader = Plane(ProviderSite(caller, PRINCIPALS[SiteRole.READER]))
        found = d.findings(reader.ports, plane.load("one"), PASSWORD)
        assert [f.code for f in found if f.severity is Severity.FAIL] == ["BH-PS-RIGHTS"]
        assert definition().accounts
