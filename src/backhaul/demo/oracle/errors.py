"""What keeps the oracle from judging. A bad image is no error: it is a violation in the report.

OracleError
├── LogUnusable      ├── LogDamaged      ├── LogWriteFailed
├── ImageUnreadable  ├── DiskMissing     └── DatabaseUnreadable
"""

from __future__ import annotations

from backhaul.replication.errors import BackhaulError


class OracleError(BackhaulError):
    """The oracle could not judge: {reason}."""

    code = "BH-ORACLE"
    fix = "See the reason. Nothing was changed: the oracle only reads."


class LogUnusable(OracleError):
    """The acknowledgement log {path} cannot be used: {reason}."""

    code = "BH-ORACLE-LOG-UNUSABLE"
    fix = "Name the folder that the writers of this one machine were given as their log, or one file of it."


class LogDamaged(OracleError):
    """The acknowledgement log {path} is damaged at record {record}: {reason}."""

    code = "BH-ORACLE-LOG-DAMAGED"
    fix = "A torn tail is normal and is cut; this is not one. No judgement is possible with this log."


class LogWriteFailed(OracleError):
    """The acknowledgement log {path} could not be written: {reason}."""

    code = "BH-ORACLE-LOG-WRITE"
    fix = "Free space beside the log; the writer has stopped, since it may not write what it cannot log."


class ImageUnreadable(OracleError):
    """The disk image {name} could not be read at byte {offset}: {reason}."""

    code = "BH-ORACLE-IMAGE"
    fix = "Read the image again; if it fails again the medium under it is faulty."


class DiskMissing(OracleError):
    """The log speaks of disk {disk}, but only {given} images were given."""

    code = "BH-ORACLE-DISK-MISSING"
    fix = "Give the images of all disks of the machine, in the order in which the writer was given them."


class DatabaseUnreadable(OracleError):
    """The database {path} could not be opened: {reason}."""

    code = "BH-ORACLE-DATABASE"
    fix = "Name the database file on the mounted file system of the recovered disk."
