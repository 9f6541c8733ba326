"""The provider of a local site as a process of the demo: started, found again after a kill, ended, taken down.

A provider outlives the demo (`--keep`, `--resume`) and its machines and servers outlive the provider. Whether one runs
is told by the lock that it holds on its folder; where it answers, by the `endpoint.json` it wrote. As a program,
`python -m backhaul.demo.site_process FOLDER` serves. Called by the demo's main thread.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from backhaul.demo.errors import WaitedInVain
from backhaul.sites.local.daemon import Endpoint, read_definition, serve, take_down
from backhaul.sites.local.definition import Mode, SiteDefinition

_START_S: Final = 60.0
_END_S: Final = 20.0
_LOOK_S: Final = 0.05


class SiteProcess:
    """One site: `folder` is its own, beside it lie its definition and its log."""

    def __init__(self, folder: Path, management: str) -> None:
        """`management`: where it answers callers in the networks, `host:port`, and without namespaces everybody."""
        self.folder = folder
        self._definition = folder.with_suffix(".json")
        self._log = folder.with_suffix(".log")
        self._management = management

    def define(self, definition: SiteDefinition) -> None:
        """Write the definition, once: a site keeps the one it was made with."""
        if not self._definition.exists():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial = self._definition.with_suffix(".partial")
            partial.write_bytes(msgspec.json.encode(definition))
            partial.rename(self._definition)

    @property
    def is_defined(self) -> bool:
        """Whether there ever was such a site."""
        return self._definition.exists()

    @property
    def pid(self) -> int:
        """The running provider's; 0: none runs."""
        return lock_holder(self.folder / "provider" / "lock")

    def ensure(self) -> Endpoint:
        """The endpoint of the running provider, started if none runs. Raises WaitedInVain."""
        endpoint = self.folder / "endpoint.json"
        if not self.pid:
            endpoint.unlink(missing_ok=True)
            self._start()
        deadline = time.monotonic() + _START_S
        while not endpoint.exists():
            if time.monotonic() > deadline:
                raise WaitedInVain(what=f"The start of site {self.folder.name}", limit_s=_START_S, seen=self._last())
            time.sleep(_LOOK_S)
        return msgspec.json.decode(endpoint.read_bytes(), type=Endpoint)

    def kill(self, number: signal.Signals) -> None:
        """Send the provider a signal and see it gone. Raises WaitedInVain."""
        pid = self.pid
        if not pid:
            return
        os.kill(pid, number)
        deadline = time.monotonic() + _END_S
        while self.pid:
            if time.monotonic() > deadline:
                raise WaitedInVain(what=f"The end of site {self.folder.name}", limit_s=_END_S, seen="its lock is held")
            time.sleep(_LOOK_S)

    def take_down(self) -> None:
        """End provider, machines, servers, services, networks and mounts."""
        if self.is_defined:
            self.kill(signal.SIGTERM)
            take_down(self.folder, read_definition(self._definition))

    def _start(self) -> None:
        command = [sys.executable, "-m", "backhaul.demo.site_process", str(self.folder), self._management]
        with self._log.open("ab") as log:
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
            )

    def _last(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        return lines[-1][-300:] if lines else "its log is empty"


def lock_holder(path: Path) -> int:
    """The process that holds a lock (flock) on the file, as the kernel lists it; 0: none. Takes no lock itself."""
    try:
        wanted = path.stat()
    except FileNotFoundError:
        return 0
    device = f"{os.major(wanted.st_dev):02x}:{os.minor(wanted.st_dev):02x}:{wanted.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5] == device:
            return int(fields[4])
    return 0


def main(arguments: list[str]) -> int:
    """Serve the site of this folder until told to end."""
    folder, management = Path(arguments[0]), arguments[1]
    definition = read_definition(folder.with_suffix(".json"))
    if definition.mode is Mode.NAMESPACES:
        asyncio.run(serve(folder, definition, "127.0.0.1:0", management))
    else:
        asyncio.run(serve(folder, definition, management))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
