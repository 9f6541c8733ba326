"""Rules for the names and passwords of servers, as Azure has them for Linux virtual machines.

Pure; called by every site when it validates a server, and by the faces before a password leaves the operator's
machine: sites only ever see its hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import unicodedata

from backhaul.replication.ports import Randomness
from backhaul.sites.errors import PasswordWrong, ServerNameWrong, UserNameWrong
from backhaul.sites.values import PasswordHash

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,62}[A-Za-z0-9])?")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_REFUSED_LINES = """
1 123 a actuser adm admin admin1 admin2 administrator aspnet backup console david guest john owner root server
sql support support_388945a0 sys test test1 test2 test3 user user1 user2 user3 user4 user5 video
"""
_USERS_REFUSED = frozenset(_REFUSED_LINES.split())
_PASSWORDS_REFUSED = frozenset(
    ("abc@123", "p@$$w0rd", "p@ssw0rd", "p@ssword123", "pa$$word", "pass@word1", "password!", "password1", "password22")
)
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**14, 8, 1  # 16 MiB and tens of milliseconds per try (RFC 7914, interactive)


def server_name_problem(name: str) -> ServerNameWrong | None:
    """What is wrong with a server's name, if anything."""
    if not _NAME.fullmatch(name):
        return ServerNameWrong(name=name, reason="it has other characters, begins or ends with one, or is too long")
    if name.isdigit():
        return ServerNameWrong(name=name, reason="it consists of digits alone")
    return None


def user_name_problem(user: str) -> UserNameWrong | None:
    """What is wrong with an administrator's user name, if anything."""
    if not _USER.fullmatch(user):
        return UserNameWrong(user=user, reason="it has other characters, begins with one, or is too long")
    if user.lower() in _USERS_REFUSED:
        return UserNameWrong(user=user, reason="attackers try this name first")
    return None


def password_problem(password: str, user: str) -> PasswordWrong | None:
    """What is wrong with an administrator's password, if anything. The message never holds the password."""
    if not 12 <= len(password) <= 72:
        return PasswordWrong(reason="it has fewer than 12 or more than 72 characters")
    if any(unicodedata.category(character) == "Cc" for character in password):
        return PasswordWrong(reason="it holds control characters")
    kinds = {
        "lower" if c.islower() else "upper" if c.isupper() else "digit" if c.isdigit() else "other" for c in password
    }
    if len(kinds) < 3:
        return PasswordWrong(reason="it mixes fewer than three of lower case, upper case, digits and others")
    if user and user.lower() in password.lower():
        return PasswordWrong(reason="it holds the user name")
    if any(known in password.lower() for known in _PASSWORDS_REFUSED):
        return PasswordWrong(reason="attackers try this one first")
    return None


def hash_password(password: str, randomness: Randomness) -> PasswordHash:
    """The hash that a server is created with."""
    salt = randomness.token(16)
    return PasswordHash(salt=salt.hex(), hash=_scrypt(password, salt).hex())


def password_matches(password: str, stored: PasswordHash) -> bool:
    """Whether this is the password, compared in constant time."""
    return hmac.compare_digest(_scrypt(password, bytes.fromhex(stored.salt)), bytes.fromhex(stored.hash))


def hash_well_formed(stored: PasswordHash) -> bool:
    """Whether a caller's hash has the form that `hash_password` gives."""
    return bool(re.fullmatch(r"[0-9a-f]{32}", stored.salt)) and bool(re.fullmatch(r"[0-9a-f]{64}", stored.hash))


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P, dklen=32)
