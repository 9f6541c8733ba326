"""What the demo consists of, before any of it exists: two sites, their networks and services, two machines.

    home    control (configuration server, process server, master target), machines (where alpha and beta run)
    cloud   vnet-a, vnet-b (one machine each after a failover, so one process server each), storage (master target)

Invariant: everything follows from the demo's folder and from whether this is root, so a later run of the same folder
plans the same. Two demos at once have different addresses unless their folders' hashes meet, which the kernel then
refuses. Pure.
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import backhaul
from backhaul.replication.units import GiB, MiB
from backhaul.sites.local.definition import (
    AccountDefinition,
    Mode,
    NetworkDefinition,
    PrincipalDefinition,
    ServiceDefinition,
    SiteDefinition,
    SiteKind,
    SubnetDefinition,
    SubscriptionDefinition,
)
from backhaul.sites.local.principals import token_hash
from backhaul.sites.values import SiteRole

HOME, CLOUD = "home", "cloud"
SUBSCRIPTION, GROUP, SUBNET, ACCOUNT = "failover", "rescue", "default", "demostore"
CONTROL, MACHINES, STORAGE = "control", "machines", "storage"

CONFIGURATION, HOME_RELAY, HOME_TARGET, CLOUD_TARGET = "configuration", "relay", "target", "store"
GATEWAY = "gateway"
FREEZER_DOOR: Final = "freezer.sock"
"""Services of the sites. Names of services are letters and digits."""

HOME_UID, CLOUD_UID = 61001, 61002
"""Above the users that distributions give out; nobody needs a name in the user database."""

DISK_BYTES: Final = (64 * MiB, 48 * MiB)
"""Two disks of each machine: 112 MiB, which `scan` reads whole for each point."""

DATA_PORT, TARGET_PORT = 9443, 9444
MANAGEMENT: Final = {HOME: "198.18.0.1:8443", CLOUD: "198.18.0.2:8443"}
"""In the range for tests of RFC 2544: on the router, where the sites answer also when a route is cut."""

MANAGEMENT_PORT: Final = 8444
"""Where there is no router: of an address of each site's own."""

_VOLUME_BYTES: Final = 4 * GiB  # sparse
_NETWORKS: Final = {CONTROL: 1, MACHINES: 2, "vnet-a": 11, "vnet-b": 12, STORAGE: 20}
_AGENT_HOST: Final = 200
_GATEWAY_HOST: Final = 210
_MANAGEMENT_HOST: Final = 250


@dataclass(frozen=True)
class MachinePlan:
    """A machine to be protected, and the virtual network it will be failed over to."""

    name: str
    id: str
    network: str

    @property
    def agent(self) -> str:
        """The service that replicates it; of this name on each side."""
        return f"agent{self.name}"

    @property
    def process_server(self) -> str:
        """The process server that is deployed into its virtual network, named as the product would."""
        return f"ps-{self.network}"


@dataclass(frozen=True)
class ServicePlan:
    """A service of a site. `kind` and `more` as in `service`; the kind `gateway` is a program of its own."""

    name: str
    site: str
    network: str
    host: int
    kind: str
    more: tuple[str, ...] = ()


MACHINE_PLANS: Final = (
    MachinePlan("alpha", "a1fa0000-0000-4000-8000-000000000001", "vnet-a"),
    MachinePlan("beta", "be7a0000-0000-4000-8000-000000000002", "vnet-b"),
)


ALL_BYTES: Final = len(MACHINE_PLANS) * sum(DISK_BYTES)
"""Of all disks of all machines."""

ALL_DISKS: Final = len(MACHINE_PLANS) * len(DISK_BYTES)

GATED: Final = MACHINE_PLANS[1]
"""The machine whose process server stands behind a gateway that counts."""


