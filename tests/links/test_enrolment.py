"""Enrolment: right and wrong secrets, either way of dialling, limits, tokens, and what crosses the wire."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backhaul.links.certificates import Trust, key_hash, verify_certificate
from backhaul.links.dialer import Address, dial_enrolment
from backhaul.links.enrolment import (
    Answer,
    Ask,
    AskBody,
    Desk,
    Enrolled,
    Issued,
    KnownSecret,
    Offer,
    SecretBook,
    check_answer,
    check_ask,
    check_offer,
    enrol,
    make_answer,
    make_ask,
    serve_enrolment,
)
from backhaul.links.enrolment_limits import Limiter, MemoryFailures
from backhaul.links.errors import (
    AuthorityMismatch,
    CertificateExpired,
    EnrolmentError,
    EnrolmentLimited,
    EnrolmentMalformed,
    EnrolmentRefused,
    KeyHashWrong,
    PassphraseMalformed,
    PassphraseWrong,
    TokenSpent,
)
from backhaul.links.identity import make_csr, make_self_made, new_key
from backhaul.links.listener import Caller, stream_route
from backhaul.links.passphrase import PIN_BYTES, SECRET_BYTES, Passphrase, SecretKind, make_passphrase, parse_passphrase
from backhaul.links.tls import ALPN_ENROL, Credentials
from backhaul.replication.errors import BackhaulError
from backhaul.replication.ports import RealClock, RealRandomness
from backhaul.replication.values import Role
from links.faultproxy import FaultProxy
from links.world import HandClock, Vault, listening

# the text form


@given(st.binary(min_size=PIN_BYTES, max_size=PIN_BYTES), st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES))
def test_the_text_form_comes_back_however_it_is_typed(pin: bytes, secret: bytes) -> None:
    for kind in SecretKind:
        passphrase = Passphrase(kind, pin, secret)
        text = passphrase.text()
        for typed in (text, text.lower(), text.replace("-", ""), f"  {text.replace('-', ' ')}\n"):
            assert parse_passphrase(typed) == passphrase
        assert parse_passphrase(text.replace("O", "0").replace("I", "1").replace("B", "8")) == passphrase


def example() -> Passphrase:
    return Passphrase(SecretKind.PASSPHRASE, b"p" * PIN_BYTES, b"s" * SECRET_BYTES)


def test_its_form_is_16_groups_of_4() -> None:
    text = example().text()
    assert text.startswith("bhp1.")
    assert [len(group) for group in text[5:].split("-")] == [4] * 16


def test_one_wrong_character_is_found_wherever_it_is() -> None:
    text = example().text()
    for place in range(5, len(text)):
        if text[place] != "-":
            wrong = text[:place] + ("A" if text[place] != "A" else "C") + text[place + 1 :]
            with pytest.raises(PassphraseMalformed) as caught:
                parse_passphrase(wrong)
            assert text[10:20] not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: "", id="empty"),
        pytest.param(lambda text: text[:-1], id="short"),
        pytest.param(lambda text: text + "A", id="long"),
        pytest.param(lambda text: text.replace("bhp1", "bht1"), id="other-kind"),
        pytest.param(lambda text: text.replace("bhp1", "bhp2"), id="unknown-kind"),
        pytest.param(lambda text: text[:5] + "ÄÄÄÄ" + text[9:], id="letters-of-no-base32"),
        pytest.param(lambda text: text[:5] + text[10:14] + "-" + text[5:9] + text[14:], id="groups-exchanged"),
    ],
)
def test_what_is_no_passphrase_is_refused(change: object) -> None:
    varied = Passphrase(SecretKind.PASSPHRASE, bytes(range(PIN_BYTES)), bytes(range(SECRET_BYTES)))
    with pytest.raises(PassphraseMalformed):
        parse_passphrase(change(varied.text()))  # type: ignore[operator]


def test_no_repr_tells_the_secret() -> None:
    assert "s" * 10 not in repr(example())
    assert "s" * 10 not in repr(KnownSecret(example()))


# the conversation, pure


class Play:
    """Both ends' values of one conversation, to be changed by a test."""

    def __init__(self, vault: Vault) -> None:
        self.vault = vault
        self.now = RealClock().wall_ns()
        self.desk = vault.identity(Role.CONFIGURATION_SERVER, "cs")
        self.passphrase = make_passphrase(vault.authority.issuing.certificate, RealRandomness())
        self.offer = Offer(1, self.desk.certificate, self.desk.trust.bundle, b"n" * 32)
        self.key = new_key()
        self.ask = make_ask(self.offer, self.passphrase, AskBody(make_csr(self.key), Role.PROCESS_SERVER, "ps1"))

    def issued(self, key: object = None, role: Role = Role.PROCESS_SERVER, peer_id: str = "ps1") -> Issued:
        csr = make_csr(self.key if key is None else new_key())
        return Issued(self.vault.authority.issue(csr, role, peer_id), self.vault.authority.trust, {"port": 9443})

    def check_ask(self, ask: Ask, offer: Offer | None = None) -> AskBody:
        return check_ask(offer or self.offer, ask, KnownSecret(self.passphrase), self.now)

    def check_answer(self, answer: Answer, offer: Offer | None = None) -> Enrolled:
        return check_answer(offer or self.offer, self.ask, answer, self.key, self.passphrase, self.now)


