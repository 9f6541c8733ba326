"""The lifecycle of a process server that is deployed into a virtual network: deploy, and delete.

Deploy: the form is validated again as a whole, the address reserved, the server created with it, and its key read back
through the site, so that it can be dialled; it is waited for until it is healthy where it registers by itself. What
fails before the server is there is cleaned up; afterwards repeating the job goes on. Delete is refused while items need
the server; otherwise its certificate is refused, and server, disks, quota and address are given back. Request tokens
name the deployment and its attempt, so that repeating makes nothing twice, under whatever job. Called from the jobs'
threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from backhaul.configuration_server.dial_book import Dialling
from backhaul.configuration_server.lifecycle.deploying_route import way_home
from backhaul.configuration_server.lifecycle.ports import Sites, Waiting
from backhaul.configuration_server.member_way import PROCESS_SERVERS_TAG
from backhaul.process_server.unregistered import read_key_hash
from backhaul.recovery.deployment import (
    DeploymentRequest,
    NetworkFacts,
    SiteFacts,
    StorageFacts,
    SubnetFacts,
    validate_deployment,
)
from backhaul.recovery.findings import Finding, require
from backhaul.recovery.preflight_delete import before_delete_process_server
from backhaul.recovery.preflight_facts import DeleteFacts
from backhaul.replication.values import ItemId
from backhaul.sites.contract import Site
from backhaul.sites.errors import SiteError, SiteUnreachable
from backhaul.sites.values import PasswordHash, PowerState, Server, ServerRequest, SiteRole

BOOT_LIMIT_S: Final = 300.0
"""A cloud's server takes a minute or two to boot, and again to register and send its first heartbeats."""

DATA_PORT: Final = 9443

DEPLOY: Final = "DeployProcessServer"
DELETE: Final = "DeleteProcessServer"


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """The form as stored, and how far it is. The password is kept as the hash that the site is given.

    id        fresh with each filled-in form; part of every request token
    register  the server registers by itself, with a one-time token
    dialling  who dials: home, or the server itself through a VPN
    configuration_server   `host:port` as the server is to reach it, or, where home dials, as it is to be called
    port      its data transfer port
    reserved  the address that is reserved for it; empty: none
    attempt   rises when a failed one was cleaned up
    """

    id: str
    site: str
    form: DeploymentRequest
    password: PasswordHash
    size: str
    command: tuple[str, ...]
    register: bool
    dialling: Dialling = Dialling.HOME
    configuration_server: str = ""
    port: int = DATA_PORT
    reserved: str = ""
    attempt: int = 1

    @property
    def server(self) -> str:
        """Under which the server is registered: names are used again, ids never."""
        return f"{self.form.name}-{self.id[:8]}"

    @property
    def address(self) -> str:
        """`host:port` of its data port."""
        return f"{self.reserved}:{self.port}"

    def token(self, what: str) -> str:
        """The same for the same thing, whatever job asks for it."""
        return f"deploy-{self.id}/{self.attempt}/{what}"


class Deployments(Protocol):
    """The stored forms."""

    def load(self, deployment: str) -> Deployment:
        """Raises ResourceUnknown."""
        ...

    def store(self, deployment: Deployment) -> None:
        """Durable on return."""
        ...

    def forget(self, deployment: str) -> None:
        """One that is gone is no error."""
        ...


