"""A served configuration server with servers, agents and sites around it, each a process of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backhaul.client.lifecycle import Lifecycle
from backhaul.sites.local.definition import SiteKind
from backhaul.sites.values import Machine
from configuration_server.live import LiveServer, until
from lifecycle.real_sites import RealSite

SLEEPER = ("/bin/sh", "-c", "while :; do sleep 1000; done")
"""What a machine runs that does not touch its disks: its points are `stopped`."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveServer]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    live = LiveServer(tmp_path)
    try:
        live.start()
        live.login()
        yield live
    finally:
        live.close()


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[dict[str, RealSite]]:
    (tmp_path / "sites").mkdir()
    made = {
        "home": RealSite(tmp_path / "sites", "home", SiteKind.HOME, 3),
        "cloud": RealSite(tmp_path / "sites", "cloud", SiteKind.CLOUD, 4),
    }
    try:
        for site in made.values():
            site.start()
        yield made
    finally:
        for site in made.values():
            site.stop()


def agent(server: LiveServer, name: str, machine: str, network: str, disks: list[str]) -> None:
    """Register and run an agent that reads a machine's disks from outside."""
    metadata = server.folder / f"{name}.json"
    metadata.write_text(json.dumps({"machine_id": machine, "tags": {}}))
    more = [part for index, path in enumerate(disks) for part in ("--disk", f"d{index}={path}")]
    if network:
        more += ["--network", network]
    server.run("agent", server.register("agent", name, "--metadata-file", str(metadata), *more))


def registered(server: LiveServer, kind: str, name: str) -> str:
    """Id of a healthy server of this name."""

    def look() -> str:
        found = [one for one in server.vault().servers(kind) if one["properties"]["friendlyName"] == name]
        return str(found[0]["name"]) if found and found[0]["properties"]["health"] == "Healthy" else ""

    return str(until(look))


def offers_disks(server: LiveServer, name: str) -> bool:
    """Whether an agent has said which disks it could protect: later than its first heartbeat."""
    assert server.profile is not None
    with server.transport(server.profile.token) as reader:
        containers = reader.call("GET", f"{server.profile.vault}/replicationProtectionContainers")["value"]
        machines = reader.call("GET", f"{containers[0]['id']}/replicationProtectableItems")["value"]
    shown = [machine["properties"] for machine in machines if machine["properties"]["friendlyName"] == name]
    return bool(shown) and not shown[0]["protectionReadinessErrors"]


def add_target(server: LiveServer) -> dict[str, str]:
    """A master target in the cloud, beside the servers that come with the configuration server; ids by name."""
    folder = server.register("master-target", "mt-cloud", "--data-port", "0", "--listen-host", "127.0.0.1")
    server.run("master-target", folder)
    return {
        "mt-home": registered(server, "masterTargets", "built-in-mt"),
        "mt-cloud": registered(server, "masterTargets", "mt-cloud"),
        "ps-home": registered(server, "processServers", "built-in-ps"),
    }


def add_servers(server: LiveServer) -> dict[str, str]:
    """As `add_target`, and a process server in the cloud, registered by hand."""
    more = ("--data-port", "0", "--listen-host", "127.0.0.1", "--network", "cloud-net")
    server.run("process-server", server.register("process-server", "ps-cloud", *more))
    return add_target(server) | {"ps-cloud": registered(server, "processServers", "ps-cloud")}


def state(server: LiveServer, item: str = "web") -> str:
    return str(server.vault().item(item)["properties"]["protectionState"])


def tell_sites(lifecycle: Lifecycle, sites: dict[str, RealSite]) -> None:
    """The configuration server knows both sites and may act on them."""
    for name, site in sites.items():
        endpoint = json.loads((site.folder / "endpoint.json").read_bytes())
        where = endpoint["address"], endpoint["certificate_pem"], f"token-{name}"
        lifecycle.set_site(name, site.definition.kind, *where)


def protect(
    server: LiveServer, lifecycle: Lifecycle, machine: Machine, disks: list[str], policy: str, ids: dict[str, str]
) -> None:
    """The machine `web` at home is an item once its job has ended. `ids` as of `add_target`."""
    common = {"subscription": "prod", "subnet": "default", "name": "web", "command": SLEEPER}
    home = common | {
        "site": "home", "network": "home-net", "target": ids["mt-home"],
        "machine": machine.id, "address": machine.address, "disks": disks,
    }  # fmt: skip
    cloud = common | {"site": "cloud", "network": "cloud-net", "target": ids["mt-cloud"]}
    until(lambda: offers_disks(server, "agent-home"))
    server.vault().wait_job(lifecycle.protect("web", "agent-home", policy, home, cloud))


def reprotect_figures(server: LiveServer, job: str) -> dict[str, Any]:
    """What a reprotect's job says of its bytes, once it knows what really differed: estimate, actual, error."""

    def looked() -> dict[str, Any]:
        tasks = server.vault().job(job)["properties"]["tasks"]
        kept: dict[str, Any] = next(task["backhaul"] for task in tasks if task["name"] == "preflight")
        return kept if "actual" in kept else {}

    found: dict[str, Any] = until(looked)
    return found
