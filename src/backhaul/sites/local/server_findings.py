"""All that speaks against creating a server, at once: one check for each field of the form.

Pure over a transaction: changes nothing. Called by `servers.py`, for the findings alone and again, in the transaction
that books everything, when the server is created.
"""

from __future__ import annotations

from collections.abc import Iterator

from backhaul.replication.units import BLOCK, MiB
from backhaul.sites.errors import (
    AccountFull,
    AccountUnknown,
    CommandMissing,
    NetworkUnknown,
    PasswordWrong,
    QuotaExceeded,
    RegionWrong,
    ResourceGroupUnknown,
    ServerNameTaken,
    ServerNotAllowed,
    SiteError,
    SizeUnknown,
    SpoolSizeWrong,
    SubscriptionUnknown,
)
from backhaul.sites.local.definition import (
    AccountDefinition,
    GroupRecord,
    MachineRecord,
    NetworkDefinition,
    ServerRecord,
    SiteDefinition,
)
from backhaul.sites.local.ledger import Call, Transaction
from backhaul.sites.local.networks import address_problem
from backhaul.sites.local.storage import used
from backhaul.sites.server_rules import hash_well_formed, server_name_problem, user_name_problem
from backhaul.sites.values import ServerRequest, ServerSize, SiteRole

_SMALLEST_SPOOL = 4 * MiB  # below this an ext4 has no room left for data


def problems(tx: Transaction, definition: SiteDefinition, call: Call, request: ServerRequest) -> Iterator[SiteError]:
    """Each problem once, in the order of the form. A check that needs another field's value is skipped without it."""
    yield from _subscription(tx, definition, call, request)
    yield from _place(tx, definition, call, request)
    yield from _names(tx, request)
    yield from _capacity(tx, definition, request)
    if not request.command:
        yield CommandMissing(what=f"Server {request.name}")


def size_of(definition: SiteDefinition, name: str) -> ServerSize | None:
    """The size of this name, if the site offers it."""
    return next((size for size in definition.sizes if size.name == name), None)


def spool_bytes(request: ServerRequest, size: ServerSize) -> int:
    """The spool disk's size: as asked for, or as the size says."""
    return request.spool_bytes or size.spool_disk_bytes


def groups(tx: Transaction, definition: SiteDefinition) -> set[tuple[str, str, str]]:
    """All resource groups (subscription, name, region): made ones, and those of networks and accounts."""
    made = {(group.subscription, group.name, group.region) for group in tx.all(GroupRecord)}
    owned: tuple[NetworkDefinition | AccountDefinition, ...] = (*definition.networks, *definition.accounts)
    return made | {(each.subscription, each.resource_group, each.region) for each in owned}


def _subscription(
    tx: Transaction, definition: SiteDefinition, call: Call, request: ServerRequest
) -> Iterator[SiteError]:
    role = call.caller.roles.get(request.subscription)
    known = {subscription.name for subscription in definition.subscriptions}
    if request.subscription not in known or role is None:
        yield SubscriptionUnknown(subscription=request.subscription)
    elif role.rank < SiteRole.CONTRIBUTOR.rank:
        yield ServerNotAllowed(principal=call.principal, subscription=request.subscription)
    if (request.subscription, request.resource_group) not in {group[:2] for group in groups(tx, definition)}:
        yield ResourceGroupUnknown(subscription=request.subscription, resource_group=request.resource_group)


def _place(tx: Transaction, definition: SiteDefinition, call: Call, request: ServerRequest) -> Iterator[SiteError]:
    network = next((n for n in definition.networks if n.name == request.network), None)
    if network is None or network.subscription != request.subscription:
        yield NetworkUnknown(subscription=request.subscription, network=request.network)
        return
    if network.region != request.region:
        yield RegionWrong(region=request.region, what=f"network {network.name}", actual=network.region)
    problem = address_problem(tx, call, network, request.subnet, request.address)
    if problem is not None:
        yield problem


def _names(tx: Transaction, request: ServerRequest) -> Iterator[SiteError]:
    if (problem := server_name_problem(request.name)) is not None:
        yield problem
    taken = {server.key.lower() for server in tx.all(ServerRecord)}
    if request.name.lower() in taken | {machine.name.lower() for machine in tx.all(MachineRecord)}:
        yield ServerNameTaken(name=request.name)
    if (wrong := user_name_problem(request.user)) is not None:
        yield wrong
    if not hash_well_formed(request.password):
        yield PasswordWrong(reason="its hash is not well formed")


def _capacity(tx: Transaction, definition: SiteDefinition, request: ServerRequest) -> Iterator[SiteError]:
    size = size_of(definition, request.size)
    if size is None:
        yield SizeUnknown(size=request.size)
    if request.spool_bytes and (request.spool_bytes < _SMALLEST_SPOOL or request.spool_bytes % BLOCK):
        yield SpoolSizeWrong(size=request.spool_bytes)
    account = next((account for account in definition.accounts if account.name == request.account), None)
    if account is None or account.subscription != request.subscription:
        yield AccountUnknown(subscription=request.subscription, account=request.account)
    elif size is not None:
        needed = size.os_disk_bytes + spool_bytes(request, size)
        free = account.capacity - used(tx, account.name)
        if needed > free:
            yield AccountFull(account=account.name, free=max(0, free), needed=needed)
    yield from _quota(tx, definition, request, size)


def _quota(
    tx: Transaction, definition: SiteDefinition, request: ServerRequest, size: ServerSize | None
) -> Iterator[SiteError]:
    subscription = next((each for each in definition.subscriptions if each.name == request.subscription), None)
    if subscription is None:
        return
    mine = [server for server in tx.all(ServerRecord) if server.subscription == request.subscription]
    wanted = [("servers", subscription.servers, len(mine), 1)]
    if size is not None:
        wanted.append(("cores", subscription.cores, sum(server.cores for server in mine), size.cores))
    for what, limit, in_use, needed in wanted:
        if in_use + needed > limit:
            yield QuotaExceeded(subscription=subscription.name, limit=limit, what=what, used=in_use, needed=needed)
