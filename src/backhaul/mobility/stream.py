"""One item's stream as its replicator uses it: open, send, ask, wait.

Invariant: frames leave in the order of their numbers; after any failure of the stream every waiter gets the same
error and nothing more is sent until `open` was called again. Runs on the agent's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from typing import Final

import structlog

from backhaul.links.errors import LinkLost
from backhaul.mobility.errors import OpeningUnanswered, TargetRefused
from backhaul.mobility.link import ProcessServerLink
from backhaul.replication import messages as m
from backhaul.replication.errors import BackhaulError, FrameGap, SpoolLost, StreamClosed, StreamError
from backhaul.replication.records import (
    Applied,
    ChunkCodec,
    Completed,
    MapAsk,
    MapPart,
    Refused,
    Reply,
    Waiting,
    encode_frame,
)
from backhaul.replication.source import NOTHING_SPOOLED, Opened, SourceSession
from backhaul.replication.values import ItemId

ANSWER_S: Final = 30.0
"""How long an opening may take: two links there and back, a signature and a stored state at the target. After it a
question is asked once more: its answer may have been lost, or the target is busy, and then one more costs little."""

_log = structlog.get_logger(__name__)


class Stream:
    """The agent's end of an item's stream; an `ItemEnd` of the link."""

    def __init__(
        self,
        session: SourceSession,
        link: ProcessServerLink,
        codec: ChunkCodec,
        completed: Callable[[Completed], None],
    ) -> None:
        """`completed` is called for every epoch that became a recovery point, in order."""
        self._session, self._link, self._codec = session, link, codec
        self._completed = completed
        self._waiters: set[asyncio.Future[None]] = set()
        self._answers: dict[int, MapPart] = {}
        self._asked: set[int] = set()
        self._answer: m.Message | None = None
        self._refusal: m.OpenRefused | None = None
        self._failure: BackhaulError | None = None
        self._attached = False
        self._renewals = 0
        self._incarnation = b""
        self._sent = NOTHING_SPOOLED
        self._throttled = False
        self.applied = 0
        self.waiting = ""
        """Code of the reason why the target holds back; empty when it does not."""
        self.sent_bytes = 0

    # --- what the link calls ------------------------------------------------------------------------------------

    @property
    def item(self) -> ItemId:
        """The item."""
        return self._session.item

    @property
    def unspooled_bytes(self) -> int:
        """Sealed bytes that the process server has not taken durably."""
        return self._session.unspooled_bytes

    def attached(self, position: m.Position) -> None:
        """See ItemEnd. While an opening waits it says that the link, or the target behind it, is another one."""
        self._attached = True
        self._renewals += 1
        self._throttled = False
        if self._session.is_open and self._failure is None:
            try:
                self._session.resume(position)
                self._sent = position.number
            except SpoolLost as error:
                self.fail(error)
        self.wake()

    def detached(self) -> None:
        """See ItemEnd."""
        self._attached = False
        self.wake()

    def received(self, message: m.Message) -> None:
        """See ItemEnd."""
        match message.type:
            case m.MessageType.OPEN_ANSWER:
                self._answer = message
            case m.MessageType.OPEN_REFUSED:
                self._refused(m.read_head(message, m.OpenRefused))
            case m.MessageType.SPOOLED:
                self._session.spooled(m.read_head(message, m.SpooledHead))
            case m.MessageType.THROTTLE:
                self._throttled = m.read_head(message, m.Throttle).on
            case _:
                self._reply(message)
        self.wake()

    def _refused(self, refusal: m.OpenRefused) -> None:
        """While an opening waits, its answer; while a stream is open, its end. Only a gap at the process server needs
        no new stream: the POSITION that follows says from where on to send again.
        """
        self._refusal = refusal
        if self._session.is_open and refusal.code != FrameGap.code:
            number = self._session.sealed_number
            self.fail(TargetRefused(item=self.item, number=number, reason_code=refusal.code, params=refusal.params))

    def _reply(self, message: m.Message) -> None:
        try:
            replies = self._session.replies(message)
        except StreamError as error:
            # Forged or replayed by what lies between: it says nothing, and the next good one still counts.
            _log.warning("reply.refused", item=self.item, code=error.code, reason=error.message)
            return
        incarnation = m.read_head(message, m.ReplyHead).incarnation
        if replies and incarnation != self._incarnation:
            self._renewals += bool(self._incarnation)
            self._incarnation = incarnation
        for reply in replies:
            self._take(reply)

    def _take(self, reply: Reply) -> None:
        if isinstance(reply, Applied | Completed):
            self.applied = max(self.applied, reply.number)
            self.waiting = ""
        if isinstance(reply, Completed):
            self._completed(reply)
        elif isinstance(reply, MapPart) and reply.number in self._asked:
            self._answers[reply.number] = reply
        elif isinstance(reply, Waiting):
            self.waiting = reply.code
        elif isinstance(reply, Refused):
            self.fail(TargetRefused(item=self.item, number=reply.number, reason_code=reply.code, params=reply.params))

    # --- what the replicator calls ------------------------------------------------------------------------------

    @property
    def opened(self) -> Opened:
        """What the target granted. Raises StreamClosed."""
        if self._session.opened is None:
            raise StreamClosed(item=self.item)
        return self._session.opened

    @property
    def failure(self) -> BackhaulError | None:
        """Why the stream ended; None while it may be used."""
        return self._failure

    def fail(self, error: BackhaulError) -> None:
        """End the stream: every waiter gets `error`."""
        if self._failure is None:
            _log.info("stream.ended", item=self.item, code=error.code, reason=error.message)
            self._failure = error
        self.wake()

    async def open(self, tracker: str) -> Opened:
        """Open a new stream; waits for the link. Raises OpeningUnanswered, OpeningForged, TargetRefused."""
        self._failure = None
        self._answers.clear()
        self._asked.clear()
        await self.until(lambda: self._attached)
        self._answer = self._refusal = None
        renewals = self._renewals
        request = self._session.request(tracker)
        self._sent, self.applied, self.waiting = NOTHING_SPOOLED, 0, ""
        try:
            await self._link.send([request])
            async with asyncio.timeout(ANSWER_S):
                await self.until(lambda: self._opening_ended(renewals))
        except (TimeoutError, LinkLost) as error:
            raise OpeningUnanswered(item=self.item, reason=str(error) or f"no answer within {ANSWER_S:g} s") from error
        self._session.answered(self._take_answer())
        self.wake()
        return self.opened

    def _opening_ended(self, renewals: int) -> bool:
        """An answer came, or none will: it went down with the link, or with a target that has connected anew."""
        answered = self._answer is not None or self._refusal is not None
        return answered or not self._attached or self._renewals != renewals

    def _take_answer(self) -> m.Message:
        if self._refusal is not None:
            refusal = self._refusal
            raise TargetRefused(item=self.item, number=0, reason_code=refusal.code, params=refusal.params)
        if self._answer is None:
            raise OpeningUnanswered(item=self.item, reason="the link or the target went before the answer")
        return self._answer

    async def send(self, plaintext: bytes) -> int:
        """Seal the frame and queue it for sending; its number. Waits for room. Raises what ended the stream."""
        await self.until(lambda: self._session.has_room)
        self._session.seal(plaintext)
        self.wake()
        return self._session.sealed_number

    async def ask(self, question: MapAsk) -> MapPart:
        """Hashes of the replica. Raises what ended the stream.

        Answers may be lost and are not repeated, so it is asked again when the link or the target was another one
        meanwhile, and when none came for long.
        """
        while True:
            number = await self.send(encode_frame(self._codec, ask=question))
            renewals = self._renewals
            self._asked.add(number)
            try:
                async with asyncio.timeout(ANSWER_S):
                    await self.until(functools.partial(self._asking_ended, number, renewals))
                if number in self._answers:
                    return self._answers.pop(number)
            except TimeoutError:
                _log.info("question.asked_again", item=self.item, disk=question.disk, first=question.first)
            finally:
                self._asked.discard(number)

    def _asking_ended(self, number: int, renewals: int) -> bool:
        return number in self._answers or self._renewals != renewals

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until `holds()`. Raises what ended the stream."""
        while True:
            if self._failure is not None:
                raise self._failure.with_traceback(None)
            if holds():
                return
            await self._change()

    async def _change(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def wake(self) -> None:
        """Let every waiter look again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    # --- sending ------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """While inside, sealed frames are sent as soon as the link takes them."""
        sender = asyncio.create_task(self._send_all(), name=f"sender of {self.item}")
        try:
            yield
        finally:
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sender

    async def _send_all(self) -> None:
        while True:
            while not self._may_send():
                await self._change()
            frames = self._session.pending(self._sent)
            self._sent += len(frames)
            try:
                await self._link.send(frames)
            except LinkLost:
                self.detached()  # POSITION of the next connection says from where on to send again
                continue
            self.sent_bytes += sum(len(frame.payload) for frame in frames)

    def _may_send(self) -> bool:
        if self._failure is not None or not self._attached or self._throttled or not self._session.is_open:
            return False
        return bool(self._session.pending(self._sent))
