"""Enrolment (`bh-enrol/1`): how a new server gets its certificate. Specification: docs/spec/wire.md.

    desk -> newcomer   Offer    chain of the configuration server, nonce
    newcomer -> desk   Ask      key id, body (request, role, id, names), HMAC under the secret
    desk -> newcomer   Answer   body (certificate, bundle, deny list, information), signature; or Refusal

The *desk* is the configuration server, the *newcomer* the server or agent that registers; either may have dialled,
through whatever carries bytes, so nothing here relies on TLS. Invariants: the newcomer sends nothing before the
desk's chain fits the passphrase's pin; the desk reads nothing of a body before its HMAC fits; the secret is in no
message. The functions are pure; `enrol` and `serve_enrolment` move the bytes, on the service's event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from backhaul.links.certificates import (
    MAX_BUNDLE,
    DenyList,
    PeerIdentity,
    Trust,
    load_certificate,
    verify,
    verify_certificate,
)
from backhaul.links.enrolment_limits import Limiter
from backhaul.links.errors import (
    AuthorityError,
    AuthorityMismatch,
    CertificateExpired,
    CertificateProblem,
    EnrolmentError,
    EnrolmentMalformed,
    EnrolmentRefused,
    PassphraseWrong,
    SignatureInvalid,
    TokenSpent,
)
from backhaul.links.identity import Identity, make_csr, new_key
from backhaul.links.passphrase import KEY_ID_BYTES, PIN_BYTES, Passphrase, SecretKind
from backhaul.replication.errors import UNDECODABLE, BackhaulError, every_error
from backhaul.replication.ports import Clock, Randomness
from backhaul.replication.units import KiB
from backhaul.replication.values import Role

VERSION: Final = 1
NONCE_BYTES: Final = 32
MAX_ENROLMENT: Final = 64 * KiB
"""Largest message: a bundle and a deny list of about a thousand names."""

STEP_S: Final = 30.0
"""Longest wait for one message; issuing may wait for a disk."""

_LENGTH: Final = struct.Struct("!I")
_ASK_CONTEXT: Final = b"backhaul/1 enrolment ask\0"
_ANSWER_CONTEXT: Final = b"enrolment answer"


class Offer(msgspec.Struct, frozen=True, array_like=True):
    """The desk's certificate and the roots it trusts, and a nonce of this conversation."""

    version: int
    certificate: bytes
    roots: tuple[bytes, ...]
    nonce: bytes


class AskBody(msgspec.Struct, frozen=True, array_like=True):
    """Who wants to be what: request (DER), role and id, names and addresses for the certificate."""

    csr: bytes
    role: Role
    id: str
    dns: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()


class Ask(msgspec.Struct, frozen=True, array_like=True):
    """`body` is an encoded AskBody, read only after `proof` was found right."""

    key_id: bytes
    body: bytes
    proof: bytes


class AnswerBody(msgspec.Struct, frozen=True, array_like=True):
    """What the newcomer gets; `information` is the configuration server's own (ids, addresses)."""

    chain: tuple[bytes, ...]
    bundle: tuple[bytes, ...]
    deny: DenyList
    information: dict[str, Any] = {}


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """`code` empty: `body` is an encoded AnswerBody, signed with the whole conversation. Else why not."""

    code: str
    params: dict[str, Any]
    body: bytes = b""
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class KnownSecret:
    """A secret the desk accepts. A token may be for one role and id only, and expires (wall-clock nanoseconds)."""

    passphrase: Passphrase
    expires_ns: int | None = None
    role: Role | None = None
    id: str | None = None


class Secrets(Protocol):
    """The secrets a desk accepts: the present passphrase and the tokens not yet used."""

    def find(self, key_id: bytes) -> KnownSecret | None:
        """The secret a proof says it was made with; None when there is none (any more)."""
        ...

    def spend(self, key_id: bytes) -> bool:
        """Whether the token could be used now; true once per token, MUST be durable before it returns."""
        ...


class SecretBook:
    """`Secrets` that end with the process: tokens live as long as the deployment job that made them."""

    def __init__(self, passphrase: Passphrase | None = None) -> None:
        self._passphrase = passphrase
        self._tokens: dict[bytes, KnownSecret] = {}

    def rotate(self, passphrase: Passphrase) -> None:
        """The only passphrase from now on; the one before is wrong."""
        self._passphrase = passphrase

    def add_token(self, token: KnownSecret) -> None:
        """Accept the token once."""
        self._tokens[token.passphrase.key_id] = token

    def find(self, key_id: bytes) -> KnownSecret | None:
        if self._passphrase is not None and self._passphrase.key_id == key_id:
            return KnownSecret(self._passphrase)
        return self._tokens.get(key_id)

    def spend(self, key_id: bytes) -> bool:
        return self._tokens.pop(key_id, None) is not None


