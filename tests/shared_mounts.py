"""Mounts of tests that run side by side with sites, whose servers have mount namespaces of their own."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def shared(folder: Path) -> Iterator[None]:
    """What is unmounted below `folder` is gone in every mount namespace that was made meanwhile. Root.

    Else a copy of the mount in another test's namespace would keep the device claimed.
    """
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "--make-shared", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
