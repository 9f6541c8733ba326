"""Named policies. Calls block: worker threads."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import select

from backhaul.configuration_server.errors import InUse, NameTaken
from backhaul.configuration_server.records import ItemRecord, PolicyRecord
from backhaul.configuration_server.vault import Vault, note
from backhaul.recovery.findings import require
from backhaul.recovery.policies import ReplicationPolicy, validate_policy


class Policies:
    """The policies of a vault."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def list(self) -> Sequence[ReplicationPolicy]:
        """Every policy."""
        with self._vault.database.read() as session:
            records = session.scalars(select(PolicyRecord).order_by(PolicyRecord.name)).all()
        return [msgspec.json.decode(record.definition_json, type=ReplicationPolicy) for record in records]

    def create(self, policy: ReplicationPolicy) -> None:
        """Save a new policy; the same one again changes nothing. Raises ChecksFailed, NameTaken."""
        require(validate_policy(policy), f"saving the policy {policy.name}")
        known = {one.name.lower(): one for one in self.list()}.get(policy.name.lower())
        if known is not None:
            if known != policy:
                raise NameTaken(kind="policy", name=policy.name)
            return
        now = self._vault.clock.wall_ns()
        with self._vault.database.write() as session:
            session.add(
                PolicyRecord(name=policy.name, definition_json=msgspec.json.encode(policy).decode(), created_ns=now)
            )
            note(session, now, "policy", "policy.created", policy.name, f"The policy {policy.name} was saved.")

    def delete(self, name: str) -> None:
        """Remove a policy that no item uses; one that is gone is no error. Raises InUse."""
        with self._vault.database.write() as session:
            users = session.scalars(select(ItemRecord.name).where(ItemRecord.policy == name)).all()
            if users:
                raise InUse(kind="policy", name=name, users=", ".join(users))
            record = session.get(PolicyRecord, name)
            if record is not None:
                session.delete(record)
