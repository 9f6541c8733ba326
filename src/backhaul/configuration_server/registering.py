"""Registering this machine: enrol, or, where it is registered and its certificate still holds, renew.

Invariant: a key that is registered is never given up for one that may not be: the folder changes when the new
identity is complete. Runs in the registration tool's own event loop.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from backhaul.configuration_server.member import Member, MemberFolder, Registration, register
from backhaul.configuration_server.member_way import ReachBook
from backhaul.links.dialer import Address, Redial
from backhaul.links.passphrase import parse_passphrase
from backhaul.links.reaching import Reach
from backhaul.links.renewal import Renewal, renew
from backhaul.links.rungs import probe_enrolment
from backhaul.links.tls import Credentials
from backhaul.replication.errors import BackhaulError
from backhaul.replication.ports import Files
from backhaul.replication.values import Role

_NOT_IN_IDS: Final = re.compile(r"[^a-z0-9]+")
MAX_SLUG: Final = 40

_log = structlog.get_logger(__name__)


async def register_here(
    role: Role,
    data_dir: Path,
    address: Address,
    passphrase: Callable[[], str],
    name: str,
    hosts: tuple[str, ...],
    files: Files,
    world: Redial,
    through: Address | None = None,
) -> Registration:
    """Register, or register again. `passphrase` is asked for only where it is needed. `through`: the process server
    by which alone the configuration server is reached, from now on.

    The way is climbed first, before a passphrase is asked for. Raises what the broken rung raises (`links.rungs`),
    PassphraseMalformed, AuthorityMismatch, PassphraseWrong, EnrolmentLimited, ...
    """
    folder = MemberFolder(data_dir, files, world.randomness, role)
    book = ReachBook(files, data_dir)
    if through is not None:
        book.set_reach(Reach.PROCESS_SERVER)
        book.tell([str(through)])
    if folder.is_registered:
        renewed = await _renew(folder, book, address, world)
        if renewed is not None:
            return renewed
    (await probe_enrolment(through or address, world.clock)).check()
    known = parse_passphrase(passphrase())
    server_id = f"{_slug(name)}-{world.randomness.token(4).hex()}"
    ips = tuple(host for host in hosts if _is_ip(host))
    registration, identity = await register(
        through or address, known, role, server_id, name, clock=world.clock, addresses=ips
    )
    registration = msgspec.structs.replace(registration, configuration_server=str(address))
    await asyncio.to_thread(folder.save, registration, identity)
    return registration


async def _renew(folder: MemberFolder, book: ReachBook, address: Address, world: Redial) -> Registration | None:
    """The registration, with a fresh certificate; None where the server does not take the present one."""
    registration, identity = folder.load()
    credentials = Credentials(identity, world.clock)
    way = book.way(address, credentials, world.clock)
    member = Member(folder, credentials, address, world.clock, way)
    try:
        await renew(member.credentials, Renewal(member.ask_certificate, folder.save_identity, world.clock))
    except BackhaulError as error:
        _log.info("registration.not_renewed", code=error.code, reason=error.message)
        return None
    finally:
        member.close()
        await way.close()
    fresh = Registration(str(address), registration.vault, registration.role, registration.id, registration.name)
    await asyncio.to_thread(folder.save, fresh, member.credentials.identity)
    return fresh


def _slug(name: str) -> str:
    return _NOT_IN_IDS.sub("-", name.lower()).strip("-")[:MAX_SLUG] or "server"


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
