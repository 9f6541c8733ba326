"""Networks as network namespaces, as root: one per network, with a firewall, joined by the router of the fabric.

    home ── up0 ┐                     ┌ up0 ── network of the cloud
                └─ router: backhaul ──┘        (no way from one network of the cloud to another, public ones aside)

Every address of a network is on the `lan0` of its namespace; links to the router are unnumbered. Management
addresses live on the router itself, so cutting what it forwards leaves them reachable. Nothing here is durable: after
a boot `prepare` makes it again. Called from worker threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from backhaul.sites.errors import AddressTaken, HostToolFailed
from backhaul.sites.local.definition import NetworkDefinition, RouteRecord, SiteDefinition
from backhaul.sites.local.networks import gateway
from backhaul.sites.local.tools import run

T = TypeVar("T")

_LINK_ADDRESS = "169.254.0.1"
"""The router's address on every link; link-local, so it never clashes with a network's prefix (RFC 3927)."""
_LABEL = "lan0:site"
"""Label of the addresses that the site added: one without it is somebody else's."""
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

_ROUTER_RULES = """
create table inet backhaul
add set inet backhaul home {{ type ifname; }}
add set inet backhaul cloud {{ type ifname; }}
add set inet backhaul public {{ type ifname; }}
add set inet backhaul cut {{ type ifname; }}
add chain inet backhaul forward {{ type filter hook forward priority 0; policy drop; }}
add rule inet backhaul forward iifname @cut drop
add rule inet backhaul forward oifname @cut drop
add rule inet backhaul forward ct state established,related accept
add rule inet backhaul forward iifname @home oifname @cloud accept
add rule inet backhaul forward iifname @cloud oifname @home accept
add rule inet backhaul forward oifname @public accept
"""


