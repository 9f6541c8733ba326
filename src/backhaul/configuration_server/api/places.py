"""Protecting a machine with both its places: what a site can say of itself is not asked of the operator.

The home place is found at its site by the machine's id, which the machine's agent reported; the cloud place needs a
virtual network, the rest follows from it. Called from worker threads of the API.
"""

from __future__ import annotations

from typing import Final

import msgspec
from fastapi import Request, Response

from backhaul.configuration_server.api.bodies import Body, Plane, decode
from backhaul.configuration_server.api.recovery import accepted
from backhaul.configuration_server.callers import OPERATORS
from backhaul.configuration_server.errors import BodyWrong, ResourceUnknown
from backhaul.configuration_server.guarded import ApiRoute, CallerParam
from backhaul.configuration_server.items import NewItem
from backhaul.configuration_server.lifecycle.core import begin_protect, lifecycle_of
from backhaul.configuration_server.lifecycle.values import Place
from backhaul.configuration_server.plane import ControlPlane
from backhaul.configuration_server.records import ServerRecord
from backhaul.configuration_server.registry import REGISTERED, offer_of
from backhaul.configuration_server.shapes.paths import VAULT, Paths
from backhaul.replication.values import Role
from backhaul.sites.contract import Site
from backhaul.sites.local.definition import SiteKind
from backhaul.sites.values import Machine, Network


class _Protection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What the operator says. `agent`: that of the machine at home, by id or name; `cloud_agent`: the one that sends
    while the machine runs in the cloud, the same where it travels with the disks. `target`: the cloud's master target.
    """

    agent: str
    policy: str
    cloud_network: str
    home_site: str = ""
    home_target: str = ""
    cloud_site: str = ""
    cloud_subscription: str = ""
    cloud_subnet: str = ""
    cloud_account: str = ""
    cloud_agent: str = ""
    target: str = ""
    process_server: str = ""
    disks: tuple[str, ...] = ()


def protect(plane: Plane, request: Request, caller: CallerParam, item: str, body: Body) -> Response:
    """Begin to protect a machine that can be moved; the name in the path becomes the item's name."""
    asked = decode(body, _Protection)
    agent = plane.registry.get(asked.agent, Role.AGENT)
    home = _home(plane, asked, agent)
    cloud = _cloud(plane, asked, home)
    wanted = NewItem(agent.id, asked.policy, item, process_server=asked.process_server, disks=asked.disks)
    made, job = begin_protect(plane, wanted, home, cloud, caller.name)
    return accepted(plane, request, Paths(plane.vault).item(made), job)


# --- home -------------------------------------------------------------------------------------------------------------


def _home(plane: ControlPlane, asked: _Protection, agent: ServerRecord) -> Place:
    name, machine = _machine(plane, asked.home_site, agent)
    site = lifecycle_of(plane).book.site(name)
    return Place(
        site=name,
        subscription=machine.subscription,
        network=machine.network,
        subnet=machine.subnet,
        name=machine.name,
        target=_home_target(plane, asked.home_target),
        machine=machine.id,
        address=machine.address,
        command=machine.command,
        mounts=tuple(part.mount for part in machine.disks),
        tags=machine.tags,
        disks=_disks(site, machine, agent, asked.disks),
    )


def _machine(plane: ControlPlane, wanted: str, agent: ServerRecord) -> tuple[str, Machine]:
    """The home site that has the agent's machine, and the machine."""
    book = lifecycle_of(plane).book
    homes = [name for name, kind in sorted(book.names().items()) if kind is SiteKind.HOME and wanted in ("", name)]
    if not homes:
        raise ResourceUnknown(kind="home site", name=wanted or "any; add one with `backhaul site add`")
    for name in homes:
        for machine in book.site(name).machines():
            if machine.id == agent.machine:
                return name, machine
    raise BodyWrong(reason=f"{', '.join(homes)} has no machine {agent.machine or 'of this agent, which reported none'}")


