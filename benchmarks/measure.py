"""What a copy costs: wall time, CPU seconds of its processes and their children, bytes on loopback; and whether it is
a copy at all.

CPU is read from the kernel's own counts per process before and after, so what a service used to start is left out,
and what the kernel does in its own threads (writeback) is counted for nobody.
"""

from __future__ import annotations

import os
import platform
import ssl
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from backhaul.replication.units import MiB

DEVICES: Final = Path("/proc/self/net/dev")
"""Counters of this process' own network namespace, unlike those in /sys."""


class WrongCopy(Exception):
    """A copy differs from its image."""


@dataclass(frozen=True)
class Cost:
    """What one copy took, CPU by process. `loopback_bytes` includes the heads of TCP and IP, and what others sent."""

    wall_s: float
    cpu: dict[str, float]
    loopback_bytes: int

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all processes."""
        return sum(self.cpu.values())

    def __str__(self) -> str:
        each = ", ".join(f"{name} {seconds:.2f}" for name, seconds in self.cpu.items())
        bytes_sent = f"{self.loopback_bytes / MiB:.0f} MiB on loopback"
        return f"{self.wall_s:7.2f} s {self.cpu_s:7.2f} CPU s {bytes_sent:>22}  ({each})"


def median(costs: Sequence[Cost]) -> Cost:
    """The medians, each of its own."""
    return Cost(
        statistics.median(cost.wall_s for cost in costs),
        {name: statistics.median(cost.cpu[name] for cost in costs) for name in costs[0].cpu},
        int(statistics.median(cost.loopback_bytes for cost in costs)),
    )


class Meter:
    """Measures from its making, or `restart`, to `read`."""

    def __init__(self, processes: Mapping[str, int]) -> None:
        """`processes`: name and id of those that live before and after; others are given to `read`."""
        self._processes = {name: psutil.Process(id) for name, id in processes.items()}
        self.restart()

    def restart(self) -> None:
        """Begin here."""
        self._bytes = _loopback_bytes()
        self._cpu = self._cpu_now()
        self._began = time.monotonic()

    def read(self, **ended_s: float) -> Cost:
        """`ended_s`: CPU seconds of processes that began and ended meanwhile, by name."""
        wall, now = time.monotonic() - self._began, self._cpu_now()
        cpu = {name: now[name] - before for name, before in self._cpu.items()}
        return Cost(wall, ended_s | cpu, _loopback_bytes() - self._bytes)

    def _cpu_now(self) -> dict[str, float]:
        return {name: _cpu_seconds(process) for name, process in self._processes.items()}


def _loopback_bytes() -> int:
    for line in DEVICES.read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    return 0


def _cpu_seconds(process: psutil.Process) -> float:
    family = [process, *process.children(recursive=True)]
    times = [one.cpu_times() for one in family]
    return sum(one.user + one.system + one.children_user + one.children_system for one in times)


def check_same(image: Path, copy: Path) -> None:
    """Raises WrongCopy unless the two have the same bytes."""
    if image.stat().st_size != copy.stat().st_size:
        raise WrongCopy(f"{copy} has {copy.stat().st_size} bytes, not {image.stat().st_size}")
    with image.open("rb", buffering=0) as one, copy.open("rb", buffering=0) as other:
        offset = 0
        while left := one.read(MiB):
            if left != other.read(len(left)):
                raise WrongCopy(f"{copy} differs from {image} within the MiB at {offset}")
            offset += len(left)


def machine() -> str:
    """The facts a figure depends on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor() or "unknown processor",
    )
    memory = psutil.virtual_memory().total / MiB
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} CPUs ({model}), {memory:.0f} MiB of memory, Linux {platform.release()}, "
        f"Python {platform.python_version()}, {ssl.OPENSSL_VERSION}, load {load:.1f} before"
    )
