"""Control requests to a master target: what the configuration server decides, done once and reported.

Every request is idempotent: asked again it changes nothing twice and answers what is. Requests of one connection are
answered in order; those that touch an item take their turn in its worker.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import psutil
import structlog

from backhaul import __version__
from backhaul.disks.contract import Disk
from backhaul.disks.digests import lineage_of, map_digests, read_digests
from backhaul.disks.opening import open_disk
from backhaul.disks.raw_file import create_raw_file
from backhaul.links.connection import Connection
from backhaul.master_target.contract import RecoveryPoint
from backhaul.master_target.errors import ItemNotMade, RequestMalformed, StateNotStored
from backhaul.master_target.forgotten import first_state
from backhaul.master_target.item import StoredItem, TargetItem, store_item
from backhaul.master_target.replica import Replica
from backhaul.replication import messages as m
from backhaul.replication.control import CreateItem, DiskPath, ItemStatus, Method, PointStatus, ServerStatus
from backhaul.replication.errors import BackhaulError
from backhaul.replication.opening import make_target_key, read_descriptor
from backhaul.replication.target import check_descriptor
from backhaul.replication.units import MiB
from backhaul.replication.values import ItemDescriptor, ItemId, Role

if TYPE_CHECKING:
    from backhaul.master_target.service import MasterTarget
    from backhaul.master_target.worker import ItemWorker

_log = structlog.get_logger(__name__)
GRANULE_KEY_BYTES: Final = 32
MAX_DIGESTS: Final = 4096
"""Ranges of one request: an answer of 64 KiB. Ranges of holes cost next to nothing."""

DIGEST_BYTES: Final = 256 * MiB
"""Read back for one request, well within the time that it may take; where that is not enough, the answer is shorter
than what was asked for, and is asked for again from there on.
"""

MAX_POINTS: Final = 10_000
"""Newest points that are listed: 150 bytes each fit a message's payload."""


