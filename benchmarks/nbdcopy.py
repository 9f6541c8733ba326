"""The peer: nbdcopy at the source, an nbdkit proxy on the way, nbdkit at the target, TLS with client certificates.

It is told that the target is zero, so it sends data only, and flushes at the end. It has no spool, no journal, no
end-to-end seal and no hashes.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Final

from backhaul.links.authority import Authority
from benchmarks.certificates import HOST, gnutls_folder
from benchmarks.copies import CopyFailed, process, run, tail
from benchmarks.measure import Cost, Meter

START_S: Final = 10.0
"""A server that does not listen by then is broken."""


class NbdCopy:
    """See the module; a `copies.Way`."""

    name = "nbdcopy"

    def __init__(self, authority: Authority) -> None:
        self._authority = authority

    def missing(self) -> list[str]:
        """See Way."""
        return [program for program in ("nbdcopy", "nbdkit") if shutil.which(program) is None]

    def copy(self, image: Path, folder: Path) -> tuple[Cost, Path]:
        """See Way."""
        tls, log, copy = gnutls_folder(self._authority, folder / "tls"), folder / "log", folder / "copy.img"
        with copy.open("wb") as file:
            file.truncate(image.stat().st_size)
        ports = [_free_port(), _free_port()]
        file_plugin = ["file", str(copy)]
        proxy_plugin = ["nbd", f"hostname={HOST}", f"port={ports[0]}", "tls=require", f"tls-certificates={tls}"]
        with process(_server(tls, ports[0], file_plugin), log) as target:
            _listening(target, ports[0], log)
            with process(_server(tls, ports[1], proxy_plugin), log) as proxy:
                _listening(proxy, ports[1], log)
                uri = f"nbds://{HOST}:{ports[1]}/?tls-certificates={tls}"
                meter = Meter({"proxy": proxy.pid, "target": target.pid})
                cpu = run(["nbdcopy", "--flush", "--destination-is-zero", str(image), uri], log)
                return meter.read(nbdcopy=cpu), copy


def _server(tls: Path, port: int, plugin: list[str]) -> list[str]:
    listening = ["--foreground", "--exit-with-parent", "--ipaddr", HOST, "--port", str(port)]
    return ["nbdkit", *listening, "--tls=require", f"--tls-certificates={tls}", "--tls-verify-peer", *plugin]


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as server:
        return int(server.getsockname()[1])


def _listening(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until the server takes connections: nbdkit does not say so by itself. Raises CopyFailed."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and server.poll() is None:
        try:
            socket.create_connection((HOST, port), 1).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.02)
    raise CopyFailed(f"nbdkit does not listen{tail(log)}")
