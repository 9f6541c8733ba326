"""A master target as a service: process servers on one side, items and their disks on the other.

It dials the process servers it is told of (home dials out) and accepts those that dial it (through a VPN): who dials
is a setting, the protocol is the same. One process, nothing else in it; one worker per item. Control requests come
over the same port from a configuration server. A fatal error (failed sync) ends `run` with it; recovery is starting
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import msgspec
import structlog

from backhaul.disks.opening import open_disk
from backhaul.links.certificates import Expect
from backhaul.links.connection import Connection, accept_data, open_data
from backhaul.links.dialer import Address, Redial, dial_data, reconnecting
from backhaul.links.identity import UNSEALED, KeySeal, TrustVerifier
from backhaul.links.listener import data_route, listen
from backhaul.links.tls import ALPN_DATA, Credentials
from backhaul.master_target.control import Control
from backhaul.master_target.crew import Crew
from backhaul.master_target.errors import ItemUnknown, ReplicaFileDamaged, ReplicaPoisoned, StateNotStored
from backhaul.master_target.forgotten import remember
from backhaul.master_target.item import TargetItem, load_item
from backhaul.master_target.keys import SealingKeys
from backhaul.master_target.peers import RelayPeer
from backhaul.master_target.replica import Replica
from backhaul.master_target.worker import ItemWorker
from backhaul.replication import messages as m
from backhaul.replication.errors import BackhaulError, FrameMalformed
from backhaul.replication.ports import Files
from backhaul.replication.sealing import INCARNATION_LENGTH, SealingKey
from backhaul.replication.target import Target
from backhaul.replication.units import MiB
from backhaul.replication.values import ItemId, Role

WORKER_THREADS: Final = 8
"""Items applied at once: more only wait for the same disks."""

QUEUED_BYTES: Final = 512 * MiB
"""Received and not yet in hand, over all items; no connection is read above it."""

OPEN_RETRY_S: Final = 5.0
"""How often an item that could not be opened is tried again: people put disks back, nothing else does."""

P = ParamSpec("P")
T = TypeVar("T")

_log = structlog.get_logger(__name__)


class TargetConfig(msgspec.Struct, frozen=True):
    """Where a master target keeps things, listens and dials. Addresses are `host:port`.

    dial   process servers to be dialled: id -> addresses; the rest dial in
    """

    data_dir: str
    listen_host: str
    listen_port: int
    name: str
    dial: dict[str, tuple[str, ...]] = {}


class _Signer:
    """Signs with the identity of the moment, which is renewed while items live on."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    @property
    def certificate(self) -> bytes:
        return self._credentials.identity.certificate

    def sign(self, context: bytes, body: bytes) -> bytes:
        return self._credentials.identity.sign(context, body)


