"""Passwords: argon2id with the library's current parameters, and what a new one must be.

Slow on purpose; any thread."""

from __future__ import annotations

import base64
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError

from backhaul.configuration_server.errors import PasswordRefused
from backhaul.replication.ports import Randomness

MIN_LENGTH: Final = 12
MAX_LENGTH: Final = 256
"""Hashing takes the whole of it; no person types more."""

ONE_TIME_BYTES: Final = 15
"""120 bits, as 24 characters: never guessed before it is used."""

_HASHER: Final = PasswordHasher()
_NOBODY: Final = _HASHER.hash("nobody has this password")
"""Verified for unknown users, so that they take as long as known ones."""


def hash_password(password: str) -> str:
    """The hash to be stored."""
    return _HASHER.hash(password)


def is_password(stored: str | None, password: str) -> bool:
    """Whether it is the password; None (no such user) takes as long and is never right."""
    try:
        _HASHER.verify(stored or _NOBODY, password[:MAX_LENGTH])
    except VerificationError:
        return False
    return stored is not None


def check_new_password(user: str, present: str, password: str) -> None:
    """Raises PasswordRefused."""
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise PasswordRefused(reason=f"it must have from {MIN_LENGTH} to {MAX_LENGTH} characters")
    if password == present:
        raise PasswordRefused(reason="it is the present one")
    if user.lower() in password.lower():
        raise PasswordRefused(reason="it holds the user name")


def make_one_time_password(randomness: Randomness) -> str:
    """A fresh one, in four groups."""
    letters = base64.b32encode(randomness.token(ONE_TIME_BYTES)).decode().lower()
    return "-".join(letters[start : start + 6] for start in range(0, len(letters), 6))
