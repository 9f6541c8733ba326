"""Host names and addresses in a certificate. They prove nothing here (roles and ids do); they are for people. Pure."""

from __future__ import annotations

from cryptography import x509

from backhaul.links.certificates import load_certificate


def host_names(certificate: bytes) -> frozenset[str]:
    """DNS names (lower case) and IP addresses of a certificate (DER). Raises CertificateMalformed."""
    try:
        names = load_certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    return frozenset({name.lower() for name in names.get_values_for_type(x509.DNSName)} | addresses)
