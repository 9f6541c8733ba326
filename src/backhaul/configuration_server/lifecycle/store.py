"""The items of the lifecycle in the configuration server's records.

What the core keeps of an item (state, agent, servers) stays in its own record and changes in the same transaction;
the rest (places, wish, report) is one JSON value beside it. Invariant: a token is stored with the change it made.
Calls block: worker threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from sqlalchemy import BigInteger, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, Session, mapped_column

from backhaul.configuration_server.errors import ResourceUnknown
from backhaul.configuration_server.items import SideRecord, disks_of, mode_of, side_of, state_of
from backhaul.configuration_server.lifecycle.errors import LifecycleUnknown
from backhaul.configuration_server.lifecycle.values import Item, Place, Wish
from backhaul.configuration_server.records import ItemRecord, PolicyRecord, Record
from backhaul.configuration_server.revisions import Revisions
from backhaul.configuration_server.vault import Vault, note
from backhaul.recovery.item import Side
from backhaul.recovery.policies import ReplicationPolicy
from backhaul.replication.control import StillImagePlan
from backhaul.replication.values import Hash, ItemId

_ID: Final = String(160)


class PlanRecord(Record):
    """What an item has beside its record (`Plan`)."""

    __tablename__ = "lifecycle_plan"
    item: Mapped[str] = mapped_column(_ID, primary_key=True)
    plan_json: Mapped[str] = mapped_column(Text)


class SiteRecord(Record):
    """A site: its management address, its certificate (PEM) and the access token, sealed."""

    __tablename__ = "lifecycle_site"
    name: Mapped[str] = mapped_column(_ID, primary_key=True)
    kind: Mapped[str] = mapped_column(_ID)
    address: Mapped[str] = mapped_column(_ID)
    certificate_pem: Mapped[str] = mapped_column(Text)
    sealed_token: Mapped[bytes] = mapped_column(LargeBinary)
    added_ns: Mapped[int] = mapped_column(BigInteger)


class Plan(msgspec.Struct, frozen=True):
    """See PlanRecord; the fields are those of `Item`."""

    home: Place
    cloud: Place
    wish: Wish = Wish()
    report: bytes = b""
    moved_ns: int = 0
    done: tuple[str, ...] = ()


class StoredItems:
    """`ports.Items` over the vault's database."""

    def __init__(self, vault: Vault, revisions: Revisions) -> None:
        self._vault, self._revisions = vault, revisions

    def plan(self, session: Session, item: str, home: Place, cloud: Place) -> None:
        """Say where an item's machine is and where it shall run, in the caller's transaction. What was planned before
        is replaced, what is known of the sides' disks and layers too. Raises ResourceUnknown.
        """
        record = _record(session, item)
        # Only a step that made a disk may say so: what was made for a replica is deleted with it.
        home, cloud = (msgspec.structs.replace(place, made=()) for place in (home, cloud))
        self._save(session, record, self._item(session, record, Plan(home, cloud)))

    def forget(self, item: ItemId) -> None:
        """See the port. The agent has nothing to do for the item any more."""
        with self._vault.database.write() as session:
            record, plan = session.get(ItemRecord, item), session.get(PlanRecord, item)
            if plan is not None:
                session.delete(plan)
            if record is not None:
                text = f"{record.name}: nothing is kept of its protection, and its name is free."
                note(session, self._vault.clock.wall_ns(), "item", "item.forgotten", item, text)
                Revisions.bump(session, [record.agent])
                session.delete(record)
        self._revisions.wake()

    def load(self, item: ItemId) -> Item:
        """See the port. Raises ResourceUnknown."""
        with self._vault.database.read() as session:
            return self._load(session, item)

    def change(self, item: ItemId, token: str, make: Callable[[Item], Item]) -> Item:
        """See the port."""
        with self._vault.database.write() as session:
            before = self._load(session, item)
            if token in before.done:
                return before
            made = make(before)
            after = msgspec.structs.replace(made, done=(*made.done, token))
            record = _record(session, item)
            self._save(session, record, after)
            if after.state != before.state:
                text = f"{after.name}: {before.state.state} became {after.state.state}."
                note(session, self._vault.clock.wall_ns(), "item", f"item.{after.state.state}", item, text)
            if mode_of(after.state) is not mode_of(before.state):
                Revisions.bump(session, [record.agent])
        self._revisions.wake()
        return after

    def _load(self, session: Session, item: ItemId) -> Item:
        return self._item(session, _record(session, item), plan_of(session, item))

    def _item(self, session: Session, record: ItemRecord, plan: Plan) -> Item:
        vault = self._vault.record
        stored = session.get_one(PolicyRecord, record.policy)
        policy = msgspec.json.decode(stored.definition_json, type=ReplicationPolicy)
        return Item(
            id=ItemId(record.id),
            name=record.name,
            state=state_of(record),
            term=vault.term,
            term_key=Hash(vault.term_key),
            disks=tuple(disk.identity for disk in disks_of(record)),
            policy=policy.for_data_plane(),
            rpo_threshold_s=policy.rpo_threshold_s,
            still=msgspec.json.decode(record.still_json, type=StillImagePlan),
            home=plan.home,
            cloud=plan.cloud,
            process_server=record.process_server,
            wish=plan.wish,
            report=plan.report,
            moved_ns=plan.moved_ns,
            done=plan.done,
        )

    @staticmethod
    def _save(session: Session, record: ItemRecord, item: Item) -> None:
        record.state_json = _text(item.state)
        record.process_server = item.process_server or record.process_server
        record.home_json = _text(_side(item.home, side_of(record, Side.HOME)))
        record.cloud_json = _text(_side(item.cloud, side_of(record, Side.CLOUD)))
        plan = Plan(item.home, item.cloud, item.wish, item.report, item.moved_ns, item.done)
        session.merge(PlanRecord(item=item.id, plan_json=_text(plan)))


