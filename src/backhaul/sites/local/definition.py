"""What a local site is made of, and what never changes while it runs: its definition, and the records it keeps.

The definition is a JSON file that the composition root writes; the provider reads it at each start, so that networks,
accounts, quota and principals can be added by editing it. Records live in the ledger (`ledger.py`). Pure values.
"""

from __future__ import annotations

import enum
import ipaddress

import msgspec

from backhaul.replication.units import GiB, MiB
from backhaul.sites.errors import SiteDefinitionWrong
from backhaul.sites.values import MachineDisk, PasswordHash, ServerSize, SiteRole

RESERVED_FIRST = 4
"""The first four addresses of a subnet (network, gateway, two for names) and the last are the site's, as in Azure."""

_MAX_PREFIX = 28
"""Smallest subnet: below 16 addresses little is left beside the five reserved ones."""


class Mode(enum.StrEnum):
    """How a site simulates its networks."""

    ADDRESSES = "addresses"
    """Unprivileged: networks are ranges in 127.0.0.0/8."""
    NAMESPACES = "namespaces"
    """As root: every network is a network namespace with a router and a firewall."""


class SiteKind(enum.StrEnum):
    """Which side a site plays; the routers let home and clouds reach each other, but no two cloud networks."""

    HOME = "home"
    CLOUD = "cloud"


class SubscriptionDefinition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A subscription and its quota."""

    name: str
    servers: int = 10
    cores: int = 64


class SubnetDefinition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A subnet of a network, in CIDR form."""

    name: str
    prefix: str


class NetworkDefinition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A virtual network. `public`: every other network has a way to it, as to a cloud's storage."""

    name: str
    subscription: str
    resource_group: str
    region: str
    prefix: str
    subnets: tuple[SubnetDefinition, ...]
    public: bool = False


