"""The form of *+ Process server > deploy in Azure*: every field checked before anything is made.

Invariant: all findings come at once, none contains the password. Pure: the site's provider gives the facts, API and
command line show the findings. Rules: reference/azure-site-recovery.md 2.1 and Azure's own for names and addresses.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Final

import msgspec

from backhaul.recovery import credentials as rules
from backhaul.recovery.findings import Checklist, Finding, Severity, check


class DeploymentRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The form as filled in. `address` empty: the next free one of the subnet."""

    subscription: str
    resource_group: str
    new_resource_group: bool = False
    region: str
    network: str
    subnet: str
    address: str = ""
    name: str
    user: str
    password: str
    storage_account: str

    def __repr__(self) -> str:
        return f"DeploymentRequest(name={self.name!r}, network={self.network!r}, user={self.user!r}, password=***)"


class SubnetFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A subnet: its IPv4 prefix and the addresses that are bound or reserved by a job."""

    name: str
    prefix: str
    used: tuple[str, ...]


class NetworkFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A virtual network and how many failed-over machines run in it."""

    name: str
    region: str
    failed_over: int
    subnets: tuple[SubnetFacts, ...]


class StorageFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A storage account with its free bytes."""

    name: str
    region: str
    free_bytes: int


class SiteFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the site says, as far as the caller may see it.

    failover_subscription  the one the machines were failed over with
    resource_groups, regions, networks, storage_accounts, server_names   of the chosen subscription
    server_cores, server_bytes   what one process server takes: cores, and bytes of its OS and spool disks
    route                  is there a way between subnet and configuration server; None: not measured
    broken_rung            where the way ends, as doctor names it
    """

    subscriptions: tuple[str, ...]
    failover_subscription: str
    resource_groups: tuple[str, ...]
    regions: tuple[str, ...]
    networks: tuple[NetworkFacts, ...]
    storage_accounts: tuple[StorageFacts, ...]
    server_names: tuple[str, ...]
    may_create_servers: bool
    servers_free: int
    cores_free: int
    server_cores: int
    server_bytes: int
    route: bool | None
    broken_rung: str = ""


class Deployment(msgspec.Struct, frozen=True):
    """A request against the facts, as the rules see it."""

    request: DeploymentRequest
    site: SiteFacts

    @property
    def network(self) -> NetworkFacts | None:
        """The network of the request, when there is one of that name."""
        return next((net for net in self.site.networks if net.name.lower() == self.request.network.lower()), None)

    @property
    def subnet(self) -> SubnetFacts | None:
        """The subnet of the request, when its network has one of that name."""
        subnets = self.network.subnets if self.network else ()
        return next((subnet for subnet in subnets if subnet.name.lower() == self.request.subnet.lower()), None)

    @property
    def storage(self) -> StorageFacts | None:
        """The storage account of the request, when there is one of that name."""
        name = self.request.storage_account.lower()
        return next((account for account in self.site.storage_accounts if account.name.lower() == name), None)


def _has(names: tuple[str, ...], name: str) -> bool:
    return name.lower() in {known.lower() for known in names}


def reserved_addresses(prefix: str) -> frozenset[ipaddress.IPv4Address]:
    """Azure's: the first four addresses of a subnet (network, gateway, two for DNS) and the last (broadcast)."""
    network = ipaddress.IPv4Network(prefix)
    first = int(network.network_address)
    head = range(first, min(first + 4, first + network.num_addresses))
    return frozenset({*map(ipaddress.IPv4Address, head), network.broadcast_address})


def next_free_address(subnet: SubnetFacts) -> str | None:
    """The lowest address of the subnet that is neither reserved nor used; None when it is full."""
    taken = {*map(str, reserved_addresses(subnet.prefix)), *subnet.used}
    return next((str(address) for address in ipaddress.IPv4Network(subnet.prefix) if str(address) not in taken), None)


