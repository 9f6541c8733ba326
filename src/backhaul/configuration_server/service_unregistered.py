"""Runs a server that was deployed and is not registered yet, until its registration tool has come.

Then its folder holds registration, identity and the way it reaches the configuration server by, and the service starts
on the same port. Called by `run_process_server` where the folder holds `service.json` and no registration.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

from backhaul.configuration_server.member import MemberFolder, Registration
from backhaul.configuration_server.member_way import ReachBook
from backhaul.configuration_server.occupancy import write_note
from backhaul.configuration_server.service_config import ServiceConfig
from backhaul.links.dialer import Address, Redial
from backhaul.links.reaching import Reach
from backhaul.process_server.errors import RegisterUnavailable
from backhaul.process_server.register_socket import RegisterRequest, ask_register, ask_status
from backhaul.process_server.unregistered import Registered, Unregistered, WaitingConfig, console_line
from backhaul.replication.ports import Files
from backhaul.replication.values import Role


def _print(line: str) -> None:
    print(line, flush=True, file=sys.stdout)


async def wait_for_registration(
    folder: Path,
    kept: MemberFolder,
    config: ServiceConfig,
    files: Files,
    world: Redial,
    *,
    show: Callable[[str], None] = _print,
) -> int:
    """Wait; the port it waited on. `show` gets the console's line with the key hash.

    Raises LinkUnreachable (the port is taken), OSError, IdentityDamaged.
    """

    def save(registered: Registered) -> None:
        request = registered.request
        vault = str(registered.enrolled.information.get("vault", ""))
        home = str(Address(request.host, request.port))
        identity = registered.enrolled.identity
        ReachBook(files, folder).set_reach(Reach.DIRECT if request.direct else Reach.PROCESS_SERVER)
        # Last, as it makes the folder registered.
        name = request.name or config.name
        kept.save(Registration(home, vault, Role.PROCESS_SERVER, identity.peer.id, name), identity)

    listening: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
    waiting = WaitingConfig(folder, config.host, config.port, id=config.name)
    server = Unregistered(waiting, save, files, world.clock, world.randomness)

    async def introduce() -> int:
        port, key = await listening
        await asyncio.to_thread(write_note, files, folder, port)
        show(console_line(key))
        return port

    async with asyncio.TaskGroup() as tasks:
        introduced = tasks.create_task(introduce())
        tasks.create_task(server.run(lambda port, key: listening.set_result((port, key))))
    return introduced.result()


async def register_waiting(
    folder: Path, home: Address, passphrase: Callable[[], str], name: str, *, direct: bool, limit_s: float = 60.0
) -> str:
    """The registration tool's part: register the server that waits in `folder`; a warning, or nothing.

    `direct`: it dials `home`; else home dials it. The passphrase is asked for when a server is known to wait.
    Raises RegisterUnavailable, RegisterFailed.
    """
    await ask_status(folder)
    text = await asyncio.to_thread(passphrase)
    return await ask_register(folder, RegisterRequest(home.host, home.port, text, "", name, direct, limit_s=limit_s))


async def is_waiting(folder: Path) -> bool:
    """Whether a server waits in `folder` to be registered."""
    try:
        await ask_status(folder)
    except RegisterUnavailable:
        return False
    return True
