"""The operator: all that the demo does to the product, and how it gets there.

Two management APIs (home's and the cloud's sites), the configuration server's API through `backhaul.client`, and a hand
in the working folders of its own guests and services, as an administrator has on machines. Secrets of the demo (access
tokens, the admin's password) are in `operator.json` of its folder, 0600. In namespaces the configuration server is
reached from inside home's control network, by one thread that entered it. Called by the demo's main thread and by the
threads of its stages; vault calls are queued to their thread.
"""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from backhaul.client.deployments import Deployments
from backhaul.client.errors import ClientError, NotLoggedIn, Unreachable
from backhaul.client.lifecycle import Lifecycle
from backhaul.client.login import login
from backhaul.client.profile import VARIABLE, Profile
from backhaul.client.vault import RUNNING, Resource, Vault, job_error
from backhaul.demo.errors import WaitedInVain
from backhaul.demo.plan import CLOUD, CONFIGURATION, CONTROL, HOME, Plan
from backhaul.demo.service import CONSOLE, DATA
from backhaul.demo.site_process import SiteProcess
from backhaul.sites.local.client import LocalSite
from backhaul.sites.values import Server

T = TypeVar("T")

LOOK_S: Final = 0.25
LONG_S: Final = 120.0
"""Everything that is waited for takes seconds on an idle machine."""

JOB_S: Final = 300.0
"""A job copies what it must, and waits meanwhile for whatever was killed to be back."""

_PASSWORD: Final = re.compile(r"^  (\S+)$", re.MULTILINE)
_CLONE_NEWNET: Final = 0x40000000


class Secrets(msgspec.Struct, frozen=True):
    """What only the operator knows."""

    home_token: str
    cloud_token: str
    password: str
    server_password: str


class Session:
    """Clients of one login."""

    def __init__(self, profile: Profile) -> None:
        self.vault, self.lifecycle, self.deployments = Vault(profile), Lifecycle(profile), Deployments(profile)

    def close(self) -> None:
        """Close the connections."""
        self.vault.close()
        self.lifecycle.__exit__()
        self.deployments.__exit__()


