"""Disks and storage accounts of a local site: images, their account's room, and who has them attached.

A disk is its id; the file that holds its content is a field of its record and may be swapped (`layers.py`). As root
a disk is handed out as a loop device that belongs to the site's user. Called from worker threads under `disk/ID`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec

from backhaul.disks.raw_file import create_raw_file
from backhaul.replication.units import BLOCK, MAX_DISK_BYTES
from backhaul.sites.errors import AccountFull, AccountUnknown, DiskSizeWrong, InUse, RequestMalformed
from backhaul.sites.local.definition import AccountDefinition, DiskRecord, MachineRecord, ServerRecord
from backhaul.sites.local.ledger import Call, Transaction
from backhaul.sites.local.processes import Processes
from backhaul.sites.local.tools import run
from backhaul.sites.local.world import World, found
from backhaul.sites.values import Account, Attachment, Disk, DiskRequest, PowerState, SiteRole

_FILE_SYSTEMS = ("", "ext4")


class Disks:
    """All disks of one site."""

    def __init__(self, world: World, processes: Processes) -> None:
        self._world = world
        self._processes = processes

    def disks(self, call: Call) -> tuple[Disk, ...]:
        """Those in subscriptions that the caller may read."""
        with self._world.ledger.transaction() as tx:
            records = tx.all(DiskRecord)
        return tuple(shown(record) for record in records if record.ready and call.sees(record.subscription))

    def create_disk(self, call: Call, request: DiskRequest) -> Disk:
        """Make an empty disk, or one with an ext4 on it."""
        call.require(SiteRole.OPERATOR, request.subscription)
        _check_size(request.name, request.size)
        if request.file_system not in _FILE_SYSTEMS:
            raise RequestMalformed(operation="create_disk", reason=f"unknown file system {request.file_system!r}")
        record = DiskRecord(
            key=self._world.identity(call),
            name=request.name,
            subscription=request.subscription,
            size=request.size,
            image=f"{self._world.identity(call)}.img",
            account=request.account,
        )

        def work() -> Disk:
            self.book(call, record)
            make_image(self._world, self.image(record), record.size, request.file_system)
            return self.complete(call, record)

        return self._world.once(call, Disk, work, f"disk/{record.key}")

    def book(self, call: Call, record: DiskRecord) -> None:
        """Note a disk that is about to be made, so that its room is taken. Raises AccountFull."""
        with self._world.ledger.transaction() as tx:
            tx.begin(call)
            if tx.get(DiskRecord, record.key) is None:
                if record.account:
                    check_room(tx, self._account(record), record.size)
                tx.put(record)
        self._world.step("disk booked")

    def complete(self, call: Call, record: DiskRecord) -> Disk:
        """The image is there: the disk is real from now on."""
        self._world.step("image made")
        ready = msgspec.structs.replace(record, ready=True)
        with self._world.ledger.transaction() as tx:
            tx.put(ready)
            self._world.finish(tx, call, f"disk/{record.key}", shown(ready))
        return shown(ready)

    def delete_disk(self, call: Call, disk: str) -> None:
        """Delete a disk that nobody has and nothing stands on."""
        subscription = self._subscription(disk)
        if subscription is not None:
            call.require(SiteRole.OPERATOR, subscription)

        def work() -> None:
            with self._world.ledger.transaction() as tx:
                record = tx.get(DiskRecord, disk)
                if record is not None:
                    check_free(tx, record)
                    tx.remove(DiskRecord, disk)
                self._world.finish(tx, call, f"disk/{disk}", None, effect=record is not None)
            self._world.step("disk forgotten")
            if record is not None:
                self._world.files.remove(self.image(record))

        self._world.once(call, None, work, f"disk/{disk}")

    def grow_disk(self, call: Call, disk: str, size: int) -> Disk:
        """Enlarge; an attached disk's holder sees the new size."""
        before = self._world.read(DiskRecord, disk, "disk")
        call.require(SiteRole.OPERATOR, before.subscription)
        _check_size(disk, size)

        def work() -> Disk:
            record = self._world.read(DiskRecord, disk, "disk")
            if size < record.size:
                raise DiskSizeWrong(disk=disk, size=size, reason=f"it has {record.size} bytes and never shrinks")
            grown = msgspec.structs.replace(record, size=size)
            with self._world.ledger.transaction() as tx:
                changes = tx.begun(call) or size != record.size
                if record.account:
                    check_room(tx, self._account(record), size - record.size)
                tx.put(grown)
                tx.begin(call)
            self._world.step("growth booked")
            os.truncate(self.image(grown), size)
            if node := loop_of(self._world, self.image(grown)):
                run("losetup", "--set-capacity", node)
            with self._world.ledger.transaction() as tx:
                self._world.finish(tx, call, f"disk/{disk}", shown(grown), effect=changes)
            return shown(grown)

        return self._world.once(call, Disk, work, f"disk/{disk}")

    def attach_disk(self, call: Call, disk: str, holder: str) -> Attachment:
        """Hand the disk to one holder; again to the same one gives the same path."""
        record = self._world.read(DiskRecord, disk, "disk")
        call.require(SiteRole.OPERATOR, record.subscription)

        def work() -> Attachment:
            record = self._world.read(DiskRecord, disk, "disk")
            if record.holder not in ("", holder):
                raise InUse(what=f"Disk {disk}", reason=f"{record.holder} has it attached")
            self._world.step("before attach")
            path = hand_out(self._world, self.image(record))
            answer = Attachment(disk, holder, path, record.size)
            with self._world.ledger.transaction() as tx:
                check_holder(tx, holder)
                tx.put(msgspec.structs.replace(record, holder=holder))
                self._world.finish(tx, call, f"disk/{disk}", answer, effect=record.holder != holder)
            return answer

        # An answer from before a boot may name a loop device that is somebody else's by now: look again.
        answer = self._world.once(call, Attachment, work, f"disk/{disk}")
        with self._world.holding(f"disk/{disk}"):
            current = self._world.read(DiskRecord, disk, "disk")
            if current.holder != holder:
                raise InUse(what=f"Disk {disk}", reason=f"{current.holder or 'nobody'} has it by now")
            return msgspec.structs.replace(answer, path=hand_out(self._world, self.image(current)))

    def detach_disk(self, call: Call, disk: str) -> None:
        """Take the disk back from whoever has it."""
        record = self._world.read(DiskRecord, disk, "disk")
        call.require(SiteRole.OPERATOR, record.subscription)

        def work() -> None:
            record = self._world.read(DiskRecord, disk, "disk")
            if record.holder.startswith("machine:") and self._processes.state(record.holder) is not PowerState.OFF:
                raise InUse(what=f"Disk {disk}", reason=f"{record.holder} runs on it")
            take_back(self._world, self.image(record))
            with self._world.ledger.transaction() as tx:
                tx.put(msgspec.structs.replace(record, holder=""))
                self._world.finish(tx, call, f"disk/{disk}", None, effect=bool(record.holder))

        holder = (record.holder.replace(":", "/", 1),) if record.holder else ()
        self._world.once(call, None, work, f"disk/{disk}", *holder)

    def accounts(self, call: Call) -> tuple[Account, ...]:
        """Storage accounts with what is used of them."""
        with self._world.ledger.transaction() as tx:
            return tuple(
                Account(a.name, a.subscription, a.resource_group, a.region, a.capacity, used(tx, a.name))
                for a in self._world.definition.accounts
                if call.sees(a.subscription)
            )

    def image(self, record: DiskRecord) -> Path:
        """The file that holds the disk's content now."""
        return image_folder(self._world, record.account) / record.image

    def remove_orphans(self) -> None:
        """At start: delete images that no record names; a kill came between forgetting and deleting them."""
        with self._world.ledger.transaction() as tx:
            named = {self.image(record) for record in tx.all(DiskRecord)}
        for folder in (image_folder(self._world, ""), *(image_folder(self._world, a.name) for a in self._accounts())):
            self._world.files.make_folder(folder)
            self._world.show(folder)
            for name in self._world.files.names(folder):
                if name.endswith((".img", ".img.partial")) and folder / name not in named:
                    take_back(self._world, folder / name)
                    self._world.files.remove(folder / name)

    def take_all_back(self) -> None:
        """Before the site is taken down: no image is on a loop device any more."""
        with self._world.ledger.transaction() as tx:
            records = tx.all(DiskRecord)
        for record in records:
            take_back(self._world, self.image(record))

    def _accounts(self) -> tuple[AccountDefinition, ...]:
        return self._world.definition.accounts

    def _account(self, record: DiskRecord) -> AccountDefinition:
        account = next((account for account in self._accounts() if account.name == record.account), None)
        if account is None or account.subscription != record.subscription:
            raise AccountUnknown(subscription=record.subscription, account=record.account)
        return account

    def _subscription(self, disk: str) -> str | None:
        with self._world.ledger.transaction() as tx:
            record = tx.get(DiskRecord, disk)
        return record.subscription if record else None


