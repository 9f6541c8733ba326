"""What the API does about deployed process servers: judge a form, begin the jobs, show the state, switch an item.

Called from worker threads of the API. The password is judged and hashed here, and goes no further.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from sqlalchemy import select

from backhaul.configuration_server import jobs
from backhaul.configuration_server.dial_book import Dialling
from backhaul.configuration_server.errors import JobRunning, ResourceUnknown
from backhaul.configuration_server.lifecycle import deploying as d
from backhaul.configuration_server.lifecycle.core import lifecycle_of
from backhaul.configuration_server.lifecycle.deploying_core import (
    CoreControl,
    StoredDeployments,
    deploy_ports,
    put,
)
from backhaul.configuration_server.lifecycle.deploying_errors import (
    DeploymentExists,
    DeploymentRefused,
    SwitchNetwork,
    SwitchUnhealthy,
)
from backhaul.configuration_server.lifecycle.deploying_forms import BOOT, Form, filled
from backhaul.configuration_server.plane import ControlPlane
from backhaul.configuration_server.records import ItemRecord, JobRecord, ServerRecord
from backhaul.configuration_server.registry import REGISTERED, UNREGISTERED
from backhaul.configuration_server.revisions import Revisions
from backhaul.configuration_server.vault import note
from backhaul.recovery.findings import Finding, Severity
from backhaul.recovery.preflight_delete import before_delete_process_server
from backhaul.recovery.preflight_facts import USABLE
from backhaul.replication.values import ItemId, Role
from backhaul.sites.errors import SiteError
from backhaul.sites.server_rules import hash_password, password_matches
from backhaul.sites.values import PasswordHash

NO_PASSWORD: Final = PasswordHash("", "")
"""Of a form that is only judged."""


# --- deploying --------------------------------------------------------------------------------------------------------


def judge(plane: ControlPlane, name: str, form: Form) -> tuple[Form, list[Finding]]:
    """The form as filled in, and all findings on it, passes included. Changes nothing. Raises BodyWrong, ..."""
    try:
        whole = filled(plane, form)
        return whole, d.findings(deploy_ports(plane), _deployment(name, whole, NO_PASSWORD, "judged"), form.password)
    except SiteError as error:
        raise _refused("Deploying", name, error) from error


def begin_deploy(plane: ControlPlane, name: str, form: Form, account: str) -> str:
    """Begin to deploy, or go on with what was begun by the same form; the job's id.

    Raises DeploymentRefused with all findings, DeploymentExists, JobRunning, BodyWrong, ...
    """
    known = StoredDeployments(plane.vault).find(name)
    if known is not None and _has_begun(plane, known):
        return _go_on(plane, known, form, account)
    whole, found = judge(plane, name, form)
    _require("Deploying", name, found)
    hashed = hash_password(form.password, plane.vault.world.randomness)
    fresh = _deployment(name, whole, hashed, plane.vault.world.randomness.token(16).hex())
    with plane.vault.database.write() as session:
        if known is not None:
            # Nothing of the earlier form is on the site: the new one replaces it, its attempts stay counted.
            fresh = msgspec.structs.replace(fresh, id=known.id, attempt=known.attempt)
        job = plane.jobs.add(session, d.DEPLOY, fresh.id, name, account)
        put(session, fresh)
    plane.runner.start(job, d.DEPLOY)
    return job


def _deployment(name: str, form: Form, password: PasswordHash, deployment: str) -> d.Deployment:
    return d.Deployment(
        id=deployment, site=form.site, form=form.request(name), password=password, size=form.size, command=BOOT,
        register=form.register, dialling=form.dialling, configuration_server=form.configuration_server,
        port=form.data_port,
    )  # fmt: skip


def _has_begun(plane: ControlPlane, known: d.Deployment) -> bool:
    """Whether anything on the site belongs to it, or a job is about to change that."""
    return bool(known.reserved) or running_job(plane, known.id) is not None or _on_site(plane, known)


def _on_site(plane: ControlPlane, known: d.Deployment) -> bool:
    try:
        return any(one.name == known.form.name for one in lifecycle_of(plane).book.site(known.site).servers())
    except SiteError as error:
        raise _refused("Deploying", known.form.name, error) from error


def _go_on(plane: ControlPlane, known: d.Deployment, form: Form, account: str) -> str:
    differs = _differences(known, form)
    if differs:
        raise DeploymentExists(name=known.form.name, reason=", ".join(differs))
    with plane.vault.database.write() as session:
        job = plane.jobs.add(session, d.DEPLOY, known.id, known.form.name, account)
    plane.runner.start(job, d.DEPLOY)
    return job


def _differences(known: d.Deployment, form: Form) -> list[str]:
    """Fields that are given and are not those of the stored form; what was left out is as it was."""
    stored: dict[str, Any] = msgspec.structs.asdict(known.form) | {
        "site": known.site, "size": known.size, "register": known.register,
        "configuration_server": known.configuration_server, "address": known.form.address or known.reserved,
    }  # fmt: skip
    given = {name: value for name, value in msgspec.structs.asdict(form).items() if value and name in stored}
    for settled in ("password", "new_resource_group"):  # the group exists once it was made
        given.pop(settled, None)
    found = [name for name, value in given.items() if not _same(stored[name], value)]
    if form.dialling is not known.dialling:
        found.append("dialling")
    if form.data_port != known.port:
        found.append("data_port")
    if not password_matches(form.password, known.password):
        found.append("password")
    return found


def _same(stored: Any, given: Any) -> bool:
    """Names of a site are the same in any case; of a configuration server the port may be left out."""
    if isinstance(given, str):
        known = str(stored).lower()
        return known == given.lower() or known.startswith(f"{given.lower()}:")
    return bool(stored == given)


# --- deleting ---------------------------------------------------------------------------------------------------------


def delete_findings(plane: ControlPlane, name: str) -> list[Finding]:
    """What speaks for and against deleting it now. Changes nothing. Raises ResourceUnknown."""
    control, own = CoreControl(plane), _built_in(plane, name)
    if own is not None:
        return before_delete_process_server(control.before_delete_of_own(own))
    known = find(plane, name)
    try:
        return before_delete_process_server(control.before_delete(known))
    except SiteError as error:
        raise _refused("Deleting", name, error) from error


def begin_delete(plane: ControlPlane, name: str, account: str) -> str:
    """Begin to delete; the job's id. Raises DeploymentRefused (with the items that use it), ResourceUnknown, ..."""
    _require("Deleting", name, delete_findings(plane, name))
    known = find(plane, name)
    with plane.vault.database.write() as session:
        job = plane.jobs.add(session, d.DELETE, known.id, known.form.name, account)
    plane.runner.start(job, d.DELETE)
    return job