class NamespaceFabric:
    """The namespaces of one site; the router is shared by all sites of its fabric."""

    def __init__(self, definition: SiteDefinition) -> None:
        self._definition = definition
        self.router = f"bh-{definition.fabric}"

    def prepare(self) -> None:
        """Make router, namespaces, links and firewalls that are missing."""
        _add_namespace(self.router)
        _set_in(self.router, "net/ipv4/ip_forward", "1")
        with contextlib.suppress(HostToolFailed):  # `create table` fails if the other site made it: all or nothing
            run("ip", "netns", "exec", self.router, "nft", "-f", "-", text=_ROUTER_RULES.format())
        run("ip", "netns", "exec", self.router, "nft", "list", "table", "inet", "backhaul")
        for network in self._definition.networks:
            self._prepare_network(network)

    def _prepare_network(self, network: NetworkDefinition) -> None:
        space, link = self._space(network.name), self._link(network.name)
        _add_namespace(space)
        _set_in(space, "net/ipv4/ip_unprivileged_port_start", "0")
        if not _has_link(space, "lan0"):
            run("ip", "-n", space, "link", "add", "lan0", "type", "bridge")
        run("ip", "-n", space, "link", "set", "lan0", "up")
        self._give(space, gateway(network))
        if not _has_link(space, "up0"):
            run("ip", "-n", self.router, "link", "add", link, "type", "veth", "peer", "name", "up0", "netns", space)
        run("ip", "-n", self.router, "link", "set", link, "up")
        run("ip", "-n", self.router, "addr", "replace", f"{_LINK_ADDRESS}/32", "dev", link)
        run("ip", "-n", self.router, "route", "replace", network.prefix, "dev", link)
        run("ip", "-n", space, "link", "set", "up0", "up")
        run("ip", "-n", space, "route", "replace", f"{_LINK_ADDRESS}/32", "dev", "up0", "src", gateway(network))
        way = ("default", "via", _LINK_ADDRESS, "dev", "up0", "onlink", "src", gateway(network))
        run("ip", "-n", space, "route", "replace", *way)
        self._nft(self.router, f"add element inet backhaul {self._definition.kind} {{ {link} }}")
        if network.public:
            self._nft(self.router, f"add element inet backhaul public {{ {link} }}")
        chain = "add chain inet backhaul input { type filter hook input priority 0; policy accept; }"
        self._nft(space, f"add table inet backhaul\n{chain}")

    def namespace(self, network: str) -> str:
        """Path of the network's namespace."""
        return f"/run/netns/{self._space(network)}"

    def bind(self, network: str, address: str) -> None:
        """Put the address on the network's `lan0`."""
        owner = self._owner(network, address)
        if owner is None:
            self._give(self._space(network), address)
        elif owner != _LABEL:
            raise AddressTaken(address=address, network=network, reason=f"somebody put it on {owner} of the network")

    def unbind(self, network: str, address: str) -> None:
        """Take it off again, if the site put it there."""
        if self._owner(network, address) == _LABEL:
            run("ip", "-n", self._space(network), "addr", "del", f"{address}/32", "dev", "lan0")

    def controllable(self) -> str:
        """Always."""
        return ""

    def apply(self, route: RouteRecord) -> None:
        """Cut at the router; drop inbound in the network's own firewall."""
        link, space = self._link(route.key), self._space(route.key)
        member = f"element inet backhaul cut {{ {link} }}"
        self._nft(self.router, f"add {member}" + ("" if route.cut else f"\ndelete {member}"))
        rules = "flush chain inet backhaul input"
        if route.inbound_dropped:
            rules += "\nadd rule inet backhaul input ct state established,related accept"
            rules += '\nadd rule inet backhaul input iifname "up0" drop'
        self._nft(space, rules)

    def connect(self, network: str, host: str, port: int, timeout_s: float) -> None:
        """From inside the network's namespace."""

        def dial() -> None:
            with contextlib.closing(socket.create_connection((host, port), timeout_s)):
                pass

        inside(self.namespace(network), dial)

    def listen_at_router(self, address: str, port: int) -> socket.socket:
        """A listening socket on a management address of the router: reachable from every network, cut or not."""
        run("ip", "-n", self.router, "addr", "replace", f"{address}/32", "dev", "lo")

        def listen() -> socket.socket:
            return socket.create_server((address, port))

        return inside(f"/run/netns/{self.router}", listen)

    def remove(self) -> None:
        """Delete the namespaces, and the router when no network hangs on it any more."""
        for network in self._definition.networks:
            link = self._link(network.name)
            if Path(f"/run/netns/{self.router}").exists() and _has_link(self.router, link):
                run("ip", "-n", self.router, "link", "del", link)
            if Path(self.namespace(network.name)).exists():
                run("ip", "netns", "del", self._space(network.name))
        if Path(f"/run/netns/{self.router}").exists() and not _links(self.router, "type", "veth"):
            run("ip", "netns", "del", self.router)

    def _space(self, network: str) -> str:
        return f"bh-{self._definition.fabric}-{network}"

    def _link(self, network: str) -> str:
        # Names of links are limited to 15 characters, so a hash stands for the network's name.
        return "r" + hashlib.sha256(self._space(network).encode()).hexdigest()[:10]

    def _owner(self, network: str, address: str) -> str | None:
        for link in _links(self._space(network)):
            for entry in link["addr_info"]:
                if entry.get("local") == address:
                    return str(entry.get("label", link["ifname"]))
        return None

    def _give(self, space: str, address: str) -> None:
        run("ip", "-n", space, "addr", "replace", f"{address}/32", "dev", "lan0", "label", _LABEL)

    def _nft(self, space: str, rules: str) -> None:
        run("ip", "netns", "exec", space, "nft", "-f", "-", text=rules)


def inside(namespace: str, act: Callable[[], T]) -> T:
    """Run `act` in a thread of its own inside the namespace; sockets it makes stay there. Raises what it raises."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"setns {namespace}")
            finally:
                os.close(descriptor)
            results.append(act())
        except BaseException as error:
            errors.append(error)

    # A thread that entered a namespace never serves anything else: it ends here.
    thread = threading.Thread(target=body, name="in-namespace")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _add_namespace(name: str) -> None:
    if not Path(f"/run/netns/{name}").exists():
        with contextlib.suppress(HostToolFailed):  # the other site of the fabric was faster
            run("ip", "netns", "add", name)
    run("ip", "-n", name, "link", "set", "lo", "up")


def _set_in(space: str, setting: str, value: str) -> None:
    run("ip", "netns", "exec", space, "sysctl", "-q", "-w", f"{setting.replace('/', '.')}={value}")


def _links(space: str, *selection: str) -> list[dict[str, Any]]:
    links: list[dict[str, Any]] = json.loads(run("ip", "-n", space, "-j", "addr", "show", *selection) or "[]")
    return [link for link in links if link]


def _has_link(space: str, name: str) -> bool:
    return any(str(link["ifname"]).split("@")[0] == name for link in _links(space))