def _disks(site: Site, machine: Machine, agent: ServerRecord, chosen: tuple[str, ...]) -> tuple[str, ...]:
    """The site's disks that are protected, in the item's order: named as the agent names them, else in its order."""
    offer = offer_of(agent)
    offered = [disk.name for disk in offer.disks] if offer is not None else []
    there = {disk.id: disk.name for disk in site.disks()}
    own = [part.disk for part in machine.disks]
    by_name = {there.get(disk, ""): disk for disk in own}
    if not all(name in by_name for name in offered):
        by_name = dict(zip(offered, own, strict=False))
    found = tuple(by_name[name] for name in chosen or offered if name in by_name)
    if len(found) != len(chosen or offered):
        raise BodyWrong(reason=f"{machine.name} has {len(own)} disks at its site, its agent offers {len(offered)}")
    return found


# --- the cloud --------------------------------------------------------------------------------------------------------


def _cloud(plane: ControlPlane, asked: _Protection, home: Place) -> Place:
    name = _cloud_site(plane, asked.cloud_site)
    network = _network(lifecycle_of(plane).book.site(name), name, asked)
    return Place(
        site=name,
        subscription=network.subscription,
        network=network.name,
        subnet=asked.cloud_subnet or network.subnets[0].name,
        name=home.name,
        target=_cloud_target(plane, asked.target, home.target),
        agent=plane.registry.get(asked.cloud_agent, Role.AGENT).id if asked.cloud_agent else "",
        command=home.command,
        mounts=home.mounts,
        account=asked.cloud_account,
    )


def _cloud_site(plane: ControlPlane, wanted: str) -> str:
    kinds = lifecycle_of(plane).book.names()
    clouds = [name for name, kind in sorted(kinds.items()) if kind is SiteKind.CLOUD and wanted in ("", name)]
    if len(clouds) != 1:
        known = ", ".join(clouds) or "none; add one with `backhaul site add`"
        raise BodyWrong(reason=f"name the cloud site {wanted}".rstrip() + f"; there are {known}")
    return clouds[0]


def _network(site: Site, name: str, asked: _Protection) -> Network:
    for network in site.networks():
        right = asked.cloud_subscription in ("", network.subscription)
        if right and network.name.lower() == asked.cloud_network.lower():
            if asked.cloud_subnet and asked.cloud_subnet not in [subnet.name for subnet in network.subnets]:
                raise ResourceUnknown(kind=f"subnet of {network.name}", name=asked.cloud_subnet)
            return network
    raise ResourceUnknown(kind=f"virtual network of site {name}", name=asked.cloud_network)


# --- master targets ---------------------------------------------------------------------------------------------------


def _targets(plane: ControlPlane) -> list[ServerRecord]:
    return [server for server in plane.registry.list(Role.MASTER_TARGET) if server.state == REGISTERED]


def _home_target(plane: ControlPlane, wanted: str) -> str:
    """The named one, or the one that the configuration server brought with it."""
    if wanted:
        return plane.registry.get(wanted, Role.MASTER_TARGET).id
    own = [server.id for server in _targets(plane) if server.built_in]
    if len(own) != 1:
        raise BodyWrong(reason=f"name home's master target; there are {_names(plane)}")
    return own[0]


def _cloud_target(plane: ControlPlane, wanted: str, home: str) -> str:
    """The named one, or the only one beside home's."""
    if wanted:
        return plane.registry.get(wanted, Role.MASTER_TARGET).id
    others = [server.id for server in _targets(plane) if server.id != home]
    if len(others) != 1:
        raise BodyWrong(reason=f"name the cloud's master target; there are {_names(plane)}")
    return others[0]


def _names(plane: ControlPlane) -> str:
    return ", ".join(server.name for server in _targets(plane)) or "none"


ROUTES: Final = (ApiRoute("PUT", VAULT + "/backhaulItems/{item}/protection", OPERATORS, protect),)
"""For the route table."""