@dataclass(frozen=True, slots=True)
class Issued:
    """What the configuration server's callback gives for an ask that it allows."""

    chain: tuple[bytes, ...]
    trust: Trust
    information: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Desk:
    """The configuration server's side. `issue` may refuse with any BackhaulError."""

    identity: Callable[[], Identity]
    secrets: Secrets
    limiter: Limiter
    issue: Callable[[AskBody, KnownSecret], Awaitable[Issued]]
    clock: Clock
    randomness: Randomness


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What the newcomer has then, to be saved by it."""

    identity: Identity
    desk: PeerIdentity
    information: dict[str, Any]


# pure: the newcomer


def check_offer(offer: Offer, passphrase: Passphrase, now_ns: int, peer: str) -> PeerIdentity:
    """The desk, proved to be the one that made the passphrase.

    Raises AuthorityMismatch; CertificateExpired, as then one of the clocks is wrong.
    """
    pinned = [root for root in offer.roots[:MAX_BUNDLE] if _pin(root) == passphrase.pin]
    try:
        desk = verify_certificate(offer.certificate, Trust(tuple(pinned)), now_ns)
    except CertificateExpired:
        raise
    except CertificateProblem as error:
        raise AuthorityMismatch(peer=peer) from error
    if desk.role is not Role.CONFIGURATION_SERVER:
        raise AuthorityMismatch(peer=peer)
    return desk


def _pin(root: bytes) -> bytes:
    return hashlib.sha256(root).digest()[:PIN_BYTES]


def prove(secret: bytes, offer: Offer, body: bytes) -> bytes:
    """HMAC-SHA256 over the ask's body, the desk's certificate and its nonce."""
    parts = (offer.certificate, offer.nonce, body)
    message = _ASK_CONTEXT + b"".join(_LENGTH.pack(len(part)) + part for part in parts)
    return hmac.digest(secret, message, "sha256")


def make_ask(offer: Offer, passphrase: Passphrase, body: AskBody) -> Ask:
    """The ask with its proof."""
    encoded = msgspec.msgpack.encode(body)
    return Ask(passphrase.key_id, encoded, prove(passphrase.secret, offer, encoded))


def check_answer(
    offer: Offer, ask: Ask, answer: Answer, key: ec.EllipticCurvePrivateKey, passphrase: Passphrase, now_ns: int
) -> Enrolled:
    """The identity, proved to come from the desk and to be what was asked for.

    Raises the desk's refusal (PassphraseWrong, EnrolmentLimited, ...), EnrolmentMalformed.
    """
    if answer.code:
        raise _refusal(answer)
    pinned = Trust(tuple(root for root in offer.roots if _pin(root) == passphrase.pin))
    wanted = msgspec.msgpack.decode(ask.body, type=AskBody)
    try:
        transcript = _transcript(offer, ask, answer.body)
        desk = verify(offer.certificate, _ANSWER_CONTEXT, transcript, answer.signature, trust=pinned, now_ns=now_ns)
        body = msgspec.msgpack.decode(answer.body, type=AnswerBody)
        trust = Trust(body.bundle[:MAX_BUNDLE], body.deny)
        mine = verify_certificate(body.chain[0] if body.chain else b"", trust, now_ns)
    except (CertificateProblem, SignatureInvalid, *UNDECODABLE) as error:
        raise EnrolmentMalformed(peer="the configuration server", reason=str(error)) from error
    same_key = load_certificate(mine.certificate_der).public_key() == key.public_key()
    if not same_key or (mine.vault, mine.role, mine.id) != (desk.vault, wanted.role, wanted.id):
        raise EnrolmentMalformed(peer=desk.name, reason=f"it issued a certificate for {mine.uri}, which was not asked")
    return Enrolled(Identity(body.chain, key, trust), desk, body.information)


def _refusal(answer: Answer) -> BackhaulError:
    """The desk's error; of a kind that enrolment knows, whatever the other end says."""
    kinds = {kind.code: kind for base in (EnrolmentError, AuthorityError) for kind in every_error(base)}
    kind = kinds.get(answer.code)
    if kind is None:
        return EnrolmentRefused(peer="this server", reason=f"{answer.code[:64]} {answer.params!r:.300}")
    return kind(**{name: value for name, value in answer.params.items() if name != "self"})


# pure: the desk


def check_ask(offer: Offer, ask: Ask, known: KnownSecret | None, now_ns: int) -> AskBody:
    """What the newcomer asks for, proved by its HMAC.

    Raises PassphraseWrong, TokenSpent (expired), EnrolmentMalformed.
    """
    if known is None or not hmac.compare_digest(prove(known.passphrase.secret, offer, ask.body), ask.proof):
        raise PassphraseWrong()
    if known.expires_ns is not None and now_ns >= known.expires_ns:
        raise TokenSpent()
    try:
        body = msgspec.msgpack.decode(ask.body, type=AskBody)
    except UNDECODABLE as error:
        raise EnrolmentMalformed(peer="the newcomer", reason=str(error)) from error
    if (known.role or body.role, known.id or body.id) != (body.role, body.id):
        raise EnrolmentMalformed(peer=f"{body.role}/{body.id}", reason=f"its token is for {known.role}/{known.id}")
    return body


