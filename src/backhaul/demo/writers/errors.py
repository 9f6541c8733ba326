"""What ends a writer, or keeps it from starting.

WriterError
├── WriterSpecInvalid   ├── WriterDiskFailed   └── WriterUnreachable
"""

from __future__ import annotations

from backhaul.replication.errors import BackhaulError


class WriterError(BackhaulError):
    """The writer of machine {machine} ended: {reason}."""

    code = "BH-WRITER"
    fix = "See the reason; what it had acknowledged is in its log."


class WriterSpecInvalid(WriterError):
    """The writer cannot start with this specification: {reason}."""

    code = "BH-WRITER-SPEC"
    fix = "Correct the specification; nothing was written."


class WriterDiskFailed(WriterError):
    """{what} failed on {path}: {reason}."""

    code = "BH-WRITER-DISK"
    fix = "Expected when the machine was fenced or powered off. Otherwise the disk is faulty. The writer has stopped."


class WriterUnreachable(WriterError):
    """The writer behind {path} did not answer `{command}`: {reason}."""

    code = "BH-WRITER-UNREACHABLE"
    fix = "See whether the writer runs. If it hangs it goes on writing by itself once its quiesce limit is over."