def shown(record: DiskRecord) -> Disk:
    """The disk as callers see it."""
    return Disk(
        id=record.key,
        name=record.name,
        subscription=record.subscription,
        size=record.size,
        account=record.account,
        holder=record.holder,
        base=record.base,
        layer_kind=record.layer_kind,
    )


def image_folder(world: World, account: str) -> Path:
    """Where the images of an account lie, or those that are in none."""
    return world.volume / "accounts" / account if account else world.volume / "disks"


def make_image(world: World, path: Path, size: int, file_system: str) -> None:
    """Make the image if it is not there yet: complete or not at all."""
    if path.exists():
        return
    partial = path.with_name(path.name + ".partial")
    world.files.remove(partial)
    create_raw_file(partial, size)
    if file_system:
        run("mkfs.ext4", "-q", "-F", "-E", "root_owner=0:0,lazy_itable_init=0", str(partial))
    publish(world, partial, path)


def publish(world: World, partial: Path, path: Path) -> None:
    """The finished image gets its name, durably."""
    image = world.files.open(partial)
    try:
        image.sync()
    finally:
        image.close()
    world.step("before rename")
    partial.rename(path)
    world.files.sync_folder(path.parent)


def hand_out(world: World, image: Path) -> str:
    """The path under which a holder opens the image: as root a loop device of the site's user."""
    if world.user is None:
        return str(image)
    # Also where there is a device: one that was given back while somebody read it would be gone with that reader, and
    # its number then be another disk's. Told so, it stays.
    node = run("losetup", "--find", "--show", "--nooverlap", str(image)).strip()
    os.chown(node, world.user, world.user)
    Path(node).chmod(0o600)
    return node


