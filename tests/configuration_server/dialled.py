"""A cloud that a live configuration server dials, with real processes; and the door of home that nobody uses."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from backhaul.client.vault import Resource
from backhaul.configuration_server.occupancy import running_in
from backhaul.configuration_server.service_config import ServiceConfig, save_service
from backhaul.process_server.unregistered import read_key_hash
from backhaul.replication.ports import RealFiles
from configuration_server.live import LiveServer, until

NETWORK = "vnet"
ID = "ps-cloud"


class Door:
    """The address of home that the cloud is told. It takes every connection and keeps it: none is the proof."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setblocking(False)

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def was_used(self) -> bool:
        """Whether anybody has connected since the last call."""
        try:
            accepted, _ = self._socket.accept()
        except BlockingIOError:
            return False
        accepted.close()
        return True

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


There = Callable[[Callable[[], Any]], Any]


class Cloud:
    """A process server as it was deployed, and machines beside it. `there` runs what belongs into the cloud's network;
    `told`: `host:port` at which the cloud believes home to be.
    """

    def __init__(self, home: LiveServer, told: str, host: str = "127.0.0.1", there: There = lambda act: act()) -> None:
        self.home, self.told, self.host, self._there = home, told, host, there
        self.folder = home.folder / ID
        self.folder.mkdir(mode=0o700)
        save_service(RealFiles(), self.folder, ServiceConfig(ID, host, 0, network=NETWORK, spool_bytes=1 << 28))
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start the process server, again too."""
        self.process = self._there(lambda: self.home.run("process-server", self.folder))
        return self.process

    @property
    def key_hash(self) -> str:
        """What its console shows, once it does."""
        return until(lambda: read_key_hash((self.folder / "service.log").read_text())).hex()  # type: ignore[no-any-return]

    @property
    def address(self) -> str:
        """Its data port."""
        running = until(lambda: (known := running_in(RealFiles(), self.folder)) and known.port and known)
        return f"{self.host}:{running.port}"

    def dialling(self, **body: Any) -> Resource:
        """Tell home of it; what home shows then."""
        profile = self.home.profile
        assert profile is not None
        path = f"{profile.vault}/backhaulServers/{ID}/dialling"
        with self.home.transport(profile.token) as transport:
            shown: Resource = transport.call("PUT" if body else "GET", path, body or None)
        return shown

    def register(self, passphrase: str, *more: str) -> subprocess.CompletedProcess[str]:
        """The registration tool on the new server."""
        assert self.key_hash, "it waits, so it is what registers"
        path = self.home.folder / "typed-passphrase"
        path.write_text(passphrase)
        arguments = (
            "process-server", "register", "--configuration-server", self.told, "--data-dir", str(self.folder),
            "--passphrase-file", str(path), "--name", "cloud", *more,
        )  # fmt: skip
        done: subprocess.CompletedProcess[str] = self._there(lambda: self.home.command(*arguments))
        return done

    def deployed(self) -> None:
        """Home is told address and key hash, and dials."""
        self.dialling(addresses=[self.address], keyHash=self.key_hash)
        until(lambda: (self.dialling()["link"] or {}).get("up"))

    def registered(self) -> None:
        """Deployed, registered over home's connection, and dialled again as what it is."""
        self.deployed()
        done = self.register(self.home.vault().passphrase(), "--home-dials")
        assert done.returncode == 0, done.stderr
        until(
            lambda: self.server()["health"] == "Healthy" and (self.server()["homeLink"] or {}).get("kind") == "tunnel"
        )

    def replicate(self, machine: str, **disks: bytes) -> Path:
        """Protect a machine of the cloud through its process server, up to the first point; its replica at home."""
        vault = self.home.vault()
        self.machine(machine, **disks)
        until(lambda: any(a["properties"]["machine"] == f"id-of-{machine}" for a in vault.servers("agents")))
        vault.create_policy("fast", {"point_interval_s": 1.0})
        vault.wait_job(vault.protect(machine, "fast", "", "", ID, []))
        until(lambda: vault.item(machine)["properties"]["protectionState"] == "protected")
        item = str(vault.item(machine)["name"])
        return self.home.data_dir / "master-target" / "target" / "items" / item / "disks" / "0.img"

    def server(self) -> Resource:
        """What home shows of it."""
        shown: Resource = self.home.vault().server(ID)["properties"]
        return shown

    def machine(self, name: str, **disks: bytes) -> Path:
        """A machine in the cloud whose agent knows the process server only; the folder of its disks."""
        folder = self.home.folder / f"{name}-disks"
        folder.mkdir()
        (folder / "metadata.json").write_text(json.dumps({"machine_id": f"id-of-{name}", "tags": {}}))
        arguments = ["--metadata-file", str(folder / "metadata.json"), "--network", NETWORK]
        for disk, content in disks.items():
            (folder / f"{disk}.img").write_bytes(content)
            arguments += ["--disk", f"{disk}={folder / disk}.img"]
        agent = self.home.folder / name
        verb = (
            "agent", "register", "--configuration-server", self.told, "--process-server", self.address,
            "--data-dir", str(agent), "--passphrase-file", str(self.home.passphrase_file()), "--name", name, *arguments,
        )  # fmt: skip
        done = self._there(lambda: self.home.command(*verb))
        assert done.returncode == 0, done.stderr
        self._there(lambda: self.home.run("agent", agent))
        return folder


@contextlib.contextmanager
def dialled_cloud(home: LiveServer) -> Iterator[tuple[Cloud, Door]]:
    """A deployed process server; at the end nobody may have come to home's door."""
    door = Door()
    try:
        yield Cloud(home, door.address), door
        assert not door.was_used(), "somebody in the cloud dialled home"
    finally:
        door.close()