class Control:
    """Answers requests."""

    def __init__(self, target: MasterTarget) -> None:
        self._target = target
        self._methods: dict[Method, Callable[[dict[str, Any]], Awaitable[Any]]] = {
            Method.STATUS: self._status,
            Method.TARGET_KEY: self._target_key,
            Method.ITEM_CREATE: self._create,
            Method.ITEM_RAISE: self._raise,
            Method.ITEM_STATUS: self._item_status,
            Method.ITEM_LIST: self._item_list,
            Method.ITEM_POINTS: self._points,
            Method.ITEM_PROMOTE: self._promote,
            Method.ITEM_GO_TO: self._go_to,
            Method.ITEM_PIN: self._pin,
            Method.ITEM_RELEASE: self._release,
            Method.ITEM_HAND_OUT: self._hand_out,
            Method.ITEM_VERIFY: self._verify,
            Method.ITEM_DELETE: self._delete,
            Method.ITEM_DIGESTS: self._digests,
        }

    async def serve(self, connection: Connection) -> None:
        """Answer until the link ends."""
        while True:
            request = m.read_head(await connection.receive(), m.Request)
            await connection.send(await self._answer(request))

    async def _answer(self, request: m.Request) -> m.Message:
        try:
            method = self._methods[Method(request.method)]
            result = await method(request.params)
        except (KeyError, ValueError, TypeError, msgspec.ValidationError) as error:
            malformed = RequestMalformed(method=request.method, reason=str(error))
            return m.message(m.Response(request.id, malformed.code, malformed.plain_params()))
        except BackhaulError as error:
            _log.warning("control.refused", method=request.method, code=error.code, reason=error.message)
            return m.message(m.Response(request.id, error.code, error.plain_params()))
        return m.message(m.Response(request.id, ""), msgspec.msgpack.encode(result))

    # --- the server ---------------------------------------------------------------------------------------------

    async def _status(self, _: dict[str, Any]) -> ServerStatus:
        target = self._target
        identity = target.credentials.identity
        free, total = target.files.free_bytes(target.folder)
        memory = psutil.virtual_memory()
        return ServerStatus(
            role=Role.MASTER_TARGET,
            id=identity.peer.id,
            name=target.config.name,
            version=__version__,
            started_ns=target.started_ns,
            now_ns=target.world.clock.wall_ns(),
            cpu_percent=psutil.cpu_percent(),
            memory_total=memory.total,
            memory_available=memory.available,
            space_total=total,
            space_free=free,
            backlog_bytes=sum(worker.queued_bytes for worker in target.workers.values()),
            backlog_oldest_s=0.0,
            in_bytes_per_s=0.0,
            out_bytes_per_s=0.0,
            items=tuple(target.workers),
            peers=tuple(sorted(peer.name for peer in target.peers)),
            certificate_not_after_ns=identity.peer.expires_ns,
        )

    async def _target_key(self, _: dict[str, Any]) -> dict[str, bytes]:
        identity = self._target.credentials.identity
        key = await self._target.newest_key(identity.certificate)
        return {"key": make_target_key(identity, identity.peer.id, key)}

    # --- items --------------------------------------------------------------------------------------------------

    async def _create(self, params: dict[str, Any]) -> ItemStatus:
        wanted = msgspec.convert(params, CreateItem)
        target = self._target
        descriptor = read_descriptor(target.target.verifier, wanted.descriptor)
        check_descriptor(target.target.id, None, descriptor)
        await target.start_item(descriptor.item, lambda: self._make_item(descriptor, wanted))
        return await self._status_of(descriptor.item)

    def _make_item(self, descriptor: ItemDescriptor, wanted: CreateItem) -> None:
        """Nothing if it is there. Made beside its place, and named in one step: an item's folder is whole, whatever
        ends this half-way. Raises what disks and replica raise, ItemNotMade for the folder's files, DescriptorRefused
        for one below what was known when the item was here before.
        """
        target = self._target
        files, folder = target.files, target.items_folder / descriptor.item
        if descriptor.item in files.names(target.items_folder):
            return
        beside = folder.with_name(f".new-{descriptor.item}")
        shutil.rmtree(beside, ignore_errors=True)
        try:
            files.make_folder(beside / "disks")
            state = first_state(files, target.folder, target.target.id, descriptor, wanted.descriptor)
            paths = self._make_replica(descriptor, wanted, beside, folder)
            store_item(files, beside, StoredItem(state, paths))
            beside.rename(folder)
            files.sync_folder(target.items_folder)
        except (OSError, StateNotStored) as error:
            raise ItemNotMade(item=descriptor.item, cause=error) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _make_replica(
        self, descriptor: ItemDescriptor, wanted: CreateItem, beside: Path, folder: Path
    ) -> tuple[str, ...]:
        """Where the disks will lie once `beside` is `folder`."""
        target = self._target
        fresh = all(path is None for path in wanted.paths)
        key = target.world.randomness.token(GRANULE_KEY_BYTES)
        paths: list[str] = []
        with contextlib.ExitStack() as opened:
            disks: list[Disk] = []
            for identity, path in zip(descriptor.disks, wanted.paths, strict=True):
                name = f"{identity.index}.img"
                if path is None:
                    create_raw_file(beside / "disks" / name, identity.size)
                disks.append(open_disk(path or beside / "disks" / name, writable=True))
                opened.callback(disks[-1].close)
                paths.append(path or str(folder / "disks" / name))
            clock = target.world.clock
            Replica.create(beside, descriptor, disks, key, files=target.files, clock=clock, fresh=fresh).close()
        return tuple(paths)

    async def _raise(self, params: dict[str, Any]) -> ItemStatus:
        blob = bytes(params["descriptor"])
        item = read_descriptor(self._target.target.verifier, blob).item
        await self._worker(item).call(lambda held: held.raise_descriptor(blob))
        self._target.announce()
        return await self._status_of(item)

    async def _item_status(self, params: dict[str, Any]) -> ItemStatus:
        return await self._status_of(params["item"])

    async def _item_list(self, _: dict[str, Any]) -> list[ItemStatus]:
        return [await self._status_of(item) for item in tuple(self._target.workers)]

    async def _points(self, params: dict[str, Any]) -> list[PointStatus]:
        return await self._worker(params["item"]).call(
            lambda held: [_point(p) for p in held.replica.points()[-MAX_POINTS:]]
        )

    async def _promote(self, params: dict[str, Any]) -> ItemStatus:
        blob = bytes(params["descriptor"])
        item = read_descriptor(self._target.target.verifier, blob).item
        await self._worker(item).call(lambda held: held.promote(blob))
        self._target.announce()
        return await self._status_of(item)

    async def _go_to(self, params: dict[str, Any]) -> ItemStatus:
        point = int(params["point"])
        await self._worker(params["item"]).call(lambda held: held.go_to(point))
        return await self._status_of(params["item"])

    async def _pin(self, params: dict[str, Any]) -> ItemStatus:
        name, point = str(params["name"]), params.get("point")
        await self._worker(params["item"]).call(lambda held: held.replica.pin(name, point))
        return await self._status_of(params["item"])

    async def _release(self, params: dict[str, Any]) -> ItemStatus:
        name = str(params["name"])
        await self._worker(params["item"]).call(lambda held: held.replica.release(name))
        return await self._status_of(params["item"])

    async def _hand_out(self, params: dict[str, Any]) -> ItemStatus:
        await self._worker(params["item"]).call(lambda held: held.hand_out())
        return await self._status_of(params["item"])

    async def _verify(self, params: dict[str, Any]) -> ItemStatus:
        blob = bytes(params["descriptor"])
        item = read_descriptor(self._target.target.verifier, blob).item
        await self._worker(item).call(lambda held: held.verify(blob))
        self._target.announce()
        return await self._status_of(item)

    async def _delete(self, params: dict[str, Any]) -> dict[str, Any]:
        await self._target.delete_item(ItemId(params["item"]), keep_disks=bool(params["keep_disks"]))
        return {}

    async def _digests(self, params: dict[str, Any]) -> dict[str, Any]:
        """Ranges of 16 MiB: by the map, with what is stale read back; or, `reread`, of what the disk itself holds."""
        disk, first, count, reread = (int(params[name]) for name in ("disk", "first", "count", "reread"))
        if first < 0 or not 0 < count <= MAX_DIGESTS:
            raise ValueError(f"{count} ranges from {first} on: 1 to {MAX_DIGESTS} may be asked for")
        worker = self._worker(params["item"])
        digests = await worker.call(lambda held: _range_digests(held, disk, first, count, reread))
        return {"digests": digests, "lineage": lineage_of(worker.item.replica.key)}

    # --- views --------------------------------------------------------------------------------------------------

    def _worker(self, item: str) -> ItemWorker:
        return self._target.worker(item)

    async def _status_of(self, item: str) -> ItemStatus:
        return await self._worker(item).call(item_status)


