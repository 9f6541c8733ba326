"""Disks of a machine as root has them: loop devices with mounted ext4 file systems, and SQLite writing to one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from backhaul.demo.oracle import Barrier, CheckReport, check_transactions
from backhaul.demo.writers.spec import SqliteWriterSpec, write_spec
from dataplane.processes.plane import TESTS
from dataplane.processes.writers import STOP_S
from shared_mounts import shared

DATABASE = "database"


def run(*command: str) -> str:
    """A system tool that must succeed; what it printed."""
    return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout.strip()


def make_ext4(image: Path, size: int) -> None:
    """An image with an empty ext4."""
    with image.open("wb") as file:
        file.truncate(size)
    run("mkfs.ext4", "-q", "-F", str(image))


@contextlib.contextmanager
def loops(images: Sequence[Path]) -> Iterator[list[Path]]:
    """A loop device for each image."""
    devices: list[Path] = []
    try:
        for image in images:
            devices.append(Path(run("losetup", "-f", "--show", str(image))))
        yield devices
    finally:
        for device in devices:
            run("losetup", "-d", str(device))


@contextlib.contextmanager
def mounted(devices: Sequence[Path], folder: Path) -> Iterator[list[Path]]:
    """Each device mounted below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(shared(folder))
        points = []
        for device in devices:
            point = folder / f"on-{device.name}"
            point.mkdir(parents=True, exist_ok=True)
            run("mount", str(device), str(point))
            stack.callback(run, "umount", str(point))
            points.append(point)
        yield points


@contextlib.asynccontextmanager
async def committing(folder: Path, machine: str, mount: Path, seed: int) -> AsyncIterator[Path]:
    """The SQLite writer runs on `mount`; the folder of its log. It was stopped in good order at the end."""
    log = folder / "acknowledged"
    log.mkdir(parents=True, exist_ok=True)
    spec = SqliteWriterSpec(
        machine=machine,
        log=log,
        control=folder / "control.sock",
        writes_per_s=100.0,
        progress_s=0,
        seed=seed,
        database=mount / DATABASE,
    )
    write_spec(folder / "writer.json", spec)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "backhaul.demo.writers.sqlite_writer",
        str(folder / "writer.json"),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent / "src")},
    )
    try:
        assert process.stdout is not None
        assert (await process.stdout.readline()).startswith(b"ready "), "the writer did not start"
        yield log
    finally:
        process.terminate()
        async with asyncio.timeout(STOP_S):
            await process.communicate()
    assert process.returncode == 0


def check_database(log: Path, image: Path, scratch: Path, barrier: Barrier) -> CheckReport:
    """Mount a copy of the image, as a failover would, and have the oracle judge the database on it."""
    scratch.mkdir(exist_ok=True)
    copy = scratch / "copy.img"
    shutil.copyfile(image, copy)
    with loops([copy]) as devices, mounted(devices, scratch) as points:
        report = check_transactions(log, points[0] / DATABASE, barrier)
    assert report.ok, report.text()
    return report
