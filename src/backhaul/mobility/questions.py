"""Questions of the configuration server about this machine's disks, and their answers.

Invariant: disks are read in threads of their own, never on the loop that replicates; digests only while nobody has
the disks open for writing, which is proved before and confirmed afterwards; a question that is withdrawn ends within a
chunk. An answer is kept until its question is gone, so one that was lost on the way is sent again. Event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import structlog
import zstandard

from backhaul.disks.aligned import aligned_buffer
from backhaul.disks.contract import Disk
from backhaul.disks.digests import Progress, is_of_lineage, lineage_of, map_digests, read_digests
from backhaul.disks.opening import open_disk
from backhaul.mobility.errors import GranuleKeyUnknown, QuestionUnknown, TrackerStopped
from backhaul.mobility.stopped import stopped
from backhaul.replication.control import Answer, DiskAnswer, DiskQuestion, Question, QuestionKind
from backhaul.replication.errors import BackhaulError
from backhaul.replication.maps import GranuleMap
from backhaul.replication.ports import Clock, Randomness
from backhaul.replication.units import GRANULE, MiB
from backhaul.replication.values import ItemId

MAX_QUESTIONS: Final = 8
"""Questions that are worked on; the server asks one per job, and further ones wait for the next assignment."""

AT_ONCE: Final = 2
"""Questions that read at the same time: as many as keep a disk and a core busy."""

DIGEST_BYTES: Final = 1024 * MiB
"""Read of each disk for a question about digests; where that is not enough, the answer is of the first ranges."""

MAX_RUNS: Final = 4096
"""Runs of data told of a disk; where there are more, those with the smallest gaps are told as one."""

LINK_TRIES: Final = 4
LINK_BYTES: Final = MiB // 2
"""Two MiB in all: tells a megabit from a gigabit, and takes a second on ten megabits."""

_ZSTD_LEVEL: Final = -5
"""As `ChunkCodec` compresses."""

_log = structlog.get_logger(__name__)

Sink = Callable[[bytes], Awaitable[None]]
"""Takes bytes to the configuration server, which throws them away."""


class Questions:
    """See the module."""

    def __init__(
        self,
        machine: str,
        key: Callable[[ItemId], bytes | None],
        maps: Callable[[ItemId], Mapping[int, GranuleMap]],
        clock: Clock,
        randomness: Randomness,
        sink: Sink | None = None,
    ) -> None:
        """`key`, `maps`: what is known of an item's replica that stands by; `sink` None: the link cannot be tested."""
        self._machine, self._key, self._maps = machine, key, maps
        self._clock, self._randomness, self._sink = clock, randomness, sink
        self._tasks: dict[str, tuple[asyncio.Task[None], threading.Event]] = {}
        self._answers: dict[str, Answer] = {}
        self._told: set[str] = set()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self.answered = asyncio.Event()
        """Set when there is an answer that was not told yet."""

    def take(self, questions: Sequence[Question]) -> None:
        """Work on these from now on, and on no others."""
        mine = {one.id: one for one in questions[:MAX_QUESTIONS] if one.machine == self._machine}
        for gone in self._tasks.keys() - mine.keys():
            task, stop = self._tasks.pop(gone)
            stop.set()
            task.cancel()
        self._answers = {one: answer for one, answer in self._answers.items() if one in mine}
        self._told &= mine.keys()
        for name, question in mine.items():
            if name not in self._tasks:
                stop = threading.Event()
                self._tasks[name] = (asyncio.create_task(self._work(question, stop)), stop)

    def untold(self) -> tuple[Answer, ...]:
        """Answers that were not told yet."""
        self.answered.clear()
        return tuple(answer for name, answer in self._answers.items() if name not in self._told)

    def told(self, answers: Sequence[Answer]) -> None:
        """These have reached the server."""
        self._told |= {answer.id for answer in answers}

    async def close(self) -> None:
        """End all reading."""
        tasks = [task for task, _ in self._tasks.values()]
        self.take(())
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, question: Question, stop: threading.Event) -> None:
        try:
            async with self._turns:
                answer = await self._answer(question, stop)
        except BackhaulError as error:
            _log.info("question.not_answered", kind=question.kind, code=error.code, reason=error.message)
            answer = Answer(question.id, error.code, error.plain_params() | {"message": error.message})
        except OSError as error:
            answer = Answer(question.id, BackhaulError.code, {"message": f"{error.filename}: {error.strerror}"})
        self._answers[question.id] = answer
        self.answered.set()

    async def _answer(self, question: Question, stop: threading.Event) -> Answer:
        if question.kind == QuestionKind.LINK:
            return Answer(question.id, rates=await self._test_link())
        reading = asyncio.create_task(asyncio.to_thread(self._read, question, stop))
        try:
            return await asyncio.shield(reading)
        except asyncio.CancelledError:
            await asyncio.wait({reading})  # it ends at its next chunk: nothing of it is left when this is over
            if (error := reading.exception()) is not None:
                _log.debug("question.withdrawn", reason=str(error))
            raise

    async def _test_link(self) -> tuple[float, ...]:
        if self._sink is None:
            raise QuestionUnknown(kind=QuestionKind.LINK)
        rates = []
        for _ in range(LINK_TRIES):
            body = self._randomness.token(LINK_BYTES)
            began_ns = self._clock.monotonic_ns()
            await self._sink(body)
            rates.append(_rate(LINK_BYTES, self._clock.monotonic_ns() - began_ns))
        return tuple(rates)

    # --- in threads ---------------------------------------------------------------------------------------------

    def _read(self, question: Question, stop: threading.Event) -> Answer:
        reader = _Reader(question, stop)
        match question.kind:
            case QuestionKind.DIGESTS:
                key = self._key(question.item)
                if key is None or question.lineage not in (b"", lineage_of(key)):
                    raise GranuleKeyUnknown(item=question.item)
                paths = list(dict.fromkeys(Path(disk.path) for disk in question.disks))
                with stopped(paths, self._clock, question.machine_off) as image:
                    disks = reader.digests(key, {} if question.reread else self._maps(question.item))
                    image.confirm()
            case QuestionKind.EXTENTS:
                disks = reader.extents()
            case QuestionKind.SAMPLE:
                disks = reader.samples()
            case _:
                raise QuestionUnknown(kind=question.kind[:40])
        return Answer(question.id, disks=disks, rates=reader.rates)