def item_status(held: TargetItem) -> ItemStatus:
    """What the target knows of an item."""
    session, replica = held.session, held.replica
    points = replica.points()
    room = replica.room()
    return ItemStatus(
        item=held.item,
        descriptor=session.descriptor,
        fence=session.fence,
        stream_open=session.is_open,
        applied=held.applied,
        complete=replica.newest_complete,
        newest_point=_point(points[-1]) if points else None,
        points=len(points),
        pins=replica.pins(),
        promoted=session.state.promoted,
        final=session.state.final,
        started_epoch=bool(replica.tries),
        journal_bytes=room.used,
        journal_limit_bytes=room.limit,
        waiting=held.waiting.code if held.waiting else "",
        findings=tuple({"code": f.code, **f.plain_params()} for f in replica.findings),
        disks=tuple(
            DiskPath(index, path, disk.size)
            for index, (path, disk) in enumerate(zip(held.disk_paths, replica.disks, strict=True))
        ),
    )


def _range_digests(held: TargetItem, disk: int, first: int, count: int, reread: int) -> list[bytes]:
    replica = held.replica
    if not 0 <= disk < len(replica.disks):
        raise RequestMalformed(method=Method.ITEM_DIGESTS, reason=f"there is no disk {disk}")
    replica.flush()
    if reread:
        return read_digests(replica.disks[disk], replica.key, first, count, budget=DIGEST_BYTES)
    return map_digests(replica.disks[disk], replica.maps[disk], first, count, budget=DIGEST_BYTES)


def _point(point: RecoveryPoint) -> PointStatus:
    return PointStatus(
        number=point.number,
        barrier_ns=point.barrier_ns,
        kind=point.kind,
        consistency=point.consistency,
        label=point.label,
        final=point.final,
        frozen_us=point.frozen_us,
        completed_ns=point.completed_ns,
        bytes=point.bytes,
    )
