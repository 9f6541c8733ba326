"""A kill before and after each step of a job leaves exactly one effect: the steps are enumerated from the workflow."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backhaul.client.errors import ClientError
from backhaul.client.vault import RUNNING
from backhaul.configuration_server.jobs import PROTECT
from backhaul.configuration_server.member import Member, MemberFolder, register
from backhaul.configuration_server.protecting import KINDS
from backhaul.links.dialer import Address
from backhaul.links.passphrase import parse_passphrase
from backhaul.links.tls import Credentials
from backhaul.replication.control import AgentReport
from backhaul.replication.errors import BackhaulError
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness
from backhaul.replication.values import Role
from configuration_server.live import LiveServer, live_server, until

EDGES = 1 + 2 * len(KINDS[PROTECT])
"""Before the workflow starts, and before and after each step."""

KILLED = -9


@contextlib.contextmanager
def machines(server: LiveServer, folder: Path) -> Iterator[None]:
    """As many registered machines as there are edges; their agents say what there is and that they live, to whichever
    server serves, and are never told more.
    """
    passphrase, clock = parse_passphrase(server.vault().passphrase()), RealClock()
    address, known, over = Address("127.0.0.1", server.port), threading.Event(), threading.Event()

    async def announced(number: int) -> tuple[str, Member]:
        name = f"machine-{number}"
        _, identity = await register(address, passphrase, Role.AGENT, name, name, clock=clock)
        kept = MemberFolder(folder / name, RealFiles(), RealRandomness(), "agent")
        member = Member(kept, Credentials(identity, clock), address, clock)
        offer = {"disks": [{"name": "root", "path": "/nowhere", "size": 1 << 20}]}
        await member.announce({"name": name, "version": "0", "machine": f"id-{number}", "offer": offer})
        return identity.peer.id, member

    async def live() -> None:
        members = [await announced(number) for number in range(EDGES)]
        known.set()
        while not over.is_set():
            for number, (agent, member) in enumerate(members):
                report = AgentReport(agent, f"id-{number}", "0", clock.wall_ns(), 0, ())
                with contextlib.suppress(BackhaulError):  # the server was just killed
                    await member.call("POST", "/members/self/report", msgspec.json.encode(report))
            await asyncio.sleep(0.5)
        for _, member in members:
            member.close()

    with ThreadPoolExecutor(1) as beside:
        living = beside.submit(asyncio.run, live())
        try:
            until(lambda: known.is_set() or living.done())
            yield
        finally:
            over.set()
            living.result()


@pytest.fixture(scope="module")
def survivor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that was killed at every edge of a job, each time with another machine, and then serves again."""
    folder = tmp_path_factory.mktemp("kills")
    with live_server(folder) as server:
        server.healthy("masterTargets")
        server.healthy("processServers")
        with machines(server, folder):
            server.end()
            for number in range(EDGES):
                server.start(sys.executable, str(Path(__file__).with_name("doomed_server.py")), str(number))
                server.login()
                server.healthy("masterTargets")
                server.healthy("processServers")
                try:
                    server.vault().protect(f"machine-{number}", "24-hours", "", "", "", [])
                except ClientError:
                    pass  # it died before it could answer
                assert server.process is not None
                assert server.process.wait() == KILLED
                assert server.process.stdout is not None
                server.process.stdout.close()
            server.start()
            server.login()
            yield server


def rows(server: LiveServer, query: str) -> list[Any]:
    with sqlite3.connect(server.data_dir / "backhaul.db") as connection:
        return connection.execute(query).fetchall()


def states(server: LiveServer) -> list[str]:
    return [job["properties"]["state"] for job in server.vault().jobs()]


@pytest.mark.timeout(600)
def test_every_job_succeeds_and_has_one_effect(survivor: LiveServer) -> None:
    until(lambda: all(state not in RUNNING for state in states(survivor)))
    assert states(survivor) == ["Succeeded"] * EDGES
    assert len(rows(survivor, "SELECT id FROM item")) == EDGES
    assert rows(survivor, "SELECT DISTINCT assigned, length(descriptor) > 0, length(target_key) > 0 FROM item") == [
        (1, 1, 1)
    ]
    for code in ("item.enabling", "item.initial-replication"):
        counted = rows(survivor, f"SELECT count(*) FROM event WHERE code = '{code}' GROUP BY subject")  # noqa: S608
        assert counted == [(1,)] * EDGES
    created = rows(survivor, "SELECT count(*) FROM event WHERE code = 'job.succeeded' GROUP BY subject")
    assert created == [(1,)] * EDGES


@pytest.mark.timeout(600)
def test_the_target_holds_each_item_once_at_generation_one(survivor: LiveServer) -> None:
    held = sorted(path.name for path in (survivor.data_dir / "master-target" / "target" / "items").iterdir())
    assert held == sorted(item["name"] for item in survivor.vault().items())
    for item in survivor.vault().items():
        own = item["properties"]["backhaul"]
        assert own["target"]["fence"].startswith("1.1.")
        assert item["properties"]["protectionState"] == "initial-replication"


@pytest.mark.timeout(600)
def test_each_agent_is_told_once(survivor: LiveServer) -> None:
    # One revision for being made, one for each announcement that moved a server's address, one for the assignment.
    revisions = dict(rows(survivor, "SELECT id, revision FROM server WHERE role = 'agent'"))
    assert len(set(revisions.values())) == 1, revisions
