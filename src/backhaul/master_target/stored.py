"""Small files that decide something (who may write, which keys there are), stored whole or not at all.

Invariant: when storing is refused for want of space, the file is what it was; everything else that goes wrong is
fatal, because what a restart would find is unknown. Called from worker threads.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

from backhaul.master_target.errors import StateNotStored
from backhaul.replication.ports import Files

NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
"""People make room, and nothing was written to the file itself: one item's want of it must not end the others."""


def replace_or_refuse(files: Files, path: Path, content: bytes) -> None:
    """Durable when it returns. Raises StateNotStored when there is no space and the file is as before; OSError."""
    try:
        files.replace(path, content)
    except OSError as error:
        if error.errno not in NO_SPACE or _read(files, path) == content:
            raise
        raise StateNotStored(name=path.name, folder=path.parent, cause=error) from error


def _read(files: Files, path: Path) -> bytes | None:
    try:
        return files.read(path)
    except FileNotFoundError:
        return None
