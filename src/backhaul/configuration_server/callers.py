"""Who calls: a session of an account, or a registered server by its certificate. Pure values.

Invariant: a route names every kind of caller it admits; there is no kind that includes another.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from backhaul.replication.values import Role


class Who(enum.StrEnum):
    """A kind of caller, as routes name them."""

    ADMIN = "admin"
    OPERATOR = "operator"
    READER = "reader"
    CHANGING = "an account that must set a password"
    AGENT = "agent"
    PROCESS_SERVER = "process-server"
    MASTER_TARGET = "master-target"
    ANONYMOUS = "anybody"


ACCOUNT_ROLES: Final = (Who.ADMIN, Who.OPERATOR, Who.READER)
ADMINS: Final = frozenset({Who.ADMIN})
OPERATORS: Final = frozenset({Who.ADMIN, Who.OPERATOR})
READERS: Final = frozenset(ACCOUNT_ROLES)
SESSIONS: Final = READERS | {Who.CHANGING}
MEMBERS: Final = frozenset({Who.AGENT, Who.PROCESS_SERVER, Who.MASTER_TARGET})

_BY_ROLE: Final = {
    Role.AGENT: Who.AGENT,
    Role.PROCESS_SERVER: Who.PROCESS_SERVER,
    Role.MASTER_TARGET: Who.MASTER_TARGET,
}


@dataclass(frozen=True, slots=True)
class Caller:
    """`id`: account name or server id; empty for nobody known. `who` None: known, but of no kind that routes admit."""

    who: Who | None
    id: str

    @property
    def name(self) -> str:
        """For messages, jobs and events."""
        return f"{self.who or 'unknown'} {self.id}".strip()


def member_caller(role: Role, server_id: str) -> Caller:
    """The caller behind a certificate."""
    return Caller(_BY_ROLE.get(role), server_id)
