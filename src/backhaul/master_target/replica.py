"""The journalled replica of an item: its disks, its undo journal, its points. Specification: docs/spec/journal.md.

Invariant: what `flush` and `complete` acknowledged is durable, and every point that `points` lists can be reached
byte for byte. Synchronous; all calls come from the item's one worker thread, except `view` and `read_at_point`,
which any thread may make. After ReplicaPoisoned nothing works: the process ends and opens the replica again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import msgspec

from backhaul.disks.contract import Buffer, Disk
from backhaul.disks.hashing import refresh
from backhaul.master_target import manifest as files_of
from backhaul.master_target import points as points_of
from backhaul.master_target.applying import Applier
from backhaul.master_target.batch import Staged, split_zeros
from backhaul.master_target.contract import JournalRoom, RecoveryPoint
from backhaul.master_target.crew import ALONE, Crew
from backhaul.master_target.disk_blocks import CutDisk
from backhaul.master_target.errors import (
    EpochUnfinished,
    ExtentOutside,
    JournalFull,
    JournalWriteFailed,
    MasterTargetError,
    PinRefused,
    ReplicaFileDamaged,
    ReplicaPoisoned,
    UndoImpossible,
)
from backhaul.master_target.fuse import Fuse
from backhaul.master_target.identity import check_sizes, grow_disks
from backhaul.master_target.journal import Epoch, Journal
from backhaul.master_target.manifest import ItemFile, Manifest
from backhaul.master_target.map_store import MapStore
from backhaul.master_target.records import RecordType
from backhaul.master_target.restart import Restart
from backhaul.master_target.thinning import drop_below, thin
from backhaul.master_target.undo import undo_epoch
from backhaul.master_target.view import PointView, read_at_point
from backhaul.replication.errors import BackhaulError, EpochViolation
from backhaul.replication.maps import GranuleMap
from backhaul.replication.ports import Clock, Files
from backhaul.replication.units import BATCH_BYTES, SECTOR
from backhaul.replication.values import (
    NO_LINEAGE,
    CompletePoint,
    EpochBegin,
    EpochEnd,
    EpochReason,
    Extent,
    ExtentKind,
    ItemDescriptor,
)

MAX_STAGED: Final = 65_536
"""Extents staged before a batch is applied by itself: zeros have no bytes that would bound them."""


class Replica:
    """See `contract.ReplicaContract`, which this implements."""

    def __init__(
        self, folder: Path, item: ItemFile, disks: Sequence[Disk], files: Files, clock: Clock, crew: Crew
    ) -> None:
        """Use `create` or `open`."""
        self._folder, self._files, self._clock, self._crew = folder, files, clock, crew
        self._item = item
        self._disks = list(disks)
        self._fuse = Fuse(item.descriptor.item)
        self.findings: tuple[MasterTargetError, ...] = ()

    @classmethod
    def create(
        cls,
        folder: Path,
        descriptor: ItemDescriptor,
        disks: Sequence[Disk],
        key: bytes,
        files: Files,
        clock: Clock,
        *,
        fresh: bool,
    ) -> Replica:
        """A new replica on `disks` (in the order of the descriptor). `fresh`: they are known to read as zeros.

        Interrupted, it is called again. Raises ReplicaTooSmall before anything is written, JournalWriteFailed.
        """
        check_sizes(descriptor, disks)
        item = ItemFile(descriptor, key)
        try:
            for name in ("journal", "maps"):
                files.make_folder(folder / name)
            maps = MapStore(files, folder / "maps", descriptor.item, key, [disk.size for disk in descriptor.disks])
            maps.start(zeros=fresh)
            files.replace(folder / "journal" / "manifest", files_of.encode(Manifest(must_compare=not fresh)))
            files.replace(folder / "item", files_of.encode(item))
            files.sync_folder(folder)
        except OSError as error:
            raise JournalWriteFailed(item=descriptor.item, cause=error) from error
        return cls.open(folder, disks, files, clock)

    @classmethod
    def open(cls, folder: Path, disks: Sequence[Disk], files: Files, clock: Clock, crew: Crew = ALONE) -> Replica:
        """Open and recover. What had to be withdrawn is in `findings`; `crew` reads and writes the disks.

        Raises ReplicaTooSmall, ReplicaFileDamaged, JournalUnreadable, ReplicaPoisoned, the disks' errors.
        """
        item = files_of.decode("item", ItemFile, _read(files, folder / "item"))
        check_sizes(item.descriptor, disks)
        replica = cls(folder, item, disks, files, clock, crew)
        findings: list[MasterTargetError] = []
        for rewrite in (True, False):
            restart = replica._recover(rewrite=rewrite)
            findings += restart.findings
            if not restart.again:
                break
        replica.findings = tuple(findings)
        return replica

    def _recover(self, *, rewrite: bool) -> Restart:
        item, folder = self._item.descriptor.item, self._folder
        manifest = files_of.decode("manifest", Manifest, _read(self._files, folder / "journal" / "manifest"))
        self._journal = Journal(
            folder / "journal", item, self._item.key, self._files, self._clock, self._fuse, manifest
        )
        self._maps = MapStore(self._files, folder / "maps", item, self._item.key, self._sizes)
        restart = Restart(self._journal, self._disks, self._maps)
        try:
            restart.again = restart.run(rewrite=rewrite)
        except BaseException:
            self._journal.close()
            raise
        if restart.again:
            self._journal.close()
        self._journal.limit_bytes = self._item.descriptor.policy.journal_bytes
        self._applier = Applier(
            self._journal, self._disks, self._maps, restart.doubtful, self.thin_to_floor, self._crew
        )
        self._staged_frame = 0
        return restart

    def close(self) -> None:
        """Let go of the journal's files. The disks belong to the caller. What was staged is forgotten."""
        self._journal.close()

    # -- what it is ------------------------------------------------------------------------------------------------

    @property
    def _sizes(self) -> list[int]:
        return [disk.size for disk in self._item.descriptor.disks]

    @property
    def descriptor(self) -> ItemDescriptor:
        """The descriptor that disks and policy follow."""
        return self._item.descriptor

    @property
    def disks(self) -> list[Disk]:
        """The disks as long as the item's are; a replica may be longer."""
        pairs = zip(self._disks, self._sizes, strict=True)
        return [disk if disk.size == size else CutDisk(disk, size) for disk, size in pairs]

    @property
    def key(self) -> bytes:
        """The item's key of granule hashes."""
        return self._item.key

    @property
    def maps(self) -> list[GranuleMap]:
        """The granule map of each disk."""
        return self._maps.maps

    @property
    def must_compare(self) -> bool:
        """Nothing is known of the disks: the next epoch must compare them all."""
        return self._journal.manifest.must_compare and self._journal.complete is None

    @property
    def applied_frame(self) -> int:
        """Newest frame of `applied_stream` that is durable with all before it; 0 for none."""
        return self._journal.epochs[-1].applied if self._journal.epochs else 0

    @property
    def applied_stream(self) -> int:
        """Stream of the newest begin; 0 before the first."""
        return self._journal.epochs[-1].tries[-1].stream if self._journal.epochs else 0

    @property
    def newest_complete(self) -> CompletePoint | None:
        """What a stream may go on from; None when everything must be compared."""
        epoch = self._journal.complete
        return CompletePoint(epoch.number, epoch.end.lineage()) if epoch and epoch.end else None

    @property
    def stands_at(self) -> int:
        """The point whose contents the disks have: the newest, or the one that was gone to since; 0 for none."""
        complete = self._journal.complete
        if complete is None:
            return 0
        begin = complete.tries[-1]
        return int(begin.tracker) if begin.reason is EpochReason.UNDO else complete.number

    @property
    def tries(self) -> tuple[EpochBegin, ...]:
        """Begins of the epoch that has started and not ended, oldest first."""
        started = self._journal.started
        return tuple(started.tries) if started else ()

    # -- epochs ----------------------------------------------------------------------------------------------------

    def begin(self, epoch: EpochBegin) -> None:
        """Begin or continue an epoch; durable on return. The same begin again is no error.

        Raises EpochViolation, JournalFull, JournalWriteFailed, ReplicaPoisoned, DiskWriteFailed.
        """
        self._fuse.check()
        journal, started = self._journal, self._journal.started
        if started is not None and started.tries[-1] == epoch:
            return
        self._check_begin(epoch, started)
        self._applier.forget(in_hand=False)
        self._staged_frame = 0
        if started is not None:
            self._applier.finish(started)
            record = journal.record(RecordType.BEGIN, epoch.number, msgspec.msgpack.encode(epoch))
            journal.append(started, [record])
            if started.tries[-1].stream != epoch.stream:
                started.applied = 0
            started.tries.append(epoch)
            for disk in epoch.compares:
                self._applier.doubtful.pop(disk, None)
            return
        base, manifest, before = epoch.number - 1, journal.manifest, journal.complete
        kept = before is not None or base in manifest.pins.values() or base in journal.leases
        floor = manifest.floor if kept else epoch.number
        journal.start_epoch(epoch, base, floor=floor, must_compare=self.must_compare)
        if before is not None and before.tries[-1].stream == epoch.stream:
            journal.epochs[-1].applied = before.applied

    def _check_begin(self, epoch: EpochBegin, started: Epoch | None) -> None:
        complete = self.newest_complete
        number, previous = (complete.number + 1, complete.lineage) if complete else (1, NO_LINEAGE)
        tries = (started.tries[-1].digest(),) if started else ()
        reason = ""
        if started is not None and started.undoing:
            reason = "the started epoch is being undone"
        elif epoch.number != number or epoch.previous != previous:
            reason = f"epoch {number} is due"
        elif epoch.interrupted != tries:
            reason = "it must name the try before it"
        elif self.must_compare and set(epoch.compares) != set(range(len(self._disks))):
            reason = "nothing is known of the disks, so all of them must be compared"
        if reason:
            raise EpochViolation(item=self._fuse.item, what=f"begin of epoch {epoch.number}", reason=reason)

    def stage(self, extent: Extent, data: Buffer | None, frame: int) -> None:
        """Take an extent of `frame`: DATA with its bytes, ZERO and DISCARDED (which then reads as zeros) without.

        `data` must not change until the next `flush` returned. When a batch is full it is applied at once.
        Raises ExtentOutside, EpochViolation when no epoch runs, and as `flush`.
        """
        started = self._running("data")
        self._check_extent(extent, data)
        if self._applier.stage.bytes >= BATCH_BYTES or len(self._applier.stage.extents) >= MAX_STAGED:
            self._applier.apply(started, self._sizes, whole=False)  # before it is added: a retry adds nothing twice
        staged = Staged(extent.disk, extent.offset, extent.length, data, frame)
        self._staged_frame = frame
        if data is not None:
            self._applier.stage.add(staged)
        else:
            for part in split_zeros(staged, self._sizes[extent.disk]):
                self._applier.stage.add(part)

    def _running(self, what: str) -> Epoch:
        self._fuse.check()
        started = self._journal.started
        if started is None or started.undoing:
            raise EpochViolation(item=self._fuse.item, what=what, reason="no epoch is running")
        return started

    def _check_extent(self, extent: Extent, data: Buffer | None) -> None:
        reason = ""
        if (
            extent.disk not in range(len(self._disks))
            or not 0 <= extent.offset < extent.end <= self._sizes[extent.disk]
        ):
            reason = "the disk has no such place"
        elif extent.offset % SECTOR or extent.length % SECTOR:
            reason = "it is not a multiple of a sector"
        elif (extent.kind is ExtentKind.DATA) != (data is not None) or len(data or b"") not in (0, extent.length):
            reason = "its data are not as long as it is"
        if reason:
            where = {"disk": extent.disk, "offset": extent.offset, "length": extent.length}
            raise ExtentOutside(item=self._fuse.item, reason=reason, **where)

    def flush(self) -> int:
        """Apply what was staged, in full frames, durably; the newest frame applied.

        Raises DiskReadFailed, DiskWriteFailed, JournalFull, JournalWriteFailed: nothing that was acknowledged is
        lost, and the same call goes on when the cause is gone. Raises ReplicaPoisoned.
        """
        self._fuse.check()
        started = self._journal.started
        if started is not None and not started.undoing:
            self._apply(started, whole=True)
        return self.applied_frame

    def _apply(self, started: Epoch, *, whole: bool) -> None:
        self._applier.apply(started, self._sizes, whole=whole)
        started.applied = max(started.applied, self._staged_frame - (not whole))

    def complete(self, end: EpochEnd, frame: int) -> None:
        """Flush, and make the state a recovery point, durably. The same end again is no error.

        Raises EpochViolation, EpochUnfinished (blocks of a lapsed batch are missing), and as `flush`.
        """
        self._fuse.check()
        journal, newest = self._journal, self._journal.complete
        if journal.started is None and newest is not None and newest.end == end:
            return
        started = self._running(f"end of epoch {end.number}")
        if end.number != started.number or end.begin != started.tries[-1].digest():
            reason = f"epoch {started.number} is running"
            raise EpochViolation(item=self._fuse.item, what=f"end of epoch {end.number}", reason=reason)
        # Extents that came in the frame of the end do not make it an applied one: without its end it must come again.
        self._apply(started, whole=self._staged_frame != frame)
        missing = sum(len(blocks) for blocks in self._applier.doubtful.values())
        if missing:
            raise EpochUnfinished(item=self._fuse.item, epoch=end.number, blocks=missing)
        now = self._clock.wall_ns()
        journal.append(started, [journal.record(RecordType.COMPLETE, end.number, _completed(end, now), frame)])
        started.end, started.completed_ns, started.applied = end, now, frame

    def undo_started(self) -> None:
        """Return to the state before the started epoch; nothing if none has started. Raises as `undo_epoch`."""
        self._fuse.check()
        self._applier.forget(in_hand=True)
        undo_epoch(self._journal, self._disks, self._maps)
        self._applier.doubtful.clear()

    def drop_staged(self) -> None:
        """Forget what was staged and not applied: its stream is closed, and its frames come again in the next."""
        self._applier.forget(in_hand=False)
        self._staged_frame = 0

    # -- points ----------------------------------------------------------------------------------------------------

    def points(self) -> list[RecoveryPoint]:
        """Recovery points that can be reached, oldest first."""
        return points_of.recovery_points(self._journal)

    def needed(self, point: int) -> int:
        """Bytes that the journal needs, at most, to go to `point`. Raises PointUnknown."""
        return points_of.needed_bytes(self._journal, point)

    def go_to(self, point: int) -> None:
        """Make the disks what they were at `point`, as an epoch of its own: it can be undone by going back.

        Raises PointUnknown, UndoImpossible while an epoch runs, JournalFull before anything is written where it can
        be known, and as `flush`; the disks are then as before, or are made so by the next opening.
        """
        self._fuse.check()
        journal, complete = self._journal, self._journal.complete
        points_of.check_state(journal, point)
        if journal.started is not None or complete is None or complete.end is None:
            raise UndoImpossible(item=self._fuse.item, reason="an epoch runs (undo it first), or none is complete")
        needed, room = self.needed(point), journal.room()
        if needed > room.free:
            raise JournalFull(item=self._fuse.item, needed=needed, free=room.free)
        journal.lease(point)
        try:
            self._go_to(point, points_of.undo_begin(complete, complete.end, self._clock.wall_ns(), point))
        except ReplicaPoisoned:
            raise
        except BackhaulError:
            self.undo_started()
            raise
        finally:
            journal.give_back(point)

    def _go_to(self, point: int, begin: EpochBegin) -> None:
        changed = points_of.changed_since(self._journal, point)
        self.begin(begin)
        for extent in changed.extents(sizes=dict(enumerate(self._sizes))):
            for part, data in points_of.contents_at(self._journal, point, extent, self._sizes):
                self.stage(part, data, 0)
        self.complete(points_of.undo_end(self._journal, begin, point), 0)

    def pin(self, name: str, point: int | None = None) -> int:
        """Keep a state against thinning, durably; None: the newest, or what the disks hold before the first epoch.

        Raises PointUnknown, PinRefused, JournalFull, JournalWriteFailed, ReplicaPoisoned.
        """
        return points_of.pin(self._journal, name, point)

    def release(self, name: str) -> None:
        """End a pin, durably; one that is not there is no error. Raises as `pin`."""
        points_of.release(self._journal, name)

    def pins(self) -> dict[str, int]:
        """States that are pinned, by name."""
        return dict(self._journal.manifest.pins)

    def hold(self, held: bool) -> None:
        """Let no thinning happen (between failover and commit or cancel), durably. Raises as `pin`."""
        self._journal.swap(msgspec.structs.replace(self._journal.manifest, held=held))

    def thin(self, keep: Collection[int]) -> int:
        """Keep these points, pins, views and the newest, and drop the others; bytes freed. Nothing while held.

        Raises JournalFull, JournalWriteFailed, JournalDamaged: what was thinned before stays so; ReplicaPoisoned.
        """
        return thin(self._journal, self._maps, keep)

    def thin_to_floor(self) -> int:
        """Keep pins, views and the newest point only; bytes freed. A journal without room to merge is no error here."""
        before = self._journal.used_bytes()
        try:
            self.thin(())
        except JournalFull:
            pass  # merging needs room itself; whoever asked checks how much there is
        return max(before - self._journal.used_bytes(), 0)

    def no_points_until_complete(self) -> None:
        """By name: give up every older point, and before-images until the running epoch completes.

        Raises PinRefused while pins or views keep a state, UndoImpossible when no epoch runs or none is allowed to
        go, JournalFull, JournalWriteFailed, ReplicaPoisoned.
        """
        self._fuse.check()
        journal, started = self._journal, self._journal.started
        for name in [*journal.manifest.pins, *(f"view of {state}" for state in journal.leases)]:
            raise PinRefused(item=self._fuse.item, name=name, reason="it keeps a point that would be given up")
        if started is None or started.undoing or journal.manifest.held:
            raise UndoImpossible(item=self._fuse.item, reason="no epoch is running, or points are held")
        drop_below(journal, self._maps, started.number)

    def room(self) -> JournalRoom:
        """Room of the journal. Raises JournalUnreadable."""
        return self._journal.room()

    def journal_bytes(self) -> int:
        """Bytes the journal takes."""
        return self._journal.used_bytes()

    def view(self, point: int) -> PointView:
        """Open a point for reading, from any thread; it is kept until the view is closed. Raises PointUnknown."""
        return PointView(self._journal, self._disks, point)

    def read_at_point(self, point: int, disk: int, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer` with what `disk` held at `point`, from any thread. Raises as `view.read_at_point`."""
        read_at_point(self._journal, self._disks, point, disk, offset, buffer)

    # -- disks -----------------------------------------------------------------------------------------------------

    def save_maps(self) -> None:
        """Store the granule maps, so that less is stale after an opening. Raises JournalWriteFailed."""
        self._fuse.check()
        self._maps.save(self._journal.batch)

    def refresh(self, disk: int, granules: Collection[int] | None = None) -> int:
        """Read back stale granules (or those of the given ones) of a disk; how many are stale after it.

        Raises DiskReadFailed. Memory: 1 MiB.
        """
        known = self._maps.maps[disk]
        refresh(self.disks[disk], known, granules)
        return known.stale_count

    def doubt(self) -> None:
        """Believe no map any more, durably on return: somebody may have written the disks. Points and pins stay.

        Raises JournalWriteFailed, ReplicaPoisoned.
        """
        self._fuse.check()
        self._maps.void()

    def hand_out(self) -> None:
        """Before a disk is handed out for writing: points and pins end, maps are stale, durably on return.

        Raises PinRefused while a view is open, JournalFull, JournalWriteFailed, ReplicaPoisoned.
        """
        self._fuse.check()
        for state in self._journal.leases:
            raise PinRefused(item=self._fuse.item, name=f"view of {state}", reason="it is open")
        self._applier.forget(in_hand=True)
        self._maps.void()
        self._journal.void()
        self._applier.doubtful.clear()

    def adopt(self, descriptor: ItemDescriptor) -> None:
        """Follow a new descriptor: policy, and disks that have grown; durable on return. Call it between batches.

        Raises DisksChanged, ReplicaTooSmall, the disks' errors when one cannot grow, JournalWriteFailed.
        """
        self._fuse.check()
        grow_disks(self._item.descriptor, descriptor, self._disks)
        item = ItemFile(descriptor, self._item.key)
        try:
            self._files.replace(self._folder / "item", files_of.encode(item))
        except OSError as error:
            raise JournalWriteFailed(item=self._fuse.item, cause=error) from error
        self._item = item
        self._journal.limit_bytes = descriptor.policy.journal_bytes
        for now in descriptor.disks:
            self._maps.grow(now.index, now.size)


def _read(files: Files, path: Path) -> bytes:
    try:
        return files.read(path)
    except OSError as error:
        raise ReplicaFileDamaged(name=path.name, reason=str(error)) from error


def _completed(end: EpochEnd, completed_ns: int) -> bytes:
    return msgspec.msgpack.encode((end, completed_ns))
