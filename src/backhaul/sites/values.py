"""What a site and its callers say to each other: plain immutable values.

Requests refuse unknown fields. No value carries a secret, but for `ServerRequest.custom_data`, which the site keeps
out of its records.
"""

from __future__ import annotations

import enum

import msgspec


class SiteRole(enum.StrEnum):
    """What a principal may do in a subscription, each including those before it."""

    READER = "reader"
    OPERATOR = "operator"
    """Power, disks, layers, tags; may not create or delete servers."""
    CONTRIBUTOR = "contributor"
    OWNER = "owner"
    """Also routes and firewalls."""

    @property
    def rank(self) -> int:
        """Position in the order of roles."""
        return list(SiteRole).index(self)


class Principal(msgspec.Struct, frozen=True):
    """A caller: its name and its role per subscription."""

    name: str
    roles: dict[str, SiteRole]


class Subscription(msgspec.Struct, frozen=True):
    """A subscription with its quota and what of it is used."""

    name: str
    servers: int
    servers_used: int
    cores: int
    cores_used: int


class ResourceGroup(msgspec.Struct, frozen=True):
    """A named group of resources of a subscription in a region."""

    subscription: str
    name: str
    region: str


class Subnet(msgspec.Struct, frozen=True):
    """A subnet: `prefix` in CIDR form; `reserved` are addresses the site keeps for itself."""

    name: str
    prefix: str
    reserved: tuple[str, ...] = ()


class Network(msgspec.Struct, frozen=True):
    """A virtual network and where it belongs."""

    name: str
    subscription: str
    resource_group: str
    region: str
    prefix: str
    subnets: tuple[Subnet, ...]


class Address(msgspec.Struct, frozen=True):
    """An address that is not free. `holder` is `machine:ID` or `server:NAME`; empty: reserved only."""

    network: str
    subnet: str
    address: str
    holder: str = ""


class ServerSize(msgspec.Struct, frozen=True):
    """A size of servers that the site offers; disks in bytes."""

    name: str
    cores: int
    os_disk_bytes: int
    spool_disk_bytes: int


class Account(msgspec.Struct, frozen=True):
    """A storage account; `used` counts disks at their full size."""

    name: str
    subscription: str
    resource_group: str
    region: str
    capacity: int
    used: int


class DiskRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new disk of `size` bytes (a multiple of 4096), empty or with an ext4 on it; `account` empty: not in one."""

    name: str
    subscription: str
    size: int
    account: str = ""
    file_system: str = ""


class Disk(msgspec.Struct, frozen=True):
    """A disk by its identity. `holder` is who has it attached; `base` is set for a writable layer."""

    id: str
    name: str
    subscription: str
    size: int
    account: str = ""
    holder: str = ""
    base: str = ""
    layer_kind: str = ""


class Attachment(msgspec.Struct, frozen=True):
    """A disk in its holder's hands: `path` is what the holder opens."""

    disk: str
    holder: str
    path: str
    size: int


class LayerPlan(msgspec.Struct, frozen=True):
    """How a writable layer would be made: `reflink` or `copy`, bytes to copy and the time predicted for it.

    measured: the prediction rests on earlier copies of this site, else on an assumed rate
    """

    disk: str
    kind: str
    copy_bytes: int
    predicted_s: float
    measured: bool


class PowerState(enum.StrEnum):
    """What the site reads back of a machine or server."""

    OFF = "off"
    RUNNING = "running"
    HUNG = "hung"


class MachineDisk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A disk of a machine; `mount` names the folder where the site mounts its ext4 (empty: the guest opens it)."""

    disk: str
    mount: str = ""


class MachineRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A machine to define. `address` empty: the next free one. `command` is started at power on as the guest.

    machine_id: the UUID the hypervisor gives; empty: the site makes one
    """

    name: str
    subscription: str
    network: str
    subnet: str
    command: tuple[str, ...]
    disks: tuple[MachineDisk, ...]
    address: str = ""
    machine_id: str = ""
    tags: dict[str, str] = {}


class Machine(msgspec.Struct, frozen=True):
    """A machine as the site knows it; `power` was read back when the value was made. `command`: what a local site runs
    as its guest.
    """

    id: str
    name: str
    subscription: str
    network: str
    subnet: str
    address: str
    disks: tuple[MachineDisk, ...]
    tags: dict[str, str]
    power: PowerState
    command: tuple[str, ...] = ()


class Metadata(msgspec.Struct, frozen=True):
    """What a machine or server finds in its metadata file (JSON of just these fields)."""

    instance_id: str
    name: str
    site: str
    network: str
    subnet: str
    address: str
    tags: dict[str, str]


class PasswordHash(msgspec.Struct, frozen=True):
    """A password's scrypt hash (hexadecimal), made by the caller: the password never reaches the site's records."""

    salt: str
    hash: str


class ServerRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A server to create: the fields of the form, and what it boots.

    address       empty: the next free one
    command       started at each start; told its folders, address and metadata by its environment
    custom_data   given to the server as a file that only it reads; may hold a one-time token
    spool_bytes   0: as the size says
    """

    name: str
    subscription: str
    resource_group: str
    region: str
    network: str
    subnet: str
    user: str
    password: PasswordHash
    account: str
    size: str
    command: tuple[str, ...]
    address: str = ""
    custom_data: str = ""
    spool_bytes: int = 0
    tags: dict[str, str] = {}


class Server(msgspec.Struct, frozen=True):
    """A server as the site knows it; `power` was read back when the value was made.

    state: `creating` until its creation is complete, `deleting` once its deletion has begun, else `ready`
    """

    id: str
    name: str
    subscription: str
    resource_group: str
    region: str
    network: str
    subnet: str
    address: str
    user: str
    account: str
    size: str
    cores: int
    os_disk_bytes: int
    spool_disk_bytes: int
    state: str
    power: PowerState


class Service(msgspec.Struct, frozen=True):
    """A service that the site itself keeps running; `power` was read back when the value was made."""

    name: str
    network: str
    address: str
    power: PowerState


class Finding(msgspec.Struct, frozen=True):
    """Something that speaks against a request: a stable code, why, and what to do."""

    code: str
    reason: str
    fix: str


class Probe(msgspec.Struct, frozen=True):
    """Whether a TCP connection from inside a network succeeded, and otherwise why not."""

    network: str
    host: str
    port: int
    reachable: bool
    reason: str = ""


class RouteState(msgspec.Struct, frozen=True):
    """A network's way to the others. `controllable` false: `reason` says why the site cannot cut it."""

    network: str
    cut: bool
    inbound_dropped: bool
    controllable: bool
    reason: str = ""


class Effect(msgspec.Struct, frozen=True):
    """One change the site made. Numbers ascend by one; `at_ns` is wall clock, nanoseconds since 1970 UTC."""

    number: int
    at_ns: int
    principal: str
    operation: str
    resource: str
    token: str