def _transcript(offer: Offer, ask: Ask, answer_body: bytes) -> bytes:
    parts = (msgspec.msgpack.encode(offer), msgspec.msgpack.encode(ask), answer_body)
    return hashlib.sha256(b"".join(_LENGTH.pack(len(part)) + part for part in parts)).digest()


def make_answer(offer: Offer, ask: Ask, issued: Issued, identity: Identity) -> Answer:
    """The answer, signed together with everything said before."""
    body = msgspec.msgpack.encode(AnswerBody(issued.chain, issued.trust.bundle, issued.trust.deny, issued.information))
    return Answer("", {}, body, identity.sign(_ANSWER_CONTEXT, _transcript(offer, ask, body)))


# over any stream of bytes


async def enrol(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    passphrase: Passphrase,
    role: Role,
    peer_id: str,
    *,
    clock: Clock,
    peer: str,
    dns: tuple[str, ...] = (),
    addresses: tuple[str, ...] = (),
) -> Enrolled:
    """Register as the newcomer, with a fresh key. `peer` names the other end in errors.

    Raises AuthorityMismatch (nothing was sent), PassphraseWrong, EnrolmentLimited, TokenSpent, EnrolmentMalformed,
    RequestRefused, or what else the configuration server answers.
    """
    offer = await receive_offer(reader, peer)
    check_offer(offer, passphrase, clock.wall_ns(), peer)
    key = new_key()
    ask = make_ask(offer, passphrase, AskBody(make_csr(key), role, peer_id, dns, addresses))
    await _send(writer, ask, peer)
    answer = await _receive(reader, Answer, peer)
    return check_answer(offer, ask, answer, key, passphrase, clock.wall_ns())


async def receive_offer(reader: asyncio.StreamReader, peer: str) -> Offer:
    """What a desk says first, unchecked but for its form. Raises EnrolmentMalformed, EnrolmentError (it broke)."""
    offer = await _receive(reader, Offer, peer)
    if offer.version != VERSION or len(offer.nonce) != NONCE_BYTES:
        raise EnrolmentMalformed(peer=peer, reason=f"it speaks version {offer.version}, this side {VERSION}")
    return offer


async def serve_enrolment(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, desk: Desk, *, address: str
) -> AskBody:
    """Register one newcomer as the desk; `address` is what its wrong tries are counted under (no port).

    A refusal is told to the newcomer and raised here. Raises EnrolmentError's kinds and what `issue` raises.
    """
    identity = desk.identity()
    offer = Offer(VERSION, identity.certificate, identity.trust.bundle, desk.randomness.token(NONCE_BYTES))
    await _send(writer, offer, address)
    ask = await _receive(reader, Ask, address)
    try:
        body, known = _admit(desk, offer, ask, address)
        issued = await desk.issue(body, known)
    except BackhaulError as error:
        params = {name: value if isinstance(value, int) else str(value)[:500] for name, value in error.params.items()}
        await _send(writer, Answer(error.code, params), address)
        raise
    await _send(writer, make_answer(offer, ask, issued, identity), address)
    return body


def _admit(desk: Desk, offer: Offer, ask: Ask, address: str) -> tuple[AskBody, KnownSecret]:
    attempt = desk.limiter.begin(address)
    known = desk.secrets.find(ask.key_id) if len(ask.key_id) == KEY_ID_BYTES else None
    body = check_ask(offer, ask, known, desk.clock.wall_ns())
    assert known is not None, "check_ask refuses unknown secrets"
    if known.passphrase.kind is SecretKind.TOKEN and not desk.secrets.spend(ask.key_id):
        raise TokenSpent()
    desk.limiter.was_right(attempt)
    return body, known


StructT = TypeVar("StructT", bound=msgspec.Struct)


async def _send(writer: asyncio.StreamWriter, value: msgspec.Struct, peer: str) -> None:
    content = msgspec.msgpack.encode(value)
    if len(content) > MAX_ENROLMENT:
        raise EnrolmentMalformed(peer=peer, reason=f"a message to it has {len(content)} bytes")
    try:
        async with asyncio.timeout(STEP_S):
            writer.write(_LENGTH.pack(len(content)) + content)
            await writer.drain()
    except (OSError, TimeoutError) as error:
        raise EnrolmentError(peer=peer, reason=f"the connection broke: {error}") from error


async def _receive(reader: asyncio.StreamReader, kind: type[StructT], peer: str) -> StructT:
    try:
        async with asyncio.timeout(STEP_S):
            (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            if length > MAX_ENROLMENT:
                raise EnrolmentMalformed(peer=peer, reason=f"a message of {length} bytes is over the bounds")
            content = await reader.readexactly(length)
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        raise EnrolmentError(peer=peer, reason=f"the connection broke: {error}") from error
    try:
        return msgspec.msgpack.decode(content, type=kind)
    except UNDECODABLE as error:
        raise EnrolmentMalformed(peer=peer, reason=str(error)) from error
