"""Another recovery point, between failover and commit: the layers are dropped, the replica goes there, new layers.

Called from the jobs' threads.
"""

from __future__ import annotations

from backhaul.configuration_server.lifecycle.ports import Ports
from backhaul.configuration_server.lifecycle.steps import advance, begin, detail, edit, host
from backhaul.configuration_server.lifecycle.targets import Replica, mark_of
from backhaul.configuration_server.lifecycle.values import Ids
from backhaul.recovery.item import Operation, Report


def begin_change(ports: Ports, ids: Ids) -> str:
    """The item leaves its present point."""
    begin(ports, ids, Operation.CHANGE_PIT)
    return ""


def drop_machine(ports: Ports, ids: Ids) -> str:
    """The machine is off and its layers are gone, with all that was written to them."""
    item = ports.items.load(ids.item)
    place = host(ports, ids, "drop", item.active)
    place.off()
    place.undefine()
    place.drop_layers()
    side = item.state.active_side
    edit(ports, ids, "layers-dropped", lambda item: item.placed(side, layers=()))
    return ""


def mark(ports: Ports, ids: Ids) -> str:
    """Note where the replica is, so that going elsewhere is done once."""
    item = ports.items.load(ids.item)
    Replica(ports, item, item.active).keep(mark_of(ids))
    return ""


def go_there(ports: Ports, ids: Ids) -> str:
    """To the chosen point, the state before the move if none was chosen."""
    item = ports.items.load(ids.item)
    replica = Replica(ports, item, item.active)
    point = item.wish.point if item.wish.point is not None else replica.points()[-1].number
    replica.go_to(point, mark_of(ids))
    return detail(point=item.wish.point)


def unmark(ports: Ports, ids: Ids) -> str:
    """The mark is not needed any more."""
    item = ports.items.load(ids.item)
    Replica(ports, item, item.active).let_go(mark_of(ids))
    return ""


def point_reached(ports: Ports, ids: Ids) -> str:
    """The machine runs at the chosen point."""
    advance(ports, ids, "point-reached", Report.POINT_REACHED)
    return ""
