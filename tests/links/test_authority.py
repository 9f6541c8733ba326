"""Issuing, renewing, revoking, changing the root; and what each refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from backhaul.links.authority import AUTHORITY_FILE, CROSS_OVER_NS, LEAF_NS, Authority, AuthorityStore
from backhaul.links.certificates import (
    DenyList,
    Expect,
    Trust,
    load_certificate,
    parse_identity,
    verify,
    verify_certificate,
)
from backhaul.links.errors import (
    AuthorityError,
    AuthorityExists,
    CertificateExpired,
    CertificateMalformed,
    CertificateRevoked,
    CertificateUntrusted,
    IdentityDamaged,
    RenewalRefused,
    RequestRefused,
    RoleRefused,
    RolloverPending,
    SignatureInvalid,
)
from backhaul.links.identity import Identity, KeySeal, TrustVerifier, key_to_bytes, make_csr, new_key
from backhaul.replication.ports import RealFiles, RealRandomness
from backhaul.replication.values import Role
from links.world import DAY_NS, HandClock, Vault, make_authority

AGENT = Role.AGENT


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def authority(tmp_path: Path, clock: HandClock) -> Authority:
    return make_authority(tmp_path / "ca", clock=clock)


def leaf(authority: Authority, peer_id: str = "a1", role: Role = AGENT) -> bytes:
    return authority.issue(make_csr(new_key()), role, peer_id)[0]


def test_an_issued_certificate_names_its_holder_for_90_days(authority: Authority, clock: HandClock) -> None:
    (der,) = authority.issue(
        make_csr(new_key()), Role.PROCESS_SERVER, "ps-1", dns=["ps.example"], addresses=["127.0.0.9", "::1"]
    )
    peer = verify_certificate(der, authority.trust, clock.wall_ns())
    assert (peer.vault, peer.role, peer.id) == ("v1", Role.PROCESS_SERVER, "ps-1")
    assert peer.uri == "backhaul://v1/process-server/ps-1"
    assert 0 <= clock.wall_ns() + 90 * DAY_NS - peer.expires_ns < 1_000_000_000
    certificate = load_certificate(der)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["ps.example"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.9", "::1"]
    uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(uses) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}


def test_the_request_decides_nothing_but_the_key(authority: Authority) -> None:
    key = new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "configuration-server/cs")])
    uri = x509.UniformResourceIdentifier("backhaul://v1/configuration-server/cs")
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    csr = builder.add_extension(x509.SubjectAlternativeName([uri]), critical=False).sign(key, hashes.SHA256())
    (der,) = authority.issue(csr.public_bytes(serialization.Encoding.DER), AGENT, "a1")
    assert parse_identity(der).name == "agent/a1"


def bad_signature(csr: bytes) -> bytes:
    return csr[:-1] + bytes([csr[-1] ^ 1])


def csr_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    "csr",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"0" * 9000, id="oversized"),
        pytest.param(make_csr(new_key())[:-5], id="truncated"),
        pytest.param(bad_signature(make_csr(new_key())), id="wrong-signature"),
        pytest.param(csr_of(ec.generate_private_key(ec.SECP384R1())), id="other-curve"),
    ],
)
def test_a_bad_request_is_refused(authority: Authority, csr: bytes) -> None:
    with pytest.raises(RequestRefused):
        authority.issue(csr, AGENT, "a1")


@pytest.mark.parametrize("peer_id", ["", "a/b", "a b", "-a", "ä", "a" * 129, "a\n"])
def test_an_id_that_could_be_read_otherwise_is_refused(authority: Authority, peer_id: str) -> None:
    with pytest.raises(RequestRefused):
        leaf(authority, peer_id)


def test_bad_addresses_and_too_many_names_are_refused(authority: Authority) -> None:
    csr = make_csr(new_key())
    with pytest.raises(RequestRefused):
        authority.issue(csr, AGENT, "a1", addresses=["127.0.0"])
    with pytest.raises(RequestRefused):
        authority.issue(csr, AGENT, "a1", dns=[f"h{number}.example" for number in range(40)])


def test_another_authority_of_the_same_name_is_not_believed(
    authority: Authority, other_vault: Vault, clock: HandClock
) -> None:
    with pytest.raises(CertificateUntrusted):
        verify_certificate(leaf(other_vault.authority), authority.trust, clock.wall_ns())


def test_a_leaf_cannot_issue(authority: Authority, clock: HandClock) -> None:
    """An agent signs a certificate for a configuration server, and even gets its own into a bundle."""
    key = new_key()
    (agent,) = authority.issue(make_csr(key), AGENT, "a1")
    issuer = load_certificate(agent)
    template = load_certificate(leaf(authority, "cs", Role.CONFIGURATION_SERVER))
    builder = x509.CertificateBuilder(
        issuer_name=issuer.subject,
        subject_name=template.subject,
        public_key=template.public_key(),
        serial_number=5,
        not_valid_before=template.not_valid_before_utc,
        not_valid_after=template.not_valid_after_utc,
    )
    for extension in template.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    forged = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    assert parse_identity(forged).role is Role.CONFIGURATION_SERVER
    for trust in (authority.trust, Trust((agent,))):
        with pytest.raises(CertificateUntrusted):
            verify_certificate(forged, trust, clock.wall_ns())


def test_a_root_is_no_identity(authority: Authority, clock: HandClock) -> None:
    with pytest.raises(CertificateMalformed):
        verify_certificate(authority.issuing.certificate, authority.trust, clock.wall_ns())


def signed_with(authority: Authority, names: list[x509.GeneralName], *, uses: bool = True) -> bytes:
    """A certificate of the true root that our issuing would never make."""
    root = authority.issuing
    issuer, template = load_certificate(root.certificate), load_certificate(leaf(authority))
    builder = x509.CertificateBuilder(
        issuer_name=issuer.subject,
        subject_name=template.subject,
        public_key=template.public_key(),
        serial_number=6,
        not_valid_before=template.not_valid_before_utc,
        not_valid_after=template.not_valid_after_utc,
    )
    for extension in template.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        elif uses or not isinstance(extension.value, x509.ExtendedKeyUsage):
            builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(root.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    "uris",
    [
        pytest.param([], id="none"),
        pytest.param(["backhaul://v1/agent/a1", "backhaul://v1/configuration-server/cs"], id="two"),
        pytest.param(["backhaul://v1/emperor/a1"], id="unknown-role"),
        pytest.param(["backhaul://v1/agent/a1/more"], id="longer"),
        pytest.param(["https://v1/agent/a1"], id="other-scheme"),
        pytest.param(["backhaul://V1/agent/a1"], id="vault-in-capitals"),
        pytest.param(["backhaul://v1/agent/a1\n"], id="line-end"),
    ],
)
def test_a_certificate_must_bear_exactly_one_name_of_ours(
    authority: Authority, clock: HandClock, uris: list[str]
) -> None:
    names: list[x509.GeneralName] = [x509.DNSName("x.example"), *map(x509.UniformResourceIdentifier, uris)]
    with pytest.raises(CertificateMalformed):
        verify_certificate(signed_with(authority, names), authority.trust, clock.wall_ns())


def test_a_certificate_must_be_for_links(authority: Authority, clock: HandClock) -> None:
    name = x509.UniformResourceIdentifier("backhaul://v1/agent/a1")
    assert verify_certificate(signed_with(authority, [name]), authority.trust, clock.wall_ns()).id == "a1"
    with pytest.raises(CertificateMalformed):
        verify_certificate(signed_with(authority, [name], uses=False), authority.trust, clock.wall_ns())


@pytest.mark.parametrize("der", [b"", b"\x30\x03abc", b"0" * 9000], ids=["empty", "garbage", "oversized"])
def test_what_is_no_certificate_is_malformed(authority: Authority, der: bytes) -> None:
    with pytest.raises(CertificateMalformed):
        verify_certificate(der, authority.trust, 0)


def test_valid_from_an_hour_before_until_90_days_after(authority: Authority, clock: HandClock) -> None:
    der, now = leaf(authority), clock.wall_ns()
    for good in (now - 3500 * 10**9, now, now + 90 * DAY_NS - 10**9):
        verify_certificate(der, authority.trust, good)
    with pytest.raises(CertificateExpired):
        verify_certificate(der, authority.trust, now + 90 * DAY_NS + 10**9)


def test_a_root_out_of_its_time_vouches_for_nothing(authority: Authority, clock: HandClock) -> None:
    with pytest.raises(CertificateUntrusted):
        verify_certificate(leaf(authority), authority.trust, clock.wall_ns() - 2 * 3600 * 10**9)


def test_a_revoked_certificate_is_denied_and_not_renewed_and_others_are(authority: Authority, clock: HandClock) -> None:
    revoked, kept = leaf(authority), leaf(authority)
    before = authority.trust
    trust = authority.revoke(certificate=revoked)
    assert trust.deny.revision == before.deny.revision + 1
    assert verify_certificate(kept, trust, clock.wall_ns()).id == "a1"
    with pytest.raises(CertificateRevoked):
        verify_certificate(revoked, trust, clock.wall_ns())
    with pytest.raises(RenewalRefused):
        authority.renew(revoked, make_csr(new_key()))


def test_a_revoked_name_is_denied_with_all_certificates_past_and_future(authority: Authority, clock: HandClock) -> None:
    first, second, other = leaf(authority), leaf(authority), leaf(authority, "a2")
    trust = authority.revoke(name="agent/a1")
    for der in (first, second):
        with pytest.raises(CertificateRevoked):
            verify_certificate(der, trust, clock.wall_ns())
    with pytest.raises(RequestRefused):
        leaf(authority)
    assert verify_certificate(other, trust, clock.wall_ns()).id == "a2"


def test_expired_serials_leave_the_deny_list_and_names_stay(authority: Authority, clock: HandClock) -> None:
    authority.revoke(certificate=leaf(authority))
    authority.revoke(name="agent/a9")
    clock.advance(91 * DAY_NS)
    trust = authority.revoke(certificate=leaf(authority))
    assert len(trust.deny.serials) == 1
    assert trust.deny.names == {"agent/a9"}


def test_renewal_keeps_the_names_and_may_change_the_key(authority: Authority, clock: HandClock) -> None:
    (old,) = authority.issue(make_csr(new_key()), AGENT, "a1", dns=["a.example"])
    clock.advance(80 * DAY_NS)
    (new,) = authority.renew(old, make_csr(new_key()))
    before, after = parse_identity(old), parse_identity(new)
    assert before.uri == after.uri
    assert before.serial != after.serial
    assert after.expires_ns > before.expires_ns
    assert load_certificate(new).public_key() != load_certificate(old).public_key()
    names = load_certificate(new).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a.example"]


def test_an_expired_or_foreign_certificate_is_not_renewed(
    authority: Authority, other_vault: Vault, clock: HandClock
) -> None:
    old = leaf(authority)
    with pytest.raises(RenewalRefused):
        authority.renew(leaf(other_vault.authority), make_csr(new_key()))
    clock.advance(91 * DAY_NS)
    with pytest.raises(RenewalRefused):
        authority.renew(old, make_csr(new_key()))


def test_rollover_trusts_both_roots_until_nothing_of_the_old_one_is_valid(
    authority: Authority, clock: HandClock
) -> None:
    old_root, first = authority.issuing, leaf(authority)
    trust = authority.roll_over()
    assert len(trust.bundle) == 2
    assert authority.issuing.certificate == old_root.certificate, "the new root issues only after the cross-over"
    with pytest.raises(RolloverPending):
        authority.roll_over()
    clock.advance(CROSS_OVER_NS - 1)
    last_of_old = leaf(authority)
    clock.advance(1)
    new_root, first_of_new = authority.issuing, leaf(authority)
    assert new_root.certificate == trust.bundle[1]
    for der in (first, last_of_old, first_of_new):
        verify_certificate(der, authority.trust, clock.wall_ns())
    with pytest.raises(CertificateUntrusted):
        verify_certificate(first_of_new, Trust((old_root.certificate,)), clock.wall_ns())
    clock.advance(LEAF_NS - 2 * 10**9)
    verify_certificate(last_of_old, authority.trust, clock.wall_ns())
    clock.advance(2 * DAY_NS)
    assert authority.trust.bundle == (new_root.certificate,)
    assert len(authority.roll_over().bundle) == 2, "the next change can begin"


def test_a_renewal_after_the_cross_over_comes_from_the_new_root(authority: Authority, clock: HandClock) -> None:
    old = leaf(authority)
    authority.roll_over()
    clock.advance(CROSS_OVER_NS)
    (new,) = authority.renew(old, make_csr(new_key()))
    verify_certificate(new, Trust((authority.issuing.certificate,)), clock.wall_ns())


def test_the_authority_outlives_its_process(tmp_path: Path, clock: HandClock) -> None:
    seal = KeySeal(seal=lambda key: b"sealed:" + key[::-1], open=lambda box: box[len(b"sealed:") :][::-1])
    authority = make_authority(tmp_path / "ca", clock=clock, seal=seal)
    store = AuthorityStore(RealFiles(), tmp_path / "ca", clock, RealRandomness(), seal)
    authority.roll_over()
    assert Authority.load(store).trust == authority.trust
    authority.revoke(name="agent/a9")
    again = Authority.load(store)
    assert again.trust == authority.trust
    assert verify_certificate(leaf(again), authority.trust, clock.wall_ns()).id == "a1"
    file = tmp_path / "ca" / AUTHORITY_FILE
    assert file.stat().st_mode & 0o777 == 0o600
    assert key_to_bytes(authority.issuing.key) not in file.read_bytes(), "the key is sealed"
    with pytest.raises(AuthorityExists):
        Authority.create("v1", store)


def test_a_damaged_authority_is_not_used(tmp_path: Path, authority: Authority, clock: HandClock) -> None:
    store = AuthorityStore(RealFiles(), tmp_path / "ca", clock, RealRandomness())
    file = tmp_path / "ca" / AUTHORITY_FILE
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(IdentityDamaged):
        Authority.load(store)
    with pytest.raises(AuthorityError):
        Authority.create("Not A Vault", AuthorityStore(RealFiles(), tmp_path / "b", clock, RealRandomness()))


# identities


def test_an_identity_outlives_its_process(tmp_path: Path, authority: Authority) -> None:
    identity = authority.own_identity(AGENT, "a1")
    seal = KeySeal(seal=lambda key: bytes(byte ^ 0x55 for byte in key), open=lambda box: bytes(b ^ 0x55 for b in box))
    identity.save(RealFiles(), tmp_path / "id", seal)
    again = Identity.load(RealFiles(), tmp_path / "id", seal)
    assert (again.chain, again.trust) == (identity.chain, identity.trust)
    assert again.key.public_key() == identity.key.public_key()
    assert key_to_bytes(identity.key) not in (tmp_path / "id" / "identity").read_bytes()
    assert all((tmp_path / "id" / name).stat().st_mode & 0o777 == 0o600 for name in ("identity", "trust"))


def test_an_identity_whose_key_is_anothers_is_not_used(tmp_path: Path, authority: Authority) -> None:
    identity = authority.own_identity(AGENT, "a1")
    identity.with_certificate(identity.chain, new_key()).save(RealFiles(), tmp_path / "id")
    with pytest.raises(IdentityDamaged):
        Identity.load(RealFiles(), tmp_path / "id")


def test_an_older_deny_list_does_not_replace_a_newer(authority: Authority) -> None:
    identity = authority.own_identity(AGENT, "a1")
    newer, older = DenyList(5, {}, frozenset({"agent/a2"})), DenyList(4)
    pushed = identity.with_trust(Trust(identity.trust.bundle, newer))
    assert pushed.with_trust(Trust(identity.trust.bundle, older)).trust.deny == newer


def test_renewal_is_due_in_the_last_third(authority: Authority, clock: HandClock) -> None:
    identity = authority.own_identity(AGENT, "a1")
    assert not identity.renewal_due(clock.wall_ns() + 59 * DAY_NS)
    assert identity.renewal_due(clock.wall_ns() + 60 * DAY_NS)


# signatures


def test_a_signature_holds_for_its_body_context_signer_and_role_only(authority: Authority, clock: HandClock) -> None:
    identity, other = authority.own_identity(AGENT, "a1"), authority.own_identity(AGENT, "a2")
    trust, now = authority.trust, clock.wall_ns()
    signature = identity.sign(b"open-request", b"body")

    def check(
        certificate: bytes = identity.certificate,
        context: bytes = b"open-request",
        body: bytes = b"body",
        signature: bytes = signature,
        role: Role = AGENT,
    ) -> str:
        return verify(certificate, context, body, signature, trust=trust, now_ns=now, expect_role=role).name

    assert check() == "agent/a1"
    for wrong in (
        {"body": b"Body"},
        {"context": b"open-answer"},
        {"context": b"open-request\0body", "body": b""},
        {"certificate": other.certificate},
        {"signature": b""},
        {"signature": signature[:-1]},
    ):
        with pytest.raises(SignatureInvalid):
            check(**wrong)  # type: ignore[arg-type]
    with pytest.raises(RoleRefused):
        check(role=Role.MASTER_TARGET)


def test_a_signature_of_a_denied_or_foreign_signer_is_refused(
    authority: Authority, other_vault: Vault, clock: HandClock
) -> None:
    identity, foreign = authority.own_identity(AGENT, "a1"), other_vault.identity(AGENT, "a1")
    verifier = TrustVerifier(lambda: authority.trust, clock)
    assert verifier.verify(identity.certificate, b"c", b"b", identity.sign(b"c", b"b")) == (AGENT, "a1")
    with pytest.raises(CertificateUntrusted):
        verifier.verify(foreign.certificate, b"c", b"b", foreign.sign(b"c", b"b"))
    authority.revoke(name="agent/a1")
    with pytest.raises(CertificateRevoked):
        verifier.verify(identity.certificate, b"c", b"b", identity.sign(b"c", b"b"))


def test_expectations_name_a_role_and_perhaps_an_id(authority: Authority) -> None:
    peer = parse_identity(leaf(authority))
    Expect(AGENT).check(peer)
    Expect(AGENT, "a1").check(peer)
    for wrong in (Expect(AGENT, "a2"), Expect(Role.PROCESS_SERVER), Expect(Role.PROCESS_SERVER, "a1")):
        with pytest.raises(RoleRefused):
            wrong.check(peer)
