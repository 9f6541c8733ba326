"""Every verb that moves items takes several of them, or all of a virtual network: one job with a child for each.

The items' records are entered as a failover left them, with no servers that could move them: what is looked at is which
items the verb meant. That they are moved is looked at where there are servers and sites.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from backhaul.client.lifecycle import Lifecycle
from lifecycle.deployed import ITEM, SERVER_NET, World, command, enter_item, failed_over_world

SECOND = "f" * 32
BOTH = {ITEM, SECOND}
HOMEWARD = ("cancel", "commit", "failback", "reprotect", "resync")
NAMES = ("web", "db")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with failed_over_world(tmp_path_factory.mktemp("many")) as made:
        made.records(lambda vault: enter_item(vault, made.machine, "db", SECOND))
        yield made


def children(world: World, job: str) -> dict[str, Any]:
    assert world.server.profile is not None
    with Lifecycle(world.server.profile) as lifecycle:
        return lifecycle.children(job)


def begun(world: World, *arguments: str) -> str:
    """The job that a verb began."""
    done = command(world, "item", *arguments, "--no-wait", "--json")
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["name"])


@pytest.mark.parametrize("verb", HOMEWARD)
def test_several_by_name(world: World, verb: str) -> None:
    job = begun(world, verb, *NAMES)
    assert set(children(world, job)["items"]) == BOTH


@pytest.mark.parametrize("verb", HOMEWARD)
def test_all_of_a_network(world: World, verb: str) -> None:
    job = begun(world, verb, "--network", SERVER_NET)
    assert set(children(world, job)["items"]) == BOTH


def test_failover_by_name_and_by_network(world: World) -> None:
    """By network it means those that are active at home: here none is, and that is said."""
    assert set(children(world, begun(world, "failover", *NAMES))["items"]) == BOTH
    assert set(children(world, begun(world, "failover", *NAMES, "--unplanned"))["items"]) == BOTH
    assert set(children(world, begun(world, "failover", "--change", "--network", SERVER_NET))["items"]) == BOTH
    none = command(world, "item", "failover", "--network", SERVER_NET)
    assert none.returncode != 0
    assert none.stderr.startswith("BH-NETWORK-EMPTY")


def test_one_that_fails_stops_no_other_and_the_exit_code_says_so(world: World) -> None:
    done = command(world, "item", "reprotect", *NAMES, "--at-once", "1")
    assert done.returncode == 6, done.stderr
    job = world.server.vault().jobs()
    batch = next(one for one in job if one["properties"]["scenarioName"] == "Several")
    made = children(world, batch["name"])["children"]
    assert set(made) == BOTH
    assert all(made.values()), "each had its own job, or the reason for which there was none"


@pytest.mark.parametrize("verb", ["failback", "commit", "reprotect"])
def test_findings_of_several_and_of_a_network(world: World, verb: str) -> None:
    for chosen in (NAMES, ("--network", SERVER_NET)):
        done = command(world, "item", verb, *chosen, "--dry-run", "--json")
        assert set(json.loads(done.stdout)) in ({"web", "db"}, BOTH), done.stdout


def test_unprotecting_several_and_a_network(world: World) -> None:
    for chosen in (NAMES, ("--network", SERVER_NET)):
        done = command(world, "item", "unprotect", *chosen, "--complete-migration", "--dry-run", "--json")
        assert set(json.loads(done.stdout)) in ({"web", "db"}, BOTH), done.stdout


@pytest.mark.parametrize("verb", [*HOMEWARD, "failover", "unprotect"])
def test_it_is_names_or_a_network_not_both_and_not_neither(world: World, verb: str) -> None:
    assert command(world, "item", verb).returncode == 2
    assert command(world, "item", verb, "web", "--network", SERVER_NET).returncode == 2