@pytest.fixture
def play(vault: Vault) -> Play:
    return Play(vault)


def test_the_whole_conversation(play: Play) -> None:
    assert check_offer(play.offer, play.passphrase, play.now, "cs").name == "configuration-server/cs"
    assert play.check_ask(play.ask).id == "ps1"
    enrolled = play.check_answer(make_answer(play.offer, play.ask, play.issued(), play.desk))
    assert enrolled.identity.peer.uri == "backhaul://v1/process-server/ps1"
    assert enrolled.identity.trust == play.vault.authority.trust
    assert enrolled.information == {"port": 9443}


def test_a_desk_of_another_authority_is_refused(play: Play, other_vault: Vault) -> None:
    other = other_vault.identity(Role.CONFIGURATION_SERVER, "cs")
    true_root = play.offer.roots[0]
    for roots in (other.trust.bundle, (*other.trust.bundle, true_root), ()):
        with pytest.raises(AuthorityMismatch):
            check_offer(Offer(1, other.certificate, roots, b"n" * 32), play.passphrase, play.now, "cs")


def test_another_server_of_the_vault_is_no_desk(play: Play) -> None:
    agent = play.vault.identity(Role.AGENT, "a1")
    with pytest.raises(AuthorityMismatch):
        check_offer(Offer(1, agent.certificate, agent.trust.bundle, b"n" * 32), play.passphrase, play.now, "cs")


def test_a_wrong_clock_is_named(play: Play) -> None:
    with pytest.raises(CertificateExpired):
        check_offer(play.offer, play.passphrase, play.now + 100 * 24 * 3600 * 10**9, "cs")


def test_a_proof_holds_for_its_secret_body_nonce_and_desk_only(play: Play) -> None:
    other_body = msgspec.msgpack.encode(AskBody(make_csr(new_key()), Role.PROCESS_SERVER, "ps1"))
    stranger = make_passphrase(play.vault.authority.issuing.certificate, RealRandomness())
    desk2 = play.vault.identity(Role.CONFIGURATION_SERVER, "cs2")
    wrong: list[tuple[Ask, Offer]] = [
        (Ask(play.ask.key_id, other_body, play.ask.proof), play.offer),
        (Ask(play.ask.key_id, play.ask.body, bytes(32)), play.offer),
        (Ask(play.ask.key_id, play.ask.body, b""), play.offer),
        (make_ask(play.offer, stranger, msgspec.msgpack.decode(play.ask.body, type=AskBody)), play.offer),
        (play.ask, Offer(1, play.offer.certificate, play.offer.roots, b"m" * 32)),
        (play.ask, Offer(1, desk2.certificate, play.offer.roots, play.offer.nonce)),
    ]
    for ask, offer in wrong:
        with pytest.raises(PassphraseWrong):
            play.check_ask(ask, offer)
    with pytest.raises(PassphraseWrong):
        check_ask(play.offer, play.ask, None, play.now)


def test_a_body_is_read_only_after_its_proof(play: Play) -> None:
    garbage = b"\xc1"
    with pytest.raises(PassphraseWrong):
        play.check_ask(Ask(play.ask.key_id, garbage, play.ask.proof))


