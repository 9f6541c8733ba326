"""No secret lies in clear in data folders, database, logs, arguments or environments of what runs."""

from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from backhaul.configuration_server.occupancy import running_in
from backhaul.links.passphrase import parse_passphrase
from backhaul.replication.ports import RealFiles
from configuration_server.live import PASSWORD, LiveServer
from configuration_server.searched import ProcessWatch, forms, in_files, in_tables
from lifecycle.deployed import NAME, World, failed_over_world, server_folder, until


@pytest.fixture(scope="module")
def busy(server: LiveServer) -> LiveServer:
    """A server on which every kind of secret was made and used."""
    server.healthy("masterTargets")
    server.healthy("processServers")
    server.machine("web1", root=bytes(1 << 20))
    vault = server.vault()
    vault.wait_job(vault.protect("web1", "24-hours", "", "", "", []))
    server.account("reader")
    profile = server.profile
    assert profile is not None
    with server.transport(profile.token) as transport:
        made = transport.call("POST", f"{profile.vault}/backhaulTokens", {"role": "agent", "server": "later"})
    server.passphrase_file().with_name("token").write_text(made["token"])
    return server


def secrets_of(server: LiveServer) -> dict[str, set[bytes]]:
    assert server.profile is not None
    passphrase = parse_passphrase(server.vault().passphrase())
    token = parse_passphrase((server.folder / "token").read_text())
    found = {
        "passphrase": forms(passphrase.secret) | {passphrase.text().encode(), passphrase.text().encode()[5:44]},
        "enrolment token": forms(token.secret) | {token.text().encode()},
        "one-time password": forms(server.one_time_password.encode()),
        "password": forms(PASSWORD.encode()),
        "session": forms(server.profile.token.encode()),
    }
    for path in server.folder.rglob("master.key"):
        found[str(path)] = forms(bytes.fromhex(path.read_text().strip()))
    return found


def test_files(busy: LiveServer) -> None:
    given = {busy.profile_path, busy.folder / "passphrase", busy.folder / "token"}  # the operator's own
    files = [path for path in busy.folder.rglob("*") if path.is_file() and path not in given]
    assert any(path.name == "backhaul.db" for path in files)
    assert any(path.name == "server.log" for path in files)
    assert sum(path.name == "service.log" for path in files) == 3
    secrets = secrets_of(busy)
    for path in files:
        if path.name == "master.key":
            assert path.stat().st_mode & 0o777 == 0o600
            continue
        content = path.read_bytes()
        for name, written in secrets.items():
            assert not [form for form in written if form in content], (name, path)


def test_arguments_and_environments(busy: LiveServer) -> None:
    assert busy.process is not None
    pids = {os.getpid(), busy.process.pid, *(member.pid for member in busy.members)}
    for folder in ("process-server", "master-target"):
        running = running_in(RealFiles(), busy.data_dir / folder)
        assert running is not None
        pids.add(running.pid)
    for pid in pids:
        for what in ("cmdline", "environ"):
            content = Path(f"/proc/{pid}/{what}").read_bytes()
            for name, written in secrets_of(busy).items():
                assert not [form for form in written if form in content], (name, pid, what)


def test_the_search_finds_what_is_there(busy: LiveServer) -> None:
    found = secrets_of(busy)["session"]
    assert [form for form in found if form in busy.profile_path.read_bytes()]


# --- a deployed process server, its cloud, and the job that made it ---------------------------------------------------

ADMINISTRATOR = f"Own-{os.urandom(8).hex()}-Aa1"
"""Of this run alone: other tests' servers on this machine have theirs."""


