"""The form as it comes in: what is left out and has one sensible answer is filled in from the sites.

Called from worker threads of the API. Changes nothing.
"""

from __future__ import annotations

import re
import socket
import sys
from dataclasses import dataclass
from typing import Final

import msgspec

from backhaul.configuration_server.dial_book import Dialling
from backhaul.configuration_server.errors import BodyWrong
from backhaul.configuration_server.lifecycle.core import lifecycle_of
from backhaul.configuration_server.lifecycle.deploying import DATA_PORT
from backhaul.configuration_server.lifecycle.deploying_core import CoreControl
from backhaul.configuration_server.occupancy import running_in
from backhaul.configuration_server.plane import ControlPlane
from backhaul.configuration_server.registry import REGISTERED
from backhaul.configuration_server.settings import parse_address
from backhaul.recovery.deployment import DeploymentRequest
from backhaul.recovery.preflight_facts import USABLE
from backhaul.replication.values import Role
from backhaul.sites.contract import Site
from backhaul.sites.errors import SiteError
from backhaul.sites.local.definition import SiteKind
from backhaul.sites.values import Network

BOOT: Final = (sys.executable, "-m", "backhaul", "process-server", "boot")
"""What a server of a local site runs at each start: the program is the same there."""

API_PORT: Final = 443
MAX_NAME: Final = 64
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9-]+")


class Form(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The form. What is empty is filled in, but for `user` and `password`. `size`: one that the site offers.

    register              by itself, with a one-time token
    dialling              who dials: home, or the server (through a VPN)
    configuration_server  HOST or HOST:PORT; the server dials it, or, where home dials, only calls it so
    """

    user: str
    password: str
    site: str = ""
    subscription: str = ""
    resource_group: str = ""
    new_resource_group: bool = False
    region: str = ""
    network: str = ""
    subnet: str = ""
    address: str = ""
    storage_account: str = ""
    size: str = ""
    register: bool = False
    dialling: Dialling = Dialling.HOME
    configuration_server: str = ""
    data_port: int = DATA_PORT

    def __repr__(self) -> str:
        return f"Form(network={self.network!r}, user={self.user!r}, password=***)"

    def request(self, name: str) -> DeploymentRequest:
        """As the rules of the form see it, without the password."""
        return DeploymentRequest(
            subscription=self.subscription, resource_group=self.resource_group, region=self.region,
            new_resource_group=self.new_resource_group, network=self.network, subnet=self.subnet, address=self.address,
            name=name, user=self.user, password="", storage_account=self.storage_account,
        )  # fmt: skip


@dataclass(frozen=True)
class Offer:
    """A virtual network with failed-over machines, and what a form for it says where nothing else is said.

    healthy  a healthy process server serves it already
    """

    name: str
    form: Form
    machines: int
    healthy: bool


def offers(plane: ControlPlane) -> list[Offer]:
    """One for each virtual network with failed-over machines; those without a healthy process server first."""
    found = []
    counts: dict[tuple[str, str], int] = {}
    for place in CoreControl(plane).places():
        counts[place.site, place.network] = counts.get((place.site, place.network), 0) + 1
    for (site, network), machines in counts.items():
        form = filled(plane, Form("", "", site=site, network=network))
        found.append(Offer(name_for(network), form, machines, _served(plane, network)))
    return sorted(found, key=lambda offer: (offer.healthy, offer.form.network))


def name_for(network: str) -> str:
    """The server's name where none is given."""
    return f"ps-{_NOT_IN_NAMES.sub('-', network)}"[:MAX_NAME].strip("-")


def _served(plane: ControlPlane, network: str) -> bool:
    servers = plane.registry.list(Role.PROCESS_SERVER)
    return any(
        server.network == network and server.state == REGISTERED and plane.server_health(server).health in USABLE
        for server in servers
    )


def filled(plane: ControlPlane, form: Form) -> Form:
    """The form with everything that follows from the rest. Raises BodyWrong, AddressWrong.

    What cannot be found stays empty or wrong: the findings tell of all of it at once.
    """
    _check_port(form)
    form = msgspec.structs.replace(form, configuration_server=_home(plane, form.configuration_server))
    if not form.network:
        form = _with_network(plane, form)
    form = msgspec.structs.replace(form, site=form.site or _site_of(plane, form.network))
    site = lifecycle_of(plane).book.site(form.site)
    network = next((one for one in site.networks() if one.name.lower() == form.network.lower()), None)
    return _sized(site, form if network is None else _of_network(site, form, network))


def _check_port(form: Form) -> None:
    if form.data_port == API_PORT or not 0 < form.data_port < 65536:
        reason = f"the data transfer port is {form.data_port}; 443 is the configuration server's, 9443 the usual one"
        raise BodyWrong(reason=reason)


def _home(plane: ControlPlane, text: str) -> str:
    port = API_PORT
    if not text:
        settings = plane.vault.settings
        text = next(iter((*settings.names, *settings.addresses, socket.gethostname())))
        running = running_in(plane.vault.files, plane.vault.data_dir)
        port = running.port if running is not None and running.port else port
    with_port = text if ":" in text.rpartition("]")[2] else f"{text}:{port}"
    return str(parse_address(with_port))


def _with_network(plane: ControlPlane, form: Form) -> Form:
    places = {(place.site, place.network): None for place in CoreControl(plane).places()}
    needing = [place for place in places if not _served(plane, place[1]) and form.site in ("", place[0])]
    if len(needing) != 1:
        names = ", ".join(sorted(network for _, network in needing)) or "none"
        raise BodyWrong(reason=f"name the virtual network; those without a healthy process server: {names}")
    return msgspec.structs.replace(form, site=needing[0][0], network=needing[0][1])


def _site_of(plane: ControlPlane, network: str) -> str:
    """The cloud with failed-over machines in a network of this name, or with such a network, or the only one."""
    used = {place.site for place in CoreControl(plane).places() if place.network.lower() == network.lower()}
    if len(used) == 1:
        return used.pop()
    book = lifecycle_of(plane).book
    clouds = sorted(name for name, kind in book.names().items() if kind is SiteKind.CLOUD)
    having = [name for name in clouds if _has_network(book.site(name), network)] if len(clouds) > 1 else clouds
    if len(having) != 1:
        raise BodyWrong(reason=f"name the site of network {network[:100]!r}; there are {', '.join(clouds) or 'none'}")
    return having[0]


def _has_network(site: Site, network: str) -> bool:
    try:
        return any(one.name.lower() == network.lower() for one in site.networks())
    except SiteError:
        return False  # a cloud that does not answer is not the one that is meant, unless it is named


def _of_network(site: Site, form: Form, network: Network) -> Form:
    region = form.region or network.region
    near = [one for one in site.accounts() if (one.subscription, one.region) == (network.subscription, region)]
    roomy = sorted(near, key=lambda account: (account.used - account.capacity, account.name))
    return msgspec.structs.replace(
        form,
        network=network.name,  # as the site writes it
        subscription=form.subscription or network.subscription,
        resource_group=form.resource_group or network.resource_group,
        region=region,
        subnet=form.subnet or (network.subnets[0].name if network.subnets else ""),
        storage_account=form.storage_account or (roomy[0].name if roomy else ""),
    )


def _sized(site: Site, form: Form) -> Form:
    if form.size:
        return form
    smallest = min(site.sizes(), key=lambda size: (size.cores, size.spool_disk_bytes), default=None)
    return msgspec.structs.replace(form, size=smallest.name if smallest else "")
