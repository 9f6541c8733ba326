"""A demo in a folder of its own, run as its operator runs it: one process per run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backhaul.demo.lifecycle import STAGES, VERIFIED, clean
from backhaul.demo.plan import Plan

DEMO = (sys.executable, "-u", "-c", "from backhaul.demo.command import app; app(prog_name='backhaul demo')")
DOOMED = (sys.executable, "-u", "-m", "demo.doomed")
TAMPERED = (sys.executable, "-u", "-m", "demo.tampered")
TESTS = Path(__file__).parents[1]
NAMES = [stage.name for stage in STAGES]
LAST_LINE = VERIFIED.format(machines=2, disks=4, bytes="234,881,024")


class Demo:
    """One demo's folder, and its runs."""

    def __init__(self, folder: Path, as_root: bool) -> None:
        self.folder, self.plan = folder, Plan(folder, as_root)
        self._mode = () if as_root else ("--unprivileged",)

    def start(self, *arguments: str, program: tuple[str, ...] = DEMO) -> subprocess.Popen[str]:
        command = [*program, "--data-dir", str(self.folder), *self._mode, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(TESTS)}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)

    def run(self, *arguments: str) -> str:
        """Run to the end, which must be good; what it printed."""
        process = self.start(*arguments)
        printed, _ = process.communicate()
        assert process.returncode == 0, printed
        return printed

    def run_badly(self, *arguments: str, program: tuple[str, ...] = DEMO) -> tuple[int, str]:
        """Run to the end, which is no good one; the exit code and what it printed."""
        process = self.start(*arguments, program=program)
        printed, _ = process.communicate()
        assert process.returncode != 0, printed
        return process.returncode, printed

    def run_until_line(self, line: str, number: signal.Signals, *arguments: str) -> int:
        """Send the signal as soon as a line begins so; the exit code."""
        process = self.start(*arguments)
        assert process.stdout is not None
        for printed in process.stdout:
            if printed.startswith(line):
                process.send_signal(number)
                break
        process.stdout.read()
        process.stdout.close()
        return process.wait()

    def judge(self) -> tuple[int, str]:
        """Let the oracle judge all stations again: the exit code, and what it found."""
        command = [*DEMO, "check", "--data-dir", str(self.folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        return done.returncode, done.stdout

    def client(self, *arguments: str) -> str:
        """What the product's own command line prints, asked as the demo says one can."""
        inside = [] if not self.plan.as_root else ["ip", "netns", "exec", Path(self.plan.namespace("control")).name]
        environment = {**os.environ, "BACKHAUL_PROFILE": str(self.folder / "profile.json")}
        command = [*inside, sys.executable, "-m", "backhaul", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    def traces(self) -> list[str]:
        """Processes, mounts, loop devices and namespaces of this demo."""
        found = [f"process {pid}" for pid in os.listdir("/proc") if pid.isdigit() and self._is_mine(Path("/proc", pid))]
        found += [line for line in Path("/proc/mounts").read_text().splitlines() if f"{self.folder}/" in line]
        names = os.listdir("/run/netns") if Path("/run/netns").exists() else []
        found += [name for name in names if self.plan.mark in name]
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):  # somebody else's, detached just now
                given_back = backing.with_name("autoclear").read_text().strip() == "1"
                found += [str(backing)] if f"{self.folder}/" in backing.read_text() and not given_back else []
        return found

    def assert_gone(self) -> None:
        """Nothing of it is left. The kernel takes its time with loop devices that somebody looks at just then."""
        end = time.monotonic() + LET_GO_S
        while (left := self.traces()) and time.monotonic() < end:
            time.sleep(0.05)
        assert left == []

    def _is_mine(self, process: Path) -> bool:
        try:
            ended = (process / "stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
            words = (process / "cmdline").read_bytes().split(b"\0")
            where = str((process / "cwd").readlink())
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return False  # gone, or somebody's that even root may not look at
        named = any(word.startswith(f"{self.folder}/".encode()) for word in words)
        return not ended and (named or where.startswith(f"{self.folder}/"))


LET_GO_S = 30.0


@contextmanager
def demo_in(folder: Path, as_root: bool) -> Iterator[Demo]:
    """A demo of which nothing is left afterwards."""
    made = Demo(folder, as_root)
    try:
        yield made
    finally:
        clean(made.folder)
        made.assert_gone()
        assert not made.folder.exists()
