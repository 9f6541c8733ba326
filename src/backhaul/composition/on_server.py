"""`backhaul doctor` and `backhaul config show`, which also run on a process server or master target itself.

There they show that server, from its own side, and need no session; on a deployed one they ask for its administrator.
With no folder named, the commands are the server's own where its folder lies below: as for `process-server register`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from backhaul.cli import config_show
from backhaul.cli import doctor as through_api
from backhaul.cli.output import AsJson, print_fields, print_json, reporting
from backhaul.composition import asking
from backhaul.composition.running import failing, real_world
from backhaul.replication.ports import RealFiles

if TYPE_CHECKING:
    from backhaul.configuration_server.on_server import OnServer

FOLDER: Final = Path("process-server")
"""Of a deployed server, where its commands begin."""

ServerFolder = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="On a process server or master target itself: its folder. No session is needed there.",
        show_default="./process-server, on a deployed server",
    ),
]
User = Annotated[
    str, typer.Option(help="On a deployed server: user name of its administrator.", show_default="asked for there")
]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        "--password-file",
        help="On a deployed server: file with its administrator's password.",
        show_default="asked for there, not echoed",
    ),
]


@reporting
@failing
def doctor(
    name: Annotated[
        str | None,
        typer.Argument(metavar="ITEM|SERVER", help="What to look at, by id or name.", show_default="everything"),
    ] = None,
    data_dir: ServerFolder = None,
    user: User = "",
    password_file: PasswordFile = None,
    as_json: AsJson = False,
) -> None:
    """Find what is broken: look at each step of the way in order, stop at the first broken one, say what to do.

    For a server: registered, reachable, its certificate, its answer, its clock, its room. For an item: its agent, its
    process server, its master target, and what flows between them. Exit code 7 when a step is broken.

    On a process server itself (--data-dir) it looks from there: whether its service runs, its data port, its
    certificate, the way to the configuration server, the clocks, its room.
    """
    server = _this_server(data_dir, name, user, password_file)
    if server is None:
        through_api.show(through_api.walk(name), as_json=as_json)
    else:
        through_api.show([asyncio.run(server.walk())], as_json=as_json)


@reporting
@failing
def config(
    data_dir: ServerFolder = None, user: User = "", password_file: PasswordFile = None, as_json: AsJson = False
) -> None:
    """Show the settings in force: of the configuration server, or (--data-dir) of the server it is run on."""
    server = _this_server(data_dir, None, user, password_file)
    if server is None:
        config_show.show(as_json=as_json)
        return
    settings = server.settings()
    if as_json:
        print_json(settings)
    else:
        shown = {name: ", ".join(value) if isinstance(value, list) else value for name, value in settings.items()}
        print_fields(shown.items())


def _this_server(data_dir: Path | None, name: str | None, user: str, password_file: Path | None) -> OnServer | None:
    """The server on which the command was typed, its administrator asked for; None: the configuration server is asked.

    Raises NotRegistered, SettingsWrong, AdministratorWrong, BootDataWrong.
    """
    from backhaul.configuration_server.errors import SettingsWrong
    from backhaul.configuration_server.on_server import OnServer
    from backhaul.configuration_server.service_deployed import NOTE

    if data_dir is not None and name is not None:
        raise typer.BadParameter("name an item or server, or the folder of this server", param_hint="--data-dir")
    try:
        if data_dir is None and (name is not None or not (FOLDER / NOTE).exists()):
            if user or password_file is not None:
                raise typer.BadParameter("this is not a deployed server; its folder is named with --data-dir")
            return None
        folder = data_dir or FOLDER
        asking.administrator_of(folder, user, password_file)
        return OnServer(folder, RealFiles(), real_world())
    except PermissionError as error:
        reason = f"{error.strerror}; it is read by the user whose service runs there, or by root"
        raise SettingsWrong(folder=data_dir or FOLDER, reason=reason) from error