def test_an_answer_that_was_altered_or_is_another_ones_is_refused(play: Play, other_vault: Vault) -> None:
    good = make_answer(play.offer, play.ask, play.issued(), play.desk)
    other_desk = other_vault.identity(Role.CONFIGURATION_SERVER, "cs")
    other_ask = make_ask(play.offer, play.passphrase, AskBody(make_csr(play.key), Role.PROCESS_SERVER, "ps2"))
    for bad in (
        Answer("", {}, good.body[:-1] + b"x", good.signature),
        Answer("", {}, good.body, b""),
        make_answer(play.offer, play.ask, play.issued(), other_desk),
        make_answer(play.offer, other_ask, play.issued(), play.desk),
        make_answer(play.offer, play.ask, play.issued(key=1), play.desk),
        make_answer(play.offer, play.ask, play.issued(role=Role.AGENT), play.desk),
        make_answer(play.offer, play.ask, play.issued(peer_id="ps2"), play.desk),
        make_answer(play.offer, play.ask, Issued((), play.vault.authority.trust, {}), play.desk),
        make_answer(play.offer, play.ask, Issued(play.issued().chain, Trust(()), {}), play.desk),
    ):
        with pytest.raises(EnrolmentMalformed):
            play.check_answer(bad)


def test_a_refusal_keeps_its_kind_and_cannot_name_any_class(play: Play) -> None:
    with pytest.raises(PassphraseWrong):
        play.check_answer(Answer("BH-PASSPHRASE-WRONG", {"self": 1, "x": "{y}"}))
    for code in ("BH-FRAME-FORGED", "nonsense"):
        with pytest.raises(EnrolmentRefused):
            play.check_answer(Answer(code, {"reason": "x"}))


def test_a_token_is_for_its_time_role_and_id(play: Play) -> None:
    known = KnownSecret(play.passphrase, play.now + 1, Role.PROCESS_SERVER, "ps1")
    assert check_ask(play.offer, play.ask, known, play.now).id == "ps1"
    with pytest.raises(TokenSpent):
        check_ask(play.offer, play.ask, known, play.now + 1)
    for other in (replace(known, role=Role.AGENT), replace(known, id="ps2")):
        with pytest.raises(EnrolmentMalformed):
            check_ask(play.offer, play.ask, other, play.now)


# over the wire


class Office:
    """A configuration server that registers newcomers on loopback."""

    def __init__(self, vault: Vault) -> None:
        self.vault = vault
        self.clock = HandClock()
        self.passphrase = make_passphrase(vault.authority.issuing.certificate, RealRandomness())
        self.book = SecretBook(self.passphrase)
        self.issued: list[str] = []
        self.refused: list[str] = []
        self.credentials = vault.credentials(Role.CONFIGURATION_SERVER, "cs")
        self.desk = Desk(
            identity=lambda: self.credentials.identity,
            secrets=self.book,
            limiter=Limiter(MemoryFailures(), self.clock, per_address=3, in_all=5),
            issue=self.issue,
            clock=self.clock,
            randomness=RealRandomness(),
        )

    async def issue(self, body: AskBody, known: KnownSecret) -> Issued:
        if body.id == "taken":
            raise EnrolmentRefused(peer=body.id, reason="this name is in use")
        chain = self.vault.authority.issue(body.csr, body.role, body.id, dns=body.dns, addresses=body.addresses)
        self.issued.append(f"{body.role}/{body.id}")
        return Issued(chain, self.vault.authority.trust, {"name": "cs"})

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller) -> None:
        try:
            await serve_enrolment(reader, writer, self.desk, address=caller.host)
        except BackhaulError as error:
            self.refused.append(error.code)
            raise

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        async with listening(self.credentials, {ALPN_ENROL: stream_route(self.handle)}) as listener:
            yield listener.port


@pytest.fixture
def office(vault: Vault) -> Office:
    return Office(vault)


async def register(port: int, passphrase: Passphrase, peer_id: str = "ps1") -> Enrolled:
    dialled = await dial_enrolment(Address("127.0.0.1", port))
    try:
        return await enrol(
            dialled.reader,
            dialled.writer,
            passphrase,
            Role.PROCESS_SERVER,
            peer_id,
            clock=RealClock(),
            peer=f"127.0.0.1:{port}",
            addresses=("127.0.0.7",),
        )
    finally:
        dialled.writer.close()


