"""One replicated item on real files with the agent's end of its stream, without a network.

What the agent's end seals is given to `TargetItem.handle`, what that answers is opened by the agent's end again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from backhaul.disks.opening import open_disk
from backhaul.disks.raw_file import create_raw_file
from backhaul.master_target.item import StoredItem, TargetItem, load_item, store_item
from backhaul.master_target.replica import Replica
from backhaul.replication import messages as m
from backhaul.replication.ports import Clock, Files, RealClock, RealFiles
from backhaul.replication.records import ChunkCodec, MapAsk, MapLevel, Reply, encode_frame
from backhaul.replication.target import Target, TargetState
from backhaul.replication.units import MiB
from backhaul.replication.values import DiskIdentity, EpochBegin, Extent, ItemPolicy
from replication.ends import Ends, begin, data_extent, end

BLOCK = 4096


class ReplicaItem:
    """A replica in a folder, its `item`, and the agent (`source`) that sends to it."""

    def __init__(
        self,
        folder: Path,
        *,
        size: int = MiB,
        fresh: bool = True,
        policy: ItemPolicy | None = None,
        files: Files | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.folder, self.image = folder, folder / "0.img"
        self.files, self.clock = files or RealFiles(), clock or RealClock()
        self.ends = Ends()
        self.descriptor = self.ends.descriptor(disks=(DiskIdentity(0, "a", size),), policy=policy or ItemPolicy())
        folder.mkdir()
        create_raw_file(self.image, size)
        disk = open_disk(self.image, writable=True)
        key = bytes(range(32))
        files = self.files
        Replica.create(folder, self.descriptor, [disk], key, files=files, clock=self.clock, fresh=fresh).close()
        disk.close()
        store_item(files, folder, StoredItem(TargetState(self.ends.signed(self.descriptor)), (str(self.image),)))
        self.source = self.ends.source()
        self._codec = ChunkCodec()
        self.start()

    def start(self, replica: Replica | None = None) -> None:
        """Open it, as the first start and every start after a crash do; or take a `replica` that is open."""
        stored = load_item(self.files, self.folder)
        replica = replica or Replica.open(self.folder, [open_disk(self.image, writable=True)], self.files, self.clock)
        ends = self.ends
        keys = {1: ends.sealing}
        target = Target("target-1", ends.target_key, ends.trust, lambda: keys, ends.randomness.token(16))
        self.item = TargetItem(self.folder, target, stored, replica, self.files, self.clock)

    # --- the agent --------------------------------------------------------------------------------------------------

    def open(self) -> m.Message:
        """Open a stream; its header. The request must be granted."""
        answer = self.answer(self.item.handle([self.source.request("scan")]))
        assert answer is not None, "the request was granted"
        header = self.source.answered(answer)
        self.replies(self.item.handle([header]))
        return header

    @staticmethod
    def answer(out: Sequence[m.Message]) -> m.Message | None:
        """The OPEN-ANSWER among what was sent back."""
        return next((message for message in out if message.type is m.MessageType.OPEN_ANSWER), None)

    def replies(self, out: Sequence[m.Message]) -> list[Reply | m.OpenRefused]:
        """What the agent learns from it."""
        found: list[Reply | m.OpenRefused] = []
        for message in out:
            if message.type is m.MessageType.REPLY:
                found += self.source.replies(message)
            elif message.type is m.MessageType.OPEN_REFUSED:
                found.append(m.read_head(message, m.OpenRefused))
        return found

    def frame(self, *extents: Extent, data: bytes = b"", **records: Any) -> m.Message:
        """The next frame of the stream, sealed."""
        return self.source.seal(encode_frame(self._codec, extents, data, **records))

    def block(self, content: bytes, at: int = 0, **records: Any) -> m.Message:
        """A frame with one block of `content` repeated."""
        return self.frame(data_extent(at, BLOCK), data=content * BLOCK, **records)

    def ask(self) -> m.Message:
        """A frame that asks for the first range's hash."""
        return self.frame(ask=MapAsk(0, MapLevel.RANGE, 0, 1))

    def send(self, *messages: m.Message) -> list[Reply | m.OpenRefused]:
        """Give it messages as one batch; what the agent learns."""
        return self.replies(self.item.handle(messages))

    def attach(self) -> m.Message:
        """The message after which everything that may have been lost is said again."""
        return m.message(m.Attach(self.item.item))

    def begin(self, **changes: Any) -> EpochBegin:
        """The begin that is due."""
        return begin(self.item.session, **changes)

    def epoch(self, content: bytes = b"x", *, final: bool = False) -> list[Reply | m.OpenRefused]:
        """A whole epoch with one block, in the open stream."""
        begun = self.begin()
        return self.send(self.block(content, begin=begun), self.frame(end=end(begun, final=final)))

    # --- the control plane ------------------------------------------------------------------------------------------

    def signed(self, **changes: Any) -> bytes:
        """The item's descriptor, changed."""
        return self.ends.signed(msgspec.structs.replace(self.descriptor, **changes))

    def fill(self, seed: int) -> None:
        """Give the disk contents that a journal must keep before they are overwritten."""
        self.image.write_bytes(random.Random(seed).randbytes(self.image.stat().st_size))
