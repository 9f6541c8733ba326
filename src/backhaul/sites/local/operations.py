"""The one table of the management API: each operation, who may call it, and the types of its arguments and answer.

Argument types come from the methods that carry the operations out, so that table and code cannot differ. What is not
in the table is refused. Imported by the API (both directions of a call go through it) and by tests.
"""

from __future__ import annotations

import inspect
import typing
from dataclasses import dataclass
from typing import Any

import msgspec

from backhaul.sites.local.inventory import Inventory
from backhaul.sites.local.layers import Layers
from backhaul.sites.local.networks import Addresses, Routes
from backhaul.sites.local.power import Machines
from backhaul.sites.local.servers import Servers
from backhaul.sites.local.services import Services
from backhaul.sites.local.storage import Disks
from backhaul.sites.values import SiteRole


@dataclass(frozen=True)
class Operation:
    """An operation: `floor` is the role below which nobody may call it; the method itself looks at the subscription.

    part       class that carries it out
    writes     whether it needs a request token
    arguments  msgspec struct of its arguments
    """

    name: str
    part: type[Any]
    floor: SiteRole
    writes: bool
    arguments: type[Any]


_READER, _OPERATOR, _CONTRIBUTOR, _OWNER = SiteRole
_READS: dict[type[Any], tuple[str, ...]] = {
    Inventory: ("whoami", "subscriptions", "networks", "sizes", "effects"),
    Addresses: ("addresses",),
    Routes: ("routes", "probe"),
    Disks: ("disks", "accounts"),
    Layers: ("layer_plan",),
    Machines: ("machines", "power_state", "metadata"),
    Services: ("services",),
    Servers: ("servers", "resource_groups", "server_findings", "authenticate", "console"),
}
_WRITES: dict[type[Any], dict[SiteRole, tuple[str, ...]]] = {
    Addresses: {_CONTRIBUTOR: ("reserve_address", "release_address")},
    Routes: {_OWNER: ("cut_route", "restore_route", "drop_inbound")},
    Disks: {_OPERATOR: ("create_disk", "delete_disk", "grow_disk", "attach_disk", "detach_disk")},
    Layers: {_OPERATOR: ("layer_create", "layer_drop", "layer_commit")},
    Machines: {
        _OPERATOR: ("create_machine", "delete_machine", "power_on", "power_off", "hang", "resume", "set_tags"),
    },
    Servers: {
        _OPERATOR: ("start_server", "stop_server"),
        _CONTRIBUTOR: ("create_resource_group", "create_server", "delete_server"),
    },
}


def _arguments(part: type[Any], name: str) -> type[Any]:
    method = getattr(part, name)
    hints = typing.get_type_hints(method)
    fields: list[Any] = []
    for parameter in list(inspect.signature(method).parameters.values())[2:]:  # after self and call
        field: tuple[Any, ...] = (parameter.name, hints[parameter.name])
        fields.append(field if parameter.default is parameter.empty else (*field, parameter.default))
    return msgspec.defstruct(f"{name}_arguments", fields, forbid_unknown_fields=True, frozen=True)


def _table() -> dict[str, Operation]:
    rows = [Operation(name, part, _READER, False, _arguments(part, name)) for part in _READS for name in _READS[part]]
    for part, by_role in _WRITES.items():
        for role, names in by_role.items():
            rows += [Operation(name, part, role, True, _arguments(part, name)) for name in names]
    return {row.name: row for row in rows}


TABLE = _table()
