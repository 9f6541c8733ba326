"""Logins: counted before they are judged, locked, expired, ended; only hashes are kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from backhaul.configuration_server import passwords
from backhaul.configuration_server.accounts import MAX_SESSIONS, Accounts
from backhaul.configuration_server.callers import Who
from backhaul.configuration_server.errors import (
    BodyWrong,
    LoginLocked,
    LoginRequired,
    LoginWrong,
    NameTaken,
    PasswordRefused,
)
from backhaul.configuration_server.settings import Settings
from backhaul.configuration_server.vault import Vault
from backhaul.links.dialer import Redial
from backhaul.replication.ports import RealFiles, RealRandomness


@dataclass
class HandClock:
    """Time passes only by hand."""

    wall: int = field(default_factory=time.time_ns)

    def wall_ns(self) -> int:
        return self.wall

    def monotonic_ns(self) -> int:
        return self.wall

    def pass_s(self, seconds: float) -> None:
        self.wall += int(seconds * 1e9)


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2 is slow on purpose; what is tested here is what goes on around it."""
    monkeypatch.setattr(passwords, "_HASHER", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def vault(tmp_path: Path, clock: HandClock) -> Iterator[Vault]:
    made = Vault(
        tmp_path, Settings(lock_after=3, lock_s=60, session_s=100), RealFiles(), Redial(clock, RealRandomness())
    )
    yield made
    made.close()


@pytest.fixture
def accounts(vault: Vault) -> Accounts:
    made = Accounts(vault)
    made.create("ann", "operator", "the first password")
    made.change_password("ann", "the first password", "the second password")
    return made


def test_a_login_gives_a_session_until_it_expires(accounts: Accounts, clock: HandClock) -> None:
    login = accounts.login("ann", "the second password")
    assert not login.must_change
    caller = accounts.caller(login.token)
    assert (caller.who, caller.id) == (Who.OPERATOR, "ann")
    clock.pass_s(99)
    accounts.caller(login.token)
    clock.pass_s(2)
    with pytest.raises(LoginRequired):
        accounts.caller(login.token)


def test_logout_ends_the_session_and_no_other(accounts: Accounts) -> None:
    one, two = accounts.login("ann", "the second password"), accounts.login("ann", "the second password")
    accounts.logout(one.token)
    with pytest.raises(LoginRequired):
        accounts.caller(one.token)
    accounts.caller(two.token)


def test_a_new_account_may_only_change_its_password(accounts: Accounts) -> None:
    accounts.create("bob", "admin", "a password for him")
    assert accounts.caller(accounts.login("bob", "a password for him").token).who is Who.CHANGING


def test_changing_the_password_ends_every_session(accounts: Accounts) -> None:
    token = accounts.login("ann", "the second password").token
    accounts.change_password("ann", "the second password", "the third password")
    with pytest.raises(LoginRequired):
        accounts.caller(token)
    with pytest.raises(LoginWrong):
        accounts.login("ann", "the second password")


def test_failures_lock_the_account_even_for_the_right_password(accounts: Accounts, clock: HandClock) -> None:
    for _ in range(3):
        with pytest.raises(LoginWrong):
            accounts.login("ann", "wrong")
    for password in ("wrong", "the second password"):
        with pytest.raises(LoginLocked):
            accounts.login("ann", password)
    clock.pass_s(61)
    accounts.login("ann", "the second password")


def test_a_right_login_forgets_the_failures(accounts: Accounts) -> None:
    for _ in range(3):
        for _ in range(2):
            with pytest.raises(LoginWrong):
                accounts.login("ann", "wrong")
        accounts.login("ann", "the second password")


def test_many_tries_at_once_pass_no_more_than_the_bound(accounts: Accounts) -> None:
    outcomes: list[type[Exception]] = []

    def attempt() -> None:
        try:
            accounts.login("ann", "wrong")
        except Exception as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(LoginWrong) == 3
    assert outcomes.count(LoginLocked) == 5


def test_the_password_is_also_guarded_where_it_is_changed(accounts: Accounts) -> None:
    for _ in range(3):
        with pytest.raises(LoginWrong):
            accounts.change_password("ann", "wrong", "the third password")
    with pytest.raises(LoginLocked):
        accounts.change_password("ann", "the second password", "the third password")


def test_unknown_users_are_wrong_like_any_other(accounts: Accounts) -> None:
    with pytest.raises(LoginWrong):
        accounts.login("nobody", "the second password")


@pytest.mark.parametrize(
    "password", ["short", "x" * 257, "ann's own password", "the second password"], ids=["short", "long", "name", "same"]
)
def test_bad_new_passwords_are_refused(accounts: Accounts, password: str) -> None:
    with pytest.raises(PasswordRefused):
        accounts.change_password("ann", "the second password", password)


def test_accounts_have_roles_and_names(accounts: Accounts) -> None:
    with pytest.raises(BodyWrong):
        accounts.create("carl", "root", "a password for him")
    with pytest.raises(BodyWrong):
        accounts.create("../carl", "reader", "a password for him")
    with pytest.raises(NameTaken):
        accounts.create("ann", "reader", "a password for her")


def test_sessions_of_an_account_are_bounded(accounts: Accounts, clock: HandClock) -> None:
    first = accounts.login("ann", "the second password").token
    clock.pass_s(1)
    for _ in range(MAX_SESSIONS - 1):
        accounts.login("ann", "the second password")
    accounts.caller(first)
    accounts.login("ann", "the second password")
    with pytest.raises(LoginRequired):
        accounts.caller(first)


def test_neither_token_nor_password_is_stored(accounts: Accounts, vault: Vault) -> None:
    token = accounts.login("ann", "the second password").token
    for path in vault.data_dir.glob("backhaul.db*"):
        content = path.read_bytes()
        assert token.encode() not in content
        assert b"the second password" not in content
