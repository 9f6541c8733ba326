"""The lifecycle as its users have it: a configuration server in a process of its own, its API, real sites, servers and
agents as processes. The machine goes to the cloud and comes home again.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backhaul.client.lifecycle import Lifecycle
from backhaul.configuration_server.lifecycle.errors import IntegrityReportForged
from backhaul.configuration_server.lifecycle.integrity import read_report
from backhaul.links.certificates import Trust
from backhaul.replication.units import KiB, MiB
from backhaul.sites.values import DiskRequest, Machine, MachineDisk, MachineRequest
from configuration_server.live import LiveServer, until
from lifecycle.real_sites import RealSite
from lifecycle.served import (
    SLEEPER,
    add_servers,
    agent,
    protect,
    registered,
    reprotect_figures,
    server,
    sites,
    state,
    tell_sites,
)

__all__ = ["server", "sites"]


def machine_at_home(site: RealSite) -> tuple[Machine, list[str], list[str]]:
    """A machine that runs, its disks, and where they lie."""
    assert site.client is not None
    client = site.client
    disks = [client.create_disk(DiskRequest(f"d{index}", "prod", MiB), token=f"d{index}").id for index in range(2)]
    parts = tuple(MachineDisk(disk) for disk in disks)
    request = MachineRequest("web", "prod", "home-net", "default", SLEEPER, parts)
    machine = client.create_machine(request, token="machine")
    paths = [client.attach_disk(disk, f"machine:{machine.id}", token=f"at-{disk}").path for disk in disks]
    for path in paths:
        Path(path).write_bytes(os.urandom(MiB))
    return client.power_on(machine.id, token="on"), disks, paths


def test_the_way_round_through_the_api(server: LiveServer, sites: dict[str, RealSite]) -> None:
    ids = add_servers(server)
    machine, disks, paths = machine_at_home(sites["home"])
    agent(server, "agent-home", machine.id, "", paths)
    server.vault().create_policy("fast", {"point_interval_s": 1.0})
    assert server.profile is not None
    with Lifecycle(server.profile) as lifecycle:
        tell_sites(lifecycle, sites)
        protect(server, lifecycle, machine, disks, "fast", ids)
        until(lambda: state(server) == "protected")
        go_over(server, lifecycle, sites, paths)
        come_back(server, lifecycle, sites)


def go_over(server: LiveServer, lifecycle: Lifecycle, sites: dict[str, RealSite], paths: list[str]) -> None:
    """Fail over and commit."""
    findings: dict[str, Any] = lifecycle.preflight("PlannedFailover", "web")
    assert [finding for finding in findings["findings"] if finding["severity"] == "fail"] == []
    server.vault().wait_job(lifecycle.begin("PlannedFailover", ["web"], {}))
    plan = lifecycle.plan("web")
    assert (plan["state"], plan["integrity"]) == ("failed-over", "passed")
    check_report(server, lifecycle)
    client = sites["cloud"].client
    assert client is not None
    assert [one.id for one in client.machines() if one.power == "running"] == [plan["cloud"]["machine"]]
    holder = f"machine:{plan['cloud']['machine']}"
    layers = [client.attach_disk(layer, holder, token=f"look-{layer}").path for layer in plan["cloud"]["layers"]]
    assert [Path(layer).read_bytes() for layer in layers] == [Path(path).read_bytes() for path in paths]
    server.vault().wait_job(lifecycle.begin("Commit", [], {"network": "CLOUD-net"}))
    assert lifecycle.plan("web")["state"] == "failed-over-committed"


def check_report(server: LiveServer, lifecycle: Lifecycle) -> None:
    """The report is signed under the vault's CA, kept with item and job, and printed."""
    shown = lifecycle.integrity("web")
    assert (shown["state"], shown["passed"], shown["code"]) == ("passed", True, "")
    trust = Trust((ssl.PEM_cert_to_DER_cert(server.roots),))
    report = read_report(trust, bytes.fromhex(shown["signed"]))
    assert msgspec.json.decode(msgspec.json.encode(report)) == shown["report"]
    assert (report.compared_bytes, report.differing, report.map_differing) == (2 * MiB, 0, 0)
    assert [disk.bytes for disk in report.disks] == [MiB, MiB]
    newest = next(job for job in server.vault().jobs() if job["properties"]["scenarioName"] == "PlannedFailover")
    steps = {task["name"]: task["backhaul"] for task in newest["properties"]["tasks"]}
    assert steps["compare"] == {"differing": 0}
    assert (steps["prove"]["integrity"], steps["prove"]["signed"]) == ("passed", shown["signed"])
    with pytest.raises(IntegrityReportForged):
        read_report(trust, bytes.fromhex(shown["signed"]).replace(b"differing\x00", b"differing\x01", 1))
    with pytest.raises(IntegrityReportForged):
        read_report(Trust(()), bytes.fromhex(shown["signed"]))
    printed = server.command("item", "integrity", "web")
    assert (printed.returncode, printed.stderr) == (0, "")
    assert "passed: both sides hold the same" in printed.stdout
    assert "2.0 MiB, 6 digests" in printed.stdout


