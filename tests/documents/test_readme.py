"""The README's commands, taken out word for word and run in order, do what the README says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from documents.readme import ENGLISH, FROM_NOTHING, commands

LIMIT_S = 60.0
"""A person tries again when a server that was just started does not answer yet; this bounds how long."""


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.close()


class Shell:
    """Runs commands in a folder of its own, with a profile of its own, and ends all that they started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment = {
            **os.environ,
            "PATH": path,
            "HOME": str(folder),
            "BACKHAUL_PROFILE": str(folder / "profile"),
        }
        self._background: list[subprocess.Popen[bytes]] = []

    def run(self, command: str) -> str:
        """What the command printed. One that ends with `&` goes on in the background."""
        if command.endswith("&"):
            self._background.append(self._start(command.removesuffix("&")))
            return ""
        deadline = time.monotonic() + LIMIT_S
        while True:
            process = self._start(command)
            printed, _ = process.communicate()
            if process.returncode == 0:
                return printed.decode()
            assert time.monotonic() < deadline, f"{command}\n{printed.decode()}"

    def _start(self, command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def close(self) -> None:
        for process in self._background:
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate()
        for folder in (self.folder / "server").glob("*/"):
            subprocess.run(["pkill", "-f", f"run --data-dir .*{folder.parent.name}/{folder.name}$"], check=False)


def test_the_commands_do_what_the_readme_says(shell: Shell) -> None:
    printed: dict[str, str] = {}
    for _, command in commands(ENGLISH, FROM_NOTHING):
        if command.startswith("sed"):
            serving(shell)
        printed[command] = shell.run(command)
    assert "web" in printed["backhaul item list"]
    shown = printed["backhaul item show web"]
    assert shown.startswith("The copy at home is authoritative."), shown
    assert "Not Commit" in shown
    assert "agent web: reports" in printed["backhaul doctor web"]


def serving(shell: Shell) -> None:
    """The one-time password is there once the server has said that it serves."""
    said = shell.folder / "server.txt"
    deadline = time.monotonic() + LIMIT_S
    while not said.exists() or "Serving on port" not in said.read_text():
        assert time.monotonic() < deadline, "the server starts"