async def test_a_newcomer_that_dials_gets_an_identity_that_works(office: Office) -> None:
    async with office.open() as port:
        enrolled = await register(port, parse_passphrase(office.passphrase.text()))
    trust = office.vault.authority.trust
    peer = verify_certificate(enrolled.identity.certificate, trust, RealClock().wall_ns())
    assert peer.name == "process-server/ps1"
    assert office.issued == ["process-server/ps1"]
    assert enrolled.information == {"name": "cs"}


async def test_a_newcomer_that_listens_is_dialled_by_its_keys_hash(office: Office) -> None:
    """Home dials out: the new server listens for enrolment only, and the configuration server dials in."""
    self_made = make_self_made(RealClock(), RealRandomness())
    enrolled: asyncio.Queue[Enrolled] = asyncio.Queue()

    async def newcomer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller) -> None:
        enrolled.put_nowait(
            await enrol(reader, writer, office.passphrase, Role.PROCESS_SERVER, "ps9", clock=RealClock(), peer="cs")
        )

    routes = {ALPN_ENROL: stream_route(newcomer)}
    async with listening(Credentials(self_made, RealClock()), routes) as listener:
        address = Address("127.0.0.1", listener.port)
        with pytest.raises(KeyHashWrong):
            await dial_enrolment(address, hashlib.sha256(b"another").digest())
        dialled = await dial_enrolment(address, key_hash(self_made.certificate))
        await serve_enrolment(dialled.reader, dialled.writer, office.desk, address="127.0.0.1")
        assert (await enrolled.get()).identity.peer.name == "process-server/ps9"
        dialled.writer.close()
    assert office.issued == ["process-server/ps9"]


