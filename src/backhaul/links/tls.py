"""TLS of every link: 1.3 only, certificates of our own authority, ALPN decides what is spoken.

Invariant: `Gate` admits a peer in the call in which asyncio reports the end of the handshake, before it has
delivered one byte; a refused peer's bytes are never parsed. `Credentials` is the one place that knows the present
identity; replacing it (renewal, pushed trust) changes all later handshakes and cuts links to peers that are no
longer believed. Used on the event loop only.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import weakref
from collections.abc import Callable, Sequence
from typing import Final, cast

import structlog
from cryptography.hazmat.primitives import serialization

from backhaul.links.certificates import PeerIdentity, key_hash, verify_certificate
from backhaul.links.cutting import cut
from backhaul.links.errors import CertificateProblem, HandshakeFailed, KeyHashWrong, ProtocolRefused
from backhaul.links.identity import Identity
from backhaul.replication.errors import BackhaulError
from backhaul.replication.ports import Clock

ALPN_DATA: Final = "bh-data/1"
ALPN_TUNNEL: Final = "bh-tunnel/1"
ALPN_ENROL: Final = "bh-enrol/1"
ALPN_HTTP: Final = "http/1.1"
"""Also what a client speaks that names no protocol, as plain HTTP libraries do."""

CERTIFICATE_REQUIRED: Final = frozenset({ALPN_DATA, ALPN_TUNNEL})

HANDSHAKE_S: Final = 10.0
"""A handshake is two round trips; a peer that takes longer holds a slot that others need."""

SHUTDOWN_S: Final = 5.0

_log = structlog.get_logger(__name__)


class Credentials:
    """The present identity of this server or agent, and the TLS contexts made from it."""

    def __init__(self, identity: Identity, clock: Clock) -> None:
        self._identity = identity
        self._clock = clock
        self._contexts: dict[tuple[bool, tuple[str, ...]], ssl.SSLContext] = {}
        self._guarded: weakref.WeakKeyDictionary[asyncio.BaseTransport, PeerIdentity] = weakref.WeakKeyDictionary()

    @property
    def identity(self) -> Identity:
        """The present identity."""
        return self._identity

    def replace(self, identity: Identity) -> None:
        """Use `identity` from now on, and cut links to peers that it does not believe."""
        self._identity = identity
        self._contexts.clear()
        self.sweep()

    def sweep(self) -> None:
        """Cut every link whose peer's certificate was revoked, has expired, or lost its root since its handshake."""
        for transport, peer in list(self._guarded.items()):
            try:
                verify_certificate(peer.certificate_der, self._identity.trust, self._clock.wall_ns())
            except CertificateProblem as error:
                _log.warning("link.cut", peer=peer.name, code=error.code)
                cut(transport)
                del self._guarded[transport]

    def guard(self, transport: asyncio.BaseTransport, peer: PeerIdentity) -> None:
        """Let `sweep` watch over an admitted peer."""
        self._guarded[transport] = peer

    def server_context(self, protocols: Sequence[str]) -> ssl.SSLContext:
        """For accepting; asks for a certificate of our authority, and whether one must be there `Gate` decides."""
        return self._context(True, tuple(protocols))

    def client_context(self, protocol: str) -> ssl.SSLContext:
        """For dialling; the server must have a certificate of our authority. Its host name means nothing to us."""
        return self._context(False, (protocol,))

    def peer_of(self, tls: ssl.SSLObject) -> PeerIdentity | None:
        """Who the peer proved to be; None when it showed no certificate. Raises CertificateProblem's kinds."""
        der = tls.getpeercert(binary_form=True)
        return verify_certificate(der, self._identity.trust, self._clock.wall_ns()) if der else None

    def _context(self, server: bool, protocols: tuple[str, ...]) -> ssl.SSLContext:
        known = self._contexts.get((server, protocols))
        if known is None:
            known = self._contexts[server, protocols] = _make_context(self._identity, server, protocols)
        return known


def _make_context(identity: Identity, server: bool, protocols: tuple[str, ...]) -> ssl.SSLContext:
    context = _bare_context(server, protocols)
    _load_key(context, identity)
    bundle = b"".join(identity.trust.bundle)
    if bundle:
        context.load_verify_locations(cadata=bundle)
        context.verify_mode = ssl.CERT_OPTIONAL if server else ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    elif not server:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _bare_context(server: bool, protocols: Sequence[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    if server:
        context.num_tickets = 0  # a resumed session would bypass the certificate's check
    context.set_alpn_protocols(list(protocols))
    return context


def unverified_context(protocol: str) -> ssl.SSLContext:
    """For dialling a server that has no certificate yet, or of which we have no bundle yet: enrolment only.

    What is read through it is believed only after the passphrase's or the key's hash was checked.
    """
    return _bare_context(False, (protocol,))


def check_key_hash(tls: ssl.SSLObject, expected: bytes, address: str) -> None:
    """The server at `address` holds the key whose hash was read back from it. Raises KeyHashWrong."""
    der = tls.getpeercert(binary_form=True)
    found = key_hash(der) if der else b""
    if found != expected:
        raise KeyHashWrong(peer=address, found=found.hex(), expected=expected.hex())


def _load_key(context: ssl.SSLContext, identity: Identity) -> None:
    """`ssl` takes keys from files only; this one lives in memory and has no name."""
    pem = identity.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem += b"".join(ssl.DER_cert_to_PEM_cert(der).encode() for der in identity.chain)
    descriptor = os.memfd_create("backhaul-key", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


Admission = Callable[[asyncio.Transport, ssl.SSLObject], asyncio.BaseProtocol]
"""Decides about a peer after its handshake: the protocol to speak with it, or raises BackhaulError."""


class Gate(asyncio.Protocol):
    """The protocol of a transport until its peer is admitted; bytes of a refused peer fall into it and vanish."""

    def __init__(self, admit: Admission, farewell: Callable[[ssl.SSLObject, BackhaulError], bytes]) -> None:
        self.refused: BackhaulError | None = None
        self._admit = admit
        self._farewell = farewell

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is over."""
        tls = transport.get_extra_info("ssl_object")
        stream = cast(asyncio.Transport, transport)
        try:
            protocol = self._admit(stream, tls)
        except BackhaulError as error:
            self.refused = error
            last = self._farewell(tls, error)
            if last:
                stream.write(last)
                stream.close()
            else:
                cut(stream)
            return
        except Exception:
            # asyncio would keep the handshake's slot and the socket for ever.
            _log.exception("gate.failed")
            self.refused = HandshakeFailed(peer="unknown", reason="this end failed to take the connection")
            cut(stream)
            return
        stream.set_protocol(protocol)
        protocol.connection_made(stream)


def check_protocol(tls: ssl.SSLObject, expected: str, address: str) -> None:
    """The server at `address` took the protocol that was offered. Raises ProtocolRefused."""
    if tls.selected_alpn_protocol() != expected:
        raise ProtocolRefused(peer=address, protocol=expected)