@check("BH-PS-SUBSCRIPTION-UNKNOWN", field="subscription", fix="Choose a subscription that the caller may see.")
def subscription_exists(deployment: Deployment) -> Iterator[str]:
    """The subscription exists and the caller may see it."""
    if not _has(deployment.site.subscriptions, deployment.request.subscription):
        yield f"there is no subscription {deployment.request.subscription!r} that you may see"


@check(
    "BH-PS-SUBSCRIPTION", field="subscription", needs=(subscription_exists,),
    fix="Choose the subscription that the machines were failed over with.",
)  # fmt: skip
def subscription_is_that_of_failover(deployment: Deployment) -> Iterator[str]:
    """The subscription is the one used for the failover."""
    wanted = deployment.site.failover_subscription
    if deployment.request.subscription.lower() != wanted.lower():
        yield f"the machines were failed over with subscription {wanted}, not with {deployment.request.subscription}"


@check("BH-PS-RIGHTS", field="subscription", needs=(subscription_exists,),
       fix="Have a role with the right to create servers given to you in this subscription.")  # fmt: skip
def caller_may_create(deployment: Deployment) -> Iterator[str]:
    """The caller may create servers in the subscription."""
    if not deployment.site.may_create_servers:
        yield f"you may not create servers in subscription {deployment.request.subscription}"


@check("BH-PS-QUOTA-SERVERS", field="subscription", needs=(subscription_exists,),
       fix="Ask for a higher quota of servers, or delete a server that is not needed.")  # fmt: skip
def quota_has_server(deployment: Deployment) -> Iterator[str]:
    """The quota has room for one more server."""
    if deployment.site.servers_free < 1:
        yield "the quota of servers is used up"


@check("BH-PS-QUOTA-CORES", field="subscription", needs=(subscription_exists,),
       fix="Ask for a higher quota of cores, or stop servers that are not needed.")  # fmt: skip
def quota_has_cores(deployment: Deployment) -> Iterator[str]:
    """The quota has room for the cores of the server."""
    site = deployment.site
    if site.cores_free < site.server_cores:
        yield f"the server takes {site.server_cores} cores and {site.cores_free} are free"


@check("BH-PS-GROUP-NAME", field="resource_group",
       fix="Use 1 to 90 letters, digits, '_', '-', '.' or parentheses, and no period at the end.")  # fmt: skip
def group_name_is_valid(deployment: Deployment) -> Iterator[str]:
    """The name of the resource group is valid."""
    if not rules.is_group_name(deployment.request.resource_group):
        yield f"{deployment.request.resource_group!r} is no valid name of a resource group"


@check("BH-PS-GROUP-UNKNOWN", field="resource_group", needs=(subscription_exists, group_name_is_valid),
       fix="Choose an existing resource group, or say that a new one is to be made.")  # fmt: skip
def group_exists(deployment: Deployment) -> Iterator[str]:
    """An existing resource group exists."""
    request = deployment.request
    if not request.new_resource_group and not _has(deployment.site.resource_groups, request.resource_group):
        yield f"there is no resource group {request.resource_group}"


@check("BH-PS-GROUP-EXISTS", field="resource_group", needs=(subscription_exists, group_name_is_valid),
       fix="Choose it as an existing resource group, or give the new one another name.")  # fmt: skip
def new_group_is_new(deployment: Deployment) -> Iterator[str]:
    """A new resource group does not exist yet."""
    request = deployment.request
    if request.new_resource_group and _has(deployment.site.resource_groups, request.resource_group):
        yield f"the resource group {request.resource_group} exists already"


@check("BH-PS-REGION-UNKNOWN", field="region", needs=(subscription_exists,), fix="Choose a region of the subscription.")
def region_exists(deployment: Deployment) -> Iterator[str]:
    """The subscription has the region."""
    if not _has(deployment.site.regions, deployment.request.region):
        yield f"the subscription has no region {deployment.request.region!r}"


@check("BH-PS-REGION", field="region", needs=(region_exists,),
       fix="Choose the region in which the failed-over machines run.")  # fmt: skip
