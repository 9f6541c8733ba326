"""Services are always there: started with the site, started again, adopted."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from backhaul.configuration_server.occupancy import started_at
from backhaul.sites.errors import AddressWrong, SiteDefinitionWrong
from backhaul.sites.local.definition import ServiceDefinition, check_definition
from backhaul.sites.values import Principal, SiteRole
from sites.site_world import RANGE, SLEEPER, Caller, definition, open_provider, running_site

STORAGE = ServiceDefinition("storage", "vnet", "default", f"{RANGE}.1.50", SLEEPER)


def await_pid(site: Caller, other_than: int = 0) -> int:
    """The service's process once it runs; ends when the provider has started it."""
    run = site.provider.world.private / "run" / "service-storage.run"
    while True:
        running = site("services")[0]["power"] == "running"  # also while it is being started, before it has a run file
        pid = int(json.loads(run.read_bytes())["pid"]) if running and run.exists() else other_than
        if pid != other_than:
            return pid


def await_child(pid: int) -> int:
    """What the service started itself, once it has."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    while not (found := children.read_text().split()):
        pass
    return int(found[0])


def is_alive(pid: int) -> bool:
    return bool(started_at(pid))


def test_a_service_runs_and_is_started_again(tmp_path: Path) -> None:
    with running_site(tmp_path, definition(services=(STORAGE,))) as site:
        first = await_pid(site)
        left = await_child(first)
        os.kill(first, signal.SIGKILL)
        assert await_pid(site, other_than=first) != first
        assert not is_alive(left)
        with pytest.raises(AddressWrong):
            site("reserve_address", "r", network="vnet", subnet="default", address=STORAGE.address)
        assert site.effects() == []
        assert Caller(site.provider, Principal("x", {"elsewhere": SiteRole.OWNER}))("services") == []


def test_a_service_outlives_the_provider(tmp_path: Path) -> None:
    with running_site(tmp_path, definition(services=(STORAGE,))) as site:
        pid = await_pid(site)
        site.provider.close()
        os.kill(pid, 0)
        site.provider = open_provider(tmp_path, definition(services=(STORAGE,)))
        assert await_pid(site) == pid


@pytest.mark.parametrize(
    "change",
    [
        {"network": "none"},
        {"subnet": "none"},
        {"address": f"{RANGE}.1.1"},
        {"address": "x"},
        {"command": ()},
        {"name": "/"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_services_that_cannot_work(change: dict[str, Any]) -> None:
    fields = {name: getattr(STORAGE, name) for name in STORAGE.__struct_fields__}
    check_definition(definition(services=(STORAGE,)))
    with pytest.raises(SiteDefinitionWrong):
        check_definition(definition(services=(ServiceDefinition(**{**fields, **change}),)))
