"""The other end: what a registered server or agent says to its configuration server.

Registering, renewing, learning whom to trust and dial, and the calls of the API that are for its certificate. Every
call checks that a configuration server of the vault answers: a name proves nothing, the certificate's role does. Used
by the composition root in processes of servers and agents; event loop only. Imports nothing of the API's own side.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import h11
import msgspec
import structlog

from backhaul.configuration_server.errors import MemberError, NotRegistered
from backhaul.configuration_server.http_channel import HttpChannel
from backhaul.configuration_server.sealing import MasterKey
from backhaul.links.certificates import MAX_BUNDLE, DenyList, Trust
from backhaul.links.dialer import Address, dial_enrolment
from backhaul.links.enrolment import enrol
from backhaul.links.identity import IDENTITY_FILE, Identity
from backhaul.links.listener import close_stream
from backhaul.links.passphrase import Passphrase
from backhaul.links.reaching import DirectWay, Way
from backhaul.links.renewal import Renewal, renewing
from backhaul.links.tls import Credentials
from backhaul.replication.errors import UNDECODABLE, BackhaulError
from backhaul.replication.ports import Clock, Files, Randomness
from backhaul.replication.values import Role

REGISTRATION: Final = "registration.json"
ANSWER_S: Final = 90.0
"""Longer than the longest held request."""

RETRY_S: Final = 5.0
MAX_IDLE: Final = 4
"""Connections kept for the next call: one that waits for orders, one for an assignment, one for reports."""

POLL_S: Final = 50.0

_log = structlog.get_logger(__name__)


class Registration(msgspec.Struct, frozen=True):
    """What a member keeps beside its identity. `configuration_server`: `host:port`."""

    configuration_server: str
    vault: str
    role: Role
    id: str
    name: str


class Orders(msgspec.Struct, frozen=True):
    """What every member is told: whom to trust; master targets also which process servers to dial.

    now_ns  the configuration server's clock, for a comparison with one's own; 0: of before it was told
    """

    revision: int
    bundle: tuple[bytes, ...]
    deny: DenyList
    dial: dict[str, tuple[str, ...]] = {}
    now_ns: int = 0


class Renewed(msgspec.Struct, frozen=True):
    """A renewed certificate, with the trust of the moment."""

    chain: tuple[bytes, ...]
    bundle: tuple[bytes, ...]
    deny: DenyList


class MemberFolder:
    """A member's data folder: registration, and the identity, whose key is sealed under a master key of its own."""

    def __init__(self, folder: Path, files: Files, randomness: Randomness, kind: str) -> None:
        self.folder, self._files, self._kind = folder, files, kind
        files.make_folder(folder)
        files.make_folder(folder / "identity")
        self._seal = MasterKey.open_or_make(files, folder, randomness).key_seal("identity")

    @property
    def is_registered(self) -> bool:
        """Whether it was registered."""
        return REGISTRATION in self._files.names(self.folder) and IDENTITY_FILE in self._files.names(
            self.folder / "identity"
        )

    def load(self) -> tuple[Registration, Identity]:
        """Raises NotRegistered, IdentityDamaged, SecretDamaged."""
        if not self.is_registered:
            raise NotRegistered(folder=self.folder, kind=self._kind)
        registration = msgspec.json.decode(self._files.read(self.folder / REGISTRATION), type=Registration)
        return registration, Identity.load(self._files, self.folder / "identity", self._seal)

    def save(self, registration: Registration, identity: Identity) -> None:
        """Durably; the registration last, as it makes the folder registered."""
        identity.save(self._files, self.folder / "identity", self._seal)
        self._files.replace(self.folder / REGISTRATION, msgspec.json.encode(registration))

    def save_identity(self, identity: Identity) -> None:
        """After a renewal or a pushed trust."""
        identity.save(self._files, self.folder / "identity", self._seal)


async def register(
    address: Address,
    passphrase: Passphrase,
    role: Role,
    server_id: str,
    name: str,
    *,
    clock: Clock,
    addresses: tuple[str, ...] = (),
) -> tuple[Registration, Identity]:
    """Enrol at the configuration server. Raises what `dial_enrolment` and `enrol` raise, each naming its rung."""
    dialled = await dial_enrolment(address)
    try:
        enrolled = await enrol(
            dialled.reader, dialled.writer, passphrase, role, server_id,
            clock=clock, peer=str(address), addresses=addresses,
        )  # fmt: skip
    finally:
        await close_stream(dialled.writer)
    vault = str(enrolled.information.get("vault", ""))
    return Registration(str(address), vault, role, server_id, name), enrolled.identity


