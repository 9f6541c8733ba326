"""The route table: every route, and who may call it. Everything else is refused.

Read it top down: what anybody may call, what accounts may, what certificates may, then the vault's resources.
"""

from __future__ import annotations

from typing import Final

from backhaul.configuration_server.api import (
    deployments,
    dialling,
    ending,
    lifecycle,
    members,
    places,
    preflight,
    recovery,
    servers,
    sessions,
    vault,
)
from backhaul.configuration_server.callers import ADMINS, MEMBERS, OPERATORS, READERS, SESSIONS, Who
from backhaul.configuration_server.guarded import ApiRoute
from backhaul.configuration_server.shapes.paths import CONTAINERS, FABRIC, ITEM, VAULT

ANYBODY: Final = frozenset({Who.ANONYMOUS})
AGENTS: Final = frozenset({Who.AGENT})

_R = ApiRoute
ROUTES: Final = (
    _R("GET", "/health", ANYBODY, sessions.show_health),
    _R("POST", "/login", ANYBODY, sessions.login),
    # Accounts.
    _R("POST", "/logout", SESSIONS, sessions.logout),
    _R("POST", "/password", SESSIONS, sessions.change_password),
    _R("GET", "/session", SESSIONS, sessions.show_session),
    _R("GET", "/accounts", ADMINS, sessions.list_accounts),
    _R("POST", "/accounts", ADMINS, sessions.create_account),
    _R("GET", "/metrics", READERS, vault.metrics),
    # Registered servers and agents, by certificate.
    _R("PUT", "/members/self/announcement", MEMBERS, members.announce),
    _R("POST", "/members/self/certificate", MEMBERS, members.renew),
    _R("GET", "/members/self/orders", MEMBERS, members.orders),
    _R("GET", "/members/self/assignment", AGENTS, members.assignment),
    _R("POST", "/members/self/report", AGENTS, members.report),
    _R("POST", "/members/self/sink", AGENTS, members.sink),
    # The vault's own resources.
    _R("GET", VAULT + "/backhaulPassphrase", ADMINS, vault.show_passphrase),
    _R("POST", VAULT + "/backhaulPassphrase/rotate", ADMINS, vault.rotate_passphrase),
    _R("POST", VAULT + "/backhaulTokens", ADMINS, servers.make_token),
    _R("GET", VAULT + "/backhaulConfig", READERS, vault.show_config),
    _R("GET", VAULT + "/backhaulServers", READERS, servers.list_servers),
    _R("GET", VAULT + "/backhaulServers/{server}", READERS, servers.show_server),
    _R("DELETE", VAULT + "/backhaulServers/{server}", ADMINS, servers.revoke_server),
    _R("GET", VAULT + "/backhaulServers/{server}/dialling", READERS, dialling.show_dialling),
    _R("PUT", VAULT + "/backhaulServers/{server}/dialling", ADMINS, dialling.set_dialling),
    _R("GET", VAULT + "/backhaulDoctor/servers/{server}", READERS, servers.doctor_server),
    _R("GET", VAULT + "/backhaulDoctor/items/{item}", READERS, servers.doctor_item),
    # An item's moves, its places, its sites.
    *lifecycle.ROUTES,
    *places.ROUTES,
    *preflight.ROUTES,
    *ending.ROUTES,
    # Process servers that are deployed into virtual networks.
    *deployments.ROUTES,
    # Site Recovery's resources.
    _R("GET", VAULT, READERS, recovery.show_vault),
    _R("GET", VAULT + "/replicationFabrics", READERS, recovery.list_fabrics),
    _R("GET", FABRIC, READERS, recovery.show_fabric),
    _R("GET", VAULT + "/replicationRecoveryServicesProviders", READERS, recovery.list_providers),
    _R("GET", FABRIC + "/replicationRecoveryServicesProviders", READERS, recovery.list_providers),
    _R("GET", FABRIC + "/replicationRecoveryServicesProviders/{provider}", READERS, recovery.show_provider),
    _R("GET", VAULT + "/replicationProtectionContainers", READERS, recovery.list_containers),
    _R("GET", FABRIC + "/replicationProtectionContainers", READERS, recovery.list_containers),
    _R("GET", CONTAINERS, READERS, recovery.show_container),
    _R("GET", CONTAINERS + "/replicationProtectableItems", READERS, recovery.list_protectable),
    _R("GET", CONTAINERS + "/replicationProtectableItems/{machine}", READERS, recovery.show_protectable),
    _R("GET", VAULT + "/replicationProtectedItems", READERS, recovery.list_items),
    _R("GET", CONTAINERS + "/replicationProtectedItems", READERS, recovery.list_items),
    _R("GET", ITEM, READERS, recovery.show_item),
    _R("PUT", ITEM, OPERATORS, recovery.protect_item),
    _R("GET", ITEM + "/operationresults/{operation}", READERS, recovery.item_result),
    _R("GET", ITEM + "/recoveryPoints", READERS, recovery.list_points),
    _R("GET", ITEM + "/recoveryPoints/{point}", READERS, recovery.show_point),
    _R("GET", VAULT + "/replicationPolicies", READERS, recovery.list_policies),
    _R("GET", VAULT + "/replicationPolicies/{policy}", READERS, recovery.show_policy),
    _R("PUT", VAULT + "/replicationPolicies/{policy}", OPERATORS, recovery.create_policy),
    _R("DELETE", VAULT + "/replicationPolicies/{policy}", OPERATORS, recovery.delete_policy),
    _R("GET", VAULT + "/replicationJobs", READERS, recovery.list_jobs),
    _R("GET", VAULT + "/replicationJobs/{job}", READERS, recovery.show_job),
    _R("GET", VAULT + "/replicationOperationStatus/{operation}", READERS, recovery.show_operation),
    _R("GET", VAULT + "/replicationEvents", READERS, recovery.list_events),
    _R("GET", VAULT + "/replicationEvents/{event}", READERS, recovery.show_event),
    _R("GET", VAULT + "/replicationVaultHealth", READERS, recovery.show_vault_health),
)
