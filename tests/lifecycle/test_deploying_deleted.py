"""What is left of a deleted process server: nothing, and a copy of it that comes back at its address is nobody.

Its process, port, disks, quota, address, tokens and certificate: the site's and the vault's listings before it was
deployed and after it was deleted, and what others find at its address.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from backhaul.configuration_server.member import MemberFolder
from backhaul.links.certificates import Expect
from backhaul.links.connection import open_data
from backhaul.links.dialer import Address, dial_data
from backhaul.links.identity import Identity
from backhaul.links.tls import Credentials
from backhaul.replication.errors import BackhaulError
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness
from backhaul.replication.values import Role
from lifecycle.deployed import NAME, World, failed_over_world, server_folder, until

WATCHED_S = 3.0
"""So long is looked whether anybody speaks to the copy: targets and configuration server dial again within one."""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    with failed_over_world(tmp_path) as made:
        yield made


def processes_of(world: World) -> list[int]:
    """Processes that run in the deployed server's folder, as its site started them."""
    folder = str(server_folder(world.cloud).parent)
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd().startswith(folder):
                found.append(process.pid)
    return found


def is_alive(pid: int) -> bool:
    """Whether it runs; one whose end nobody has asked for yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def tokens(world: World) -> list[tuple[Any, ...]]:
    """Every one-time token of the vault that could still be used."""
    with sqlite3.connect(world.server.data_dir / "backhaul.db") as records:
        return records.execute("SELECT * FROM token WHERE spent_ns = 0").fetchall()


def can_bind(address: Address) -> bool:
    """Whether nobody has the address."""
    with socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections may linger
        try:
            door.bind((address.host, address.port))
            door.listen()
        except OSError:
            return False
    return True


def is_let_in(dialling: Identity, address: Address) -> bool:
    """Whether who has this identity takes what answers at the address for a process server, over a link of data."""

    async def dial() -> None:
        expect = Expect(Role.PROCESS_SERVER)
        connection = await dial_data(address, Credentials(dialling, RealClock()), expect, clock=RealClock())
        try:
            await open_data(connection, "a test")
        finally:
            await connection.close()

    try:
        asyncio.run(dial())
    except BackhaulError:
        return False
    return True


def identity_in(folder: Path, kind: str) -> Identity:
    """Whose certificate and key lie there, and whom they trust by now."""
    return MemberFolder(folder, RealFiles(), RealRandomness(), kind).load()[1]


@contextlib.contextmanager
def back_again(world: World, copy: Path) -> Iterator[Path]:
    """The copy runs; its log, once it serves at the old address."""
    log = copy.parent / "copy.log"
    command = [sys.executable, "-m", "backhaul", "process-server", "run", "--data-dir", str(copy)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        until(lambda: b"process_server.listening" in log.read_bytes() or process.poll() is not None)
        assert process.poll() is None, log.read_text()[-2000:]
        yield log
    finally:
        process.kill()
        process.wait()


def test_nothing_of_a_deleted_server_is_left_and_its_copy_is_nobody(world: World, tmp_path: Path) -> None:
    target = world.server.register("master-target", "mt-home", "--data-port", "0", "--listen-host", "127.0.0.1")
    world.server.run("master-target", target)
    world.server.healthy("masterTargets")
    before = (world.cloud.listing(), tokens(world))
    shown = world.deploy(register=True)
    address = Address(str(shown["address"]), int(shown["dataPort"]))
    running = processes_of(world)
    assert running, "it is a process"
    assert not can_bind(address), "which listens there"
    assert world.cloud.listing() != before[0]
    until(lambda: is_let_in(identity_in(target, "master-target"), address))
    copy = tmp_path / "copy"
    shutil.copytree(server_folder(world.cloud), copy, ignore=shutil.ignore_patterns("*lock", "running.json"))
    with world.deployments() as client:
        world.server.vault().wait_job(client.delete(NAME))
    assert [pid for pid in running if is_alive(pid)] == []
    assert can_bind(address)
    assert (world.cloud.listing(), tokens(world)) == before
    assert not any(world.cloud.folder.rglob("custom-data")), "what it booted with is gone, its token too"
    with back_again(world, copy) as log:
        time.sleep(WATCHED_S)
        assert b"connected" not in log.read_bytes(), "neither a target nor the configuration server dials it"
        until(lambda: not is_let_in(identity_in(target, "master-target"), address))
        listed = [one["properties"]["friendlyName"] for one in world.server.vault().servers("processServers")]
        assert NAME not in listed
