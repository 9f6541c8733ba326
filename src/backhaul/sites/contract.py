"""The one contract of all sites.

Every writing call takes a `token` that the caller made: repeating the call with the same token and arguments gives
the stored answer and has no second effect; the same token with other arguments is refused (TokenReused). A call whose
wish is already fulfilled (power off a machine that is off) has no effect and succeeds. Every effect is written, once
and durably, to the site's own log, which `effects` reads back.

Calls block and are made from worker threads, never from an event loop: the libraries of real sites block too. They
raise errors of `backhaul.sites.errors`. Sizes are bytes, times are seconds unless a name says otherwise.
"""

from __future__ import annotations

import enum
from typing import Protocol

from backhaul.sites.values import (
    Account,
    Address,
    Attachment,
    Disk,
    DiskRequest,
    Effect,
    Finding,
    LayerPlan,
    Machine,
    MachineRequest,
    Metadata,
    Network,
    PowerState,
    Principal,
    Probe,
    ResourceGroup,
    RouteState,
    Server,
    ServerRequest,
    ServerSize,
    Service,
    Subscription,
)


class PowerOff(enum.StrEnum):
    """How to power off: like pulling the plug, or by asking the guest and waiting."""

    HARD = "hard"
    GRACEFUL = "graceful"


class SiteInventory(Protocol):
    """What there is, and what the caller may do. Nothing here changes anything."""

    def whoami(self) -> Principal: ...
    def subscriptions(self) -> tuple[Subscription, ...]: ...
    def resource_groups(self) -> tuple[ResourceGroup, ...]: ...
    def networks(self) -> tuple[Network, ...]: ...
    def addresses(self, network: str) -> tuple[Address, ...]:
        """The addresses that are reserved or in use; all others of the subnets, reserved ones aside, are free."""
        ...

    def sizes(self) -> tuple[ServerSize, ...]: ...
    def accounts(self) -> tuple[Account, ...]: ...
    def disks(self) -> tuple[Disk, ...]: ...
    def machines(self) -> tuple[Machine, ...]: ...
    def servers(self) -> tuple[Server, ...]: ...
    def services(self) -> tuple[Service, ...]:
        """What the site itself keeps running, such as the storage service of a cloud."""
        ...

    def metadata(self, machine: str) -> Metadata:
        """What the machine itself sees of its identity and tags."""
        ...

    def effects(self, after: int = 0, limit: int = 1000) -> tuple[Effect, ...]:
        """Entries of the log of effects with a number above `after`, ascending, at most `limit`."""
        ...


class SiteDisks(Protocol):
    """Disks, their attachment, and writable layers over replicas."""

    def create_disk(self, request: DiskRequest, *, token: str) -> Disk: ...
    def delete_disk(self, disk: str, *, token: str) -> None:
        """Refused while it is attached or a layer stands on it; one that is gone is no error."""
        ...

    def grow_disk(self, disk: str, size: int, *, token: str) -> Disk:
        """Enlarge to `size`; the new part reads as zeros. Never shrinks."""
        ...

    def attach_disk(self, disk: str, holder: str, *, token: str) -> Attachment:
        """Hand the disk to one holder (`machine:ID`, `server:NAME`, `master-target:ID`); never to two at once."""
        ...

    def detach_disk(self, disk: str, *, token: str) -> None:
        """Take it back; refused while the holder is a running machine."""
        ...

    def layer_plan(self, disk: str) -> LayerPlan:
        """Which kind of writable layer this disk would get, and how long making it takes."""
        ...

    def layer_create(self, disk: str, *, token: str) -> Disk:
        """A writable layer over the disk, itself a disk; the base is not changed by what is written to it."""
        ...

    def layer_drop(self, layer: str, *, token: str) -> None: ...
    def layer_commit(self, layer: str, *, token: str) -> Disk:
        """The layer becomes the base's content under the base's identity, durably and without stopping the guest;
        what the base held is deleted. Refused while the base is attached."""
        ...


class SitePower(Protocol):
    """Machines: their definition, identity and power."""

    def create_machine(self, request: MachineRequest, *, token: str) -> Machine: ...
    def delete_machine(self, machine: str, *, token: str) -> None:
        """Refused while it runs; its disks stay."""
        ...

    def power_on(self, machine: str, *, token: str) -> Machine: ...
    def power_off(self, machine: str, how: PowerOff = PowerOff.HARD, grace_s: float = 30.0, *, token: str) -> Machine:
        """Returns only when the site has read back that nothing of the machine runs; else PowerNotConfirmed."""
        ...

    def power_state(self, machine: str) -> PowerState:
        """Read from the world, never from a record."""
        ...

    def hang(self, machine: str, *, token: str) -> Machine:
        """Stop the machine's processors, as a machine that hangs; `resume` lets it go on."""
        ...

    def resume(self, machine: str, *, token: str) -> Machine: ...
    def set_tags(self, machine: str, tags: dict[str, str], *, token: str) -> Metadata:
        """Replace the tags; the machine sees them in its metadata."""
        ...

    def console(self, holder: str) -> str:
        """The last 64 KiB that `machine:ID` or `server:NAME` printed since its start."""
        ...


class SiteServers(Protocol):
    """Servers that the site makes on request (the process server's virtual machine), and their addresses."""

    def create_resource_group(self, subscription: str, name: str, region: str, *, token: str) -> ResourceGroup: ...
    def reserve_address(self, network: str, subnet: str, address: str = "", *, token: str) -> Address:
        """Reserve this address, or the next free one if empty."""
        ...

    def release_address(self, network: str, address: str, *, token: str) -> None:
        """Refused while a machine or server has it; one that is free is no error."""
        ...

    def server_findings(self, request: ServerRequest) -> tuple[Finding, ...]:
        """All that speaks against creating the server, at once; changes nothing."""
        ...

    def create_server(self, request: ServerRequest, *, token: str) -> Server: ...
    def delete_server(self, server: str, *, token: str) -> None:
        """Process, port, address, disks and quota are given back; one that is gone is no error."""
        ...

    def start_server(self, server: str, *, token: str) -> Server: ...
    def stop_server(self, server: str, *, token: str) -> Server: ...
    def authenticate(self, server: str, user: str, password: str) -> bool:
        """Whether this is the server's administrator. Wrong ones are counted and limited (TooManyAttempts)."""
        ...


class SiteRoutes(Protocol):
    """The ways between networks."""

    def probe(self, network: str, host: str, port: int, timeout_s: float = 3.0) -> Probe:
        """Try a TCP connection from inside the network."""
        ...

    def routes(self) -> tuple[RouteState, ...]: ...
    def cut_route(self, network: str, *, token: str) -> RouteState:
        """Nothing passes between this network and the others any more, open connections included; the management
        API stays reachable. A site that cannot raises RouteNotControllable."""
        ...

    def restore_route(self, network: str, *, token: str) -> RouteState: ...
    def drop_inbound(self, network: str, drop: bool, *, token: str) -> RouteState:
        """Whether connections that come from outside the network are dropped."""
        ...


class Site(SiteInventory, SiteDisks, SitePower, SiteServers, SiteRoutes, Protocol):
    """A site, whole."""