def check_estimate(server: LiveServer, lifecycle: Lifecycle) -> None:
    """Four granules were changed in the cloud; all of so small disks are compared, so the figure is exact."""
    estimate = lifecycle.preflight("ReverseReplicate", "web")["estimate"]
    assert (estimate["bytes"], estimate["bytesHigh"], estimate["totalBytes"]) == (256 * KiB, 256 * KiB, 2 * MiB)
    assert estimate["seconds"] > 0
    assert "32 of 32 granules" in estimate["basis"]
    assert "the link was measured" in estimate["basis"]
    printed = server.command("item", "reprotect", "--network", "cloud-net", "--dry-run")
    assert "web: About 256.0 KiB of 2.0 MiB differ: " in printed.stdout
    empty = server.command("item", "reprotect", "--network", "nowhere")
    assert empty.returncode != 0
    assert empty.stderr.startswith("BH-NETWORK-EMPTY: No item lies in the virtual network nowhere")
    assert "cloud-net" in empty.stderr


def check_outcome(server: LiveServer, job: str) -> None:
    """What really differed is noted with the job, beside what was expected."""
    kept = reprotect_figures(server, job)
    assert kept["estimate"]["bytes"] == kept["actual"]["bytes"] == 256 * KiB
    assert kept["error"]["bytes"] == 0
    assert kept["actual"]["wireBytes"] > 0
    printed = server.command("job", "show", job).stdout
    assert "Estimate: About 256.0 KiB of 2.0 MiB differ" in printed
    assert "Actual: 256.0 KiB differed" in printed


def come_back(server: LiveServer, lifecycle: Lifecycle, sites: dict[str, RealSite]) -> None:
    """The cloud machine's agent wakes up; reprotect, failback, commit, protect again."""
    plan = lifecycle.plan("web")
    client = sites["cloud"].client
    assert client is not None
    holder = f"machine:{plan['cloud']['machine']}"
    disks = [client.attach_disk(disk, holder, token=f"own-{disk}").path for disk in plan["cloud"]["disks"]]
    agent(server, "agent-cloud", plan["cloud"]["machine"], "cloud-net", disks)
    until(lambda: registered(server, "agents", "agent-cloud"))
    lifecycle.set_agent("web", "cloud", "agent-cloud")
    Path(disks[0]).write_bytes(os.urandom(256 * KiB) + Path(disks[0]).read_bytes()[256 * KiB :])
    check_estimate(server, lifecycle)
    job = lifecycle.begin("ReverseReplicate", ["web"], {})
    server.vault().wait_job(job)
    until(lambda: state(server) == "protected-to-home")
    check_outcome(server, job)
    for kind, end in (("PlannedFailover", "failed-back"), ("Commit", "failed-back-committed")):
        server.vault().wait_job(lifecycle.begin(kind, ["web"], {}))
        assert lifecycle.plan("web")["state"] == end
    assert client.machines() == ()
    server.vault().wait_job(lifecycle.begin("ReverseReplicate", ["web"], {}))
    until(lambda: state(server) == "protected")
