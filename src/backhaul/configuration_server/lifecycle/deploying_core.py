"""Deploying and deleting process servers on a running configuration server: the stored forms, its ports, the jobs.

Invariant: a password is hashed before it is stored, and a one-time token is sealed; neither is in a job's argument,
result or log. The server's id holds the deployment's, so tokens and records are found again by it, and what a kill
interrupted is not made twice. Called from the jobs' threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from backhaul.configuration_server import jobs
from backhaul.configuration_server.dial_book import DialBook, Dialling
from backhaul.configuration_server.errors import ResourceUnknown
from backhaul.configuration_server.lifecycle import deploying as d
from backhaul.configuration_server.lifecycle.core import lifecycle_of
from backhaul.configuration_server.lifecycle.errors import LifecycleUnknown
from backhaul.configuration_server.lifecycle.values import Item, Place
from backhaul.configuration_server.plane import ControlPlane
from backhaul.configuration_server.records import DeploymentRecord, DialRecord, ItemRecord, ServerRecord, TokenRecord
from backhaul.configuration_server.registry import REGISTERED, REVOKED, UNREGISTERED
from backhaul.configuration_server.service_deployed import Administrator, BootData
from backhaul.configuration_server.vault import Vault
from backhaul.recovery.item import Side
from backhaul.recovery.preflight_facts import USABLE, DeleteFacts
from backhaul.replication.values import ItemId, Role
from backhaul.sites.values import SiteRole


class StoredDeployments:
    """`deploying.Deployments` over the vault's database."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def load(self, deployment: str) -> d.Deployment:
        """See the port."""
        with self._vault.database.read() as session:
            record = session.get(DeploymentRecord, deployment)
        if record is None:
            raise ResourceUnknown(kind="deployment", name=deployment)
        return _value(record)

    def find(self, name: str) -> d.Deployment | None:
        """By the server's name, in any case."""
        query = select(DeploymentRecord).where(func.lower(DeploymentRecord.name) == name.lower())
        with self._vault.database.read() as session:
            record = session.scalars(query).one_or_none()
        return None if record is None else _value(record)

    def every(self) -> list[d.Deployment]:
        """All, by name."""
        with self._vault.database.read() as session:
            return [_value(one) for one in session.scalars(select(DeploymentRecord).order_by(DeploymentRecord.name))]

    def store(self, deployment: d.Deployment) -> None:
        """See the port."""
        with self._vault.database.write() as session:
            put(session, deployment)

    def forget(self, deployment: str) -> None:
        """See the port."""
        with self._vault.database.write() as session:
            session.execute(delete(DeploymentRecord).where(DeploymentRecord.id == deployment))


def put(session: Session, deployment: d.Deployment) -> None:
    """Store a form in the caller's transaction. It never holds the password."""
    assert not deployment.form.password
    text = msgspec.json.encode(deployment).decode()
    session.merge(DeploymentRecord(id=deployment.id, name=deployment.form.name, deployment_json=text))


def _value(record: DeploymentRecord) -> d.Deployment:
    return msgspec.json.decode(record.deployment_json, type=d.Deployment)


