"""Replicated items: their records, their state, and what agents are told of them.

Invariant: a state changes through `recovery.states.step` only, in one transaction with the event that says so; what
an agent is to do changes with its revision. Calls block: worker threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from backhaul.configuration_server.errors import ProtectRefused, ResourceUnknown
from backhaul.configuration_server.records import ItemRecord, PolicyRecord, ServerRecord
from backhaul.configuration_server.registry import REGISTERED, OfferedDisk, addresses_of, offer_of
from backhaul.configuration_server.revisions import Revisions
from backhaul.configuration_server.vault import Vault, note
from backhaul.recovery.item import Action, Event, ItemState, Report, Side, State
from backhaul.recovery.policies import ReplicationPolicy
from backhaul.recovery.states import refusal, step
from backhaul.replication.control import AgentMode, Assignment, ItemAssignment, SourceDisk, StillImagePlan
from backhaul.replication.opening import make_descriptor
from backhaul.replication.values import DiskIdentity, Hash, ItemDescriptor, ItemId

REPLICATING: Final = frozenset(
    {
        State.INITIAL_REPLICATION, State.PROTECTED, State.VERIFYING, State.REPROTECTING, State.PROTECTED_TO_HOME,
        State.VERIFYING_TO_HOME, State.REPROTECTING_TO_CLOUD,
    }
)  # fmt: skip
COMPARING: Final = frozenset({State.VERIFYING, State.VERIFYING_TO_HOME})
FINAL: Final = frozenset(
    {State.FINAL_DELTA, State.FENCING, State.HELD}
    | {State.FAILBACK_FINAL_DELTA, State.FAILBACK_FENCING, State.FAILBACK_HELD}
)

REVERSE: Final = frozenset(
    {
        State.REPROTECTING, State.CANCELING_REPROTECT, State.PROTECTED_TO_HOME, State.VERIFYING_TO_HOME,
        State.STANDBY_TO_HOME, State.FAILBACK_FINAL_DELTA, State.FAILBACK_FENCING, State.FAILBACK_HELD,
        State.FAILING_BACK, State.FAILED_BACK, State.FAILBACK_CHANGING_POINT, State.CANCELING_FAILBACK,
        State.COMMITTING_FAILBACK, State.FAILED_BACK_COMMITTED,
    }
)  # fmt: skip
"""From the reprotect on until the way to the cloud is taken again."""


class SideRecord(msgspec.Struct, frozen=True):
    """One side of an item.

    site, network, machine   where the machine runs on that side and its id there; empty: not known yet
    target                   master target that holds the replica of that side; empty: none yet
    """

    site: str = ""
    network: str = ""
    machine: str = ""
    target: str = ""


class NewItem(msgspec.Struct, frozen=True):
    """A machine to be protected. Empty fields are chosen: any healthy server, all offered disks."""

    agent: str
    policy: str
    name: str = ""
    target: str = ""
    process_server: str = ""
    disks: tuple[str, ...] = ()


class Items:
    """The items of a vault."""

    def __init__(self, vault: Vault, revisions: Revisions) -> None:
        self._vault, self._revisions = vault, revisions

    # --- reading ------------------------------------------------------------------------------------------------

    def list(self) -> Sequence[ItemRecord]:
        """Every item that still exists."""
        with self._vault.database.read() as session:
            return session.scalars(select(ItemRecord).order_by(ItemRecord.name)).all()

    def get(self, item: str) -> ItemRecord:
        """By id or name. Raises ResourceUnknown."""
        wanted = item.lower()
        for record in self.list():
            if wanted in (record.id, record.name.lower()):
                return record
        raise ResourceUnknown(kind="item", name=item)

    def of_agent(self, agent: str) -> frozenset[str]:
        """Ids of the items that an agent replicates."""
        with self._vault.database.read() as session:
            return frozenset(session.scalars(select(ItemRecord.id).where(ItemRecord.agent == agent)))

    def policy(self, name: str) -> ReplicationPolicy:
        """By name, in any case. Raises ResourceUnknown."""
        with self._vault.database.read() as session:
            return _policy(session, name)

    # --- protecting ---------------------------------------------------------------------------------------------

    def prepare(self, session: Session, wanted: NewItem, agent: ServerRecord) -> ItemRecord:
        """The record of a new item, or the one whose enabling did not end. Raises ProtectRefused, ResourceUnknown."""
        earlier = session.scalars(select(ItemRecord).where(ItemRecord.agent == agent.id)).one_or_none()
        if earlier is not None:
            if state_of(earlier).state not in (State.DISCOVERED, State.ENABLING):
                raise ProtectRefused(machine=agent.name, reason="it is protected already")
            return earlier
        offer = offer_of(agent)
        if agent.state != REGISTERED or offer is None or not agent.machine:
            raise ProtectRefused(machine=agent.name, reason="its agent has not said yet which disks there are")
        disks = _chosen(agent.name, offer.disks, wanted.disks)
        name = wanted.name or agent.name
        taken = [record.name for record in session.scalars(select(ItemRecord)) if record.name.lower() == name.lower()]
        if taken:
            raise ProtectRefused(machine=agent.name, reason=f"there is an item {name} already")
        record = ItemRecord(
            id=self._vault.world.randomness.token(16).hex(),
            name=name,
            state_json=_text(ItemState()),
            policy=_policy(session, wanted.policy).name,
            agent=agent.id,
            machine=agent.machine,
            process_server=wanted.process_server,
            disks_json=_text(disks),
            still_json=_text(offer.still),
            home_json=_text(SideRecord(site="home", network=agent.network, machine=agent.machine)),
            cloud_json=_text(SideRecord(site="cloud", target=wanted.target)),
            created_ns=self._vault.clock.wall_ns(),
        )
        session.add(record)
        session.flush()
        return record

    def sign_descriptor(self, item: str) -> None:
        """Make the item's first descriptor, once; it is being enabled from then on."""
        with self._vault.database.write() as session:
            record = session.get_one(ItemRecord, item)
            if record.descriptor:
                return
            record.descriptor = make_descriptor(self._vault.identity, self._descriptor(session, record))
            state = state_of(record)
            if state.state is State.DISCOVERED:
                record.state_json = _text(step(state, Action.PROTECT))
            self._note(session, record, "item.enabling", "Its protection is being set up.")

    def _descriptor(self, session: Session, record: ItemRecord) -> ItemDescriptor:
        vault = self._vault.record
        return ItemDescriptor(
            item=ItemId(record.id),
            term=vault.term,
            term_key=Hash(vault.term_key),
            generation=state_of(record).generation,
            target=target_of(record),
            agent=record.agent,
            active_machine=record.machine,
            disks=tuple(disk.identity for disk in disks_of(record)),
            policy=_policy(session, record.policy).for_data_plane(),
        )

    def keep_target_key(self, item: str, key: bytes) -> None:
        """The target's signed sealing key, which the agent is given."""
        with self._vault.database.write() as session:
            record = session.get_one(ItemRecord, item)
            if record.target_key == key:
                return
            record.target_key = key
            if record.assigned:
                Revisions.bump(session, [record.agent])
        self._revisions.wake()

    def assign(self, item: str) -> None:
        """Tell the agent to replicate, once."""
        with self._vault.database.write() as session:
            record = session.get_one(ItemRecord, item)
            if record.assigned:
                return
            record.assigned = True
            record.state_json = _text(step(state_of(record), Report.AGENT_READY))
            Revisions.bump(session, [record.agent])
            self._note(session, record, "item.initial-replication", "Its disks are compared and copied.")
        self._revisions.wake()

    # --- state --------------------------------------------------------------------------------------------------

    def settle(self, item: str, event: Event, text: str, severity: str = "OK") -> bool:
        """Take a report of the data plane; whether it changed anything (one that is no longer due does not)."""
        with self._vault.database.write() as session:
            record = session.get(ItemRecord, item)
            if record is None or refusal(state_of(record), event) is not None:
                return False
            before, after = state_of(record), step(state_of(record), event)
            record.state_json = _text(after)
            if mode_of(before) is not mode_of(after):
                Revisions.bump(session, [record.agent])
            self._note(session, record, f"item.{after.state}", text, severity)
        self._revisions.wake()
        return True

    def _note(self, session: Session, record: ItemRecord, code: str, text: str, severity: str = "OK") -> None:
        note(session, self._vault.clock.wall_ns(), "item", code, record.id, f"{record.name}: {text}", severity)

    # --- agents -------------------------------------------------------------------------------------------------

    def assignment(self, agent: str, revision: int) -> Assignment:
        """Desired state of an agent."""
        with self._vault.database.read() as session:
            server = session.get_one(ServerRecord, agent)
            records = session.scalars(select(ItemRecord).where(ItemRecord.agent == agent, ItemRecord.assigned)).all()
            items = tuple(self._item_assignment(session, record) for record in records)
            machine = records[0].machine if records else server.machine
        return Assignment(revision, machine, items)

    def _item_assignment(self, session: Session, record: ItemRecord) -> ItemAssignment:
        relay = session.get_one(ServerRecord, record.process_server)
        state = state_of(record)
        mode = mode_of(state)
        return ItemAssignment(
            item=ItemId(record.id),
            term=self._vault.record.term,
            generation=state.generation,
            mode=mode,
            target_key=record.target_key,
            process_server=relay.id,
            process_server_addresses=addresses_of(relay),
            disks=disks_of(record),
            still=msgspec.json.decode(record.still_json, type=StillImagePlan),
            policy=_policy(session, record.policy).for_data_plane(),
            compare=state.state in COMPARING,
            source_off=mode is AgentMode.FINAL and record.off_generation == state.generation,
        )


