"""Addresses of a local site, and the two ways of simulating its networks.

`Fabric` is the seam: `AddressFabric` (unprivileged, ranges in 127.0.0.0/8) here, `NamespaceFabric` in `namespaces.py`.
The ledger says who has an address; the kernel is asked again at each start. Called from worker threads.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from pathlib import Path
from typing import Protocol

from backhaul.sites.errors import (
    AddressesExhausted,
    AddressTaken,
    AddressWrong,
    InUse,
    RouteNotControllable,
    SiteError,
    SubnetUnknown,
)
from backhaul.sites.local.definition import (
    RESERVED_FIRST,
    AddressRecord,
    NetworkDefinition,
    RouteRecord,
    SiteDefinition,
)
from backhaul.sites.local.ledger import Call, Transaction
from backhaul.sites.local.world import World, found
from backhaul.sites.values import Address, Network, Probe, RouteState, SiteRole, Subnet

_UNPRIVILEGED = "the site runs without root, so its networks are ranges of loopback addresses without routers"


class Fabric(Protocol):
    """How the networks of a site exist on this machine."""

    def prepare(self) -> None:
        """Make what is missing (first start, or after a boot); idempotent."""
        ...

    def namespace(self, network: str) -> str:
        """Path of the network's namespace; empty if it has none."""
        ...

    def bind(self, network: str, address: str) -> None:
        """Make the address usable inside the network; again is no error. Raises AddressTaken if it is somebody's."""
        ...

    def unbind(self, network: str, address: str) -> None: ...
    def controllable(self) -> str:
        """Why routes cannot be cut; empty if they can."""
        ...

    def apply(self, route: RouteRecord) -> None:
        """Make router and firewall as the record says; idempotent."""
        ...

    def connect(self, network: str, host: str, port: int, timeout_s: float) -> None:
        """Open and close a TCP connection from inside the network. Raises OSError."""
        ...

    def remove(self) -> None:
        """Take everything away that `prepare` made."""
        ...


class AddressFabric:
    """Networks as ranges of loopback addresses: every one of them can be bound by anybody, so only claims tell."""

    def __init__(self, definition: SiteDefinition) -> None:
        self._definition = definition

    def prepare(self) -> None:
        """Nothing to make: Linux answers for all of 127.0.0.0/8."""

    def namespace(self, network: str) -> str:
        """None of its own."""
        return ""

    def bind(self, network: str, address: str) -> None:
        """Only checks that nobody listens there; the launcher then claims the address."""
        if address in _listening_addresses():
            raise AddressTaken(address=address, network=network, reason="another process listens on it")

    def unbind(self, network: str, address: str) -> None:
        """The claim ends with the process."""

    def controllable(self) -> str:
        """Never."""
        return _UNPRIVILEGED

    def apply(self, route: RouteRecord) -> None:
        """Raises RouteNotControllable unless there is nothing to do."""
        if route.cut or route.inbound_dropped:
            raise RouteNotControllable(network=route.key, reason=_UNPRIVILEGED)

    def connect(self, network: str, host: str, port: int, timeout_s: float) -> None:
        """From the network's gateway address."""
        source = gateway(found(network_of(self._definition, network), "network", network))
        with contextlib.closing(socket.create_connection((host, port), timeout_s, (source, 0))):
            pass

    def remove(self) -> None:
        """Nothing was made."""


