"""Login, logout, passwords, accounts, and what a client asks first."""

from __future__ import annotations

import msgspec
from fastapi import Request, Response

from backhaul import __version__
from backhaul.configuration_server.api.bodies import Body, Plane, answer, decode, nothing
from backhaul.configuration_server.guarded import CallerParam, bearer


class LoginBody(msgspec.Struct, forbid_unknown_fields=True):
    """Who, and the password."""

    user: str
    password: str


class PasswordBody(msgspec.Struct, forbid_unknown_fields=True):
    """The present password and the new one."""

    present: str
    password: str


class AccountBody(msgspec.Struct, forbid_unknown_fields=True):
    """A new account."""

    user: str
    role: str
    password: str


def login(plane: Plane, body: Body) -> Response:
    """A bearer token for a name and a password."""
    asked = decode(body, LoginBody)
    made = plane.accounts.login(asked.user, asked.password)
    value = {
        "token": made.token,
        "expiresAt": made.expires_ns // 1_000_000_000,
        "role": made.role,
        "mustChangePassword": made.must_change,
        "vault": plane.vault.path,
    }
    return answer(value, headers={"cache-control": "no-store"})


def logout(plane: Plane, request: Request) -> Response:
    """End the session that asks."""
    plane.accounts.logout(bearer(request))
    return nothing()


def change_password(plane: Plane, caller: CallerParam, body: Body) -> Response:
    """Set the caller's password; every session of the account ends."""
    asked = decode(body, PasswordBody)
    plane.accounts.change_password(caller.id, asked.present, asked.password)
    return nothing()


def show_session(plane: Plane, caller: CallerParam) -> Response:
    """Who the caller is, and where the vault is."""
    return answer({"user": caller.id, "role": caller.who, "vault": plane.vault.path, "version": __version__})


def list_accounts(plane: Plane) -> Response:
    """Every account with its role."""
    names = plane.accounts.names()
    return answer({"value": [{"user": name, "role": role} for name, role in sorted(names.items())]})


def create_account(plane: Plane, body: Body) -> Response:
    """A new account; its first login must set another password."""
    asked = decode(body, AccountBody)
    plane.accounts.create(asked.user, asked.role, asked.password)
    return nothing(201)


def show_health(plane: Plane) -> Response:
    """That the server answers; for load balancers and doctors that have no session."""
    return answer({"version": __version__, "vault": plane.vault.record.id})
