"""A configuration server that kills itself at the n-th edge of a job's step: before it, or after it and before the
workflow has noted that it ran. Jobs of items that were there when it started are not counted. 0: it dies when the
job's record is stored and its workflow is not started yet.

    python doomed_server.py N --data-dir DIR --listen HOST:PORT
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from backhaul.__main__ import run_until_stopped
from backhaul.configuration_server.jobs import JobRunner, Step
from backhaul.configuration_server.plane import ControlPlane
from backhaul.configuration_server.protecting import KINDS
from backhaul.configuration_server.serving import serve
from backhaul.configuration_server.settings import parse_address
from backhaul.links.dialer import Redial
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness

known: set[str] | None = None
edges_left = int(sys.argv[1])


def edge(item: str) -> None:
    """One edge of a step."""
    global edges_left
    assert known is not None
    if item in known:
        return
    edges_left -= 1
    if edges_left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def doomed(run: Callable[[ControlPlane, str], str | None]) -> Callable[[ControlPlane, str], str | None]:
    """The step between two edges."""

    def wrapped(plane: ControlPlane, item: str) -> str | None:
        edge(item)
        detail = run(plane, item)
        edge(item)
        return detail

    return wrapped


def never_start(runner: JobRunner, job: str, kind: str) -> None:
    """Instead of starting a job's workflow."""
    os.kill(os.getpid(), signal.SIGKILL)


def items_in(data_dir: Path) -> set[str]:
    """Items whose records were there before."""
    import sqlite3

    with sqlite3.connect(data_dir / "backhaul.db") as connection:
        return {row[0] for row in connection.execute("SELECT id FROM item")}


def ready(port: int, roots: Path) -> None:
    """As the real one says it."""
    print(f"Serving on port {port}. Roots for clients: {roots}", flush=True)


if __name__ == "__main__":
    data_dir, address = Path(sys.argv[3]), parse_address(sys.argv[5])
    known = items_in(data_dir)
    if edges_left == 0:
        JobRunner.start = never_start  # type: ignore[method-assign, assignment]
    kinds = {
        kind: tuple(Step(step.name, step.title, doomed(step.run)) for step in steps) for kind, steps in KINDS.items()
    }
    world = Redial(RealClock(), RealRandomness())
    service = serve(
        data_dir, address, RealFiles(), world, show_password=lambda user, password: None, ready=ready, kinds=kinds
    )
    run_until_stopped(service)
