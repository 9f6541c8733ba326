"""A configuration server as its users have it: a process of its own, real TLS on loopback, real servers beside it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from backhaul.client.login import login
from backhaul.client.profile import VARIABLE, Profile
from backhaul.client.transport import Transport
from backhaul.client.vault import Vault
from backhaul.configuration_server.occupancy import running_in, stop
from backhaul.replication.ports import RealFiles

PASSWORD = "a test's own password"
SETTINGS = {
    "heartbeat_s": 0.2,
    "process_server_port": 0,
    "master_target_port": 0,
    "spool_bytes": 1 << 28,
    "lock_after": 3,
}


def until(condition: Callable[[], Any]) -> Any:
    """What the condition gives, once it gives something; the test's timeout is the bound."""
    while not (found := condition()):
        time.sleep(0.05)
    return found


class LiveServer:
    """One data folder and whatever process serves it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.data_dir = folder, folder / "server"
        self.data_dir.mkdir(mode=0o700)
        self.profile_path = folder / "profile.json"
        (self.data_dir / "settings.json").write_text(json.dumps(SETTINGS | settings))
        self.port, self.one_time_password = 0, ""
        self.process: subprocess.Popen[str] | None = None
        self.members: list[subprocess.Popen[bytes]] = []
        self.profile: Profile | None = None
        self._vault: Vault | None = None

    # --- the process --------------------------------------------------------------------------------------------

    def start(self, *command: str) -> None:
        """Start it and wait until it serves; on the port it had before, so that its servers find it again."""
        verb = command or (sys.executable, "-m", "backhaul", "server", "run")
        arguments = [*verb, "--data-dir", str(self.data_dir), "--listen", f"127.0.0.1:{self.port}"]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                arguments, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("  "):
                self.one_time_password = line.strip()
            if line.startswith("Serving on port"):
                self.port = int(line.split()[3].rstrip("."))
                return
        raise AssertionError((self.folder / "server.log").read_text()[-3000:])

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it; its exit status. The servers it started go on."""
        assert self.process is not None
        self.process.send_signal(how)
        status = self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status

    def close(self) -> None:
        """End everything that was started here."""
        self._close_vault()
        if self.process is not None and self.process.poll() is None:
            self.end()
        for member in self.members:
            if member.poll() is None:
                member.terminate()
            member.wait()
        for folder in (self.data_dir / "process-server", self.data_dir / "master-target"):
            if stop(RealFiles(), folder):
                while running_in(RealFiles(), folder) is not None:
                    time.sleep(0.05)

    # --- callers ------------------------------------------------------------------------------------------------

    @property
    def server(self) -> str:
        """Its address for clients."""
        return f"https://localhost:{self.port}"

    @property
    def roots(self) -> str:
        """The roots it publishes."""
        return (self.data_dir / "ca.pem").read_text()

    def login(self) -> Profile:
        """A session as admin; the first time with the one-time password, which is changed."""
        os.environ[VARIABLE] = str(self.profile_path)
        password = PASSWORD if self.profile else self.one_time_password
        self.profile = login(self.server, self.roots, "admin", password, lambda: PASSWORD)
        self._close_vault()
        self._vault = Vault(self.profile)
        return self.profile

    def vault(self) -> Vault:
        """The client of the profile's session."""
        assert self._vault is not None
        return self._vault

    def _close_vault(self) -> None:
        if self._vault is not None:
            self._vault.close()

    def transport(self, token: str = "") -> Transport:
        """A caller with a session of its own, or none."""
        return Transport(self.server, self.roots, token)

    def account(self, role: str) -> str:
        """A session of a fresh account with the role; its token."""
        assert self.profile is not None
        first, then = "first password of it", "second password of it"
        with self.transport(self.profile.token) as admin:
            admin.call("POST", "/accounts", {"user": f"a_{role}", "role": role, "password": first})
        with self.transport() as nobody:
            token = nobody.call("POST", "/login", {"user": f"a_{role}", "password": first})["token"]
            with self.transport(token) as changing:
                changing.call("POST", "/password", {"present": first, "password": then})
            return str(nobody.call("POST", "/login", {"user": f"a_{role}", "password": then})["token"])

    # --- servers and agents -------------------------------------------------------------------------------------

    def passphrase_file(self) -> Path:
        """The passphrase in a file, as the registration tool takes it."""
        path = self.folder / "passphrase"
        path.write_text(self.vault().passphrase())
        return path

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A run of the command line."""
        environment = os.environ | {VARIABLE: str(self.profile_path)}
        command = [sys.executable, "-m", "backhaul", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False, stdin=subprocess.DEVNULL
        )

    def register(self, kind: str, name: str, *more: str) -> Path:
        """Register a server or agent by the command line; its folder."""
        folder = self.folder / name
        done = self.command(
            kind, "register", "--configuration-server", f"127.0.0.1:{self.port}", "--data-dir", str(folder),
            "--passphrase-file", str(self.passphrase_file()), "--name", name, *more,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return folder

    def run(self, kind: str, folder: Path) -> subprocess.Popen[bytes]:
        """Run what was registered in a folder."""
        with (folder / "service.log").open("ab") as log:
            command = [sys.executable, "-m", "backhaul", kind, "run", "--data-dir", str(folder)]
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self.members.append(process)
        return process

    def machine(self, name: str, **disks: bytes) -> subprocess.Popen[bytes]:
        """A machine that is powered off, with disks of this content, and its agent, which has said what there is."""
        home = self.folder / f"{name}-disks"
        home.mkdir()
        (home / "metadata.json").write_text(json.dumps({"machine_id": f"id-of-{name}", "tags": {}}))
        arguments = ["--metadata-file", str(home / "metadata.json")]
        for disk, content in disks.items():
            (home / f"{disk}.img").write_bytes(content)
            arguments += ["--disk", f"{disk}={home / disk}.img"]
        agent = self.run("agent", self.register("agent", name, *arguments))
        until(lambda: [one for one in self._agents() if one["friendlyName"] == name and one["machine"]])
        return agent

    def _agents(self) -> list[dict[str, Any]]:
        return [agent["properties"] for agent in self.vault().servers("agents")]

    def healthy(self, kind: str) -> list[dict[str, Any]]:
        """Servers of the kind, once there are some and all are healthy."""

        def found() -> list[dict[str, Any]]:
            servers = self.vault().servers(kind)
            return servers if all(one["properties"]["health"] == "Healthy" for one in servers) else []

        return list(until(found))


@contextlib.contextmanager
def live_server(folder: Path, **settings: Any) -> Iterator[LiveServer]:
    """A server that serves, with a session as admin."""
    server = LiveServer(folder, **settings)
    try:
        server.start()
        server.login()
        yield server
    finally:
        server.close()