def take_back(world: World, image: Path) -> None:
    """Nobody can open the image through a loop device any more."""
    if world.user is None:
        return
    node = loop_of(world, image)
    if node:
        os.chown(node, 0, 0)
        run("losetup", "--detach", node)


def loop_of(world: World, image: Path) -> str:
    """The loop device on which the image is, if any."""
    if world.user is None or not image.exists():
        return ""
    listing = run("losetup", "--json", "--list", "--associated", str(image), "--output", "NAME")
    devices = json.loads(listing)["loopdevices"] if listing.strip() else []
    return str(devices[0]["name"]) if devices else ""


def used(tx: Transaction, account: str) -> int:
    """Bytes of an account that are taken: disks and servers at their full size."""
    servers = sum(s.os_disk_bytes + s.spool_disk_bytes for s in tx.all(ServerRecord) if s.account == account)
    return servers + sum(disk.size for disk in tx.all(DiskRecord) if disk.account == account)


def check_room(tx: Transaction, account: AccountDefinition, needed: int) -> None:
    """Raises AccountFull."""
    free = account.capacity - used(tx, account.name)
    if needed > free:
        raise AccountFull(account=account.name, free=max(0, free), needed=needed)


def check_free(tx: Transaction, record: DiskRecord) -> None:
    """Raises InUse if somebody has the disk or a layer stands on it."""
    if record.holder:
        raise InUse(what=f"Disk {record.key}", reason=f"{record.holder} has it attached")
    layers = [disk.key for disk in tx.all(DiskRecord) if disk.base == record.key]
    if layers:
        raise InUse(what=f"Disk {record.key}", reason=f"the writable layer {layers[0]} stands on it")


def check_holder(tx: Transaction, holder: str) -> None:
    """Machines and servers that hold disks must exist; other holders are the caller's own names."""
    kind, _, name = holder.partition(":")
    if not name:
        raise RequestMalformed(operation="attach_disk", reason=f"the holder {holder!r} is not of the form KIND:NAME")
    if kind == "machine":
        found(tx.get(MachineRecord, name), "machine", name)
    elif kind == "server":
        found(tx.get(ServerRecord, name), "server", name)


def _check_size(disk: str, size: int) -> None:
    if size <= 0 or size % BLOCK or size > MAX_DISK_BYTES:
        raise DiskSizeWrong(disk=disk, size=size, reason="it is not a positive multiple of 4096, or above the limit")