class Operator:
    """See the module. Use as a context manager of the demo's main thread."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.folder = plan.folder
        self.secrets = _secrets(plan.folder / "operator.json")
        self.processes = {name: SiteProcess(plan.folder / name, plan.management(name)) for name in (HOME, CLOUD)}
        self._sites: dict[str, LocalSite] = {}
        self._certificates: dict[str, str] = {}
        self._session: Session | None = None
        self._thread = ThreadPoolExecutor(1, "vault", self._enter_control)

    def close(self) -> None:
        """Let go of all connections; everything runs on."""
        if self._session is not None:
            self._thread.submit(self._forget_session).result()
        self._thread.shutdown()
        for site in self._sites.values():
            site.close()

    # --- sites ----------------------------------------------------------------------------------------------------

    def ensure_sites(self) -> None:
        """Both sites run: started, or found running."""
        for name, process in self.processes.items():
            token = self.token(name)
            process.define(self.plan.definition(name, token))
            endpoint = process.ensure()
            self._certificates[name] = endpoint.certificate_pem
            self._sites[name] = LocalSite(endpoint.address, token, endpoint.certificate_pem)

    def token(self, site: str) -> str:
        """The access token by which a site knows the operator, and Backhaul."""
        return self.secrets.home_token if site == HOME else self.secrets.cloud_token

    def certificate(self, site: str) -> str:
        """With which its provider answers."""
        return self._certificates[site]

    def site(self, name: str) -> LocalSite:
        """A site's management API."""
        return self._sites[name]

    def service_folder(self, site: str, service: str) -> Path:
        """The working folder of one of the demo's services."""
        return self.folder / site / "volume" / "services" / service / "data"

    def server_folder(self, server: Server) -> Path:
        """Where a deployed process server's commands begin: its first disk."""
        return self.folder / CLOUD / "volume" / "accounts" / server.account / "servers" / server.id / "os"

    def machine_folder(self, site: str, machine: str) -> Path:
        """The working folder of one of the demo's guests."""
        return self.folder / site / "volume" / "machines" / machine / "work"

    # --- the configuration server -----------------------------------------------------------------------------------

    def vault(self, act: Callable[[Vault], T]) -> T:
        """Do something with the vault, logged in; a session that ended meanwhile is begun again. Raises ClientError."""
        return self.session(lambda session: act(session.vault))

    def session(self, act: Callable[[Session], T]) -> T:
        """As `vault`, with all clients."""
        return self._thread.submit(self._with_session, act).result()

    def run_job(self, begin: Callable[[Session], str]) -> Resource:
        """Begin a job and wait for its end. Raises JobFailed, ClientError."""
        return self.await_job(self.session(begin))

    def await_job(self, job: str) -> Resource:
        """The job at its end; a configuration server that is away is waited for. Raises JobFailed, WaitedInVain."""

        def look() -> Resource | None:
            shown = self.vault(lambda vault: vault.job(job))
            return None if shown["properties"]["state"] in RUNNING else shown

        shown = await_that(look, f"The end of job {job}", JOB_S)
        if shown["properties"]["state"] != "Succeeded":
            raise job_error(shown)
        return shown

    def _with_session(self, act: Callable[[Session], T]) -> T:
        if self._session is None:
            self._session = self._log_in()
        try:
            return act(self._session)
        except NotLoggedIn:
            self._forget_session()
            self._session = self._log_in()
            return act(self._session)

    def _log_in(self) -> Session:
        os.environ[VARIABLE] = str(self.folder / "profile.json")
        folder = self.service_folder(HOME, CONFIGURATION)
        server, password = f"https://{self.plan.configuration_server}", self.secrets.password
        roots = (folder / DATA / "ca.pem").read_text()
        try:
            return Session(login(server, roots, "admin", password, lambda: password))
        except Unreachable:
            raise
        except ClientError:  # the first time: the one-time password that the server showed, once, on its console
            shown = one_time_password((folder / CONSOLE).read_text())
            if shown is None:
                raise
            return Session(login(server, roots, "admin", shown, lambda: password))

    def _forget_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _enter_control(self) -> None:
        """For the vault's thread: what it opens, it opens inside of home's control network."""
        namespace = self.plan.namespace(CONTROL)
        if not namespace:
            return
        descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"setns {namespace}")
        finally:
            os.close(descriptor)


def one_time_password(console: str) -> str | None:
    """The one that holds of those that a configuration server has shown: the newest, as a server that is killed just
    before it stores the account shows another one when it is back.
    """
    shown = _PASSWORD.findall(console)
    return shown[-1] if shown else None


@contextmanager
def operating(plan: Plan) -> Iterator[Operator]:
    """The operator of this plan's demo."""
    operator = Operator(plan)
    try:
        yield operator
    finally:
        operator.close()


def await_that(look: Callable[[], T | None], what: str, limit_s: float = LONG_S) -> T:
    """What `look` answers once that is not None (or False). Raises WaitedInVain with the last that went wrong."""
    deadline = time.monotonic() + limit_s
    seen = "nothing"
    while True:
        try:
            found = look()
            if found is not None and found is not False:
                return found
        except (Unreachable, FileNotFoundError) as error:  # not there yet, or just being restarted
            seen = str(error)
        if time.monotonic() > deadline:
            raise WaitedInVain(what=what, limit_s=limit_s, seen=seen)
        time.sleep(LOOK_S)


def _password() -> str:
    """One that satisfies every rule of passwords."""
    return f"Demo-{secrets.token_urlsafe(18)}-7"


def _secrets(path: Path) -> Secrets:
    """Made once, before anything is made with them."""
    if not path.exists():
        made = Secrets(secrets.token_hex(32), secrets.token_hex(32), _password(), _password())
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(made))
        partial.rename(path)
    return msgspec.json.decode(path.read_bytes(), type=Secrets)
