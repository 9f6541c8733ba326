"""The demo's own process is killed in every stage, at an effect that is counted, and goes on to a proof that holds."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from demo.demos import DOOMED, LAST_LINE, NAMES, Demo, demo_in

EFFECTS = {
    "set-up": 22,
    "protected": 8,
    "failed-over": 22,
    "committed": 6,
    "process-servers": 9,
    "reprotected": 10,
    "failed-back": 20,
    "home-again": 6,
    "cleaned-up": 3,
}
"""So many effects a stage has at least."""


def killed_in(demo: Demo, stage: str, number: int, when: str) -> None:
    """Run until the kill. Fails unless it happened."""
    code, printed = demo.run_badly("--resume", "--keep", program=(*DOOMED, stage, str(number), when))
    assert code == -signal.SIGKILL, f"{when} effect {number} of {stage}:\n{printed}"


@pytest.mark.timeout(1800)
def test_a_demo_that_is_killed_in_every_stage_goes_on_to_its_end(tmp_path: Path, seed: int, deep: bool) -> None:
    draw = random.Random(seed)
    for number in range(5 if deep else 1):
        with demo_in(tmp_path / f"demo-{number}", as_root=False) as demo:
            for stage in NAMES:
                killed_in(demo, stage, draw.randint(1, EFFECTS[stage]), draw.choice(("before", "after")))
            printed = demo.run("--resume", "--keep")
            assert printed.splitlines()[-1] == LAST_LINE
            code, judged = demo.judge()
            assert code == 0, judged
            assert judged.count("OK: a prefix of the acknowledged writes") >= 8, "every station is judged again"
