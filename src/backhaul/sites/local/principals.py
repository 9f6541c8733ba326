"""Who calls: access tokens and what they stand for. Pure but for the definition it is given.

Tokens are 256 random bits, so that a plain hash of them is kept and looked up; they are made by the composition root
and never stored by the site. Called from the management API for each request.
"""

from __future__ import annotations

import hashlib

from backhaul.replication.ports import Randomness
from backhaul.sites.errors import Unauthenticated
from backhaul.sites.local.definition import PrincipalDefinition
from backhaul.sites.values import Principal


class Principals:
    """All principals of one site."""

    def __init__(self, definitions: tuple[PrincipalDefinition, ...]) -> None:
        self._by_hash = {each.token_sha256: Principal(each.name, dict(each.roles)) for each in definitions}

    def authenticate(self, authorization: str) -> Principal:
        """The caller behind an `Authorization` header. Raises Unauthenticated."""
        scheme, _, token = authorization.partition(" ")
        principal = self._by_hash.get(token_hash(token))
        if scheme.lower() != "bearer" or principal is None:
            raise Unauthenticated()
        return principal


def new_token(randomness: Randomness) -> str:
    """A new access token: 64 hexadecimal digits."""
    return randomness.token(32).hex()


def token_hash(token: str) -> str:
    """What the definition holds of a token."""
    return hashlib.sha256(b"backhaul/1 site token\0" + token.encode()).hexdigest()
