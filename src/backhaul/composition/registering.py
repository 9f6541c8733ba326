"""The verbs that register this machine: `process-server register`, `master-target register`, `agent register`.

Each asks for what is not given (`asking`), looks whether the configuration server can be reached before any secret is
asked for, and enrols. On a deployed process server its administrator is asked for first, and what the deployment has
settled stays as it is.
"""

from __future__ import annotations

import asyncio
import functools
import shlex
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from backhaul.cli.output import reporting
from backhaul.cli.secrets import secret
from backhaul.composition import asking
from backhaul.composition.running import DataDir, ListenHost, failing, real_world
from backhaul.replication.ports import RealFiles
from backhaul.replication.values import Role

if TYPE_CHECKING:
    from backhaul.links.dialer import Address

ConfigurationServer = Annotated[
    str,
    typer.Option(help="Configuration server, by FQDN or IP address: HOST or HOST:PORT.", show_default="asked for"),
]
Port = Annotated[
    int | None,
    typer.Option(
        help="Port of the configuration server, where --configuration-server names none.",
        show_default="443; asked for at a terminal",
    ),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        help="File with the connection passphrase (`backhaul server passphrase show` prints it) or a one-time token.",
        show_default="asked for, not echoed",
    ),
]
Name = Annotated[str, typer.Option("--name", help="Name to show it under.", show_default="this host's name")]
Advertise = Annotated[
    list[str] | None,
    typer.Option(
        "--address",
        help="Name or address under which others reach this server. Repeat it for several.",
        show_default="the address from which the configuration server is reached",
    ),
]
Network = Annotated[
    str, typer.Option("--network", help="Virtual network that it is in.", show_default="none: it is at home")
]
LABEL = "Connection passphrase"
DATA_PORT, TARGET_PORT = 9443, 9444


@reporting
@failing
def process_server(
    configuration_server: ConfigurationServer = "",
    port: Port = None,
    data_dir: DataDir = Path("process-server"),
    passphrase_file: PassphraseFile = None,
    name: Name = "",
    data_port: Annotated[
        int | None,
        typer.Option(
            help="Data transfer port: agents and servers reach this one there. Never 443; 0 takes any free one.",
            show_default="9443; asked for at a terminal",
        ),
    ] = None,
    listen_host: ListenHost = "",
    address: Advertise = None,
    network: Network = "",
    home_dials: Annotated[
        bool,
        typer.Option("--home-dials", help="The configuration server dials this server, so that nothing dials home."),
    ] = False,
    user: Annotated[
        str,
        typer.Option(help="On a deployed server: user name of its administrator.", show_default="asked for there"),
    ] = "",
    password_file: Annotated[
        Path | None,
        typer.Option(
            "--password-file",
            help="On a deployed server: file with its administrator's password.",
            show_default="asked for there, not echoed",
        ),
    ] = None,
) -> None:
    """Register this machine as a process server: it then relays what the agents of its network send.

    Asks for what is not given: the configuration server's FQDN or IP address, its port, the data transfer port and the
    connection passphrase; on a deployed server its administrator's user name and password first. The way to the
    configuration server is tried before, step by step, and the broken step is named.

    Run again, it renews the certificate and replaces the settings.

    Example: backhaul process-server register --configuration-server cs.example.com --data-port 9443
    """
    from backhaul.configuration_server.service_config import load_service
    from backhaul.configuration_server.service_unregistered import is_waiting, register_waiting

    deployed = asking.administrator_of(data_dir, user, password_file)
    home, through = asking.configuration_server(configuration_server, port), ""
    waiting = asyncio.run(is_waiting(data_dir))
    if deployed is not None:
        config = load_service(RealFiles(), data_dir)
        asking.same_data_port(data_port, config)
        name, listen_host, network = name or deployed.name, listen_host or config.host, network or config.network
        address, data_port = address or list(config.advertised), config.port
        home_dials = waiting and (home_dials or not deployed.direct)
        # Registered by home's tunnel, it reaches home as the agents behind it do: through itself.
        through = "" if waiting or deployed.direct else f"{config.host}:{config.port}"
    if home_dials or waiting:
        ask = functools.partial(secret, LABEL, passphrase_file)
        warning = asyncio.run(register_waiting(data_dir, home, ask, _named(name), direct=not home_dials))
        typer.echo(f"{Role.PROCESS_SERVER} is registered; its service starts by itself.")
        if warning:
            typer.echo(f"Note: {warning}.")
        return
    if deployed is None:
        data_port = asking.data_port(data_port, DATA_PORT, listen_host, data_dir)
    name, hosts = _named(name), _hosts(address, home)
    _save_service(data_dir, name, data_port or 0, listen_host, hosts, network)
    _register(Role.PROCESS_SERVER, data_dir, home, passphrase_file, name, hosts, through)