@dataclass(frozen=True)
class Deployment:
    """A server that was deployed by the command line and registered with its one-time token; what was seen of it."""

    world: World
    watch: ProcessWatch
    secrets: dict[str, set[bytes]]
    given: frozenset[Path]
    printed: str

    @property
    def database(self) -> Path:
        return self.world.server.data_dir / "backhaul.db"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("secrets")
    with ProcessWatch(folder) as watch, failed_over_world(folder) as world:
        given = folder / "typed"
        given.write_text(ADMINISTRATOR)
        deploy = ("process-server", "deploy", "--user", "rescue", "--password-file", str(given), "--register")
        done = world.server.command(*deploy)
        assert done.returncode == 0, done.stderr
        until(lambda: world.state()["health"] == "Healthy")
        (boot,) = world.cloud.folder.rglob("custom-data")
        token = parse_passphrase(json.loads(boot.read_bytes())["token"])
        shown = subprocess.run(
            [sys.executable, "-m", "backhaul", "config", "show", "--user", "rescue", "--password-file", str(given)],
            cwd=server_folder(world.cloud).parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
        secrets = {
            "administrator's password": forms(ADMINISTRATOR.encode()),
            "one-time token": forms(token.secret) | forms(token.text().encode()) | {token.text().encode()[5:44]},
        }
        jobs = json.dumps([world.server.vault().job(job["name"]) for job in world.server.vault().jobs()])
        printed = done.stdout + done.stderr + shown.stdout + shown.stderr + jobs
        watch.look()
        yield Deployment(world, watch, secrets, frozenset({given, boot}), printed)


def test_no_file_of_server_cloud_or_deployed_server_holds_a_deployment_secret(deployment: Deployment) -> None:
    """But the operator's own, and the boot data, by which the cloud hands its new server a token that is used up."""
    world = deployment.world
    for name, written in deployment.secrets.items():
        assert in_files(world.server.folder, written) | in_files(world.cloud.folder, written) <= deployment.given, name
    assert len(in_files(world.cloud.folder, deployment.secrets["one-time token"])) == 1, (
        "the search finds the boot data"
    )
    (given,) = in_files(world.server.folder, deployment.secrets["administrator's password"])
    assert given.name == "typed", "and the operator's own"
    looked_at = {path.name for path in (*world.server.folder.rglob("*"), *world.cloud.folder.rglob("*"))}
    assert {"backhaul.db", "server.log", "deployed.json", "service.json", "registration.json"} <= looked_at


def test_no_job_and_no_table_holds_a_deployment_secret(deployment: Deployment) -> None:
    """Arguments and results of workflows are among the tables; the job as the API shows it, and what was printed."""
    for name, written in deployment.secrets.items():
        assert in_tables(deployment.database, written) == set(), name
        assert not [form for form in written if form.decode(errors="ignore") in deployment.printed], name


def test_no_process_showed_a_deployment_secret(deployment: Deployment) -> None:
    """Of all that ran while it was deployed: server, provider, deployed server, and what they started."""
    watch = deployment.watch
    for words in ("backhaul server run", "process-server boot", "process-server deploy"):
        assert watch.showing(words), f"{words} was looked at"
    provider = deployment.world.cloud.daemon.process
    assert provider is not None
    assert provider.pid in watch.seen, "so was the provider"
    for name, written in deployment.secrets.items():
        assert watch.holding(written) == [], name


def test_the_search_of_deployments_finds_what_is_there(deployment: Deployment, tmp_path: Path) -> None:
    """What is an argument of a job is found in the workflow's inputs; a secret there, or in a process, would be too."""
    written = deployment.secrets["administrator's password"]
    job = deployment.world.server.vault().jobs()[0]["name"]
    assert ("workflow_input", "inputs") in in_tables(deployment.database, {job.encode()})
    copy = tmp_path / "backhaul.db"
    with sqlite3.connect(deployment.database) as source, sqlite3.connect(copy) as target:
        source.backup(target)
        pickled = base64.b64encode(pickle.dumps({"args": (1, ADMINISTRATOR)})).decode()
        target.execute("CREATE TABLE leaked (inputs TEXT)")
        target.execute("INSERT INTO leaked VALUES (?)", [pickled])
    assert in_tables(copy, written) == {("leaked", "inputs")}
    with ProcessWatch(tmp_path) as watch:
        subprocess.run(["sh", "-c", "sleep 1", str(tmp_path)], check=True, env=os.environ | {"LEAK": ADMINISTRATOR})
    assert watch.holding(written)
    shutil.rmtree(tmp_path)


def test_the_deployed_server_was_the_one_that_was_asked_for(deployment: Deployment) -> None:
    """The secrets were of use: the server is registered by its token, and its administrator's password is known."""
    assert deployment.world.state()["state"] == "registered"
    assert deployment.world.cloud.client.authenticate(NAME, "rescue", ADMINISTRATOR)
