"""What has not begun of a job can be cancelled, and never begins; what has begun goes on to its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backhaul.configuration_server.jobs import not_cancelable
from backhaul.configuration_server.records import JobRecord

TESTS = Path(__file__).parent.parent


def test_what_has_not_begun_never_begins(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lifecycle.cancelled_process", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(TESTS)}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    happened = json.loads(done.stdout.splitlines()[-1])
    assert happened["one"] == {
        "result": "BH-JOB-CANCELLED",
        "states": ["Cancelled", "Succeeded"],
        "ran": 1,
        "refused": "BH-JOB-NOT-CANCELABLE",
    }
    assert happened["many"] == {
        "state": "Cancelled",
        "failures": ["PlannedFailover was cancelled: 1 of 3 items had begun and were let end."],
        "ran": [0],
        "children": ["job", "BH-JOB-CANCELLED", "BH-JOB-CANCELLED"],
        "first": "Succeeded",
    }


@pytest.mark.parametrize(
    ("kind", "state", "advice"),
    [
        ("PlannedFailover", "InProgress", "backhaul item cancel web"),
        ("ReverseReplicate", "InProgress", "backhaul item cancel web"),
        ("Commit", "InProgress", "backhaul job watch"),
        ("PlannedFailover", "Failed", "backhaul job show"),
    ],
)
def test_what_has_begun_says_what_can_be_done_instead(kind: str, state: str, advice: str) -> None:
    told = not_cancelable(JobRecord(id="j", kind=kind, subject="i", subject_name="web", state=state)).advice
    assert advice in told
    assert ("item cancel" in told) == ("item cancel" in advice)
