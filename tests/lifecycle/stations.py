"""The item's way round, station by station: how tests get to where a job begins."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from backhaul.configuration_server.lifecycle import ending
from backhaul.configuration_server.lifecycle import workflows as w
from backhaul.configuration_server.lifecycle.values import Wish
from backhaul.recovery.item import Report
from backhaul.recovery.states import step
from backhaul.replication.control import StillImagePlan
from lifecycle.fake_world import World

OTHER_ID = "22222222-2222-2222-2222-222222222222"
Build = Callable[[], World]


INSIDE = StillImagePlan(stopped=False, freeze=True)
"""Only the agent on the machine itself reads its disks."""


def inside(build: Build) -> Build:
    """The same station, of a machine whose agent runs on it."""

    def made() -> World:
        world = build()
        world.stored = msgspec.structs.replace(world.stored, still=INSIDE)
        for agent, (machine, told) in world.told.items():
            world.told[agent] = machine, msgspec.structs.replace(told, still=INSIDE)
        return world

    return made


def protected() -> World:
    """Home runs and replicates to the cloud; three points."""
    world = World()
    world.run(w.PROTECT, "job-protect", wish=Wish())
    world.home.write("a")
    world.first_point()
    for word in ("b", "c"):
        world.home.write(word)
        world.tick()
    return world


def failed_over() -> World:
    """Planned; the cloud has written."""
    world = protected()
    world.run(w.PLANNED, "job-over", wish=Wish())
    world.cloud.write("d")
    return world


def failed_over_to_a_point() -> World:
    """Unplanned, to the first point, with half an epoch under way."""
    world = protected()
    world.home.write("lost")
    world.half_an_epoch("mt-cloud")
    world.run(w.UNPLANNED, "job-over", wish=Wish(point=1))
    world.cloud.write("d")
    return world


def at_another_point() -> World:
    """Failed over, then gone to the first point."""
    world = failed_over()
    world.run(w.CHANGE_POINT, "job-change", wish=Wish(point=1))
    world.cloud.write("e")
    return world


def committed() -> World:
    """In the cloud for good."""
    world = failed_over()
    world.run(w.COMMIT, "job-commit", wish=Wish())
    world.cloud.write("f")
    return world


def reprotecting() -> World:
    """Home's old disks are being compared."""
    world = committed()
    world.run(w.REPROTECT, "job-reprotect", wish=Wish())
    return world


def protected_to_home() -> World:
    """The cloud runs and replicates home, with half an epoch under way."""
    world = reprotecting()
    world.first_point()
    world.cloud.write("g")
    world.tick()
    return world


def failed_back() -> World:
    """Home runs again, and has written."""
    world = protected_to_home()
    world.run(w.PLANNED, "job-back", wish=Wish())
    world.home.write("h")
    return world


def committed_back() -> World:
    """Home runs for good."""
    world = failed_back()
    world.run(w.COMMIT, "job-commit-back", wish=Wish())
    return world


def verifying() -> World:
    """Home is being compared again, as a resync wants it; half an epoch was under way."""
    world = protected()
    world.half_an_epoch("mt-cloud")
    world.run(w.RESYNC, "job-resync", wish=Wish())
    return world


def standing_by() -> World:
    """The machine at home has another id by now, so it is taken for a copy."""
    world = protected()
    world.home.rename(world.stored.home.machine, OTHER_ID)
    world.stored = msgspec.structs.replace(world.stored, state=step(world.stored.state, Report.COPY_FOUND))
    return world


JOBS: dict[str, tuple[Build, str, Wish]] = {
    "protect": (World, w.PROTECT, Wish()),
    "failover": (protected, w.PLANNED, Wish()),
    "failover from inside": (inside(protected), w.PLANNED, Wish()),
    "unplanned": (protected, w.UNPLANNED, Wish(point=1)),
    "change of point": (failed_over, w.CHANGE_POINT, Wish(point=2)),
    "commit": (failed_over, w.COMMIT, Wish()),
    "cancel failover": (failed_over, w.CANCEL, Wish()),
    "cancel unplanned": (failed_over_to_a_point, w.CANCEL, Wish()),
    "cancel after change": (at_another_point, w.CANCEL, Wish()),
    "reprotect": (committed, w.REPROTECT, Wish()),
    "reprotect without cancel": (committed, w.REPROTECT, Wish(cancel_given_up=True)),
    "cancel reprotect": (reprotecting, w.CANCEL, Wish()),
    "cancel protected to home": (protected_to_home, w.CANCEL, Wish()),
    "failback": (protected_to_home, w.PLANNED, Wish()),
    "failback from inside": (inside(protected_to_home), w.PLANNED, Wish()),
    "unplanned failback": (protected_to_home, w.UNPLANNED, Wish()),
    "cancel failback": (failed_back, w.CANCEL, Wish()),
    "commit failback": (failed_back, w.COMMIT, Wish()),
    "protect again": (committed_back, w.REPROTECT, Wish()),
    "resync": (protected, w.RESYNC, Wish()),
    "resync towards home": (protected_to_home, w.RESYNC, Wish()),
    "rebind": (standing_by, w.REBIND, Wish(machine=OTHER_ID)),
    "unprotect": (protected, ending.DISABLE, Wish()),
    "unprotect while comparing": (verifying, ending.DISABLE, Wish()),
    "unprotect in the cloud": (committed, ending.DISABLE, Wish()),
    "unprotect towards home": (protected_to_home, ending.DISABLE, Wish()),
    "unprotect at home again": (committed_back, ending.DISABLE, Wish()),
    "complete the migration": (committed, ending.MIGRATED, Wish()),
    "purge": (protected, ending.PURGE, Wish()),
}
"""Each job where it begins: the matrix of kills."""
