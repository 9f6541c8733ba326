"""The relay: who may send what to whom. Pure: events in, commands out, no I/O and no clock.

Invariants:
- A frame is stored only from the agent the target granted the stream to, under exactly that fence, next number only.
- SPOOLED is said, and a frame forwarded, only after the spool reported it durable.
- What is given up is told: the agent hears a POSITION that went back, and opens a new stream.
The fence check here is an optimisation; the target is the authority. Called from the event loop only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import structlog

from backhaul.process_server.errors import (
    ConnectionRefused,
    ConnectionReplaced,
    ProcessServerError,
    SpoolItemsFull,
    StreamNotGranted,
    TargetNotConnected,
)
from backhaul.process_server.events import (
    Close,
    Command,
    Connected,
    Control,
    Disconnected,
    Dropped,
    Event,
    Forget,
    Forward,
    Free,
    Measured,
    Purge,
    Received,
    Send,
    SpaceReturned,
    Store,
    Stored,
    StoreFailed,
    Wake,
)
from backhaul.process_server.index import Backlog
from backhaul.process_server.items import NOTHING, Item, Peer
from backhaul.process_server.records import RecordKind
from backhaul.process_server.spool import SpooledItem, frame_entry, grant_entry
from backhaul.process_server.throttle import Throttle, ThrottleLimits
from backhaul.replication import messages as m
from backhaul.replication.errors import BackhaulError, FenceStale, FrameGap, FrameMalformed
from backhaul.replication.messages import Message, MessageType
from backhaul.replication.units import BATCH_BYTES, MAX_OPENING
from backhaul.replication.values import Fence, ItemId, Role

MAX_ITEMS: Final = 4096
"""Items of one process server: bounds the index and the beginning of each segment (half a megabyte)."""

MAX_ATTACHED: Final = 256
"""Items of one agent; an agent outside the machines (QEMU) serves many, an agent inside serves one."""

MAX_CONNECTIONS: Final = 1024
"""Peers at once."""

MAX_TOLD: Final = 1024
"""Refusals remembered per peer; one that needs more names items that are not its own, and is cut off."""

WINDOW_BYTES: Final = 2 * BATCH_BYTES
"""Forwarded and not yet applied, per item: a target applies one batch while the next arrives."""

_log = structlog.get_logger(__name__)


class Relay:
    """The engine. `handle` takes one event; `take` says what a target gets next."""

    def __init__(self, name: str, limits: ThrottleLimits, recovered: Iterable[SpooledItem] = ()) -> None:
        self.name = name
        self.items: dict[ItemId, Item] = {}
        self.peers: dict[int, Peer] = {}
        self.throttle = Throttle(limits)
        self.blocked: BackhaulError | None = None
        """Why the spool cannot be written; None while it can."""
        self._named: dict[tuple[Role, str], int] = {}
        self._ready: dict[int, dict[ItemId, None]] = {}
        self._out: list[Command] = []
        for one in recovered:
            self.items[one.item] = _restored(one)

    def handle(self, event: Event) -> list[Command]:
        """What follows from the event, in order."""
        match event:
            case Received():
                self._received(event)
            case Stored():
                self._stored(event)
            case Connected():
                self._connected(event)
            case Disconnected():
                self._gone(event.connection)
            case StoreFailed():
                self._store_failed(event)
            case SpaceReturned():
                self._space_returned()
            case Dropped():
                self._dropped(event)
            case Measured():
                self._measured(event)
        out, self._out = self._out, []
        return out

    def take(self, connection: int, limit_bytes: int) -> Forward | None:
        """The next records for a target, of its items in turn; at least one, and more while below `limit_bytes`."""
        ready = self._ready.get(connection, {})
        while ready:
            name = next(iter(ready))
            del ready[name]
            forward = self._next_of(self.items[name], connection, limit_bytes)
            if forward is not None:
                ready[name] = None  # to the end: every item gets its turn
                return forward
        return None

    def is_current(self, forward: Forward) -> bool:
        """Whether what was taken is still to be sent: neither closed, dropped nor rewound meanwhile."""
        item = self.items.get(forward.item)
        return item is not None and item.turn == forward.turn

    # Connections

    def _connected(self, event: Connected) -> None:
        if event.role is Role.PROCESS_SERVER or len(self.peers) >= MAX_CONNECTIONS:
            reason = f"a {event.role} is not served here, or {MAX_CONNECTIONS} peers are connected already"
            self._out.append(Close(event.connection, ConnectionRefused(peer=event.id, reason=reason)))
            return
        peer = Peer(event.connection, event.role, event.id)
        if event.role is not Role.CONFIGURATION_SERVER:
            old = self._named.get((event.role, event.id))
            if old is not None:
                peer.replaced = self.peers[old].replaced + 1
                _log.warning("connection.replaced", peer=event.id, role=event.role, times=peer.replaced)
                self._close(old, ConnectionReplaced(peer=event.id))
            self._named[event.role, event.id] = event.connection
        self.peers[event.connection] = peer

    def _close(self, connection: int, reason: BackhaulError) -> None:
        self._gone(connection)
        self._out.append(Close(connection, reason))

    def _gone(self, connection: int) -> None:
        peer = self.peers.pop(connection, None)
        if peer is None:
            return
        if self._named.get((peer.role, peer.id)) == connection:
            del self._named[peer.role, peer.id]
        self._ready.pop(connection, None)
        for name in peer.items:
            item = self.items.get(name)
            if item is None:
                continue
            if item.attached.get(peer.id) == connection:
                del item.attached[peer.id]
                item.asking.discard(peer.id)
            if item.target == connection:
                item.target = item.served = None
                item.rewind()

    def _received(self, event: Received) -> None:
        peer = self.peers.get(event.connection)
        if peer is None:
            return  # it was closed here; what was still on the way means nothing
        try:
            handler = _HANDLERS.get((peer.role, event.message.type))
            if handler is None:
                raise FrameMalformed(peer=peer.id, reason=f"a {peer.role} may not send {event.message.type.name}")
            handler(self, peer, event.message)
        except (FrameMalformed, ProcessServerError) as error:
            _log.warning("connection.closed", peer=peer.id, code=error.code, reason=error.message)
            self._close(peer.connection, error)

    def _item(self, name: ItemId) -> Item:
        """The item, made when it is new. Raises SpoolItemsFull, FrameMalformed."""
        item = self.items.get(name)
        if item is None:
            if len(name) != 32 or set(name) - set("0123456789abcdef"):
                raise FrameMalformed(peer="the peer", reason=f"{name!r:.50} is no item id")
            if len(self.items) >= MAX_ITEMS:
                self._evict()
            item = self.items[name] = Item(name)
        return item

    def _evict(self) -> None:
        idle = next((item for item in self.items.values() if item.idle), None)
        if idle is None:
            raise SpoolItemsFull(folder=self.name, limit=MAX_ITEMS)
        del self.items[idle.name]
        self._out.append(Forget(idle.name))

    # From agents

    def _attach(self, peer: Peer, message: Message) -> None:
        item = self._item(m.read_head(message, m.Attach).item)
        if len(peer.items) >= MAX_ATTACHED and item.name not in peer.items:
            raise ConnectionRefused(peer=peer.id, reason=f"it attached more than {MAX_ATTACHED} items")
        item.attached[peer.id] = peer.connection
        peer.items.add(item.name)
        peer.told = {told for told in peer.told if told[0] != item.name}
        self._tell_position(item, peer.id)
        if self.blocked is not None:
            self._send(peer.connection, m.Throttle(item.name, True, self.blocked.message))
        elif item.throttled and item.agent == peer.id:
            self._send(peer.connection, m.Throttle(item.name, True, "the spool is short of space"))
        if item.target is not None and item.agent == peer.id:
            self._send(item.target, m.Attach(item.name))

    def _open_request(self, peer: Peer, message: Message) -> None:
        item = self.items.get(m.read_head(message, m.OpenRequest).item)
        if len(message.payload) > MAX_OPENING:
            raise FrameMalformed(peer=peer.id, reason="an opening message is over the bounds")
        if item is None or item.attached.get(peer.id) != peer.connection:
            raise FrameMalformed(peer=peer.id, reason="OPEN_REQUEST for an item that it did not attach")
        item.asking.add(peer.id)
        if item.target is None:
            self._refuse(peer, item.name, TargetNotConnected(item=item.name), once=False)
        else:
            self._out.append(Send(item.target, message))

    def _stream(self, peer: Peer, message: Message) -> None:
        head = m.read_head(message, m.StreamHead)
        if len(message.payload) > MAX_OPENING:
            raise FrameMalformed(peer=peer.id, reason="an opening message is over the bounds")
        self._append(peer, m.FrameHead(head.item, head.fence, 0), message)

    def _frame(self, peer: Peer, message: Message) -> None:
        head = m.FrameHead.decode(message.head)
        if head.number == 0:
            raise FrameMalformed(peer=peer.id, reason="frames count from 1")
        self._append(peer, head, message)

    def _append(self, peer: Peer, head: m.FrameHead, message: Message) -> None:
        item = self.items.get(head.item)
        if item is None or item.attached.get(peer.id) != peer.connection or item.agent != peer.id:
            self._refuse(peer, head.item, StreamNotGranted(item=head.item, agent=peer.id))
        elif head.fence != item.fence:
            self._refuse(peer, item.name, FenceStale(item=item.name, fence=str(head.fence), accepted=str(item.fence)))
        elif head.number <= item.spooled:
            self._send(peer.connection, m.SpooledHead(item.name, head.fence.stream, item.spooled))
        elif head.number <= item.accepted or self.blocked is not None:
            pass  # being stored, or not storable: SPOOLED or POSITION will follow
        elif head.number != item.accepted + 1:
            gap = FrameGap(item=item.name, expected=item.accepted + 1, number=head.number)
            if self._refuse(peer, item.name, gap):
                self._tell_position(item, peer.id)
        else:
            item.accepted = head.number
            item.backlog.append(len(message.payload))
            if peer.told:
                peer.told.discard((item.name, FrameGap.code))
            self._out.append(Store(frame_entry(item.name, head.fence, head.number, message.payload, head.flags)))

    # From targets

    def _serves(self, peer: Peer, message: Message) -> None:
        for served in m.read_head(message, m.Serves).items:
            item = self._item(served.item)
            if item.target not in (None, peer.connection) and item.served is not None and served.fence < item.served:
                _log.warning("target.outranked", item=item.name, target=peer.id, fence=str(served.fence))
                continue
            self._serve(peer, item, served)

    def _serve(self, peer: Peer, item: Item, served: m.Served) -> None:
        applied = served.applied or NOTHING  # 0 may mean that not even the header arrived: it is sent again
        changed = item.target != peer.connection or item.served != served.fence
        item.target, item.served = peer.connection, served.fence
        peer.items.add(item.name)
        if item.fence is None or served.fence > item.fence or (served.fence == item.fence and not item.agent):
            self._grant(item, served.fence, served.agent, applied)
        elif served.fence == item.fence:
            self._free(item, applied)
        if changed:
            item.rewind()
            if item.source is not None:
                self._send(peer.connection, m.Attach(item.name))
            for agent in sorted(item.attached):
                if agent in item.asking or agent != item.agent or item.spooled == NOTHING:
                    self._tell_position(item, agent)  # it waits for a target
        self._wake(item)

    def _answer(self, peer: Peer, message: Message) -> None:
        head = m.read_head(message, m.OpenAnswer)
        item = self.items.get(head.item)
        if item is None or item.target != peer.connection:
            _log.warning("answer.ignored", item=head.item, target=peer.id)
        elif item.fence is not None and head.fence < item.fence:
            stale = FenceStale(item=item.name, fence=str(head.fence), accepted=str(item.fence))
            self._refuse_opening(item, m.OpenRefused(item.name, stale.code, stale.params))
        elif head.fence == item.fence and item.answer is None and item.agent == head.agent:
            self._relay_answer(item, message)
        else:
            item.served = head.fence
            self._grant(item, head.fence, head.agent, NOTHING)
            item.answer = message

    def _refused(self, peer: Peer, message: Message) -> None:
        refused = m.read_head(message, m.OpenRefused)
        item = self.items.get(refused.item)
        if item is not None and item.target == peer.connection:
            self._refuse_opening(item, refused)

    def _reply(self, peer: Peer, message: Message) -> None:
        head = m.read_head(message, m.ReplyHead)
        item = self.items.get(head.item)
        if item is None or item.target != peer.connection or item.fence is None or item.source is None:
            return  # nobody is there; the target repeats its newest state when the agent attaches
        if head.stream == item.fence.stream:
            self._out.append(Send(item.source, message))

    def _applied(self, peer: Peer, message: Message) -> None:
        head = m.read_head(message, m.AppliedHead)
        item = self.items.get(head.item)
        if item is None or item.target != peer.connection or item.fence is None:
            return
        if item.served == item.fence and head.stream == item.fence.stream:
            self._free(item, head.number)
            self._wake(item)

    def _discard(self, peer: Peer, message: Message) -> None:
        head = m.read_head(message, m.Discard)
        item = self.items.get(head.item)
        if item is None or item.target != peer.connection:
            return
        if item.fence is None or head.fence > item.fence:
            self._grant(item, head.fence, "", NOTHING)

    def _grant(self, item: Item, fence: Fence, agent: str, applied: int) -> None:
        """From now on only `agent` may send, under `fence`; lower streams are forgotten here and in the spool."""
        item.start(fence, agent, applied)
        self._out.append(Purge(item.name))
        self._out.append(Store(grant_entry(item.name, fence, agent, applied)))

    def _free(self, item: Item, number: int) -> None:
        if item.fence is not None and number > item.applied:
            item.free(number)
            self._out.append(Free(item.name, item.fence, number))

    def _control(self, peer: Peer, message: Message) -> None:
        self._out.append(Control(peer.connection, m.read_head(message, m.Request)))

    # From the spool

    def _stored(self, event: Stored) -> None:
        for name, (fence, number) in event.positions.items():
            item = self.items.get(name)
            if item is None or item.fence != fence:
                continue
            if item.answer is not None:
                answer, item.answer = item.answer, None
                self._relay_answer(item, answer)
            if number > item.spooled:
                item.spooled = number
                if item.source is not None:
                    self._send(item.source, m.SpooledHead(name, fence.stream, number))
                self._wake(item)
            if number < min(event.asked.get(name, NOTHING), item.accepted):
                self._go_back(item, number)

    def _go_back(self, item: Item, position: int) -> None:
        item.cut(position)
        self._out.append(Purge(item.name))
        self._tell_position(item, item.agent)

    def _dropped(self, event: Dropped) -> None:
        for name, reason in event.items.items():
            item = self.items.get(name)
            if item is not None:
                _log.warning("spool.dropped", item=name, reason=reason, from_number=item.applied + 1)
                item.rewind()
                self._go_back(item, item.applied)

    def _store_failed(self, event: StoreFailed) -> None:
        _log.error("spool.blocked", reason=event.error.message)
        first, self.blocked = self.blocked is None, event.error
        for name in {entry.item for entry in event.entries}:
            item = self.items.get(name)
            if item is not None:
                item.cut(item.spooled)
        for entry in event.entries:
            item = self.items.get(entry.item)
            if entry.kind is RecordKind.GRANT and item is not None and item.fence == entry.fence:
                item.agent, item.answer = "", None  # not durable, so nobody was told: the agent asks again
                self._refuse_opening(item, m.OpenRefused(item.name, event.error.code, event.error.plain_params()))
        for item in self.items.values() if first else ():
            for agent, connection in item.attached.items():
                self._send(connection, m.Throttle(item.name, True, event.error.message))
                self._tell_position(item, agent)

    def _space_returned(self) -> None:
        self.blocked = None
        for item in self.items.values():
            for agent, connection in item.attached.items():
                if not (item.throttled and agent == item.agent):
                    self._send(connection, m.Throttle(item.name, False, ""))
                self._tell_position(item, agent)

    def _measured(self, event: Measured) -> None:
        stopped = frozenset(name for name, item in self.items.items() if item.throttled)
        free = event.space.free_share
        if not stopped and not self.throttle.short and free >= self.throttle.limits.throttle_below:
            return
        backlogs = {name: item.backlog.bytes for name, item in self.items.items()}
        wanted = self.throttle.decide(free, backlogs, stopped)
        for name in sorted(stopped ^ wanted):
            item = self.items[name]
            item.throttled = name in wanted
            if item.source is not None and self.blocked is None:
                reason = "the spool is short of space" if item.throttled else ""
                self._send(item.source, m.Throttle(name, item.throttled, reason))

    # Telling

    def _send(self, connection: int, head: m.Head) -> None:
        self._out.append(Send(connection, m.message(head)))

    def _tell_position(self, item: Item, agent: str) -> None:
        connection = item.attached.get(agent)
        if connection is None:
            return
        granted = item.agent == agent and item.answer is None
        fence, number = (item.fence, item.spooled) if granted else (None, NOTHING)
        self._send(connection, m.Position(item.name, fence, number, item.target is not None))

    def _refuse(self, peer: Peer, item: ItemId, error: BackhaulError, *, once: bool = True) -> bool:
        """Tell the sender that nothing was stored; whether it was told now. Raises ConnectionRefused."""
        if once and (item, error.code) in peer.told:
            return False
        if len(peer.told) >= MAX_TOLD:
            raise ConnectionRefused(peer=peer.id, reason="it sends for items that are not its own")
        if once:
            peer.told.add((item, error.code))
        self._send(peer.connection, m.OpenRefused(item, error.code, error.plain_params()))
        return True

    def _refuse_opening(self, item: Item, refused: m.OpenRefused) -> None:
        for agent in sorted(item.asking or {item.agent}):
            if agent in item.attached:
                self._send(item.attached[agent], refused)
        item.asking.clear()

    def _relay_answer(self, item: Item, answer: Message) -> None:
        item.asking.discard(item.agent)
        if item.source is not None:
            self._out.append(Send(item.source, answer))

    # Forwarding

    def _wake(self, item: Item) -> None:
        if item.target is not None and item.served == item.fence and item.forwarded < item.spooled:
            self._ready.setdefault(item.target, {})[item.name] = None
            self._out.append(Wake(item.target))

    def _next_of(self, item: Item, connection: int, limit_bytes: int) -> Forward | None:
        if item.target != connection or item.fence is None or item.served != item.fence:
            return None
        first = max(item.forwarded + 1, item.backlog.first)
        count = size = 0
        while first + count <= item.spooled and item.in_flight_bytes + size < WINDOW_BYTES:
            following = item.backlog.size(first + count)
            if count and size + following > limit_bytes:
                break
            count, size = count + 1, size + following
        if not count:
            return None
        item.forwarded = first + count - 1
        item.in_flight_bytes += size
        return Forward(item.name, item.fence, first, count, size, item.turn)


def _restored(one: SpooledItem) -> Item:
    item = Item(one.item, one.fence, one.agent, one.last, one.last, one.applied, one.applied)
    item.backlog = Backlog(one.last + 1 - len(one.lengths))
    for length in one.lengths:
        item.backlog.append(length)
    return item


_Handler = Callable[[Relay, Peer, Message], None]
_AGENT, _TARGET, _CONTROL = Role.AGENT, Role.MASTER_TARGET, Role.CONFIGURATION_SERVER
_HANDLERS: Final[dict[tuple[Role, MessageType], _Handler]] = {
    (_AGENT, MessageType.ATTACH): Relay._attach,
    (_AGENT, MessageType.OPEN_REQUEST): Relay._open_request,
    (_AGENT, MessageType.STREAM): Relay._stream,
    (_AGENT, MessageType.FRAME): Relay._frame,
    (_TARGET, MessageType.SERVES): Relay._serves,
    (_TARGET, MessageType.OPEN_ANSWER): Relay._answer,
    (_TARGET, MessageType.OPEN_REFUSED): Relay._refused,
    (_TARGET, MessageType.REPLY): Relay._reply,
    (_TARGET, MessageType.APPLIED): Relay._applied,
    (_TARGET, MessageType.DISCARD): Relay._discard,
    (_CONTROL, MessageType.REQUEST): Relay._control,
}
