"""Writable layers over replica disks: by reflink where the file system shares blocks, else by copying the data.

A layer is a disk with a `base`. Commit swaps what the base's identity stands for, in one transaction: the layer's
image becomes the base's, and whoever has the layer open notices nothing. Called from worker threads.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import msgspec

from backhaul.replication.units import MiB
from backhaul.sites.errors import InUse
from backhaul.sites.local.definition import CopyRecord, DiskRecord, MachineRecord
from backhaul.sites.local.ledger import Call, Transaction
from backhaul.sites.local.storage import Disks, loop_of, publish, shown
from backhaul.sites.local.world import World
from backhaul.sites.values import Disk, LayerPlan, MachineDisk, SiteRole

_FICLONE = 0x40049409  # ioctl_ficlonerange(2)
_ASSUMED_BYTES_PER_S = 100.0 * MiB
_PIECE = 4 * MiB
_NO_REFLINK = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL}


class Layers:
    """All writable layers of one site."""

    def __init__(self, world: World, disks: Disks) -> None:
        self._world = world
        self._disks = disks

    def layer_plan(self, call: Call, disk: str) -> LayerPlan:
        """Which kind, and how long."""
        record = self._world.read(DiskRecord, disk, "disk")
        call.require(SiteRole.READER, record.subscription)
        image = self._disks.image(record)
        if self._reflinks(image.parent):
            return LayerPlan(disk, "reflink", 0, 0.0, measured=True)
        with self._world.ledger.transaction() as tx:
            last = tx.get(CopyRecord, "last")
        rate = last.bytes_per_s if last else _ASSUMED_BYTES_PER_S
        size = min(image.stat().st_blocks * 512, record.size)
        return LayerPlan(disk, "copy", size, size / rate, measured=last is not None)

    def layer_create(self, call: Call, disk: str) -> Disk:
        """Make a layer; nobody may write to the base meanwhile (its master target has stopped applying)."""
        base = self._world.read(DiskRecord, disk, "disk")
        call.require(SiteRole.OPERATOR, base.subscription)
        key = self._world.identity(call)

        def work() -> Disk:
            base = self._world.read(DiskRecord, disk, "disk")
            if base.base:
                raise InUse(what=f"Disk {disk}", reason="it is itself a writable layer")
            kind = "reflink" if self._reflinks(self._disks.image(base).parent) else "copy"
            record = DiskRecord(
                key=key,
                name=f"{base.name}-layer",
                subscription=base.subscription,
                size=base.size,
                image=f"{key}.img",
                account=base.account,
                base=disk,
                layer_kind=kind,
            )
            self._disks.book(call, record)
            self._fill(base, record)
            return self._disks.complete(call, record)

        return self._world.once(call, Disk, work, f"disk/{disk}", f"disk/{key}")

    def layer_drop(self, call: Call, layer: str) -> None:
        """Delete a layer that nobody has attached; one that is gone is no error."""
        self._disks.delete_disk(call, layer)

    def layer_commit(self, call: Call, layer: str) -> Disk:
        """The base's identity takes over the layer's content."""
        record = self._world.ledger_get(DiskRecord, layer)
        if record is not None:
            call.require(SiteRole.OPERATOR, record.subscription)
        base = record.base if record is not None else ""

        def work() -> Disk:
            record = self._world.read(DiskRecord, layer, "layer")
            if not record.base:
                raise InUse(what=f"Disk {layer}", reason="it is not a writable layer")
            with self._world.ledger.transaction() as tx:
                answer, old = self._swap(tx, record)
                self._world.finish(tx, call, f"disk/{record.base}", shown(answer))
            self._world.step("swapped")
            self._world.files.remove(self._disks.image(old))
            return shown(answer)

        return self._world.once(call, Disk, work, f"disk/{layer}", *([f"disk/{base}"] if base else []))

    def _swap(self, tx: Transaction, layer: DiskRecord) -> tuple[DiskRecord, DiskRecord]:
        base = tx.get(DiskRecord, layer.base)
        assert base is not None, "a base cannot be deleted while a layer stands on it"
        others = [disk.key for disk in tx.all(DiskRecord) if disk.base == base.key and disk.key != layer.key]
        if base.holder or others:
            reason = f"{base.holder} has it attached" if base.holder else f"the layer {others[0]} stands on it too"
            raise InUse(what=f"Disk {base.key}", reason=reason)
        merged = msgspec.structs.replace(base, image=layer.image, size=layer.size, holder=layer.holder)
        tx.remove(DiskRecord, layer.key)
        tx.put(merged)
        for machine in tx.all(MachineRecord):
            disks = tuple(MachineDisk(base.key if d.disk == layer.key else d.disk, d.mount) for d in machine.disks)
            if disks != machine.disks:
                tx.put(msgspec.structs.replace(machine, disks=disks))
        return merged, base

    def _fill(self, base: DiskRecord, layer: DiskRecord) -> None:
        source, target = self._disks.image(base), self._disks.image(layer)
        if target.exists():
            return  # a kill came after the image was complete
        if node := loop_of(self._world, source):
            _flush(Path(node))
        partial = target.with_name(target.name + ".partial")
        self._world.files.remove(partial)
        if layer.layer_kind == "reflink":
            clone(source, partial)
        else:
            self._copy(source, partial)
        publish(self._world, partial, target)

    def _copy(self, source: Path, target: Path) -> None:
        began = self._world.clock.monotonic_ns()
        copied = copy_data(source, target)
        took_s = (self._world.clock.monotonic_ns() - began) / 1e9
        if copied and took_s > 0:
            with self._world.ledger.transaction() as tx:
                tx.put(CopyRecord("last", copied / took_s))

    def _reflinks(self, folder: Path) -> bool:
        """Whether files in the folder can share blocks: by trying."""
        probe, twin = folder / ".reflink-probe", folder / ".reflink-probe-twin"
        try:
            probe.write_bytes(bytes(4096))
            clone(probe, twin)
        except OSError as error:
            if error.errno not in _NO_REFLINK:
                raise
            return False
        finally:
            for path in (probe, twin):
                path.unlink(missing_ok=True)
        return True


def clone(source: Path, target: Path) -> None:
    """Make `target` share all blocks of `source`. Raises OSError where the file system cannot."""
    with open(source, "rb") as reader, open(target, "wb") as writer:
        fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        os.fsync(writer.fileno())


def copy_data(source: Path, target: Path) -> int:
    """Copy what is not a hole; durable. Returns the bytes copied."""
    copied = 0
    with open(source, "rb") as reader, open(target, "wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        os.ftruncate(writer.fileno(), size)
        for begin, end in _data(reader.fileno(), size):
            while begin < end:
                done = os.copy_file_range(reader.fileno(), writer.fileno(), min(_PIECE, end - begin), begin, begin)
                if done == 0:
                    raise OSError(errno.EIO, "the image ended early", str(source))
                begin += done
                copied += done
        os.fsync(writer.fileno())
    return copied


def _data(descriptor: int, size: int) -> list[tuple[int, int]]:
    ranges = []
    end = 0
    while end < size:
        try:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data behind `end`
                break
            raise
        end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        ranges.append((begin, end))
    return ranges


def _flush(node: Path) -> None:
    descriptor = os.open(node, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
