"""Keeps this server's certificate fresh by itself, and cuts links whose certificates are over.

Invariant: the old key and certificate stay in use until the new ones are durable. One task of each service runs
`renewing`; saving runs in a thread, as it blocks on the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog

from backhaul.links.certificates import Trust, load_certificate, verify_certificate
from backhaul.links.errors import RenewalRefused
from backhaul.links.identity import Identity, make_csr, new_key
from backhaul.links.tls import Credentials
from backhaul.replication.errors import BackhaulError
from backhaul.replication.ports import Clock

ROUND_S: Final = 3600.0
"""Hourly: a certificate that may not be renewed for a month leaves some 700 tries."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Renewal:
    """`ask` sends a request (DER) to the authority and gives chain and trust; `save` makes an identity durable."""

    ask: Callable[[bytes], Awaitable[tuple[tuple[bytes, ...], Trust]]]
    save: Callable[[Identity], None]
    clock: Clock
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep


async def renewing(credentials: Credentials, renewal: Renewal) -> None:
    """Renew in the last third of the certificate's life, try again each hour, for ever. A refusal is logged: the
    service goes on until its certificate expires. A failed save ends it, and must end the service.
    """
    while True:
        credentials.sweep()
        if credentials.identity.renewal_due(renewal.clock.wall_ns()):
            try:
                await renew(credentials, renewal)
            except BackhaulError as error:
                _log.warning("certificate.renewal_failed", code=error.code, reason=error.message)
        await renewal.pause(ROUND_S)


async def renew(credentials: Credentials, renewal: Renewal) -> None:
    """Renew now, with a new key. Raises RenewalRefused or what `ask` raises; then the old identity stays."""
    key, old = new_key(), credentials.identity
    chain, trust = await renewal.ask(make_csr(key))
    fresh = old.with_trust(trust).with_certificate(chain, key)
    peer = verify_certificate(fresh.certificate, fresh.trust, renewal.clock.wall_ns())
    if peer.uri != old.peer.uri or load_certificate(fresh.certificate).public_key() != key.public_key():
        raise RenewalRefused(peer=old.peer.name, reason=f"the authority sent a certificate for {peer.uri}")
    await asyncio.to_thread(renewal.save, fresh)
    credentials.replace(fresh)
    _log.info("certificate.renewed", name=peer.name, expires_ns=peer.expires_ns)
