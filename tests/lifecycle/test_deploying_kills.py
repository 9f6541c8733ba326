"""A configuration server that is killed before or after any effect of deploying or deleting a process server goes on
with its job at its next start: the site's own log has exactly one of each effect.
"""

from __future__ import annotations

import random
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backhaul.client.deployments import Deployments
from backhaul.configuration_server.jobs import ACTIVE
from lifecycle.deployed import FORM, NAME, World, failed_over_world, until

DEPLOYED = ["reserve_address", "create_server", "set_tags"]
DELETED = ["set_tags", "delete_server"]
"""This site gives the address back with the server."""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    with failed_over_world(tmp_path) as made:
        yield made


def killed_at(world: World, number: int, when: str, begin: Callable[[Deployments], str]) -> None:
    """A job whose server dies at this place; a new server ends it."""
    live = world.server
    live.end()
    live.start(sys.executable, "-m", "lifecycle.doomed_deployer", str(number), when)
    with world.deployments() as client:
        begin(client)
    assert live.process is not None
    assert live.process.wait(60) == -signal.SIGKILL
    live.end()
    live.start()
    until(lambda: live.vault().jobs()[0]["properties"]["state"] not in ACTIVE)
    job = live.vault().jobs()[0]["properties"]
    assert (job["state"], job["errors"]) == ("Succeeded", [])


def test_a_kill_anywhere_leaves_one_effect_of_each(world: World, seed: int, deep: bool) -> None:
    deploys = [(number, when) for number in range(1, len(DEPLOYED) + 1) for when in ("before", "after")]
    deletes = [(number, when) for number in range(1, len(DELETED) + 1) for when in ("before", "after")]
    chosen = random.Random(seed)
    rounds = (
        list(zip(deploys, deletes * 2, strict=False)) if deep else [(chosen.choice(deploys), chosen.choice(deletes))]
    )
    before = world.cloud.listing()
    for deploy, delete in rounds:
        start = len(world.cloud.effects())
        killed_at(world, *deploy, lambda client: client.deploy(NAME, FORM))
        assert world.cloud.effects()[start:] == DEPLOYED, deploy
        assert world.state()["state"] == "unregistered"
        killed_at(world, *delete, lambda client: client.delete(NAME))
        assert world.cloud.effects()[start:] == DEPLOYED + DELETED, delete
        assert world.cloud.listing() == before


def test_a_killed_deployment_has_one_token_and_registers(world: World) -> None:
    killed_at(world, 2, "before", lambda client: client.deploy(NAME, FORM | {"register": True}))
    assert world.cloud.effects() == DEPLOYED
    assert world.state()["health"] == "Healthy"
    with sqlite3.connect(world.server.data_dir / "backhaul.db") as records:
        assert records.execute("SELECT count(*), count(*) FILTER (WHERE spent_ns > 0) FROM token").fetchone() == (1, 1)
