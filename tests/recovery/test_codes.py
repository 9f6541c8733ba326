"""Each check finds exactly what is broken: per code one fact is broken, and exactly that finding comes.

The cases are keyed by code; their codes, those of the source and those of the documents are equal sets.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backhaul.recovery.catalogue import CHECKLISTS
from backhaul.recovery.deployment import (
    DeploymentRequest,
    NetworkFacts,
    SiteFacts,
    StorageFacts,
    SubnetFacts,
    next_free_address,
    validate_deployment,
)
from backhaul.recovery.errors import ChecksFailed
from backhaul.recovery.findings import REGISTRY, Finding, Severity, problems, require
from backhaul.recovery.health import ALERTS, Thresholds, validate_thresholds
from backhaul.recovery.item import Action, ItemState, Operation, Side, State
from backhaul.recovery.policies import ReplicationPolicy, validate_policy
from backhaul.recovery.preflight import (
    CANCEL,
    CHANGE_POINT,
    DISABLE,
    FORGET,
    PROTECT,
    REBIND,
    RESYNC,
    before_commit,
    before_failback,
    before_failover,
    before_reprotect,
)
from backhaul.recovery.preflight_delete import before_delete_process_server
from backhaul.recovery.preflight_facts import (
    DeleteFacts,
    DiskFacts,
    Health,
    ItemFacts,
    MachineFacts,
    ServerFacts,
    SideFacts,
)
from backhaul.recovery.refusals import REASONS
from backhaul.replication.units import GiB, MiB
from backhaul.replication.values import RetentionTier

change = msgspec.structs.replace
PASSWORD = "correct-Horse-7-battery"

SUBNET = SubnetFacts(name="servers", prefix="10.1.0.0/24", used=("10.1.0.4", "10.1.0.5"))
FULL = SubnetFacts(name="full", prefix="10.1.1.0/29", used=("10.1.1.4", "10.1.1.5", "10.1.1.6"))
SITE = SiteFacts(
    subscriptions=("drills", "failover"),
    failover_subscription="failover",
    resource_groups=("rescue",),
    regions=("west", "east", "north"),
    networks=(
        NetworkFacts(name="blue", region="west", failed_over=2, subnets=(SUBNET, FULL)),
        NetworkFacts(name="green", region="west", failed_over=0, subnets=(SUBNET,)),
        NetworkFacts(name="red", region="east", failed_over=1, subnets=(SUBNET,)),
    ),
    storage_accounts=(
        StorageFacts(name="disks", region="west", free_bytes=64 * GiB),
        StorageFacts(name="eastdisks", region="east", free_bytes=64 * GiB),
        StorageFacts(name="tiny", region="west", free_bytes=GiB),
    ),
    server_names=("web1",),
    may_create_servers=True,
    servers_free=1,
    cores_free=4,
    server_cores=4,
    server_bytes=32 * GiB,
    route=True,
)
REQUEST = DeploymentRequest(
    subscription="failover", resource_group="rescue", region="west", network="blue", subnet="servers",
    address="10.1.0.9", name="ps-blue", user="drops", password=PASSWORD, storage_account="disks",
)  # fmt: skip


def asked(**fields: Any) -> Callable[[], list[Finding]]:
    return lambda: validate_deployment(change(REQUEST, **fields), SITE)


def site(**fields: Any) -> Callable[[], list[Finding]]:
    return lambda: validate_deployment(REQUEST, change(SITE, **fields))


DEPLOYMENT_CASES: dict[str, Callable[[], list[Finding]]] = {
    "BH-PS-SUBSCRIPTION-UNKNOWN": asked(subscription="nobody's"),
    "BH-PS-SUBSCRIPTION": asked(subscription="drills"),
    "BH-PS-RIGHTS": site(may_create_servers=False),
    "BH-PS-QUOTA-SERVERS": site(servers_free=0),
    "BH-PS-QUOTA-CORES": site(cores_free=3),
    "BH-PS-GROUP-NAME": asked(resource_group="rescue."),
    "BH-PS-GROUP-UNKNOWN": asked(resource_group="rescue2"),
    "BH-PS-GROUP-EXISTS": asked(new_resource_group=True),
    "BH-PS-REGION-UNKNOWN": asked(region="moon"),
    "BH-PS-REGION": asked(region="north"),
    "BH-PS-NETWORK-UNKNOWN": asked(network="black"),
    "BH-PS-NETWORK-REGION": asked(network="red"),
    "BH-PS-NETWORK-UNUSED": asked(network="green"),
    "BH-PS-SUBNET-UNKNOWN": asked(subnet="clients"),
    "BH-PS-SUBNET-FULL": asked(subnet="full", address=""),
    "BH-PS-ADDRESS-FORM": asked(address="10.1.0"),
    "BH-PS-ADDRESS-OUTSIDE": asked(address="10.2.0.9"),
    "BH-PS-ADDRESS-RESERVED": asked(address="10.1.0.3"),
    "BH-PS-ADDRESS-TAKEN": asked(address="10.1.0.4"),
    "BH-PS-NAME-LENGTH": asked(name="p" * 65),
    "BH-PS-NAME-CHARACTERS": asked(name="ps_blue"),
    "BH-PS-NAME-TAKEN": asked(name="Web1"),
    "BH-PS-USER-LENGTH": asked(user="d" * 65),
    "BH-PS-USER-RESERVED": asked(user="Admin"),
    "BH-PS-USER-CHARACTERS": asked(user="drops of rain"),
    "BH-PS-PASSWORD-LENGTH": asked(password="Short-1pass"),
    "BH-PS-PASSWORD-CHARACTERS": asked(password=PASSWORD + "\n"),
    "BH-PS-PASSWORD-CLASSES": asked(password="onlylowercase7"),
    "BH-PS-PASSWORD-COMMON": asked(password="P@ssw0rd1234"),
    "BH-PS-PASSWORD-USER": asked(user="Drops-of-rain-7", password="drops-of-Rain-7"),
    "BH-PS-STORAGE-UNKNOWN": asked(storage_account="none"),
    "BH-PS-STORAGE-REGION": asked(storage_account="eastdisks"),
    "BH-PS-STORAGE-FULL": asked(storage_account="tiny"),
    "BH-PS-ROUTE": site(route=False, broken_rung="router of blue"),
    "BH-PS-ROUTE-UNTESTED": site(route=None),
}

SERVER = ServerFacts(name="ps-blue", network="blue", health=Health.HEALTHY, answers=True, version=(1, 0, 0))
TARGET = ServerFacts(
    name="mt-home", network="", health=Health.HEALTHY, answers=True, version=(1, 0, 0), disks_attached=62
)
MACHINE = MachineFacts(
    site_answers=True, running=True, answers=True, is_active_machine=True, agent_registered=True, agent_answers=True,
    agent_version=(1, 0, 0), can_be_still=True,
)  # fmt: skip
OTHER_SIDE = SideFacts(reachable=True, may_start=True, machine_exists=True, layer_bytes=0, free_bytes=GiB)
DISKS = (
    DiskFacts(name="system", source_bytes=GiB, replica_bytes=GiB),
    DiskFacts(name="data", source_bytes=GiB, replica_bytes=2 * GiB),
)
COMMITTED = ItemState(State.FAILED_OVER_COMMITTED, generation=2, active_side=Side.CLOUD)
REPROTECT_FACTS = ItemFacts(
    item=COMMITTED, operation=Operation.REVERSE_REPLICATE, network="blue", machine=MACHINE, other_side=OTHER_SIDE,
    other_side_off=True, process_servers=(SERVER,), process_server="", master_target=TARGET,
    configuration_server_version=(1, 0, 0), broken_rung="", disks=DISKS, replica_free_bytes=0,
    journal_free_bytes=GiB, journal_needed_bytes=GiB, cancel_given_up=False, points=(7, 8, 9), point=None,
    newest_age_s=900.0, rpo_threshold_s=900.0, integrity_proved=True, undo_kept=True, replica_kept=True,
    named_machine_known=True,
)  # fmt: skip
FAILBACK_FACTS = change(
    REPROTECT_FACTS,
    item=ItemState(State.PROTECTED_TO_HOME, generation=2, active_side=Side.CLOUD, before=COMMITTED),
    operation=Operation.FAILBACK,
)
PLANNED_FACTS = change(
    FAILBACK_FACTS, item=ItemState(State.PROTECTED), operation=Operation.PLANNED_FAILOVER, other_side_off=False
)
UNPLANNED_FACTS = change(
    PLANNED_FACTS,
    operation=Operation.UNPLANNED_FAILOVER,
    machine=change(MACHINE, running=False, answers=False, agent_registered=False, agent_answers=False),
    process_servers=(),
    broken_rung="home",
)
COMMIT_FACTS = change(
    REPROTECT_FACTS,
    item=ItemState(State.FAILED_BACK, generation=3, old_side_kept=True, before=FAILBACK_FACTS.item),
    operation=Operation.COMMIT,
)
PROTECT_FACTS = change(REPROTECT_FACTS, item=ItemState(), operation=Action.PROTECT)
CANCEL_FACTS = change(FAILBACK_FACTS, operation=Operation.CANCEL_FAILOVER)
REBIND_FACTS = change(FAILBACK_FACTS, item=ItemState(State.STANDBY), operation=Action.REBIND)
DELETE_FACTS = DeleteFacts(
    name="ps-blue", network="blue", items=(), spool_bytes=0, built_in=False, caller_may_delete=True, other_servers=0,
    failed_over=0,
)  # fmt: skip


def reprotect(**fields: Any) -> Callable[[], list[Finding]]:
    return lambda: before_reprotect(change(REPROTECT_FACTS, **fields))


def machine(**fields: Any) -> Callable[[], list[Finding]]:
    return reprotect(machine=change(MACHINE, **fields))


def target(**fields: Any) -> Callable[[], list[Finding]]:
    return reprotect(master_target=change(TARGET, **fields))


def unplanned(**fields: Any) -> Callable[[], list[Finding]]:
    return lambda: before_failover(change(UNPLANNED_FACTS, **fields))


def side(**fields: Any) -> Callable[[], list[Finding]]:
    return lambda: before_failback(change(FAILBACK_FACTS, other_side=change(OTHER_SIDE, **fields)))


def protect(**fields: Any) -> Callable[[], list[Finding]]:
    return lambda: PROTECT.run(change(PROTECT_FACTS, **fields))


def cancel(**fields: Any) -> Callable[[], list[Finding]]:
    return lambda: CANCEL.run(change(CANCEL_FACTS, **fields))


def commit(**fields: Any) -> Callable[[], list[Finding]]:
    return lambda: before_commit(change(COMMIT_FACTS, **fields))


def delete(**fields: Any) -> Callable[[], list[Finding]]:
    return lambda: before_delete_process_server(change(DELETE_FACTS, **fields))


ITEM_CASES: dict[str, Callable[[], list[Finding]]] = {
    "BH-ITEM-STATE": reprotect(item=ItemState(State.PROTECTED)),
    "BH-PROCESS-SERVER-NONE": reprotect(process_servers=()),
    "BH-PROCESS-SERVER-UNHEALTHY": reprotect(process_servers=(change(SERVER, health=Health.CRITICAL),)),
    "BH-PROCESS-SERVER-CHOICE": reprotect(process_server="ps-red"),
    "BH-PROCESS-SERVER-VERSION": reprotect(process_servers=(change(SERVER, version=(1, 1, 0)),)),
    "BH-MASTER-TARGET-NONE": reprotect(master_target=None),
    "BH-MASTER-TARGET-SILENT": target(answers=False),
    "BH-MASTER-TARGET-VERSION": target(version=(1, 0, 1)),
    "BH-MASTER-TARGET-DISKS": target(disks_attached=65),
    "BH-DISK-SMALLER": reprotect(disks=(change(DISKS[0], replica_bytes=GiB - 512),)),
    "BH-DISK-NEW": reprotect(disks=(change(DISKS[0], replica_bytes=None),), replica_free_bytes=GiB),
    "BH-DISK-EMPTY": protect(disks=(change(DISKS[0], source_bytes=0),)),
    "BH-REPLICA-SPACE": protect(disks=(change(DISKS[0], replica_bytes=None),), replica_free_bytes=GiB - 1),
    "BH-JOURNAL-SPACE": protect(journal_free_bytes=64 * MiB - 1),
    "BH-DISK-SHARED": reprotect(disks=(change(DISKS[0], shared=True),)),
    "BH-JOURNAL-ROOM": reprotect(journal_needed_bytes=GiB + 1),
    "BH-PATH-BROKEN": reprotect(broken_rung="process server -> master target"),
    "BH-SOURCE-SITE-SILENT": machine(site_answers=False, running=False, answers=False),
    "BH-REBIND-MACHINE": lambda: REBIND.run(change(REBIND_FACTS, named_machine_known=False)),
    "BH-MACHINE-OFF": machine(running=False, answers=False, agent_answers=False),
    "BH-MACHINE-HUNG": machine(answers=False, agent_answers=False),
    "BH-MACHINE-COPY": machine(is_active_machine=False),
    "BH-AGENT-NONE": machine(agent_registered=False, agent_answers=False),
    "BH-AGENT-SILENT": machine(agent_answers=False),
    "BH-AGENT-VERSION": machine(agent_version=(2, 0, 0)),
    "BH-OTHER-SIDE-RUNNING": reprotect(other_side_off=False),
    "BH-POINT-NONE": unplanned(points=(), newest_age_s=None),
    "BH-POINT-GONE": unplanned(point=6),
    "BH-POINT-OLD": unplanned(newest_age_s=901.0),
    "BH-SOURCE-RUNNING": unplanned(machine=MACHINE),
    "BH-STILL-NONE": lambda: before_failback(change(FAILBACK_FACTS, machine=change(MACHINE, can_be_still=False))),
    "BH-SITE-SILENT": side(reachable=False),
    "BH-SITE-RIGHTS": side(may_start=False),
    "BH-SITE-MACHINE-NEW": side(machine_exists=False),
    "BH-LAYER-SPACE": side(layer_bytes=GiB + 1),
    "BH-LAYER-COPY": side(layer_bytes=GiB),
    "BH-CANCEL-UNDO": cancel(undo_kept=False),
    "BH-CANCEL-REPLICA": cancel(replica_kept=False),
    "BH-COMMIT-UNPROVED": commit(integrity_proved=False),
    "BH-DELETE-BUILT-IN": delete(built_in=True),
    "BH-DELETE-RIGHTS": delete(caller_may_delete=False),
    "BH-DELETE-IN-USE": delete(items=("web", "db"), spool_bytes=1, failed_over=2),
    "BH-DELETE-SPOOL": delete(spool_bytes=1),
    "BH-DELETE-LAST": delete(failed_over=2),
}


def policy(**fields: Any) -> Callable[[], list[Finding]]:
    return lambda: validate_policy(change(ReplicationPolicy("day"), **fields))


def thresholds(**fields: Any) -> Callable[[], list[Finding]]:
    return lambda: validate_thresholds(Thresholds(**fields))


OTHER_CASES: dict[str, Callable[[], list[Finding]]] = {
    "BH-POLICY-NAME": policy(name="-day"),
    "BH-POLICY-INTERVAL": policy(point_interval_s=0.5),
    "BH-POLICY-RETENTION": policy(retention_s=float("nan")),
    "BH-POLICY-RETENTION-SHORT": policy(retention_s=100.0),
    "BH-POLICY-POINTS": policy(retention_points=1),
    "BH-POLICY-TIERS": policy(tiers=(RetentionTier(60, 0), RetentionTier(60, 10))),
    "BH-POLICY-TIERS-NESTED": policy(tiers=(RetentionTier(60, 10), RetentionTier(600, 25))),
    "BH-POLICY-RPO": policy(rpo_threshold_s=float("inf")),
    "BH-POLICY-RPO-INTERVAL": policy(rpo_threshold_s=59.0),
    "BH-POLICY-FREEZE": policy(freeze_limit_s=60.0),
    "BH-POLICY-APP": policy(app_interval_s=30.0),
    "BH-POLICY-JOURNAL": policy(journal_bytes=4096),
    "BH-THRESHOLDS": thresholds(cache_free_warning=20.0),
}

CASES = DEPLOYMENT_CASES | ITEM_CASES | OTHER_CASES
HEALTHY: dict[str, Callable[[], list[Finding]]] = {
    "deployment": asked(),
    "deployment to the next free address": asked(address=""),
    "deployment with a new group": asked(resource_group="rescue-2", new_resource_group=True),
    "deployment in other letters": asked(network="BLUE", region="West", storage_account="Disks", subnet="Servers"),
    "reprotect": reprotect(),
    "reprotect without cancel": reprotect(journal_needed_bytes=2 * GiB, cancel_given_up=True),
    "reprotect through the chosen one": reprotect(process_server="ps-blue"),
    "unplanned failover": unplanned(),
    "planned failover": lambda: before_failover(PLANNED_FACTS),
    "planned failover of a machine that is off": lambda: before_failover(
        change(PLANNED_FACTS, machine=change(MACHINE, running=False, answers=False))
    ),
    "failback": side(),
    "protect": protect(),
    "protect where nobody counts the space": protect(
        disks=(change(DISKS[0], replica_bytes=None),), replica_free_bytes=None
    ),
    "change of point": lambda: CHANGE_POINT.run(change(COMMIT_FACTS, operation=Operation.CHANGE_PIT)),
    "cancel": cancel(),
    "resync": lambda: RESYNC.run(change(FAILBACK_FACTS, operation=Operation.REPAIR_REPLICATION)),
    "rebind": lambda: REBIND.run(REBIND_FACTS),
    "disable": lambda: DISABLE.run(change(FAILBACK_FACTS, operation=Operation.DISABLE_PROTECTION)),
    "complete the migration": lambda: FORGET.run(change(REPROTECT_FACTS, operation=Operation.COMPLETE_MIGRATION)),
    "commit": commit(),
    "delete": delete(),
    "delete one of two": delete(failed_over=2, other_servers=1),
    "policy": policy(),
    "policy with a bounded journal": policy(journal_bytes=GiB),
    "policy of the demo": policy(point_interval_s=3.0, app_interval_s=3.0, retention_points=50, tiers=()),
    "thresholds": thresholds(),
}


@pytest.mark.parametrize("code", CASES)
def test_one_broken_fact_gives_exactly_its_finding(code: str) -> None:
    findings = CASES[code]()
    wrong = problems(findings)
    assert [finding.code for finding in wrong] == [code]
    assert wrong[0].severity is REGISTRY[code].severity
    assert wrong[0].reason
    assert wrong[0].fix
    assert wrong[0].field == REGISTRY[code].field


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_found_where_all_is_well(name: str) -> None:
    findings = HEALTHY[name]()
    assert findings
    assert not problems(findings)


def test_codes_of_source_documents_and_tests_are_equal_sets() -> None:
    source_text = "".join(
        path.read_text() for path in Path(*Path(__file__).parts[:-3], "src/backhaul/recovery").glob("*.py")
    )
    in_source = set(re.findall(r'@check\(\s*"(BH-[A-Z-]+)"', source_text))
    page = Path(*Path(__file__).parts[:-3], "docs/reference/checks.md").read_text()
    in_documents = set(re.findall(r"^### (BH-[A-Z-]+)$", page, re.MULTILINE))
    listed = {item.code for checklist in CHECKLISTS for item in checklist.checks}
    assert in_source == set(REGISTRY) == listed == set(CASES)
    assert in_documents == set(CASES) | set(ALERTS)


def test_codes_are_told_apart_from_reasons_and_alerts() -> None:
    assert not set(REGISTRY) & set(REASONS)
    assert not set(REGISTRY) & set(ALERTS)


def test_all_findings_come_at_once() -> None:
    request = change(
        REQUEST, subscription="drills", resource_group="none", region="north", network="green", address="10.1.0.1",
        name="web1", user="root", password="short", storage_account="tiny",
    )  # fmt: skip
    findings = problems(validate_deployment(request, change(SITE, may_create_servers=False, route=False)))
    assert [finding.code for finding in findings] == [
        "BH-PS-SUBSCRIPTION", "BH-PS-RIGHTS", "BH-PS-GROUP-UNKNOWN", "BH-PS-REGION", "BH-PS-ADDRESS-RESERVED",
        "BH-PS-NAME-TAKEN", "BH-PS-USER-RESERVED", "BH-PS-PASSWORD-LENGTH", "BH-PS-PASSWORD-CLASSES",
        "BH-PS-STORAGE-FULL", "BH-PS-ROUTE",
    ]  # fmt: skip


def test_no_finding_holds_the_password() -> None:
    for secret in (PASSWORD, PASSWORD + "\n", "P@ssw0rd1234", "Short-1pass", "onlylowercase7"):
        request = change(REQUEST, password=secret)
        shown = repr(validate_deployment(request, SITE)) + repr(request) + str(request)
        assert secret.strip() not in shown


@pytest.mark.parametrize(
    ("address", "code"),
    [
        pytest.param("10.1.0.0", "BH-PS-ADDRESS-RESERVED", id="network"),
        pytest.param("10.1.0.1", "BH-PS-ADDRESS-RESERVED", id="gateway"),
        pytest.param("10.1.0.2", "BH-PS-ADDRESS-RESERVED", id="first-name-server"),
        pytest.param("10.1.0.255", "BH-PS-ADDRESS-RESERVED", id="broadcast"),
        pytest.param("10.1.1.9", "BH-PS-ADDRESS-OUTSIDE", id="next-subnet"),
        pytest.param("fe80::1", "BH-PS-ADDRESS-FORM", id="ipv6"),
        pytest.param("10.1.0.09", "BH-PS-ADDRESS-FORM", id="leading-zero"),
    ],
)
def test_addresses_that_are_refused(address: str, code: str) -> None:
    assert [finding.code for finding in problems(asked(address=address)())] == [code]


def test_next_free_address_skips_reserved_and_used_ones() -> None:
    assert next_free_address(SUBNET) == "10.1.0.6"
    assert next_free_address(FULL) is None
    assert next_free_address(change(FULL, used=("10.1.1.4", "10.1.1.6"))) == "10.1.1.5"


@pytest.mark.parametrize("name", ["-ps", "ps-", "ps blue", "ps.blue", "ps\u00e4", "ps/1", "ps\x00"])
def test_server_names_that_are_refused(name: str) -> None:
    assert [finding.code for finding in problems(asked(name=name)())] == ["BH-PS-NAME-CHARACTERS"]


@pytest.mark.parametrize("length", [pytest.param(12, id="shortest"), pytest.param(72, id="longest")])
def test_password_of_an_allowed_length(length: int) -> None:
    assert not problems(asked(password=("aB3" * 24)[:length])())


def test_a_missing_process_server_comes_with_the_deploy_command() -> None:
    [finding] = problems(reprotect(process_servers=())())
    assert finding.fix == "Deploy one: `backhaul process-server deploy --network blue`."


def test_a_state_that_refuses_says_what_to_do_first() -> None:
    [finding] = problems(reprotect(item=ItemState(State.FAILED_OVER, generation=2, active_side=Side.CLOUD))())
    assert finding.code == "BH-ITEM-STATE"
    assert finding.fix == REASONS["BH-REFUSED-COMMIT-FIRST"].fix


def test_a_disaster_refuses_no_unplanned_failover() -> None:
    """Source, agent, process servers and the way home are gone: that is what it is for."""
    facts = change(
        UNPLANNED_FACTS,
        machine=change(UNPLANNED_FACTS.machine, site_answers=False, can_be_still=False),
        newest_age_s=1e6,
    )
    require(before_failover(facts), "failover")


def test_a_failed_check_is_raised_with_its_code_and_a_warning_is_not() -> None:
    require(CASES["BH-DISK-NEW"](), "reprotect")
    with pytest.raises(ChecksFailed, match="BH-PATH-BROKEN"):
        require(CASES["BH-PATH-BROKEN"](), "reprotect")


def test_a_check_that_cannot_be_judged_is_no_pass() -> None:
    findings = asked(network="black")()
    codes = {finding.code for finding in findings}
    assert not codes & {"BH-PS-SUBNET-UNKNOWN", "BH-PS-ADDRESS-TAKEN", "BH-PS-ROUTE", "BH-PS-NETWORK-REGION"}
    assert Severity.PASS in {finding.severity for finding in findings}
