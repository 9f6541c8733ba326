"""Which items a verb for a whole virtual network means. Blocking; called for the API, before a batch begins.

An item lies in a network when its active machine does, or when it is at home and would run there. Nothing is left
out for its state: an item that the operation is refused for is shown with its reason, by its own job.
"""

from __future__ import annotations

from typing import Final

from backhaul.configuration_server.lifecycle.core import lifecycle_of
from backhaul.configuration_server.lifecycle.errors import NetworkEmpty
from backhaul.configuration_server.lifecycle.values import Item
from backhaul.configuration_server.plane import ControlPlane
from backhaul.recovery.item import Side
from backhaul.replication.values import ItemId

MAX_NAMED: Final = 10
"""Networks that are named to somebody who asked for one without items."""


def items_of_network(plane: ControlPlane, network: str, side: Side | None = None) -> tuple[Item, ...]:
    """Items of the network, by name in any case, whose active machine is on `side`; None: on either.

    Raises NetworkEmpty, as doing nothing would look like having done it.
    """
    items = [lifecycle_of(plane).items.load(ItemId(record.id)) for record in plane.items.list()]
    found = tuple(
        item
        for item in items
        if network.lower() in {one.lower() for one in networks_of(item)} and side in (None, item.state.active_side)
    )
    if not found:
        known = sorted({name for item in items for name in networks_of(item)})
        where = f" that is active {'in the cloud' if side is Side.CLOUD else 'at home'}" if side else ""
        raise NetworkEmpty(item="", network=network, where=where, known=", ".join(known[:MAX_NAMED]) or "none")
    return found


def networks_of(item: Item) -> frozenset[str]:
    """Networks in which the item lies."""
    places = (item.home, item.cloud) if item.state.active_side is Side.HOME else (item.cloud,)
    return frozenset(place.network for place in places if place.network)
