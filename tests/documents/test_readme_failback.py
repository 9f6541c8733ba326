"""The first failback by hand, as both READMEs tell it: the demo until the disaster, then their commands in order."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backhaul.demo.lifecycle import STAGES
from cli.terminal import Terminal
from demo.demos import LAST_LINE, Demo, demo_in
from documents.readme import ENGLISH, FAILBACK, GERMAN, Line, commands, plain_blocks

SERVER = "ps-vnet-a"
PASSWORD = "By-hand-in-a-test-7"
LIMIT_S = 90.0
"""A person tries again while the first recovery point is not there yet; this bounds how long."""

PASSPHRASE = "Connection passphrase"
HIDDEN = ("assword", PASSPHRASE, "epeat for confirmation")
PROMPT = re.compile(r"[^\n]*(assword|assphrase|confirmation|\[\d+\])[^\n]*: $")


class ByHand:
    """Types the commands at the demo's shells, and remembers what was printed."""

    def __init__(self, demo: Demo) -> None:
        self._demo = demo
        self.printed: dict[str, str] = {}

    def type(self, line: Line) -> str:
        """The command, again while it is refused; what it printed in the end."""
        end = time.monotonic() + LIMIT_S
        while True:
            status, shown = self._once(line)
            if status == 0:
                self.printed[line.command] = shown
                return shown
            assert time.monotonic() < end, f"{line.command}\n{shown}"
            time.sleep(1.0)

    def _once(self, line: Line) -> tuple[int, str]:
        place = SERVER if line.place == "cloud" else line.place
        shell = [sys.executable, "-m", "backhaul", "demo", "shell", place, "--data-dir", str(self._demo.folder)]
        with Terminal(*shell, "--command", line.command, cwd=self._demo.folder) as terminal:
            while terminal.take():
                waiting = PROMPT.search(terminal.seen)
                if waiting is None or waiting.end() == terminal.answered:
                    continue
                terminal.answered = waiting.end()
                self._answer(terminal, waiting[0])
            return terminal.end(), terminal.seen

    def _answer(self, terminal: Terminal, prompt: str) -> None:
        if "assphrase" in prompt:
            terminal.answer_hidden(self.passphrase)
        elif any(word in prompt for word in HIDDEN):
            terminal.answer_hidden(PASSWORD)
        else:
            terminal.answer("")  # what is usual

    @property
    def passphrase(self) -> str:
        """As home showed it."""
        return self.printed["backhaul server passphrase show"].split()[-1]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    with demo_in(tmp_path / "demo", as_root=False) as made:
        yield made


def test_both_languages_have_the_same_ten_commands() -> None:
    english, german = (commands(page, heading) for page, heading in FAILBACK.items())
    assert english == german
    assert english[0] == Line("", "scripts/demo --until failed-over")
    assert "failed-over" in [stage.name for stage in STAGES]
    assert len(english[1:]) == 10
    assert {line.place for line in english[1:]} == {"home", "cloud"}


@pytest.mark.timeout(600)
def test_the_commands_bring_the_machine_home(demo: Demo) -> None:
    (_, until), *typed = commands(ENGLISH, FAILBACK[ENGLISH])
    demo.run(*until.split()[1:])
    hand = ByHand(demo)
    for line in typed:
        hand.type(line)
    deployed, registered = (next(line.command for line in typed if verb in line.command) for verb in ("deploy", "regi"))
    assert "is unregistered" in hand.printed[deployed]
    assert "is registered; its service starts by itself" in hand.printed[registered]
    assert PASSWORD not in "".join(hand.printed.values())
    assert hand.passphrase not in hand.printed[registered]
    assert "passed" in hand.printed["backhaul item integrity alpha"]
    (alpha,) = (
        item
        for item in json.loads(demo.client("item", "list", "--json"))
        if item["properties"]["friendlyName"] == "alpha"
    )
    assert alpha["properties"]["protectionState"] == "failed-back-committed"
    assert SERVER not in demo.client("process-server", "list")
    hand.type(Line("home", "backhaul item reprotect alpha"))


def test_both_languages_show_a_picture_and_the_same_output_of_the_demo() -> None:
    demos = []
    for page in (ENGLISH, GERMAN):
        picture, _, demo, *_ = plain_blocks(page)
        assert "┌" in picture
        demos.append(demo)
    assert demos[0] == demos[1]
    assert demos[0].splitlines()[-1] == LAST_LINE
    stages = [line.split()[0] for line in demos[0].splitlines() if re.match(r"[a-z-]+ +\d+\.\d s", line)]
    assert stages == [stage.name for stage in STAGES]


def test_a_shell_opens_only_where_there_is_something(demo: Demo, tmp_path: Path) -> None:
    for words, code in ((("home",), "BH-DEMO-FOLDER"), ((SERVER,), "BH-DEMO-FOLDER")):
        command = [sys.executable, "-m", "backhaul", "demo", "shell", *words, "--data-dir", str(tmp_path / "none")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
        assert done.returncode == 2
        assert code in done.stderr
