"""The records: what the configuration server itself decides and must not forget.

What the data plane knows better (points, applied positions, fences) is not here: it is asked for. No column holds a
secret in clear: passwords and session tokens are hashes, what must be recoverable is sealed (`sealing`). Times are
nanoseconds since 1970 UTC. Columns named `..._json` hold values encoded by msgspec.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
from sqlalchemy import BigInteger, ForeignKey, Index, Integer, LargeBinary, String, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from backhaul.recovery.item import AT_HOME_ALONE, ItemState
from backhaul.replication.values import Role

ID = String(160)


class Record(DeclarativeBase):
    """Base of all records."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {int: BigInteger}


class VaultRecord(Record):
    """The one vault of this server. `term_key`: key hash of the server that opened this term."""

    __tablename__ = "vault"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    name: Mapped[str] = mapped_column(ID)
    subscription: Mapped[str] = mapped_column(ID)
    resource_group: Mapped[str] = mapped_column(ID)
    server_id: Mapped[str] = mapped_column(ID)
    term: Mapped[int]
    term_key: Mapped[bytes] = mapped_column(LargeBinary)
    created_ns: Mapped[int]


class SealedRecord(Record):
    """A recoverable secret, sealed under its name."""

    __tablename__ = "sealed"
    name: Mapped[str] = mapped_column(ID, primary_key=True)
    content: Mapped[bytes] = mapped_column(LargeBinary)


class AccountRecord(Record):
    """Who may log in. `role`: admin, operator or reader."""

    __tablename__ = "account"
    name: Mapped[str] = mapped_column(ID, primary_key=True)
    role: Mapped[str] = mapped_column(ID)
    password_hash: Mapped[str] = mapped_column(Text)
    must_change: Mapped[bool]
    failures: Mapped[int] = mapped_column(default=0)
    locked_until_ns: Mapped[int] = mapped_column(default=0)
    created_ns: Mapped[int]


class SessionRecord(Record):
    """A session, by the SHA-256 of its bearer token."""

    __tablename__ = "session"
    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    account: Mapped[str] = mapped_column(ForeignKey("account.name", ondelete="CASCADE"))
    expires_ns: Mapped[int]


class ServerRecord(Record):
    """A process server, master target or agent.

    state      unregistered (deployed, not enrolled yet), registered, revoked
    revision   rises with every change of what it is to do; its long poll waits for the next one
    machine    agents: the machine's id as hypervisor or cloud reported it last
    offer_json   agents: `registry.Offer`, the disks it could protect and how points can be made; empty before
    """

    __tablename__ = "server"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    role: Mapped[str] = mapped_column(ID)
    name: Mapped[str] = mapped_column(ID)
    state: Mapped[str] = mapped_column(ID)
    built_in: Mapped[bool]
    network: Mapped[str] = mapped_column(ID, default="")
    addresses_json: Mapped[str] = mapped_column(Text, default="[]")
    version: Mapped[str] = mapped_column(ID, default="")
    machine: Mapped[str] = mapped_column(ID, default="")
    revision: Mapped[int] = mapped_column(default=1)
    offer_json: Mapped[str] = mapped_column(Text, default="")
    registered_ns: Mapped[int] = mapped_column(default=0)
    heartbeat_ns: Mapped[int] = mapped_column(default=0)

    @property
    def kind(self) -> Role:
        """The role as a value."""
        return Role(self.role)


class CertificateRecord(Record):
    """A certificate that was issued."""

    __tablename__ = "certificate"
    serial: Mapped[str] = mapped_column(ID, primary_key=True)
    server: Mapped[str] = mapped_column(ForeignKey("server.id"))
    issued_ns: Mapped[int]
    expires_ns: Mapped[int]


class TokenRecord(Record):
    """A one-time enrolment token, sealed. `spent_ns` 0: not used yet."""

    __tablename__ = "token"
    key_id: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    role: Mapped[str] = mapped_column(ID)
    server: Mapped[str] = mapped_column(ID)
    expires_ns: Mapped[int]
    spent_ns: Mapped[int] = mapped_column(default=0)


class PolicyRecord(Record):
    """A replication policy (`recovery.policies.ReplicationPolicy`)."""

    __tablename__ = "policy"
    name: Mapped[str] = mapped_column(ID, primary_key=True)
    definition_json: Mapped[str] = mapped_column(Text)
    created_ns: Mapped[int]


