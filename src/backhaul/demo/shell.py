"""A shell where an operator of the demo would sit: at home, or on a server in the cloud as its administrator.

`backhaul demo shell home` and `backhaul demo shell SERVER`. Both have `backhaul` on their PATH; the one at home is
logged in, the one on a server is in that server's folder and network, as the cloud's user. CONFIGURATION_SERVER holds
what to register with. Replaces this process, after all that could go wrong.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from backhaul.client.profile import VARIABLE
from backhaul.demo.errors import DemoFolderWrong, PlaceUnknown
from backhaul.demo.on_server import becoming
from backhaul.demo.operator import Operator, operating
from backhaul.demo.plan import CLOUD, CONTROL, HOME, Plan
from backhaul.demo.progress import Progress
from backhaul.sites.local import launcher

DESK: Final = "desk"
"""The operator's own folder at home, for files of the moment."""


def open_shell(folder: Path, place: str, command: str = "") -> None:
    """Become the shell; or only run `command` there. Raises DemoFolderWrong, PlaceUnknown, DemoError's kinds."""
    progress = Progress(folder.resolve(), as_root=False)
    if not progress.exists:
        raise DemoFolderWrong(folder=folder, reason="it holds no demo")
    progress.load()
    plan = Plan(folder.resolve(), progress.noted.as_root)
    with operating(plan) as operator:
        operator.ensure_sites()
        where, become = _at_home(plan) if place == HOME else _on_server(operator, place)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
        "HOME": str(where),
        "PS1": f"{HOME if place == HOME else CLOUD}$ ",
        "CONFIGURATION_SERVER": plan.configuration_server,
    }
    environment.pop(VARIABLE, None)
    if place == HOME:
        environment[VARIABLE] = str(plan.folder / "profile.json")
    words = ["bash", "--norc", *(["-euo", "pipefail", "-c", command] if command else ["-i"])]
    become()
    os.chdir(where)
    os.execvpe(words[0], words, environment)  # noqa: S606 -- the operator's own shell


def _at_home(plan: Plan) -> tuple[Path, Callable[[], None]]:
    desk = plan.folder / DESK
    desk.mkdir(mode=0o700, exist_ok=True)
    namespace = plan.namespace(CONTROL)
    return desk, lambda: launcher.enter_namespace(namespace) if namespace else None


def _on_server(operator: Operator, name: str) -> tuple[Path, Callable[[], None]]:
    servers = {server.name: server for server in operator.site(CLOUD).servers()}
    if name not in servers:
        raise PlaceUnknown(place=name, places=", ".join([HOME, *servers]))
    server = servers[name]
    become = becoming(operator.plan.namespace(server.network), operator.plan.uid(CLOUD))
    return operator.server_folder(server), become or (lambda: None)