def region_has_machines(deployment: Deployment) -> Iterator[str]:
    """Failed-over machines run in the region."""
    region = deployment.request.region.lower()
    if not any(net.failed_over for net in deployment.site.networks if net.region.lower() == region):
        yield f"no failed-over machine runs in region {deployment.request.region}"


@check("BH-PS-NETWORK-UNKNOWN", field="network", needs=(subscription_exists,),
       fix="Choose a virtual network of the subscription.")  # fmt: skip
def network_exists(deployment: Deployment) -> Iterator[str]:
    """The subscription has the virtual network."""
    if deployment.network is None:
        yield f"the subscription has no virtual network {deployment.request.network!r}"


@check("BH-PS-NETWORK-REGION", field="network", needs=(network_exists, region_has_machines),
       fix="Choose a virtual network of the region, or the region of the network.")  # fmt: skip
def network_is_in_region(deployment: Deployment) -> Iterator[str]:
    """The virtual network is in the region."""
    network = deployment.network
    if network is not None and network.region.lower() != deployment.request.region.lower():
        yield f"virtual network {network.name} is in region {network.region}, not in {deployment.request.region}"


@check("BH-PS-NETWORK-UNUSED", field="network", needs=(network_is_in_region,),
       fix="Choose the network of the failed-over machines: each needs a process server of its own.")  # fmt: skip
def network_has_machines(deployment: Deployment) -> Iterator[str]:
    """Failed-over machines run in the virtual network."""
    network = deployment.network
    if network is not None and network.failed_over < 1:
        yield f"no failed-over machine runs in virtual network {network.name}"


@check("BH-PS-SUBNET-UNKNOWN", field="subnet", needs=(network_exists,), fix="Choose a subnet of the virtual network.")
def subnet_exists(deployment: Deployment) -> Iterator[str]:
    """The virtual network has the subnet."""
    if deployment.subnet is None:
        yield f"virtual network {deployment.request.network} has no subnet {deployment.request.subnet!r}"


@check("BH-PS-SUBNET-FULL", field="subnet", needs=(subnet_exists,),
       fix="Choose another subnet, or free an address of this one.")  # fmt: skip
def subnet_has_room(deployment: Deployment) -> Iterator[str]:
    """The subnet has a free address, when none is asked for."""
    subnet = deployment.subnet
    if subnet is not None and not deployment.request.address and next_free_address(subnet) is None:
        yield f"subnet {subnet.name} has no free address"


def _address(deployment: Deployment) -> ipaddress.IPv4Address | None:
    try:
        return ipaddress.IPv4Address(deployment.request.address)
    except ipaddress.AddressValueError:
        return None


@check("BH-PS-ADDRESS-FORM", field="address", fix="Give an IPv4 address (10.1.0.4), or none for the next free one.")
def address_is_ipv4(deployment: Deployment) -> Iterator[str]:
    """The address is an IPv4 address, or left to the site."""
    if deployment.request.address and _address(deployment) is None:
        yield f"{deployment.request.address!r} is no IPv4 address"


@check("BH-PS-ADDRESS-OUTSIDE", field="address", needs=(address_is_ipv4, subnet_exists),
       fix="Choose an address of the subnet, or none for the next free one.")  # fmt: skip
def address_is_in_subnet(deployment: Deployment) -> Iterator[str]:
    """The address lies in the subnet."""
    address, subnet = _address(deployment), deployment.subnet
    if address and subnet and address not in ipaddress.IPv4Network(subnet.prefix):
        yield f"{address} is not in subnet {subnet.name} ({subnet.prefix})"


@check("BH-PS-ADDRESS-RESERVED", field="address", needs=(address_is_in_subnet,),
       fix="Choose another address: the first four of a subnet and its last are the network's own.")  # fmt: skip
def address_is_not_reserved(deployment: Deployment) -> Iterator[str]:
    """The address is not one that the network keeps for itself."""
    address, subnet = _address(deployment), deployment.subnet
    if address and subnet and address in reserved_addresses(subnet.prefix):
        yield f"{address} is reserved in subnet {subnet.name} ({subnet.prefix})"