class CoreControl:
    """`deploying.Control` over one control plane."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane, self._vault = plane, plane.vault
        self._book = DialBook(plane.vault.database)

    # --- the server's record and its token ----------------------------------------------------------------------

    def boot_data(self, deployment: d.Deployment) -> str:
        """See the port. Who dials is settled before the server is there, as it may register at once."""
        self._book.set_dialling(deployment.server, Role.PROCESS_SERVER, deployment.dialling)
        with self._vault.database.write() as session:
            _list(session, deployment)
        data = BootData(
            id=deployment.server,
            name=deployment.form.name,
            network=deployment.form.network,
            port=deployment.port,
            configuration_server=deployment.configuration_server,
            direct=deployment.dialling is Dialling.SERVER,
            administrator=Administrator(deployment.form.user, deployment.password),
            token=self._token(deployment.server) if deployment.register else "",
        )
        return msgspec.json.encode(data).decode()

    def _token(self, server: str) -> str:
        """The unused token of this server; a new one where there is none."""
        now = self._vault.clock.wall_ns()
        wanted = (TokenRecord.server == server, TokenRecord.spent_ns == 0, TokenRecord.expires_ns > now)
        with self._vault.database.read() as session:
            keys = session.scalars(select(TokenRecord.key_id).where(*wanted)).all()
        known = next((found for found in map(self._plane.registry.find, keys) if found is not None), None)
        token = known.passphrase if known else self._plane.registry.make_token(Role.PROCESS_SERVER, server)
        return token.text()

    def withdraw(self, deployment: d.Deployment) -> None:
        """See the port."""
        server = deployment.server
        with self._vault.database.write() as session:
            session.execute(delete(TokenRecord).where(TokenRecord.server == server))
            record = session.get(ServerRecord, server)
            if record is not None and record.state == UNREGISTERED:
                session.execute(delete(DialRecord).where(DialRecord.server == server))
                session.delete(record)

    def registered(self, server: str) -> bool:
        """See the port."""
        record = self._record(server)
        return record is not None and record.state == REGISTERED

    def healthy(self, server: str) -> bool:
        """See the port. A warning, such as a disk that is small, keeps it from nothing."""
        record = self._record(server)
        if record is None or record.state != REGISTERED:
            return False
        return self._plane.server_health(record).health in USABLE

    def expect(self, deployment: d.Deployment, key_hash: bytes) -> None:
        """See the port."""
        addresses = (deployment.address,)
        self._book.expect(deployment.server, Role.PROCESS_SERVER, addresses, key_hash, deployment.dialling)
        self._plane.home.tunnels.wake_threadsafe()

    def _record(self, server: str) -> ServerRecord | None:
        with self._vault.database.read() as session:
            return session.get(ServerRecord, server)

    # --- items --------------------------------------------------------------------------------------------------

    def failed_over(self, site: str, network: str) -> tuple[str, ...]:
        """See the port."""
        return tuple(place.machine for place in self.places() if (place.site, place.network) == (site, network))

    def failover_subscription(self, site: str, network: str) -> str:
        """See the port."""
        here = sorted((p for p in self.places() if p.site == site), key=lambda place: place.network != network)
        return here[0].subscription if here else ""

    def places(self) -> list[Place]:
        """Where machines run that were failed over."""
        return [item.cloud for item in self._items() if item.state.active_side is Side.CLOUD and item.cloud.machine]

    def _items(self) -> list[Item]:
        with self._vault.database.read() as session:
            ids = session.scalars(select(ItemRecord.id)).all()
        items = []
        for item in ids:
            try:
                items.append(lifecycle_of(self._plane).items.load(ItemId(item)))
            except LifecycleUnknown:
                continue  # nobody said where its other side is: it was never failed over
        return items

    def users(self, server: str) -> tuple[str, ...]:
        """Names of the items that replicate through a server, or would after a cancel, sorted."""
        query = select(ItemRecord).where(ItemRecord.process_server == server).order_by(ItemRecord.name)
        with self._vault.database.read() as session:
            return tuple(record.name for record in session.scalars(query) if record.uses_process_server)

    # --- deleting -----------------------------------------------------------------------------------------------

    def before_delete(self, deployment: d.Deployment) -> DeleteFacts:
        """See the port."""
        form = deployment.form
        role = lifecycle_of(self._plane).book.site(deployment.site).whoami().roles.get(form.subscription)
        return self._delete_facts(
            deployment.server,
            form.name,
            form.network,
            may_delete=role is not None and role.rank >= SiteRole.CONTRIBUTOR.rank,
            failed_over=len(self.failed_over(deployment.site, form.network)),
        )

    def before_delete_of_own(self, server: ServerRecord) -> DeleteFacts:
        """Of one that no site made: it came with a configuration server, or was set up by hand."""
        return self._delete_facts(server.id, server.name, server.network, may_delete=True, failed_over=0)

    def _delete_facts(self, server: str, name: str, network: str, *, may_delete: bool, failed_over: int) -> DeleteFacts:
        record, status = self._record(server), self._plane.live.server(server).status
        others = [
            one
            for one in self._plane.registry.list(Role.PROCESS_SERVER)
            if one.network == network and one.state == REGISTERED and one.id != server
        ]
        return DeleteFacts(
            name=name,
            network=network,
            items=self.users(server),
            spool_bytes=status.backlog_bytes if status is not None else 0,
            built_in=record is not None and record.built_in,
            caller_may_delete=may_delete,
            other_servers=len(others),
            failed_over=failed_over,
        )

    def revoke(self, deployment: d.Deployment) -> None:
        """See the port. One that never registered is refused as well: its id is not given again."""
        server, record = deployment.server, self._record(deployment.server)
        with self._vault.database.write() as session:
            session.execute(delete(TokenRecord).where(TokenRecord.server == server))
        if record is not None and record.state != REVOKED:
            self._plane.registry.revoke(server)
        if record is not None:
            self._plane.run(self._disown(server))

    async def _disown(self, server: str) -> None:
        """This server itself refuses it too, and cuts its links."""
        await self._vault.take_trust(self._vault.authority.trust)
        self._plane.links.forget(server)
        await self._plane.home.forget(server)


def _list(session: Session, deployment: d.Deployment) -> None:
    """Its record: what is shown until it says who it is itself."""
    record = session.get(ServerRecord, deployment.server)
    if record is None:
        record = ServerRecord(
            id=deployment.server, role=Role.PROCESS_SERVER, built_in=False, state=UNREGISTERED,
            name=deployment.form.name, network=deployment.form.network,
        )  # fmt: skip
        session.add(record)


def deploy_ports(plane: ControlPlane) -> d.DeployPorts:
    """Every port over one control plane."""
    lifecycle = lifecycle_of(plane)
    return d.DeployPorts(lifecycle.book, StoredDeployments(plane.vault), CoreControl(plane), lifecycle)


def _job_steps(steps: Sequence[d.DeployStep]) -> tuple[jobs.Step, ...]:
    def bound(step: d.DeployStep) -> jobs.Step:
        return jobs.Step(step.name, step.title, lambda plane, subject: step.run(deploy_ports(plane), subject))

    return tuple(bound(step) for step in steps)


KINDS: Final = {d.DEPLOY: _job_steps(d.DEPLOYING), d.DELETE: _job_steps(d.DELETING)}
"""For the composition root to add to the core's."""