def local_address(towards: Address) -> str:
    """The address of this machine from which `towards` is reached. Raises MemberError. Sends nothing."""
    try:
        family, kind, number, _, target = socket.getaddrinfo(towards.host, towards.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, number) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise MemberError(member="this server", address=str(towards), reason=str(error)) from error


class Member:
    """A registered server or agent as its configuration server's caller."""

    def __init__(
        self, folder: MemberFolder, credentials: Credentials, address: Address, clock: Clock, way: Way | None = None
    ) -> None:
        """`way`: how the configuration server is reached; None: at `address`."""
        self._way = way or DirectWay(lambda: (self.address,), credentials)
        self.folder, self.credentials, self.address, self._clock = folder, credentials, address, clock
        self._idle: list[HttpChannel] = []

    async def call(self, method: str, path: str, body: bytes = b"") -> bytes:
        """One request, which may be repeated; the body of its answer.

        Raises MemberError (with the server's code in its reason) and what the link raises.
        """
        while self._idle:
            channel = self._idle.pop()
            try:
                return await self._ask(channel, method, path, body)
            except (OSError, h11.ProtocolError, EOFError):
                _log.debug("call.idle_connection_ended", path=path)  # it was closed meanwhile: a fresh one answers
        try:
            return await self._ask(await self._dial(), method, path, body)
        except (OSError, h11.ProtocolError, EOFError) as error:
            raise self._failed(str(error) or type(error).__name__) from error

    async def _dial(self) -> HttpChannel:
        dialled = await self._way.connect()
        return HttpChannel(dialled.reader, dialled.writer, str(self.address))

    async def _ask(self, channel: HttpChannel, method: str, path: str, body: bytes) -> bytes:
        try:
            async with asyncio.timeout(ANSWER_S):
                status, answer = await channel.exchange(method, path, body)
        except BaseException:
            channel.abort()
            raise
        if channel.is_reusable and len(self._idle) < MAX_IDLE:
            self._idle.append(channel)
        else:
            channel.abort()
        if status >= 300:
            raise self._failed(f"HTTP status {status}: {answer[:500].decode(errors='replace')}")
        return answer

    def close(self) -> None:
        """Close idle connections."""
        while self._idle:
            self._idle.pop().abort()

    def _failed(self, reason: str) -> MemberError:
        return MemberError(member=self.credentials.identity.peer.name, address=str(self.address), reason=reason)

    async def announce(self, announcement: dict[str, Any]) -> None:
        """Say who and where this server is; tried until it is taken."""
        body = msgspec.json.encode(announcement)
        while True:
            try:
                await self.call("PUT", "/members/self/announcement", body)
            except BackhaulError as error:
                _log.warning("announcement.failed", code=error.code, reason=error.message)
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def keep(self, obey: Callable[[Orders], Awaitable[None]]) -> None:
        """Renew the certificate and follow orders until cancelled."""
        renewal = Renewal(self.ask_certificate, self.folder.save_identity, self._clock)
        await asyncio.gather(renewing(self.credentials, renewal), self._keep_orders(obey))

    async def ask_certificate(self, csr: bytes) -> tuple[tuple[bytes, ...], Trust]:
        """Chain and trust for a certificate request, DER. Raises MemberError and what the link raises."""
        answer = await self.call("POST", "/members/self/certificate", msgspec.json.encode({"csr": csr}))
        renewed = self._decode(answer, Renewed)
        return renewed.chain, Trust(renewed.bundle[:MAX_BUNDLE], renewed.deny)

    async def _keep_orders(self, obey: Callable[[Orders], Awaitable[None]]) -> None:
        revision = 0
        while True:
            try:
                orders = await self.orders(revision)
                if orders.revision != revision:
                    await self._trust(Trust(orders.bundle[:MAX_BUNDLE], orders.deny))
                    await obey(orders)
                    revision = orders.revision
            except BackhaulError as error:
                _log.info("orders.failed", code=error.code, reason=error.message)
                await asyncio.sleep(RETRY_S)

    async def orders(self, after: int, wait_s: float = POLL_S) -> Orders:
        """The orders, once their revision is not `after` or `wait_s` is over."""
        answer = await self.call("GET", f"/members/self/orders?after={after}&wait_s={wait_s:g}")
        orders: Orders = self._decode(answer, Orders)
        return orders

    async def _trust(self, trust: Trust) -> None:
        now = self.credentials.identity
        if (trust.bundle, trust.deny) != (now.trust.bundle, now.trust.deny):
            identity = now.with_trust(trust)
            await asyncio.to_thread(self.folder.save_identity, identity)
            self.credentials.replace(identity)

    def _decode(self, answer: bytes, kind: type[Any]) -> Any:
        try:
            return msgspec.json.decode(answer, type=kind)
        except UNDECODABLE as error:
            raise self._failed(str(error)) from error
