"""Runs a registered process server from its folder: the relay, and beside it what keeps its registration alive.

Invariant: the first failed sync ends the process; nothing here catches it. One event loop, one process.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from backhaul import __version__
from backhaul.configuration_server.member import Member, MemberFolder, Orders
from backhaul.configuration_server.member_way import ReachBook
from backhaul.configuration_server.occupancy import occupy, write_note
from backhaul.configuration_server.service_config import FILE, load_service, save_service
from backhaul.configuration_server.service_unregistered import wait_for_registration
from backhaul.configuration_server.settings import parse_address
from backhaul.links.dialer import Redial
from backhaul.links.tls import Credentials
from backhaul.process_server.api_relay import ApiRelay
from backhaul.process_server.run import ProcessServerConfig, run
from backhaul.replication.ports import Files


async def run_process_server(folder: Path, files: Files, world: Redial) -> None:
    """Serve until cancelled. Raises FolderTaken, NotRegistered, SettingsWrong, and what `process_server.run` raises."""
    with occupy(files, folder):
        kept = MemberFolder(folder, files, world.randomness, "process-server")
        if not kept.is_registered and FILE in files.names(folder):
            config = load_service(files, folder)
            port = await wait_for_registration(folder, kept, config, files, world)
            name = (await asyncio.to_thread(kept.load))[0].name  # registering gives it one for people
            known = msgspec.structs.replace(config, port=port, name=name)
            await asyncio.to_thread(save_service, files, folder, known)
        registration, identity = await asyncio.to_thread(kept.load)
        config = load_service(files, folder)
        credentials = Credentials(identity, world.clock)
        api = ApiRelay(world.clock)
        home = parse_address(registration.configuration_server)
        way = ReachBook(files, folder).own_way(home, credentials, world.clock, lambda: api.home)
        member = Member(kept, credentials, home, world.clock, way)
        listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def introduce() -> None:
            port = await listening
            if not config.port:
                await asyncio.to_thread(save_service, files, folder, msgspec.structs.replace(config, port=port))
            await asyncio.to_thread(write_note, files, folder, port)
            announcement = {
                "name": config.name,
                "version": __version__,
                "addresses": config.addresses(port),
                "network": config.network,
            }
            await member.announce(announcement)
            await member.keep(_obey)

        relay = ProcessServerConfig(config.name, folder / "relay", config.host, config.port, config.spool_bytes)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(introduce())
            tasks.create_task(run(relay, credentials, files, world.clock, world.randomness, listening.set_result, api))


async def _obey(orders: Orders) -> None:
    """A process server is dialled; whom to trust, the member has taken already."""
