"""Runs a registered master target from its folder; it dials the process servers that its orders name.

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
from backhaul.configuration_server.service_config import load_service, save_service
from backhaul.configuration_server.settings import parse_address
from backhaul.links.dialer import Redial
from backhaul.links.tls import Credentials
from backhaul.master_target.service import MasterTarget, TargetConfig
from backhaul.replication.ports import Files


async def run_master_target(folder: Path, files: Files, world: Redial) -> None:
    """Serve until cancelled. Raises FolderTaken, NotRegistered, SettingsWrong, and what `MasterTarget.run` raises."""
    with occupy(files, folder):
        kept = MemberFolder(folder, files, world.randomness, "master-target")
        registration, identity = await asyncio.to_thread(kept.load)
        config = load_service(files, folder)
        credentials = Credentials(identity, world.clock)
        home = parse_address(registration.configuration_server)
        way = ReachBook(files, folder).way(home, credentials, world.clock)
        member = Member(kept, credentials, home, world.clock, way)
        files.make_folder(folder / "target")
        settings = TargetConfig(str(folder / "target"), config.host, config.port, config.name)
        target = MasterTarget(settings, credentials, files, world)
        ready = asyncio.Event()
        dialling: dict[str, tuple[str, ...]] = {}

        async def obey(orders: Orders) -> None:
            for server in dialling.keys() - orders.dial.keys():
                target.hang_up(server)
                del dialling[server]
            for server, addresses in orders.dial.items():
                if dialling.get(server) != addresses:
                    dialling[server] = addresses
                    target.dial(server, addresses)

        async def introduce() -> None:
            await ready.wait()
            if not config.port:
                await asyncio.to_thread(save_service, files, folder, msgspec.structs.replace(config, port=target.port))
            await asyncio.to_thread(write_note, files, folder, target.port)
            addresses = config.addresses(target.port)
            await member.announce({"name": config.name, "version": __version__, "addresses": addresses})
            await member.keep(obey)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(introduce())
            tasks.create_task(target.run(ready.set))
