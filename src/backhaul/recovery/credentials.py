"""Rules for names and passwords of a new server, as Azure has them for Linux machines.

Source: Microsoft's reference of the virtual machine's OSProfile (adminUsername, adminPassword), its FAQ (12 to 72
characters for Linux in the portal) and its naming rules of resources. Pure; the secrets given in are never returned.
"""

from __future__ import annotations

import re
from typing import Final

NAME_LENGTH: Final = (1, 64)
USER_LENGTH: Final = (1, 64)
PASSWORD_LENGTH: Final = (12, 72)
"""Linux; Windows machines would take up to 123."""

_FORBIDDEN_IN_NAME: Final = frozenset(" ~!@#$%^&*()=+_[]{}\\|;:.'\",<>/?")

RESERVED_USERS: Final = frozenset(
    [
        "administrator", "admin", "user", "user1", "test", "user2", "test1", "user3", "admin1", "1", "123", "a",
        "actuser", "adm", "admin2", "aspnet", "backup", "console", "david", "guest", "john", "owner", "root", "server",
        "sql", "support", "support_388945a0", "sys", "test2", "test3", "user4", "user5",
    ]
)  # fmt: skip

COMMON_PASSWORDS: Final = frozenset(
    [
        "abc@123", "p@$$w0rd", "p@ssw0rd", "p@ssword123", "pa$$word", "pass@word1", "password!", "password1",
        "password22", "iloveyou!",
        # Of the same kind, but long enough to pass the rule of the length.
        "password1234", "password123!", "password1234!", "p@ssword1234", "p@ssw0rd1234", "p@ssw0rd123!",
        "pa$$word1234", "passw0rd1234", "passw0rd1234!", "welcome12345", "welcome1234!", "qwerty123456",
        "qwerty12345!", "qwertyuiop1!", "administrator1", "administrator1!", "changeme1234", "changeme123!",
        "letmein12345", "letmein1234!", "iloveyou1234", "iloveyou123!",
    ]
)  # fmt: skip
"""Lower case: compared without regard to case."""


def forbidden_in_name(name: str) -> str:
    """Characters of a server's name that may not be in it, each once; a leading or trailing hyphen counts."""
    bad = [char for char in name if char in _FORBIDDEN_IN_NAME or not char.isprintable() or not char.isascii()]
    if name.startswith("-") or name.endswith("-"):
        bad.append("-")
    return "".join(dict.fromkeys(bad))


def is_user_name(name: str) -> bool:
    """Letters, digits, '-' and '_', beginning with a letter or '_': what Linux takes as an account."""
    return re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", name) is not None


def is_group_name(name: str) -> bool:
    """A resource group: 1 to 90 letters, digits, '_', '-', '.', parentheses; no period at the end."""
    return re.fullmatch(r"[\w().-]{0,89}[\w()-]", name) is not None


def classes_of(password: str) -> int:
    """How many of the four classes it has: lower case, upper case, digit, anything else."""
    return sum(
        (
            any(char.islower() for char in password),
            any(char.isupper() for char in password),
            any(char.isdigit() for char in password),
            re.search(r"[\W_]", password) is not None,
        )
    )