def set_wish(session: Session, item: str, wish: Wish, *, without_sites: bool = False) -> None:
    """What the operator chose for the job that is added in the same transaction. Raises LifecycleUnknown for an item
    whose sites are not known, unless the job needs none.
    """
    plan = plan_of(session, item)
    if not plan.home.site and not without_sites:
        raise LifecycleUnknown(item=_record(session, item).name, reason="no plan is stored")
    session.merge(PlanRecord(item=item, plan_json=_text(msgspec.structs.replace(plan, wish=wish))))


def plan_of(session: Session, item: str) -> Plan:
    """What is stored of both sides, or what follows from the record alone. Raises ResourceUnknown."""
    record, stored = _record(session, item), session.get(PlanRecord, item)
    if stored is not None:
        return msgspec.json.decode(stored.plan_json, type=Plan)
    paths = tuple(disk.path for disk in disks_of(record))
    home, cloud = side_of(record, Side.HOME), side_of(record, Side.CLOUD)
    return Plan(
        home=_bare(record, home, machine=record.machine, disks=paths),
        cloud=_bare(record, cloud, machine="", disks=()),
    )


def _bare(record: ItemRecord, side: SideRecord, *, machine: str, disks: tuple[str, ...]) -> Place:
    return Place(
        site="", subscription="", network=side.network, subnet="", name=record.name, target=side.target,
        agent=record.agent, machine=machine, disks=disks,
    )  # fmt: skip


def _record(session: Session, item: str) -> ItemRecord:
    record = session.get(ItemRecord, item)
    if record is None:
        raise ResourceUnknown(kind="item", name=item)
    return record


def _side(place: Place, before: SideRecord) -> SideRecord:
    """As views show it; a side whose site is not known goes on being called what it was."""
    site = place.site or before.site
    return SideRecord(site=site, network=place.network, machine=place.machine, target=place.target)


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
