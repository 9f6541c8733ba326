"""In one demo, one process of the product is killed in each stage; the demo finishes and the oracle holds."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backhaul.demo.lifecycle import clean
from demo.demos import LAST_LINE, NAMES, Demo, demo_in

FELLED = (sys.executable, "-u", "-m", "demo.felled")
ANYWHERE = ("agent", "process-server", "master-target", "configuration-server")
FREEZING = {"freezer": ("protected", "failed-over"), "guard": ("reprotected", "home-again")}
"""Stages in which the agent freezes, on either side."""

RESUMES = 3
CALLS = 8
"""A kill comes at one of so many calls of the operator to the product; each stage makes more, as it waits."""


def drawn(chance: random.Random, rounds: int) -> list[dict[str, tuple[str, int]]]:
    """Whom to kill in each stage, and when: in one round everybody at least once."""
    found = []
    for _ in range(rounds):
        stages = {chance.choice(where): who for who, where in FREEZING.items()}
        free = [name for name in NAMES if name not in stages]
        whom = chance.sample(ANYWHERE * 2, len(free))
        whom[: len(ANYWHERE)] = chance.sample(ANYWHERE, len(ANYWHERE))
        stages |= dict(zip(chance.sample(free, len(free)), whom, strict=True))
        found.append({name: (stages[name], chance.randint(1, CALLS)) for name in NAMES})
    return found


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    with demo_in(tmp_path / "demo", as_root=True) as made:
        yield made


def felled(
    demo: Demo, kills: dict[str, tuple[str, int]], record: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> str:
    """Run it, and go on with it as long as a kill ended it; what it printed in the end."""
    monkeypatch.setenv("RECORD", str(record))
    monkeypatch.setenv("KILLS", json.dumps(kills))
    process = demo.start("--keep", *arguments, program=FELLED)
    printed, _ = process.communicate()
    for _ in range(RESUMES):
        if process.returncode == 0:
            break
        killed = {one["stage"] for one in recorded(record)}
        monkeypatch.setenv("KILLS", json.dumps({stage: kill for stage, kill in kills.items() if stage not in killed}))
        process = demo.start("--keep", "--resume", *arguments, program=FELLED)
        more, _ = process.communicate()
        printed += more
    assert process.returncode == 0, printed
    return printed


def recorded(record: Path) -> list[dict[str, str]]:
    """What was killed."""
    return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []


@pytest.mark.root
@pytest.mark.timeout(1200)
def test_whatever_is_killed_in_a_stage_the_demo_finishes_and_the_oracle_holds(
    demo: Demo, tmp_path: Path, seed: int, deep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, kills in enumerate(drawn(random.Random(seed), 6 if deep else 1)):
        record = tmp_path / f"killed-{number}"
        printed = felled(demo, kills, record, monkeypatch)
        assert printed.splitlines()[-1] == LAST_LINE
        assert {one["stage"]: one["who"] for one in recorded(record)} == {name: kills[name][0] for name in NAMES}
        status, found = demo.judge()
        assert status == 0, found
        clean(demo.folder)


@pytest.mark.root
@pytest.mark.timeout(600)
def test_a_demo_that_ended_in_the_disaster_waits_for_nobody_who_is_cut_off(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration server is killed when the machines were just cut off, which ends the demo nearly always."""
    record = tmp_path / "killed"
    printed = felled(demo, {"failed-over": ("configuration-server", 2)}, record, monkeypatch, "--until", "failed-over")
    assert [one["who"] for one in recorded(record)] == ["configuration-server"]
    assert "BH-DEMO-WAITED" not in printed
    clean(demo.folder)