@dataclass(frozen=True)
class Plan:
    """The plan of one demo. `as_root`: namespaces, loop devices, file systems."""

    folder: Path
    as_root: bool

    @classmethod
    def of(cls, folder: Path, unprivileged: bool = False) -> Plan:
        """The plan for this folder and this user; `unprivileged`: as for one who is not root."""
        return cls(folder.resolve(), os.geteuid() == 0 and not unprivileged)

    @property
    def mark(self) -> str:
        """Tells the namespaces of two demos from each other."""
        return hashlib.sha256(str(self.folder).encode()).hexdigest()[:6]

    @property
    def configuration_port(self) -> int:
        """443 as in a real one; an unprivileged user cannot."""
        return 443 if self.as_root else 8443

    @property
    def configuration_server(self) -> str:
        """`host:port` of the configuration server."""
        return f"{self.service_address(HOME, CONFIGURATION)}:{self.configuration_port}"

    def prefix(self, network: str) -> str:
        """A network's addresses."""
        return f"{self._base()}.{_NETWORKS[network]}.0/24"

    def address(self, network: str, host: int) -> str:
        """An address of a network."""
        return f"{self._base()}.{_NETWORKS[network]}.{host}"

    @property
    def services(self) -> tuple[ServicePlan, ...]:
        """All services of both sites."""
        listen = ("--listen", f"{{address}}:{self.configuration_port}")
        return (
            ServicePlan(CONFIGURATION, HOME, CONTROL, 10, "server", listen),
            ServicePlan(HOME_RELAY, HOME, CONTROL, 11, "process-server"),
            ServicePlan(HOME_TARGET, HOME, CONTROL, 12, "master-target"),
            ServicePlan(CLOUD_TARGET, CLOUD, STORAGE, 10, "master-target"),
            ServicePlan(GATEWAY, CLOUD, GATED.network, _GATEWAY_HOST, "gateway"),
            *(ServicePlan(m.agent, HOME, MACHINES, _AGENT_HOST + i, "agent") for i, m in enumerate(MACHINE_PLANS)),
            *(ServicePlan(m.agent, CLOUD, m.network, _AGENT_HOST + i, "agent") for i, m in enumerate(MACHINE_PLANS)),
        )

    def service(self, site: str, name: str) -> ServicePlan:
        """One of them."""
        return next(service for service in self.services if (service.site, service.name) == (site, name))

    def service_address(self, site: str, name: str) -> str:
        """Where a service listens."""
        service = self.service(site, name)
        return self.address(service.network, service.host)

    def management(self, site: str) -> str:
        """`host:port` at which a site's provider answers the configuration server."""
        if self.as_root:
            return MANAGEMENT[site]
        return f"{self.address(CONTROL if site == HOME else STORAGE, _MANAGEMENT_HOST)}:{MANAGEMENT_PORT}"

    def uid(self, site: str) -> int | None:
        """The user of a site's processes; None where that is the user of the demo."""
        return {HOME: HOME_UID, CLOUD: CLOUD_UID}[site] if self.as_root else None

    def namespace(self, network: str) -> str:
        """Path of a network's namespace; empty for an unprivileged demo."""
        return f"/run/netns/bh-{self._fabric()}-{network}" if self.as_root else ""

    def definition(self, site: str, token: str) -> SiteDefinition:
        """A site's definition; `token` is the access token of the operator, who owns both sites."""
        home = site == HOME
        networks = (CONTROL, MACHINES) if home else (*(plan.network for plan in MACHINE_PLANS), STORAGE)
        return SiteDefinition(
            name=site,
            kind=SiteKind.HOME if home else SiteKind.CLOUD,
            subscriptions=(SubscriptionDefinition(SUBSCRIPTION),),
            networks=tuple(self._network(name, site) for name in networks),
            principals=(PrincipalDefinition("operator", token_hash(token), {SUBSCRIPTION: SiteRole.OWNER}),),
            accounts=(AccountDefinition(ACCOUNT, SUBSCRIPTION, GROUP, site, 2 * GiB),),
            services=tuple(self._definition(service) for service in self.services if service.site == site),
            mode=Mode.NAMESPACES if self.as_root else Mode.ADDRESSES,
            fabric=self._fabric(),
            uid=self.uid(site) or 0,
            volume_bytes=_VOLUME_BYTES,
            readable=readable_folders() if self.as_root else (),
        )

    def _network(self, name: str, site: str) -> NetworkDefinition:
        subnet = SubnetDefinition(SUBNET, self.prefix(name))
        return NetworkDefinition(
            name, SUBSCRIPTION, GROUP, site, self.prefix(name), (subnet,), public=name in (CONTROL, STORAGE)
        )

    def _definition(self, service: ServicePlan) -> ServiceDefinition:
        command: tuple[str, ...] = (sys.executable, "-m", "backhaul.demo.service", service.kind, *service.more)
        if service.kind == GATEWAY:
            command = (sys.executable, "-m", "backhaul.demo.gateway")
        address = self.address(service.network, service.host)
        companion: tuple[str, ...] = ()
        if service.kind == "agent" and self.as_root:
            command += ("--freezer", f"../{FREEZER_DOOR}")
            companion = (sys.executable, "-m", "backhaul.mobility.freezer_door", FREEZER_DOOR, "{uid}")
        return ServiceDefinition(service.name, service.network, SUBNET, address, command, companion)

    def _fabric(self) -> str:
        return f"d{self.mark}"

    def _base(self) -> str:
        """Unprivileged: some 127.X; as root the namespaces are closed, but the operator's machine may route 10/8."""
        number = int(self.mark, 16)
        return f"10.{64 + number % 64}" if self.as_root else f"127.{16 + number % 200}"


def readable_folders() -> tuple[str, ...]:
    """What other users must read to run the product: the interpreter, its packages, this source."""
    source = Path(backhaul.__file__).resolve().parent.parent
    return tuple(dict.fromkeys((sys.prefix, sys.base_prefix, str(source))))
