"""Asks for what a registration needs and was not given; what is typed wrong is asked for again.

Values that have a usual one are asked for at a terminal only: a script that leaves them out means the usual one.
Secrets are not echoed, and are asked for when they are needed, not before.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import typer

from backhaul.cli.secrets import secret
from backhaul.replication.errors import BackhaulError
from backhaul.replication.ports import RealFiles

if TYPE_CHECKING:
    from backhaul.configuration_server.service_config import ServiceConfig
    from backhaul.configuration_server.service_deployed import Deployed
    from backhaul.links.dialer import Address

T = TypeVar("T")

HTTPS: Final = 443
"""The configuration server's port, and therefore never a data port."""

DATA_PORT_LABEL: Final = "Data transfer port of this server"


def _at_terminal() -> bool:
    return sys.stdin.isatty()


# --- the configuration server -----------------------------------------------------------------------------------------


def configuration_server(given: str, port: int | None) -> Address:
    """Where it is: HOST or HOST:PORT, and the port if that names none.

    Raises AddressWrong, typer.BadParameter for what was given.
    """
    from backhaul.links.dialer import Address

    if given:
        host, named = _host_and_port(given)
    else:
        label = "Configuration server (FQDN or IP address)"
        host, named = typer.prompt(label, value_proc=_again(_host_and_port), err=True)
    if port is not None and named not in (None, port):
        raise typer.BadParameter(f"{given} names another port", param_hint="--port")
    chosen = port if named is None else named
    if chosen is None and _at_terminal():
        label = "Port of the configuration server"
        chosen = typer.prompt(label, default=str(HTTPS), value_proc=_again(_port), err=True)
    return Address(host, HTTPS if chosen is None else _port(str(chosen)))


def _host_and_port(text: str) -> tuple[str, int | None]:
    """Raises AddressWrong."""
    from backhaul.configuration_server.errors import AddressWrong
    from backhaul.configuration_server.settings import parse_address

    has_port = ":" in text.rpartition("]")[2] and (text.count(":") == 1 or text.startswith("["))
    address = parse_address(text if has_port else f"{text}:{HTTPS}")
    if not address.host or not address.port or any(mark in address.host for mark in "/@ \t"):
        raise AddressWrong(address=text[:200])
    return address.host, address.port if has_port else None


def _port(text: str) -> int:
    if not (text.strip().isascii() and text.strip().isdigit() and 0 < int(text) < 65536):
        raise typer.BadParameter(f"{text} is no port: a number from 1 to 65535")
    return int(text)


# --- the data port ----------------------------------------------------------------------------------------------------


def data_port(given: int | None, usual: int, host: str, folder: Path) -> int:
    """The data transfer port of a server that is set up here. Raises DataPortTaken, typer.BadParameter."""

    def free(text: str) -> int:
        port = _port(text)
        check_data_port(folder, host, port)
        return port

    if given is None and _at_terminal():
        return int(typer.prompt(DATA_PORT_LABEL, default=str(usual), value_proc=_again(free), err=True))
    port = usual if given is None else given
    if port:  # 0: any that is free
        check_data_port(folder, host, port)
    return port


def same_data_port(given: int | None, config: ServiceConfig) -> None:
    """The data transfer port of a server that listens already, as it was deployed: asked for, to be confirmed.

    Raises typer.BadParameter.
    """

    def same(text: str) -> int:
        if _port(text) != config.port:
            raise typer.BadParameter(f"this server was deployed with {config.port}; deploy another one for {text}")
        return config.port

    if given is not None:
        try:
            same(str(given))
        except typer.BadParameter as error:
            error.param_hint = "--data-port"
            raise
    elif _at_terminal():
        typer.prompt(DATA_PORT_LABEL, default=str(config.port), value_proc=same, err=True)


def check_data_port(folder: Path, host: str, port: int) -> None:
    """A server that runs already holds its port itself; any other finds out now whether it can have it.

    Raises DataPortTaken.
    """
    from backhaul.configuration_server.occupancy import running_in
    from backhaul.links.rungs import probe_data_port

    running = running_in(RealFiles(), folder)
    if running is None or running.port != port:
        asyncio.run(probe_data_port(host, port)).check()


def _again(read: Callable[[str], T]) -> Callable[[str], T]:
    """As a prompt takes it: what `read` refuses is said, and asked for again."""

    def wrapped(text: str) -> T:
        try:
            return read(text)
        except BackhaulError as error:
            raise typer.BadParameter(f"{error.message} {error.advice}") from error

    return wrapped


# --- the administrator ------------------------------------------------------------------------------------------------


def administrator_of(folder: Path, user: str, password_file: Path | None) -> Deployed | None:
    """On a deployed server its administrator is asked for; its deployment. None on any other, which belongs to whoever
    owns its folder. Raises AdministratorWrong, BootDataWrong.
    """
    from backhaul.configuration_server.service_deployed import check_administrator, deployed_in

    deployed = deployed_in(RealFiles(), folder)
    if deployed is None:
        return None
    named = user or str(typer.prompt("User name of this server's administrator", err=True))
    check_administrator(deployed, named, secret("Password of the administrator", password_file))
    return deployed