def _built_in(plane: ControlPlane, name: str) -> ServerRecord | None:
    """The process server of this name that came with a configuration server."""
    try:
        found = plane.registry.get(name, Role.PROCESS_SERVER)
    except ResourceUnknown:
        return None
    return found if found.built_in else None


def _require(action: str, name: str, found: Iterable[Finding]) -> None:
    failed = [one for one in found if one.severity is Severity.FAIL]
    if failed:
        reason = "; ".join(f"{one.code}: {one.reason}" for one in failed)
        fix = " ".join(dict.fromkeys(one.fix for one in failed))
        raise DeploymentRefused(action=action, name=name, reason=reason, what_to_do=fix)


def _refused(action: str, name: str, error: SiteError) -> DeploymentRefused:
    return DeploymentRefused(action=action, name=name, reason=f"{error.code}: {error.message}", what_to_do=error.advice)


# --- showing ----------------------------------------------------------------------------------------------------------


def find(plane: ControlPlane, name: str) -> d.Deployment:
    """By the server's name, or its id. Raises ResourceUnknown."""
    stored = StoredDeployments(plane.vault)
    known = stored.find(name) or next((one for one in stored.every() if one.server.lower() == name.lower()), None)
    if known is None:
        raise ResourceUnknown(kind="deployed process server", name=name)
    return known


def running_job(plane: ControlPlane, deployment: str) -> JobRecord | None:
    """The job of this deployment that runs."""
    last = last_job(plane, deployment)
    return last if last is not None and last.state in jobs.ACTIVE else None


def last_job(plane: ControlPlane, deployment: str) -> JobRecord | None:
    """The newest job of this deployment."""
    query = select(JobRecord).where(JobRecord.subject == deployment).order_by(JobRecord.created_ns.desc()).limit(1)
    with plane.vault.database.read() as session:
        return session.scalars(query).one_or_none()