class Addresses:
    """The addresses of all networks of a site."""

    def __init__(self, world: World) -> None:
        self._world = world

    def addresses(self, call: Call, network: str) -> tuple[Address, ...]:
        """Those that are reserved or in use."""
        definition = found(network_of(self._world.definition, network), "network", network)
        call.require(SiteRole.READER, definition.subscription)
        with self._world.ledger.transaction() as tx:
            records = [record for record in tx.all(AddressRecord) if record.network == network]
        return tuple(_shown(record) for record in records)

    def reserve_address(self, call: Call, network: str, subnet: str, address: str = "") -> Address:
        """Reserve this address, or the next free one."""
        definition = found(network_of(self._world.definition, network), "network", network)
        call.require(SiteRole.CONTRIBUTOR, definition.subscription)

        def work() -> Address:
            with self._world.ledger.transaction() as tx:
                record = take(tx, call, definition, subnet, address, holder="")
                answer = _shown(record)
                self._world.finish(tx, call, record.key, answer)
            return answer

        return self._world.once(call, Address, work, f"network/{network}")

    def release_address(self, call: Call, network: str, address: str) -> None:
        """Give it back; refused while something has it."""
        definition = found(network_of(self._world.definition, network), "network", network)
        call.require(SiteRole.CONTRIBUTOR, definition.subscription)

        def work() -> None:
            with self._world.ledger.transaction() as tx:
                record = tx.get(AddressRecord, f"{network}/{address}")
                if record is not None and record.holder:
                    raise InUse(what=f"Address {address}", reason=f"{record.holder} has it")
                tx.remove(AddressRecord, f"{network}/{address}")
                self._world.finish(tx, call, f"{network}/{address}", None, effect=record is not None)

        self._world.once(call, None, work, f"network/{network}")


class Routes:
    """Routers and firewalls: what the site was told to cut, kept over restarts."""

    def __init__(self, world: World, fabric: Fabric) -> None:
        self._world = world
        self._fabric = fabric

    def restore_all(self) -> None:
        """At start: make routers and firewalls as the ledger says."""
        with self._world.ledger.transaction() as tx:
            records = tx.all(RouteRecord)
        for record in records:
            self._fabric.apply(record)

    def routes(self, call: Call) -> tuple[RouteState, ...]:
        """The state of each network's way to the others."""
        with self._world.ledger.transaction() as tx:
            return tuple(
                self._shown(tx.get(RouteRecord, network.name) or RouteRecord(network.name))
                for network in self._world.definition.networks
                if call.sees(network.subscription)
            )

    def cut_route(self, call: Call, network: str) -> RouteState:
        """Cut the network off from the others."""
        return self._change(call, network, cut=True)

    def restore_route(self, call: Call, network: str) -> RouteState:
        """Undo the cut."""
        return self._change(call, network, cut=False)

    def drop_inbound(self, call: Call, network: str, drop: bool) -> RouteState:
        """Drop what comes in from outside, or accept it again."""
        return self._change(call, network, inbound_dropped=drop)

    def probe(self, call: Call, network: str, host: str, port: int, timeout_s: float = 3.0) -> Probe:
        """Try a TCP connection from inside the network."""
        definition = found(network_of(self._world.definition, network), "network", network)
        call.require(SiteRole.READER, definition.subscription)
        try:
            self._fabric.connect(network, host, port, min(timeout_s, 30.0))
        except OSError as error:
            return Probe(network, host, port, reachable=False, reason=error.strerror or str(error))
        return Probe(network, host, port, reachable=True)

    def _change(
        self, call: Call, network: str, *, cut: bool | None = None, inbound_dropped: bool | None = None
    ) -> RouteState:
        definition = found(network_of(self._world.definition, network), "network", network)
        call.require(SiteRole.OWNER, definition.subscription)
        if reason := self._fabric.controllable():
            raise RouteNotControllable(network=network, reason=reason)

        def work() -> RouteState:
            with self._world.ledger.transaction() as tx:
                old = tx.get(RouteRecord, network) or RouteRecord(network)
            new = RouteRecord(
                network,
                old.cut if cut is None else cut,
                old.inbound_dropped if inbound_dropped is None else inbound_dropped,
            )
            self._world.step("before route")
            self._fabric.apply(new)
            self._world.step("after route")
            answer = self._shown(new)
            with self._world.ledger.transaction() as tx:
                tx.put(new)
                self._world.finish(tx, call, f"route/{network}", answer, effect=new != old)
            return answer

        return self._world.once(call, RouteState, work, f"route/{network}")

    def _shown(self, record: RouteRecord) -> RouteState:
        reason = self._fabric.controllable()
        return RouteState(record.key, record.cut, record.inbound_dropped, not reason, reason)


def network_of(definition: SiteDefinition, name: str) -> NetworkDefinition | None:
    """The network of this name, if the site has it."""
    return next((network for network in definition.networks if network.name == name), None)


