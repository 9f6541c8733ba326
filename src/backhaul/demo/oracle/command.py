"""What `backhaul demo check` does, without the command line around it.

Called by the CLI from its main thread; prints nothing itself.
"""

from __future__ import annotations

from pathlib import Path

from backhaul.demo.oracle.barrier import Barrier
from backhaul.demo.oracle.checker import check
from backhaul.demo.oracle.report import CheckReport


def check_command(log: Path, disks: list[Path], barrier_ns: int | None, final: bool) -> CheckReport:
    """Judge the disks (in the machine's order) against the log; `final` demands everything that was acknowledged,
    `barrier_ns` (writers' wall clock) everything acknowledged before it. `final` includes `barrier_ns`.

    Raises OracleError. `CheckReport.text()` renders, `CheckReport.ok` decides the exit code.
    """
    if final:
        barrier = Barrier.final()
    elif barrier_ns is not None:
        barrier = Barrier.at_ns(barrier_ns)
    else:
        barrier = Barrier.none()
    return check(log, list(disks), barrier)