class MasterTarget:
    """See the module. `run` until cancelled."""

    def __init__(
        self, config: TargetConfig, credentials: Credentials, files: Files, world: Redial, seal: KeySeal = UNSEALED
    ) -> None:
        """`seal`: how the sealing keys lie in their file. Raises ReplicaFileDamaged when that is damaged."""
        self.config, self.credentials, self.files, self.world = config, credentials, files, world
        self.folder = Path(config.data_dir)
        self.workers: dict[ItemId, ItemWorker] = {}
        self.unopened: dict[ItemId, BackhaulError] = {}
        """Items that are not served, and why; tried again by itself."""
        self.peers: set[RelayPeer] = set()
        self.port = 0
        self.started_ns = world.clock.wall_ns()
        self._dialling: dict[str, asyncio.Task[None]] = {}
        self._executor = ThreadPoolExecutor(WORKER_THREADS, thread_name_prefix="apply")
        self._crew = Crew()
        self._fatal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        files.make_folder(self.items_folder)
        self._sealing = SealingKeys(files, self.folder, world.randomness, seal)
        self.target = Target(
            credentials.identity.peer.id,
            _Signer(credentials),
            TrustVerifier(lambda: credentials.identity.trust, world.clock),
            lambda: self._sealing.keys,
            world.randomness.token(INCARNATION_LENGTH),
        )
        """Who this target is, for all items."""
        self._opening = asyncio.Lock()
        """Held while an item comes or goes: a replica is never opened twice, nor while it is deleted."""
        self._renewing = asyncio.Lock()
        self._taken = asyncio.Event()
        self._control = Control(self)

    @property
    def items_folder(self) -> Path:
        """Folder with one folder per item."""
        return self.folder / "items"

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        call = functools.partial(work, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    # --- life ---------------------------------------------------------------------------------------------------

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Recover every item, then serve. Raises what is fatal, LinkUnreachable when the port is taken."""
        for name in self.files.names(self.items_folder):
            if name.startswith("."):
                await self._in_thread(shutil.rmtree, self.items_folder / name)
            else:
                await self._start_or_keep(ItemId(name))
        try:
            await self.newest_key(self.credentials.identity.certificate)
        except StateNotStored as error:  # asked for again by whoever is to have it; open streams need it not
            _log.warning("sealing_key.not_made", code=error.code, reason=error.message)
        await self._erase_keys()
        route = data_route(self._accepted, clock=self.world.clock)
        listener = await listen(self.config.listen_host, self.config.listen_port, self.credentials, {ALPN_DATA: route})
        self.port = listener.port
        for server, addresses in self.config.dial.items():
            self.dial(server, addresses)
        ready()
        opening = asyncio.create_task(self._open_again())
        try:
            await self._fatal
        finally:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
            await listener.close()
            for task in self._dialling.values():
                task.cancel()
            await asyncio.gather(*self._dialling.values(), return_exceptions=True)
            for peer in tuple(self.peers):
                peer.cut()
            await asyncio.gather(*(worker.close() for worker in self.workers.values()))
            self._executor.shutdown()
            self._crew.close()

    def _failed(self, error: BaseException) -> None:
        _log.critical("target.fatal", reason=str(error))
        if not self._fatal.done():
            self._fatal.set_exception(error)

    # --- keys ---------------------------------------------------------------------------------------------------

    async def newest_key(self, certificate: bytes) -> SealingKey:
        """The sealing key of this certificate (DER). Where it is a new one the key is made, and keys that nobody uses
        any more are erased. Raises StateNotStored.
        """
        async with self._renewing:
            renewed = not self._sealing.has_key_for(certificate)
            try:
                key = await self._in_thread(self._sealing.newest, certificate)
            except OSError as error:  # a failed sync: what a restart would find is unknown
                self._failed(error)
                raise
            if renewed:
                await self._erase_keys()
        return key

    async def _erase_keys(self) -> None:
        """What an item uses is asked in its own thread, behind any opening there; an item that cannot be asked may
        use any of them.
        """
        if self.unopened:
            return
        try:
            workers = tuple(self.workers.values())
            states = [await worker.call(lambda held: held.session.state) for worker in workers]
            await self._in_thread(self._sealing.erase_unused, {state.sealing for state in states if state.opening})
        except (ItemUnknown, StateNotStored) as error:  # the next renewal or start tries again
            _log.info("sealing_keys.not_erased", code=error.code, reason=error.message)
        except OSError as error:
            self._failed(error)
            raise

    # --- items --------------------------------------------------------------------------------------------------

    async def start_item(self, item: ItemId, make: Callable[[], None]) -> None:
        """Serve an item, if it is not served yet: `make` its folder, in a thread, and open it. Raises what `make`,
        disks and replica raise.
        """
        async with self._opening:
            if item not in self.workers:
                await self._in_thread(make)
                await self._start(item)

    async def _start(self, item: ItemId) -> None:
        """Open an item's replica (which recovers it) and serve it."""
        folder = self.items_folder / item

        def opened() -> TargetItem:
            stored = load_item(self.files, folder)
            with contextlib.ExitStack() as held:
                disks = []
                for path in stored.disk_paths:
                    disks.append(open_disk(Path(path), writable=True))
                    held.callback(disks[-1].close)
                replica = Replica.open(folder, disks, self.files, self.world.clock, self._crew)
                opened_item = TargetItem(folder, self.target, stored, replica, self.files, self.world.clock)
                held.pop_all()  # the item closes them from now on
            return opened_item

        target_item = await self._in_thread(opened)
        worker = ItemWorker(target_item, self.peers, self._executor, self._failed, self._taken.set)
        for finding in target_item.replica.findings:
            _log.warning("replica.finding", item=item, code=finding.code, reason=finding.message)
        self.workers[item] = worker
        self.unopened.pop(item, None)
        self.announce()

    async def _start_or_keep(self, item: ItemId) -> None:
        """One item whose disks or files cannot be opened keeps no other from being served."""
        try:
            await self._start(item)
        except ReplicaPoisoned:
            raise
        except BackhaulError as error:
            _log.error("item.not_opened", item=item, code=error.code, reason=error.message)
            self.unopened[item] = error
        except OSError as error:
            _log.error("item.not_opened", item=item, reason=str(error))
            self.unopened[item] = ReplicaFileDamaged(name=str(error.filename), reason=error.strerror)

    async def _open_again(self) -> None:
        """A disk comes back by itself or by people's hands; then its item is served."""
        while True:
            await asyncio.sleep(OPEN_RETRY_S)
            for item in tuple(self.unopened):
                try:
                    async with self._opening:
                        if item in self.unopened:  # neither deleted nor served meanwhile
                            await self._start_or_keep(item)
                except ReplicaPoisoned as error:
                    self._failed(error)

    async def delete_item(self, item: ItemId, *, keep_disks: bool) -> None:
        """Forget an item: points, journal and, unless they are kept, disks; not who may write it next. One that is
        gone is no error. Raises StateNotStored, and serves it on.
        """
        async with self._opening:
            worker = self.workers.pop(item, None)
            if worker is None and self.unopened.pop(item, None) is None:
                return
            if worker is not None:
                await worker.close()
            try:
                await self._in_thread(self._remove, self.items_folder / item, keep_disks)
            except StateNotStored:
                await self._start_or_keep(item)
                raise

    def _remove(self, folder: Path, keep_disks: bool) -> None:
        try:
            remember(self.files, self.folder, ItemId(folder.name), load_item(self.files, folder).state)
        except ReplicaFileDamaged as error:  # what it said can be had no more; the generation rises with the next move
            _log.warning("item.fence_unknown", item=folder.name, code=error.code, reason=error.message)
        if not keep_disks:
            for path in map(Path, _disk_paths(self.files, folder)):
                if path.is_file():  # a device is its owner's, and stays
                    self.files.remove(path)
        gone = folder.with_name(f".gone-{folder.name}")
        folder.rename(gone)  # one step makes it no item any more; what is left is removed at the next start
        self.files.sync_folder(self.items_folder)
        shutil.rmtree(gone)

    def worker(self, item: str) -> ItemWorker:
        """Raises ItemUnknown, or why its replica could not be opened."""
        if (error := self.unopened.get(ItemId(item))) is not None:
            raise error.with_traceback(None)
        try:
            return self.workers[ItemId(item)]
        except KeyError:
            raise ItemUnknown(item=item) from None

    def announce(self) -> None:
        """Tell every process server what is served here."""
        for peer in tuple(self.peers):
            peer.post(self._serves())

    def _serves(self) -> m.Message:
        return m.message(m.Serves(tuple(worker.served for worker in self.workers.values())))

    # --- links --------------------------------------------------------------------------------------------------

    def dial(self, server: str, addresses: tuple[str, ...]) -> None:
        """Keep a link to a process server from now on, at these addresses instead of earlier ones."""
        if server in self._dialling:
            self._dialling.pop(server).cancel()
        parsed = [Address.parse(address) for address in addresses]

        async def connect(address: Address) -> Connection:
            expect = Expect(Role.PROCESS_SERVER, server)
            connection = await dial_data(address, self.credentials, expect, clock=self.world.clock)
            await open_data(connection, self.config.name)
            return connection

        self._dialling[server] = asyncio.create_task(
            reconnecting(lambda: parsed, connect, self._serve_relay, self.world), name=f"dial {server}"
        )

    def hang_up(self, server: str) -> None:
        """Dial this process server no longer; one that was not dialled is no error."""
        task = self._dialling.pop(server, None)
        if task is not None:
            task.cancel()

    async def _accepted(self, connection: Connection) -> None:
        await accept_data(connection, self.config.name)
        if connection.peer.role is Role.CONFIGURATION_SERVER:
            await self._control.serve(connection)
        elif connection.peer.role is Role.PROCESS_SERVER:
            await self._serve_relay(connection)
        else:
            raise FrameMalformed(peer=connection.peer.name, reason=f"a {connection.peer.role} has no business here")

    async def _serve_relay(self, connection: Connection) -> None:
        _log.info("process_server.connected", peer=connection.peer.name)
        peer = RelayPeer(connection)
        sender = asyncio.create_task(peer.send_all(), name=f"sender to {peer.name}")
        self.peers.add(peer)
        try:
            peer.post(self._serves())
            while True:
                received = await connection.receive()
                self._route(peer, received)
                await self._room()
        finally:
            self.peers.discard(peer)
            peer.cut()
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def _room(self) -> None:
        """Wait until little enough is queued. Every batch that is taken in hand lets the readers look again."""
        while sum(worker.queued_bytes for worker in self.workers.values()) > QUEUED_BYTES:
            self._taken.clear()
            await self._taken.wait()

    def _route(self, peer: RelayPeer, received: m.Message) -> None:
        item = _item_of(received)
        worker = self.workers.get(item)
        if worker is not None:
            worker.put(peer, received)
        else:
            _log.info("message.unknown_item", peer=peer.name, item=item, type=received.type.name)


_HEADS: Final[Mapping[m.MessageType, type[Any]]] = {
    m.MessageType.ATTACH: m.Attach,
    m.MessageType.OPEN_REQUEST: m.OpenRequest,
    m.MessageType.STREAM: m.StreamHead,
}


def _item_of(received: m.Message) -> ItemId:
    """The item a relayed message is for. Raises FrameMalformed for a type that a process server must not send."""
    if received.type is m.MessageType.FRAME:
        return m.FrameHead.decode(received.head).item
    head = _HEADS.get(received.type)
    if head is None:
        raise FrameMalformed(peer="the process server", reason=f"{received.type.name} is not for a target")
    item: ItemId = m.read_head(received, head).item
    return item


def _disk_paths(files: Files, folder: Path) -> tuple[str, ...]:
    """Where an item's disks lie; none where the file that tells is damaged or gone."""
    try:
        return load_item(files, folder).disk_paths
    except (BackhaulError, OSError) as error:
        _log.warning("item.disks_unknown", folder=str(folder), reason=str(error))
        return ()
