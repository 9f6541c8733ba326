"""What there is at a local site, as far as the caller may see it. Reads the definition and the ledger only."""

from __future__ import annotations

from backhaul.sites.local.definition import ServerRecord
from backhaul.sites.local.ledger import Call
from backhaul.sites.local.networks import shown_network
from backhaul.sites.local.world import World
from backhaul.sites.values import Effect, Network, Principal, ServerSize, Subscription

_MAX_EFFECTS = 1000
"""Entries of the log in one answer: about 200 KiB."""


class Inventory:
    """The parts of the contract that only list."""

    def __init__(self, world: World) -> None:
        self._world = world

    def whoami(self, call: Call) -> Principal:
        """The caller and its roles."""
        return call.caller

    def subscriptions(self, call: Call) -> tuple[Subscription, ...]:
        """Those in which the caller has a role, with their quota."""
        with self._world.ledger.transaction() as tx:
            servers = tx.all(ServerRecord)
        shown = []
        for each in self._world.definition.subscriptions:
            mine = [server for server in servers if server.subscription == each.name]
            used = (len(mine), sum(server.cores for server in mine))
            shown.append(Subscription(each.name, each.servers, used[0], each.cores, used[1]))
        return tuple(each for each in shown if call.sees(each.name))

    def networks(self, call: Call) -> tuple[Network, ...]:
        """Those in subscriptions that the caller may read."""
        return tuple(shown_network(each) for each in self._world.definition.networks if call.sees(each.subscription))

    def sizes(self, call: Call) -> tuple[ServerSize, ...]:
        """The sizes of servers."""
        return self._world.definition.sizes

    def effects(self, call: Call, after: int = 0, limit: int = 1000) -> tuple[Effect, ...]:
        """The log of effects from behind `after` on."""
        with self._world.ledger.transaction() as tx:
            return tuple(tx.effects(after, max(1, min(limit, _MAX_EFFECTS))))
