"""What can go wrong on a link.

BackhaulError
├── LinkError            the way to a peer
│   ├── LinkLost ── LinkStalled, LinkEnded
│   ├── LinkUnreachable ── NameUnresolved, DataPortTaken; HandshakeFailed, ProtocolRefused, LinkMisconfigured
│   └── CertificateProblem ── Malformed, Untrusted, Expired, Revoked, Missing, RoleRefused, KeyHashWrong
├── SignatureInvalid
├── AuthorityError ── RequestRefused, RenewalRefused, RolloverPending, IdentityDamaged, AuthorityExists
├── TunnelError ── StreamReset, DestinationUnknown, TunnelFull, TunnelViolation
└── EnrolmentError ── PassphraseMalformed, PassphraseWrong, EnrolmentLimited, AuthorityMismatch, ...
"""

from __future__ import annotations

from backhaul.replication.errors import BackhaulError


class LinkError(BackhaulError):
    """The link to {peer} failed: {reason}."""

    code = "BH-LINK"
    fix = "The link is dialled again by itself; `backhaul doctor` shows which part of the way is broken."


class LinkLost(LinkError):
    """The link to {peer} was lost: {reason}."""

    code = "BH-LINK-LOST"
    fix = "The link is dialled again by itself; nothing that was acknowledged is lost."


class LinkStalled(LinkLost):
    """Nothing came from {peer} for {idle_s} seconds: the link is stalled and was cut."""

    code = "BH-LINK-STALLED"
    fix = "Check the network between both ends and whether the peer still runs; the link is dialled again by itself."


class LinkEnded(LinkLost):
    """The peer {peer} closed the link with {reason}."""

    code = "BH-LINK-ENDED"
    fix = "Look the peer's reason up by its code; an empty one is an ordinary stop."


class LinkUnreachable(LinkError):
    """No connection to {peer}: {reason}."""

    code = "BH-LINK-UNREACHABLE"
    fix = "Check address, port, routes and firewall; the address is tried again by itself."


class NameUnresolved(LinkUnreachable):
    """The name {peer} has no address: {reason}."""

    code = "BH-NAME-UNRESOLVED"
    fix = "Correct the name or the machine's name servers, or give the IP address."


class DataPortTaken(LinkUnreachable):
    """The data transfer port {peer} cannot be listened on: {reason}."""

    code = "BH-DATA-PORT"
    fix = "Choose a free port above 1023 that is not 443, 9443 by default, and open it in the firewall."


class HandshakeFailed(LinkError):
    """The TLS handshake with {peer} failed: {reason}."""

    code = "BH-HANDSHAKE-FAILED"
    fix = "Both ends need a valid certificate of the same vault and clocks that agree; see `backhaul doctor`."


class ProtocolRefused(LinkError):
    """The peer {peer} does not speak {protocol} here."""

    code = "BH-PROTOCOL-REFUSED"
    fix = "Check that the address and port are those of the server that is meant, and its version."


class LinkMisconfigured(LinkError):
    """The link to {peer} cannot be set up: {reason}."""

    code = "BH-LINK-MISCONFIGURED"
    fix = "Correct the setting that the reason names."


class CertificateProblem(LinkError):
    """The certificate of {peer} is not accepted: {reason}."""

    code = "BH-CERTIFICATE"
    fix = "Register the server or agent again with the connection passphrase."


class CertificateMalformed(CertificateProblem):
    """The certificate of {peer} is not one of Backhaul's: {reason}."""

    code = "BH-CERTIFICATE-MALFORMED"


class CertificateUntrusted(CertificateProblem):
    """The certificate of {peer} was not issued by this vault's authority."""

    code = "BH-CERTIFICATE-UNTRUSTED"
    fix = "Check that both ends belong to the same vault; a machine that slept through a CA rollover registers again."


class CertificateExpired(CertificateProblem):
    """The certificate of {peer} is valid from {begin} to {end} only, and it is {now}."""

    code = "BH-CERTIFICATE-EXPIRED"
    fix = "Check the clocks of both ends; if they are right, register the server or agent again."


class CertificateRevoked(CertificateProblem):
    """The certificate of {peer} was revoked."""

    code = "BH-CERTIFICATE-REVOKED"
    fix = "Nothing to do if it was deleted on purpose; otherwise register it again under a new name."


class CertificateMissing(CertificateProblem):
    """The peer {peer} showed no certificate, which {protocol} requires."""

    code = "BH-CERTIFICATE-MISSING"
    fix = "Register the server or agent with the connection passphrase."


class RoleRefused(CertificateProblem):
    """The peer {peer} is not what was expected here: {expected}."""

    code = "BH-ROLE-REFUSED"
    fix = "Check that the address belongs to the server that is meant."


