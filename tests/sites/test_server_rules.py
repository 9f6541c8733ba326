"""Rules for names and passwords."""

from __future__ import annotations

import pytest

from backhaul.replication.ports import RealRandomness
from backhaul.sites.server_rules import (
    hash_password,
    hash_well_formed,
    password_matches,
    password_problem,
    server_name_problem,
    user_name_problem,
)


@pytest.mark.parametrize("name", ["a", "ps-1", "A9", "1a", "a" * 64])
def test_names_that_are_possible(name: str) -> None:
    assert server_name_problem(name) is None


@pytest.mark.parametrize("name", ["", "-a", "a-", "a_b", "a.b", "ä", "12", "a" * 65, "a\n", "../x", "a b"])
def test_names_that_are_not(name: str) -> None:
    assert server_name_problem(name) is not None


@pytest.mark.parametrize("user", ["psadmin", "_x", "a-b_c9"])
def test_users_that_are_possible(user: str) -> None:
    assert user_name_problem(user) is None


@pytest.mark.parametrize("user", ["", "root", "Admin", "9a", "-a", "a b", "a" * 65, "a:b", "a\n"], ids=repr)
def test_users_that_are_not(user: str) -> None:
    assert user_name_problem(user) is not None


@pytest.mark.parametrize("password", ["Correct-Horse-7", "aaaaaaaaaaA1", "äÖ1 längeres Wort"])
def test_passwords_that_are_possible(password: str) -> None:
    assert password_problem(password, "psadmin") is None


@pytest.mark.parametrize(
    "password",
    [
        "Short-1",
        "x" * 70 + "A1-",
        "alllowercase-",
        "ONLYUPPER1234",
        "My-psAdmin-pw1",
        "xxP@ssw0rdxx",
        "Has\ncontrol-77",
    ],
)
def test_passwords_that_are_not(password: str) -> None:
    problem = password_problem(password, "psadmin")
    assert problem is not None
    assert password not in str(problem)


def test_hashes() -> None:
    first, second = (hash_password("Correct-Horse-7", RealRandomness()) for _ in range(2))
    assert first != second, "salted"
    assert hash_well_formed(first)
    assert password_matches("Correct-Horse-7", first)
    assert not password_matches("Correct-Horse-8", first)
