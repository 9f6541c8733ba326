"""What the configuration server refuses, and with which HTTP status.

BackhaulError
└── ConfigurationServerError
    ├── VaultError           VaultExists, VaultDamaged, FolderTaken, ListenAddressWrong
    ├── CallerError          LoginRequired, LoginWrong, LoginLocked, CallerRefused, PasswordChangeRequired, ...
    ├── RequestError         ResourceUnknown, BodyWrong, ApiVersionUnsupported, NameTaken, ...
    └── ServerSilent, AgentMute, JobFailed, MemberError
"""

from __future__ import annotations

from typing import ClassVar, Final

from backhaul.links.errors import EnrolmentError, LinkError
from backhaul.recovery.errors import RecoveryError
from backhaul.replication.errors import BackhaulError


class ConfigurationServerError(BackhaulError):
    """The configuration server failed: {reason}."""

    code = "BH-SERVER"
    status: ClassVar[int] = 500


class VaultError(ConfigurationServerError):
    """The vault in {folder} cannot be used: {reason}."""

    code = "BH-VAULT"
    fix = "See the reason; restore the folder from its copy if files of it are gone."


class FolderTaken(VaultError):
    """Another process already serves the folder {folder}."""

    code = "BH-FOLDER-TAKEN"
    fix = "Stop the other process first; two of them would destroy each other's records."


class SecretDamaged(VaultError):
    """A sealed secret does not open with the master key of {folder}."""

    code = "BH-SECRET-DAMAGED"
    fix = "Put back the `secrets/master.key` that belongs to this data folder."


class SettingsWrong(VaultError):
    """The settings in {folder} are not valid: {reason}."""

    code = "BH-SETTINGS"
    fix = "Correct the file; `backhaul config show` prints the settings in force and their names."


class AddressWrong(VaultError):
    """{address} is no address of the form host:port."""

    code = "BH-ADDRESS"
    fix = "Give a host name or IP address and a port, such as 0.0.0.0:443 or [::1]:8443."


class CallerError(ConfigurationServerError):
    """The request was refused: {reason}."""

    code = "BH-CALLER"
    fix = "Log in with `backhaul login`, or use the certificate of a registered server."
    status = 403


class LoginRequired(CallerError):
    """This needs a session, and the request bears none that is valid."""

    code = "BH-LOGIN-REQUIRED"
    fix = "Log in with `backhaul login`; sessions end after some hours and when the password changes."
    status = 401


class LoginWrong(CallerError):
    """The user name or the password is wrong."""

    code = "BH-LOGIN-WRONG"
    fix = "Try again; after several failures the account is locked for a while."
    status = 401


class LoginLocked(CallerError):
    """The account is locked for {wait_s} more seconds after too many failed logins."""

    code = "BH-LOGIN-LOCKED"
    fix = "Wait, then log in with the right password."
    status = 429


class PasswordChangeRequired(CallerError):
    """The one-time password may only be used to set a password."""

    code = "BH-PASSWORD-CHANGE"
    fix = "Set a password with `backhaul login`, then go on."


class PasswordRefused(CallerError):
    """The new password is not accepted: {reason}."""

    code = "BH-PASSWORD-REFUSED"
    fix = "Choose at least 12 characters that are not the user name and not the present password."
    status = 400


class CallerRefused(CallerError):
    """{caller} may not call {route}: it is for {allowed}."""

    code = "BH-CALLER-REFUSED"
    fix = "Use an account with the role that is named, or the server's own certificate."


class RequestError(ConfigurationServerError):
    """The request is not valid: {reason}."""

    code = "BH-REQUEST"
    fix = "Correct the request."
    status = 400


class ResourceUnknown(RequestError):
    """There is no {kind} {name}."""

    code = "BH-RESOURCE-UNKNOWN"
    fix = "List what there is with the `list` command of the same kind."
    status = 404


class BodyWrong(RequestError):
    """The body of the request is not valid: {reason}."""

    code = "BH-BODY-WRONG"
    fix = "Correct what the reason names."


class BodyTooLarge(RequestError):
    """The body of the request is larger than {limit} bytes."""

    code = "BH-BODY-TOO-LARGE"
    fix = "No request of this API is that large."
    status = 413


