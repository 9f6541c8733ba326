"""What speaks against a job is found in the world: per code one thing is broken, and exactly that finding comes.

The facts are gathered as they are before every job. The codes of the cases and those of the source are equal sets.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from backhaul.configuration_server.api.preflight import preflight
from backhaul.configuration_server.errors import ResourceUnknown
from backhaul.configuration_server.items import state_of
from backhaul.configuration_server.lifecycle import deploying as d
from backhaul.configuration_server.lifecycle import ending
from backhaul.configuration_server.lifecycle import workflows as w
from backhaul.configuration_server.lifecycle.core import SETTLE_NS, lifecycle_of
from backhaul.configuration_server.lifecycle.deploying_core import StoredDeployments
from backhaul.configuration_server.lifecycle.deploying_errors import DeploymentRefused
from backhaul.configuration_server.lifecycle.deploying_jobs import begin_delete, delete_findings
from backhaul.configuration_server.live import LiveItem
from backhaul.configuration_server.plane import ControlPlane
from backhaul.configuration_server.records import ItemRecord, ServerRecord
from backhaul.configuration_server.settings import Settings
from backhaul.configuration_server.vault import Vault
from backhaul.recovery.deployment import DeploymentRequest
from backhaul.recovery.errors import ChecksFailed, OperationRefused
from backhaul.recovery.findings import REGISTRY, Severity, problems
from backhaul.recovery.item import State
from backhaul.recovery.policies import ReplicationPolicy
from backhaul.recovery.preflight import ITEM_LISTS
from backhaul.recovery.preflight_delete import DELETE_PROCESS_SERVER
from backhaul.replication.ports import RealFiles
from backhaul.replication.values import ItemId, Role
from backhaul.sites.values import Machine, PasswordHash, PowerState, SiteRole
from dataplane.plane import WORLD
from lifecycle import stations
from lifecycle.deployed import ITEM, enter_item
from lifecycle.fake_site import FakeSite
from lifecycle.fake_world import SIZE, World
from lifecycle.preflight_cases import CASES, account
from lifecycle.stations import JOBS

SILENCE: dict[tuple[str, str], list[str]] = {
    ("protect", "cloud"): ["BH-SITE-SILENT"],
    ("failover", "home"): ["BH-SOURCE-SITE-SILENT"],
    ("unplanned", "home"): [],
    ("change of point", "home"): [],
    ("commit", "home"): [],
    ("commit", "mt-cloud"): ["BH-MASTER-TARGET-SILENT"],
    ("cancel failover", "home"): ["BH-SITE-SILENT"],
    ("cancel failover", "mt-cloud"): ["BH-MASTER-TARGET-SILENT"],
    ("reprotect", "home"): ["BH-SITE-SILENT"],
    ("cancel protected to home", "cloud"): [],
    ("resync", "home"): ["BH-SOURCE-SITE-SILENT"],
    ("unprotect", "home"): [],
    ("unprotect", "cloud"): ["BH-SITE-SILENT"],
    ("complete the migration", "home"): [],
    ("purge", "cloud"): [],
    ("purge", "mt-cloud"): [],
}
"""What a job is refused for, and what not, when a site or a target is silent."""


def found(world: World, kind: str) -> list[str]:
    """Codes of all that is no pass, each once."""
    findings = problems(w.findings_before(world.ports, world.stored, kind))
    return list(dict.fromkeys(finding.code for finding in findings))


@pytest.mark.parametrize("code", CASES)
def test_one_thing_that_is_broken_gives_exactly_its_finding(code: str) -> None:
    case = CASES[code]
    world = case.build()
    world.stored = msgspec.structs.replace(world.stored, wish=case.wish)
    assert found(world, case.kind) == []
    case.break_it(world)
    effects = list(world.effects)
    assert found(world, case.kind) == [code]
    if REGISTRY[code].severity is Severity.FAIL:
        with pytest.raises((ChecksFailed, OperationRefused)):
            world.run(case.kind, "job-x")
    assert world.effects == effects, "nothing was changed"


@pytest.mark.parametrize("name", JOBS)
def test_nothing_speaks_against_a_job_where_all_is_well(name: str) -> None:
    build, kind, wish = JOBS[name]
    world = build()
    world.stored = msgspec.structs.replace(world.stored, wish=wish)
    findings = w.findings_before(world.ports, world.stored, kind)
    assert findings
    assert [finding.code for finding in findings if finding.severity is Severity.FAIL] == []


@pytest.mark.parametrize(("name", "away"), SILENCE)
def test_a_job_is_refused_for_the_silence_of_what_it_needs_and_of_nothing_else(name: str, away: str) -> None:
    build, kind, wish = JOBS[name]
    world = build()
    world.stored = msgspec.structs.replace(world.stored, wish=wish)
    if away.startswith("mt-"):
        world.gone.add(away)
    else:
        world.site(away).silent = True
    findings = w.findings_before(world.ports, world.stored, kind)
    assert [finding.code for finding in findings if finding.severity is Severity.FAIL] == SILENCE[name, away]


def test_an_item_without_sites_is_not_asked_about_them() -> None:
    world = stations.protected()
    bare = msgspec.structs.replace(world.stored.home, site="")
    world.stored = msgspec.structs.replace(
        world.stored, home=bare, cloud=msgspec.structs.replace(world.stored.cloud, site="")
    )
    world.home.silent = world.cloud.silent = True
    for kind in (w.RESYNC, ending.DISABLE):
        assert found(world, kind) == []
    assert [one.code for one in problems(w.findings_before_protect(world.ports, world.stored))] == ["BH-ITEM-STATE"]


def test_layers_that_a_change_of_point_drops_leave_room_for_the_next() -> None:
    world = stations.failed_over()
    world.cloud.copied = SIZE
    for disk in (*world.stored.cloud.disks, *world.stored.cloud.layers):
        world.cloud.reshape(disk, account=account(world.cloud, 0))
    assert found(world, w.CHANGE_POINT) == ["BH-LAYER-COPY"]
    world.cloud.copied = 2 * SIZE
    assert found(world, w.CHANGE_POINT) == ["BH-LAYER-SPACE"]


# --- deleting a process server ----------------------------------------------------------------------------------------

BLUE = d.Deployment(
    id="b" * 32, site="cloud", password=PasswordHash("", ""), size="small", command=(), register=True,
    form=DeploymentRequest(
        subscription="prod", resource_group="rg", region="here", network="vnet", subnet="default", name="ps-blue",
        user="rescue", password="", storage_account="acc",
    ),
)  # fmt: skip
WEB = Machine("m-web", "web", "prod", "vnet", "default", "10.0.0.9", (), {}, PowerState.RUNNING)


class Plane:
    """A control plane whose one site is a value, with one deployed process server."""

    def __init__(self, folder: Path) -> None:
        self.vault = Vault(folder, Settings(), RealFiles(), WORLD)
        self.control = ControlPlane(self.vault, {})
        no_tunnels = SimpleNamespace(state=lambda _: None)
        self.control.home = cast(Any, SimpleNamespace(tunnels=no_tunnels))
        self.site = FakeSite("cloud", lambda _, apply: apply())
        lifecycle_of(self.control).book = cast(Any, SimpleNamespace(site=lambda _: self.site, names=dict))
        StoredDeployments(self.vault).store(BLUE)
        self.enter(BLUE.server, "ps-blue", "vnet")

    def enter(self, server: str, name: str, network: str, *, built_in: bool = False) -> None:
        """A registered process server."""
        record = ServerRecord(
            id=server, role=Role.PROCESS_SERVER, name=name, state="registered", built_in=built_in, network=network
        )
        with self.vault.database.write() as session:
            session.add(record)

    def use(self, server: str) -> None:
        """A failed-over machine replicates through it."""
        enter_item(self.vault, WEB)
        with self.vault.database.write() as session:
            record = session.get_one(ItemRecord, ITEM)
            state = msgspec.structs.replace(state_of(record), state=State.REPROTECTING)
            record.process_server, record.state_json = server, msgspec.json.encode(state).decode()

    def spool(self, amount: int) -> None:
        """It holds so much that it has not forwarded."""
        self.control.live.server(BLUE.server).status = cast(Any, SimpleNamespace(backlog_bytes=amount))


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    made = Plane(tmp_path)
    yield made
    made.vault.close()


DELETE_CASES: dict[str, Callable[[Plane], object]] = {
    "BH-DELETE-BUILT-IN": lambda plane: plane.enter("ps-own-1", "ps-own", "", built_in=True),
    "BH-DELETE-RIGHTS": lambda plane: setattr(plane.site, "role", SiteRole.OPERATOR),
    "BH-DELETE-IN-USE": lambda plane: plane.use(BLUE.server),
    "BH-DELETE-SPOOL": lambda plane: plane.spool(7),
    "BH-DELETE-LAST": lambda plane: enter_item(plane.vault, WEB),
}


@pytest.mark.parametrize("code", DELETE_CASES)
async def test_a_process_server_is_deleted_unless_exactly_this_is_so(plane: Plane, code: str) -> None:
    assert problems(delete_findings(plane.control, "ps-blue")) == []
    DELETE_CASES[code](plane)
    name = "ps-own" if code == "BH-DELETE-BUILT-IN" else "ps-blue"
    assert [finding.code for finding in problems(delete_findings(plane.control, name))] == [code]
    if REGISTRY[code].severity is Severity.FAIL:
        with pytest.raises(DeploymentRefused, match=code):
            begin_delete(plane.control, name, "admin")
    assert not plane.control.jobs.list()


async def test_what_nobody_deployed_from_here_is_not_deleted_from_here(plane: Plane) -> None:
    plane.enter("ps-manual", "ps-manual", "vnet")
    for name in ("ps-manual", "nobody"):
        with pytest.raises(ResourceUnknown):
            delete_findings(plane.control, name)


async def test_another_process_server_of_the_network_is_another_way_home(plane: Plane) -> None:
    enter_item(plane.vault, WEB)
    plane.enter("ps-green-1", "ps-green", "vnet")
    assert problems(delete_findings(plane.control, "ps-blue")) == []


# --- what the records and the API give --------------------------------------------------------------------------------


async def test_every_kind_of_job_shows_its_findings_before(plane: Plane) -> None:
    enter_item(plane.vault, WEB)
    for kind in w.WORKFLOWS:
        shown = await looked(plane, kind)
        assert shown["findings"], kind
    rebind = [one["code"] for one in (await looked(plane, w.REBIND, machine="3"))["findings"] if one["fix"]]
    assert "BH-REBIND-MACHINE" in rebind
    assert "BH-REBIND-MACHINE" not in str([one for one in (await looked(plane, w.REBIND))["findings"] if one["fix"]])


async def looked(plane: Plane, kind: str, **query: str) -> Any:
    """The API's answer."""
    answer = await preflight(plane.control, kind, "web", cast(Any, SimpleNamespace(query_params=query)))
    return msgspec.json.decode(answer.body)