def gateway(network: NetworkDefinition) -> str:
    """The address of the network's router in its first subnet; the site keeps it for itself."""
    return str(ipaddress.IPv4Network(network.subnets[0].prefix)[1])


def shown_network(network: NetworkDefinition) -> Network:
    """The network with the addresses that the site keeps in each subnet."""
    subnets = tuple(Subnet(subnet.name, subnet.prefix, reserved_of(subnet.prefix)) for subnet in network.subnets)
    return Network(network.name, network.subscription, network.resource_group, network.region, network.prefix, subnets)


def reserved_of(prefix: str) -> tuple[str, ...]:
    """The addresses of a subnet that the site keeps: the first four and the last."""
    parts = ipaddress.IPv4Network(prefix)
    return (*(str(parts[index]) for index in range(RESERVED_FIRST)), str(parts[-1]))


def address_problem(
    tx: Transaction, call: Call, network: NetworkDefinition, subnet: str, address: str
) -> SiteError | None:
    """Why the caller cannot have this address, if so. Its own reservation is no obstacle."""
    part = next((part for part in network.subnets if part.name == subnet), None)
    if part is None:
        return SubnetUnknown(network=network.name, subnet=subnet)
    if not address:
        return None if _next_free(tx, network, part.prefix) else AddressesExhausted(subnet=subnet, network=network.name)
    try:
        inside = ipaddress.IPv4Address(address) in ipaddress.IPv4Network(part.prefix)
    except ValueError:
        return AddressWrong(address=address, subnet=subnet, reason="it is not an IPv4 address")
    if not inside:
        return AddressWrong(address=address, subnet=subnet, reason=f"it is not within {part.prefix}")
    if address in reserved_of(part.prefix):
        return AddressWrong(address=address, subnet=subnet, reason="the network keeps it for itself")
    record = tx.get(AddressRecord, f"{network.name}/{address}")
    if record is not None and record.holder:
        return AddressWrong(address=address, subnet=subnet, reason=f"{record.holder} has it")
    if record is not None and record.reserved_by != call.principal:
        return AddressWrong(address=address, subnet=subnet, reason="somebody else has reserved it")
    return None


def take(
    tx: Transaction, call: Call, network: NetworkDefinition, subnet: str, address: str, holder: str
) -> AddressRecord:
    """Give the address (or the next free one) to the holder; an empty one reserves it. Raises AddressWrong and kin."""
    problem = address_problem(tx, call, network, subnet, address)
    if problem is not None:
        raise problem
    part = next(part for part in network.subnets if part.name == subnet)
    chosen = address or _next_free(tx, network, part.prefix)
    key = f"{network.name}/{chosen}"
    before = tx.get(AddressRecord, key)
    if before is not None and not holder:
        raise AddressWrong(address=chosen, subnet=subnet, reason="it is reserved already")
    reserved_by = call.principal if before is not None or not holder else ""
    record = AddressRecord(key, network.name, subnet, chosen, holder, reserved_by)
    tx.put(record)
    return record


def give_back(tx: Transaction, network: str, address: str) -> None:
    """Whoever was to have the address will not: it is as it was before, reserved or free."""
    record = tx.get(AddressRecord, f"{network}/{address}")
    if record is not None and record.reserved_by:
        tx.put(AddressRecord(record.key, network, record.subnet, address, "", record.reserved_by))
    elif record is not None:
        tx.remove(AddressRecord, record.key)


def _next_free(tx: Transaction, network: NetworkDefinition, prefix: str) -> str:
    taken = {record.address for record in tx.all(AddressRecord) if record.network == network.name}
    taken.update(reserved_of(prefix))
    return next((str(address) for address in ipaddress.IPv4Network(prefix) if str(address) not in taken), "")


def _shown(record: AddressRecord) -> Address:
    return Address(record.network, record.subnet, record.address, record.holder)


_LISTEN = "0A"


def _listening_addresses() -> set[str]:
    """IPv4 addresses on which some process of this machine listens, wildcards left out (proc_net_tcp(5))."""
    found_addresses = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == _LISTEN:
            found_addresses.add(socket.inet_ntoa(int(fields[1].split(":")[0], 16).to_bytes(4, "little")))
    return found_addresses
