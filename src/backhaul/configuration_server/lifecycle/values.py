"""What the control plane keeps of an item that moves between its sides. Plain immutable values.

Invariant: a change of an `Item` carries the token of the step that made it, in `done`, so that a step that is
repeated changes it once.
"""

from __future__ import annotations

import uuid
from typing import Any, Final

import msgspec

from backhaul.recovery.item import ItemState, Side
from backhaul.replication.control import StillImagePlan
from backhaul.replication.values import DiskIdentity, Hash, ItemId, ItemPolicy

BEFORE_MOVE: Final = "before-move"
"""Pin of the state that a failover or failback started from; cancel returns to it."""

BEFORE_REPROTECT: Final = "home-before-reprotect"
"""Pin of the old disks as they were when the reprotect began."""

_MACHINES: Final = uuid.UUID("9d1cf6c8-5d0b-4a55-9f0e-6a6a4d1b7a10")


class Ids(msgspec.Struct, frozen=True):
    """All that a step is told: the job it belongs to and the item it is about."""

    job: str
    item: ItemId

    def token(self, what: str) -> str:
        """A request token that is the same each time the step is repeated. Tokens are at most 200 characters."""
        return f"{self.job}/{what}"


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """One side of an item.

    site         empty: Backhaul was told of none. Then nothing can be moved, `disks` of the active side are the paths
                 at which the agent finds them, and the target made the replica's disks itself
    machine      its id there; empty: it is not defined there
    name, subscription, network, subnet, address, command, mounts, tags
                 how the machine is, or will be, defined there; `address` empty: the next free one
    target       master target that holds replicas of this side
    agent        id of the agent that sends when this side is active
    account      storage account of disks that are made here; empty: none
    disks        the site's disks, in the item's order; empty: not made yet
    made         those of `disks` that were made here for the replica, and go with the protection
    layers       writable layers over the disks, on which the machine runs until commit
    """

    site: str
    subscription: str
    network: str
    subnet: str
    name: str
    target: str
    agent: str = ""
    machine: str = ""
    address: str = ""
    command: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    tags: dict[str, str] = {}
    account: str = ""
    disks: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()

    @property
    def own_disks(self) -> tuple[str, ...]:
        """The disks that the machine runs on."""
        return self.layers or self.disks

    @property
    def holder(self) -> str:
        """The machine as the site names holders of disks."""
        return f"machine:{self.machine}"

    @property
    def target_holder(self) -> str:
        """The master target as the site names holders of disks."""
        return f"master-target:{self.target}"


class Wish(msgspec.Struct, frozen=True):
    """What the operator chose for the job in hand.

    point             recovery point; None: the newest
    process_server    id; empty: any healthy one of the machine's network
    cancel_given_up   reprotect without the pin that cancel needs
    accept_integrity  commit without waiting for the integrity report, by name
    machine           id of the machine that is the active one now, by name
    """

    point: int | None = None
    process_server: str = ""
    cancel_given_up: bool = False
    accept_integrity: bool = False
    machine: str = ""


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """A replicated item. `report`: newest integrity report, signed; `done`: tokens of the changes of the job in hand.

    rpo_threshold_s  age of the newest point above which its policy alerts
    moved_ns         when the machine was started on the other side, wall clock; 0: it was not
    """

    id: ItemId
    name: str
    state: ItemState
    term: int
    term_key: Hash
    disks: tuple[DiskIdentity, ...]
    policy: ItemPolicy
    rpo_threshold_s: float
    still: StillImagePlan
    home: Place
    cloud: Place
    process_server: str = ""
    wish: Wish = Wish()
    report: bytes = b""
    moved_ns: int = 0
    done: tuple[str, ...] = ()

    def at(self, side: Side) -> Place:
        """The item's place on a side."""
        return self.home if side is Side.HOME else self.cloud

    @property
    def active(self) -> Place:
        """The authoritative side."""
        return self.at(self.state.active_side)

    @property
    def passive(self) -> Place:
        """The other one."""
        return self.at(self.state.active_side.other)

    @property
    def read_from_inside(self) -> bool:
        """Only the agent on the machine itself reads its disks: powered off first, there would be no final point."""
        return self.still.freeze and not self.still.stopped

    def risen(self) -> Item:
        """Under the next generation: what was sent or reported under an earlier one counts no more."""
        return msgspec.structs.replace(
            self, state=msgspec.structs.replace(self.state, generation=self.state.generation + 1)
        )

    def placed(self, side: Side, **changes: Any) -> Item:
        """With a side changed."""
        return msgspec.structs.replace(self, **{side.value: msgspec.structs.replace(self.at(side), **changes)})


def new_machine_id(item: ItemId, generation: int) -> str:
    """Id of the machine that this generation defines: the same each time a step is repeated."""
    return str(uuid.uuid5(_MACHINES, f"{item}/{generation}"))
