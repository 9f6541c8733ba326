"""A configuration server with one failed-over machine in a real cloud: what deployments of process servers begin from.

The item's record is entered as its failover would have left it; everything else is real: provider, server, processes.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec

from backhaul.client.deployments import Deployments
from backhaul.client.lifecycle import Lifecycle
from backhaul.configuration_server.lifecycle.store import StoredItems
from backhaul.configuration_server.lifecycle.values import Place
from backhaul.configuration_server.records import ItemRecord, ServerRecord
from backhaul.configuration_server.revisions import Revisions
from backhaul.configuration_server.settings import load_settings
from backhaul.configuration_server.vault import DEFAULT_POLICY, Vault
from backhaul.links.dialer import Backoff, Redial
from backhaul.recovery.item import ItemState, Side, State
from backhaul.replication.control import StillImagePlan
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness
from backhaul.replication.units import MiB
from backhaul.sites.local.client import LocalSite
from backhaul.sites.local.daemon import take_down
from backhaul.sites.local.definition import SiteDefinition, SiteKind
from backhaul.sites.values import Machine, MachineRequest, ServerSize, SiteRole
from configuration_server.live import LiveServer, until
from sites.daemon_process import Daemon
from sites.site_world import RANGE, SERVER_NET, SLEEPER, TOKENS, definition

PASSWORD = "Correct-Horse-7"
ITEM = "0123456789abcdef0123456789abcdef"
NAME = f"ps-{SERVER_NET}"
FORM: dict[str, Any] = {"user": "rescue", "password": PASSWORD}
SIZES = (ServerSize("small", 2, 4 * MiB, 8 * MiB), ServerSize("large", 8, 4 * MiB, 16 * MiB))


class Cloud:
    """A provider daemon of the sites' own test definition, and a client with every right."""

    def __init__(self, folder: Path, site: SiteDefinition) -> None:
        folder.mkdir()
        self.folder, self.definition = folder, site
        self.daemon = Daemon(folder, site)
        self.endpoint = self.daemon.start()
        self.client = LocalSite(self.endpoint.address, TOKENS[SiteRole.OWNER], self.endpoint.certificate_pem)

    def close(self) -> None:
        """End the daemon, then everything of the site."""
        self.client.close()
        self.daemon.end(signal.SIGTERM)
        take_down(self.folder, self.definition)

    def listing(self) -> dict[str, Any]:
        """All that a deleted server must leave unchanged."""
        client = self.client
        return {
            "servers": client.servers(), "subscriptions": client.subscriptions(), "accounts": client.accounts(),
            "disks": client.disks(), "addresses": client.addresses(SERVER_NET),
        }  # fmt: skip

    def effects(self) -> list[str]:
        """What the site did, by its own log, after the machine was made."""
        return [effect.operation for effect in self.client.effects()][1:]


class World:
    """The server, the cloud, and the failed-over machine."""

    def __init__(self, server: LiveServer, cloud: Cloud, machine: Machine) -> None:
        self.server, self.cloud, self.machine = server, cloud, machine

    @contextlib.contextmanager
    def deployments(self) -> Iterator[Deployments]:
        """The client."""
        assert self.server.profile is not None
        with Deployments(self.server.profile) as client:
            yield client

    def deploy(self, name: str = NAME, **form: Any) -> dict[str, Any]:
        """Deploy and wait for the job; the deployment's properties."""
        with self.deployments() as client:
            self.server.vault().wait_job(client.deploy(name, FORM | form))
            shown: dict[str, Any] = client.get(name)["properties"]
        return shown

    def state(self, name: str = NAME) -> dict[str, Any]:
        """The deployment's properties now."""
        with self.deployments() as client:
            shown: dict[str, Any] = client.get(name)["properties"]
        return shown

    def records(self, change: Callable[[Vault], Any]) -> Any:
        """Change the records while the server is down, and start it again."""
        self.server.end()
        vault = open_vault(self.server.data_dir)
        try:
            found = change(vault)
        finally:
            vault.close()
        self.server.start()
        return found


def open_vault(folder: Path) -> Vault:
    """The vault of a server that does not run."""
    return Vault(folder, load_settings(folder), RealFiles(), Redial(RealClock(), RealRandomness(), Backoff()))


def enter_item(vault: Vault, machine: Machine, name: str = "web", item: str = ITEM) -> None:
    """The records of a machine that was failed over and committed."""
    state = ItemState(state=State.FAILED_OVER_COMMITTED, active_side=Side.CLOUD)
    with vault.database.write() as session:
        if session.get(ServerRecord, "agent-home") is None:
            session.add(ServerRecord(id="agent-home", role="agent", name="a", state="registered", built_in=False))
        if session.get(ServerRecord, "ps-home") is None:
            row = ServerRecord(id="ps-home", role="process-server", name="p", state="registered", built_in=False)
            session.add(row)
        session.flush()
        session.add(
            ItemRecord(
                id=item, name=name, policy=DEFAULT_POLICY, agent="agent-home", machine=machine.id,
                process_server="ps-home", created_ns=0, home_json="{}", cloud_json="{}",
                state_json=msgspec.json.encode(state).decode(), disks_json="[]",
                still_json=msgspec.json.encode(StillImagePlan()).decode(),
            )
        )  # fmt: skip
        session.flush()
        home = Place(site="home", subscription="prod", network="home-net", subnet="default", name=name, target="mt")
        cloud = Place(
            site="cloud", subscription="prod", network=machine.network, subnet="default", name=name, target="mt",
            machine=machine.id, address=machine.address,
        )  # fmt: skip
        StoredItems(vault, cast(Revisions, None)).plan(session, item, home, cloud)


@contextlib.contextmanager
def failed_over_world(folder: Path, principal: SiteRole = SiteRole.OWNER, **site: Any) -> Iterator[World]:
    """All of it, running; `principal`: as whom the configuration server calls the cloud."""
    server = LiveServer(folder, built_in=False)
    cloud = Cloud(folder / "cloud", definition(sizes=SIZES, **site))
    try:
        request = MachineRequest("web", "prod", SERVER_NET, "default", SLEEPER, ())
        machine = cloud.client.create_machine(request, token="machine")
        vault = open_vault(server.data_dir)
        enter_item(vault, machine)
        vault.close()
        server.start()
        profile = server.login()
        endpoint = cloud.endpoint
        with Lifecycle(profile) as lifecycle:
            lifecycle.set_site("cloud", SiteKind.CLOUD, endpoint.address, endpoint.certificate_pem, TOKENS[principal])
        yield World(server, cloud, machine)
    finally:
        server.close()
        cloud.close()


def password_file(world: World, password: str = PASSWORD) -> str:
    """A file with the administrator's password, as the command line takes it."""
    path = world.server.folder / f"password-{len(password)}"
    path.write_text(password + "\n")
    return str(path)


def command(world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A run of the command line, which shows no password."""
    done = world.server.command(*arguments)
    assert PASSWORD not in done.stdout + done.stderr
    return done


def server_folder(cloud: Cloud, name: str = NAME) -> Path:
    """The data folder of a deployed server."""
    server = next(one for one in cloud.client.servers() if one.name == name)
    return next(cloud.folder.rglob(f"accounts/*/servers/{server.id}/os")) / "process-server"


__all__ = [
    "FORM", "ITEM", "NAME", "PASSWORD", "RANGE", "SERVER_NET", "Cloud", "World", "command", "enter_item",
    "failed_over_world", "open_vault", "password_file", "server_folder", "until",
]  # fmt: skip
