"""A guest in a process of its own, on disks that a test owns, started as a site would start it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from backhaul.demo.guest import ACKNOWLEDGED, BLOCKS_LOG, ENTRIES_LOG, FOUND
from backhaul.replication.units import MiB

SIZES = (8 * MiB, 4 * MiB)


class Guest:
    """One machine: its disks, its working folder, and its guest while it runs."""

    def __init__(self, folder: Path, name: str, disks: list[Path], mounts: list[Path] | None = None) -> None:
        self.work = folder / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        metadata = folder / "metadata.json"
        metadata.write_bytes(msgspec.json.encode({"instance_id": "1", "name": name, "tags": {}}))
        described = [
            {"index": index, "id": f"d{index}", "name": f"{name}-{index}", "size": SIZES[index], "path": str(path)}
            | ({"mount": str(mounts[index])} if mounts else {})
            for index, path in enumerate(disks)
        ]
        self._environment = {
            **os.environ,
            "BACKHAUL_MACHINE_ID": "5a3c0f5e-0000-4000-8000-000000000001",
            "BACKHAUL_METADATA": str(metadata),
            "BACKHAUL_ADDRESS": "127.0.0.1",
            "BACKHAUL_DISKS": msgspec.json.encode(described).decode(),
        }
        self.process: subprocess.Popen[str] | None = None

    @property
    def blocks_log(self) -> Path:
        return self.work / ACKNOWLEDGED / BLOCKS_LOG

    @property
    def entries_log(self) -> Path:
        return self.work / ACKNOWLEDGED / ENTRIES_LOG

    @property
    def found(self) -> list[Path]:
        return sorted((self.work / FOUND).iterdir())

    def start(self) -> str:
        """Start it; what it printed until it writes."""
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "backhaul.demo.guest"],
            cwd=self.work,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return self.read_until("writing as incarnation")

    def read_until(self, text: str) -> str:
        """What it prints up to a line with this text."""
        assert self.process is not None
        assert self.process.stdout is not None
        printed = ""
        for line in self.process.stdout:
            printed += line
            if text in line:
                return printed
        raise AssertionError(f"it ended without {text!r}:\n{printed}")

    def end(self, number: signal.Signals) -> int:
        """Send the signal; the exit code."""
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.send_signal(number)
        status = self.process.wait(30)
        self.process.stdout.close()
        self.process = None
        return status


def raw_disks(folder: Path) -> list[Path]:
    """Two empty disk images."""
    paths = []
    for index, size in enumerate(SIZES):
        path = folder / f"disk-{index}.img"
        with path.open("wb") as file:
            file.truncate(size)
        paths.append(path)
    return paths
