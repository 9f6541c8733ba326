"""Programs of the host that a site in namespaces runs (ip, nft, losetup, mkfs, mount). Called from worker threads."""

from __future__ import annotations

import os
import subprocess

from backhaul.sites.errors import HostToolFailed

_LIMIT_S = 60.0


def run(*command: str, text: str = "") -> str:
    """Run the program, with `text` on its standard input; its output. Raises HostToolFailed."""
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
            env={**os.environ, "LC_ALL": "C"},  # what they print is read
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostToolFailed(command=" ".join(command), reason=str(error)) from error
    if done.returncode != 0:
        raise HostToolFailed(command=" ".join(command), reason=done.stderr.strip() or f"exit code {done.returncode}")
    return done.stdout
