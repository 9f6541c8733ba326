"""TLS of a site's management API: a certificate of its own, made at first start, pinned by its callers.

A real cloud's API has a public certificate; a local one has nobody to sign it, so callers are given the certificate
itself and trust nothing else. Key and certificate live in the provider's own folder (0700). Called at start.
"""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from backhaul.replication.ports import Clock, Files

_YEARS = 10
"""Pinned, so its end date protects nothing; a site is thrown away long before."""


def ensure_certificate(folder: Path, name: str, files: Files, clock: Clock) -> tuple[Path, Path]:
    """Certificate and key of the site (PEM files), made if they are missing."""
    certificate_path, key_path = folder / "certificate.pem", folder / "key.pem"
    if not certificate_path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"site {name}")])
        now = datetime.datetime.fromtimestamp(clock.wall_ns() / 1e9, datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=365 * _YEARS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        pem, pkcs8, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        # The key first: a kill in between leaves no certificate, so both are made again.
        files.replace(key_path, key.private_bytes(pem, pkcs8, plain))
        files.replace(certificate_path, certificate.public_bytes(pem))
    return certificate_path, key_path


def client_context(certificate_pem: str) -> ssl.SSLContext:
    """Trusts this one certificate, whatever the address under which its site answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the certificate is pinned: it says who this is, not where
    context.load_verify_locations(cadata=certificate_pem)
    return context
