"""What the command line itself finds wrong, before the server is asked."""

from __future__ import annotations

from backhaul.client.errors import OwnError


class SecretUnreadable(OwnError):
    """No secret can be read from {file}: {reason}."""

    CODE = "BH-SECRET-FILE"
    FIX = "Name a file that holds nothing but the secret, or leave the option out to be asked for it."


class RootsUnreadable(OwnError):
    """{file}, by which the server would be recognised, cannot be read: {reason}."""

    CODE = "BH-CA-FILE"
    FIX = "Copy `ca.pem` from the configuration server's data folder, and name it with --ca."


class CertificateUnreadable(OwnError):
    """{file}, by which the site's provider would be recognised, cannot be read: {reason}."""

    CODE = "BH-CERTIFICATE-FILE"
    FIX = "Name the file with the certificate that the provider shows (PEM)."