class KeyHashWrong(CertificateProblem):
    """The server at {peer} holds the key {found}, but {expected} was read back from it."""

    code = "BH-KEY-HASH-WRONG"
    fix = (
        "Read the key's hash on the server's console again. If it still differs, somebody else answers at its address."
    )


class SignatureInvalid(BackhaulError):
    """The signature over {context} by {signer} is not valid."""

    code = "BH-SIGNATURE-INVALID"
    fix = "What was signed was altered, or is not what it claims to be; it was not used."


class AuthorityError(BackhaulError):
    """The certificate authority of the vault failed: {reason}."""

    code = "BH-AUTHORITY"


class RequestRefused(AuthorityError):
    """The certificate request for {peer} is refused: {reason}."""

    code = "BH-REQUEST-REFUSED"
    fix = "Register again with a new name and key."


class RenewalRefused(AuthorityError):
    """The certificate of {peer} is not renewed: {reason}."""

    code = "BH-RENEWAL-REFUSED"
    fix = "Register the server or agent again with the connection passphrase."


class RolloverPending(AuthorityError):
    """The authority is still changing over to the root made at {begin}; until {end} both are trusted."""

    code = "BH-ROLLOVER-PENDING"
    fix = "Wait until the present change is over before starting another."


class AuthorityExists(AuthorityError):
    """The folder {folder} holds a certificate authority already."""

    code = "BH-AUTHORITY-EXISTS"
    fix = "Open the vault that is there, or choose another folder."


class IdentityDamaged(AuthorityError):
    """The identity in {folder} cannot be read: {reason}."""

    code = "BH-IDENTITY-DAMAGED"
    fix = "Restore the folder from its copy, or register the server or agent again."


class TunnelError(BackhaulError):
    """The tunnel to {peer} failed: {reason}."""

    code = "BH-TUNNEL"
    fix = "The tunnel is set up again by itself."


class StreamReset(TunnelError):
    """A stream to {destination} through the tunnel to {peer} was reset: {reason}."""

    code = "BH-TUNNEL-RESET"
    fix = "Try again; the reason names the end that gave up."


class DestinationUnknown(StreamReset):
    """The end {peer} of the tunnel offers no destination named {destination}."""

    code = "BH-TUNNEL-DESTINATION"
    fix = "Check which services the other end offers, and its version."


class TunnelFull(StreamReset):
    """The tunnel to {peer} has as many streams open as it may: {bound}."""

    code = "BH-TUNNEL-FULL"
    fix = "Try again when others have ended."


class TunnelViolation(TunnelError):
    """The end {peer} of the tunnel broke its rules: {reason}."""

    code = "BH-TUNNEL-VIOLATION"
    fix = "Compare the versions of both ends; the tunnel was closed."


class EnrolmentError(BackhaulError):
    """Registering with {peer} failed: {reason}."""

    code = "BH-ENROLMENT"
    fix = "See the reason, then register again."


class PassphraseMalformed(EnrolmentError):
    """The connection passphrase is not complete or has a typing error: {reason}."""

    code = "BH-PASSPHRASE-MALFORMED"
    fix = "Copy it once more, whole; `backhaul server passphrase show` on the configuration server shows it."


class PassphraseWrong(EnrolmentError):
    """The connection passphrase is not this vault's present one."""

    code = "BH-PASSPHRASE-WRONG"
    fix = "It may have been changed since: get the present one with `backhaul server passphrase show`."


class EnrolmentLimited(EnrolmentError):
    """Too many wrong passphrases came from {peer} or in all; the next try is possible in {wait_s} seconds."""

    code = "BH-ENROLMENT-LIMITED"
    fix = "Wait, then register with the right passphrase."


class AuthorityMismatch(EnrolmentError):
    """The server at {peer} is not the one the passphrase was made by; nothing was sent to it."""

    code = "BH-AUTHORITY-MISMATCH"
    fix = "Check address and port of the configuration server, and that the passphrase is its present one."


class TokenSpent(EnrolmentError):
    """The one-time token was used before or has expired."""

    code = "BH-TOKEN-SPENT"
    fix = "Deploy the server again, or register it with the connection passphrase."


class EnrolmentMalformed(EnrolmentError):
    """What came from {peer} during registration is not well formed: {reason}."""

    code = "BH-ENROLMENT-MALFORMED"
    fix = "Compare the versions of both ends, and check that the port is the configuration server's."


class EnrolmentRefused(EnrolmentError):
    """The configuration server refused to register {peer}: {reason}."""

    code = "BH-ENROLMENT-REFUSED"
    fix = "See the reason; a name in use by another server cannot be taken over."
