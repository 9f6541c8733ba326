"""A machine that is written all the time: the oracle's block writer as a process, quiesced for points by a script.

async with writing(folder, "web", disks) as writer: ... plan = writer.plan ...
writer.check(images, Barrier.at_ns(point.barrier_ns))
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from backhaul.demo.oracle import Barrier, CheckReport, check
from backhaul.demo.writers.spec import BlockWriterSpec, RegionSpec, write_spec
from backhaul.replication.control import StillImagePlan
from dataplane.processes.plane import TESTS

QUIESCE = Path(__file__).with_name("quiesce.py")
"""As `backhaul.demo.writers.control`, without importing anything: on a busy machine that costs most of a second."""

QUIESCE_LIMIT_S = 10.0
"""The writer goes on by itself after it: long, since the machine of a test may be busy with others."""

STOP_S = 20.0


class Writer:
    """A writer's process with its log and its quiesce script."""

    def __init__(self, folder: Path, machine: str, disks: Sequence[Path]) -> None:
        """`folder`: for log and specification, outside the disks. Its log goes on over several writers."""
        folder.mkdir(exist_ok=True)
        self.folder, self.machine, self.disks = folder, machine, list(disks)
        self.log = folder / "acknowledged"
        self.control = folder / "control.sock"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def plan(self) -> StillImagePlan:
        """Points while it writes."""
        script = (sys.executable, "-IS", str(QUIESCE), str(self.control))
        return StillImagePlan(
            stopped=False,
            pre=(*script, "quiesce"),
            post=(*script, "resume"),
            script_limit_s=QUIESCE_LIMIT_S,
            quiesce_limit_s=QUIESCE_LIMIT_S,
        )

    async def start(self, seed: int, *, blocks: int, writes_per_s: float = 400.0) -> None:
        """Write to the first `blocks` (4 KiB) of each disk, until stopped."""
        self.log.mkdir(parents=True, exist_ok=True)
        spec = BlockWriterSpec(
            machine=self.machine,
            log=self.log,
            control=self.control,
            quiesce_limit_s=QUIESCE_LIMIT_S,
            writes_per_s=writes_per_s,
            progress_s=0,
            seed=seed,
            disks=tuple(self.disks),
            regions=tuple(RegionSpec(index, 0, blocks) for index in range(len(self.disks))),
        )
        write_spec(self.folder / "writer.json", spec)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "backhaul.demo.writers.blocks",
            str(self.folder / "writer.json"),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(TESTS.parent / "src")},
        )
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line.startswith(b"ready "), "the writer did not start"

    async def stop(self) -> None:
        """End it, and wait; nothing if it does not run."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        async with asyncio.timeout(STOP_S):
            output, _ = await self._process.communicate()
        code, self._process = self._process.returncode, None
        assert code == 0, f"the writer ended with {code}: {output!r}"

    def check(self, images: Sequence[Path], barrier: Barrier) -> CheckReport:
        """The oracle's judgement; fails the test unless it holds."""
        report = check(self.log, list(images), barrier)
        assert report.ok, report.text()
        return report


@contextlib.asynccontextmanager
async def writing(
    folder: Path, machine: str, disks: Sequence[Path], seed: int, *, blocks: int, writes_per_s: float = 400.0
) -> AsyncIterator[Writer]:
    """A writer that runs; it ends with the block at the latest."""
    writer = Writer(folder, machine, disks)
    try:
        await writer.start(seed, blocks=blocks, writes_per_s=writes_per_s)
        yield writer
    finally:
        await writer.stop()
