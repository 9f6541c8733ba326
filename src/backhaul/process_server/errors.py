"""What can go wrong in a process server.

BackhaulError
└── ProcessServerError
    ├── SpoolError ── SpoolWriteFailed, SpoolSyncFailed (fatal), SpoolDamaged, SpoolItemsFull
    ├── TargetNotConnected, StreamNotGranted, ConnectionReplaced, ConnectionRefused, PeerTooSlow
    ├── SettingRefused, MethodUnknown, FolderInUse
    └── NewcomersLimited, HomeSilent, RegisterMalformed, RegisterFailed, RegisterUnavailable
"""

from __future__ import annotations

from backhaul.replication.errors import BackhaulError


class ProcessServerError(BackhaulError):
    """The process server could not go on: {reason}."""

    code = "BH-PROCESS-SERVER"


class SpoolError(ProcessServerError):
    """The spool in {folder} failed: {reason}."""

    code = "BH-SPOOL"


class SpoolWriteFailed(SpoolError):
    """The spool in {folder} cannot be written: {reason}."""

    code = "BH-SPOOL-WRITE-FAILED"
    fix = "Give the volume space or repair it. Nothing acknowledged is lost; replication goes on by itself."


class SpoolSyncFailed(SpoolError):
    """The disk did not confirm what was written to the spool in {folder}: {reason}."""

    code = "BH-SPOOL-SYNC-FAILED"
    fix = "The process server ended, because what it wrote is unknown. Check the disk; it recovers when started again."
    exit_code = 74


class SpoolDamaged(SpoolError):
    """The spool in {folder} is damaged in segment {segment} at byte {offset}: {reason}."""

    code = "BH-SPOOL-DAMAGED"
    fix = "Check the disk. The items concerned open a new stream and send unapplied blocks again; nothing else is lost."


class SpoolItemsFull(SpoolError):
    """The spool in {folder} already serves {limit} items, all of them in use."""

    code = "BH-SPOOL-ITEMS-FULL"
    fix = "Add a process server and move items to it."


class TargetNotConnected(ProcessServerError):
    """No target that holds item {item} is connected to this process server."""

    code = "BH-TARGET-NOT-CONNECTED"
    fix = "The agent asks again by itself. Check that the master target runs and reaches the process server's port."


class StreamNotGranted(ProcessServerError):
    """Agent {agent} sent for item {item}, whose stream was granted to another."""

    code = "BH-STREAM-NOT-GRANTED"
    fix = "Nothing to do if it is a copy or an old primary; it stands by and changes nothing."


class ConnectionReplaced(ProcessServerError):
    """A newer connection of {peer} took the place of this one."""

    code = "BH-CONNECTION-REPLACED"
    fix = "If it happens again and again, two machines use one certificate: see the process server's connections."


class ConnectionRefused(ProcessServerError):
    """The connection of {peer} was refused: {reason}."""

    code = "BH-CONNECTION-REFUSED"
    fix = "Connect agents, master targets and the configuration server only, and no more than the limit allows."


class PeerTooSlow(ProcessServerError):
    """The peer {peer} did not read what was sent to it: {waiting} messages were waiting."""

    code = "BH-PEER-TOO-SLOW"
    fix = "The peer connects again by itself and is told its newest state."


class SettingRefused(ProcessServerError):
    """The setting {name} was refused: {reason}."""

    code = "BH-SETTING-REFUSED"
    fix = "Correct the value and send the settings again; the old ones stay in force."


class MethodUnknown(ProcessServerError):
    """The process server knows no method {method}."""

    code = "BH-METHOD-UNKNOWN"
    fix = "Compare the versions of configuration server and process server."


class FolderInUse(ProcessServerError):
    """Another process server already runs in {folder}."""

    code = "BH-FOLDER-IN-USE"
    fix = "Let the other one run, or give this one a folder of its own."


class NewcomersLimited(ProcessServerError):
    """Registrations from {peer} are not passed on for now: {reason}."""

    code = "BH-NEWCOMERS-LIMITED"
    fix = "Wait a minute, then register again."


class HomeSilent(ProcessServerError):
    """The configuration server has not dialled this server within {limit_s} seconds."""

    code = "BH-HOME-SILENT"
    fix = (
        "Check at home that the server's address and the key hash on its console were taken, and that the way from "
        "home to its data port is open; or register directly, if the configuration server can be reached from here."
    )


class RegisterMalformed(ProcessServerError):
    """The request to register is not valid: {reason}."""

    code = "BH-REGISTER-MALFORMED"
    fix = "Use `backhaul process-server register` of the same version as the server that runs."


class RegisterFailed(ProcessServerError):
    """The server that waits to be registered answered {reason_code}: {reason}"""

    code = "BH-REGISTER-FAILED"
    fix = "{reason_fix}"


class RegisterUnavailable(ProcessServerError):
    """No server that waits to be registered runs in {folder}: {reason}."""

    code = "BH-REGISTER-UNAVAILABLE"
    fix = "Start it first: `backhaul process-server run`. One that is registered already is registered again directly."