class ServiceDefinition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A process that the site keeps running at its own address, as a cloud's storage service.

    companion   as root: a program that is kept running beside it as root, outside of its network, in a folder that the
                service reads and only root changes (above the service's own); `{uid}` is the service's user
    """

    name: str
    network: str
    subnet: str
    address: str
    command: tuple[str, ...]
    companion: tuple[str, ...] = ()


class AccountDefinition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A storage account of `capacity` bytes."""

    name: str
    subscription: str
    resource_group: str
    region: str
    capacity: int


class PrincipalDefinition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may call: the SHA-256 of its access token (256 random bits, so a plain hash is enough) and its roles."""

    name: str
    token_sha256: str
    roles: dict[str, SiteRole]


SIZES = (
    ServerSize("Standard_A8_v2", 8, 64 * MiB, 256 * MiB),
    ServerSize("Standard_A4_v2", 4, 64 * MiB, 128 * MiB),
    ServerSize("Standard_A2_v2", 2, 32 * MiB, 64 * MiB),
)
"""Azure's size for a process server and two smaller ones; disks are small: all sites share one machine's."""


class SiteDefinition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A local site.

    fabric        namespaces mode: sites of one fabric share the router between their networks
    uid           namespaces mode: user and group id under which everything of the site runs (no name needed)
    volume_bytes  namespaces mode: size of the sparse XFS image that holds the site's disks
    readable      namespaces mode: folders the site's processes must be able to read although a parent is closed to
                  them (the interpreter and the program, where these lie in somebody's home)
    """

    name: str
    kind: SiteKind
    subscriptions: tuple[SubscriptionDefinition, ...]
    networks: tuple[NetworkDefinition, ...]
    principals: tuple[PrincipalDefinition, ...]
    accounts: tuple[AccountDefinition, ...] = ()
    services: tuple[ServiceDefinition, ...] = ()
    mode: Mode = Mode.ADDRESSES
    fabric: str = "local"
    uid: int = 0
    volume_bytes: int = 32 * GiB
    sizes: tuple[ServerSize, ...] = SIZES
    readable: tuple[str, ...] = ()


class ServerRecord(msgspec.Struct, frozen=True):
    """A server in the ledger; `key` is its name. `failures` are the wrong passwords since `failures_since_ns`."""

    key: str
    id: str
    subscription: str
    resource_group: str
    region: str
    network: str
    subnet: str
    address: str
    user: str
    password: PasswordHash
    account: str
    size: str
    cores: int
    os_disk_bytes: int
    spool_disk_bytes: int
    command: tuple[str, ...]
    tags: dict[str, str]
    state: str = "creating"
    failures: int = 0
    failures_since_ns: int = 0


class MachineRecord(msgspec.Struct, frozen=True):
    """A machine in the ledger; `key` is its id, a UUID."""

    key: str
    name: str
    subscription: str
    network: str
    subnet: str
    address: str
    command: tuple[str, ...]
    disks: tuple[MachineDisk, ...]
    tags: dict[str, str]


class DiskRecord(msgspec.Struct, frozen=True):
    """A disk in the ledger; `key` is its identity, `image` the file that holds its content now (relative, per site).

    ready  false while its image is being made
    """

    key: str
    name: str
    subscription: str
    size: int
    image: str
    account: str = ""
    holder: str = ""
    base: str = ""
    layer_kind: str = ""
    ready: bool = False


class AddressRecord(msgspec.Struct, frozen=True):
    """An address that is not free; `key` is `network/address`. `reserved_by`: who reserved it, if anybody."""

    key: str
    network: str
    subnet: str
    address: str
    holder: str = ""
    reserved_by: str = ""


class GroupRecord(msgspec.Struct, frozen=True):
    """A resource group; `key` is `subscription/name`."""

    key: str
    subscription: str
    name: str
    region: str


class RouteRecord(msgspec.Struct, frozen=True):
    """The state of a network's router and firewall; `key` is the network."""

    key: str
    cut: bool = False
    inbound_dropped: bool = False


class CopyRecord(msgspec.Struct, frozen=True):
    """How fast this site copied a disk last; predicts the next copy."""

    key: str
    bytes_per_s: float


def check_definition(definition: SiteDefinition) -> None:
    """Refuse a definition that could not work. Raises SiteDefinitionWrong."""
    subscriptions = {subscription.name for subscription in definition.subscriptions}
    every: tuple[NetworkDefinition | AccountDefinition, ...] = (*definition.networks, *definition.accounts)
    for owned in every:
        if owned.subscription not in subscriptions:
            raise SiteDefinitionWrong(reason=f"{owned.name} is in the unknown subscription {owned.subscription}")
    for name in (definition.name, definition.fabric, *(network.name for network in definition.networks)):
        if not name or not all(c.isascii() and (c.isalnum() or c == "-") for c in name) or len(name) > 24:
            raise SiteDefinitionWrong(reason=f"the name {name!r} is not 1 to 24 letters, digits and hyphens")
    if definition.mode is Mode.NAMESPACES and definition.uid <= 0:
        raise SiteDefinitionWrong(reason="a site in namespaces runs its processes as a user of its own: uid is missing")
    for network in definition.networks:
        _check_network(network, definition.mode)
    for service in definition.services:
        _check_service(service, definition)


def _check_service(service: ServiceDefinition, definition: SiteDefinition) -> None:
    subnets = {(network.name, subnet.name): subnet for network in definition.networks for subnet in network.subnets}
    subnet = subnets.get((service.network, service.subnet))
    if subnet is None:
        raise SiteDefinitionWrong(reason=f"service {service.name} is in an unknown subnet")
    try:
        inside = ipaddress.IPv4Address(service.address) in list(ipaddress.IPv4Network(subnet.prefix))[RESERVED_FIRST:-1]
    except ValueError as error:
        raise SiteDefinitionWrong(reason=f"service {service.name}: {error}") from error
    if not inside or not service.command or not service.name.isalnum():
        raise SiteDefinitionWrong(reason=f"service {service.name} has no possible address, command or name")


def _check_network(network: NetworkDefinition, mode: Mode) -> None:
    try:
        whole = ipaddress.IPv4Network(network.prefix)
        parts = [ipaddress.IPv4Network(subnet.prefix) for subnet in network.subnets]
    except ValueError as error:
        raise SiteDefinitionWrong(reason=f"network {network.name}: {error}") from error
    if mode is Mode.ADDRESSES and not whole.subnet_of(ipaddress.IPv4Network("127.0.0.0/8")):
        raise SiteDefinitionWrong(reason=f"network {network.name} is not within 127.0.0.0/8")
    if not parts or any(not part.subnet_of(whole) or part.prefixlen > _MAX_PREFIX for part in parts):
        raise SiteDefinitionWrong(reason=f"the subnets of network {network.name} do not fit into it")