class Control(Protocol):
    """What the configuration server itself knows and does about process servers."""

    def boot_data(self, deployment: Deployment) -> str:
        """The server is listed as unregistered from now on; what it finds at its first boot, the same each time. May
        hold a one-time token.
        """
        ...

    def withdraw(self, deployment: Deployment) -> None:
        """It was not created: it is not listed, and its unused tokens are refused; again changes nothing."""
        ...

    def registered(self, server: str) -> bool:
        """Whether it has its certificate."""
        ...

    def healthy(self, server: str) -> bool:
        """Whether it is registered and healthy."""
        ...

    def expect(self, deployment: Deployment, key_hash: bytes) -> None:
        """It was deployed and shows this key: it is listed, and dialled where home dials."""
        ...

    def failed_over(self, site: str, network: str) -> tuple[str, ...]:
        """Ids of the failed-over machines in a virtual network."""
        ...

    def failover_subscription(self, site: str, network: str) -> str:
        """The one that machines were failed over with, those of this network first; empty: none was."""
        ...

    def before_delete(self, deployment: Deployment) -> DeleteFacts:
        """What uses the server."""
        ...

    def revoke(self, deployment: Deployment) -> None:
        """Its certificate and its unused tokens are refused from now on; again changes nothing."""
        ...


@dataclass(frozen=True)
class DeployPorts:
    """All of them."""

    sites: Sites
    deployments: Deployments
    control: Control
    waiting: Waiting


# --- validation -------------------------------------------------------------------------------------------------------


def findings(ports: DeployPorts, deployment: Deployment, password: str) -> list[Finding]:
    """All findings on the form, passes included. Changes nothing; the password is judged and forgotten."""
    form = msgspec.structs.replace(deployment.form, password=password)
    return validate_deployment(form, site_facts(ports, ports.sites.site(deployment.site), deployment))


def site_facts(ports: DeployPorts, site: Site, deployment: Deployment) -> SiteFacts:
    """What the site says, as far as this caller may see it. Raises SiteUnreachable."""
    form = deployment.form
    subscription = next((s for s in site.subscriptions() if s.name.lower() == form.subscription.lower()), None)
    name = subscription.name if subscription else ""
    role = site.whoami().roles.get(name)
    networks = [network for network in site.networks() if network.subscription == name]
    sizes = {known.name: known for known in site.sizes()}
    takes = sizes.get(deployment.size)
    route, rung = _route(ports, site, deployment, [network.name for network in networks])
    return SiteFacts(
        subscriptions=tuple(s.name for s in site.subscriptions()),
        failover_subscription=ports.control.failover_subscription(deployment.site, form.network),
        resource_groups=tuple(group.name for group in site.resource_groups() if group.subscription == name),
        regions=tuple({network.region: None for network in networks}),
        networks=tuple(
            NetworkFacts(
                name=network.name,
                region=network.region,
                failed_over=len(ports.control.failed_over(deployment.site, network.name)),
                subnets=tuple(
                    SubnetFacts(name=subnet.name, prefix=subnet.prefix, used=_used(site, network.name))
                    for subnet in network.subnets
                ),
            )
            for network in networks
        ),
        storage_accounts=tuple(
            StorageFacts(name=account.name, region=account.region, free_bytes=account.capacity - account.used)
            for account in site.accounts()
            if account.subscription == name
        ),
        server_names=tuple(server.name for server in site.servers() if server.subscription == name),
        may_create_servers=role is not None and role.rank >= SiteRole.CONTRIBUTOR.rank,
        servers_free=subscription.servers - subscription.servers_used if subscription else 0,
        cores_free=subscription.cores - subscription.cores_used if subscription else 0,
        server_cores=takes.cores if takes else 0,
        server_bytes=takes.os_disk_bytes + takes.spool_disk_bytes if takes else 0,
        route=route,
        broken_rung=rung,
    )


def _used(site: Site, network: str) -> tuple[str, ...]:
    return tuple(address.address for address in site.addresses(network))


def _route(ports: DeployPorts, site: Site, deployment: Deployment, known: list[str]) -> tuple[bool | None, str]:
    """None, too, for a network that the site does not have: another finding tells of that."""
    network = deployment.form.network
    if network not in known:
        return None, ""
    return way_home(ports.sites, site, network, deployment.dialling, deployment.configuration_server)


# --- deploying --------------------------------------------------------------------------------------------------------


