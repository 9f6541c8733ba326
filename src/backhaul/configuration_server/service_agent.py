"""Runs a registered agent from its folder: replication, and beside it its registration and what it could protect.

One event loop, one process. Disks are read by the agent alone; here only their sizes are asked.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

import msgspec

from backhaul import __version__
from backhaul.configuration_server.errors import SettingsWrong
from backhaul.configuration_server.member import POLL_S, Member, MemberFolder, Orders
from backhaul.configuration_server.member_way import ReachBook, keep_asking
from backhaul.configuration_server.occupancy import occupy
from backhaul.configuration_server.settings import parse_address
from backhaul.disks.opening import open_disk
from backhaul.links.dialer import Redial
from backhaul.links.tls import Credentials
from backhaul.mobility.agent import Agent
from backhaul.mobility.freezer_client import Freezer
from backhaul.mobility.granule_keys import GranuleKeys
from backhaul.mobility.metadata import (
    AzureMetadata,
    HypervisorUuid,
    MetadataFile,
    MetadataSource,
    in_azure,
    read_machine_id,
    read_tags,
)
from backhaul.replication.control import AgentReport, Assignment, StillImagePlan
from backhaul.replication.errors import UNDECODABLE
from backhaul.replication.ports import Files

FILE: Final = "agent.json"


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an agent is run.

    disks          name of each disk and where it is
    still          how points are made on this machine
    metadata_file  where the site writes who this machine is; empty: ask hypervisor and cloud
    """

    name: str
    disks: dict[str, str]
    still: StillImagePlan = StillImagePlan()
    metadata_file: str = ""
    network: str = ""


class AgentControl:
    """The agent's way to the configuration server (`mobility.agent.Control`)."""

    def __init__(self, member: Member, book: ReachBook) -> None:
        """`book` keeps every process server that an assignment names: each is a way to the configuration server."""
        self._member, self._book = member, book

    async def assignment(self, after: int) -> Assignment:
        """See the protocol."""
        answer = await self._member.call("GET", f"/members/self/assignment?after={after}&wait_s={POLL_S:g}")
        assigned = msgspec.json.decode(answer, type=Assignment)
        told = [address for item in assigned.items for address in item.process_server_addresses]
        await asyncio.to_thread(self._book.tell, told)
        return assigned

    async def report(self, report: AgentReport) -> None:
        """See the protocol."""
        await self._member.call("POST", "/members/self/report", msgspec.json.encode(report))

    async def sink(self, body: bytes) -> None:
        """Have the server throw bytes away: a test of the link. Raises MemberError and what the link raises."""
        await self._member.call("POST", "/members/self/sink", body)


def machine_id(config: AgentConfig) -> str:
    """Who this machine is, as hypervisor, cloud or site say. Raises MachineIdUnknown, MachineIdContradiction."""
    return read_machine_id(metadata_sources(config)).id


def metadata_sources(config: AgentConfig) -> list[MetadataSource]:
    """Who is asked about this machine: the site's file where it has one, else hypervisor and cloud."""
    if config.metadata_file:
        return [MetadataFile(Path(config.metadata_file))]
    return [HypervisorUuid(), AzureMetadata()] if in_azure() else [HypervisorUuid()]


def offer(config: AgentConfig) -> dict[str, Any]:
    """What could be protected here, with the sizes of now. Raises DiskError's kinds."""
    disks = []
    for name, path in config.disks.items():
        disk = open_disk(Path(path), writable=False)
        try:
            disks.append({"name": name, "path": path, "size": disk.size})
        finally:
            disk.close()
    return {"disks": disks, "still": msgspec.to_builtins(config.still)}


def load_agent(files: Files, folder: Path) -> AgentConfig:
    """Raises SettingsWrong; FileNotFoundError where there is none."""
    try:
        return msgspec.json.decode(files.read(folder / FILE), type=AgentConfig)
    except UNDECODABLE as error:
        raise SettingsWrong(folder=folder, reason=str(error)) from error


def save_agent(files: Files, folder: Path, config: AgentConfig) -> None:
    """Durably."""
    files.replace(folder / FILE, msgspec.json.encode(config))


async def run_agent(folder: Path, files: Files, world: Redial, door: Path | None = None) -> None:
    """Replicate until cancelled. `door`: of the freezer, for an agent that is not root.

    Raises FolderTaken, NotRegistered, SettingsWrong, MachineIdUnknown, ...
    """
    with occupy(files, folder):
        kept = MemberFolder(folder, files, world.randomness, "agent")
        registration, identity = await asyncio.to_thread(kept.load)
        config = load_agent(files, folder)
        credentials = Credentials(identity, world.clock)
        home, book = parse_address(registration.configuration_server), ReachBook(files, folder)
        member = Member(kept, credentials, home, world.clock, book.way(home, credentials, world.clock))
        machine = await asyncio.to_thread(machine_id, config)
        keys = await asyncio.to_thread(GranuleKeys, files, folder)
        control = AgentControl(member, book)
        announcement = {
            "name": config.name,
            "version": __version__,
            "machine": machine,
            "network": config.network,
            "offer": await asyncio.to_thread(offer, config),
        }

        async def introduce() -> None:
            await member.announce(announcement)
            await member.keep(_obey)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(introduce())
            tasks.create_task(keep_asking(book, lambda: read_tags(metadata_sources(config))))
            freezer = Freezer(door=door)
            tasks.create_task(Agent(machine, credentials, control, world, keys, control.sink, freezer).run())


async def _obey(orders: Orders) -> None:
    """An agent's assignment has its own call; whom to trust, the member has taken already."""
