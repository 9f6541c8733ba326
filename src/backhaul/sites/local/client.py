"""The local site as its callers see it: the contract of all sites, over the provider's management API.

Blocking; one client may be used by several threads. Errors arrive as the classes that the provider raised. A call
whose answer was lost may be repeated with its token.
"""

from __future__ import annotations

from typing import Any, TypeVar

import httpx
import msgspec

from backhaul.replication.errors import every_error
from backhaul.sites.contract import PowerOff
from backhaul.sites.errors import SiteError, SiteUnreachable
from backhaul.sites.local.tls import client_context
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

T = TypeVar("T")

_CONNECT_S = 5.0
_ANSWER_S = 900.0
"""Copying a disk for a layer is the longest call; who waits longer repeats the call with its token."""


class LocalSite:
    """A local site behind `https://address` (host:port). Implements `backhaul.sites.contract.Site`."""

    def __init__(self, address: str, access_token: str, certificate_pem: str) -> None:
        self._address = address
        self._http = httpx.Client(
            base_url=f"https://{address}",
            headers={"authorization": f"Bearer {access_token}"},
            verify=client_context(certificate_pem),
            timeout=httpx.Timeout(_ANSWER_S, connect=_CONNECT_S),
            trust_env=False,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def whoami(self) -> Principal:
        """See the contract; so for all that follow."""
        return self._call(Principal, "whoami")

    def subscriptions(self) -> tuple[Subscription, ...]:
        """Subscriptions with their quota."""
        return self._call(tuple[Subscription, ...], "subscriptions")

    def resource_groups(self) -> tuple[ResourceGroup, ...]:
        """Resource groups."""
        return self._call(tuple[ResourceGroup, ...], "resource_groups")

    def networks(self) -> tuple[Network, ...]:
        """Virtual networks."""
        return self._call(tuple[Network, ...], "networks")

    def addresses(self, network: str) -> tuple[Address, ...]:
        """Addresses that are not free."""
        return self._call(tuple[Address, ...], "addresses", network=network)

    def sizes(self) -> tuple[ServerSize, ...]:
        """Sizes of servers."""
        return self._call(tuple[ServerSize, ...], "sizes")

    def accounts(self) -> tuple[Account, ...]:
        """Storage accounts."""
        return self._call(tuple[Account, ...], "accounts")

    def disks(self) -> tuple[Disk, ...]:
        """Disks, layers included."""
        return self._call(tuple[Disk, ...], "disks")

    def machines(self) -> tuple[Machine, ...]:
        """Machines with their power."""
        return self._call(tuple[Machine, ...], "machines")

    def servers(self) -> tuple[Server, ...]:
        """Servers with their power."""
        return self._call(tuple[Server, ...], "servers")

    def services(self) -> tuple[Service, ...]:
        """What the site keeps running."""
        return self._call(tuple[Service, ...], "services")

    def metadata(self, machine: str) -> Metadata:
        """What the machine sees of itself."""
        return self._call(Metadata, "metadata", machine=machine)

    def effects(self, after: int = 0, limit: int = 1000) -> tuple[Effect, ...]:
        """The log of effects."""
        return self._call(tuple[Effect, ...], "effects", after=after, limit=limit)

    def create_disk(self, request: DiskRequest, *, token: str) -> Disk:
        """Make a disk."""
        return self._call(Disk, "create_disk", token, request=request)

    def delete_disk(self, disk: str, *, token: str) -> None:
        """Delete a disk."""
        self._call(type(None), "delete_disk", token, disk=disk)

    def grow_disk(self, disk: str, size: int, *, token: str) -> Disk:
        """Enlarge a disk."""
        return self._call(Disk, "grow_disk", token, disk=disk, size=size)

    def attach_disk(self, disk: str, holder: str, *, token: str) -> Attachment:
        """Hand out a disk."""
        return self._call(Attachment, "attach_disk", token, disk=disk, holder=holder)

    def detach_disk(self, disk: str, *, token: str) -> None:
        """Take a disk back."""
        self._call(type(None), "detach_disk", token, disk=disk)

    def layer_plan(self, disk: str) -> LayerPlan:
        """How a layer would be made."""
        return self._call(LayerPlan, "layer_plan", disk=disk)

    def layer_create(self, disk: str, *, token: str) -> Disk:
        """Make a writable layer."""
        return self._call(Disk, "layer_create", token, disk=disk)

    def layer_drop(self, layer: str, *, token: str) -> None:
        """Delete a layer."""
        self._call(type(None), "layer_drop", token, layer=layer)

    def layer_commit(self, layer: str, *, token: str) -> Disk:
        """Let the layer take over its base's identity."""
        return self._call(Disk, "layer_commit", token, layer=layer)

    def create_machine(self, request: MachineRequest, *, token: str) -> Machine:
        """Define a machine."""
        return self._call(Machine, "create_machine", token, request=request)

    def delete_machine(self, machine: str, *, token: str) -> None:
        """Forget a machine."""
        self._call(type(None), "delete_machine", token, machine=machine)

    def power_on(self, machine: str, *, token: str) -> Machine:
        """Power on."""
        return self._call(Machine, "power_on", token, machine=machine)

    def power_off(self, machine: str, how: PowerOff = PowerOff.HARD, grace_s: float = 30.0, *, token: str) -> Machine:
        """Power off."""
        return self._call(Machine, "power_off", token, machine=machine, how=how, grace_s=grace_s)

    def power_state(self, machine: str) -> PowerState:
        """Read power back."""
        return self._call(PowerState, "power_state", machine=machine)

    def hang(self, machine: str, *, token: str) -> Machine:
        """Let it hang."""
        return self._call(Machine, "hang", token, machine=machine)

    def resume(self, machine: str, *, token: str) -> Machine:
        """Let it go on."""
        return self._call(Machine, "resume", token, machine=machine)

    def set_tags(self, machine: str, tags: dict[str, str], *, token: str) -> Metadata:
        """Replace its tags."""
        return self._call(Metadata, "set_tags", token, machine=machine, tags=tags)

    def console(self, holder: str) -> str:
        """The end of what it printed."""
        return self._call(str, "console", holder=holder)

    def create_resource_group(self, subscription: str, name: str, region: str, *, token: str) -> ResourceGroup:
        """Make a resource group."""
        named = {"subscription": subscription, "name": name, "region": region}
        return self._call(ResourceGroup, "create_resource_group", token, **named)

    def reserve_address(self, network: str, subnet: str, address: str = "", *, token: str) -> Address:
        """Reserve an address."""
        return self._call(Address, "reserve_address", token, network=network, subnet=subnet, address=address)

    def release_address(self, network: str, address: str, *, token: str) -> None:
        """Release an address."""
        self._call(type(None), "release_address", token, network=network, address=address)

    def server_findings(self, request: ServerRequest) -> tuple[Finding, ...]:
        """What speaks against a server."""
        return self._call(tuple[Finding, ...], "server_findings", request=request)

    def create_server(self, request: ServerRequest, *, token: str) -> Server:
        """Make a server."""
        return self._call(Server, "create_server", token, request=request)

    def delete_server(self, server: str, *, token: str) -> None:
        """Delete a server."""
        self._call(type(None), "delete_server", token, server=server)

    def start_server(self, server: str, *, token: str) -> Server:
        """Start a server."""
        return self._call(Server, "start_server", token, server=server)

    def stop_server(self, server: str, *, token: str) -> Server:
        """Stop a server."""
        return self._call(Server, "stop_server", token, server=server)

    def authenticate(self, server: str, user: str, password: str) -> bool:
        """Whether this is the server's administrator."""
        return self._call(bool, "authenticate", server=server, user=user, password=password)

    def probe(self, network: str, host: str, port: int, timeout_s: float = 3.0) -> Probe:
        """Try a connection from inside a network."""
        return self._call(Probe, "probe", network=network, host=host, port=port, timeout_s=timeout_s)

    def routes(self) -> tuple[RouteState, ...]:
        """Routes and firewalls."""
        return self._call(tuple[RouteState, ...], "routes")

    def cut_route(self, network: str, *, token: str) -> RouteState:
        """Cut a network off."""
        return self._call(RouteState, "cut_route", token, network=network)

    def restore_route(self, network: str, *, token: str) -> RouteState:
        """Undo the cut."""
        return self._call(RouteState, "restore_route", token, network=network)

    def drop_inbound(self, network: str, drop: bool, *, token: str) -> RouteState:
        """Drop or accept what comes in."""
        return self._call(RouteState, "drop_inbound", token, network=network, drop=drop)

    def _call(self, kind: type[T], operation: str, token: str = "", /, **arguments: Any) -> T:
        headers = {"content-type": "application/json", "client-request-token": token}
        try:
            response = self._http.post(f"/v1/{operation}", content=msgspec.json.encode(arguments), headers=headers)
        except httpx.TransportError as error:
            raise SiteUnreachable(address=self._address, reason=str(error) or type(error).__name__) from error
        if response.status_code != httpx.codes.OK:
            raise _raised(operation, response)
        return msgspec.json.decode(response.content, type=kind)


class _Refusal(msgspec.Struct):
    code: str
    params: dict[str, Any]
    message: str


def _raised(operation: str, response: httpx.Response) -> SiteError:
    """The error that the provider raised."""
    try:
        refusal = msgspec.json.decode(response.content, type=_Refusal)
    except msgspec.DecodeError:
        return SiteError(operation=operation, reason=f"HTTP status {response.status_code}")
    for known in every_error(SiteError):
        if known.code == refusal.code and issubclass(known, SiteError):
            return known(**refusal.params)
    return SiteError(operation=operation, reason=f"{refusal.code}: {refusal.message}")
