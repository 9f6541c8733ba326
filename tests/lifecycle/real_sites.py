"""Local sites as provider daemons, and servers of the data plane as the control plane asks them, for tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, Final

import msgspec

from backhaul.configuration_server.errors import ServerRefused
from backhaul.links.certificates import Expect
from backhaul.links.connection import open_data
from backhaul.links.dialer import Address, dial_data
from backhaul.links.tls import Credentials
from backhaul.recovery.preflight_facts import Health, ServerFacts
from backhaul.replication import messages as m
from backhaul.replication.control import Method
from backhaul.replication.ports import RealClock
from backhaul.replication.units import GiB
from backhaul.sites.local.client import LocalSite
from backhaul.sites.local.daemon import take_down
from backhaul.sites.local.definition import (
    AccountDefinition,
    Mode,
    NetworkDefinition,
    PrincipalDefinition,
    SiteDefinition,
    SiteKind,
    SubnetDefinition,
    SubscriptionDefinition,
)
from backhaul.sites.local.principals import token_hash
from backhaul.sites.values import SiteRole
from sites.daemon_process import Daemon

RANGE: Final = f"127.{64 + os.getpid() % 128}"


def site_definition(name: str, kind: SiteKind, third: int) -> SiteDefinition:
    """A site of one network, which Backhaul may do everything in."""
    prefix = f"{RANGE}.{third}.0/24"
    network = NetworkDefinition(f"{name}-net", "prod", "rg", "here", prefix, (SubnetDefinition("default", prefix),))
    principal = PrincipalDefinition("backhaul", token_hash(f"token-{name}"), {"prod": SiteRole.OWNER})
    return SiteDefinition(
        name=name, kind=kind, subscriptions=(SubscriptionDefinition("prod"),), networks=(network,),
        principals=(principal,), mode=Mode.ADDRESSES,
        accounts=(AccountDefinition("acc", "prod", "rg", "here", 256 * GiB),),
    )  # fmt: skip


class RealSite:
    """A provider daemon with a client."""

    def __init__(self, folder: Path, name: str, kind: SiteKind, third: int) -> None:
        self.folder, self.definition = folder / name / "site", site_definition(name, kind, third)
        (folder / name).mkdir()
        self.folder.mkdir()
        self.daemon = Daemon(self.folder, self.definition)
        self.name = name
        self.client: LocalSite | None = None
        self.endpoint = ("", "")

    def start(self) -> None:
        """Start the daemon and connect."""
        found = self.daemon.start()
        self.endpoint = (found.address, found.certificate_pem)
        self.client = LocalSite(found.address, f"token-{self.name}", found.certificate_pem)

    def stop(self) -> None:
        """End the daemon, then everything of the site."""
        if self.client is not None:
            self.client.close()
            self.daemon.end(signal.SIGTERM)
            take_down(self.folder, self.definition)


async def request(own: Credentials, port: int, expect: Expect, method: Method, params: dict[str, Any]) -> Any:
    """One control request to a server on loopback. Raises ServerRefused."""
    connection = await dial_data(Address("127.0.0.1", port), own, expect, clock=RealClock())
    try:
        await open_data(connection, "configuration server")
        await connection.send(m.message(m.Request(1, method, params)))
        answer = await connection.receive()
        response = m.read_head(answer, m.Response)
    finally:
        await connection.close()
    if response.code:
        raise ServerRefused(server=expect.id, method=method, reason_code=response.code, params=response.result)
    return msgspec.msgpack.decode(answer.payload)


def facts_of(name: str, network: str) -> ServerFacts:
    """A server that is well."""
    return ServerFacts(name=name, network=network, health=Health.HEALTHY, answers=True, version=(1, 0, 0))