@check("BH-PS-ADDRESS-TAKEN", field="address", needs=(address_is_in_subnet,),
       fix="Choose another address, or none for the next free one.")  # fmt: skip
def address_is_free(deployment: Deployment) -> Iterator[str]:
    """Nobody has the address."""
    address, subnet = _address(deployment), deployment.subnet
    if address and subnet and str(address) in subnet.used:
        yield f"{address} is in use or reserved by another job"


@check("BH-PS-NAME-LENGTH", field="name", fix="Use 1 to 64 characters.")
def name_has_length(deployment: Deployment) -> Iterator[str]:
    """The server's name has 1 to 64 characters."""
    low, high = rules.NAME_LENGTH
    if not low <= len(deployment.request.name) <= high:
        yield f"the name has {len(deployment.request.name)} characters"


@check("BH-PS-NAME-CHARACTERS", field="name", fix="Use letters, digits and hyphens, none of these first or last.")
def name_has_characters(deployment: Deployment) -> Iterator[str]:
    """The server's name holds only characters that are allowed there."""
    bad = rules.forbidden_in_name(deployment.request.name)
    if bad:
        yield f"the name holds {bad!r} where it may not"


@check("BH-PS-NAME-TAKEN", field="name", needs=(subscription_exists,), fix="Choose another name.")
def name_is_free(deployment: Deployment) -> Iterator[str]:
    """No other server has the name."""
    if _has(deployment.site.server_names, deployment.request.name):
        yield f"there is a server {deployment.request.name} already"


@check("BH-PS-USER-LENGTH", field="user", fix="Use 1 to 64 characters.")
def user_has_length(deployment: Deployment) -> Iterator[str]:
    """The user name has 1 to 64 characters."""
    low, high = rules.USER_LENGTH
    if not low <= len(deployment.request.user) <= high:
        yield f"the user name has {len(deployment.request.user)} characters"


@check("BH-PS-USER-RESERVED", field="user", fix="Choose a user name that is not common, such as 'drops'.")
def user_is_not_reserved(deployment: Deployment) -> Iterator[str]:
    """The user name is not a reserved one."""
    if deployment.request.user.lower() in rules.RESERVED_USERS:
        yield f"{deployment.request.user!r} is a reserved user name"


@check("BH-PS-USER-CHARACTERS", field="user", needs=(user_has_length, user_is_not_reserved),
       fix="Begin with a letter or '_' and go on with letters, digits, '-' and '_'.")  # fmt: skip
def user_has_characters(deployment: Deployment) -> Iterator[str]:
    """The user name holds only characters that are allowed there."""
    if not rules.is_user_name(deployment.request.user):
        yield f"{deployment.request.user!r} is no valid user name"


@check("BH-PS-PASSWORD-LENGTH", field="password", fix="Use 12 to 72 characters.")
def password_has_length(deployment: Deployment) -> Iterator[str]:
    """The password has 12 to 72 characters."""
    low, high = rules.PASSWORD_LENGTH
    if not low <= len(deployment.request.password) <= high:
        yield f"the password has {len(deployment.request.password)} characters"


@check("BH-PS-PASSWORD-CHARACTERS", field="password", fix="Use characters that can be typed at a prompt.")
def password_is_printable(deployment: Deployment) -> Iterator[str]:
    """The password holds no control characters."""
    if not deployment.request.password.isprintable():
        yield "the password holds a control character, perhaps the end of a line"


@check("BH-PS-PASSWORD-CLASSES", field="password",
       fix="Use three of: lower case letters, upper case letters, digits, other characters.")  # fmt: skip
def password_has_classes(deployment: Deployment) -> Iterator[str]:
    """The password has three of the four classes of characters."""
    if rules.classes_of(deployment.request.password) < 3:
        yield f"the password has {rules.classes_of(deployment.request.password)} of the four classes of characters"