def validate(ports: DeployPorts, deployment: str) -> None:
    """The form against the site as it is now; the password was judged when it was given. Raises ChecksFailed."""
    stored = ports.deployments.load(deployment)
    if stored.reserved or _server(ports, stored) is not None:
        return  # begun before: what the job itself took would count as taken
    found = findings(ports, stored, "")
    require([finding for finding in found if finding.field != "password"], DEPLOY)


def make_group(ports: DeployPorts, deployment: str) -> None:
    """The resource group, where a new one was asked for."""
    stored, form = _loaded(ports, deployment)
    if form.new_resource_group:
        site = ports.sites.site(stored.site)
        site.create_resource_group(form.subscription, form.resource_group, form.region, token=stored.token("group"))
        # It stays, whatever becomes of the server: the next attempt finds an existing one.
        existing = msgspec.structs.replace(form, new_resource_group=False)
        ports.deployments.store(msgspec.structs.replace(stored, form=existing))


def reserve(ports: DeployPorts, deployment: str) -> None:
    """The address is this server's from now on."""
    stored, form = _loaded(ports, deployment)
    if not stored.reserved:
        site = ports.sites.site(stored.site)
        taken = site.reserve_address(form.network, form.subnet, form.address, token=stored.token("address"))
        ports.deployments.store(msgspec.structs.replace(stored, reserved=taken.address))


def create(ports: DeployPorts, deployment: str) -> None:
    """The server, with its disks, its address and what it boots. What fails is cleaned up before it is raised."""
    stored, form = _loaded(ports, deployment)
    known = _server(ports, stored)
    if known is not None and known.state == "ready":
        return
    request = ServerRequest(
        name=form.name, subscription=form.subscription, resource_group=form.resource_group, region=form.region,
        network=form.network, subnet=form.subnet, user=form.user, password=stored.password,
        account=form.storage_account, size=stored.size, command=stored.command, address=stored.reserved,
        custom_data=ports.control.boot_data(stored),
    )  # fmt: skip
    try:
        ports.sites.site(stored.site).create_server(request, token=stored.token("create"))
    except SiteUnreachable:
        raise  # nothing is known of it: the job is repeated, under the same token
    except SiteError:
        clean_up(ports, deployment)
        raise


def clean_up(ports: DeployPorts, deployment: str) -> None:
    """Nothing of a failed attempt stays: no server, no address. The form stays, and may be tried again."""
    stored, form = _loaded(ports, deployment)
    site = ports.sites.site(stored.site)
    if _server(ports, stored) is not None:
        site.delete_server(form.name, token=stored.token("clean-server"))
    if stored.reserved:
        site.release_address(form.network, stored.reserved, token=stored.token("clean-address"))
    ports.control.withdraw(stored)
    ports.deployments.store(msgspec.structs.replace(stored, reserved="", attempt=stored.attempt + 1))


def start(ports: DeployPorts, deployment: str) -> None:
    """It runs."""
    stored, form = _loaded(ports, deployment)
    known = _server(ports, stored)
    if known is not None and known.power is PowerState.OFF:
        ports.sites.site(stored.site).start_server(form.name, token=stored.token("start"))


def expect(ports: DeployPorts, deployment: str) -> None:
    """Its key is read back through the site: whoever else answers at its address is not spoken to.

    Raises WaitedTooLong.
    """
    stored, form = _loaded(ports, deployment)
    if ports.control.registered(stored.server):
        return
    site = ports.sites.site(stored.site)

    def look() -> bytes | None:
        return b"" if ports.control.registered(stored.server) else read_key_hash(site.console(f"server:{form.name}"))

    what = "the new server's key on its console"
    key_hash = ports.waiting.until(look, item=ItemId(form.name), what=what, limit_s=BOOT_LIMIT_S)
    if key_hash:
        ports.control.expect(stored, key_hash)


def register(ports: DeployPorts, deployment: str) -> None:
    """Where it registers by itself, it is waited for until it is healthy. Raises WaitedTooLong."""
    stored, form = _loaded(ports, deployment)
    if stored.register:
        ports.waiting.until(
            lambda: True if ports.control.healthy(stored.server) else None,
            item=ItemId(form.name), what="a healthy process server", limit_s=BOOT_LIMIT_S,
        )  # fmt: skip


