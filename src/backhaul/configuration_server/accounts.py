"""Accounts and sessions: login, lockout, change of password, bearer tokens.

Invariant: a login is counted as failed before it is judged, and taken back when it was right, so any number of tries
at once passes no more than the bound. Only the SHA-256 of a token is stored. Calls block: worker threads.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from backhaul.configuration_server.callers import ACCOUNT_ROLES, Caller, Who
from backhaul.configuration_server.errors import BodyWrong, LoginLocked, LoginRequired, LoginWrong, NameTaken
from backhaul.configuration_server.passwords import check_new_password, hash_password, is_password
from backhaul.configuration_server.records import AccountRecord, SessionRecord
from backhaul.configuration_server.vault import Vault, note

TOKEN_BYTES: Final = 32
MAX_SESSIONS: Final = 64
"""Sessions of one account; the one that ends first gives way."""

MAX_NAME: Final = 64


@dataclass(frozen=True, slots=True)
class Login:
    """A new session. `expires_ns`: wall clock."""

    token: str = field(repr=False)
    expires_ns: int
    role: str
    must_change: bool


class Accounts:
    """The accounts of a vault."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def login(self, name: str, password: str) -> Login:
        """A new session. Raises LoginWrong, LoginLocked."""
        account = self._count(name)
        if not is_password(account.password_hash if account else None, password) or account is None:
            raise LoginWrong()
        token = base64.urlsafe_b64encode(self._vault.world.randomness.token(TOKEN_BYTES)).decode().rstrip("=")
        now = self._vault.clock.wall_ns()
        expires = now + int(self._vault.settings.session_s * 1e9)
        with self._vault.database.write() as session:
            session.get_one(AccountRecord, name).failures = 0
            self._make_room(session, name, now)
            session.add(SessionRecord(token_hash=_hash(token), account=name, expires_ns=expires))
        return Login(token, expires, account.role, account.must_change)

    def _count(self, name: str) -> AccountRecord | None:
        """Count a failure in advance. Raises LoginLocked."""
        settings, now = self._vault.settings, self._vault.clock.wall_ns()
        with self._vault.database.write() as session:
            account = session.get(AccountRecord, name[:MAX_NAME])
            if account is None:
                return None
            if account.locked_until_ns > now:
                raise LoginLocked(wait_s=-(-(account.locked_until_ns - now) // 1_000_000_000))
            account.failures += 1
            if account.failures > settings.lock_after:
                account.failures, account.locked_until_ns = 0, now + int(settings.lock_s * 1e9)
                note(session, now, "account", "account.locked", name, "Too many failed logins.", "Warning")
                locked = True
            else:
                locked = False
        if locked:
            raise LoginLocked(wait_s=int(settings.lock_s))
        return account

    @staticmethod
    def _make_room(session: Session, name: str, now: int) -> None:
        session.execute(delete(SessionRecord).where(SessionRecord.expires_ns <= now))
        mine = select(SessionRecord).where(SessionRecord.account == name).order_by(SessionRecord.expires_ns)
        held = session.scalars(mine).all()
        for old in held[: max(0, len(held) - MAX_SESSIONS + 1)]:
            session.delete(old)

    def caller(self, token: str) -> Caller:
        """Whose session it is. Raises LoginRequired."""
        with self._vault.database.read() as session:
            found = session.get(SessionRecord, _hash(token))
            if found is None or found.expires_ns <= self._vault.clock.wall_ns():
                raise LoginRequired()
            account = session.get_one(AccountRecord, found.account)
            return Caller(Who.CHANGING if account.must_change else Who(account.role), account.name)

    def logout(self, token: str) -> None:
        """End a session; one that is over is no error."""
        with self._vault.database.write() as session:
            session.execute(delete(SessionRecord).where(SessionRecord.token_hash == _hash(token)))

    def change_password(self, name: str, present: str, password: str) -> None:
        """Set a new password and end every session of the account. Raises LoginWrong, LoginLocked, PasswordRefused."""
        account = self._count(name)
        if not is_password(account.password_hash if account else None, present):
            raise LoginWrong()
        check_new_password(name, present, password)
        hashed = hash_password(password)
        with self._vault.database.write() as session:
            stored = session.get_one(AccountRecord, name)
            stored.password_hash, stored.must_change, stored.failures = hashed, False, 0
            session.execute(delete(SessionRecord).where(SessionRecord.account == name))
            note(session, self._vault.clock.wall_ns(), "account", "account.password", name, "The password was changed.")

    def create(self, name: str, role: str, password: str) -> None:
        """A new account, whose password must be changed at its first use. Raises BodyWrong, NameTaken, ..."""
        if role not in ACCOUNT_ROLES:
            raise BodyWrong(reason=f"the role is one of {', '.join(ACCOUNT_ROLES)}")
        if not name.isascii() or not name.isidentifier() or len(name) > MAX_NAME:
            raise BodyWrong(reason="the account's name is made of letters, digits and underscores")
        check_new_password(name, "", password)
        hashed, now = hash_password(password), self._vault.clock.wall_ns()
        with self._vault.database.write() as session:
            if session.get(AccountRecord, name) is not None:
                raise NameTaken(kind="account", name=name)
            record = AccountRecord(name=name, role=role, password_hash=hashed, must_change=True, created_ns=now)
            session.add(record)
            note(session, now, "account", "account.created", name, f"The account was made, as {role}.")

    def names(self) -> dict[str, str]:
        """Every account with its role."""
        with self._vault.database.read() as session:
            return {record.name: record.role for record in session.scalars(select(AccountRecord))}


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