@check("BH-PS-PASSWORD-COMMON", field="password", fix="Choose a password that nobody else would.")
def password_is_not_common(deployment: Deployment) -> Iterator[str]:
    """The password is not on the list of common ones."""
    if deployment.request.password.lower() in rules.COMMON_PASSWORDS:
        yield "the password is on the list of common ones"


@check("BH-PS-PASSWORD-USER", field="password", fix="Choose a password that is not the user name.")
def password_is_not_user(deployment: Deployment) -> Iterator[str]:
    """The password is not the user name."""
    if deployment.request.password and deployment.request.password.lower() == deployment.request.user.lower():
        yield "the password is the user name"


@check("BH-PS-STORAGE-UNKNOWN", field="storage_account", needs=(subscription_exists,),
       fix="Choose a storage account of the subscription.")  # fmt: skip
def storage_exists(deployment: Deployment) -> Iterator[str]:
    """The subscription has the storage account."""
    if deployment.storage is None:
        yield f"the subscription has no storage account {deployment.request.storage_account!r}"


@check("BH-PS-STORAGE-REGION", field="storage_account", needs=(storage_exists, region_has_machines),
       fix="Choose a storage account of the server's region.")  # fmt: skip
def storage_is_in_region(deployment: Deployment) -> Iterator[str]:
    """The storage account is in the server's region."""
    storage = deployment.storage
    if storage is not None and storage.region.lower() != deployment.request.region.lower():
        yield f"storage account {storage.name} is in region {storage.region}"


@check("BH-PS-STORAGE-FULL", field="storage_account", needs=(storage_exists,),
       fix="Free space in the storage account, or choose another.")  # fmt: skip
def storage_has_room(deployment: Deployment) -> Iterator[str]:
    """The storage account has room for the server's disks."""
    storage, needed = deployment.storage, deployment.site.server_bytes
    if storage is not None and storage.free_bytes < needed:
        yield f"the server's disks take {needed:,} bytes and {storage.free_bytes:,} are free"


@check("BH-PS-ROUTE", field="network", needs=(network_exists,),
       fix="Mend the way, or let home dial out; `backhaul doctor` walks it rung by rung.")  # fmt: skip
def route_exists(deployment: Deployment) -> Iterator[str]:
    """There is a way between the network and the configuration server."""
    if deployment.site.route is False:
        where = f": it ends at {deployment.site.broken_rung}" if deployment.site.broken_rung else ""
        yield f"there is no way between network {deployment.request.network} and the configuration server{where}"


@check("BH-PS-ROUTE-UNTESTED", field="network", needs=(network_exists,), severity=Severity.WARN,
       fix="Nothing has to be done: registration tries the way first and names the rung that is broken.")  # fmt: skip
def route_was_tested(deployment: Deployment) -> Iterator[str]:
    """The way between the network and the configuration server was measured."""
    if deployment.site.route is None:
        yield "the way could not be measured: nothing in the virtual network answers yet"


DEPLOYMENT: Final = Checklist(
    "deploy-process-server",
    "Deploying a process server",
    (
        subscription_exists, subscription_is_that_of_failover, caller_may_create, quota_has_server, quota_has_cores,
        group_name_is_valid, group_exists, new_group_is_new, region_exists, region_has_machines, network_exists,
        network_is_in_region, network_has_machines, subnet_exists, subnet_has_room, address_is_ipv4,
        address_is_in_subnet, address_is_not_reserved, address_is_free, name_has_length, name_has_characters,
        name_is_free, user_has_length, user_is_not_reserved, user_has_characters, password_has_length,
        password_is_printable, password_has_classes, password_is_not_common, password_is_not_user, storage_exists,
        storage_is_in_region, storage_has_room, route_exists, route_was_tested,
    ),
)  # fmt: skip


def validate_deployment(request: DeploymentRequest, site: SiteFacts) -> list[Finding]:
    """All findings on the form at once, passes included. Nothing is made."""
    return DEPLOYMENT.run(Deployment(request, site))