class _Reader:
    """One question's reading."""

    def __init__(self, question: Question, stop: threading.Event) -> None:
        self._question, self._stop = question, stop
        self._bytes = 0
        self._began_ns = time.perf_counter_ns()

    @property
    def rates(self) -> tuple[float, ...]:
        """Bytes/s, as measured; nothing where nothing was read."""
        return (_rate(self._bytes, time.perf_counter_ns() - self._began_ns),) if self._bytes else ()

    def _progress(self, count: int) -> None:
        """Raises TrackerStopped once the question is withdrawn."""
        if self._stop.is_set():
            raise TrackerStopped(bytes_read=self._bytes)
        self._bytes += count

    def digests(self, key: bytes, maps: Mapping[int, GranuleMap]) -> tuple[DiskAnswer, ...]:
        answers = []
        for asked, disk in self._opened():
            known = maps.get(asked.index)
            if known is not None and known.size == disk.size and is_of_lineage(known, lineage_of(key)):
                digests = map_digests(disk, known, asked.first, asked.count, self._progress, budget=DIGEST_BYTES)
            else:
                digests = read_digests(disk, key, asked.first, asked.count, self._progress, budget=DIGEST_BYTES)
            answers.append(DiskAnswer(asked.index, disk.size, tuple(digests)))
        return tuple(answers)

    def extents(self) -> tuple[DiskAnswer, ...]:
        return tuple(DiskAnswer(asked.index, disk.size, runs=data_runs(disk)) for asked, disk in self._opened())

    def samples(self) -> tuple[DiskAnswer, ...]:
        return tuple(_sample(asked, disk, self._question.key, self._progress) for asked, disk in self._opened())

    def _opened(self) -> Iterator[tuple[DiskQuestion, Disk]]:
        for asked in self._question.disks:
            with contextlib.closing(open_disk(Path(asked.path), writable=False)) as disk:
                yield asked, disk


def _sample(asked: DiskQuestion, disk: Disk, key: bytes, progress: Progress) -> DiskAnswer:
    """Hashes of single granules; empty for one behind the disk's end. `wire_ratio`: of what is no hole."""
    granules = GranuleMap.unknown(disk.size, key)
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
    buffer = aligned_buffer(GRANULE)
    hashes, stored, read = [], 0, 0
    for index in asked.granules:
        if not 0 <= index < granules.count:
            hashes.append(b"")
            continue
        length = min(GRANULE, disk.size - index * GRANULE)
        if next(iter(disk.data_ranges(index * GRANULE, length)), None) is None:
            hashes.append(granules.zero_hash(index))
            continue
        piece = buffer[:length]
        disk.read_into(index * GRANULE, piece)
        hashes.append(granules.hash_granule(piece))
        stored, read = stored + min(length, len(compressor.compress(piece))), read + length
        progress(length)
    return DiskAnswer(asked.index, disk.size, tuple(hashes), wire_ratio=stored / read if read else 1.0)


def data_runs(disk: Disk) -> tuple[tuple[int, int], ...]:
    """Where a disk may hold other than zeros, in granules: runs (first, count), at most MAX_RUNS of them."""
    runs: list[tuple[int, int]] = []
    for offset, length in disk.data_ranges():
        first, end = offset // GRANULE, -(-(offset + length) // GRANULE)
        if runs and first <= sum(runs[-1]):
            runs[-1] = (runs[-1][0], max(end, sum(runs[-1])) - runs[-1][0])
        else:
            runs.append((first, end - first))
    if len(runs) > MAX_RUNS:
        runs = _joined(runs)
    return tuple(runs)


def _joined(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The MAX_RUNS - 1 widest gaps stay."""
    gaps = sorted(range(1, len(runs)), key=lambda at: runs[at][0] - sum(runs[at - 1]), reverse=True)
    starts = [0, *sorted(gaps[: MAX_RUNS - 1]), len(runs)]
    return [(runs[first][0], sum(runs[end - 1]) - runs[first][0]) for first, end in itertools.pairwise(starts)]


def _rate(count: int, elapsed_ns: int) -> float:
    return count * 1e9 / max(1, elapsed_ns)