def shape(plane: ControlPlane, known: d.Deployment) -> dict[str, Any]:
    """A deployment in our own shape.

    `state`: deploying, deleting, failed, unregistered or registered; `health` where it is registered, `nextCommand`
    where the operator is to do something, `reason` and `fix` where the last job failed.
    """
    form, job = known.form, last_job(plane, known.id)
    server = _server(plane, known.server)
    state = _state(job, server)
    failures = jobs.failures_of(job) if job is not None and state == "failed" else []
    return {
        "id": f"{plane.vault.path}/backhaulProcessServerDeployments/{form.name}",
        "name": form.name,
        "type": "Microsoft.RecoveryServices/vaults/backhaulProcessServerDeployments",
        "properties": {
            "state": state,
            "server": known.server,
            "site": known.site,
            "subscription": form.subscription,
            "resourceGroup": form.resource_group,
            "region": form.region,
            "network": form.network,
            "subnet": form.subnet,
            "address": known.reserved or form.address,
            "dataPort": known.port,
            "user": form.user,
            "storageAccount": form.storage_account,
            "size": known.size,
            "register": known.register,
            "dialling": known.dialling,
            "configurationServer": known.configuration_server,
            "health": plane.server_health(server).health if server is not None else "Unknown",
            "job": job.id if job is not None else "",
            "tasks": _tasks(job) if state in ("deploying", "deleting") and job is not None else [],
            "code": failures[0].code if failures else "",
            "reason": failures[0].message if failures else "",
            "fix": failures[0].fix if failures else "",
            "nextCommand": next_command(known) if state == "unregistered" else "",
            "usedBy": list(CoreControl(plane).users(known.server)),
        },
    }


def _server(plane: ControlPlane, server: str) -> ServerRecord | None:
    with plane.vault.database.read() as session:
        return session.get(ServerRecord, server)


def _state(job: JobRecord | None, server: ServerRecord | None) -> str:
    if job is not None and job.state in jobs.ACTIVE:
        return "deleting" if job.kind == d.DELETE else "deploying"
    if server is not None and server.state == REGISTERED:
        return "registered"
    return "unregistered" if job is not None and job.state == "Succeeded" else "failed"


def _tasks(job: JobRecord) -> list[dict[str, Any]]:
    return [{"name": task.name, "title": task.title, "state": task.state} for task in jobs.tasks_of(job)]


def next_command(known: d.Deployment) -> str:
    """What the operator types on the new server."""
    dials = " --home-dials" if known.dialling is Dialling.HOME else ""
    where = f"--configuration-server {known.configuration_server}{dials}"
    return f"backhaul process-server register {where} --user {known.form.user}"


def next_command_of(plane: ControlPlane, server: ServerRecord) -> str:
    """What the operator does next with a server, deployed from here or not; empty for nothing."""
    if server.state == UNREGISTERED:
        deployed = (known for known in StoredDeployments(plane.vault).every() if known.server == server.id)
        if (known := next(deployed, None)) is not None:
            return "" if running_job(plane, known.id) is not None else next_command(known)
    return plane.next_command(server)


# --- switching --------------------------------------------------------------------------------------------------------


def switch(plane: ControlPlane, item: str, process_server: str, account: str) -> None:
    """Have an item replicate through another process server of its machine's network from now on; no resync.

    Raises ResourceUnknown, LifecycleUnknown, SwitchNetwork, SwitchUnhealthy, JobRunning.
    """
    record, server = plane.items.get(item), plane.registry.get(process_server, Role.PROCESS_SERVER)
    lifecycle = lifecycle_of(plane)
    place = lifecycle.items.load(ItemId(record.id)).active
    facts = next((one for one in lifecycle.process_servers(place) if one.name == server.id), None)
    if facts is None:
        serves = server.network or "home"
        raise SwitchNetwork(item=record.name, name=server.name, reason="", serves=serves, network=place.network)
    if facts.health not in USABLE:
        raise SwitchUnhealthy(item=record.name, name=server.name, reason="", health=facts.health)
    with plane.vault.database.write() as session:
        if jobs.running_of(session, record.id) is not None:
            raise JobRunning(name=record.name)  # it may have told the agent of the present one already
        stored = session.get_one(ItemRecord, record.id)
        if stored.process_server == server.id:
            return
        stored.process_server = server.id
        Revisions.bump(session, [stored.agent])
        now = plane.vault.clock.wall_ns()
        text = f"{record.name} replicates through {server.name}; {account} asked for it."
        note(session, now, "item", "item.switched", record.id, text)
    plane.revisions.wake()
