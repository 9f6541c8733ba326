"""The connection passphrase and the one-time token: what a new server is told so that both ends can prove themselves.

    bhp1.ABCD-EFGH-...   16 groups of 4: 16 bytes of the root's SHA-256, 20 of secret, 4 of checksum, in base32
    bht1.                the same form, for a token of one use

Invariant: `parse(text(p)) == p`, and a typing error is found by the checksum before anything is dialled. The secret
is in no message, log or repr. Pure; called by the configuration server and the registration tool.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Final

from backhaul.links.errors import PassphraseMalformed
from backhaul.replication.ports import Randomness

PIN_BYTES: Final = 16
"""Of the root's hash: to find another root with the same is 2**128 work."""

SECRET_BYTES: Final = 20
"""160 bits: an HMAC under it that was recorded cannot be searched for."""

CHECKSUM_BYTES: Final = 4
KEY_ID_BYTES: Final = 8
GROUP: Final = 4
_CHARACTERS: Final = (PIN_BYTES + SECRET_BYTES + CHECKSUM_BYTES) * 8 // 5
_MISREAD: Final = str.maketrans(
    {"0": "O", "1": "I", "8": "B", "-": None, " ": None, "\t": None, "\n": None, "\r": None}
)


class SecretKind(enum.StrEnum):
    """The prefix of the text form."""

    PASSPHRASE = "bhp1"  # noqa: S105 - a prefix
    TOKEN = "bht1"  # noqa: S105 - a prefix


@dataclass(frozen=True, slots=True)
class Passphrase:
    """`pin`: first bytes of the SHA-256 of the root that issued the configuration server's certificate."""

    kind: SecretKind
    pin: bytes
    secret: bytes = field(repr=False)

    @property
    def key_id(self) -> bytes:
        """Names the secret without telling it: which one a proof was made with."""
        return hmac.digest(self.secret, b"backhaul/1 enrolment key id", "sha256")[:KEY_ID_BYTES]

    def text(self) -> str:
        """The form to be shown once and typed; holds the secret."""
        body = self.pin + self.secret
        letters = base64.b32encode(body + _checksum(self.kind, body)).decode()
        groups = [letters[start : start + GROUP] for start in range(0, len(letters), GROUP)]
        return f"{self.kind}.{'-'.join(groups)}"


def _checksum(kind: SecretKind, body: bytes) -> bytes:
    return hashlib.sha256(b"backhaul/1 " + kind.encode() + body).digest()[:CHECKSUM_BYTES]


def make_passphrase(root: bytes, randomness: Randomness, kind: SecretKind = SecretKind.PASSPHRASE) -> Passphrase:
    """A fresh secret pinned to `root` (certificate, DER): a first passphrase, its successor, or a token."""
    return Passphrase(kind, hashlib.sha256(root).digest()[:PIN_BYTES], randomness.token(SECRET_BYTES))


def parse_passphrase(text: str) -> Passphrase:
    """Reads the text form; case, spaces and dashes do not matter. Raises PassphraseMalformed, without the text."""
    prefix, dot, rest = text.strip().partition(".")
    if not dot or prefix.lower() not in set(SecretKind):
        raise PassphraseMalformed(reason=f"it must begin with {SecretKind.PASSPHRASE}. or {SecretKind.TOKEN}.")
    kind = SecretKind(prefix.lower())
    letters = "".join(rest.split()).upper().translate(_MISREAD)
    if len(letters) != _CHARACTERS:
        raise PassphraseMalformed(reason=f"it has {len(letters)} of {_CHARACTERS} characters behind the dot")
    try:
        content = base64.b32decode(letters)
    except (binascii.Error, ValueError):
        raise PassphraseMalformed(reason="it holds a character that none of ours is") from None
    body = content[:-CHECKSUM_BYTES]
    if _checksum(kind, body) != content[-CHECKSUM_BYTES:]:
        raise PassphraseMalformed(reason="its checksum does not fit, so at least one character is wrong")
    return Passphrase(kind, body[:PIN_BYTES], body[PIN_BYTES:])