def tell_machines(ports: DeployPorts, deployment: str) -> None:
    """The machines of the network learn its address, by their tags: their agents ask for those."""
    _tag(ports, deployment, present=True)


def _tag(ports: DeployPorts, deployment: str, *, present: bool) -> None:
    stored, form = _loaded(ports, deployment)
    site = ports.sites.site(stored.site)
    for machine in ports.control.failed_over(stored.site, form.network):
        tags = site.metadata(machine).tags
        told = [address for address in tags.get(PROCESS_SERVERS_TAG, "").split(",") if address]
        wanted = [stored.address] * present + [address for address in told if address != stored.address]
        if wanted != told:
            site.set_tags(
                machine,
                tags | {PROCESS_SERVERS_TAG: ",".join(wanted)},
                token=stored.token(f"{'tell' if present else 'untell'}-{machine}"),
            )


# --- deleting ---------------------------------------------------------------------------------------------------------


def check_unused(ports: DeployPorts, deployment: str) -> None:
    """Nothing needs it. Raises ChecksFailed; `before_delete` names the items."""
    stored, _ = _loaded(ports, deployment)
    if _server(ports, stored) is not None:
        require(before_delete_process_server(ports.control.before_delete(stored)), DELETE)


def revoke(ports: DeployPorts, deployment: str) -> None:
    """Its certificate is refused before it is gone, so that no copy of it can come back."""
    ports.control.revoke(ports.deployments.load(deployment))


def untell_machines(ports: DeployPorts, deployment: str) -> None:
    """Machines that still run in the network forget its address."""
    _tag(ports, deployment, present=False)


def delete(ports: DeployPorts, deployment: str) -> None:
    """Process, port, disks and quota are given back."""
    stored, form = _loaded(ports, deployment)
    if _server(ports, stored) is not None:
        ports.sites.site(stored.site).delete_server(form.name, token=stored.token("delete"))


def release(ports: DeployPorts, deployment: str) -> None:
    """Its address is free for others."""
    stored, form = _loaded(ports, deployment)
    site = ports.sites.site(stored.site)
    if stored.reserved and stored.reserved in _used(site, form.network):
        site.release_address(form.network, stored.reserved, token=stored.token("release"))


def forget(ports: DeployPorts, deployment: str) -> None:
    """The form is not kept."""
    ports.deployments.forget(deployment)


def _loaded(ports: DeployPorts, deployment: str) -> tuple[Deployment, DeploymentRequest]:
    stored = ports.deployments.load(deployment)
    return stored, stored.form


def _server(ports: DeployPorts, stored: Deployment) -> Server | None:
    servers = ports.sites.site(stored.site).servers()
    return next((server for server in servers if server.name == stored.form.name), None)


@dataclass(frozen=True, slots=True)
class DeployStep:
    """A part of a job about one deployment; it may be called again after any failure."""

    name: str
    title: str
    run: Callable[[DeployPorts, str], None]


DEPLOYING: Final = (
    DeployStep("validate", "Check every field", validate),
    DeployStep("group", "Make the resource group", make_group),
    DeployStep("address", "Reserve the address", reserve),
    DeployStep("create", "Create the server", create),
    DeployStep("start", "Start the server", start),
    DeployStep("expect", "Read its key back through the site", expect),
    DeployStep("tell", "Tell the machines of the network", tell_machines),
    DeployStep("register", "Wait until it is healthy", register),
)
DELETING: Final = (
    DeployStep("check", "Check that nothing needs it", check_unused),
    DeployStep("revoke", "Refuse its certificate", revoke),
    DeployStep("untell", "Tell the machines of the network", untell_machines),
    DeployStep("delete", "Delete the server", delete),
    DeployStep("release", "Release its address", release),
    DeployStep("forget", "Forget it", forget),
)