class ItemRecord(Record):
    """A replicated item.

    state_json       `recovery.item.ItemState`: state, generation, active side, what cancel returns to
    disks_json       [`control.SourceDisk`]: the protected disks, as the agent finds them
    still_json       `control.StillImagePlan`
    home_json, cloud_json   `items.SideRecord`: site, machine and target of that side
    descriptor       newest signed descriptor; empty before the first
    target_key       signed sealing key of the target in use; empty before the first
    assigned         the agent is told of the item
    off_generation   generation in which the machine's site read back that it is off, for the final point; 0: none
    """

    __tablename__ = "item"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    name: Mapped[str] = mapped_column(ID)
    state_json: Mapped[str] = mapped_column(Text)
    policy: Mapped[str] = mapped_column(ForeignKey("policy.name"))
    agent: Mapped[str] = mapped_column(ForeignKey("server.id"))
    machine: Mapped[str] = mapped_column(ID)
    process_server: Mapped[str] = mapped_column(ForeignKey("server.id"))
    disks_json: Mapped[str] = mapped_column(Text)
    still_json: Mapped[str] = mapped_column(Text)
    home_json: Mapped[str] = mapped_column(Text)
    cloud_json: Mapped[str] = mapped_column(Text)
    descriptor: Mapped[bytes] = mapped_column(LargeBinary, default=b"")
    target_key: Mapped[bytes] = mapped_column(LargeBinary, default=b"")
    assigned: Mapped[bool] = mapped_column(default=False)
    off_generation: Mapped[int] = mapped_column(default=0)
    created_ns: Mapped[int]

    __table_args__ = (Index("item_name", text("lower(name)"), unique=True),)

    @property
    def uses_process_server(self) -> bool:
        """Whether it replicates through its process server, would after a cancel, or has it for its way home."""
        return msgspec.json.decode(self.state_json, type=ItemState).state not in AT_HOME_ALONE


class JobRecord(Record):
    """A job as shown; its workflow has the same id.

    state      NotStarted, InProgress, Succeeded, Failed, Cancelled
    tasks_json, errors_json   [`jobs.Task`], [`jobs.Failure`]
    """

    __tablename__ = "job"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    kind: Mapped[str] = mapped_column(ID)
    subject: Mapped[str] = mapped_column(ID)
    subject_name: Mapped[str] = mapped_column(ID)
    state: Mapped[str] = mapped_column(ID)
    account: Mapped[str] = mapped_column(ID)
    tasks_json: Mapped[str] = mapped_column(Text, default="[]")
    errors_json: Mapped[str] = mapped_column(Text, default="[]")
    created_ns: Mapped[int]
    started_ns: Mapped[int] = mapped_column(default=0)
    ended_ns: Mapped[int] = mapped_column(default=0)

    __table_args__ = (
        # At most one job of a subject at a time: the index is the lock.
        Index("job_running", "subject", unique=True, sqlite_where=text("state IN ('NotStarted', 'InProgress')")),
    )


class EventRecord(Record):
    """Something that happened. `severity`: OK, Warning or Critical."""

    __tablename__ = "event"
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    at_ns: Mapped[int]
    kind: Mapped[str] = mapped_column(ID)
    code: Mapped[str] = mapped_column(ID)
    severity: Mapped[str] = mapped_column(ID)
    subject: Mapped[str] = mapped_column(ID)
    text: Mapped[str] = mapped_column(Text)


class DialRecord(Record):
    """How a server is dialled: who dials, and every address it was ever told to be at.

    dialling         `dial_book.Dialling`
    addresses_json   [`host:port`], the newest first
    key_hash         of a server that is not registered yet: SHA-256 of its key, as read back from it; empty otherwise
    """

    __tablename__ = "dial"
    server: Mapped[str] = mapped_column(ID, primary_key=True)
    role: Mapped[str] = mapped_column(ID)
    dialling: Mapped[str] = mapped_column(ID)
    addresses_json: Mapped[str] = mapped_column(Text, default="[]")
    key_hash: Mapped[bytes] = mapped_column(LargeBinary, default=b"")


class DeploymentRecord(Record):
    """A process server that is deployed (`lifecycle.deploying.Deployment`), by the id that belongs to its form."""

    __tablename__ = "lifecycle_deployment"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    name: Mapped[str] = mapped_column(ID)
    deployment_json: Mapped[str] = mapped_column(Text)

    __table_args__ = (Index("deployment_name", text("lower(name)"), unique=True),)
