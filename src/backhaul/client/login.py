"""Logging in and out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from backhaul.client.errors import ClientError
from backhaul.client.profile import Profile, forget_profile, load_profile, save_profile
from backhaul.client.transport import Transport


def login(server: str, ca_pem: str, user: str, password: str, new_password: Callable[[], str]) -> Profile:
    """A session, saved as the profile. `new_password` is asked where a one-time password was given.

    Raises ClientError's kinds.
    """
    with Transport(server, ca_pem) as transport:
        made = transport.call("POST", "/login", {"user": user, "password": password})
        if made["mustChangePassword"]:
            chosen = new_password()
            with Transport(server, ca_pem, made["token"]) as changing:
                changing.call("POST", "/password", {"present": password, "password": chosen})
            made = transport.call("POST", "/login", {"user": user, "password": chosen})
    profile = Profile(server, ca_pem, user, made["vault"], made["token"])
    save_profile(profile)
    return profile


def logout() -> None:
    """End the session here, and at the server if it answers. Raises NotLoggedIn."""
    profile = load_profile()
    forget_profile()
    with contextlib.suppress(ClientError), Transport(profile.server, profile.ca_pem, profile.token) as transport:
        transport.call("POST", "/logout")
