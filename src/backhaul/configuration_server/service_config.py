"""`service.json`: how a process server or master target of this folder is run. Written by `register`, read by `run`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from backhaul.configuration_server.errors import SettingsWrong
from backhaul.replication.errors import UNDECODABLE
from backhaul.replication.ports import Files
from backhaul.replication.units import GiB

FILE: Final = "service.json"


class ServiceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`host`: address to listen on, empty for all; `port` 0: any at the first start, kept from then on.

    advertised  hosts under which others reach it; empty: the one it listens on
    network     virtual network it serves; empty at home
    """

    name: str
    host: str = ""
    port: int = 9443
    advertised: tuple[str, ...] = ()
    network: str = ""
    spool_bytes: int = 64 * GiB

    def addresses(self, port: int) -> tuple[str, ...]:
        """`host:port` of each."""
        hosts = self.advertised or (self.host or "127.0.0.1",)
        return tuple(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts)


def load_service(files: Files, folder: Path) -> ServiceConfig:
    """Raises SettingsWrong; FileNotFoundError where there is none."""
    try:
        return msgspec.json.decode(files.read(folder / FILE), type=ServiceConfig)
    except UNDECODABLE as error:
        raise SettingsWrong(folder=folder, reason=str(error)) from error


def save_service(files: Files, folder: Path, config: ServiceConfig) -> None:
    """Durably."""
    files.replace(folder / FILE, msgspec.json.encode(config))
