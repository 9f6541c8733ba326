"""A replica at its master target, as the lifecycle's steps see it: each request once, whatever is repeated.

Raises ServerSilent (try again) and ServerRefused with the target's code. Called from the jobs' threads.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, NamedTuple

import msgspec

from backhaul.configuration_server.errors import ServerRefused
from backhaul.configuration_server.lifecycle.errors import PinMissing, ReplicaMissing
from backhaul.configuration_server.lifecycle.ports import Ports
from backhaul.configuration_server.lifecycle.values import Ids, Item, Place
from backhaul.master_target.errors import ItemUnknown
from backhaul.replication.control import ItemStatus, Method, PointStatus
from backhaul.replication.values import ItemDescriptor

_MARK_LENGTH: Final = 16


class Digests(NamedTuple):
    """Of a replica's ranges, and the lineage of their key; empty at targets that do not tell it."""

    digests: tuple[bytes, ...]
    lineage: bytes


class Replica:
    """The replica of an item at one side's target."""

    def __init__(self, ports: Ports, item: Item, place: Place) -> None:
        self._ports, self._item, self._place = ports, item, place

    def find(self) -> ItemStatus | None:
        """What the target knows; None when it holds no replica."""
        try:
            return self._status(Method.ITEM_STATUS, item=self._item.id)
        except ServerRefused as error:
            if error.params.get("reason_code") == ItemUnknown.code:
                return None
            raise

    def status(self) -> ItemStatus:
        """Raises ReplicaMissing."""
        found = self.find()
        if found is None:
            raise ReplicaMissing(item=self._item.name, target=self._place.target)
        return found

    def points(self) -> list[PointStatus]:
        """Oldest first."""
        return msgspec.convert(self._ask(Method.ITEM_POINTS, item=self._item.id), list[PointStatus])

    def create(self, descriptor: bytes, paths: tuple[str, ...]) -> ItemStatus:
        """Over existing disks."""
        return self._status(Method.ITEM_CREATE, descriptor=descriptor, paths=list(paths))

    def follow(self, descriptor: bytes) -> None:
        """A new generation: all streams end."""
        self._status(Method.ITEM_RAISE, descriptor=descriptor)

    def promote(self, descriptor: bytes) -> None:
        """A new generation, with no stream and no thinning from now on; the started epoch is undone."""
        self._status(Method.ITEM_PROMOTE, descriptor=descriptor)

    def keep(self, pin: str) -> None:
        """Pin the present state, unless a state of this name is kept already."""
        if pin not in self.status().pins:
            self._status(Method.ITEM_PIN, item=self._item.id, name=pin, point=None)

    def let_go(self, pin: str) -> None:
        """Release a pin; one that is not there, or a replica that is gone, is no error."""
        found = self.find()
        if found is not None and pin in found.pins:
            self._status(Method.ITEM_RELEASE, item=self._item.id, name=pin)

    def go_to(self, point: int, mark: str) -> None:
        """Go from the state marked by the pin `mark` to `point`; nothing where it has gone already.

        Going to a point is an epoch of its own, so the number of the newest one tells whether it was done.
        """
        status = self.status()
        if mark not in status.pins:
            raise PinMissing(item=self._item.name, target=self._place.target, pin=mark)
        newest = status.complete.number if status.complete else 0
        if newest == status.pins[mark] and newest != point:
            self._status(Method.ITEM_GO_TO, item=self._item.id, point=point)

    def hand_out(self) -> None:
        """Its disks will be written by somebody else; a replica that is gone is no error."""
        found = self.find()
        if found is not None and (found.points or found.complete or found.pins):
            self._status(Method.ITEM_HAND_OUT, item=self._item.id)

    def verify(self, descriptor: bytes) -> None:
        """A new generation, and what the target's maps say does not count any more: the disks are read back."""
        self._status(Method.ITEM_VERIFY, descriptor=descriptor)

    def forget(self, *, keep_disks: bool = True) -> None:
        """End the replica; its disks stay, unless the target made them itself and nobody else knows of them."""
        if self.find() is not None:
            self._ask(Method.ITEM_DELETE, item=self._item.id, keep_disks=keep_disks)

    def digests(self, disk: int, first: int, count: int, *, reread: bool) -> Digests:
        """Digests of ranges of 16 MiB; `reread`: of what the disk itself holds, whatever the map says."""
        params = {"item": self._item.id, "disk": disk, "first": first, "count": count, "reread": reread}
        answer = self._ask(Method.ITEM_DIGESTS, **params)
        return Digests(tuple(bytes(digest) for digest in answer["digests"]), bytes(answer.get("lineage", b"")))

    def _status(self, method: Method, **params: Any) -> ItemStatus:
        return msgspec.convert(self._ask(method, **params), ItemStatus)

    def _ask(self, method: Method, **params: Any) -> Any:
        return self._ports.targets.ask(self._place.target, method, params)


def mark_of(ids: Ids) -> str:
    """Name of the pin that marks where a job's going to a point starts from."""
    return "job-" + hashlib.sha256(ids.job.encode()).hexdigest()[:_MARK_LENGTH]


def descriptor_of(ports: Ports, item: Item, target: str) -> bytes:
    """The item as it is now, signed for a target: its generation, and the one machine that may send."""
    active = item.active
    descriptor = ItemDescriptor(
        item=item.id,
        term=item.term,
        term_key=item.term_key,
        generation=item.state.generation,
        target=target,
        agent=active.agent,
        active_machine=active.machine,
        disks=item.disks,
        policy=item.policy,
    )
    return ports.seals.descriptor(descriptor)