@contextlib.asynccontextmanager
async def plain_desk(office: Office) -> AsyncIterator[int]:
    """The desk over plain TCP, so that a recorder sees what TLS would hide."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(BackhaulError):
            await serve_enrolment(reader, writer, office.desk, address="127.0.0.1")
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def plain_register(port: int, passphrase: Passphrase) -> Enrolled:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await enrol(reader, writer, passphrase, Role.PROCESS_SERVER, "ps1", clock=RealClock(), peer="the desk")
    finally:
        writer.close()


async def test_the_secret_never_crosses_the_wire(office: Office) -> None:
    async with plain_desk(office) as port, FaultProxy(port) as proxy:
        await plain_register(proxy.port, office.passphrase)
        wire = bytes(proxy.recorded["up"] + proxy.recorded["down"])
    assert b"process-server" in wire, "the recorder saw the conversation"
    secret, text = office.passphrase.secret, office.passphrase.text().replace("-", "").encode()
    for size in (8, SECRET_BYTES):
        assert all(secret[start : start + size] not in wire for start in range(SECRET_BYTES - size + 1))
    assert hashlib.sha256(secret).digest() not in wire
    assert text[-24:] not in wire
    assert text[:16] not in wire


async def test_nothing_is_sent_to_a_desk_that_does_not_fit(office: Office, other_vault: Vault) -> None:
    other = make_passphrase(other_vault.authority.issuing.certificate, RealRandomness())
    async with plain_desk(office) as port, FaultProxy(port) as proxy:
        with pytest.raises(AuthorityMismatch):
            await plain_register(proxy.port, other)
        assert proxy.passed["up"] == 0
        assert proxy.passed["down"] > 0


async def test_a_wrong_secret_is_named_and_counted_and_limited(office: Office) -> None:
    wrong = make_passphrase(office.vault.authority.issuing.certificate, RealRandomness())
    async with office.open() as port:
        for _ in range(3):
            with pytest.raises(PassphraseWrong):
                await register(port, wrong)
        for passphrase in (wrong, office.passphrase):
            with pytest.raises(EnrolmentLimited) as caught:
                await register(port, passphrase)
            assert caught.value.params["wait_s"] == 600
        office.clock.advance(601 * 10**9)
        await register(port, office.passphrase)
    assert office.issued == ["process-server/ps1"]
    assert office.refused == ["BH-PASSPHRASE-WRONG"] * 3 + ["BH-ENROLMENT-LIMITED"] * 2


async def test_right_ones_are_not_counted(office: Office) -> None:
    async with office.open() as port:
        for number in range(10):
            await register(port, office.passphrase, f"ps{number}")
    assert len(office.issued) == 10


async def test_many_wrong_ones_at_once_pass_no_more_than_the_bound(office: Office) -> None:
    wrong = make_passphrase(office.vault.authority.issuing.certificate, RealRandomness())
    async with office.open() as port:
        results = await asyncio.gather(*(register(port, wrong) for _ in range(8)), return_exceptions=True)
    kinds = [type(result) for result in results]
    assert kinds.count(PassphraseWrong) == 3
    assert kinds.count(EnrolmentLimited) == 5


async def test_the_passphrase_of_yesterday_is_wrong_after_rotation(office: Office) -> None:
    fresh = make_passphrase(office.vault.authority.issuing.certificate, RealRandomness())
    office.book.rotate(fresh)
    async with office.open() as port:
        with pytest.raises(PassphraseWrong):
            await register(port, office.passphrase)
        await register(port, fresh)


async def test_a_token_works_once(office: Office) -> None:
    root = office.vault.authority.issuing.certificate
    token = make_passphrase(root, RealRandomness(), SecretKind.TOKEN)
    late = office.clock.wall_ns() + 10**9
    office.book.add_token(KnownSecret(token, late, Role.PROCESS_SERVER, "ps1"))
    async with office.open() as port:
        typed = parse_passphrase(token.text())
        with pytest.raises(EnrolmentMalformed):
            await register(port, typed, "ps2")
        await register(port, typed)
        with pytest.raises(PassphraseWrong):
            await register(port, typed)
    assert office.issued == ["process-server/ps1"]


async def test_an_expired_token_is_refused(office: Office) -> None:
    token = make_passphrase(office.vault.authority.issuing.certificate, RealRandomness(), SecretKind.TOKEN)
    office.book.add_token(KnownSecret(token, office.clock.wall_ns() + 10**9))
    office.clock.advance(10**9)
    async with office.open() as port:
        with pytest.raises(TokenSpent):
            await register(port, token)
    assert office.issued == []


async def test_what_the_configuration_server_refuses_reaches_the_newcomer(office: Office) -> None:
    async with office.open() as port:
        with pytest.raises(EnrolmentRefused) as caught:
            await register(port, office.passphrase, "taken")
    assert caught.value.params["reason"] == "this name is in use"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xff\xff\xff\xff", id="oversized"),
        pytest.param(b"\x00\x00\x00\x01\xc1", id="no-message"),
        pytest.param(b"\x00\x00\x00\x09abc", id="truncated"),
    ],
)
async def test_bytes_that_are_no_enrolment_harm_no_other(office: Office, data: bytes) -> None:
    async with office.open() as port:
        dialled = await dial_enrolment(Address("127.0.0.1", port))
        dialled.writer.write(data)
        dialled.writer.close()
        with contextlib.suppress(OSError):
            await dialled.writer.wait_closed()
        await register(port, office.passphrase)
    assert office.issued == ["process-server/ps1"]


async def test_a_desk_that_talks_nonsense_is_an_error_for_people() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    with pytest.raises(EnrolmentError):
        await plain_register(server.sockets[0].getsockname()[1], example())
    server.close()
    await server.wait_closed()


# limits


def test_limits_count_per_address_and_in_all() -> None:
    clock = HandClock()
    limiter = Limiter(MemoryFailures(), clock, per_address=2, in_all=3, window_s=10)
    limiter.begin("a")
    clock.advance(4 * 10**9)
    limiter.begin("a")
    with pytest.raises(EnrolmentLimited) as caught:
        limiter.begin("a")
    assert caught.value.params["wait_s"] == 6
    limiter.begin("b")
    with pytest.raises(EnrolmentLimited):
        limiter.begin("c")
    clock.advance(7 * 10**9)
    limiter.begin("c")
    with pytest.raises(EnrolmentLimited):
        limiter.begin("d")


def test_a_right_try_is_taken_back() -> None:
    limiter = Limiter(MemoryFailures(), HandClock(), per_address=1)
    for _ in range(5):
        limiter.was_right(limiter.begin("a"))
    limiter.begin("a")
    with pytest.raises(EnrolmentLimited):
        limiter.begin("a")
