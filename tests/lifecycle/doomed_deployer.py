"""A configuration server that kills itself before or after the n-th writing call that it makes to a site.

python -m lifecycle.doomed_deployer N WHEN --data-dir DIR --listen HOST:PORT
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from backhaul.__main__ import run_until_stopped
from backhaul.configuration_server.serving import serve
from backhaul.configuration_server.settings import parse_address
from backhaul.links.dialer import Redial
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness
from backhaul.sites.local.client import LocalSite

place = (int(sys.argv[1]), sys.argv[2])
count = 0
call = LocalSite._call


def doomed(site: LocalSite, kind: type[Any], operation: str, token: str = "", /, **arguments: Any) -> Any:
    """A call between two places for a kill, where it writes: those calls have a token."""
    global count
    count += bool(token)
    die_at(token, "before")
    answer = call(site, kind, operation, token, **arguments)
    die_at(token, "after")
    return answer


def die_at(token: str, when: str) -> None:
    """The kill, if this is its place."""
    if token and (count, when) == place:
        os.kill(os.getpid(), signal.SIGKILL)


def ready(port: int, roots: Path) -> None:
    """As the real one says it."""
    print(f"Serving on port {port}. Roots for clients: {roots}", flush=True)


if __name__ == "__main__":
    LocalSite._call = doomed  # type: ignore[method-assign]
    world = Redial(RealClock(), RealRandomness())
    data_dir, address = Path(sys.argv[4]), parse_address(sys.argv[6])
    run_until_stopped(
        serve(data_dir, address, RealFiles(), world, show_password=lambda user, password: None, ready=ready)
    )
