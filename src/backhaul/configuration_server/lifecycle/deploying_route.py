"""Whether there is a way between a virtual network and the configuration server, before anything is made there.

Both sides' sites are asked which of their routes are cut. Where the server itself is to dial, the way is tried from
within its network too; where home dials, nothing in the network answers yet. Changes nothing. Worker threads.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from backhaul.configuration_server.dial_book import Dialling
from backhaul.configuration_server.lifecycle.ports import Sites
from backhaul.configuration_server.settings import parse_address
from backhaul.sites.contract import Site
from backhaul.sites.errors import SiteError
from backhaul.sites.values import Network


def way_home(
    sites: Sites, site: Site, network: str, dialling: Dialling, configuration_server: str
) -> tuple[bool | None, str]:
    """Whether there is a way between the network, one of the site's, and the configuration server, and where it ends.

    None: nothing could be measured. Raises SiteError's kinds for the network's own site; of home's sites those that do
    not answer say nothing.
    """
    if network in _cut(site):
        return False, f"the route of network {network}, which is cut on the cloud's side"
    host = parse_address(configuration_server).host if configuration_server else ""
    cut = ", ".join(_cut_at_home(sites, host))
    if cut:
        return False, f"the route of {cut}, which is cut on home's side"
    if dialling is Dialling.HOME:
        return None, ""
    home = parse_address(configuration_server)
    probe = site.probe(network, home.host, home.port)
    return probe.reachable, "" if probe.reachable else f"{home}: {probe.reason}"


def _cut(site: Site) -> frozenset[str]:
    return frozenset(route.network for route in site.routes() if route.cut)


def _cut_at_home(sites: Sites, host: str) -> Iterator[str]:
    """Home's networks that are cut, where the configuration server's own is: all of them where that is not known."""
    for name in sites.homes():
        try:
            home = sites.site(name)
            cut = _cut(home)
            own = {known.name for known in _own_networks(home.networks(), host)}
        except SiteError:
            continue
        if own and own <= cut:
            yield from (f"network {network} of {name}" for network in sorted(own))


def _own_networks(networks: Iterable[Network], host: str) -> list[Network]:
    """Those that the address lies in; a name, or an address of none of them, says nothing: then any may be its own."""
    known = list(networks)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return known
    return [network for network in known if address in ipaddress.ip_network(network.prefix)] or known