@reporting
@failing
def master_target(
    configuration_server: ConfigurationServer = "",
    port: Port = None,
    data_dir: DataDir = Path("master-target"),
    passphrase_file: PassphraseFile = None,
    name: Name = "",
    data_port: Annotated[
        int | None,
        typer.Option(
            help="Data transfer port, on which it is reached. Never 443; 0 takes any free one.",
            show_default="9444; asked for at a terminal",
        ),
    ] = None,
    listen_host: ListenHost = "",
    address: Advertise = None,
) -> None:
    """Register this machine as a master target: it then keeps replicas of machines and their recovery points.

    Asks for what is not given. Run again, it renews the certificate and replaces the settings.
    """
    home = asking.configuration_server(configuration_server, port)
    chosen = asking.data_port(data_port, TARGET_PORT, listen_host, data_dir)
    name, hosts = _named(name), _hosts(address, home)
    _save_service(data_dir, name, chosen, listen_host, hosts, "")
    _register(Role.MASTER_TARGET, data_dir, home, passphrase_file, name, hosts)


@reporting
@failing
def agent(
    disk: Annotated[list[str], typer.Option(help="A disk that may be replicated, NAME=PATH. Repeat it for each.")],
    configuration_server: ConfigurationServer = "",
    port: Port = None,
    data_dir: DataDir = Path("agent"),
    passphrase_file: PassphraseFile = None,
    name: Name = "",
    network: Network = "",
    metadata_file: Annotated[
        str,
        typer.Option(
            help="File in which the site (hypervisor or cloud) says which machine this is.",
            show_default="hypervisor and cloud are asked",
        ),
    ] = "",
    quiesce: Annotated[
        str, typer.Option(help="Command after which the application writes nothing.", show_default="none")
    ] = "",
    resume: Annotated[
        str, typer.Option(help="Command after which the application writes again.", show_default="none")
    ] = "",
    freeze: Annotated[
        bool, typer.Option(help="Freeze the file systems on the disks for each recovery point. Needs root.")
    ] = False,
    inside: Annotated[
        bool,
        typer.Option(
            "--inside",
            help="The agent ends with the machine: a move makes its last recovery point before the machine is powered "
            "off. Needs --freeze.",
        ),
    ] = False,
    through: Annotated[
        str,
        typer.Option(
            "--process-server",
            help="HOST:PORT of a process server by which alone everything is reached, the configuration server too.",
            show_default="the configuration server is reached directly",
        ),
    ] = "",
) -> None:
    """Register the agent of this machine, and say which disks it may replicate. Protecting them is another step.

    Example: backhaul agent register --configuration-server cs.example.com --disk root=/dev/sda --disk data=/dev/sdb
    """
    from backhaul.configuration_server.service_agent import AgentConfig, save_agent
    from backhaul.replication.control import StillImagePlan

    wrong = [one for one in disk if "=" not in one]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]} is not NAME=PATH", param_hint="--disk")
    home = asking.configuration_server(configuration_server, port)
    disks = {label: str(Path(path).absolute()) for label, _, path in (one.partition("=") for one in disk)}
    if inside and not freeze:
        raise typer.BadParameter("what is read from inside must be frozen; add --freeze", param_hint="--inside")
    pre, post = tuple(shlex.split(quiesce)), tuple(shlex.split(resume))
    still = StillImagePlan(stopped=not inside, pre=pre, post=post, freeze=freeze)
    files = RealFiles()
    files.make_folder(data_dir)
    save_agent(files, data_dir, AgentConfig(_named(name), disks, still, metadata_file, network))
    _register(Role.AGENT, data_dir, home, passphrase_file, _named(name), [], through)


def _register(
    role: Role,
    data_dir: Path,
    home: Address,
    passphrase_file: Path | None,
    name: str,
    hosts: list[str],
    through: str = "",
) -> None:
    from backhaul.configuration_server.occupancy import running_in
    from backhaul.configuration_server.registering import register_here
    from backhaul.configuration_server.settings import parse_address

    ask = functools.partial(secret, LABEL, passphrase_file)
    relay = parse_address(through) if through else None
    made = asyncio.run(register_here(role, data_dir, home, ask, name, tuple(hosts), RealFiles(), real_world(), relay))
    typer.echo(f"{role} {made.name} is registered as {made.id} at {made.configuration_server}.")
    if running_in(RealFiles(), data_dir) is None:
        typer.echo(f"Next: backhaul {role} run --data-dir {data_dir}")
    else:
        typer.echo("It runs already: new settings take effect when it is started again.")


def _save_service(data_dir: Path, name: str, port: int, host: str, hosts: list[str], network: str) -> None:
    from backhaul.configuration_server.service_config import FILE, ServiceConfig, load_service, save_service

    files = RealFiles()
    files.make_folder(data_dir)
    known = load_service(files, data_dir) if FILE in files.names(data_dir) else ServiceConfig(name)
    fresh = msgspec.structs.replace(known, name=name, host=host, port=port, advertised=tuple(hosts), network=network)
    save_service(files, data_dir, fresh)


def _named(name: str) -> str:
    return name or socket.gethostname()


def _hosts(given: list[str] | None, home: Address) -> list[str]:
    """The hosts to be advertised: those given, or the one from which the configuration server is reached."""
    from backhaul.configuration_server.member import local_address

    return given or [local_address(home)]