class FilterWrong(RequestError):
    """The filter {filter} is not understood: {reason}."""

    code = "BH-FILTER-WRONG"
    fix = "Use `Field eq 'value'`, joined by `and`."


class ApiVersionMissing(RequestError):
    """The request names no api-version."""

    code = "BH-API-VERSION-MISSING"
    fix = "Add api-version=2025-08-01 to the query."


class ApiVersionUnsupported(RequestError):
    """The api-version {version} is not supported; {oldest} to {newest} are."""

    code = "BH-API-VERSION-UNSUPPORTED"
    fix = "Use a version within the bounds."


class NameTaken(RequestError):
    """There is a {kind} {name} already."""

    code = "BH-NAME-TAKEN"
    fix = "Choose another name."
    status = 409


class InUse(RequestError):
    """The {kind} {name} is in use by {users}."""

    code = "BH-IN-USE"
    fix = "Release what uses it first."
    status = 409


class NoServer(RequestError):
    """There is no healthy {role} to protect with."""

    code = "BH-NO-SERVER"
    fix = "See `backhaul process-server list`; `backhaul doctor` names what is broken."
    status = 409


class JobRunning(RequestError):
    """A job of {name} is running already."""

    code = "BH-JOB-RUNNING"
    fix = "Wait for it to end: `backhaul job watch`."
    status = 409


class JobNotCancelable(RequestError):
    """{kind} of {name} cannot be cancelled as a job: it {state}."""

    code = "BH-JOB-NOT-CANCELABLE"
    fix = "{advice}"
    status = 409


class JobCancelled(RequestError):
    """{name} was cancelled: {done} of {total} items had begun and were let end."""

    code = "BH-JOB-CANCELLED"
    fix = "Begin it again for the items that are left; `backhaul job show` names each."
    status = 409


class ProtectRefused(RequestError):
    """The machine {machine} cannot be protected: {reason}."""

    code = "BH-PROTECT-REFUSED"
    fix = "See the reason; `backhaul doctor` looks at the machine and its agent."
    status = 409


class AgentMute(ConfigurationServerError):
    """Agent {agent} of machine {machine} cannot be asked about its disks: {reason}."""

    code = "BH-AGENT-MUTE"
    fix = "Run the agent beside the machine, where it reads the disks while the machine is off; or decide by name."
    status = 409


class ServerSilent(ConfigurationServerError):
    """{server} does not answer: {reason}."""

    code = "BH-SERVER-SILENT"
    fix = "`backhaul doctor` walks the way to it rung by rung."
    status = 503


class ServerRefused(ConfigurationServerError):
    """{server} refused {method}: {reason_code} {params}."""

    code = "BH-SERVER-REFUSED"
    fix = "Look the server's code up; nothing was changed by this request."
    status = 502


class MemberError(ConfigurationServerError):
    """{member} could not speak with the configuration server at {address}: {reason}."""

    code = "BH-MEMBER"
    fix = "Check address and port of the configuration server; it is tried again by itself."


class NotRegistered(ConfigurationServerError):
    """The folder {folder} holds no registration."""

    code = "BH-NOT-REGISTERED"
    fix = "Register it first: `backhaul {kind} register`."


class ServiceDown(ConfigurationServerError):
    """No {kind} runs in the folder {folder}."""

    code = "BH-SERVICE-DOWN"
    fix = (
        "Start it with `backhaul {kind} run`; one that was deployed is started by its cloud, and its console says why "
        "it ended."
    )


class SpoolNearlyFull(ConfigurationServerError):
    """Only {percent} % of {folder} is free."""

    code = "BH-SPOOL-NEARLY-FULL"
    fix = "Mend the way to the target, so that what is spooled is forwarded, or make the volume larger."


class ClockWrong(ConfigurationServerError):
    """The clock of this server differs from that of the configuration server by {seconds} s."""

    code = "BH-CLOCK-WRONG"
    fix = "Synchronise the clocks of both servers (NTP): certificates and the age of recovery points depend on them."


_STATUS: Final[tuple[tuple[type[BackhaulError], int], ...]] = (
    (RecoveryError, 409),
    (EnrolmentError, 400),
    (LinkError, 503),
)


def http_status(error: BackhaulError) -> int:
    """The HTTP status under which the API reports the error."""
    if isinstance(error, ConfigurationServerError):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