async def test_the_threshold_is_that_of_the_item_s_own_policy(plane: Plane) -> None:
    plane.control.policies.create(ReplicationPolicy("tight", rpo_threshold_s=120.0))
    enter_item(plane.vault, WEB)
    with plane.vault.database.write() as session:
        session.get_one(ItemRecord, ITEM).policy = "tight"
    assert lifecycle_of(plane.control).items.load(ItemId(ITEM)).rpo_threshold_s == 120.0


async def test_disks_of_a_target_are_counted_and_not_its_items(plane: Plane) -> None:
    with plane.vault.database.write() as session:
        session.add(ServerRecord(id="mt", role="master-target", name="mt", state="registered", built_in=False))
    status = cast(Any, SimpleNamespace(items=("one", "two"), status=None))
    plane.control.live.server("mt").status = status
    for item, disks in (("one", 3), ("two", 4)):
        plane.control.live.items[item] = LiveItem(status=cast(Any, SimpleNamespace(disks=("",) * disks)))
    facts = lifecycle_of(plane.control).master_target("mt")
    assert facts is not None
    assert (facts.disks_attached, facts.answers) == (7, True)


async def test_silence_counts_only_after_everybody_had_time_to_answer(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            plane.spool(0)

    monkeypatch.setattr("time.sleep", sleep)
    lifecycle_of(plane.control).settle()
    assert len(looks) == 3, "the process server was heard then"
    lifecycle_of(plane.control).settle()
    assert len(looks) == 3
    plane.enter("ps-gone", "ps-gone", "vnet")
    plane.control.live.started_ns -= SETTLE_NS
    lifecycle_of(plane.control).settle()
    assert len(looks) == 3, "who is silent for so long is silent"


def test_every_code_of_the_source_has_a_case() -> None:
    source = {check.code for checks in (*ITEM_LISTS, DELETE_PROCESS_SERVER) for check in checks.checks}
    assert set(CASES) | set(DELETE_CASES) == source


def test_every_kind_of_job_is_looked_at_before() -> None:
    for kind, steps in w.WORKFLOWS.items():
        assert [step.name for step in steps].count("preflight") == 1, kind
