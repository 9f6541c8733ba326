"""Per code of the preflight of items: the station, the kind of job, and the one thing of the world that is broken.

The world is a value, but everything is found the way it is on a running server: asked of sites, targets, agents and
servers by `facts.gather`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from backhaul.configuration_server.lifecycle import ending
from backhaul.configuration_server.lifecycle import workflows as w
from backhaul.configuration_server.lifecycle.ports import AgentFacts
from backhaul.configuration_server.lifecycle.values import Wish
from backhaul.recovery.item import Integrity, Side
from backhaul.recovery.preflight_facts import Health
from backhaul.replication.control import StillImagePlan
from backhaul.replication.units import MiB
from backhaul.sites.values import Account, MachineDisk, SiteRole
from lifecycle import stations
from lifecycle.fake_world import ITEM, SECOND, SIZE, World
from lifecycle.stations import OTHER_ID, Build

change = msgspec.structs.replace
Break = Callable[[World], object]
NO_WISH = Wish()


@dataclass(frozen=True)
class Case:
    """`wish`: of the job, also before anything is broken."""

    build: Build
    kind: str
    break_it: Break
    wish: Wish = NO_WISH


def lost() -> World:
    """Home is gone, five seconds after the newest point."""
    world = stations.protected()
    world.clock.now = world.reps["mt-cloud", ITEM].states[-1][0] * SECOND + 5 * SECOND
    world.home.power_off(world.stored.home.machine, token="disaster")
    return world


def stored(**changes: Any) -> Break:
    """Change the record."""

    def apply(world: World) -> None:
        world.stored = change(world.stored, **changes)

    return apply


def side(where: Side, **changes: Any) -> Break:
    """Change the record of a side."""

    def apply(world: World) -> None:
        world.stored = world.stored.placed(where, **changes)

    return apply


def relay(**changes: Any) -> Break:
    """Change what is known of the cloud's process server."""

    def apply(world: World) -> None:
        world.relays["vnet"] = tuple(change(server, **changes) for server in world.relays["vnet"])

    return apply


def target(**changes: Any) -> Break:
    """Change what is known of home's master target."""

    def apply(world: World) -> None:
        known = world.master_target("mt-home")
        assert known is not None
        world.targets["mt-home"] = change(known, **changes)

    return apply


def agent(*, registered: bool = True, answers: bool = True, version: tuple[int, int, int] = (1, 0, 0)) -> Break:
    """Change what is known of the cloud machine's agent."""
    return lambda world: world.agents.update({"agent-cloud": AgentFacts(registered, answers, version)})


def integrity(found: Integrity) -> Break:
    """The move's integrity report has another end."""

    def apply(world: World) -> None:
        world.stored = change(world.stored, state=change(world.stored.state, integrity=found))

    return apply


def no_size(world: World) -> None:
    """The second disk has no bytes."""
    first, second = world.stored.disks
    world.stored = change(world.stored, disks=(first, change(second, size=0)))


def shared(world: World) -> None:
    """Another machine of home is defined on the first disk, too."""
    machine, request = world.home.defined[world.stored.home.machine]
    other = change(machine, id=OTHER_ID, disks=(MachineDisk(world.stored.home.disks[0]),))
    world.home.defined[OTHER_ID] = (other, request)


def account(site: Any, free: int) -> str:
    """A storage account of the site that has so much left; its name."""
    site.storage = (Account("acc", "prod", "rg", "here", SIZE + free, SIZE),)
    return "acc"


def small_account(world: World) -> None:
    """The replica's disks are made in an account without room for them."""
    world.stored = world.stored.placed(Side.CLOUD, account=account(world.cloud, SIZE))


def layers_are_copies(world: World) -> None:
    """The cloud's file system shares no blocks."""
    world.cloud.copied = SIZE


def no_room_for_layers(world: World) -> None:
    """Nor has the account of its disks any room."""
    layers_are_copies(world)
    for disk in world.stored.cloud.disks:
        world.cloud.reshape(disk, account=account(world.cloud, 0))


def unpin(name: str, at: str) -> Break:
    """A target keeps a state no longer."""
    return lambda world: world.reps[at, ITEM].pins.pop(name)


def home_machine(act: str) -> Break:
    """Power of the machine at home."""
    return lambda world: getattr(world.home, act)(world.stored.home.machine, token="somebody")


def threshold(world: World) -> None:
    """The item's own policy alerts after 4 s; the newest point is 5 s old."""
    world.stored = change(world.stored, rpo_threshold_s=4.0)


