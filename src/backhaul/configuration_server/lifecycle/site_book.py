"""The sites that a configuration server works with: where they answer, and with which token it may call them.

Invariant: access tokens are stored sealed and leave this module only as part of a connected client. Worker threads.
"""

from __future__ import annotations

import threading
from typing import Final

from sqlalchemy import select

from backhaul.configuration_server.errors import ResourceUnknown
from backhaul.configuration_server.lifecycle.store import SiteRecord
from backhaul.configuration_server.vault import Vault
from backhaul.sites.local.client import LocalSite
from backhaul.sites.local.definition import SiteKind

_SEALED_AS: Final = "site-token-{}"


class SiteBook:
    """`ports.Sites` over the vault's database. One client per site, shared by all jobs."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._clients: dict[str, LocalSite] = {}
        self._lock = threading.Lock()

    def add(self, name: str, kind: SiteKind, address: str, certificate_pem: str, access_token: str) -> None:
        """A site, or another way to it."""
        sealed = self._vault.master.seal(_SEALED_AS.format(name), access_token.encode())
        record = SiteRecord(
            name=name, kind=kind, address=address, certificate_pem=certificate_pem, sealed_token=sealed,
            added_ns=self._vault.clock.wall_ns(),
        )  # fmt: skip
        with self._vault.database.write() as session:
            session.merge(record)
        with self._lock:
            client = self._clients.pop(name, None)
        if client is not None:
            client.close()

    def names(self) -> dict[str, SiteKind]:
        """Every site with its kind."""
        with self._vault.database.read() as session:
            return {record.name: SiteKind(record.kind) for record in session.scalars(select(SiteRecord))}

    def homes(self) -> tuple[str, ...]:
        """See the port."""
        return tuple(name for name, kind in self.names().items() if kind is SiteKind.HOME)

    def site(self, name: str) -> LocalSite:
        """See the port. Raises ResourceUnknown, SecretDamaged."""
        with self._vault.database.read() as session:
            record = session.get(SiteRecord, name)
        if record is None:
            raise ResourceUnknown(kind="site", name=name)
        with self._lock:
            if name not in self._clients:
                token = self._vault.master.open(_SEALED_AS.format(name), record.sealed_token).decode()
                self._clients[name] = LocalSite(record.address, token, record.certificate_pem)
            return self._clients[name]

    def close(self) -> None:
        """Close every client."""
        with self._lock:
            clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()
