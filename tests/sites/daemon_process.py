"""A provider as a process of its own, to be killed and started again."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from backhaul.sites.local.daemon import Endpoint
from backhaul.sites.local.definition import SiteDefinition
from sites.site_world import definition

SERVE = """
import asyncio, sys
from pathlib import Path
from backhaul.sites.local.daemon import read_definition, serve
asyncio.run(serve(Path(sys.argv[1]), read_definition(Path(sys.argv[2])), "127.0.0.1:0", sys.argv[3]))
"""


class Daemon:
    """A provider in a process of its own."""

    def __init__(self, folder: Path, site: SiteDefinition | None = None, management: str = "") -> None:
        self.folder = folder
        self.management = management
        self.definition = folder.parent / "definition.json"
        self.definition.write_bytes(msgspec.json.encode(site or definition()))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Endpoint:
        """Start it; returns once it answers."""
        (self.folder / "endpoint.json").unlink(missing_ok=True)
        command = [sys.executable, "-c", SERVE, str(self.folder), str(self.definition), self.management]
        with (self.folder.parent / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        while not (self.folder / "endpoint.json").exists():
            assert self.process.poll() is None, (self.folder.parent / "daemon.log").read_text()
        return msgspec.json.decode((self.folder / "endpoint.json").read_bytes(), type=Endpoint)

    def end(self, number: signal.Signals) -> int:
        """Send the signal and wait; the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30)
