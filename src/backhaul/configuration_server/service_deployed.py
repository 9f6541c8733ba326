"""A deployed process server on the server itself: from what its site hands it at each boot to its service.

The boot data name the server, where it listens, who dials, its administrator and, where it is to register by itself, a
one-time token. The data folder lies on the server's first disk and the spool on its second one. Invariant: what was
set up once is not changed by a later boot, as the operator may have changed it since; the token is not kept.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import structlog

from backhaul.configuration_server.lifecycle.deploying_errors import AdministratorWrong, BootDataWrong
from backhaul.configuration_server.service_config import FILE, ServiceConfig, save_service
from backhaul.configuration_server.service_process_server import run_process_server
from backhaul.configuration_server.settings import parse_address
from backhaul.links.dialer import Redial
from backhaul.process_server.errors import RegisterFailed, RegisterUnavailable
from backhaul.process_server.register_socket import RegisterRequest, ask_register
from backhaul.process_server.run import SPOOL_AT_LEAST
from backhaul.replication.errors import UNDECODABLE
from backhaul.replication.ports import Files
from backhaul.sites.server_rules import password_matches
from backhaul.sites.values import PasswordHash

FOLDER: Final = "process-server"
"""Data folder below the first disk, where the server's commands begin: the default of `--data-dir`."""

NOTE: Final = "deployed.json"
SPOOL: Final = "relay"
SPOOL_SHARE: Final = 0.9
"""Of the second disk: its file system needs some of it."""

REGISTER_S: Final = 3600.0
"""As long as a one-time token lives."""

RETRY_S: Final = 1.0
HOPELESS: Final = frozenset(
    {
        "BH-PASSPHRASE-WRONG", "BH-PASSPHRASE-MALFORMED", "BH-TOKEN-SPENT", "BH-ENROLMENT-REFUSED",
        "BH-AUTHORITY-MISMATCH", "BH-REGISTER-MALFORMED",
    }
)  # fmt: skip
"""The same token again would be refused again, and count as a guess."""

_log = structlog.get_logger(__name__)


class Administrator(msgspec.Struct, frozen=True):
    """Who may register and configure the server on the server itself."""

    user: str
    password: PasswordHash


class BootData(msgspec.Struct, frozen=True):
    """What a server finds at its boot.

    id, name              under which it registers, and for people
    configuration_server  `host:port`, as the server reaches it or as it is called
    direct                the server dials it; else home dials the server
    token                 one-time; empty: the operator registers it
    """

    id: str
    name: str
    network: str
    port: int
    configuration_server: str
    direct: bool
    administrator: Administrator
    token: str = ""

    def __repr__(self) -> str:
        return f"BootData({self.id!r})"


class Deployed(msgspec.Struct, frozen=True):
    """What stays known of the deployment in the data folder. `direct`: the server dials home; else home dials it."""

    name: str
    administrator: Administrator
    direct: bool


@dataclass(frozen=True, slots=True)
class Place:
    """What the site says of this boot."""

    address: str
    boot: BootData
    folder: Path
    spool: Path
    spool_bytes: int


def place_of(environment: Mapping[str, str], files: Files) -> Place:
    """From the server's environment. Raises BootDataWrong."""
    try:
        boot = msgspec.json.decode(files.read(Path(environment["BACKHAUL_CUSTOM_DATA"])), type=BootData)
        room = int(int(environment["BACKHAUL_SPOOL_BYTES"]) * SPOOL_SHARE)
        return Place(
            environment["BACKHAUL_ADDRESS"],
            boot,
            Path(environment["BACKHAUL_DATA"]) / FOLDER,
            Path(environment["BACKHAUL_SPOOL"]) / SPOOL,
            max(SPOOL_AT_LEAST, room),
        )
    except KeyError as error:
        raise BootDataWrong(reason=f"{error.args[0]} is not set") from error
    except (OSError, ValueError, *UNDECODABLE) as error:
        raise BootDataWrong(reason=str(error)) from error


def set_up(place: Place, files: Files) -> None:
    """Make the folder what the boot data say, once."""
    for folder in (place.folder, place.spool):
        files.make_folder(folder)
    link = place.folder / SPOOL
    if not link.is_symlink():
        link.symlink_to(place.spool)
    if FILE in files.names(place.folder):
        return
    boot = place.boot
    files.replace(place.folder / NOTE, msgspec.json.encode(Deployed(boot.name, boot.administrator, boot.direct)))
    config = ServiceConfig(
        boot.id, place.address, boot.port, (place.address,), network=boot.network, spool_bytes=place.spool_bytes
    )
    save_service(files, place.folder, config)  # last: it makes the folder one that is set up


async def run_deployed(
    environment: Mapping[str, str],
    files: Files,
    world: Redial,
    *,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Serve until cancelled. Raises BootDataWrong, and what `run_process_server` raises."""
    os.umask(0o077)
    place = await asyncio.to_thread(place_of, environment, files)
    await asyncio.to_thread(set_up, place, files)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run_process_server(place.folder, files, world))
        if place.boot.token:
            tasks.create_task(_register_itself(place, world, pause))


async def _register_itself(place: Place, world: Redial, pause: Callable[[float], Awaitable[None]]) -> None:
    """Until it is registered, by the token or by somebody, or the token is worth nothing any more."""
    boot = place.boot
    home = parse_address(boot.configuration_server)
    request = RegisterRequest(home.host, home.port, boot.token, "", boot.name, boot.direct)
    end_ns = world.clock.monotonic_ns() + int(REGISTER_S * 1e9)
    while world.clock.monotonic_ns() < end_ns and not (place.folder / "registration.json").exists():
        try:
            await ask_register(place.folder, request)
        except RegisterUnavailable as error:
            _log.debug("server.not_waiting", reason=error.message)  # it does not listen yet, or is registered by now
        except RegisterFailed as error:
            _log.warning("server.not_registered", code=error.code, reason=error.message)
            if error.params["reason_code"] in HOPELESS:
                return
        await pause(RETRY_S)


# --- the administrator, asked for by commands on the server -----------------------------------------------------------


def deployed_in(files: Files, folder: Path) -> Deployed | None:
    """What is known of the deployment of this folder's server; None where it was not deployed. Raises BootDataWrong."""
    try:
        return msgspec.json.decode(files.read(folder / NOTE), type=Deployed)
    except FileNotFoundError:
        return None
    except UNDECODABLE as error:
        raise BootDataWrong(reason=str(error)) from error


def check_administrator(deployed: Deployed, user: str, password: str) -> None:
    """Raises AdministratorWrong. One try takes tens of milliseconds, whoever is right."""
    right = password_matches(password, deployed.administrator.password)
    if not right or user != deployed.administrator.user:
        raise AdministratorWrong(name=deployed.name)