def state_of(record: ItemRecord) -> ItemState:
    """The item's state."""
    return msgspec.json.decode(record.state_json, type=ItemState)


def disks_of(record: ItemRecord) -> tuple[SourceDisk, ...]:
    """The protected disks."""
    return msgspec.json.decode(record.disks_json, type=tuple[SourceDisk, ...])


def side_of(record: ItemRecord, side: Side) -> SideRecord:
    """One side of the item."""
    content = record.home_json if side is Side.HOME else record.cloud_json
    return msgspec.json.decode(content, type=SideRecord)


def target_of(record: ItemRecord) -> str:
    """The master target that the active side replicates to; empty for none."""
    return side_of(record, state_of(record).active_side.other).target


def is_reverse(state: ItemState) -> bool:
    """Whether the item is shown as InMage (cloud to home) instead of InMageAzureV2."""
    return state.state in REVERSE


def mode_of(state: ItemState) -> AgentMode:
    """What the active machine's agent is to do in this state."""
    if state.state in FINAL:
        return AgentMode.FINAL
    return AgentMode.REPLICATE if state.state in REPLICATING else AgentMode.STANDBY


def _chosen(machine: str, offered: tuple[OfferedDisk, ...], names: tuple[str, ...]) -> tuple[SourceDisk, ...]:
    known = {disk.name: disk for disk in offered}
    missing = [name for name in names if name not in known]
    if missing or not offered:
        there = ", ".join(known) or "none"
        raise ProtectRefused(machine=machine, reason=f"it has no disk {', '.join(missing)}; its disks are: {there}")
    chosen = [known[name] for name in dict.fromkeys(names)] or list(offered)
    return tuple(SourceDisk(DiskIdentity(index, disk.name, disk.size), disk.path) for index, disk in enumerate(chosen))


def _policy(session: Session, name: str) -> ReplicationPolicy:
    for record in session.scalars(select(PolicyRecord)):
        if record.name.lower() == name.lower():
            return msgspec.json.decode(record.definition_json, type=ReplicationPolicy)
    raise ResourceUnknown(kind="policy", name=name)


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