C, S = Case, stations
CASES: dict[str, Case] = {
    "BH-ITEM-STATE": C(S.failed_over, w.COMMIT, integrity(Integrity.FAILED)),
    "BH-PROCESS-SERVER-NONE": C(S.committed, w.REPROTECT, lambda world: world.relays.update(vnet=())),
    "BH-PROCESS-SERVER-UNHEALTHY": C(S.committed, w.REPROTECT, relay(health=Health.CRITICAL)),
    "BH-PROCESS-SERVER-CHOICE": C(S.protected, w.RESYNC, stored(process_server="ps-gone")),
    "BH-PROCESS-SERVER-VERSION": C(S.committed, w.REPROTECT, relay(version=(1, 0, 1))),
    "BH-MASTER-TARGET-NONE": C(S.committed, w.REPROTECT, lambda world: world.targets.update({"mt-home": None})),
    "BH-MASTER-TARGET-SILENT": C(S.protected, ending.DISABLE, lambda world: world.gone.add("mt-cloud")),
    "BH-MASTER-TARGET-VERSION": C(S.committed, w.REPROTECT, target(version=(1, 0, 1))),
    "BH-MASTER-TARGET-DISKS": C(S.committed, w.REPROTECT, target(disks_attached=65)),
    "BH-DISK-SMALLER": C(S.committed, w.REPROTECT, lambda world: world.home.reshape("hd0", size=SIZE - 512)),
    "BH-DISK-NEW": C(S.committed, w.REPROTECT, side(Side.HOME, disks=())),
    "BH-DISK-SHARED": C(World, w.PROTECT, shared),
    "BH-DISK-EMPTY": C(World, w.PROTECT, no_size),
    "BH-REPLICA-SPACE": C(World, w.PROTECT, small_account),
    "BH-JOURNAL-SPACE": C(World, w.PROTECT, lambda world: setattr(world, "space_free", MiB)),
    "BH-JOURNAL-ROOM": C(S.committed, w.REPROTECT, lambda world: setattr(world, "space_free", 1)),
    "BH-PATH-BROKEN": C(S.protected, w.PLANNED, lambda world: setattr(world, "rung", "tunnel")),
    "BH-SOURCE-SITE-SILENT": C(S.failed_over, w.CANCEL, lambda world: setattr(world.cloud, "silent", True)),
    "BH-MACHINE-OFF": C(
        S.committed, w.REPROTECT, lambda world: world.cloud.power_off(world.stored.cloud.machine, token="somebody")
    ),
    "BH-MACHINE-HUNG": C(S.committed, w.REPROTECT, lambda world: world.cloud.hang(world.stored.cloud.machine)),
    "BH-MACHINE-COPY": C(S.protected, w.PLANNED, lambda world: world.home.rename(world.stored.home.machine, OTHER_ID)),
    "BH-REBIND-MACHINE": C(
        S.standing_by, w.REBIND, lambda world: world.home.rename(OTHER_ID, "3"), Wish(machine=OTHER_ID)
    ),
    "BH-AGENT-NONE": C(S.committed, w.REPROTECT, agent(registered=False, answers=False)),
    "BH-AGENT-SILENT": C(S.protected_to_home, w.RESYNC, agent(answers=False)),
    "BH-AGENT-VERSION": C(S.committed, w.REPROTECT, agent(version=(2, 0, 0))),
    "BH-OTHER-SIDE-RUNNING": C(S.committed, w.REPROTECT, home_machine("power_on")),
    "BH-POINT-NONE": C(S.protected, w.PLANNED, lambda world: world.reps["mt-cloud", ITEM].states.clear()),
    "BH-POINT-GONE": C(S.failed_over, w.CHANGE_POINT, stored(wish=Wish(point=99)), Wish(point=1)),
    "BH-POINT-OLD": C(lost, w.UNPLANNED, threshold),
    "BH-SOURCE-RUNNING": C(lost, w.UNPLANNED, home_machine("power_on")),
    "BH-STILL-NONE": C(S.protected, w.PLANNED, stored(still=StillImagePlan(stopped=False, pre=("quiesce",)))),
    "BH-SITE-SILENT": C(lost, w.UNPLANNED, lambda world: setattr(world.cloud, "silent", True)),
    "BH-SITE-RIGHTS": C(World, w.PROTECT, lambda world: setattr(world.cloud, "role", SiteRole.READER)),
    "BH-SITE-MACHINE-NEW": C(
        S.protected_to_home, w.PLANNED, lambda world: world.home.defined.pop(world.stored.home.machine)
    ),
    "BH-LAYER-SPACE": C(S.protected, w.PLANNED, no_room_for_layers),
    "BH-LAYER-COPY": C(S.protected, w.PLANNED, layers_are_copies),
    "BH-COMMIT-UNPROVED": C(S.failed_over, w.COMMIT, integrity(Integrity.ACCEPTED)),
    "BH-CANCEL-UNDO": C(S.protected_to_home, w.CANCEL, unpin("home-before-reprotect", "mt-home")),
    "BH-CANCEL-REPLICA": C(S.failed_over, w.CANCEL, unpin("before-move", "mt-cloud")),
}
"""By code."""
