"""The jobs as DBOS workflows on the configuration server's own database: a SIGKILL before or after an effect, and a
new process that goes on, leave exactly one of each effect.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lifecycle.stations import JOBS

TESTS = Path(__file__).parent.parent


def process(folder: Path, station: str, number: int = 0, when: str = "") -> subprocess.CompletedProcess[str]:
    """One life of the configuration server."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "lifecycle.job_process", str(folder), station, str(number), when]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def ended(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What it printed; fails the test when it did not end well."""
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("station", ["failover", "cancel failover", "unprotect"])
def test_a_killed_server_goes_on_with_its_job(station: str, tmp_path: Path, seed: int, deep: bool) -> None:
    reference = ended(process(tmp_path / "whole", station))
    assert (reference["state"], reference["failures"]) == ("Succeeded", [])
    count = len(reference["effects"])
    places = [(number, when) for number in range(1, count + 1) for when in ("before", "after")]
    for number, when in places if deep else random.Random(seed).sample(places, 1):
        folder = tmp_path / f"{number}-{when}"
        killed = process(folder, station, number, when)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
        again = ended(process(folder, station))
        assert again == reference, f"{when} effect {number}: {reference['effects'][number - 1]}"


def test_every_station_of_this_matrix_exists() -> None:
    assert {"failover", "cancel failover", "unprotect"} <= set(JOBS)
