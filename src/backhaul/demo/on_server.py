"""A command on a deployed server, as its administrator types it there: in its folder, its network, as its user.

Called by the demo's main thread. Secrets go in files that only that user reads and that are removed afterwards.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from backhaul.demo.errors import DemoError
from backhaul.demo.operator import Operator
from backhaul.demo.plan import CLOUD, readable_folders
from backhaul.sites.local import launcher
from backhaul.sites.values import Server

SECRETS: Final = "typed"
_LIMIT_S: Final = 60.0


def on_server(operator: Operator, server: Server, arguments: list[str], secrets: Mapping[str, str]) -> str:
    """What `backhaul ARGUMENTS` printed there; each of `secrets` is an option of it, as a file. Raises DemoError."""
    folder, uid = operator.server_folder(server), operator.plan.uid(CLOUD)
    with _typed(folder / SECRETS, secrets, uid) as files:
        command = [sys.executable, "-m", "backhaul", *arguments, *files]
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=_LIMIT_S,
            preexec_fn=becoming(operator.plan.namespace(server.network), uid),
        )
    if done.returncode != 0:
        raise DemoError(reason=f"on {server.name}, {' '.join(arguments[:2])}: {done.stdout.strip()}")
    return done.stdout


def becoming(namespace: str, uid: int | None) -> Callable[[], None] | None:
    """What a child process does to be on a server of this network, as the cloud's user; None: nothing is needed."""
    if uid is None:
        return None

    def become() -> None:
        launcher.enter_namespace(namespace)
        launcher.open_ways(list(readable_folders()))
        launcher.become_user(uid)
        os.umask(0o077)

    return become


@contextmanager
def _typed(folder: Path, secrets: Mapping[str, str], uid: int | None) -> Iterator[list[str]]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        for option, content in secrets.items():
            descriptor = os.open(folder / option, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(content)
        if uid is not None:
            for path in (folder, *folder.iterdir()):
                os.chown(path, uid, uid)
        yield [word for option in secrets for word in (f"--{option}", f"{SECRETS}/{option}")]
    finally:
        shutil.rmtree(folder)
