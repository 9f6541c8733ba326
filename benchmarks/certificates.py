"""Identities of one run, made by our own authority: for our services, and as files for programs that use GnuTLS."""

from __future__ import annotations

import ssl
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from backhaul.links.authority import Authority, AuthorityStore
from backhaul.links.identity import Identity
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness
from backhaul.replication.values import Role

HOST = "127.0.0.1"


def make_authority(folder: Path) -> Authority:
    """A new authority in `folder`."""
    return Authority.create("bench", AuthorityStore(RealFiles(), folder, RealClock(), RealRandomness()))


def gnutls_folder(authority: Authority, folder: Path) -> Path:
    """A folder as nbdkit and libnbd want it: one identity, for the server's side and for the client's."""
    identity = authority.own_identity(Role.PROCESS_SERVER, "gnutls", addresses=[HOST], dns=["localhost"])
    folder.mkdir(mode=0o700)
    certificate = "".join(ssl.DER_cert_to_PEM_cert(der) for der in identity.chain)
    (folder / "ca-cert.pem").write_text("".join(ssl.DER_cert_to_PEM_cert(der) for der in identity.trust.bundle))
    for side in ("server", "client"):
        (folder / f"{side}-cert.pem").write_text(certificate)
        (folder / f"{side}-key.pem").write_bytes(_key(identity))
    return folder


def _key(identity: Identity) -> bytes:
    return identity.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
